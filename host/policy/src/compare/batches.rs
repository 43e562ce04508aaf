//! Two renderings of the same events, side by side: what the shadow of an export policy reports.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tidegate_queue::{EventRecord, Payload};

use super::{Cost, Costs, EXAMPLES, Failures, place};

/// Content types named of a batch.
const TYPES: usize = 3;

/// What changes where another revision renders.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Batches asked about, also where there was no answer, and their events.
    pub batches: u64,
    pub events: u64,
    /// Batches that would be handed over otherwise.
    pub changed_batches: u64,
    /// Of all batches that both rendered.
    pub in_force: Size,
    pub trial: Size,
    pub changes: Vec<Change>,
    pub failures: Failures,
    pub costs: Costs,
    pub cost: Cost,
}

/// How much was rendered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub payloads: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub from: String,
    pub to: String,
    pub batches: u64,
    pub examples: Vec<Example>,
}

/// A batch, by its first and last event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    pub first: u64,
    pub last: u64,
    pub in_force: Size,
    pub trial: Size,
}

impl Size {
    fn of(payloads: &[Payload]) -> Self {
        Size {
            payloads: payloads.len() as u64,
            bytes: payloads.iter().map(|p| p.body.len() as u64).sum(),
        }
    }

    fn add(&mut self, other: Size) {
        self.payloads += other.payloads;
        self.bytes += other.bytes;
    }
}

impl Report {
    /// Enters what the revision on trial renders of a batch beside what was handed over.
    pub fn answered(
        &mut self,
        batch: &[EventRecord],
        in_force: &[Payload],
        trial: &[Payload],
        cost_micros: u32,
    ) {
        self.asked(batch);
        self.costs.enter(cost_micros, 1);
        let (before, after) = (Size::of(in_force), Size::of(trial));
        self.in_force.add(before);
        self.trial.add(after);
        if in_force == trial {
            return;
        }
        self.changed_batches += 1;
        let (from, to) = differ(in_force, trial);
        let change = place(
            &mut self.changes,
            from,
            to,
            |c| (&c.from, &c.to),
            |from, to| Change {
                from,
                to,
                batches: 0,
                examples: Vec::new(),
            },
        );
        change.batches += 1;
        if let (Some(first), Some(last)) = (batch.first(), batch.last())
            && change.examples.len() < EXAMPLES
        {
            change.examples.push(Example {
                first: first.seq,
                last: last.seq,
                in_force: before,
                trial: after,
            });
        }
    }

    /// Enters a batch that the revision on trial could not render.
    pub fn failed(&mut self, batch: &[EventRecord], what: &str) {
        self.asked(batch);
        self.failures.enter(what);
    }

    fn asked(&mut self, batch: &[EventRecord]) {
        self.batches += 1;
        self.events += batch.len() as u64;
    }

    /// Brings order and percentiles up to date.
    pub fn finish(&mut self) {
        self.changes.sort_by_key(|c| std::cmp::Reverse(c.batches));
        self.cost = self.costs.sum_up();
    }
}

/// What is different, in words.
fn differ(before: &[Payload], after: &[Payload]) -> (String, String) {
    let (types, others) = (types(before), types(after));
    let mut words = (Vec::new(), Vec::new());
    if before.len() != after.len() {
        let count = |payloads: &[Payload]| match payloads.len() {
            1 => "1 payload".to_owned(),
            n => format!("{n} payloads"),
        };
        words.0.push(count(before));
        words.1.push(count(after));
    }
    if types != others {
        words.0.push(types.clone());
        words.1.push(others);
    }
    if words.0.is_empty() {
        return (types, "other bytes".to_owned());
    }
    (words.0.join(" of "), words.1.join(" of "))
}

fn types(payloads: &[Payload]) -> String {
    let all: BTreeSet<&str> = payloads.iter().map(|p| p.content_type.as_str()).collect();
    if all.is_empty() {
        return "nothing".to_owned();
    }
    let named: Vec<&str> = all.iter().take(TYPES).copied().collect();
    let more = if all.len() > TYPES { " and more" } else { "" };
    format!("{}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::PAIRS;
    use super::*;
    use bytes::Bytes;

    fn payload(content_type: &str, body: &str) -> Payload {
        Payload {
            body: Bytes::copy_from_slice(body.as_bytes()),
            content_type: content_type.to_owned(),
        }
    }

    #[test]
    fn what_is_different_is_said() {
        let (json, text) = (
            payload("application/json", "{}"),
            payload("text/plain", "x"),
        );
        let json = std::slice::from_ref(&json);
        let two = [json[0].clone(), text.clone()];
        for (after, words) in [
            (
                &[payload("application/json", "[]")][..],
                "application/json -> other bytes",
            ),
            (&[text][..], "application/json -> text/plain"),
            (
                &two[..],
                "1 payload of application/json -> 2 payloads of application/json, text/plain",
            ),
            (
                &[json[0].clone(), json[0].clone()][..],
                "1 payload -> 2 payloads",
            ),
            (
                &[][..],
                "1 payload of application/json -> 0 payloads of nothing",
            ),
        ] {
            let (from, to) = differ(json, after);
            assert_eq!(format!("{from} -> {to}"), words);
        }
    }

    #[test]
    fn sizes_add_up_and_what_is_told_is_bounded() {
        let mut report = Report::default();
        for n in 0..1_000 {
            let before = [payload("text/plain", "four")];
            let after = [payload(&format!("text/x{n}"), "longer")];
            report.answered(&[], &before, &before, n);
            report.answered(&[], &before, &after, n);
            report.failed(&[], &format!("trap {n}"));
        }
        report.finish();
        assert_eq!((report.batches, report.changed_batches), (3_000, 1_000));
        assert_eq!(
            report.in_force,
            Size {
                payloads: 2_000,
                bytes: 8_000
            }
        );
        assert_eq!(
            report.trial,
            Size {
                payloads: 2_000,
                bytes: 10_000
            }
        );
        assert_eq!(report.changes.len(), PAIRS + 1);
        assert_eq!(report.failures.calls(), 1_000);
        assert_eq!(report.cost.max, 999);
    }
}
