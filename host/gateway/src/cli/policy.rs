//! `tidegate policy`.

use std::path::PathBuf;

use base64::Engine as _;
use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Client, segment};
use super::table::{self, Table, cell, short, time_of};
use super::{Failure, Outcome, out};

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Begin a policy: a project that builds, tests and uploads as it stands.
    New(super::policy_new::NewArgs),
    /// Make a policy of a script; no compiler is needed.
    Build(super::policy_build::BuildArgs),
    /// Try a policy on this machine: same engine, limits and checks, no gateway.
    Test(super::policy_test::TestArgs),
    /// Upload a component; with --slot it is in force for the next message.
    #[command(
        after_help = "Examples:\n  tidegate policy upload routing.wasm --config routing.json --slot routing/acme --note \"own server for staff mail\"\n  tidegate policy upload shaper.wasm"
    )]
    Upload {
        /// The component, or a plain core module.
        file: PathBuf,
        /// The policy's own configuration, given to its `init` as it is.
        #[arg(
            long = "policy-config",
            visible_alias = "config-file",
            value_name = "FILE"
        )]
        policy_config: Option<PathBuf>,
        /// Activate it there at once: routing, routing/TENANT, shaping or export/NAME.
        #[arg(long)]
        slot: Option<String>,
        /// Why, for the history.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Put an uploaded revision in force.
    #[command(after_help = "Example:\n  tidegate policy activate 3f9ac1d2e4b5 --slot routing/acme")]
    Activate {
        /// Its digest, or a unique beginning of it.
        digest: String,
        #[arg(long)]
        slot: String,
        #[arg(long, default_value = "")]
        note: String,
    },
    /// List the revisions, and where they are active.
    #[command(after_help = "Example:\n  tidegate policy list")]
    List,
    /// Show a revision with its configuration.
    #[command(after_help = "Example:\n  tidegate policy show 3f9ac1d2e4b5")]
    Show { digest: String },
    /// List what was active when, newest first.
    #[command(after_help = "Example:\n  tidegate policy history --slot routing/acme")]
    History {
        #[arg(long)]
        slot: Option<String>,
    },
    /// Go back to the revision that was active before.
    #[command(
        after_help = "Example:\n  tidegate policy rollback --slot routing/acme --note \"too many deferrals\""
    )]
    Rollback {
        #[arg(long)]
        slot: String,
        #[arg(long, default_value = "")]
        note: String,
    },
}

fn revisions(list: &Value) -> Table {
    let mut table = Table::new(&[
        "DIGEST",
        "WORLD",
        "NAME",
        "VERSION",
        "UPLOADED",
        "ACTIVE IN",
        "NOTE",
    ]);
    for r in list.as_array().into_iter().flatten() {
        table.row([
            short(&cell(&r["digest"])).to_owned(),
            cell(&r["world"]),
            cell(&r["name"]),
            cell(&r["version"]),
            time_of(&r["uploaded_at"]),
            cell(&r["active_in"]),
            cell(&r["note"]),
        ]);
    }
    table
}

fn activations(list: &Value) -> Table {
    let mut table = Table::new(&["AT", "SLOT", "DIGEST", "BY", "NOTE"]);
    for a in list.as_array().into_iter().flatten() {
        table.row([
            time_of(&a["at"]),
            cell(&a["slot"]),
            short(&cell(&a["digest"])).to_owned(),
            cell(&a["by"]),
            cell(&a["note"]),
        ]);
    }
    table
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| {
        Failure::usage(
            format!("{} can't be read: {e}", path.display()),
            "check the path",
        )
    })
}

impl PolicyCommand {
    pub fn run(self, client: &Client) -> Outcome {
        match self {
            // These work without a gateway, so they never come here.
            PolicyCommand::New(_) | PolicyCommand::Build(_) | PolicyCommand::Test(_) => {}
            PolicyCommand::Upload {
                file,
                policy_config,
                slot,
                note,
            } => {
                let config = match &policy_config {
                    Some(path) => String::from_utf8(read(path)?).map_err(|_| {
                        Failure::usage(
                            format!("{} is not UTF-8", path.display()),
                            "a policy's configuration is a text",
                        )
                    })?,
                    None => String::new(),
                };
                let component = base64::engine::general_purpose::STANDARD.encode(read(&file)?);
                let mut body = json!({"component": component, "config": config, "note": note});
                if let Some(slot) = slot {
                    body["slot"] = slot.into();
                }
                let answer: Value = client.post("/policies", &body)?;
                client.show(&answer, |a| revisions(&json!([a])).print(""));
            }
            PolicyCommand::Activate { digest, slot, note } => {
                let body = json!({"digest": digest, "slot": slot, "note": note});
                let answer: Value = client.post("/slots/activate", &body)?;
                client.show(&answer, |a| activations(&json!([a])).print(""));
            }
            PolicyCommand::List => {
                let list: Value = client.get("/policies", &[])?;
                client.show(&list, |list| {
                    revisions(list).print("no policies; upload one with: tidegate policy upload");
                });
            }
            PolicyCommand::Show { digest } => {
                let answer: Value = client.get(&format!("/policies/{}", segment(&digest)), &[])?;
                client.show(&answer, |a| {
                    revisions(&json!([a])).print("");
                    out(&format!("\ndigest  {}\n", cell(&a["digest"])));
                    let config = cell(&a["config"]);
                    if config.is_empty() {
                        out("config  none\n");
                    } else {
                        out("config\n");
                        for line in config.lines() {
                            out(&format!("  {}\n", table::clean(line)));
                        }
                    }
                });
            }
            PolicyCommand::History { slot } => {
                let query: Vec<_> = slot.map(|s| ("slot", s)).into_iter().collect();
                let list: Value = client.get("/slots/history", &query)?;
                client.show(&list, |list| {
                    activations(list).print("nothing was ever active there")
                });
            }
            PolicyCommand::Rollback { slot, note } => {
                let answer: Value =
                    client.post("/slots/rollback", &json!({"slot": slot, "note": note}))?;
                client.show(&answer, |a| activations(&json!([a])).print(""));
            }
        }
        Ok(())
    }
}
