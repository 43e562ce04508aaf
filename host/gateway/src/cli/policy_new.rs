//! `tidegate policy new`: a project that builds, tests and uploads as it stands.
//!
//! Everything it is made of is part of the binary: the interface, the guest SDK, the sources
//! under `plugins/templates`, and cases with what is expected of them.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::policy_examples::{self, Example};
use super::{Failure, Outcome, out};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Rust,
    C,
    #[value(alias = "javascript")]
    Js,
    #[value(alias = "py")]
    Python,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NewWorld {
    /// How does this message leave?
    Routing,
    /// How fast may these lanes go?
    Shaping,
    /// What do these events look like to the system that wants them?
    Export,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tidegate policy new own-server --lang rust\n  tidegate policy new mornings --lang js --example office-hours\n  tidegate policy new warm-up --lang python --world shaping\n  tidegate policy new crm-hook --lang rust --world export --dir ./policies/crm-hook"
)]
pub struct NewArgs {
    /// Its name: lower-case letters, digits and hyphens.
    name: String,
    #[arg(long, value_enum)]
    lang: Language,
    #[arg(long, value_enum, default_value = "routing")]
    world: NewWorld,
    /// Begin with an example, which has its world: own-server, eu-only, sender-domain, campaign,
    /// office-hours; warm-up; crm-webhook, splunk-hec, elastic-bulk.
    #[arg(long, value_name = "NAME", conflicts_with = "world")]
    example: Option<String>,
    /// Where to make it; ./NAME otherwise.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

const WIT: &str = include_str!("../../../../wit/tidegate-policy-1.0.0/policy.wit");

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../../../plugins/templates/", $path))
    };
}

macro_rules! sdk {
    ($file:literal) => {
        include_str!(concat!("../../../../plugins/sdk/src/", $file))
    };
}

/// Path in the project, and content before the placeholders are filled in.
type Files = Vec<(&'static str, &'static str)>;

fn samples(world: NewWorld) -> Files {
    match world {
        NewWorld::Routing => vec![
            (
                "messages/campaign.json",
                template!("samples/routing/campaign.json"),
            ),
            (
                "messages/letter.json",
                template!("samples/routing/letter.json"),
            ),
            (
                "messages/grants.json",
                template!("samples/routing/grants.json"),
            ),
        ],
        NewWorld::Shaping => vec![(
            "messages/lanes.jsonl",
            template!("samples/shaping/lanes.jsonl"),
        )],
        NewWorld::Export => vec![(
            "messages/events.jsonl",
            template!("samples/export/events.jsonl"),
        )],
    }
}

fn json_config(world: NewWorld) -> (&'static str, &'static str) {
    let config = match world {
        NewWorld::Routing => "{ \"campaign_header\": \"X-Campaign\" }\n",
        NewWorld::Shaping => "{ \"per_minute\": 60 }\n",
        NewWorld::Export => "{}\n",
    };
    ("config.json", config)
}

fn rust(world: NewWorld) -> Files {
    let source = match world {
        NewWorld::Routing => template!("rust/routing.rs"),
        NewWorld::Shaping => template!("rust/shaping.rs"),
        NewWorld::Export => template!("rust/export.rs"),
    };
    vec![
        ("README.md", template!("rust/README.md.in")),
        (".gitignore", "/target\n"),
        ("Cargo.toml", template!("rust/Cargo.toml.in")),
        (".cargo/config.toml", template!("rust/config.toml")),
        ("src/lib.rs", source),
        json_config(world),
        ("sdk/Cargo.toml", template!("rust/sdk.Cargo.toml.in")),
        ("sdk/src/lib.rs", sdk!("lib.rs")),
        ("sdk/src/alloc.rs", sdk!("alloc.rs")),
        ("sdk/src/routing.rs", sdk!("routing.rs")),
        ("sdk/src/shaping.rs", sdk!("shaping.rs")),
        ("sdk/src/export.rs", sdk!("export.rs")),
        ("sdk/src/time.rs", sdk!("time.rs")),
        ("sdk/wit/policy.wit", WIT),
    ]
}

fn c(world: NewWorld) -> Files {
    let source = match world {
        NewWorld::Routing => template!("c/routing.c"),
        NewWorld::Shaping => template!("c/shaping.c"),
        NewWorld::Export => template!("c/export.c"),
    };
    vec![
        ("README.md", template!("c/README.md.in")),
        (".gitignore", "*.wasm\n"),
        ("Makefile", template!("c/Makefile.in")),
        ("policy.c", source),
        ("tidegate.h", template!("c/tidegate.h")),
        ("tidegate-json.h", template!("c/tidegate-json.h")),
        json_config(world),
        ("wit/policy.wit", WIT),
    ]
}

fn js(world: NewWorld) -> Files {
    let source = match world {
        NewWorld::Routing => template!("js/routing.js"),
        NewWorld::Shaping => template!("js/shaping.js"),
        NewWorld::Export => template!("js/export.js"),
    };
    vec![
        ("README.md", template!("js/README.md.in")),
        (".gitignore", "*.wasm\n"),
        ("policy.js", source),
        json_config(world),
        ("wit/policy.wit", WIT),
    ]
}

