//! `tidegate policy new`: a project that builds, tests and uploads as it stands.
//!
//! Everything it is made of is part of the binary: the interface, the guest SDK, the sources
//! under `plugins/templates`, and cases with what is expected of them.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

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
    after_help = "Examples:\n  tidegate policy new own-server --lang rust\n  tidegate policy new warm-up --lang python --world shaping\n  tidegate policy new crm-hook --lang rust --world export --dir ./policies/crm-hook"
)]
pub struct NewArgs {
    /// Its name: lower-case letters, digits and hyphens.
    name: String,
    #[arg(long, value_enum)]
    lang: Language,
    #[arg(long, value_enum, default_value = "routing")]
    world: NewWorld,
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
        ("sdk/wit/policy.wit", WIT),
    ]
}

fn c(world: NewWorld) -> Files {
    let (source, config) = match world {
        NewWorld::Routing => (template!("c/routing.c"), "X-Campaign\n"),
        NewWorld::Shaping => (template!("c/shaping.c"), "60\n"),
        NewWorld::Export => (template!("c/export.c"), "\n"),
    };
    vec![
        ("README.md", template!("c/README.md.in")),
        (".gitignore", "*.wasm\n"),
        ("Makefile", template!("c/Makefile.in")),
        ("policy.c", source),
        ("tidegate.h", template!("c/tidegate.h")),
        ("config.txt", config),
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
    let mut files = match args.lang {
        Language::Rust => rust(args.world),
        Language::C => c(args.world),
        Language::Js => js(args.world),
        Language::Python => python(args.world),
    };
    files.extend(samples(args.world));
    for (path, text) in files {
        // What is not the project's own is left as it is.
        let text = if path.ends_with(".wit") || path.starts_with("messages/") {
            text.to_owned()
        } else {
            fill(text, &args.name, args.world)
        };
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
        for world in [NewWorld::Routing, NewWorld::Shaping, NewWorld::Export] {
            let all = [rust(world), c(world), js(world), python(world)];
            for (path, text) in all.into_iter().flatten() {
                if path.ends_with(".wit") {
                    continue;
                }
                let text = fill(text, "own-server", world);
                for word in ["NAME", "UNDER", "FEATURE", "WORLD", "SLOT"] {
                    assert!(!text.contains(word), "{path} still says {word}");
                }
            }
        }
    }
}
