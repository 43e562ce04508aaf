//! Changes of what the slots run, told: a line in the gateway's own log, and counts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tidegate_admin::PolicyChanges;
use tidegate_queue::{Activation, Step};

#[derive(Default)]
pub(super) struct Changes(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl Changes {
    /// `before` was in force when the change was made. The target is a name for log collectors.
    pub fn tell(&self, change: &Activation, before: Option<&str>) {
        tracing::info!(
            target: "tidegate::policy_change",
            change = change.word(),
            slot = change.slot,
            digest = change.digest,
            before = before.unwrap_or("none"),
            share = match change.step {
                Step::Canary { permille } => Some(f64::from(permille) / 10.0),
                _ => None,
            },
            by = change.by,
            cause = change.cause,
            note = change.note,
            "policy changed"
        );
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((change.word(), change.by_whom())).or_default() += 1;
    }

    pub fn counts(&self) -> Vec<PolicyChanges> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts
            .iter()
            .map(|((change, by), count)| PolicyChanges {
                change,
                by,
                count: *count,
            })
            .collect()
    }
}
