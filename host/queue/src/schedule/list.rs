//! Listings of the schedule for people, and picking entries out of it by query.

use std::collections::BinaryHeap;

use tidegate_mail::Timestamp;

use super::{Entry, Phase, Queue, SMARTHOST_SITE, Scheduler, Status, Ticket};
use crate::control::{LaneEntry, QueueEntry, QueueQuery};
use crate::shape::WaitReason;

/// Entries picked in one go by [`Scheduler::pick`].
const MAX_PICK: usize = 10_000;

impl Scheduler {
    /// Entries that match, those that move next first.
    pub fn list(&self, query: &QueueQuery) -> Vec<QueueEntry> {
        let limit = match query.limit {
            0 => 100,
            n => (n as usize).min(10_000),
        };
        // The heap keeps the `limit` smallest: its top is the one to be pushed out.
        let mut first: BinaryHeap<(Timestamp, usize)> = BinaryHeap::with_capacity(limit + 1);
        for (slot, entry) in &self.entries {
            if self.matches(entry, query) {
                first.push((entry.due, slot));
                if first.len() > limit {
                    first.pop();
                }
            }
        }
        first
            .into_sorted_vec()
            .into_iter()
            .map(|(_, slot)| self.describe(&self.entries[slot]))
            .collect()
    }

    /// Takes up to 10,000 matching entries that are not in flight.
    pub fn pick(&mut self, query: &QueueQuery) -> Vec<Ticket> {
        let slots: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, e)| e.phase != Phase::Taken && self.matches(e, query))
            .map(|(slot, _)| slot as u32)
            .take(MAX_PICK)
            .collect();
        slots.into_iter().map(|slot| self.ticket(slot)).collect()
    }

    pub fn lanes(&self) -> Vec<LaneEntry> {
        let mut lanes: Vec<LaneEntry> = self
            .lanes
            .iter()
            .filter(|(_, l)| l.backlog > 0 || l.in_flight > 0 || l.policy.is_some())
            .map(|(_, l)| LaneEntry {
                key: l.key.clone(),
                backlog: l.backlog,
                in_flight: l.in_flight,
                limits: l.limits.clone(),
                policy: l.policy.clone(),
                backoff_until: self
                    .sites
                    .iter()
                    .find(|(_, s)| {
                        *s.name == *l.key.site && *s.relay == *l.key.relay && s.failures > 0
                    })
                    .map(|(_, s)| s.backoff_until),
            })
            .collect();
        lanes.sort_by(|a, b| a.key.cmp(&b.key));
        lanes
    }

    fn matches(&self, entry: &Entry, query: &QueueQuery) -> bool {
        let queue = &self.queues[entry.queue as usize];
        query.message.is_none_or(|m| m == entry.id.message)
            && query
                .tenant
                .as_deref()
                .is_none_or(|t| t == &*queue.key.tenant)
            && query
                .domain
                .as_deref()
                .is_none_or(|d| d.eq_ignore_ascii_case(&queue.key.domain))
            && query
                .relay
                .as_deref()
                .is_none_or(|r| r == &*queue.key.relay)
            && query.site.as_deref().is_none_or(|s| {
                queue
                    .site
                    .is_some_and(|at| s == &*self.sites[at as usize].name)
            })
    }

    fn describe(&self, entry: &Entry) -> QueueEntry {
        let queue = &self.queues[entry.queue as usize];
        let site = queue.site.map(|at| &*self.sites[at as usize].name);
        let (reason, next) = why(entry, queue, site);
        QueueEntry {
            id: entry.id,
            tenant: queue.key.tenant.to_string(),
            domain: queue.key.domain.to_string(),
            class: queue.key.class,
            relay: queue.key.relay.to_string(),
            site: site.map(str::to_owned),
            attempts: entry.attempts,
            due: entry.due,
            expires_at: entry.expires_at,
            reason,
            next: next.map(|at| at.min(entry.expires_at)),
            address: None,
            sender: None,
            last: None,
        }
    }
}

/// Why an entry waits, and until when where that is known.
fn why(
    entry: &Entry,
    queue: &Queue,
    site: Option<&str>,
) -> (Option<WaitReason>, Option<Timestamp>) {
    match (entry.phase, queue.status) {
        (Phase::Taken, _) => (None, None),
        (Phase::Waiting, _) => (Some(WaitReason::RetrySchedule), Some(entry.due)),
        (Phase::Ready, Status::Parked { reason, until, .. }) => {
            let relay = site.is_some_and(|s| s.starts_with(SMARTHOST_SITE));
            let reason = match reason {
                // The one host of that site is the relay.
                WaitReason::SiteBackoff if relay => WaitReason::RelayDown,
                reason => reason,
            };
            (Some(reason), until)
        }
        // Its turn comes when a delivery of another queue ends.
        (Phase::Ready, Status::Idle | Status::InRing) => (Some(WaitReason::Concurrency), None),
    }
}
