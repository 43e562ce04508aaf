//! `tidegate queue`.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use tidegate_queue::Clock;

use super::client::{Client, segment};
use super::table::{Table, cell, short, time_of};
use super::{Failure, Outcome, out};
use crate::config::Span;

/// Which recipients: all that is given must match.
#[derive(Args)]
pub struct Selection {
    /// A queue id.
    message: Option<String>,
    #[arg(long)]
    tenant: Option<String>,
    /// Domain of the recipients.
    #[arg(long)]
    domain: Option<String>,
    /// Receiving site, as `queue lanes` shows it.
    #[arg(long)]
    site: Option<String>,
    #[arg(long)]
    relay: Option<String>,
}

impl Selection {
    fn pairs(self) -> Vec<(&'static str, String)> {
        [
            ("message", self.message),
            ("tenant", self.tenant),
            ("domain", self.domain),
            ("site", self.site),
            ("relay", self.relay),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.map(|v| (name, v)))
        .collect()
    }

    fn body(self, all: bool, why: Option<String>) -> Value {
        let mut body = Map::new();
        for (name, value) in self.pairs() {
            body.insert(name.to_owned(), value.into());
        }
        if all {
            body.insert("all".to_owned(), true.into());
        }
        if let Some(why) = why {
            body.insert("why".to_owned(), why.into());
        }
        body.into()
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Class {
    Transactional,
    Bulk,
}

#[derive(Subcommand)]
pub enum QueueCommand {
    /// List waiting recipients, those that move next first, and why they wait.
    #[command(
        after_help = "Examples:\n  tidegate queue list\n  tidegate queue list --tenant acme --domain customer.example --limit 1000"
    )]
    List {
        #[command(flatten)]
        selection: Selection,
        /// At most this many, up to 10000.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// List lanes with mail in them and the limits in force.
    #[command(after_help = "Example:\n  tidegate queue lanes")]
    Lanes,
    /// Show the waiting recipients of one message.
    #[command(after_help = "Example:\n  tidegate queue show 01jd3k5x0e0g0")]
    Show { message: String },
    /// Make recipients due now.
    #[command(
        after_help = "Examples:\n  tidegate queue retry 01jd3k5x0e0g0\n  tidegate queue retry --domain customer.example"
    )]
    Retry {
        #[command(flatten)]
        selection: Selection,
        /// The whole queue.
        #[arg(long)]
        all: bool,
    },
    /// Take recipients out of the queue, without a notice to the sender.
    #[command(
        after_help = "Example:\n  tidegate queue cancel 01jd3k5x0e0g0 --why \"sent twice by mistake\""
    )]
    Cancel {
        #[command(flatten)]
        selection: Selection,
        /// The whole queue.
        #[arg(long)]
        all: bool,
        /// For the log.
        #[arg(long)]
        why: String,
    },
    /// Hold part of the mail: it waits until released; its lifetime runs on.
    #[command(
        after_help = "Examples:\n  tidegate queue hold --site mx.customer.example --why \"they asked us to wait\" --for 2h\n  tidegate queue hold --tenant acme --class bulk --why \"complaints\""
    )]
    Hold {
        #[arg(long)]
        tenant: Option<String>,
        #[arg(long, value_enum)]
        class: Option<Class>,
        #[arg(long)]
        relay: Option<String>,
        #[arg(long)]
        site: Option<String>,
        #[arg(long)]
        domain: Option<String>,
        /// All mail.
        #[arg(long)]
        all: bool,
        /// For those who look at it later.
        #[arg(long)]
        why: String,
        /// How long; until released where it is left out.
        #[arg(long = "for", value_name = "DURATION")]
        time: Option<Span>,
    },
    /// Lift a measure: a hold, or what the shaping policy or the gateway did by itself. One of
    /// the policy is not repeated for what was left of it, and for at least an hour.
    #[command(
        after_help = "Examples:\n  tidegate queue release h-01jd3k5x0e0g0\n  tidegate queue release p-4be2c1a09d3f7710 --why \"they took us off the list\" --for 6h"
    )]
    Release {
        id: String,
        /// For those who look at it later.
        #[arg(long, default_value = "")]
        why: String,
        /// Of the shaping policy's measure: how long it is not repeated.
        #[arg(long = "for", value_name = "DURATION")]
        time: Option<Span>,
    },
    /// List what is held, suspended or slowed, by whom and why.
    #[command(
        after_help = "Examples:\n  tidegate queue measures\n  tidegate queue measures --lifted"
    )]
    Measures {
        /// What was lifted lately instead, by whom and why.
        #[arg(long)]
        lifted: bool,
    },
}

