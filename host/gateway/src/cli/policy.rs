//! `tidegate policy`: the life of a revision, from its upload to its roll-back.

use std::path::PathBuf;

use base64::Engine as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidegate_policy::compare::Report;

use super::client::{Client, segment};
use super::log::instant;
use super::table::{self, Table, cell, short, time_of};
use super::{Failure, Outcome, out, policy_report};

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Begin a policy: a project that builds, tests and uploads as it stands.
    New(super::policy_new::NewArgs),
    /// Make a policy of a script; no compiler is needed.
    Build(super::policy_build::BuildArgs),
    /// Try a policy on this machine: same engine, limits and checks, no gateway.
    Test(super::policy_test::TestArgs),
    /// Upload a component; with --slot it is in force there for the next message.
    #[command(
        after_help = "Examples:\n  tidegate policy upload routing.wasm --config routing.json --slot routing/acme --note \"own server for staff mail\"\n  tidegate policy upload routing.wasm --config routing.json --slot routing/acme --canary 5%\n  tidegate policy upload routing.wasm --slot routing/acme --inactive\n  tidegate policy upload shaper.wasm\n\nAfter `policy upload`, --config is the policy's configuration; the gateway's stands before: tidegate --config FILE policy upload ..."
    )]
    Upload {
        /// The component, or a plain core module.
        file: PathBuf,
        /// The policy's own configuration, given to its `init` as it is; --config for short.
        #[arg(
            long = "policy-config",
            visible_alias = "config-file",
            value_name = "FILE"
        )]
        policy_config: Option<PathBuf>,
        /// What it is for: routing, routing/TENANT, shaping or export/NAME.
        #[arg(long)]
        slot: Option<String>,
        #[command(flatten)]
        how: How,
        /// Why, for the history.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Put an uploaded revision in force for every message, lane or batch.
    #[command(after_help = "Example:\n  tidegate policy activate 3f9ac1d2e4b5 --slot routing/acme")]
    Activate {
        /// Its digest, or a unique beginning of it.
        digest: String,
        #[arg(long)]
        slot: String,
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Let a revision decide a share of the messages (routing) or of the lanes (shaping); or change the share.
    #[command(
        after_help = "Examples:\n  tidegate policy canary 3f9ac1d2e4b5 --slot routing/acme --share 5%\n  tidegate policy canary --slot routing/acme --share 50%\n  tidegate policy canary 77c1a0b2d3e4 --slot shaping --share 10%\n\nWhich messages follows from a hash of their queue id, which lanes from a hash of tenant, class, relay, site and sub-queue: a larger share contains the smaller. Of an export policy the receiver would get two formats: try it as a shadow."
    )]
    Canary {
        /// Its digest; left out: the one on trial.
        digest: Option<String>,
        #[arg(long)]
        slot: String,
        /// Percent of the messages or lanes, 0.1 to 100.
        #[arg(long, value_parser = percent, value_name = "PERCENT")]
        share: f64,
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Let a revision decide beside the one in force, without any effect, and compare.
    #[command(
        after_help = "Examples:\n  tidegate policy shadow 3f9ac1d2e4b5 --slot routing/acme\n  tidegate policy shadow 77c1a0b2d3e4 --slot shaping\n  tidegate policy shadow 5d20f1e2a3b4 --slot export/crm\n\n`policy status` shows what it would do otherwise: with messages (routing), lanes (shaping), or batches of events (export)."
    )]
    Shadow {
        digest: String,
        #[arg(long)]
        slot: String,
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Put what is on trial in force for every message, lane or batch.
    #[command(after_help = "Example:\n  tidegate policy promote --slot routing/acme")]
    Promote {
        #[arg(long)]
        slot: String,
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Ask a revision about recorded messages and tell what it would change.
    #[command(
        after_help = "Example:\n  tidegate policy rehearse 3f9ac1d2e4b5 --slot routing/acme --since 7d"
    )]
    Rehearse {
        digest: String,
        #[arg(long)]
        slot: String,
        /// Messages since then: a time such as 2026-11-24T08:00:00Z, or how long ago, such as 2d.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },
    /// What routing policies were asked and answered.
    #[command(subcommand)]
    Inputs(InputsCommand),
    /// Show what the slots run, what is on trial, and how both do.
    #[command(after_help = "Example:\n  tidegate policy status --slot routing/acme")]
    Status {
        #[arg(long)]
        slot: Option<String>,
    },
    /// List the revisions, and where they are active.
    #[command(after_help = "Example:\n  tidegate policy list")]
    List,
    /// Show a revision with its configuration.
    #[command(after_help = "Example:\n  tidegate policy show 3f9ac1d2e4b5")]
    Show { digest: String },
    /// List what was changed when, by whom and why, newest first; or each change as it happens.
    History(super::policy_history::HistoryArgs),
    /// One step back: withdraw what is on trial, else go back to what was active before.
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

/// What becomes of an upload in its slot.
#[derive(Args)]
#[group(multiple = false)]
pub struct How {
    /// Keep it there, and put it in force later.
    #[arg(long, requires = "slot")]
    inactive: bool,
    /// Let it decide this share of the messages, or of the lanes.
    #[arg(long, requires = "slot", value_parser = percent, value_name = "PERCENT")]
    canary: Option<f64>,
    /// Let it decide beside the one in force, without any effect.
    #[arg(long, requires = "slot")]
    shadow: bool,
}

#[derive(Subcommand)]
pub enum InputsCommand {
    /// Print them as lines of JSON, for `tidegate policy test` on an author's machine.
    #[command(
        after_help = "Examples:\n  tidegate policy inputs export --tenant acme --since 7d > inputs.jsonl\n  tidegate policy inputs export --tenant acme --hash-addresses > inputs.jsonl"
    )]
    Export {
        /// Left out: of all tenants, or of the token's own.
        #[arg(long)]
        tenant: Option<String>,
        /// A time such as 2026-11-24T08:00:00Z, or how long ago, such as 2d.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Replace local parts and users by hashes.
        #[arg(long)]
        hash_addresses: bool,
    },
}

