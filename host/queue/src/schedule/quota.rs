//! Quotas: how many recipients of its bulk mail a tenant may have in any stretch of time.
//!
//! A recipient counts once, when its mail went out or was refused for good; what is being
//! attempted is reserved. So an attempt that is to be made again costs nothing, and the quota
//! is never exceeded. Counts are kept in pieces of the window: each leaves with its newest
//! recipient, up to a piece late and never early.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_mail::{Timestamp, TrafficClass};

use super::{Bench, MAX_BATCH, Scheduler};
use crate::directory::{Directory, Quota};
use crate::shape::WaitReason;

/// Pieces of a window.
const PIECES: u32 = 128;

/// What a tenant used, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaUse {
    pub tenant: String,
    /// Oldest first.
    pub pieces: Vec<Piece>,
}

/// Recipients of a piece of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub from: Timestamp,
    /// The newest of them.
    pub to: Timestamp,
    pub recipients: u32,
}

#[derive(Debug, Default)]
pub(super) struct Quotas {
    tenants: HashMap<Arc<str>, Used>,
}

#[derive(Debug, Default)]
struct Used {
    pieces: VecDeque<Piece>,
    /// In attempts under way.
    reserved: u32,
    /// Queues that wait for what is reserved, with their parking ticket.
    parked: Vec<(u32, u32)>,
    changed: bool,
}

impl Used {
    fn forget(&mut self, window: Duration, now: Timestamp) {
        while self
            .pieces
            .front()
            .is_some_and(|p| p.to.plus(window) <= now)
        {
            self.pieces.pop_front();
        }
    }

    fn sum(&self) -> u32 {
        let sum: u64 = self.pieces.iter().map(|p| u64::from(p.recipients)).sum();
        u32::try_from(sum).unwrap_or(u32::MAX)
    }

    fn count(&mut self, recipients: u32, window: Duration, now: Timestamp) {
        self.changed = true;
        if let Some(last) = self.pieces.back_mut()
            && now.since(last.from) < window / PIECES
        {
            last.recipients = last.recipients.saturating_add(recipients);
            last.to = last.to.max(now);
        } else {
            self.pieces.push_back(Piece {
                from: now,
                to: now,
                recipients,
            });
        }
    }

    /// When there is room for one more, if nothing else is counted.
    fn room_at(&self, quota: Quota) -> Option<Timestamp> {
        let mut left = self.sum();
        for piece in &self.pieces {
            left = left.saturating_sub(piece.recipients);
            if left < quota.recipients {
                return Some(piece.to.plus(quota.window()));
            }
        }
        None
    }
}

impl Scheduler {
    pub fn load_quota_use(&mut self, used: Vec<QuotaUse>) {
        for QuotaUse { tenant, pieces } in used {
            let of = self.quotas.tenants.entry(tenant.into()).or_default();
            of.pieces = pieces.into();
        }
    }

    /// What changed since the last call.
    pub fn changed_quota_use(&mut self) -> Vec<QuotaUse> {
        let changed = self.quotas.tenants.iter_mut().filter(|(_, u)| u.changed);
        changed
            .map(|(tenant, used)| {
                used.changed = false;
                QuotaUse {
                    tenant: tenant.to_string(),
                    pieces: used.pieces.iter().copied().collect(),
                }
            })
            .collect()
    }

    /// The same could not be stored and comes again.
    pub fn quota_use_not_stored(&mut self, used: &[QuotaUse]) {
        for QuotaUse { tenant, .. } in used {
            if let Some(used) = self.quotas.tenants.get_mut(tenant.as_str()) {
                used.changed = true;
            }
        }
    }

    /// How many recipients count against a tenant's quota now.
    pub fn quota_used(&mut self, tenant: &str, quota: Quota, now: Timestamp) -> u32 {
        let Some(used) = self.quotas.tenants.get_mut(tenant) else {
            return 0;
        };
        used.forget(quota.window(), now);
        used.sum().saturating_add(used.reserved)
    }

