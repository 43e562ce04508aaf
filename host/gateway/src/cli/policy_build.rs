//! `tidegate policy build`: a script and a ready-made engine make a policy, without a compiler.

use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_policy::script;

use super::policy_new::NewWorld;
use super::{Failure, Outcome, out};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tidegate policy build policy.js -o own-server.wasm\n  tidegate policy build policy.js -o warm-up.wasm --world shaping --engine ./target/policies/engines/js-shaping.wasm"
)]
pub struct BuildArgs {
    /// The script, a module of JavaScript (ES2023).
    script: PathBuf,
    /// The policy to write.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// What it decides; told by the function it exports otherwise: decide, plan or render.
    #[arg(long, value_enum)]
    world: Option<NewWorld>,
    /// The engine (js-WORLD.wasm); the one installed with the binary otherwise.
    #[arg(long, value_name = "FILE")]
    engine: Option<PathBuf>,
}

fn engine_name(world: NewWorld) -> &'static str {
    match world {
        NewWorld::Routing => "js-routing.wasm",
        NewWorld::Shaping => "js-shaping.wasm",
        NewWorld::Export => "js-export.wasm",
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

fn world_of(script: &str) -> Option<NewWorld> {
    let exports = |name: &str| {
        script.lines().any(|line| {
            line.trim_start()
                .strip_prefix("export")
                .is_some_and(|rest| {
                    rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                        .any(|word| word == name)
                })
        })
    };
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

pub fn run(args: &BuildArgs) -> Outcome {
    let unreadable = |path: &Path, e: std::io::Error| {
        Failure::usage(
            format!("{} can't be read: {e}", path.display()),
            "check the path",
        )
    };
    let script = std::fs::read_to_string(&args.script).map_err(|e| unreadable(&args.script, e))?;
    let Some(world) = args.world.or_else(|| world_of(&script)) else {
        return Err(Failure::usage(
            format!("{}: it is not clear what it decides", args.script.display()),
            "export one of the functions decide, plan and render, or name the world with --world",
        ));
    };
    let name = engine_name(world);
    let engine = match &args.engine {
        Some(path) => path.clone(),
        None => installed(name).ok_or_else(|| {
            Failure::failed(
                format!("no engine {name} is installed with this binary"),
                "name it with --engine; in a source tree: cargo xtask plugins makes target/policies/engines",
            )
        })?,
    };
    let engine_bytes = std::fs::read(&engine).map_err(|e| unreadable(&engine, e))?;
    let policy = script::embed(&engine_bytes, &script).map_err(|e| {
        Failure::usage(
            format!("{} into {}: {e}", args.script.display(), engine.display()),
            "",
        )
    })?;
    std::fs::write(&args.output, &policy).map_err(|e| {
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
        let of = |text| world_of(text);
        assert_eq!(of("export function decide(m) {}"), Some(NewWorld::Routing));
        assert_eq!(of("  export const plan = () => 1"), Some(NewWorld::Shaping));
        assert_eq!(of("export { init, render };"), Some(NewWorld::Export));
        assert_eq!(of("// export decide\nfunction decide() {}"), None);
        assert_eq!(
            of("export function decide() {}\nexport function plan() {}"),
            None
        );
        assert_eq!(of("export function planner() {}"), None);
    }
}
