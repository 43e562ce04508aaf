//! A revision on trial beside the one in force: a canary or a shadow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use serde::Serialize;
use tidegate_mail::MessageId;
use tidegate_queue::rollout;
use tidegate_queue::shape::LaneKey;

use crate::breaker::Breaker;
use crate::compare::{Compared, Report, batches, lanes};
use crate::engine::Active;
use crate::harm::{Rates, Tally};
use crate::worlds::World;

/// What a trial decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum TrialKind {
    /// This share of the messages, or of the lanes, in thousandths.
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
    lanes: Mutex<lanes::Report>,
    batches: Mutex<batches::Report>,
    /// The last event that an export policy was shown, or skipped.
    shown: AtomicU64,
    /// The state of a shaping policy's last answer; at most 64 KiB. Before that it has the one in
    /// force.
    state: Mutex<Option<Bytes>>,
    skipped: AtomicU64,
}

/// Where a lane stands on the scale of shares: by its key alone, the same on every gateway and
/// after every restart.
fn place_of(lane: &LaneKey) -> u64 {
    let mut bytes = Vec::with_capacity(128);
    let parts = [&lane.tenant, lane.class.as_str(), &lane.relay, &lane.site];
    for part in parts.into_iter().chain(lane.lane.as_deref()) {
        // With their lengths: no two keys are written the same.
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&digest(&SHA256, &bytes).as_ref()[..8]);
    u64::from_le_bytes(first)
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
    pub compared: Option<Compared>,
    /// Messages, calls about lanes or events that a shadow was not asked about since there was no
    /// time for it.
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
            lanes: Mutex::default(),
            batches: Mutex::default(),
            shown: AtomicU64::new(0),
            state: Mutex::default(),
            skipped: AtomicU64::new(0),
        }
    }

    /// Keeps the state of a canary where only its share changes.
    pub fn going_on_from(self, before: &Trial) -> Self {
        let same = before.active.digest == self.active.digest;
        if same && before.is_canary() && self.is_canary() {
            *self.state() = before.state().clone();
        }
        self
    }

    pub fn is_canary(&self) -> bool {
        matches!(self.kind, TrialKind::Canary { .. })
    }

    /// Whether it plans this lane. What a smaller share plans a larger one plans too.
    pub fn plans(&self, lane: &LaneKey) -> bool {
        match self.kind {
            TrialKind::Canary { permille } => place_of(lane) % 1000 < u64::from(permille),
            TrialKind::Shadow => false,
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

    pub fn lanes(&self) -> MutexGuard<'_, lanes::Report> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> MutexGuard<'_, Option<Bytes>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state that a promotion puts in force: that of a canary which planned most lanes.
    pub fn leaves(&self) -> Option<Bytes> {
        match self.kind {
            TrialKind::Canary { permille: 501.. } => self.state().clone(),
            _ => None,
        }
    }

    pub fn batches(&self) -> MutexGuard<'_, batches::Report> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these events are new to it: a batch that was not taken is rendered again.
    pub fn shows(&self, first: u64, last: u64) -> bool {
        self.shown.fetch_max(last, Ordering::Relaxed) < first
    }

    pub fn skipped(&self) {
        self.skipped_many(1);
    }

    pub fn skipped_many(&self, number: usize) {
        self.skipped.fetch_add(number as u64, Ordering::Relaxed);
    }

    pub fn status(&self) -> TrialStatus {
        let compared = (self.kind == TrialKind::Shadow).then(|| match self.active.world {
            World::RoutingPolicy => {
                let mut report = self.report().clone();
                report.finish();
                Compared::Messages(report)
            }
            World::ShapingPolicy => {
                let mut report = self.lanes().clone();
                report.finish();
                Compared::Lanes(report)
            }
            World::LogExporter => {
                let mut report = self.batches().clone();
                report.finish();
                Compared::Batches(report)
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use tidegate_mail::TrafficClass;

    fn lane(tenant: &str, site: &str, lane: Option<&str>) -> LaneKey {
        LaneKey {
            tenant: tenant.to_owned(),
            class: TrafficClass::Bulk,
            relay: "mx".to_owned(),
            site: site.to_owned(),
            lane: lane.map(str::to_owned),
        }
    }

    #[test]
    fn a_lane_has_the_same_place_in_every_version_and_no_other_lane_has_it() {
        assert_eq!(
            place_of(&lane("acme", "x.test", None)),
            0x8af7_d6a7_334e_4ec1
        );
        let keys = [
            lane("acme", "x.test", None),
            lane("acm", "ex.test", None),
            lane("acme", "x.test", Some("")),
            lane("acme", "x.test", Some("spring")),
        ];
        let places: HashSet<u64> = keys.iter().map(place_of).collect();
        assert_eq!(places.len(), keys.len());
    }
}
