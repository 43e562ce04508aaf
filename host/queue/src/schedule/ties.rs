//! Which site and lane a queue is tied to, and when these are forgotten.
//!
//! The number of a site or lane is good for as long as anything refers to it: queues that are
//! tied to it, deliveries that were begun on it, a question to the policy that is under way.
//! Only what nothing refers to is forgotten, so a number is never used for two.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tidegate_mail::{Timestamp, TrafficClass};

use super::lane::Lane;
use super::{QueueKey, Scheduler, Site};
use crate::shape::LaneKey;

/// Sites and lanes, together, that are kept beside those in use.
const IDLE_PLACES: usize = 4096;
/// Sub-queues that a tenant's routing policy may have with mail in them at the same time. Each
/// costs as much memory as several recipients, and the policy names them as it likes.
pub(super) const MAX_SUB_QUEUES: usize = 256;

/// The sub-queues of each tenant, and how many queues each has.
#[derive(Debug, Default)]
pub(super) struct SubQueues {
    of_tenant: HashMap<u32, HashMap<Arc<str>, u32>>,
}

impl SubQueues {
    /// Whether there is room for another queue of that name; it is counted then.
    pub fn admit(&mut self, tenant: u32, name: &Arc<str>) -> bool {
        let names = self.of_tenant.entry(tenant).or_default();
        let full = names.len() >= MAX_SUB_QUEUES;
        match names.get_mut(name) {
            Some(queues) => *queues += 1,
            None if full => return false,
            None => {
                names.insert(name.clone(), 1);
            }
        }
        true
    }

    /// Whether queues without mail are to make room for others.
    pub fn crowded(&self, tenant: u32) -> bool {
        let names = self.of_tenant.get(&tenant);
        names.is_some_and(|names| names.len() > MAX_SUB_QUEUES / 2)
    }

    fn leave(&mut self, tenant: u32, name: &Arc<str>) {
        let Some(names) = self.of_tenant.get_mut(&tenant) else {
            return;
        };
        if let Some(queues) = names.get_mut(name) {
            *queues -= 1;
            if *queues == 0 {
                names.remove(name);
            }
        }
        if names.is_empty() {
            self.of_tenant.remove(&tenant);
        }
    }
}

impl Scheduler {
    /// Ties a queue to its site and lane.
    pub(super) fn assign(&mut self, queue: u32, site: Arc<str>, now: Timestamp) {
        if self.sites.len() + self.lanes.len() > self.most_places {
            self.forget_places(now);
        }
        let key = self.queues[queue as usize].key.clone();
        let site_at = self.site_at(&key, &site);
        let lane_at = self.lane_at(&key, &site, now);
        self.sites[site_at as usize].queues += 1;
        self.lanes[lane_at as usize].queues += 1;
        let q = &mut self.queues[queue as usize];
        let (entries, before) = (q.entries, (q.site, q.lane));
        q.site = Some(site_at);
        q.lane = Some(lane_at);
        if before.1 != Some(lane_at) {
            let retry_after = &self.lanes[lane_at as usize].limits.retry_after;
            q.retry_after = retry_after.clone().into();
        }
        self.lanes[lane_at as usize].backlog += entries;
        self.untie(before, entries);
    }

    fn site_at(&mut self, key: &QueueKey, site: &Arc<str>) -> u32 {
        let site_key = (key.relay.clone(), site.clone());
        if let Some(at) = self.site_of.get(&site_key) {
            return *at;
        }
        let (failures, backoff_until) = self.site_before(&site_key);
        let at = self.sites.insert(Site {
            relay: key.relay.clone(),
            name: site.clone(),
            queues: 0,
            in_flight: 0,
            failures,
            backoff_until,
            parked: VecDeque::new(),
        }) as u32;
        self.site_of.insert(site_key, at);
        at
    }

    fn lane_at(&mut self, key: &QueueKey, site: &Arc<str>, now: Timestamp) -> u32 {
        let lane_key = LaneKey {
            tenant: key.tenant.to_string(),
            class: key.class,
            relay: key.relay.to_string(),
            site: site.to_string(),
            lane: key.lane.as_deref().map(str::to_owned),
        };
        if let Some(at) = self.lane_of.get(&lane_key) {
            return *at;
        }
        let shaped = key.class == TrafficClass::Bulk;
        let limits = self.bounds.default_limits.clone();
        let lane = Lane::new(lane_key.clone(), shaped, limits, now);
        let at = self.lanes.insert(lane) as u32;
        self.lane_of.insert(lane_key, at);
        if shaped {
            self.take_up(at, now);
            self.ring_by(now);
        }
        at
    }

    fn untie(&mut self, (site, lane): (Option<u32>, Option<u32>), entries: u32) {
        if let Some(site) = site {
            self.sites[site as usize].queues -= 1;
        }
        if let Some(lane) = lane {
            let lane = &mut self.lanes[lane as usize];
            lane.queues -= 1;
            lane.backlog -= entries;
        }
    }

    /// Removes a queue that has no entries, is in no ring and has nothing out.
    pub(super) fn remove_queue(&mut self, queue: u32) {
        let q = self.queues.remove(queue as usize);
        self.queue_of.remove(&q.key);
        self.untie((q.site, q.lane), q.entries);
        if let Some(name) = &q.key.lane {
            self.sub_queues.leave(q.tenant, name);
        }
    }

    /// Forgets the sites and lanes that nothing refers to, if there are many in all.
    pub fn forget_places(&mut self, now: Timestamp) {
        if self.sites.len() + self.lanes.len() > IDLE_PLACES {
            self.forget_idle(now);
            // Often enough that memory stays in proportion, too seldom to cost much.
            self.most_places = 2 * (self.sites.len() + self.lanes.len()) + IDLE_PLACES;
        }
    }

    /// What a policy or a failure did to a lane or site is a measure and outlives this; a lane
    /// that its rate holds back stays, so that none is exceeded.
    pub(super) fn forget_idle(&mut self, now: Timestamp) {
        let Scheduler {
            lanes,
            lane_of,
            sites,
            site_of,
            ..
        } = self;
        lanes.retain(|_, lane| {
            let used = lane.queues > 0 || lane.in_flight > 0 || lane.asking;
            let keep = used || !lane.is_rested(now);
            if !keep {
                lane_of.remove(&lane.key);
            }
            keep
        });
        sites.retain(|_, site| {
            let keep = site.queues > 0 || site.in_flight > 0;
            if !keep {
                site_of.remove(&(site.relay.clone(), site.name.clone()));
            }
            keep
        });
    }
}
