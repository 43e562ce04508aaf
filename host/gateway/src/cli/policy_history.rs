//! `tidegate policy history`: every change of what the slots run, looked up or followed.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::policy::{activations, since, step};
use super::table::{cell, clean, short, time_of};
use super::{Failure, Outcome};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tidegate policy history --slot routing/acme --since 30d\n  tidegate policy history --follow --json\n\nWith --follow and --json each change is one line of JSON, written when it happens. A collector that begins\nanew goes on where it was with --after and the `seq` of the last line that it has."
)]
pub struct HistoryArgs {
    #[arg(long)]
    slot: Option<String>,
    /// Changes since then: a time such as 2026-11-24T08:00:00Z, or how long ago, such as 2d.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Changes after the one of this number.
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// Go on with each change as it happens; begins with the last ten, or those since and after.
    #[arg(long)]
    follow: bool,
}

/// How often a gateway is asked for what is new.
const EVERY: Duration = Duration::from_millis(500);
/// The same where it does not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// What is shown of the time before, where nothing else is asked for.
const LAST: u32 = 10;

type Query = Vec<(&'static str, String)>;

impl HistoryArgs {
    pub fn run(self, client: &Client) -> Outcome {
        let mut query: Query = self.slot.map(|s| ("slot", s)).into_iter().collect();
        if let Some(since) = since(self.since.as_deref())? {
            query.push(("since", since.to_string()));
        }
        if self.follow {
            let begin = self.after.or(self.since.map(|_| 0));
            return follow(&client.for_stream(), client.json, query, begin);
        }
        query.extend(self.after.map(|seq| ("after", seq.to_string())));
        let mut list = pages(client, &query, self.after)?;
        list.sort_by_key(|a| std::cmp::Reverse(seq(a)));
        client.show(&json!(list), |list| {
            activations(list).print("nothing was changed there");
        });
        Ok(())
    }
}

fn seq(change: &Value) -> u64 {
    change["seq"].as_u64().unwrap_or(0)
}

/// All that match, page by page.
fn pages(client: &Client, query: &Query, after: Option<u64>) -> Result<Vec<Value>, Failure> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let mut query = query.clone();
        if let Some(last) = all.last() {
            query.retain(|(name, _)| *name != "after");
            let on = if after.is_some() { "after" } else { "before" };
            query.push((on, seq(last).to_string()));
        }
        let page: Vec<Value> = client.get("/slots/history", &query)?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// Writes changes as they happen, until nobody reads them. Over a restart of the gateway it
/// goes on where it was.
fn follow(client: &Client, lines_of_json: bool, query: Query, begin: Option<u64>) -> Outcome {
    let ask = |more: (&'static str, String)| {
        let mut query = query.clone();
        query.push(more);
        client.get::<Vec<Value>>("/slots/history", &query)
    };
    let mut cursor = begin.unwrap_or(0);
    if begin.is_none() {
        let last = ask(("limit", LAST.to_string()))?;
        for change in last.iter().rev() {
            if !write(change, lines_of_json) {
                return Ok(());
            }
            cursor = seq(change);
        }
    }
    let mut silent = false;
    loop {
        match ask(("after", cursor.to_string())) {
            Ok(changes) => {
                silent = false;
                for change in &changes {
                    if !write(change, lines_of_json) {
                        return Ok(());
                    }
                    cursor = seq(change);
                }
                std::thread::sleep(EVERY);
            }
            Err(Failure::NotRunning { address, reason }) => {
                if !silent {
                    eprintln!("nothing answers at {address} ({reason}); trying again");
                }
                silent = true;
                std::thread::sleep(AGAIN);
            }
            Err(other) => return Err(other),
        }
    }
}

/// Returns whether there is still somebody who reads.
fn write(change: &Value, as_json: bool) -> bool {
    let line = if as_json {
        change.to_string()
    } else {
        let words = [
            time_of(&change["at"]),
            cell(&change["slot"]),
            step(change),
            short(&cell(&change["digest"])).to_owned(),
            format!("by {}", cell(&change["by"])),
            cell(&change["cause"]),
            cell(&change["note"]),
        ];
        let words: Vec<String> = words
            .iter()
            .filter(|w| !w.is_empty())
            .map(|w| clean(w))
            .collect();
        words.join("  ")
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}
