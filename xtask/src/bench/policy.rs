//! `cargo xtask bench policy`: what a decision by a policy costs, beside Lua in the process and a
//! policy service on a socket; and what a hostile policy costs the mail of others.

use std::process::{Command, Stdio};

use anyhow::ensure;

use crate::host::{self, cargo};
use crate::plugins;

/// Options of `cargo xtask bench policy`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench policy
  cargo xtask bench policy --attacks")]
pub struct Arguments {
    /// Instead: the rate of other tenants' decisions while each attack runs.
    #[arg(long)]
    attacks: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    plugins::build(&host::root())?;
    if arguments.attacks {
        return attacks(host::run);
    }
    println!("{OURS}");
    ours(host::run)?;
    println!("\n{PEERS}");
    peers(host::run)
}

/// Both, as text for the report.
pub fn measure() -> anyhow::Result<String> {
    plugins::build(&host::root())?;
    let mut text = format!("{OURS}\n");
    text += &ours(printed)?;
    text += &format!("\n{PEERS}\n");
    text += &peers(printed)?;
    text += &format!("\n{ATTACKS}\n");
    text += &attacks(printed)?;
    Ok(text)
}

const OURS: &str = "the default routing policy, a fresh instance for each decision";
const PEERS: &str = "the same decision, 20 header fields, without Wasm
                                   recipients CPU us, median (min)        wall us";
const ATTACKS: &str = "decisions of other tenants while a policy misbehaves";

fn ours<T>(run: impl Fn(&mut Command) -> anyhow::Result<T>) -> anyhow::Result<T> {
    run(&mut example("policy_bench"))
}

fn attacks<T>(run: impl Fn(&mut Command) -> anyhow::Result<T>) -> anyhow::Result<T> {
    run(&mut example("policy_attacks"))
}

fn peers<T>(run: impl Fn(&mut Command) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let root = host::root();
    run(cargo()
        .args(["run", "--quiet", "--release", "--locked"])
        .arg("--manifest-path")
        .arg(root.join("bench/policy-peers/Cargo.toml"))
        .arg("--target-dir")
        .arg(root.join("target/policy-peers")))
}

fn example(name: &str) -> Command {
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "tidegate-policy",
        "--example",
        name,
    ]);
    command
}

/// Runs to the end, demands success, and gives what was printed.
fn printed(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    ensure!(output.status.success(), "{text}: {}", output.status);
    Ok(text)
}
