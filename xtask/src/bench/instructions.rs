//! `cargo xtask bench instructions`: instructions for each message on parts of the hot path,
//! counted by callgrind, beside a committed baseline. Counts hardly differ between runs and
//! machines, so a change for the worse shows where clocks show nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::host;

/// How far a count may be above or below the baseline, percent.
const TOLERANCE: u64 = 5;
/// Messages of the shorter and the longer run; the difference counts.
const MESSAGES: (u64, u64) = (100, 300);
const PARTS: [&str; 2] = ["session", "store"];
/// The crates on the path, built as in a release; dependencies are as the tests have them.
const OPTIMISED: [&str; 5] = ["mail", "queue", "submit", "store", "tests"];

/// Options of `cargo xtask bench instructions`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Make these counts the baseline: for a change that is worth its cost.
    #[arg(long)]
    accept: bool,
}

/// The committed file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Baseline {
    /// Another compiler counts otherwise: then nothing is compared.
    compiler: String,
    /// Instructions for each message.
    counts: BTreeMap<String, u64>,
}

fn path() -> PathBuf {
    host::root().join("tests/instructions/baseline.json")
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    check(arguments.accept).map(|said| println!("{said}"))
}

/// Counts, and compares unless the baseline is to be replaced. The error names what is off.
pub fn check(accept: bool) -> anyhow::Result<String> {
    ensure!(
        host::find("valgrind").is_some(),
        "valgrind is not installed (Debian: apt-get install valgrind)"
    );
    let counted = Baseline {
        compiler: compiler()?,
        counts: count(&build()?)?,
    };
    if accept {
        let text = serde_json::to_string_pretty(&counted)? + "\n";
        std::fs::write(path(), text).with_context(|| format!("write {}", path().display()))?;
        return Ok(format!("baseline: {:?}", counted.counts));
    }
    let text = std::fs::read_to_string(path())
        .with_context(|| format!("{}: make it with --accept", path().display()))?;
    compare(&serde_json::from_str(&text)?, &counted)
}

fn compare(baseline: &Baseline, counted: &Baseline) -> anyhow::Result<String> {
    let mut said = Vec::new();
    let mut off = Vec::new();
    for (part, now) in &counted.counts {
        let Some(then) = baseline.counts.get(part) else {
            bail!("the baseline has no {part}: make it again with --accept");
        };
        let change = *now as f64 / *then as f64 - 1.0;
        let text = format!("{part} {now} ({:+.1} %)", change * 100.0);
        if now.abs_diff(*then) * 100 > then * TOLERANCE {
            off.push(text.clone());
        }
        said.push(text);
    }
    let said = format!("instructions for each message: {}", said.join(", "));
    if baseline.compiler != counted.compiler {
        return Ok(format!(
            "{said}; not compared: the baseline is of {}",
            baseline.compiler
        ));
    }
    if off.is_empty() {
        return Ok(said);
    }
    bail!(
        "{said}: more than {} % off the baseline: {}. If that is as it should be: cargo xtask bench \
         instructions --accept",
        TOLERANCE,
        off.join(", ")
    )
}

fn compiler() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn build() -> anyhow::Result<PathBuf> {
    let mut command = host::cargo();
    command.args([
        "build",
        "--package",
        "tidegate-tests",
        "--example",
        "instructions",
    ]);
    for member in OPTIMISED {
        let key = format!("profile.dev.package.tidegate-{member}.opt-level=3");
        command.args(["--config", &key]);
    }
    host::run(&mut command)?;
    Ok(host::target().join("debug/examples/instructions"))
}

fn count(driver: &std::path::Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for part in PARTS {
        let short = callgrind(driver, part, MESSAGES.0)?;
        let long = callgrind(driver, part, MESSAGES.1)?;
        ensure!(long > short, "{part}: {short} and {long} instructions");
        counts.insert(part.to_owned(), (long - short) / (MESSAGES.1 - MESSAGES.0));
    }
    Ok(counts)
}

/// All instructions of one run.
fn callgrind(driver: &std::path::Path, part: &str, messages: u64) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(driver)
        .arg(part)
        .arg(messages.to_string())
        .stdin(Stdio::null())
        .output()
        .context("start valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{part} under valgrind: {text}");
    // "==123== Collected : 4567"
    text.lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, number)| number.trim().parse().ok())
        .with_context(|| format!("no count from valgrind: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(compiler: &str, session: u64) -> Baseline {
        Baseline {
            compiler: compiler.into(),
            counts: [("session".to_owned(), session)].into(),
        }
    }

    #[test]
    fn a_count_beyond_the_tolerance_fails_and_another_compiler_is_not_compared() {
        let baseline = counts("rustc 1", 1000);
        assert!(compare(&baseline, &counts("rustc 1", 1050)).is_ok());
        assert!(compare(&baseline, &counts("rustc 1", 950)).is_ok());
        let error = compare(&baseline, &counts("rustc 1", 1051)).unwrap_err();
        assert!(
            error.to_string().contains("session 1051 (+5.1 %)"),
            "{error}"
        );
        assert!(compare(&baseline, &counts("rustc 1", 940)).is_err());
        let said = compare(&baseline, &counts("rustc 2", 2000)).unwrap();
        assert!(said.contains("not compared"), "{said}");
    }
}