fn entries(list: &Value) -> Table {
    let now = tidegate_net::clock::OsClock.now().as_millis();
    let mut table = Table::new(&[
        "RECIPIENT",
        "ID",
        "TENANT",
        "CLASS",
        "TRIES",
        "WAITS FOR",
        "MOVES",
        "EXPIRES",
        "LAST",
    ]);
    for e in list.as_array().into_iter().flatten() {
        let address = match &e["address"] {
            Value::Null => format!("@{}", cell(&e["domain"])),
            address => cell(address),
        };
        let mut reason = match &e["reason"] {
            Value::Null => "under way".to_owned(),
            reason => cell(reason),
        };
        if e["expires_at"].as_i64().is_some_and(|at| at < now) {
            reason.push_str(" (overdue)");
        }
        table.row([
            address,
            cell(&e["id"]["message"]),
            cell(&e["tenant"]),
            cell(&e["class"]),
            cell(&e["attempts"]),
            reason,
            moves(e),
            time_of(&e["expires_at"]),
            cell(&e["last"]),
        ]);
    }
    table
}

/// When a recipient moves next, or what has to happen first.
fn moves(entry: &Value) -> String {
    match (&entry["next"], entry["reason"].as_str()) {
        (Value::Null, None) => String::new(),
        (Value::Null, Some("held" | "suspended")) => "when released".to_owned(),
        (Value::Null, Some("relay-down")) => "when it is back".to_owned(),
        (Value::Null, Some("dns")) => "when answered".to_owned(),
        (Value::Null, Some(_)) => "when there is room".to_owned(),
        (next, _) => time_of(next),
    }
}

fn lanes(list: &Value) -> Table {
    let mut table = Table::new(&[
        "SITE",
        "TENANT",
        "CLASS",
        "RELAY",
        "LANE",
        "BACKLOG",
        "NOW",
        "RATE",
        "CONNECTIONS",
        "BACK-OFF UNTIL",
        "POLICY",
    ]);
    for l in list.as_array().into_iter().flatten() {
        table.row([
            cell(&l["key"]["site"]),
            cell(&l["key"]["tenant"]),
            cell(&l["key"]["class"]),
            cell(&l["key"]["relay"]),
            cell(&l["key"]["lane"]),
            cell(&l["backlog"]),
            cell(&l["in_flight"]),
            rate(&l["limits"]),
            cell(&l["limits"]["connections"]),
            time_of(&l["backoff_until"]),
            short(&cell(&l["policy"])).to_owned(),
        ]);
    }
    table
}

/// A pace in a few words.
fn rate(limits: &Value) -> String {
    match (&limits["rate"]["messages"], &limits["rate"]["per_ms"]) {
        (Value::Number(messages), Value::Number(per)) => format!("{messages} in {per} ms"),
        _ => "none".to_owned(),
    }
}

fn measures(list: &Value) -> Table {
    let mut table = Table::new(&[
        "ID", "EFFECT", "BY", "SCOPE", "SINCE", "UNTIL", "CAUSE", "LIFTED",
    ]);
    for m in list.as_array().into_iter().flatten() {
        let scope: Vec<String> = m["scope"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| format!("{k} {}", cell(v)))
            .collect();
        let until = match &m["until"] {
            Value::Null => "released".to_owned(),
            until => time_of(until),
        };
        let mut effect = cell(&m["effect"]);
        if effect == "slow" {
            let limits = &m["plan"]["limits"];
            effect = format!(
                "slow: rate {}, connections {}",
                rate(limits),
                cell(&limits["connections"])
            );
        }
        table.row([
            cell(&m["id"]),
            effect,
            cell(&m["by"]),
            if scope.is_empty() {
                "all mail".to_owned()
            } else {
                scope.join(", ")
            },
            time_of(&m["since"]),
            until,
            cell(&m["cause"]),
            lifted(&m["lifted"]),
        ]);
    }
    table
}

