//! `tidegate tenant wording`: how a tenant's notices read.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};
use tidegate_mail::dsn::Wording;

use super::client::{Client, segment};
use super::table::{cell, clean};
use super::{Failure, Outcome, out};

#[derive(Subcommand)]
pub enum WordingCommand {
    /// Take a file's words into use, for the next notice of the tenant.
    #[command(
        after_help = "Example:\n  tidegate tenant wording set acme --file ./acme.de.toml\n\nThe file is TOML or JSON. Texts that it leaves out stay the gateway's own; to see them all: tidegate tenant wording show"
    )]
    Set {
        tenant: String,
        /// TOML, or JSON where the name ends in .json (- for standard input).
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Show the words in force, as a file to start from.
    #[command(after_help = "Example:\n  tidegate tenant wording show acme > acme.toml")]
    Show { tenant: String },
    /// Give the tenant's words up for the gateway's own.
    #[command(after_help = "Example:\n  tidegate tenant wording reset acme")]
    Reset { tenant: String },
    /// Show each kind of notice with sample data, changing nothing.
    #[command(
        after_help = "Examples:\n  tidegate tenant wording preview acme\n  tidegate tenant wording preview acme --file ./acme.de.toml --kind delay"
    )]
    Preview {
        tenant: String,
        /// The words to try; those in force where it is left out.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// One kind only.
        #[arg(long, value_enum)]
        kind: Option<Kind>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Failure,
    Delay,
    Success,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Failure => "failure",
            Kind::Delay => "delay",
            Kind::Success => "success",
        }
    }
}

/// A file's contents as the API takes them. What the texts say is checked by the gateway.
fn read(path: &Path) -> Result<Value, Failure> {
    let stdin = path == Path::new("-");
    let text = if stdin {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|e| {
        Failure::usage(
            format!("the wording can't be read: {}: {e}", path.display()),
            "name a readable UTF-8 file, or - for standard input",
        )
    })?;
    let is_json = path.extension().is_some_and(|e| e == "json")
        || (stdin && text.trim_start().starts_with('{'));
    let parsed = if is_json {
        serde_json::from_str(&text).map_err(|e| e.to_string())
    } else {
        toml::from_str(&text).map_err(|e| e.to_string())
    };
    parsed.map_err(|error| {
        let form = if is_json { "JSON" } else { "TOML" };
        Failure::usage(
            format!("{}: {error}", path.display()),
            format!("the file is read as {form}; see: tidegate tenant wording show"),
        )
    })
}

fn path(tenant: &str) -> String {
    format!("/tenants/{}/wording", segment(tenant))
}

/// The words as a file that `set` takes.
fn as_toml(wording: &Value) -> Result<String, Failure> {
    let unexpected = |e: String| Failure::failed(e, "use the same version of tidegate for both");
    let wording: Wording =
        serde_json::from_value(wording.clone()).map_err(|e| unexpected(e.to_string()))?;
    toml::to_string_pretty(&wording).map_err(|e| unexpected(e.to_string()))
}

impl WordingCommand {
    pub fn run(self, client: &Client) -> Outcome {
        match self {
            WordingCommand::Set { tenant, file } => {
                let answer: Value = client.put(&path(&tenant), &read(&file)?)?;
                client.show(&answer, |a| {
                    let language = clean(&cell(&a["wording"]["language"]));
                    out(&format!(
                        "the notices of {tenant} read as in {} ({language}) from now on\n",
                        file.display()
                    ));
                });
            }
            WordingCommand::Show { tenant } => {
                let answer: Value = client.get(&path(&tenant), &[])?;
                if client.json {
                    super::out_json(&answer);
                } else {
                    let whose = match &answer["own"] {
                        Value::Bool(true) => format!("the words of {tenant}"),
                        _ => format!("the gateway's own words: {tenant} has none"),
                    };
                    out(&format!("# {whose}\n{}", as_toml(&answer["wording"])?));
                }
            }
            WordingCommand::Reset { tenant } => {
                let answer: Value = client.delete(&path(&tenant))?;
                client.show(&answer, |_| {
                    out(&format!(
                        "the notices of {tenant} read as the gateway's own from now on\n"
                    ));
                });
            }
            WordingCommand::Preview { tenant, file, kind } => {
                let body = match file {
                    Some(file) => json!({"wording": read(&file)?}),
                    None => json!({}),
                };
                let mut answer: Value =
                    client.post(&format!("{}/preview", path(&tenant)), &body)?;
                if let (Some(kind), Some(list)) = (kind, answer.as_array_mut()) {
                    list.retain(|p| p["kind"] == kind.as_str());
                }
                client.show(&answer, |a| {
                    for preview in a.as_array().into_iter().flatten() {
                        out(&format!(
                            "--- {}\nSubject: {}\n\n",
                            cell(&preview["kind"]),
                            clean(&cell(&preview["subject"]))
                        ));
                        for line in cell(&preview["text"]).lines() {
                            out(&format!("{}\n", clean(line)));
                        }
                        out("\n");
                    }
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_set_again() {
        let shown = serde_json::to_value(Wording::default()).unwrap();
        let text = as_toml(&shown).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w.toml");
        std::fs::write(&file, text).unwrap();
        let mut back = read(&file).unwrap();
        // TOML has no null.
        back["contact"] = Value::Null;
        assert_eq!(back, shown);
    }

    #[test]
    fn mistakes_in_a_file_are_placed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text, said) in [
            ("w.toml", "language = \"de\"\ncontact = \n", "line 2"),
            ("w.json", "{\"language\": }", "line 1"),
        ] {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(name), "{error}");
        }
        assert!(read(&dir.path().join("none.toml")).is_err());
    }
}
