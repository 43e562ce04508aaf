//! What became of the recipients a revision decided, and whether that is worse than before.
//!
//! Two shares are compared only where both have a sample worth the name, and a difference counts
//! only where it is large and chance is no explanation for it.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tidegate_mail::Verdict;
use tidegate_queue::route::{Action, Routing};
use tidegate_queue::shape::Window;

use crate::limits::{HARM_ATTEMPTS, HARM_DECISIONS, HARM_DIFFERENCE, HARM_MEMORY};

/// Counted as it happens.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    calls: AtomicU64,
    failures: AtomicU64,
    recipients: AtomicU64,
    refused: AtomicU64,
    attempted: AtomicU64,
    deferred: AtomicU64,
    bounced: AtomicU64,
}

/// The same at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Decisions, and calls that gave none.
    pub calls: u64,
    pub failures: u64,
    /// Recipients decided, and those among them that the policy refused or put off.
    pub recipients: u64,
    pub refused: u64,
    /// First attempts at such recipients, or all attempts in the lanes that it planned, and those
    /// among them that the destination put off or refused.
    pub attempted: u64,
    pub deferred: u64,
    pub bounced: u64,
}

fn bump(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Tally {
    pub fn decided(&self, routing: &Routing) {
        bump(&self.calls, 1);
        bump(&self.recipients, routing.of_recipient.len() as u64);
        let turned_away = |action: &Action| matches!(action, Action::Refuse(_) | Action::Defer(_));
        if routing.actions.iter().any(turned_away) {
            let refused = (0..routing.of_recipient.len())
                .filter(|n| turned_away(routing.action(*n)))
                .count();
            bump(&self.refused, refused as u64);
        }
    }

    pub fn failed(&self) {
        bump(&self.calls, 1);
        bump(&self.failures, 1);
    }

    /// A call that decides no recipient.
    pub fn answered(&self) {
        bump(&self.calls, 1);
    }

    /// What was counted in a lane since its last plan.
    pub fn counted(&self, window: &Window) {
        bump(&self.attempted, window.attempts.into());
        bump(&self.deferred, window.deferred.into());
        bump(&self.bounced, window.bounced.into());
    }

    pub fn attempted(&self, verdict: Verdict) {
        if verdict == Verdict::Withdrawn {
            return;
        }
        let before = self.attempted.fetch_add(1, Ordering::Relaxed);
        match verdict {
            Verdict::Delivered | Verdict::Withdrawn => {}
            Verdict::Permanent => bump(&self.bounced, 1),
            Verdict::Temporary | Verdict::Uncertain => bump(&self.deferred, 1),
        }
        if before >= HARM_MEMORY {
            // What was long ago counts ever less. A count that goes astray in between is lost.
            for counter in [&self.attempted, &self.deferred, &self.bounced] {
                counter.store(counter.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
            }
        }
    }

    pub fn rates(&self) -> Rates {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Rates {
            calls: get(&self.calls),
            failures: get(&self.failures),
            recipients: get(&self.recipients),
            refused: get(&self.refused),
            attempted: get(&self.attempted),
            deferred: get(&self.deferred),
            bounced: get(&self.bounced),
        }
    }
}

impl Rates {
    /// What is worse than under `before`, in words and figures.
    pub fn harm(&self, before: &Rates) -> Option<String> {
        let shares = [
            (
                "recipients refused or put off by the policy",
                (self.refused, self.recipients),
                (before.refused, before.recipients),
                HARM_DECISIONS,
            ),
            (
                "recipients deferred by their destination at the first attempt",
                (self.deferred, self.attempted),
                (before.deferred, before.attempted),
                HARM_ATTEMPTS,
            ),
            (
                "recipients bounced at the first attempt",
                (self.bounced, self.attempted),
                (before.bounced, before.attempted),
                HARM_ATTEMPTS,
            ),
        ];
        shares
            .into_iter()
            .find(|(_, now, then, least)| worse(*now, *then, *least))
            .map(|(what, now, then, _)| {
                format!(
                    "{what}: {} of {} ({:.1} %), before {} of {} ({:.1} %)",
                    now.0,
                    now.1,
                    percent(now),
                    then.0,
                    then.1,
                    percent(then)
                )
            })
    }

    /// More than one call in a hundred failed, of five hundred or more.
    pub fn fails_often(&self) -> bool {
        self.calls >= 500 && self.failures * 100 > self.calls
    }
}

fn percent((part, of): (u64, u64)) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

/// Whether the first share is larger by [`HARM_DIFFERENCE`] or more, and by more than 3.3 standard
/// errors of the difference (once in two thousand by chance).
fn worse(now: (u64, u64), then: (u64, u64), least: u64) -> bool {
    if now.1 < least || then.1 < least {
        return false;
    }
    let (n, m) = (now.1 as f64, then.1 as f64);
    let difference = now.0 as f64 / n - then.0 as f64 / m;
    let pooled = (now.0 + then.0) as f64 / (n + m);
    let error = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    difference >= HARM_DIFFERENCE && difference > 3.3 * error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_counts_where_it_is_large_and_no_chance() {
        let least = 20;
        assert!(worse((20, 20), (0, 20), least), "all against none");
        assert!(!worse((19, 19), (0, 400), least), "too few to say");
        assert!(!worse((20, 20), (0, 19), least), "nothing to compare with");
        assert!(!worse((3, 30), (0, 30), least), "may be chance");
        assert!(!worse((400, 10_000), (0, 10_000), least), "small");
        assert!(worse((200, 1_000), (50, 1_000), least));
        assert!(!worse((50, 1_000), (200, 1_000), least), "better");
        assert!(!worse((0, 100), (0, 100), least));
        assert!(!worse((100, 100), (100, 100), least));
    }

    #[test]
    fn harm_is_told_in_figures() {
        let before = Rates {
            attempted: 100,
            ..Rates::default()
        };
        let now = Rates {
            attempted: 50,
            bounced: 40,
            ..Rates::default()
        };
        let said = now.harm(&before).unwrap();
        assert!(
            said.contains("bounced") && said.contains("40 of 50 (80.0 %)"),
            "{said}"
        );
        assert_eq!(before.harm(&now), None);
    }

    #[test]
    fn what_was_long_ago_fades() {
        let tally = Tally::default();
        for _ in 0..HARM_MEMORY {
            tally.attempted(Verdict::Permanent);
        }
        for _ in 0..3 * HARM_MEMORY {
            tally.attempted(Verdict::Delivered);
        }
        let rates = tally.rates();
        assert!(rates.attempted <= HARM_MEMORY);
        assert!(rates.bounced * 4 < rates.attempted, "{rates:?}");
    }
}
