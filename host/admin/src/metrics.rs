//! `/metrics` in the Prometheus text format, version 0.0.4.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use tidegate_queue::StoreCounts;
use tidegate_queue::control::Stats;

use crate::Shared;

/// Without the store's counts where the store does not answer: a scrape must not fail with it.
pub(crate) async fn metrics(State(context): Shared) -> impl IntoResponse {
    let counts = context.engine.store().counts().await.ok();
    let uptime = context.clock.now().since(context.started_at).as_secs();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        render(&context.engine.stats(), counts.as_ref(), uptime),
    )
}

fn render(stats: &Stats, counts: Option<&StoreCounts>, uptime: u64) -> String {
    let mut text = String::with_capacity(4096);
    let mut metric = |kind: &str, name: &str, help: &str, value: u64| {
        // Writing to a String can't fail.
        let _ = write!(
            text,
            "# HELP tidegate_{name} {help}\n# TYPE tidegate_{name} {kind}\ntidegate_{name} {value}\n"
        );
    };
    for (name, help, value) in [
        (
            "accepted_messages_total",
            "Messages made durable and answered with 250.",
            stats.accepted_messages,
        ),
        (
            "accepted_recipients_total",
            "Managed recipients of accepted messages.",
            stats.accepted_recipients,
        ),
        (
            "delivered_total",
            "Recipients taken by their destination.",
            stats.delivered,
        ),
        (
            "deferred_total",
            "Attempts that are to be repeated.",
            stats.deferred,
        ),
        (
            "bounced_total",
            "Recipients refused for good.",
            stats.bounced,
        ),
        (
            "expired_total",
            "Recipients whose lifetime ended.",
            stats.expired,
        ),
        (
            "cancelled_total",
            "Recipients taken out by a person.",
            stats.cancelled,
        ),
        ("notices_total", "Notices queued.", stats.notices),
        (
            "passthrough_tried_total",
            "Hand-offs to tenants' own servers.",
            stats.passthrough_tried,
        ),
        (
            "refused_messages_total",
            "Messages answered with 4xx or 5xx after the data.",
            stats.refused_messages,
        ),
        (
            "policy_fallbacks_total",
            "Messages that a fallback decided.",
            stats.policy_fallbacks,
        ),
        (
            "damaged_contents_total",
            "Attempts that found the stored content damaged; other than 0 is a failing disk.",
            stats.damaged,
        ),
        (
            "illegal_transitions_total",
            "Transitions that the state machine refused; other than 0 is a defect.",
            stats.illegal_transitions,
        ),
    ] {
        metric("counter", name, help, value);
    }
    metric(
        "gauge",
        "waiting_recipients",
        "Recipients waiting in the queue.",
        stats.waiting,
    );
    metric(
        "gauge",
        "in_flight_recipients",
        "Recipients in an attempt.",
        stats.in_flight,
    );
    metric(
        "gauge",
        "overdue_recipients",
        "Recipients in the queue half an hour past their lifetime or more; other than 0 is a fault.",
        stats.overdue,
    );
    metric("gauge", "uptime_seconds", "Time since the start.", uptime);
    if let Some(counts) = counts {
        metric(
            "gauge",
            "store_messages",
            "Messages in the queue.",
            counts.messages,
        );
        metric(
            "gauge",
            "store_recipients",
            "Recipients in the queue.",
            counts.recipients,
        );
        metric(
            "gauge",
            "store_owing",
            "Recipients that owe a notice.",
            counts.owing,
        );
        metric(
            "counter",
            "store_commits_total",
            "Transactions committed.",
            counts.commits,
        );
        metric(
            "counter",
            "store_syncs_total",
            "Syncs to stable storage.",
            counts.syncs,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_help_and_type() {
        let stats = Stats {
            delivered: 7,
            waiting: 3,
            ..Stats::default()
        };
        let text = render(&stats, Some(&StoreCounts::default()), 60);
        assert!(text.contains("\ntidegate_delivered_total 7\n"));
        assert!(text.contains("\ntidegate_waiting_recipients 3\n"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len() % 3, 0);
        for sample in lines.chunks(3) {
            let name = sample[2].split(' ').next().unwrap();
            assert!(sample[0].starts_with(&format!("# HELP {name} ")));
            assert!(sample[1].starts_with(&format!("# TYPE {name} ")));
        }
    }
}