    /// The quota that a queue's mail is under.
    fn quota_of(&self, queue: u32, directory: &Directory) -> Option<Quota> {
        let key = &self.queues[queue as usize].key;
        if key.class != TrafficClass::Bulk {
            return None;
        }
        directory.tenant(&key.tenant)?.bulk_quota
    }

    /// How many recipients may go in a batch, and what they are counted under; `None`: none,
    /// and the queue is parked.
    pub(super) fn within_quota(
        &mut self,
        queue: u32,
        directory: &Directory,
        now: Timestamp,
    ) -> Option<(usize, Option<Quota>)> {
        let Some(quota) = self.quota_of(queue, directory) else {
            return Some((MAX_BATCH, None));
        };
        let tenant = self.queues[queue as usize].key.tenant.clone();
        let used = self.quotas.tenants.entry(tenant.clone()).or_default();
        used.forget(quota.window(), now);
        let sum = used.sum();
        let room = quota
            .recipients
            .saturating_sub(sum.saturating_add(used.reserved));
        if room > 0 {
            return Some((MAX_BATCH.min(room as usize), Some(quota)));
        }
        // What is reserved may yet come free.
        let until = match sum < quota.recipients {
            true => None,
            false => used.room_at(quota),
        };
        let ticket = self.park(queue, WaitReason::Quota, until, Bench::Time);
        if until.is_none()
            && let Some(used) = self.quotas.tenants.get_mut(&tenant)
        {
            used.parked.push((queue, ticket));
        }
        None
    }

    pub(super) fn reserve(&mut self, tenant: &Arc<str>, recipients: u32) {
        if let Some(used) = self.quotas.tenants.get_mut(tenant) {
            used.reserved = used.reserved.saturating_add(recipients);
        }
    }

    /// Of `reserved` recipients these count, and the others are to be tried again.
    pub(super) fn count_used(
        &mut self,
        tenant: &Arc<str>,
        quota: Quota,
        reserved: u32,
        recipients: u32,
        now: Timestamp,
    ) {
        let Some(used) = self.quotas.tenants.get_mut(tenant) else {
            return;
        };
        used.reserved = used.reserved.saturating_sub(reserved);
        if recipients > 0 {
            used.forget(quota.window(), now);
            used.count(recipients, quota.window(), now);
        }
        for (queue, ticket) in std::mem::take(&mut used.parked) {
            self.unpark(queue, ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: Timestamp = Timestamp::from_secs(1_000_000);

    proptest! {
        /// In no stretch of the window's length is there more than the quota, and what it
        /// says of room is so: never early, and at most a piece late.
        #[test]
        fn a_quota_is_never_exceeded_and_room_comes_in_time(
            recipients in 1u32..40,
            window in 60u32..100_000,
            steps in prop::collection::vec((0u64..20_000, 1u32..10), 1..200),
        ) {
            let quota = Quota { recipients, window_secs: window };
            let mut used = Used::default();
            let mut sent: Vec<(Timestamp, u32)> = Vec::new();
            let mut now = T0;
            for (wait, want) in steps {
                now = now.plus(Duration::from_secs(wait));
                used.forget(quota.window(), now);
                let room = quota.recipients.saturating_sub(used.sum());
                if room == 0 {
                    let at = used.room_at(quota).expect("there will be room");
                    prop_assert!(at > now);
                    let mut later = Used { pieces: used.pieces.clone(), ..Used::default() };
                    later.forget(quota.window(), at);
                    prop_assert!(later.sum() < quota.recipients);
                    let piece = quota.window() / PIECES;
                    let oldest = sent.iter().find(|(t, _)| t.plus(quota.window() + piece) > now);
                    prop_assert!(oldest.is_some(), "nothing is held by what is long gone");
                } else {
                    let count = want.min(room);
                    used.count(count, quota.window(), now);
                    sent.push((now, count));
                }
                let within: u32 = sent
                    .iter()
                    .filter(|(t, _)| t.plus(quota.window()) > now)
                    .map(|(_, n)| n)
                    .sum();
                prop_assert!(within <= quota.recipients, "{within}");
                prop_assert!(used.pieces.len() <= PIECES as usize + 2);
            }
        }
    }
}
