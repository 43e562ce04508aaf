//! What a rehearsal or a shadow found, for people.

use std::fmt::Write;

use serde_json::Value;
use tidegate_policy::compare::{Cost, Failures, Report, batches, lanes};
use tidegate_queue::shape::LaneKey;

use super::table;

/// What a shadow found, as `policy status` has it; `None`: nothing that this version knows.
pub(super) fn shadow(trial: &Value) -> Option<String> {
    let compared = trial["compared"].clone();
    let mut text = match compared["of"].as_str()? {
        "messages" => messages(&serde_json::from_value(compared).ok()?),
        "lanes" => of_lanes(&serde_json::from_value(compared).ok()?),
        "batches" => of_batches(&serde_json::from_value(compared).ok()?),
        _ => return None,
    };
    if let Some(skipped @ 1..) = trial["skipped"].as_u64() {
        // Writing to a String can't fail, here and below.
        let _ = writeln!(text, "\nThere was no time for {skipped} more.");
    }
    Some(text)
}

fn calls(text: &mut String, failed: u64, cost: Cost) {
    let _ = writeln!(
        text,
        "{failed} calls failed; a call took {} us (p50), {} us (p99), {} us at most",
        cost.p50, cost.p99, cost.max
    );
}

fn failures(text: &mut String, failures: &Failures) {
    for failure in failures.iter() {
        let _ = writeln!(
            text,
            "\n{:>7}  failed: {}",
            failure.calls,
            table::clean(&failure.what)
        );
    }
}

fn change(text: &mut String, times: u64, from: &str, to: &str) {
    let _ = writeln!(
        text,
        "\n{times:>7}  {}\n     ->  {}",
        table::clean(from),
        table::clean(to)
    );
}

/// How messages are decided otherwise.
pub(super) fn messages(report: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} messages, {} recipients: {} recipients of {} messages are decided otherwise",
        report.messages, report.recipients, report.changed_recipients, report.changed_messages
    );
    let failed: u64 = report.failures.iter().map(|f| f.calls).sum();
    calls(&mut text, failed, report.cost);
    for c in &report.changes {
        change(&mut text, c.recipients, &c.from, &c.to);
        for example in &c.examples {
            let _ = writeln!(
                text,
                "         {} <{}>",
                example.message,
                table::clean(&example.recipient)
            );
        }
    }
    for failure in &report.failures {
        let _ = writeln!(
            text,
            "\n{:>7}  failed: {}; such as {}",
            failure.calls,
            table::clean(&failure.what),
            failure.message
        );
    }
    if !report.missing_headers.is_empty() {
        let _ = writeln!(
            text,
            "\nIt reads header fields that were not recorded, since no policy of the slot read them: {}.\nAs a shadow it is given them: tidegate policy shadow",
            report.missing_headers.join(", ")
        );
    }
    text
}

/// How lanes are planned otherwise.
fn of_lanes(report: &lanes::Report) -> String {
    let mut text = format!(
        "{} calls, {} plans of {} lanes: {} plans of {} lanes are otherwise\n",
        report.calls, report.plans, report.lanes, report.changed_plans, report.changed_lanes
    );
    calls(&mut text, report.failures.calls(), report.cost);
    for c in &report.changes {
        change(&mut text, c.plans, &c.from, &c.to);
        for example in &c.examples {
            let _ = writeln!(text, "         {}", table::clean(&lane(example)));
        }
    }
    failures(&mut text, &report.failures);
    text
}

/// How batches are rendered otherwise.
fn of_batches(report: &batches::Report) -> String {
    let mut text = format!(
        "{} batches of {} events: {} batches are rendered otherwise\n",
        report.batches, report.events, report.changed_batches
    );
    let size = |size: &batches::Size| format!("{} payloads of {} bytes", size.payloads, size.bytes);
    let (before, after) = (size(&report.in_force), size(&report.trial));
    let _ = writeln!(text, "{before} are {after}");
    calls(&mut text, report.failures.calls(), report.cost);
    for c in &report.changes {
        change(&mut text, c.batches, &c.from, &c.to);
        for example in &c.examples {
            let _ = writeln!(
                text,
                "         events {} to {}: {} bytes, {} on trial",
                example.first, example.last, example.in_force.bytes, example.trial.bytes
            );
        }
    }
    failures(&mut text, &report.failures);
    text
}

fn lane(key: &LaneKey) -> String {
    let mut text = format!(
        "tenant {}, {}, relay {}, site {}",
        key.tenant,
        key.class.as_str(),
        key.relay,
        key.site
    );
    if let Some(lane) = &key.lane {
        let _ = write!(text, ", lane {lane}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_tells_what_changes_with_examples() {
        let report: Report = serde_json::from_value(json!({
            "messages": 3, "recipients": 4, "changed_recipients": 2, "changed_messages": 1,
            "changes": [{"from": "managed transactional", "to": "passthrough to own", "recipients": 2,
                "examples": [{"message": "0000000000000", "recipient": "a@x.example"}]}],
            "failures": [{"what": "trap: unreachable", "calls": 1, "message": "0000000000000"}],
            "missing_headers": ["x-campaign"],
        }))
        .unwrap();
        let text = messages(&report);
        for part in [
            "2 recipients of 1 messages",
            "->  passthrough to own",
            "<a@x.example>",
            "failed: trap: unreachable",
            "x-campaign",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn the_shadow_of_a_shaping_policy_is_told_by_lanes() {
        let trial = json!({"skipped": 3, "compared": {"of": "lanes",
            "calls": 4, "lanes": 2, "changed_lanes": 1, "plans": 8, "changed_plans": 3,
            "changes": [{"from": "rate 100/1m", "to": "paused for 1h", "plans": 3, "examples": [
                {"tenant": "acme", "class": "bulk", "relay": "mx", "site": "x.example", "lane": "spring"}]}],
            "failures": [{"what": "trap: unreachable", "calls": 1}],
            "costs": {"90": 3}, "cost": {"p50": 90, "p99": 90, "max": 90},
        }});
        let text = shadow(&trial).unwrap();
        for part in [
            "4 calls, 8 plans of 2 lanes: 3 plans of 1 lanes are otherwise",
            "1 calls failed; a call took 90 us",
            "3  rate 100/1m\n     ->  paused for 1h",
            "tenant acme, bulk, relay mx, site x.example, lane spring",
            "1  failed: trap: unreachable",
            "no time for 3 more",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(shadow(&json!({"own": {}})), None, "a canary");
    }

    #[test]
    fn the_shadow_of_an_export_policy_is_told_by_batches() {
        let trial = json!({"skipped": 0, "compared": {"of": "batches",
            "batches": 4, "events": 40, "changed_batches": 2,
            "in_force": {"payloads": 4, "bytes": 900}, "trial": {"payloads": 4, "bytes": 800},
            "changes": [{"from": "text/plain", "to": "other bytes", "batches": 2, "examples": [
                {"first": 1, "last": 10, "in_force": {"bytes": 90, "payloads": 1}, "trial": {"bytes": 80, "payloads": 1}}]}],
            "failures": [], "costs": {"90": 3}, "cost": {"p50": 90, "p99": 90, "max": 90},
        }});
        let text = shadow(&trial).unwrap();
        for part in [
            "4 batches of 40 events: 2 batches are rendered otherwise",
            "4 payloads of 900 bytes are 4 payloads of 800 bytes",
            "2  text/plain\n     ->  other bytes",
            "events 1 to 10: 90 bytes, 80 on trial",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("no time"), "{text}");
    }
}
