//! `tidegate log`: what was promised for a mail, and what happened.

use clap::{Args, Subcommand};
use serde_json::Value;
use tidegate_mail::Timestamp;
use tidegate_queue::{Clock, LogEntry};

use super::client::{Client, segment};
use super::table::{cell, clean};
use super::timeline::{Names, timeline};
use super::{Failure, Outcome, out, out_json};
use crate::config::Span;

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tidegate log 01jd3k5x0e0g0\n  tidegate log --recipient jane@customer.example --since 2d\n  tidegate log --record 4711 --json\n  tidegate log --subject \"invoice 4711\" --since 7d"
)]
pub struct LogArgs {
    #[command(subcommand)]
    command: Option<LogCommand>,
    /// A queue id, as in the reply to the submission.
    id: Option<String>,
    #[command(flatten)]
    query: Query,
}

#[derive(Subcommand)]
enum LogCommand {
    /// Find mails.
    #[command(
        after_help = "Examples:\n  tidegate log search --sender billing@acme.example --since 7d\n  tidegate log search --message-id \"<abc@crm.example>\""
    )]
    Search(Query),
    /// Show one mail.
    #[command(after_help = "Example:\n  tidegate log show 01jd3k5x0e0g0")]
    Show {
        /// Its queue id.
        id: String,
    },
}

/// Policies whose names are asked for in one listing.
const MAX_NAMES: usize = 20;

/// What to look for; all that is given must match.
#[derive(Args, Default)]
struct Query {
    /// An address that it went to.
    #[arg(long, value_name = "ADDRESS")]
    recipient: Option<String>,
    /// The reverse-path it was submitted with.
    #[arg(long, value_name = "ADDRESS")]
    sender: Option<String>,
    /// Its Message-ID field.
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// The CRM's record id.
    #[arg(long, value_name = "ID")]
    record: Option<String>,
    /// Words of its subject, each whole, in any order.
    #[arg(long, value_name = "WORDS")]
    subject: Option<String>,
    #[arg(long)]
    tenant: Option<String>,
    /// Accepted since then: a time such as 2026-11-24T08:00:00Z, or how long ago, such as 2d.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Accepted until then, in the same forms.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most this many mails, the newest first, up to 1000.
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

/// An instant, or a time before `now`.
pub fn instant(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(ago) = text.parse::<Span>() {
        return Ok(now.minus(ago.get()));
    }
    text.parse::<jiff::Timestamp>()
        .map(|t| Timestamp::from_millis(t.as_millisecond()))
        .map_err(|_| {
            Failure::usage(
                format!("{text:?} is not a time"),
                "write it like 2026-11-24T08:00:00Z, or how long ago, like 2d or 90m",
            )
        })
}

impl Query {
    fn pairs(self) -> Result<Vec<(&'static str, String)>, Failure> {
        let now = tidegate_net::clock::OsClock.now();
        let mut pairs: Vec<(&'static str, String)> = [
            ("recipient", self.recipient),
            ("sender", self.sender),
            ("message_id", self.message_id),
            ("record", self.record),
            ("subject", self.subject),
            ("tenant", self.tenant),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.map(|v| (name, v)))
        .collect();
        for (name, value) in [("since", self.since), ("until", self.until)] {
            if let Some(text) = value {
                pairs.push((name, instant(&text, now)?.as_millis().to_string()));
            }
        }
        pairs.push(("limit", self.limit.to_string()));
        Ok(pairs)
    }
}

impl LogArgs {
    pub fn run(self, client: &Client) -> Outcome {
        let (id, query) = match (self.command, self.id) {
            (Some(LogCommand::Show { id }), _) => (Some(id), Query::default()),
            (Some(LogCommand::Search(query)), _) => (None, query),
            (None, id) => (id, self.query),
        };
        if let Some(id) = id {
            let entry: LogEntry = client.get(&format!("/log/{}", segment(&id)), &[])?;
            if client.json {
                out_json(&entry);
            } else {
                let names = policies(client, std::slice::from_ref(&entry));
                out(&timeline(&entry, &names));
            }
            return Ok(());
        }
        let found: Vec<LogEntry> = client.get("/log", &query.pairs()?)?;
        if client.json {
            out_json(&found);
        } else if found.is_empty() {
            out("nothing was found; the log is kept for the configured retention only\n");
        } else {
            let names = policies(client, &found);
            let parts: Vec<String> = found.iter().map(|e| timeline(e, &names)).collect();
            out(&parts.join("\n"));
        }
        Ok(())
    }
}

/// Asks for the names of the policies that decided. Where one is not known any more its digest
/// has to do.
fn policies(client: &Client, entries: &[LogEntry]) -> Names {
    let mut digests: Vec<&String> = entries
        .iter()
        .flat_map(|e| &e.events)
        .filter_map(|e| e.detail.promise.as_ref()?.policy.as_ref())
        .collect();
    digests.sort();
    digests.dedup();
    digests
        .into_iter()
        .take(MAX_NAMES)
        .filter_map(|digest| {
            let revision: Value = client
                .get(&format!("/policies/{}", segment(digest)), &[])
                .ok()?;
            let name = format!("{} {}", cell(&revision["name"]), cell(&revision["version"]));
            Some((digest.clone(), clean(&name)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_be_absolute_or_ago() {
        let now = Timestamp::from_secs(1_000_000);
        assert_eq!(instant("10s", now).unwrap(), Timestamp::from_secs(999_990));
        assert_eq!(
            instant("2026-11-24T03:05:00Z", now).unwrap(),
            Timestamp::from_secs(1_795_489_500)
        );
        assert!(instant("yesterday", now).is_err());
    }
}
