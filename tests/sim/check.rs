//! What must hold at the end of every story.

use std::collections::HashMap;

use tidegate_mail::dsn;
use tidegate_mail::{EventKind, MessageId, Notify, Verdict};
use tidegate_queue::{LogEntry, LogQuery};

use crate::scenario::Scenario;

/// A recipient that was answered for with a 250.
#[derive(Clone, Debug)]
pub struct Promised {
    pub message: MessageId,
    pub index: u32,
    pub address: String,
    pub notify: Notify,
    pub null_sender: bool,
}

pub struct Rules<'a> {
    pub promised: &'a [Promised],
    /// The gateway crashed at least once.
    pub crashed: bool,
}

/// Each accepted recipient ends once; a failed one has exactly one failure notice unless
/// nobody may be told; nothing is delivered twice without a lost reply or a crash, and then only
/// where the log says that it may be.
pub async fn check(scenario: &Scenario, rules: Rules<'_>) {
    let store = scenario.store();
    let counts = store.counts().await.expect("counts");
    assert_eq!(
        (counts.messages, counts.recipients, counts.owing),
        (0, 0, 0),
        "the queue is not empty at the end"
    );
    assert_eq!(scenario.engine().stats().illegal_transitions, 0);
    let delivered = scenario.world.delivered();
    // By the notices' own ids.
    let mut notices: HashMap<(String, String), Vec<String>> = HashMap::new();
    for delivery in &delivered {
        let Some(report) = dsn::parse(&delivery.content) else {
            continue;
        };
        let about = report_about(&delivery.content);
        let notice = field(&delivery.content, "Message-ID: ");
        let notice = notice.trim_matches(['<', '>']).split('@').next();
        let notice = notice.unwrap_or_default().to_owned();
        for recipient in &report.recipients {
            if recipient.action == dsn::Action::Failed {
                notices
                    .entry((about.clone(), address(recipient)))
                    .or_default()
                    .push(notice.clone());
            }
        }
    }
    for (about, told) in &mut notices {
        if told.len() > 1 {
            let id = told[0].parse().expect("the queue id of a notice");
            assert!(
                may_be_twice(&entry(scenario, id).await, 0),
                "the log does not say that the notice on {about:?} may be twice"
            );
        }
        told.dedup();
    }
    for p in rules.promised {
        let entry = entry(scenario, p.message).await;
        let of_kind = |kinds: &[EventKind]| {
            entry
                .events
                .iter()
                .filter(|e| e.recipient == Some(p.index) && kinds.contains(&e.kind))
                .count()
        };
        let ends = of_kind(&[
            EventKind::Delivered,
            EventKind::Bounced,
            EventKind::Expired,
            EventKind::Cancelled,
            EventKind::Refused,
        ]);
        assert_eq!(ends, 1, "{p:?} ended {ends} times: {:#?}", entry.events);
        let failed = of_kind(&[EventKind::Bounced, EventKind::Expired, EventKind::Refused]);
        let wanted = failed == 1 && !p.null_sender && p.notify.wants_failure();
        let sent = of_kind(&[EventKind::DsnSent]);
        if failed == 1 {
            assert_eq!(sent, usize::from(wanted), "notices for {p:?}");
        }
        let told = notices
            .get(&(p.message.to_string(), p.address.clone()))
            .map_or(0, Vec::len);
        assert_eq!(told, usize::from(wanted), "failure notices for {p:?}");
        let copies = delivered
            .iter()
            .filter(|d| d.recipient == p.address && report_id(&d.content) == p.message.to_string())
            .count();
        let known = of_kind(&[EventKind::Delivered]);
        assert!(copies >= known, "{p:?} was never delivered");
        if copies > known {
            assert!(
                may_be_twice(&entry, p.index),
                "the log does not say that {p:?} may be twice: {:#?}",
                entry.events
            );
            assert!(rules.crashed || scenario.world.lost_replies() > 0);
        }
    }
}

async fn entry(scenario: &Scenario, message: MessageId) -> LogEntry {
    let query = LogQuery {
        message: Some(message),
        ..LogQuery::default()
    };
    let mut found = scenario.store().search(query).await.expect("search");
    found
        .pop()
        .unwrap_or_else(|| panic!("{message} is not in the log"))
}

/// Whether the log says that this recipient may have the mail more than once.
fn may_be_twice(entry: &LogEntry, index: u32) -> bool {
    entry.events.iter().any(|e| {
        let says = e.kind == EventKind::Recovered || e.detail.verdict == Some(Verdict::Uncertain);
        e.recipient == Some(index) && says
    })
}

fn address(of: &dsn::ReportRecipient) -> String {
    of.address
        .as_ref()
        .map(|a| a.address.clone())
        .unwrap_or_default()
}

/// The queue id in the Subject of a simulated mail.
fn report_id(content: &[u8]) -> String {
    field(content, "Subject: sim ")
}

/// The queue id of the mail that a notice is about, from the header it returns.
fn report_about(content: &[u8]) -> String {
    field(content, "Subject: sim ")
}

fn field(content: &[u8], name: &str) -> String {
    String::from_utf8_lossy(content)
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_default()
        .trim()
        .to_owned()
}