/// `5%` or `5`.
fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if (0.1..=100.0).contains(&percent) => Ok(percent),
        _ => Err("give a share from 0.1% to 100%".to_owned()),
    }
}

/// Milliseconds since 1970, as the API takes it.
pub(super) fn since(text: Option<&str>) -> Result<Option<i64>, Failure> {
    use tidegate_queue::Clock;
    let now = tidegate_net::clock::OsClock.now();
    text.map(|t| instant(t, now).map(|at| at.as_millis()))
        .transpose()
}

fn revisions(list: &Value) -> Table {
    let mut table = Table::new(&[
        "DIGEST",
        "WORLD",
        "NAME",
        "VERSION",
        "UPLOADED",
        "ACTIVE IN",
        "ON TRIAL IN",
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
            cell(&r["on_trial_in"]),
            cell(&r["note"]),
        ]);
    }
    table
}

/// `canary 5 %`, `activated`.
pub(super) fn step(a: &Value) -> String {
    match a["purpose"].as_str() {
        Some("promotion") => return "promoted".to_owned(),
        Some("roll-back") => return "rolled back".to_owned(),
        _ => {}
    }
    match a["step"].as_str() {
        Some("canary") => {
            let permille = a["permille"].as_f64().unwrap_or_default();
            format!("canary {} %", permille / 10.0)
        }
        Some("activate") => "activated".to_owned(),
        Some("withdraw") => "withdrawn".to_owned(),
        Some("vacate") => "vacated".to_owned(),
        other => other.unwrap_or_default().to_owned(),
    }
}

pub(super) fn activations(list: &Value) -> Table {
    let mut table = Table::new(&["AT", "SLOT", "STEP", "DIGEST", "BY", "CAUSE", "NOTE"]);
    for a in list.as_array().into_iter().flatten() {
        table.row([
            time_of(&a["at"]),
            cell(&a["slot"]),
            step(a),
            short(&cell(&a["digest"])).to_owned(),
            cell(&a["by"]),
            cell(&a["cause"]),
            cell(&a["note"]),
        ]);
    }
    table
}

/// A share of two counts, in percent.
fn share(part: &Value, of: &Value) -> String {
    match (part.as_u64(), of.as_u64()) {
        (Some(part), Some(of)) if of > 0 => format!("{:.1}%", 100.0 * part as f64 / of as f64),
        _ => "-".to_owned(),
    }
}

fn statuses(list: &Value) -> Table {
    let mut table = Table::new(&[
        "SLOT", "STATE", "DIGEST", "SINCE", "CALLS", "FAILED", "REFUSED", "DEFERRED", "BOUNCED",
    ]);
    for slot in list.as_array().into_iter().flatten() {
        let running = &slot["running"];
        for (activation, rates) in [
            (&slot["in_force"], &running["rates"]),
            (&slot["trial"], &running["trial"]["own"]),
        ] {
            if activation.is_null() {
                continue;
            }
            table.row([
                cell(&slot["slot"]),
                match activation["step"].as_str() {
                    Some("activate") => "in force".to_owned(),
                    _ => step(activation),
                },
                short(&cell(&activation["digest"])).to_owned(),
                time_of(&activation["at"]),
                cell(&rates["calls"]),
                cell(&rates["failures"]),
                share(&rates["refused"], &rates["recipients"]),
                share(&rates["deferred"], &rates["attempted"]),
                share(&rates["bounced"], &rates["attempted"]),
            ]);
        }
    }
    table
}

