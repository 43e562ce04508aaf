//! House rules that the compiler does not hold: who may import whom, who may ask the machine for
//! the time or a socket, how long a file may be, and that nothing in the tree names a machine.

mod semantics;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A crate of the host, and the crates of the host it may import (ARCHITECTURE.md).
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("mail", &[]),
    ("queue", &["mail"]),
    ("store", &["mail", "queue"]),
    ("policy", &["mail", "queue"]),
    ("submit", &["mail"]),
    ("net", &["mail", "queue", "submit"]),
    ("admin", &["mail", "queue"]),
    (
        "gateway",
        &["mail", "queue", "store", "policy", "submit", "net", "admin"],
    ),
];

/// A library that says what a crate is about, and the only crates that may depend on it.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("sqlx", &["store"]),
    ("libsqlite3-sys", &["store"]),
    ("wasmtime", &["policy"]),
    ("wasmtime-wizer", &["policy"]),
    ("wasmparser", &["policy"]),
    ("wit-component", &["policy"]),
    ("wit-parser", &["policy"]),
    ("seccompiler", &["policy"]),
    ("hickory-proto", &["net"]),
    ("hickory-resolver", &["net"]),
    ("socket2", &["net"]),
    ("tokio-rustls", &["net"]),
    ("rustls", &["net", "gateway"]),
    ("mail-send", &["net"]),
    ("axum", &["admin"]),
    ("clap", &["gateway"]),
    ("toml", &["gateway"]),
    (
        "tokio",
        &["queue", "store", "policy", "net", "admin", "gateway"],
    ),
    (
        "tracing",
        &["queue", "store", "policy", "net", "admin", "gateway"],
    ),
];

/// What only `net` may write: the machine's clock and sockets. With the crates that may, and why.
const ONLY_NET: &[(&str, &[&str])] = &[
    ("SystemTime::now", &[]),
    ("Timestamp::now", &[]),
    ("Zoned::now", &[]),
    // Stopwatches: a policy's call is billed by time; the store syncs what was committed a while
    // ago, gives up on a database that does not come back, and on contents that nobody claims. No
    // decision about a mail reads them.
    ("Instant::now", &["policy", "store"]),
    // The admin API brings its own server and has one listener, on loopback.
    ("TcpListener", &["gateway", "admin"]),
    ("TcpStream", &[]),
    ("UdpSocket", &[]),
    ("UnixStream", &[]),
    ("UnixListener", &[]),
];

const LONGEST_FILE: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// All files below a directory but for what is built and what belongs to version control.
fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![below.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                if !["target", ".git", "node_modules"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else if path.is_file() && name != ".git" {
                // (Of a linked working tree `.git` is a file, and names a place.)
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

fn dependencies(member: &str) -> BTreeSet<String> {
    let path = root().join("host").join(member).join("Cargo.toml");
    let manifest: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    ["dependencies", "build-dependencies"]
        .iter()
        .filter_map(|table| manifest.get(*table)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

/// The part of a source that serves: without unit tests, which stand last, and comments.
fn serving(text: &str) -> impl Iterator<Item = (usize, &str)> {
    // A test alone, or a module of them in another file, may stand anywhere.
    let next = text.lines().skip(1).chain([""]);
    text.lines()
        .zip(next)
        .take_while(|(line, next)| !(*line == "#[cfg(test)]" && next.starts_with("mod tests {")))
        .map(|(line, _)| line)
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(at, line)| (at + 1, line))
}

#[test]
fn only_the_unit_tests_at_the_end_of_a_file_are_left_out() {
    let text = "#[cfg(test)]\nmod tests;\n// a comment\nfn one() {}\n#[cfg(test)]\nfn two() {}\n\
                fn three() {}\n#[cfg(test)]\nmod tests {\nfn four() {}\n}\n";
    let code: Vec<&str> = serving(text)
        .map(|(_, line)| line)
        .filter(|line| line.starts_with("fn"))
        .collect();
    assert_eq!(code, ["fn one() {}", "fn two() {}", "fn three() {}"]);
}

fn check(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn arrows_point_inward() {
    let rules: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut problems = Vec::new();
    for entry in std::fs::read_dir(root().join("host")).unwrap() {
        let member = entry.unwrap().file_name().to_string_lossy().into_owned();
        let Some(allowed) = rules.get(member.as_str()) else {
            problems.push(format!("host/{member} has no rule: add it to MAY_IMPORT"));
            continue;
        };
        for dependency in dependencies(&member) {
            if let Some(other) = dependency.strip_prefix("tidegate-")
                && !allowed.contains(&other)
            {
                problems.push(format!("host/{member} may not import {dependency}"));
            }
            if let Some((_, only)) = ONLY_IN.iter().find(|(name, _)| *name == dependency)
                && !only.contains(&member.as_str())
            {
                problems.push(format!(
                    "host/{member} may not depend on {dependency}: only {}",
                    only.join(", ")
                ));
            }
        }
    }
    check(problems);
}

#[test]
fn only_net_asks_the_machine() {
    let mut problems = Vec::new();
    for (member, _) in MAY_IMPORT.iter().filter(|(member, _)| *member != "net") {
        for path in files(&root().join("host").join(member).join("src")) {
            let name = shown(&path);
            if !name.ends_with(".rs") || name.ends_with("tests.rs") || name.contains("/tests/") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for (line, code) in serving(&text) {
                for (word, others) in ONLY_NET {
                    if code.contains(word) && !others.contains(member) {
                        problems.push(format!(
                            "{name}:{line}: {word} belongs to host/net; take the time from the \
                             Clock port, connections from Transport"
                        ));
                    }
                }
            }
        }
    }
    check(problems);
}

#[test]
fn files_stay_short() {
    let mut problems = Vec::new();
    for path in files(&root()) {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            if lines > LONGEST_FILE {
                problems.push(format!(
                    "{}: {lines} lines, more than {LONGEST_FILE}: it holds more than one idea",
                    shown(&path)
                ));
            }
        }
    }
    check(problems);
}

#[test]
fn no_machine_is_named() {
    let mut problems = Vec::new();
    for path in files(&root()) {
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        for (at, line) in text.lines().enumerate() {
            for directory in ["work", "root", "home"] {
                let machine = format!("/{directory}/");
                let named = line.match_indices(&machine).any(|(start, _)| {
                    line[..start]
                        .chars()
                        .next_back()
                        .is_none_or(|before| !before.is_alphanumeric() && before != '.')
                });
                if named {
                    problems.push(format!("{}:{}: {machine}", shown(&path), at + 1));
                }
            }
        }
    }
    check(problems);
}
