//! What was measured on, and with which versions.

use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::relays::opensmtpd;
use crate::host;

/// Facts of the machine and the programs, for the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub system: String,
    /// Processes that ran or waited to run, on average over the minute before the benchmark.
    pub load: String,
    /// Name and version of what took part.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    pub fn here() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str, separator: char| {
            text.lines()
                .find(|line| line.starts_with(key))
                .and_then(|line| line.split_once(separator))
                .map(|(_, value)| value.trim().trim_matches('"').to_owned())
                .unwrap_or_else(|| "unknown".into())
        };
        let memory: u64 = value(&read("/proc/meminfo"), "MemTotal", ':')
            .split(' ')
            .next()
            .and_then(|kib| kib.parse().ok())
            .unwrap_or(0);
        Machine {
            processor: value(&read("/proc/cpuinfo"), "model name", ':'),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: memory.div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or("")
                .to_owned(),
            system: value(&read("/etc/os-release"), "PRETTY_NAME", '='),
            versions: versions(),
        }
    }
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(host::find(program)?)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next()?.trim().to_owned())
}

fn versions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |name: &str, version: Option<String>| {
        if let Some(version) = version {
            found.push((name.to_owned(), version));
        }
    };
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(host::root())
        .output()
        .ok()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    add(
        "Tidegate",
        commit.map(|at| format!("{} ({at})", env!("CARGO_PKG_VERSION"))),
    );
    add("Rust", first_line("rustc", &["--version"]));
    add("Postfix", first_line("postconf", &["-dh", "mail_version"]));
    // "Exim version 4.96 #2 built 27-May-2026 16:52:26"
    let exim = first_line("exim4", &["-bV"]).or_else(|| first_line("exim", &["-bV"]));
    let exim = exim.and_then(|line| line.split(' ').nth(2).map(str::to_owned));
    add("Exim", exim);
    add("OpenSMTPD", opensmtpd::version());
    // With its name, in colours for a terminal.
    let haraka = first_line("haraka", &["--version"]);
    let haraka = haraka.and_then(|line| line.split(' ').next_back().map(str::to_owned));
    add("Haraka", haraka);
    add("Node.js", first_line("node", &["--version"]));
    found
}