/// Who lifted a measure, when and why, and how long its policy may not repeat it.
fn lifted(lifted: &Value) -> String {
    if lifted.is_null() {
        return String::new();
    }
    let mut text = format!("{} by {}", time_of(&lifted["at"]), cell(&lifted["by"]));
    if let Some(why) = lifted["why"].as_str() {
        text.push_str(": ");
        text.push_str(why);
    }
    if !lifted["until"].is_null() {
        text.push_str("; not repeated before ");
        text.push_str(&time_of(&lifted["until"]));
    }
    text
}

/// A time from now; one of nothing is a mistake.
fn ahead(time: Span, nothing: &str) -> Result<i64, Failure> {
    if time.get().is_zero() {
        return Err(Failure::usage(
            format!("--for 0s {nothing}"),
            "give a longer time",
        ));
    }
    let until = tidegate_net::clock::OsClock.now().plus(time.get());
    Ok(until.as_millis())
}

fn affected(client: &Client, answer: &Value, done: &str) {
    client.show(answer, |a| {
        let n = a["recipients"].as_u64().unwrap_or_default();
        let noun = if n == 1 { "recipient" } else { "recipients" };
        out(&format!("{n} {noun} {done}\n"));
    });
}

impl QueueCommand {
    pub fn run(self, client: &Client) -> Outcome {
        match self {
            QueueCommand::List { selection, limit } => {
                let mut query = selection.pairs();
                query.push(("limit", limit.to_string()));
                let list: Value = client.get("/queue", &query)?;
                client.show(&list, |list| entries(list).print("nothing is waiting"));
            }
            QueueCommand::Show { message } => {
                let query = [("message", message), ("limit", "10000".to_owned())];
                let list: Value = client.get("/queue", &query)?;
                client.show(&list, |list| {
                    entries(list).print("nothing of it is waiting; see: tidegate log show");
                });
            }
            QueueCommand::Lanes => {
                let list: Value = client.get("/queue/lanes", &[])?;
                client.show(&list, |list| lanes(list).print("no lane has mail in it"));
            }
            QueueCommand::Retry { selection, all } => {
                let answer = client.post("/queue/retry", &selection.body(all, None))?;
                affected(client, &answer, "due now");
            }
            QueueCommand::Cancel {
                selection,
                all,
                why,
            } => {
                let answer: Value =
                    client.post("/queue/cancel", &selection.body(all, Some(why)))?;
                affected(client, &answer, "taken out of the queue");
                if !client.json && answer["recipients"] == 0 {
                    out(
                        "one whose attempt is under way can't be taken out; see: tidegate queue list\n",
                    );
                }
            }
            QueueCommand::Hold {
                tenant,
                class,
                relay,
                site,
                domain,
                all,
                why,
                time,
            } => {
                let class = class.map(|c| match c {
                    Class::Transactional => "transactional",
                    Class::Bulk => "bulk",
                });
                let mut body = json!({
                    "scope": {
                        "tenant": tenant, "class": class, "relay": relay, "site": site,
                        "domain": domain,
                    },
                    "all": all,
                    "cause": why,
                });
                if let Some(time) = time {
                    body["until"] = ahead(time, "holds nothing")?.into();
                }
                let answer: Value = client.post("/measures", &body)?;
                client.show(&answer, |a| measures(&json!([a])).print(""));
            }
            QueueCommand::Release { id, why, time } => {
                let mut body = json!({"why": why});
                if let Some(time) = time {
                    body["until"] = ahead(time, "keeps nothing from being repeated")?.into();
                }
                let path = format!("/measures/{}/lift", segment(&id));
                let answer: Value = client.post(&path, &body)?;
                client.show(&answer, |a| {
                    out(&format!("{id} lifted {}\n", lifted(&a["lifted"])));
                });
            }
            QueueCommand::Measures { lifted } => {
                let query = lifted.then(|| ("lifted", "true".to_owned()));
                let list: Value = client.get("/measures", query.as_slice())?;
                client.show(&list, |list| {
                    measures(list).print(match lifted {
                        true => "nothing was lifted lately",
                        false => "nothing is held, suspended or slowed",
                    });
                });
            }
        }
        Ok(())
    }
}
