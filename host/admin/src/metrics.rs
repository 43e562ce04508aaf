//! `/metrics` in the Prometheus text format, version 0.0.4.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use tidegate_queue::StoreCounts;
use tidegate_queue::control::{ExportStatus, Stats};

use crate::{PolicyChanges, Shared};

/// Without the store's counts where the store does not answer: a scrape must not fail with it.
pub(crate) async fn metrics(State(context): Shared) -> impl IntoResponse {
    let counts = context.engine.store().counts().await.ok();
    let exports = context.engine.exports().await.unwrap_or_default();
    let uptime = context.clock.now().since(context.started_at).as_secs();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        render(&context.engine.stats(), counts.as_ref(), uptime)
            + &render_exports(&exports)
            + &render_changes(&context.host.policy_changes()),
    )
}

/// One metric with a sample for each set of labels; nothing without samples.
fn labelled(text: &mut String, kind: &str, name: &str, help: &str, samples: &[(String, u64)]) {
    if samples.is_empty() {
        return;
    }
    // Writing to a String can't fail, here and below.
    let _ = write!(
        text,
        "# HELP tidegate_{name} {help}\n# TYPE tidegate_{name} {kind}\n"
    );
    for (labels, value) in samples {
        let _ = writeln!(text, "tidegate_{name}{{{labels}}} {value}");
    }
}

fn render_exports(exports: &[ExportStatus]) -> String {
    let mut text = String::new();
    let mut metric = |kind: &str, name: &str, help: &str, value: fn(&ExportStatus) -> u64| {
        // Names of exporters are letters, digits and hyphens.
        let samples: Vec<_> = exports
            .iter()
            .map(|e| (format!("exporter=\"{}\"", e.name), value(e)))
            .collect();
        labelled(&mut text, kind, name, help, &samples);
    };
    metric(
        "counter",
        "export_events_total",
        "Events handed over.",
        |e| e.events,
    );
    metric(
        "counter",
        "export_failures_total",
        "Batches not rendered or not taken; they are handed over again.",
        |e| e.failures,
    );
    metric(
        "counter",
        "export_left_out_total",
        "Events refused for good while others were taken.",
        |e| e.left_out,
    );
    metric(
        "gauge",
        "export_lag_seconds",
        "Age of the oldest event not handed over.",
        |e| e.lag_seconds,
    );
    metric(
        "gauge",
        "export_failing",
        "1 while the last try failed.",
        |e| u64::from(e.failing_since.is_some()),
    );
    text
}

fn render_changes(changes: &[PolicyChanges]) -> String {
    let mut text = String::new();
    let samples: Vec<_> = changes
        .iter()
        .map(|c| (format!("change=\"{}\",by=\"{}\"", c.change, c.by), c.count))
        .collect();
    let help = "Changes of what a slot runs: by the operator, tenants, or the gateway itself.";
    labelled(&mut text, "counter", "policy_changes_total", help, &samples);
    text
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
    fn exporters_and_changes_are_labels() {
        let export = |name: &str, events| ExportStatus {
            name: name.to_owned(),
            events,
            ..ExportStatus::default()
        };
        let text = render_exports(&[export("crm", 7), export("log", 9)]);
        assert!(text.starts_with(
            "# HELP tidegate_export_events_total Events handed over.\n\
             # TYPE tidegate_export_events_total counter\n\
             tidegate_export_events_total{exporter=\"crm\"} 7\n\
             tidegate_export_events_total{exporter=\"log\"} 9\n"
        ));
        assert_eq!(render_exports(&[]), "");
        let changes = [PolicyChanges {
            change: "rolled back",
            by: "gateway",
            count: 2,
        }];
        assert!(render_changes(&changes).ends_with(
            "\ntidegate_policy_changes_total{change=\"rolled back\",by=\"gateway\"} 2\n"
        ));
    }

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
