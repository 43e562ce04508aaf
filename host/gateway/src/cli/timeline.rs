//! One mail for people: what it was, what was promised for it, what happened.

use std::collections::BTreeMap;
use std::fmt::Write;

use tidegate_mail::event::Detail;
use tidegate_mail::{Asked, Event, EventKind, Notify, Promise, Ret, Timestamp, Verdict};
use tidegate_queue::LogEntry;

use super::table::{Table, clean, duration, short, time};

/// Name and version of a policy by its digest.
pub type Names = BTreeMap<String, String>;

/// The whole history of a mail.
pub fn timeline(entry: &LogEntry, names: &Names) -> String {
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
    let asked_for = |index| {
        let mut events = entry.events.iter().filter(move |e| e.recipient == index);
        events.find_map(|e| e.detail.asked.as_ref())
    };
    if let Some(asked) = asked_for(None) {
        let _ = writeln!(text, "  asked       {}", parameters(asked));
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
                Some(promise) => promised(promise, entry.accepted_at, names),
                None => "no managed promise".to_owned(),
            }
        );
        if let Some(asked) = asked_for(Some(*index)) {
            let _ = writeln!(text, "              asked {}", parameters(asked));
        }
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

/// Parameters as the client gave them (RFC 3461).
fn parameters(asked: &Asked) -> String {
    let mut parts = Vec::new();
    match asked.notify {
        None | Some(Notify::Absent) => {}
        Some(Notify::Never) => parts.push("NOTIFY=NEVER".to_owned()),
        Some(Notify::On {
            success,
            failure,
            delay,
        }) => {
            let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
            let words: Vec<&str> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
            parts.push(format!("NOTIFY={}", words.join(",")));
        }
    }
    if let Some(original) = &asked.original {
        parts.push(format!(
            "ORCPT={};{}",
            clean(&original.kind),
            clean(&original.address)
        ));
    }
    match asked.ret {
        None => {}
        Some(Ret::Full) => parts.push("RET=FULL".to_owned()),
        Some(Ret::Hdrs) => parts.push("RET=HDRS".to_owned()),
    }
    if let Some(envid) = &asked.envid {
        parts.push(format!("ENVID={}", clean(envid)));
    }
    parts.join(" ")
}

/// The terms in force for a recipient.
fn promised(promise: &Promise, accepted_at: Timestamp, names: &Names) -> String {
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
            let _ = match names.get(digest) {
                Some(name) => write!(text, ", by policy {name} ({})", short(digest)),
                None => write!(text, ", by policy {}", short(digest)),
            };
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
            if let Some(policy) = &hop.tls_policy {
                parts.push(format!("demanded: {}", clean(policy)));
            }
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
            tls_policy: Some("mta-sts testing: no TLS".to_owned()),
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
                Event {
                    recipient: None,
                    ..event(
                        EventKind::Accepted,
                        Detail {
                            asked: Some(Asked {
                                ret: Some(Ret::Hdrs),
                                envid: Some("4711".to_owned()),
                                ..Asked::default()
                            }),
                            ..Detail::default()
                        },
                    )
                },
                event(
                    EventKind::Routed,
                    Detail {
                        asked: Some(Asked {
                            notify: Some(Notify::On {
                                success: true,
                                failure: false,
                                delay: true,
                            }),
                            original: Some(tidegate_mail::OriginalRecipient {
                                kind: "rfc822".to_owned(),
                                address: "j@a.example".to_owned(),
                            }),
                            ..Asked::default()
                        }),
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
        let mut names = Names::new();
        let text = timeline(&entry, &names);
        for expected in [
            "  asked       RET=HDRS ENVID=4711",
            "              asked NOTIFY=SUCCESS,DELAY ORCPT=rfc822;j@a.example",
            "subject     Invoice 4711",
            "<jane@customer.example>  promised: relay mx, transactional, retried for 48h (until 2026-11-26 03:05:00Z), delay notice after 4h, by policy 3f9ac1d2e4b5",
            "deferred  attempt 1; mx1.customer.example [192.0.2.1:25]; TLSv1.3, unverified; demanded: mta-sts testing: no TLS; 12 ms; at rcpt: 451 4.7.1 greylisted",
            "next 2026-11-24 03:06:00Z",
        ] {
            assert!(text.contains(expected), "{expected}\n---\n{text}");
        }
        assert!(!text.contains('\x1b'));
        names.insert("3f9ac1d2e4b5aaaaaaaa".to_owned(), "routing 1.2".to_owned());
        let text = timeline(&entry, &names);
        assert!(
            text.contains("by policy routing 1.2 (3f9ac1d2e4b5)"),
            "{text}"
        );
    }
}
