//! `tidegate export`.

use clap::Subcommand;
use serde_json::Value;

use super::client::Client;
use super::table::{Table, cell, duration, time_of};
use super::{Outcome, out};

#[derive(Subcommand)]
pub enum ExportCommand {
    /// List the exporters: where each hands over to, how far it is, and what keeps it from going on.
    #[command(after_help = "Example:\n  tidegate export list")]
    List,
}

/// How an exporter does, in a word.
fn state(e: &Value) -> &'static str {
    if e["inactive"] == true {
        "no policy"
    } else if e["failing_since"].is_null() {
        "ok"
    } else {
        "failing"
    }
}

fn exporters(list: &Value) -> Table {
    let mut table = Table::new(&[
        "EXPORTER",
        "TO",
        "STATE",
        "BEHIND",
        "EVENTS",
        "FAILURES",
        "LEFT OUT",
        "LAST SUCCESS",
    ]);
    for e in list.as_array().into_iter().flatten() {
        table.row([
            cell(&e["name"]),
            cell(&e["to"]),
            state(e).to_owned(),
            match e["lag_seconds"].as_u64() {
                None | Some(0) => "-".to_owned(),
                Some(seconds) => duration(seconds),
            },
            cell(&e["events"]),
            cell(&e["failures"]),
            cell(&e["left_out"]),
            time_of(&e["last_success"]),
        ]);
    }
    table
}

impl ExportCommand {
    pub fn run(self, client: &Client) -> Outcome {
        match self {
            ExportCommand::List => {
                let list: Value = client.get("/exports", &[])?;
                client.show(&list, |list| {
                    exporters(list).print("no exporters; add one to the configuration: [export.NAME]");
                    for e in list.as_array().into_iter().flatten() {
                        if let Some(reason) = e["reason"].as_str() {
                            out(&format!(
                                "\n{}: failing since {}: {}\n",
                                cell(&e["name"]),
                                time_of(&e["failing_since"]),
                                super::table::clean(reason)
                            ));
                        }
                        if let Some(seq) = e["last_left_out"].as_u64() {
                            out(&format!(
                                "\n{}: the last event left out is number {seq}; the gateway's log has the reason\n",
                                cell(&e["name"])
                            ));
                        }
                    }
                });
            }
        }
        Ok(())
    }
}