fn python(world: NewWorld) -> Files {
    let source = match world {
        NewWorld::Routing => template!("python/routing.py"),
        NewWorld::Shaping => template!("python/shaping.py"),
        NewWorld::Export => template!("python/export.py"),
    };
    vec![
        ("README.md", template!("python/README.md.in")),
        (".gitignore", "*.wasm\n__pycache__/\n"),
        ("policy.py", source),
        json_config(world),
        ("wit/policy.wit", WIT),
    ]
}

/// What the placeholders of the templates stand for.
fn fill(text: &str, name: &str, world: NewWorld) -> String {
    let (feature, slot) = match world {
        NewWorld::Routing => ("routing", "routing/TENANT"),
        NewWorld::Shaping => ("shaping", "shaping"),
        NewWorld::Export => ("export", "export/SINK"),
    };
    text.replace("../../wit/tidegate-policy-1.0.0", "wit")
        .replace("FEATURE", feature)
        .replace("WORLD", feature)
        .replace("SLOT", slot)
        .replace("UNDER", &name.replace('-', "_"))
        .replace("NAME", name)
}

/// The files of a project, ready to be written.
fn project(
    language: Language,
    world: NewWorld,
    example: Option<&Example>,
    name: &str,
) -> Vec<(&'static str, String)> {
    let world = example.map_or(world, |example| example.world);
    let template = match language {
        Language::Rust => rust(world),
        Language::C => c(world),
        Language::Js => js(world),
        Language::Python => python(world),
    };
    let mut files: Vec<(&str, String)> = template
        .into_iter()
        .map(|(path, text)| {
            // The interface is not the project's own.
            let own = !path.ends_with(".wit");
            let text = if own {
                fill(text, name, world)
            } else {
                text.to_owned()
            };
            (path, text)
        })
        .collect();
    let Some(example) = example else {
        let samples = samples(world).into_iter();
        files.extend(samples.map(|(path, text)| (path, text.to_owned())));
        return files;
    };
    for (path, text) in &mut files {
        match *path {
            "src/lib.rs" | "policy.c" | "policy.js" | "policy.py" => {
                *text = example.source(language, name);
            }
            "config.json" => *text = example.config.to_owned(),
            "README.md" => {
                let about = example.readme.split_once('\n').map_or("", |(_, rest)| rest);
                *text = format!("{text}\n## What it does\n{about}");
            }
            _ => {}
        }
    }
    let messages = example.messages.iter();
    files.extend(messages.map(|(path, text)| (*path, (*text).to_owned())));
    files
}

pub fn run(args: &NewArgs) -> Outcome {
    let plain = !args.name.is_empty()
        && args.name.len() <= 64
        && args.name.starts_with(|c: char| c.is_ascii_lowercase())
        && args
            .name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !plain {
        return Err(Failure::usage(
            format!("{:?} can't be the name of a policy", args.name),
            "1 to 64 lower-case letters, digits and hyphens, beginning with a letter",
        ));
    }
    let dir = args
        .dir
        .clone()
        .unwrap_or_else(|| PathBuf::from(&args.name));
    if dir.exists() {
        return Err(Failure::failed(
            format!("{} is there already; nothing was changed", dir.display()),
            "name another place with --dir",
        ));
    }
    let example = match &args.example {
        Some(name) => Some(policy_examples::find(name).map_err(|there_are| {
            Failure::usage(format!("{name:?} is not an example"), there_are)
        })?),
        None => None,
    };
    for (path, text) in project(args.lang, args.world, example, &args.name) {
        write(&dir.join(path), &text)?;
    }
    out(&format!(
        "{} is ready. What to do next is in {}\n",
        dir.display(),
        dir.join("README.md").display()
    ));
    Ok(())
}

fn write(path: &Path, text: &str) -> Outcome {
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text))
        .map_err(|e| {
            Failure::failed(
                format!("{} can't be written: {e}", path.display()),
                "name another place with --dir",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_in() {
        let languages = [Language::Rust, Language::C, Language::Js, Language::Python];
        let worlds = [NewWorld::Routing, NewWorld::Shaping, NewWorld::Export];
        for language in languages {
            let plain = worlds.map(|world| project(language, world, None, "own-policy"));
            let examples = policy_examples::EXAMPLES
                .each_ref()
                .map(|example| project(language, example.world, Some(example), "own-policy"));
            for (path, text) in plain.iter().chain(&examples).flatten() {
                if path.ends_with(".wit") {
                    continue;
                }
                for word in ["NAME", "UNDER", "FEATURE", "WORLD", "SLOT"] {
                    assert!(!text.contains(word), "{path} still says {word}");
                }
            }
            for example in &policy_examples::EXAMPLES {
                let source = example.source(language, "own-policy");
                assert_eq!(source.matches("\"own-policy\"").count(), 1);
            }
        }
    }
}
