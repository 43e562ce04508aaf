//! The examples of `plugins/examples`, as parts of the binary: what `policy new --example` makes
//! a project of.

use super::policy_new::{Language, NewWorld};

/// A policy that does something real, in each language, with its configuration and cases.
pub struct Example {
    pub name: &'static str,
    pub world: NewWorld,
    rust: &'static str,
    c: &'static str,
    js: &'static str,
    python: &'static str,
    pub config: &'static str,
    /// What it does and what its configuration has, under a heading.
    pub readme: &'static str,
    /// Path in the project, and content.
    pub messages: &'static [(&'static str, &'static str)],
}

macro_rules! file {
    ($name:literal, $path:literal) => {
        include_str!(concat!("../../../../plugins/examples/", $name, "/", $path))
    };
}

macro_rules! example {
    ($name:literal, $world:ident, $($messages:literal),+) => {
        Example {
            name: $name,
            world: NewWorld::$world,
            rust: file!($name, "src/lib.rs"),
            c: file!($name, "policy.c"),
            js: file!($name, "policy.js"),
            python: file!($name, "policy.py"),
            config: file!($name, "config.json"),
            readme: file!($name, "README.md"),
            messages: &[$(($messages, file!($name, $messages))),+],
        }
    };
}

pub const EXAMPLES: [Example; 9] = [
    example!(
        "own-server",
        Routing,
        "messages/cases.jsonl",
        "messages/grants.json"
    ),
    example!(
        "eu-only",
        Routing,
        "messages/cases.jsonl",
        "messages/grants.json"
    ),
    example!(
        "sender-domain",
        Routing,
        "messages/cases.jsonl",
        "messages/grants.json"
    ),
    example!(
        "campaign",
        Routing,
        "messages/cases.jsonl",
        "messages/grants.json"
    ),
    example!("office-hours", Routing, "messages/cases.jsonl"),
    example!("warm-up", Shaping, "messages/lanes.jsonl"),
    example!("crm-webhook", Export, "messages/events.jsonl"),
    example!("splunk-hec", Export, "messages/events.jsonl"),
    example!("elastic-bulk", Export, "messages/events.jsonl"),
];

impl Example {
    /// The policy, which calls itself `name`.
    pub fn source(&self, language: Language, name: &str) -> String {
        let source = match language {
            Language::Rust => self.rust,
            Language::C => self.c,
            Language::Js => self.js,
            Language::Python => self.python,
        };
        // What it says of itself comes first in each.
        source.replacen(&format!("\"{}\"", self.name), &format!("\"{name}\""), 1)
    }
}

/// For the command line: an example by its name.
pub fn find(name: &str) -> Result<&'static Example, String> {
    EXAMPLES.iter().find(|e| e.name == name).ok_or_else(|| {
        let names: Vec<&str> = EXAMPLES.iter().map(|e| e.name).collect();
        format!("there are {}", names.join(", "))
    })
}
