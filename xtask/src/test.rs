//! Every check and every test, after installing what they need.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::bench::instructions;
use crate::host::{self, cargo};
use crate::{kill, plugins};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only the tests: neither formatting nor lints.
    #[arg(long)]
    quick: bool,
}

/// What a step did.
struct Step {
    name: &'static str,
    seconds: f64,
    result: anyhow::Result<String>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let root = host::root();
    let mut steps = Vec::new();
    step(&mut steps, "packages", packages);
    step(&mut steps, "plugins", || {
        plugins::build(&root).map(|_| String::new())
    });
    if steps.iter().any(|step| step.result.is_err()) {
        return summary(&steps);
    }
    if !arguments.quick {
        step(&mut steps, "format", || {
            plain(cargo().args(["fmt", "--all", "--check"]))
        });
        step(&mut steps, "format of plugins", || {
            plain(cargo().args([
                "fmt",
                "--all",
                "--check",
                "--manifest-path",
                "plugins/Cargo.toml",
            ]))
        });
        step(&mut steps, "lints", || {
            plain(cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]))
        });
    }
    step(&mut steps, "gateway", || {
        host::build_gateway(false).map(|_| String::new())
    });
    step(&mut steps, "tests", || {
        counted(cargo().args(["test", "--workspace", "--no-fail-fast"]))
    });
    step(&mut steps, "kills", kill::short);
    step(&mut steps, "instructions", || instructions::check(false));
    // One by one: the guest library speaks for one world at a time.
    for policy in plugins::POLICIES {
        if !has_tests(&root.join("plugins").join(policy).join("src/lib.rs")) {
            continue;
        }
        step(&mut steps, policy, || {
            counted(cargo().args([
                "test",
                "--no-fail-fast",
                "--manifest-path",
                "plugins/Cargo.toml",
                "--target-dir",
                "target/plugins",
                "--package",
                policy,
            ]))
        });
    }
    summary(&steps)
}

fn step(steps: &mut Vec<Step>, name: &'static str, work: impl FnOnce() -> anyhow::Result<String>) {
    println!("== {name}");
    let started = Instant::now();
    let result = work();
    if let Err(error) = &result {
        eprintln!("{name}: {error:#}");
    }
    steps.push(Step {
        name,
        seconds: started.elapsed().as_secs_f64(),
        result,
    });
}

fn summary(steps: &[Step]) -> anyhow::Result<()> {
    println!("\n== summary");
    let mut failed = Vec::new();
    for step in steps {
        let outcome = match &step.result {
            Ok(note) if note.is_empty() => "ok".to_owned(),
            Ok(note) => format!("ok: {note}"),
            Err(error) => {
                failed.push(step.name);
                format!("FAILED: {error:#}")
            }
        };
        println!("{:18} {:6.1} s  {outcome}", step.name, step.seconds);
    }
    let total: f64 = steps.iter().map(|step| step.seconds).sum();
    println!("{:18} {total:6.1} s", "together");
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("failed: {}", failed.join(", "))
    }
}

/// PostgreSQL for its half of the store's tests, strace for the test of durability, valgrind to
/// count instructions.
fn packages() -> anyhow::Result<String> {
    let mut missing = Vec::new();
    if !host::has_postgres() {
        missing.push("postgresql");
    }
    for program in ["strace", "valgrind"] {
        if host::find(program).is_none() {
            missing.push(program);
        }
    }
    host::install(&missing)?;
    Ok(missing.join(", "))
}

/// A policy without tests of its own is not built for this machine just to find none: the host's
/// tests run the component itself.
fn has_tests(source: &Path) -> bool {
    std::fs::read_to_string(source).is_ok_and(|text| text.contains("#[test]"))
}

fn plain(command: &mut Command) -> anyhow::Result<String> {
    host::run(command).map(|()| String::new())
}

/// Runs tests, shows their output, and adds up the results of all test programs.
fn counted(command: &mut Command) -> anyhow::Result<String> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo")?;
    let output = child.stdout.take().context("a pipe")?;
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(out, "{line}")?;
        if let Some(result) = line.strip_prefix("test result:") {
            let words: Vec<&str> = result.split_whitespace().collect();
            for pair in words.windows(2) {
                let Ok(number) = pair[0].parse::<u32>() else {
                    continue;
                };
                match pair[1].trim_end_matches(';') {
                    "passed" => passed += number,
                    "failed" => failed += number,
                    "ignored" => ignored += number,
                    _ => {}
                }
            }
        }
    }
    let status = child.wait()?;
    let totals = format!("{passed} passed, {failed} failed, {ignored} ignored");
    if !status.success() {
        bail!("{totals}");
    }
    Ok(totals)
}