/// Asks part after part, and tells on standard error how far it is.
fn rehearse(client: &Client, body: &mut Value) -> Result<Value, Failure> {
    let mut whole = Report::default();
    loop {
        let mut answer: Value = client.post("/slots/rehearse", body)?;
        let part: Report = serde_json::from_value(answer["report"].take()).map_err(|e| {
            Failure::failed(
                format!("the gateway's answer is not what this version expects: {e}"),
                "use the same version of tidegate for gateway and command line",
            )
        })?;
        whole.add(part);
        let next = answer["next"].take();
        if next.is_null() {
            answer["report"] = json!(whole);
            return Ok(answer);
        }
        eprintln!("{} messages asked", whole.messages);
        body["after"] = next;
    }
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
                how,
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
                    body["inactive"] = how.inactive.into();
                    body["shadow"] = how.shadow.into();
                    body["canary"] = how.canary.into();
                }
                let answer: Value = client.post("/policies", &body)?;
                client.show(&answer, |a| revisions(&json!([a])).print(""));
            }
            PolicyCommand::Activate { digest, slot, note } => {
                let body = json!({"digest": digest, "slot": slot, "note": note});
                let answer: Value = client.post("/slots/activate", &body)?;
                client.show(&answer, |a| activations(&json!([a])).print(""));
            }
            PolicyCommand::Canary {
                digest,
                slot,
                share,
                note,
            } => {
                let body = json!({"digest": digest, "slot": slot, "percent": share, "note": note});
                let answer: Value = client.post("/slots/canary", &body)?;
                client.show(&answer, |a| activations(&json!([a])).print(""));
            }
            PolicyCommand::Shadow { digest, slot, note } => {
                let body = json!({"digest": digest, "slot": slot, "note": note});
                let answer: Value = client.post("/slots/shadow", &body)?;
                client.show(&answer, |a| activations(&json!([a])).print(""));
            }
            PolicyCommand::Promote { slot, note } => {
                let answer: Value =
                    client.post("/slots/promote", &json!({"slot": slot, "note": note}))?;
                client.show(&answer, |a| activations(&json!([a])).print(""));
            }
            PolicyCommand::Rehearse {
                digest,
                slot,
                since: from,
            } => {
                let since = since(from.as_deref())?;
                let mut body = json!({"digest": digest, "slot": slot, "since": since});
                let answer = rehearse(client, &mut body)?;
                client.show(&answer, |a| {
                    if let Ok(report) = serde_json::from_value(a["report"].clone()) {
                        out(&policy_report::messages(&report));
                    }
                });
            }
            PolicyCommand::Inputs(InputsCommand::Export {
                tenant,
                since: from,
                hash_addresses,
            }) => {
                let since = since(from.as_deref())?;
                let mut after = json!(0);
                while !after.is_null() {
                    let mut query = vec![
                        ("after", after.to_string()),
                        ("hash", hash_addresses.to_string()),
                    ];
                    query.extend(tenant.clone().map(|t| ("tenant", t)));
                    query.extend(since.map(|s| ("since", s.to_string())));
                    let mut page: Value = client.get("/policies/inputs", &query)?;
                    for record in page["records"].as_array().into_iter().flatten() {
                        out(&format!("{record}\n"));
                    }
                    after = page["next"].take();
                }
            }
            PolicyCommand::Status { slot } => {
                let empty = match &slot {
                    Some(slot) if slot.starts_with("routing/") => format!(
                        "nothing is in force in {slot}: the operator's routing policy decides; put one in force with: tidegate policy upload or activate"
                    ),
                    _ => "nothing is in force; upload a policy with: tidegate policy upload"
                        .to_owned(),
                };
                let query: Vec<_> = slot.map(|s| ("slot", s)).into_iter().collect();
                let list: Value = client.get("/slots/status", &query)?;
                client.show(&list, |list| {
                    statuses(list).print(&empty);
                    for slot in list.as_array().into_iter().flatten() {
                        if let Some(found) = policy_report::shadow(&slot["running"]["trial"]) {
                            out(&format!("\nThe shadow of {}:\n", cell(&slot["slot"])));
                            out(&found);
                        }
                    }
                });
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
            PolicyCommand::History(args) => args.run(client)?,
            PolicyCommand::Rollback { slot, note } => {
                let answer: Value =
                    client.post("/slots/rollback", &json!({"slot": slot, "note": note}))?;
                client.show(&answer, |a| {
                    activations(&json!([a])).print("");
                    out(match a["step"].as_str() {
                        Some("withdraw") => "\nThe trial is over; what is in force stays.\n",
                        Some("vacate") => "\nNothing is in force there now: the operator's routing policy decides.\n",
                        _ => "\nIt is in force for the next message.\n",
                    });
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
    fn a_share_is_a_percentage() {
        assert_eq!(percent("5%"), Ok(5.0));
        assert_eq!(percent("0.5"), Ok(0.5));
        for bad in ["0", "101%", "half", ""] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
