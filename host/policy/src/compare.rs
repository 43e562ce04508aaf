//! Two answers to the same question, side by side: what a rehearsal and a shadow report.

pub mod batches;
mod calls;
pub mod lanes;

use serde::{Deserialize, Serialize};
use tidegate_mail::MessageId;

use crate::recorded::{Action, Answer, Recorded};

pub use calls::{Cost, Costs, Failures};

/// Pairs of actions told apart; what is beyond is counted together.
const PAIRS: usize = 100;
const EXAMPLES: usize = 3;

/// What a shadow found so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "of")]
pub enum Compared {
    Messages(Report),
    Lanes(lanes::Report),
    Batches(batches::Report),
}

/// What changes where another revision decides. Reports of parts add up to one of the whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Messages asked about, and their recipients.
    pub messages: u64,
    pub recipients: u64,
    /// Recipients whose action is another one, and messages with such.
    pub changed_recipients: u64,
    pub changed_messages: u64,
    pub changes: Vec<Change>,
    /// Calls that gave no answer: traps, overruns, invalid answers.
    pub failures: Vec<Failed>,
    /// Header fields that the revision reads but that were not recorded.
    pub missing_headers: Vec<String>,
    pub costs: Costs,
    pub cost: Cost,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub from: String,
    pub to: String,
    pub recipients: u64,
    pub examples: Vec<Example>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    pub message: MessageId,
    pub recipient: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub what: String,
    pub calls: u64,
    /// One of the messages.
    pub message: MessageId,
}

impl Report {
    /// Enters the answer of the revision on trial beside the one that was given.
    pub fn answered(&mut self, record: &Recorded, answer: &Answer) {
        self.messages += 1;
        self.recipients += record.recipients.len() as u64;
        self.costs.enter(answer.cost_micros, 1);
        let Some(before) = &record.answer else { return };
        let mut changed = false;
        for (index, recipient) in record.recipients.iter().enumerate() {
            let (from, to) = (before.action(index), answer.action(index));
            if from != to {
                changed = true;
                self.changed_recipients += 1;
                let words = |action: Option<&Action>| {
                    action.map_or_else(|| "nothing".to_owned(), Action::to_string)
                };
                let example = Example {
                    message: record.id,
                    recipient: recipient.clone(),
                };
                self.change(words(from), words(to), 1, vec![example]);
            }
        }
        self.changed_messages += u64::from(changed);
    }

    /// Enters a call that gave no answer.
    pub fn failed(&mut self, record: &Recorded, what: &str) {
        self.messages += 1;
        self.recipients += record.recipients.len() as u64;
        self.failure(what, 1, record.id);
    }

    fn change(&mut self, from: String, to: String, recipients: u64, examples: Vec<Example>) {
        let change = place(
            &mut self.changes,
            from,
            to,
            |c| (&c.from, &c.to),
            |from, to| Change {
                from,
                to,
                recipients: 0,
                examples: Vec::new(),
            },
        );
        change.recipients += recipients;
        let room = EXAMPLES.saturating_sub(change.examples.len());
        change.examples.extend(examples.into_iter().take(room));
    }

    fn failure(&mut self, what: &str, calls: u64, message: MessageId) {
        if let Some(failed) = self.failures.iter_mut().find(|f| f.what == what) {
            failed.calls += calls;
        } else if self.failures.len() < PAIRS {
            self.failures.push(Failed {
                what: what.to_owned(),
                calls,
                message,
            });
        } else if let Some(last) = self.failures.last_mut() {
            last.calls += calls;
        }
    }

    /// Adds the report of another part.
    pub fn add(&mut self, other: Report) {
        self.messages += other.messages;
        self.recipients += other.recipients;
        self.changed_recipients += other.changed_recipients;
        self.changed_messages += other.changed_messages;
        for c in other.changes {
            self.change(c.from, c.to, c.recipients, c.examples);
        }
        for f in other.failures {
            self.failure(&f.what, f.calls, f.message);
        }
        for header in other.missing_headers {
            if !self.missing_headers.contains(&header) {
                self.missing_headers.push(header);
            }
        }
        self.costs.add(&other.costs);
        self.finish();
    }

    /// Brings order and percentiles up to date.
    pub fn finish(&mut self) {
        self.changes
            .sort_by_key(|c| std::cmp::Reverse(c.recipients));
        self.cost = self.costs.sum_up();
    }
}

/// The place of a change among those told apart by their words: its own while there are fewer than
/// [`PAIRS`], else one for all the rest.
fn place<T>(
    all: &mut Vec<T>,
    from: String,
    to: String,
    words: fn(&T) -> (&str, &str),
    new: fn(String, String) -> T,
) -> &mut T {
    let find = |all: &[T], from: &str, to: &str| all.iter().position(|c| words(c) == (from, to));
    let at = find(all, &from, &to).unwrap_or_else(|| {
        let (from, to) = if all.len() < PAIRS {
            (from, to)
        } else {
            ("other".to_owned(), "other".to_owned())
        };
        find(all, &from, &to).unwrap_or_else(|| {
            all.push(new(from, to));
            all.len() - 1
        })
    });
    &mut all[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lane: &str) -> Recorded {
        let answer = answer(lane, 7);
        Recorded {
            answer: Some(answer),
            ..serde_json::from_str(r#"{"recipients":["a@x.example","b@x.example"]}"#).unwrap()
        }
    }

    fn answer(lane: &str, cost_micros: u32) -> Answer {
        let action = serde_json::json!({"managed": {"lane": lane}});
        Answer {
            actions: vec![serde_json::from_value(action).unwrap()],
            of_recipient: vec![0, 0],
            cost_micros,
            ..Answer::default()
        }
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut whole = Report::default();
        let mut parts = [Report::default(), Report::default()];
        for n in 0..100u32 {
            let to = if n % 4 == 0 { "other" } else { "same" };
            for report in [&mut whole, &mut parts[n as usize % 2]] {
                report.answered(&record("same"), &answer(to, n));
            }
        }
        whole.failed(&record("same"), "trap: unreachable");
        parts[1].failed(&record("same"), "trap: unreachable");
        let mut sum = Report::default();
        for part in parts {
            sum.add(part);
        }
        whole.finish();
        assert_eq!(sum, whole);
        assert_eq!((whole.messages, whole.recipients), (101, 202));
        assert_eq!((whole.changed_messages, whole.changed_recipients), (25, 50));
        let change = &whole.changes[0];
        assert_eq!(change.from, "managed transactional, lane same");
        assert_eq!(change.to, "managed transactional, lane other");
        assert_eq!(change.examples.len(), EXAMPLES);
        assert_eq!(
            whole.cost,
            Cost {
                p50: 49,
                p99: 98,
                max: 99
            }
        );
        assert_eq!(whole.failures[0].calls, 1);
    }

    #[test]
    fn a_policy_that_never_says_the_same_does_not_fill_the_memory() {
        let mut report = Report::default();
        for n in 0..1_000 {
            report.answered(&record("same"), &answer(&format!("l{n}"), 1));
        }
        report.finish();
        assert_eq!(report.changed_recipients, 2_000);
        assert_eq!(report.changes.len(), PAIRS + 1);
        let counted: u64 = report.changes.iter().map(|c| c.recipients).sum();
        assert_eq!(counted, 2_000);
    }
}
