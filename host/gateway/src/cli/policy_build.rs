//! `tidegate policy build`: a script and a ready-made engine make a policy, without a compiler.

use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_policy::script;

use super::policy_new::NewWorld;
use super::{Failure, Outcome, out};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tidegate policy build policy.js -o own-server.wasm\n  tidegate policy build policy.py -o own-server.wasm\n  tidegate policy build policy.js -o warm-up.wasm --world shaping --engine ./target/policies/engines/js-shaping.wasm"
)]
pub struct BuildArgs {
    /// The script: Python where its name ends with .py, else a module of JavaScript (ES2023).
    script: PathBuf,
    /// The policy to write.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// What it decides; told by the function it has otherwise: decide, plan or render.
    #[arg(long, value_enum)]
    world: Option<NewWorld>,
    /// The engine (js-WORLD.wasm, python-WORLD.wasm); the one installed with the binary otherwise.
    #[arg(long, value_name = "FILE")]
    engine: Option<PathBuf>,
}

#[derive(Clone, Copy)]
enum Language {
    Js,
    Python,
}

impl Language {
    fn of(script: &Path) -> Self {
        match script.extension() {
            Some(extension) if extension == "py" => Self::Python,
            _ => Self::Js,
        }
    }

    fn engine(self, world: NewWorld) -> String {
        let language = match self {
            Self::Js => "js",
            Self::Python => "python",
        };
        let world = match world {
            NewWorld::Routing => "routing",
            NewWorld::Shaping => "shaping",
            NewWorld::Export => "export",
        };
        format!("{language}-{world}.wasm")
    }

    /// Whether this line makes a function of that name part of the policy.
    fn defines(self, line: &str, name: &str) -> bool {
        let words = match self {
            Self::Js => line.trim_start().strip_prefix("export"),
            // Of the module, so without indentation.
            Self::Python => line.strip_prefix("def "),
        };
        words.is_some_and(|words| {
            words
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .filter(|word| !word.is_empty())
                .take(match self {
                    Self::Js => usize::MAX,
                    Self::Python => 1,
                })
                .any(|word| word == name)
        })
    }
}

/// The engine installed with the binary.
fn installed(name: &str) -> Option<PathBuf> {
    let binary = std::env::current_exe().ok()?;
    let beside = binary.parent()?;
    ["../share/tidegate/policies", "policies", "../policies"]
        .into_iter()
        .map(|dir| beside.join(dir).join("engines").join(name))
        .find(|path| path.is_file())
}

fn world_of(script: &str, language: Language) -> Option<NewWorld> {
    let exports = |name: &str| script.lines().any(|line| language.defines(line, name));
    let found: Vec<NewWorld> = [
        ("decide", NewWorld::Routing),
        ("plan", NewWorld::Shaping),
        ("render", NewWorld::Export),
    ]
    .into_iter()
    .filter_map(|(name, world)| exports(name).then_some(world))
    .collect();
    match found[..] {
        [world] => Some(world),
        _ => None,
    }
}

/// Whether both names stand for one file.
fn is_same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

pub fn run(args: &BuildArgs) -> Outcome {
    let unreadable = |path: &Path, e: std::io::Error| {
        Failure::usage(
            format!("{} can't be read: {e}", path.display()),
            "check the path",
        )
    };
    let script = std::fs::read_to_string(&args.script).map_err(|e| unreadable(&args.script, e))?;
    let language = Language::of(&args.script);
    let Some(world) = args.world.or_else(|| world_of(&script, language)) else {
        return Err(Failure::usage(
            format!("{}: it is not clear what it decides", args.script.display()),
            match language {
                Language::Js => {
                    "export one of the functions decide, plan and render, or name the world with --world"
                }
                Language::Python => {
                    "define one of the functions decide, plan and render, or name the world with --world"
                }
            },
        ));
    };
    let name = language.engine(world);
    let engine = match &args.engine {
        Some(path) => path.clone(),
        None => installed(&name).ok_or_else(|| {
            Failure::failed(
                format!("no engine {name} is installed with this binary"),
                "name it with --engine; in a source tree: cargo xtask plugins makes target/policies/engines",
            )
        })?,
    };
    for (what, read) in [("script", &args.script), ("engine", &engine)] {
        if is_same(read, &args.output) {
            return Err(Failure::usage(
                format!("{} is the {what} itself", args.output.display()),
                "name another file with --output",
            ));
        }
    }
    let engine_bytes = std::fs::read(&engine).map_err(|e| unreadable(&engine, e))?;
    let policy = script::embed(&engine_bytes, &script).map_err(|e| {
        Failure::usage(
            format!("{} into {}: {e}", args.script.display(), engine.display()),
            "",
        )
    })?;
    crate::serve::write_whole(&args.output, &policy).map_err(|e| {
        Failure::failed(
            format!("{} can't be written: {e}", args.output.display()),
            "name another file with --output",
        )
    })?;
    out(&format!(
        "{} ({} bytes)\n",
        args.output.display(),
        policy.len()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exported_function_tells_the_world() {
        let of = |text| world_of(text, Language::Js);
        assert_eq!(of("export function decide(m) {}"), Some(NewWorld::Routing));
        assert_eq!(of("  export const plan = () => 1"), Some(NewWorld::Shaping));
        assert_eq!(of("export { init, render };"), Some(NewWorld::Export));
        assert_eq!(of("// export decide\nfunction decide() {}"), None);
        assert_eq!(
            of("export function decide() {}\nexport function plan() {}"),
            None
        );
        assert_eq!(of("export function planner() {}"), None);
        let of = |text| world_of(text, Language::Python);
        assert_eq!(
            of("def decide(message):\n    pass"),
            Some(NewWorld::Routing)
        );
        assert_eq!(of("def render (events): return []"), Some(NewWorld::Export));
        assert_eq!(of("# def plan\nclass A:\n    def plan(self): pass"), None);
        assert_eq!(of("def other(decide): pass"), None);
    }

    #[test]
    fn neither_the_script_nor_the_engine_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("policy.py");
        let engine = dir.path().join("engine.wasm");
        let link = dir.path().join("link.wasm");
        std::fs::write(&script, "def decide(message):\n    pass\n").unwrap();
        std::fs::write(&engine, "an engine").unwrap();
        std::os::unix::fs::symlink(&engine, &link).unwrap();
        for output in [&script, &engine, &link] {
            let refused = run(&BuildArgs {
                script: script.clone(),
                output: output.clone(),
                world: None,
                engine: Some(engine.clone()),
            })
            .unwrap_err();
            assert!(refused.to_string().contains("itself"), "{refused}");
        }
        assert_eq!(std::fs::read_to_string(&engine).unwrap(), "an engine");
        assert!(std::fs::read_to_string(&script).unwrap().starts_with("def"));
    }
}
