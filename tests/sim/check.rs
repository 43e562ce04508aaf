//! What must hold at the end of every story.

use std::collections::HashMap;

use tidegate_mail::dsn;
use tidegate_mail::{EventKind, MessageId, Notify};
use tidegate_queue::LogQuery;

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
/// nobody may be told; nothing is delivered twice without a lost reply or a crash.
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
    let mut notices: HashMap<(String, String), u32> = HashMap::new();
    for delivery in &delivered {
        let Some(report) = dsn::parse(&delivery.content) else {
            continue;
        };
        let about = report_about(&delivery.content);
        for recipient in &report.recipients {
            if recipient.action == dsn::Action::Failed {
                *notices
                    .entry((about.clone(), address(recipient)))
                    .or_default() += 1;
            }
        }
    }
    for p in rules.promised {
        let entry = store
            .search(LogQuery {
                message: Some(p.message),
                ..LogQuery::default()
            })
            .await
            .expect("search")
            .pop()
            .unwrap_or_else(|| panic!("{p:?} is not in the log"));
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
            .copied()
            .unwrap_or(0);
        // The notice itself may arrive twice after a crash or a lost reply.
        if wanted {
            assert!(told >= 1, "no failure notice arrived for {p:?}");
        }
        if !wanted {
            assert_eq!(told, 0, "a failure notice that nobody asked for: {p:?}");
        }
        if !rules.crashed && scenario.world.lost_replies() == 0 {
            assert!(told <= 1, "{told} failure notices for {p:?}");
            let copies = delivered
                .iter()
                .filter(|d| {
                    d.recipient == p.address && report_id(&d.content) == p.message.to_string()
                })
                .count();
            assert_eq!(copies, of_kind(&[EventKind::Delivered]), "copies of {p:?}");
        }
    }
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
