//! `tidegate log`: what was promised for a mail, and what happened.

use std::fmt::Write;

use clap::{Args, Subcommand};
use tidegate_mail::event::Detail;
use tidegate_mail::{Event, EventKind, Promise, Timestamp, Verdict};
use tidegate_queue::{Clock, LogEntry};

use super::client::{Client, segment};
use super::table::{Table, clean, duration, short, time};
use super::{Failure, Outcome, out, out_json};
use crate::config::Span;

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tidegate log 01jd3k5x0e0g0\n  tidegate log --recipient jane@customer.example --since 2d\n  tidegate log --record 4711 --json"
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
fn instant(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
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
                out(&timeline(&entry));
            }
            return Ok(());
        }
        let found: Vec<LogEntry> = client.get("/log", &query.pairs()?)?;
        if client.json {
            out_json(&found);
        } else if found.is_empty() {
            out("nothing was found; the log is kept for the configured retention only\n");
        } else {
            let parts: Vec<String> = found.iter().map(timeline).collect();
            out(&parts.join("\n"));
        }
        Ok(())
    }
}

/// One mail for people: what it was, what was promised, what happened.
pub fn timeline(entry: &LogEntry) -> String {
    let mut text = String::new();
    // Writing to a String can't fail, here and below.
    let _ = writeln!(
        text,
        "{}  accepted {}  tenant {}  {} bytes",
        entry.message,
        time(entry.accepted_at),
        entry.tenant,
        entry.size
    );
    let _ = writeln!(text, "  from        <{}>", clean(&entry.sender));
    for (name, value) in [
        ("subject", &entry.keys.subject),
        ("message-id", &entry.keys.message_id),
        ("record", &entry.keys.record),
    ] {
        if let Some(value) = value {
            let _ = writeln!(text, "  {name:<10}  {}", clean(value));
        }
    }
    for (index, address) in &entry.recipients {
        let promise = entry
            .events
            .iter()
            .filter(|e| e.recipient == Some(*index))
            .find_map(|e| e.detail.promise.as_ref());
        let _ = writeln!(
            text,
            "  to          <{}>  {}",
            clean(address),
            match promise {
                Some(promise) => promised(promise, entry.accepted_at),
                None => "no managed promise".to_owned(),
            }
        );
    }
    let several = entry.recipients.len() > 1;
    let mut table = if several {
        Table::new(&["TIME", "RECIPIENT", "EVENT", "DETAIL"])
    } else {
        Table::new(&["TIME", "EVENT", "DETAIL"])
    };
    for event in &entry.events {
        let mut row = vec![exact(event.at)];
        if several {
            let address = event
                .recipient
                .and_then(|n| entry.recipients.iter().find(|(i, _)| *i == n));
            row.push(address.map_or_else(String::new, |(_, a)| a.clone()));
        }
        row.push(event.kind.as_str().to_owned());
        row.push(detail(event));
        table.row(row);
    }
    text.push('\n');
    for line in table.render("no events").lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// With milliseconds: the order of what happened at nearly the same time is of interest.
fn exact(at: Timestamp) -> String {
    at.rfc3339().replacen('T', " ", 1)
}

/// The terms in force for a recipient.
fn promised(promise: &Promise, accepted_at: Timestamp) -> String {
    let mut text = format!(
        "promised: relay {}, {}, retried for {} (until {}), ",
        promise.relay,
        promise.class.as_str(),
        duration(promise.lifetime_secs.into()),
        time(accepted_at.plus(promise.lifetime())),
    );
    match promise.delay_notice_secs {
        Some(secs) => {
            let _ = write!(text, "delay notice after {}", duration(secs.into()));
        }
        None => text.push_str("no delay notice"),
    }
    if let Some(lane) = &promise.lane {
        let _ = write!(text, ", lane {}", clean(lane));
    }
    match &promise.policy {
        Some(digest) => {
            let _ = write!(text, ", by policy {}", short(digest));
        }
        None => text.push_str(", by the built-in route"),
    }
    text
}

/// Where, how, what was said, what comes next.
fn detail(event: &Event) -> String {
    let Detail {
        attempt,
        stage,
        verdict,
        text,
        hop,
        next,
        policy,
        promise,
        notice,
        facts,
        ..
    } = &event.detail;
    let mut parts: Vec<String> = Vec::new();
    if let Some(attempt) = attempt {
        parts.push(format!("attempt {attempt}"));
    }
    if let Some(hop) = hop {
        let peer = match (&hop.host, &hop.peer) {
            (Some(host), Some(peer)) => format!("{host} [{peer}]"),
            (Some(host), None) => host.clone(),
            (None, Some(peer)) => format!("[{peer}]"),
            (None, None) => String::new(),
        };
        if !peer.is_empty() {
            parts.push(peer);
            parts.push(match &hop.tls {
                Some(tls) if tls.verified == "none" => format!("{}, unverified", tls.version),
                Some(tls) => format!("{} verified by {}", tls.version, tls.verified),
                None => "in clear".to_owned(),
            });
        }
        if attempt.is_some() {
            parts.push(format!("{} ms", hop.duration_ms));
        }
    }
    let mut said = text.clone().unwrap_or_default();
    if let Some(stage) = stage
        && !said.is_empty()
        && *verdict != Some(Verdict::Delivered)
    {
        said = format!("at {}: {said}", stage.as_str());
    }
    if *verdict == Some(Verdict::Uncertain) {
        said.push_str(" (uncertain: it may have been delivered)");
    }
    if !said.is_empty() {
        parts.push(said);
    }
    if event.kind == EventKind::Routed
        && let Some(promise) = promise
    {
        parts.push(format!(
            "managed relay {}, {}",
            promise.relay,
            promise.class.as_str()
        ));
    }
    if let Some(digest) = policy {
        parts.push(format!("policy {}", short(digest)));
    }
    if let Some(next) = next {
        parts.push(format!("next {}", time(*next)));
    }
    if let Some(notice) = notice {
        parts.push(format!("notice {notice}"));
    }
    for (name, value) in facts {
        parts.push(format!("{name}={value}"));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_mail::{Hop, IdSource, Outcome, Reply, Stage, TlsInfo};
    use tidegate_queue::LogKeys;

    #[test]
    fn a_timeline_tells_promise_and_history() {
        let at = Timestamp::from_secs(1_795_489_500);
        let message = IdSource::new(1).next(at);
        let promise = Promise {
            class: tidegate_mail::TrafficClass::Transactional,
            relay: "mx".to_owned(),
            lane: None,
            priority: 0,
            lifetime_secs: 48 * 3600,
            delay_notice_secs: Some(4 * 3600),
            policy: Some("3f9ac1d2e4b5aaaaaaaa".to_owned()),
        };
        let hop = Hop {
            host: Some("mx1.customer.example".to_owned()),
            peer: Some("192.0.2.1:25".parse().unwrap()),
            source: None,
            tls: Some(TlsInfo {
                version: "TLSv1.3".to_owned(),
                cipher: "x".to_owned(),
                verified: "none".to_owned(),
            }),
            started: at,
            duration_ms: 12,
        };
        let reply = Reply::new(
            451,
            tidegate_mail::Enhanced::new(4, 7, 1),
            "greylisted\x1b[31m",
        );
        let outcome = Outcome::from_reply(Stage::Rcpt, reply);
        let event = |kind, detail| Event {
            at,
            kind,
            message,
            recipient: Some(0),
            detail,
        };
        let entry = LogEntry {
            message,
            tenant: "acme".to_owned(),
            accepted_at: at,
            sender: "billing@acme.example".to_owned(),
            size: 1234,
            keys: LogKeys {
                subject: Some("Invoice 4711".to_owned()),
                ..LogKeys::default()
            },
            recipients: vec![(0, "jane@customer.example".to_owned())],
            events: vec![
                event(
                    EventKind::Routed,
                    Detail {
                        promise: Some(promise),
                        ..Detail::default()
                    },
                ),
                event(
                    EventKind::Deferred,
                    Detail {
                        next: Some(at.plus(std::time::Duration::from_secs(60))),
                        ..Detail::of_attempt(1, hop, &outcome, None)
                    },
                ),
            ],
        };
        let text = timeline(&entry);
        for expected in [
            "subject     Invoice 4711",
            "<jane@customer.example>  promised: relay mx, transactional, retried for 48h (until 2026-11-26 03:05:00Z), delay notice after 4h, by policy 3f9ac1d2e4b5",
            "deferred  attempt 1; mx1.customer.example [192.0.2.1:25]; TLSv1.3, unverified; 12 ms; at rcpt: 451 4.7.1 greylisted",
            "next 2026-11-24 03:06:00Z",
        ] {
            assert!(text.contains(expected), "{expected}\n---\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

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
