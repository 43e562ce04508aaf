//! The WIT packages this host speaks, one module for each major version, and what all of
//! them have in common.

pub mod v1;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which question a policy answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum World {
    RoutingPolicy,
    ShapingPolicy,
    LogExporter,
}

impl World {
    pub const ALL: [World; 3] = [
        World::RoutingPolicy,
        World::ShapingPolicy,
        World::LogExporter,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            World::RoutingPolicy => "routing-policy",
            World::ShapingPolicy => "shaping-policy",
            World::LogExporter => "log-exporter",
        }
    }

    /// The interface whose export makes a component one of this world.
    pub(crate) fn interface(self) -> &'static str {
        match self {
            World::RoutingPolicy => "routing",
            World::ShapingPolicy => "shaping",
            World::LogExporter => "log-export",
        }
    }

    /// The world that a slot (`routing/TENANT`, `routing`, `shaping`, `export/NAME`) runs.
    pub fn of_slot(slot: &str) -> Option<World> {
        match slot.split_once('/') {
            None if slot == "routing" => Some(World::RoutingPolicy),
            None if slot == "shaping" => Some(World::ShapingPolicy),
            Some(("routing", name)) if !name.is_empty() => Some(World::RoutingPolicy),
            Some(("export", name)) if !name.is_empty() => Some(World::LogExporter),
            _ => None,
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for World {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        World::ALL
            .into_iter()
            .find(|w| w.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "not a policy world: {text:?} (routing-policy, shaping-policy, log-exporter)"
                )
            })
    }
}

/// What a policy says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    pub name: String,
    pub version: String,
    /// Header fields it reads, lower case.
    pub headers: Vec<String>,
    /// Facts it reads; `*`: all.
    pub facts: Vec<String>,
}

impl Descriptor {
    /// Brings the guest's words into bounds; an error is for its author.
    pub(crate) fn check(mut self) -> Result<Self, String> {
        use crate::answer::check_text;
        use crate::limits::{DECLARED, DECLARED_NAME};
        check_text("descriptor.name", &self.name, 64)?;
        check_text("descriptor.version", &self.version, 32)?;
        if self.name.is_empty() {
            return Err("descriptor.name: empty".to_owned());
        }
        for (what, names) in [("headers", &self.headers), ("facts", &self.facts)] {
            if names.len() > DECLARED {
                return Err(format!(
                    "descriptor.{what}: {} names; at most {DECLARED}",
                    names.len()
                ));
            }
            for name in names {
                let graphic = !name.is_empty()
                    && name
                        .bytes()
                        .all(|b| b.is_ascii_graphic() && (b != b':' || what == "facts"));
                if !graphic || name.len() > DECLARED_NAME {
                    return Err(format!(
                        "descriptor.{what}: {:?} is not a name of 1 to {DECLARED_NAME} printable characters",
                        crate::answer::tidy(name, 64)
                    ));
                }
            }
        }
        for name in &mut self.headers {
            name.make_ascii_lowercase();
        }
        for (n, name) in self.headers.iter().enumerate() {
            if self.headers[..n].contains(name) {
                return Err(format!("descriptor.headers: {name:?} appears twice"));
            }
        }
        Ok(self)
    }

    pub(crate) fn wants_fact(&self, name: &str) -> bool {
        self.facts.iter().any(|f| f == name || f == "*")
    }
}
