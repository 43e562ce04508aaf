//! `cargo xtask bench policy`: what a decision by a policy costs, beside Lua in the process and a
//! policy service on a socket; and what a hostile policy costs the mail of others.

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
    let root = host::root();
    plugins::build(&root)?;
    let example = |name: &str| {
        host::run(cargo().args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "tidegate-policy",
            "--example",
            name,
        ]))
    };
    if arguments.attacks {
        return example("policy_attacks");
    }
    println!("the default routing policy, a fresh instance for each decision");
    example("policy_bench")?;
    println!(
        "\nthe same decision, 20 header fields, without Wasm\n{:<34} {:>10} {:>20} {:>14}",
        "", "recipients", "CPU us, median (min)", "wall us"
    );
    host::run(
        cargo()
            .args(["run", "--quiet", "--release", "--locked"])
            .arg("--manifest-path")
            .arg(root.join("bench/policy-peers/Cargo.toml"))
            .arg("--target-dir")
            .arg(root.join("target/policy-peers")),
    )
}
