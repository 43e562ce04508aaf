//! A revision on trial beside the one in force: a canary or a shadow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tidegate_mail::MessageId;
use tidegate_queue::rollout;

use crate::breaker::Breaker;
use crate::compare::Report;
use crate::engine::Active;
use crate::harm::{Rates, Tally};

/// What a trial decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum TrialKind {
    /// This share of the messages, in thousandths.
    Canary { permille: u16 },
    /// Nothing.
    Shadow,
}

pub(crate) struct Trial {
    pub slot: Arc<str>,
    pub active: Arc<Active>,
    pub kind: TrialKind,
    /// What became of what it decided, and of what the revision in force decided meanwhile.
    pub own: Tally,
    pub base: Tally,
    breaker: Mutex<Breaker>,
    report: Mutex<Report>,
    skipped: AtomicU64,
}

/// A trial as operators see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrialStatus {
    pub digest: String,
    pub name: String,
    pub version: String,
    #[serde(flatten)]
    pub kind: TrialKind,
    pub own: Rates,
    /// Of the revision in force, since the trial began; canaries only.
    pub base: Rates,
    /// Shadows only: its answers beside those in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<Report>,
    /// Messages that a shadow was not asked about since there was no time for it.
    pub skipped: u64,
}

impl Trial {
    pub fn new(slot: Arc<str>, active: Arc<Active>, kind: TrialKind) -> Self {
        Trial {
            slot,
            active,
            kind,
            own: Tally::default(),
            base: Tally::default(),
            breaker: Mutex::default(),
            report: Mutex::default(),
            skipped: AtomicU64::new(0),
        }
    }

    /// Whether it decides this message.
    pub fn decides(&self, message: MessageId) -> bool {
        match self.kind {
            TrialKind::Canary { permille } => rollout::in_canary(message, permille),
            TrialKind::Shadow => false,
        }
    }

    pub fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn skipped(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    pub fn status(&self) -> TrialStatus {
        let compared = (self.kind == TrialKind::Shadow).then(|| {
            let mut report = self.report().clone();
            report.finish();
            report
        });
        TrialStatus {
            digest: self.active.digest.to_string(),
            name: self.active.descriptor.name.clone(),
            version: self.active.descriptor.version.clone(),
            kind: self.kind,
            own: self.own.rates(),
            base: self.base.rates(),
            compared,
            skipped: self.skipped.load(Ordering::Relaxed),
        }
    }
}
