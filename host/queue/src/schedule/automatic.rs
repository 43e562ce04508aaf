//! Automatic measures: what a plan does to its lane beyond the ordinary, and what is done to a
//! site that does not answer. Each is a row that people see and may lift, and that a start takes
//! up again; what has changed of them waits here to be stored.
//!
//! A lifted measure of a policy stands in its policy's way: until its end, plans of the same
//! kind for the lane are kept but not put in force. Without this the next plan would put the
//! measure back at once. A site's measure ends when it is lifted; a new failure begins a new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::Timestamp;

use super::{Scheduler, Status};
use crate::measure::{Effect, Measure, Scope, Setter, id_of};
use crate::shape::{LaneKey, Limits, WaitReason};

/// How long an automatic measure that is over is kept for a lane or site without mail.
const KEPT: Duration = Duration::from_secs(3600);
/// Characters of a reply in a cause.
const MAX_CAUSE: usize = 400;

#[derive(Debug, Default)]
pub(super) struct Automatic {
    lanes: HashMap<LaneKey, OfLane>,
    /// By relay and site.
    sites: HashMap<(Arc<str>, Arc<str>), Measure>,
    /// Not stored yet; `None`: to be removed.
    changed: HashMap<String, Option<Measure>>,
}

#[derive(Debug, Default)]
struct OfLane {
    now: Option<Measure>,
    /// Lifted, and standing in the way of plans; at most one of each effect.
    lifted: Vec<Measure>,
}

impl OfLane {
    fn overrides(&self, effect: Effect) -> bool {
        self.lifted.iter().any(|m| m.effect == effect)
    }
}

impl Automatic {
    fn put(&mut self, measure: &Measure) {
        self.changed
            .insert(measure.id.clone(), Some(measure.clone()));
    }

    fn all(&self) -> impl Iterator<Item = &Measure> {
        let of_lanes = self
            .lanes
            .values()
            .flat_map(|l| l.now.iter().chain(&l.lifted));
        of_lanes.chain(self.sites.values())
    }
}

/// What limits do beyond the ordinary.
pub(super) fn effect_of(limits: &Limits, now: Timestamp) -> Option<Effect> {
    if limits.paused_until.is_some_and(|until| until > now) || limits.connections == 0 {
        Some(Effect::Suspend)
    } else {
        limits.cause.is_some().then_some(Effect::Slow)
    }
}

/// Limits without what was lifted. `ordinary` are those of the lane when all is well.
fn relieved(planned: &Limits, ordinary: &Limits, effect: Effect) -> Limits {
    let mut limits = planned.clone();
    limits.paused_until = None;
    match effect {
        Effect::Slow => {
            limits.rate = ordinary.rate;
            limits.burst = ordinary.burst;
            limits.connections = ordinary.connections;
            limits.messages_per_connection = ordinary.messages_per_connection;
            limits.cause = None;
        }
        Effect::Suspend | Effect::Hold if limits.connections == 0 => {
            limits.connections = ordinary.connections;
        }
        Effect::Suspend | Effect::Hold => {}
    }
    limits
}

impl Scheduler {
    /// Takes up what the store has. Called once, before there is any mail.
    pub fn load_measures(&mut self, measures: Vec<Measure>, now: Timestamp) {
        for measure in measures {
            match measure.by {
                Setter::Operator => {
                    if measure.in_force(now) {
                        self.measures.push(measure);
                    }
                }
                Setter::Policy => {
                    let Some(key) = measure.scope.lane_key() else {
                        continue;
                    };
                    if measure.overrides(now) {
                        let of = self.automatic.lanes.entry(key).or_default();
                        of.lifted.push(measure);
                    } else if measure.lifted.is_none() {
                        self.automatic.lanes.entry(key).or_default().now = Some(measure);
                    }
                }
                Setter::Host => {
                    if measure.lifted.is_none()
                        && let (Some(relay), Some(site)) =
                            (&measure.scope.relay, &measure.scope.site)
                    {
                        let key = (relay.as_str().into(), site.as_str().into());
                        self.automatic.sites.insert(key, measure);
                    }
                }
            }
        }
    }

    /// Measures in force and those that were lifted and still stand in a plan's way: people's
    /// first.
    pub fn measures(&self, now: Timestamp) -> Vec<Measure> {
        let mut all: Vec<Measure> = self
            .measures
            .iter()
            .chain(self.automatic.all())
            .filter(|m| m.in_force(now) || m.overrides(now))
            .cloned()
            .collect();
        all.sort_by(|a, b| (a.by as u8, &a.id).cmp(&(b.by as u8, &b.id)));
        all
    }

    pub fn measure(&self, id: &str) -> Option<&Measure> {
        let mut all = self.measures.iter().chain(self.automatic.all());
        all.find(|m| m.id == id)
    }

    /// What is to be stored and, by id, removed. Comes back through
    /// [`Scheduler::not_stored`] where that failed.
    pub fn changed_measures(&mut self) -> (Vec<Measure>, Vec<String>) {
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        for (id, measure) in self.automatic.changed.drain() {
            match measure {
                Some(measure) => put.push(measure),
                None => gone.push(id),
            }
        }
        (put, gone)
    }

    pub fn not_stored(&mut self, put: Vec<Measure>, gone: Vec<String>) {
        let changed = &mut self.automatic.changed;
        for measure in put {
            changed.entry(measure.id.clone()).or_insert(Some(measure));
        }
        for id in gone {
            changed.entry(id).or_insert(None);
        }
    }

    /// Lets go what measures suspended: `measure` is a known one, marked as lifted.
    pub fn lift(&mut self, measure: Measure, now: Timestamp) {
        self.automatic.changed.remove(&measure.id);
        match measure.by {
            Setter::Operator => {
                self.measures.retain(|m| m.id != measure.id);
                self.recheck(|reason| matches!(reason, WaitReason::Held | WaitReason::Suspended));
            }
            Setter::Policy => {
                let Some(key) = measure.scope.lane_key() else {
                    return;
                };
                let of = self.automatic.lanes.entry(key.clone()).or_default();
                of.now.take_if(|m| m.id == measure.id);
                of.lifted.retain(|m| m.effect != measure.effect);
                of.lifted.push(measure);
                if let Some(lane) = self.lane_of.get(&key).copied() {
                    self.enforce(lane, now);
                    self.recheck_lane(lane);
                }
            }
            Setter::Host => {
                let (Some(relay), Some(site)) = (&measure.scope.relay, &measure.scope.site) else {
                    return;
                };
                let key: (Arc<str>, Arc<str>) = (relay.as_str().into(), site.as_str().into());
                self.automatic.sites.remove(&key);
                if let Some(site) = self.site_of.get(&key) {
                    let s = &mut self.sites[*site as usize];
                    s.failures = 0;
                    s.backoff_until = Timestamp(i64::MIN);
                    self.recheck(|reason| reason == WaitReason::SiteBackoff);
                }
            }
        }
    }

    /// Forgets automatic measures that are long over and that no mail has asked about since.
    pub fn prune_measures(&mut self, now: Timestamp) {
        let over = now.minus(KEPT);
        let old = |m: &Measure| m.until.is_some_and(|until| until < over);
        let Automatic {
            lanes,
            sites,
            changed,
        } = &mut self.automatic;
        lanes.retain(|_, of| {
            if let Some(measure) = of.now.take_if(|m| old(m)) {
                changed.insert(measure.id, None);
            }
            of.lifted.retain(|m| m.overrides(now));
            of.now.is_some() || !of.lifted.is_empty()
        });
        sites.retain(|_, measure| {
            if old(measure) {
                changed.insert(measure.id.clone(), None);
            }
            !old(measure)
        });
        self.measures.retain(|m| m.in_force(now));
    }

    /// Puts the lane's plan in force, but for what a person lifted, and keeps its row.
    pub(super) fn enforce(&mut self, lane: u32, now: Timestamp) {
        let l = &mut self.lanes[lane as usize];
        let Some(planned) = &l.plan else { return };
        let limits = &planned.plan.limits;
        let effect = effect_of(limits, now);
        let of = match self.automatic.lanes.get_mut(&l.key) {
            Some(of) => of,
            None if effect.is_none() => {
                let limits = limits.clone();
                l.limit(limits, now);
                return;
            }
            None => self.automatic.lanes.entry(l.key.clone()).or_default(),
        };
        of.lifted.retain(|m| m.overrides(now));
        for lifted in of.lifted.iter().filter_map(|m| m.lifted.as_ref()) {
            // When it no longer stands in the way, the policy is asked what is to be.
            l.next_plan = l.next_plan.min(lifted.until.unwrap_or(l.next_plan));
        }
        let ordinary = planned
            .ordinary
            .as_ref()
            .unwrap_or(&self.bounds.default_limits);
        let (limits, effect) = match effect {
            Some(effect) if of.overrides(effect) => {
                let mut limits = relieved(limits, ordinary, effect);
                if effect == Effect::Suspend && of.overrides(Effect::Slow) {
                    limits = relieved(&limits, ordinary, Effect::Slow);
                }
                (limits, None)
            }
            effect => (limits.clone(), effect),
        };
        let row = effect.map(|effect| {
            let scope = Scope::of_lane(&l.key);
            let begun = of.now.as_ref().filter(|m| m.effect == effect);
            let since = begun.map_or(planned.at, |m| m.since);
            let id = begun.map_or_else(|| id_of("p", &scope, effect, since), |m| m.id.clone());
            let plan_ends = planned.at.plus(Duration::from_secs(u64::from(limits.ttl)));
            let until = match limits.paused_until {
                Some(until) if effect == Effect::Suspend && until > now => until,
                _ => plan_ends,
            };
            Measure {
                until: Some(until),
                by: Setter::Policy,
                plan: Some(Box::new(planned.clone())),
                ..Measure::new(id, scope, effect, &l.cause(&limits), since)
            }
        });
        if of.now != row {
            if let Some(before) = &of.now
                && row.as_ref().is_none_or(|r| r.id != before.id)
            {
                self.automatic.changed.insert(before.id.clone(), None);
            }
            if let Some(row) = &row {
                self.automatic
                    .changed
                    .insert(row.id.clone(), Some(row.clone()));
            }
            of.now = row;
        }
        l.limit(limits, now);
    }

    /// A lane that begins takes up what was in force before the start. A plan whose time is over
    /// holds no longer: the policy is asked before the first message goes.
    pub(super) fn take_up(&mut self, lane: u32, now: Timestamp) {
        let l = &mut self.lanes[lane as usize];
        let of = self.automatic.lanes.get(&l.key);
        let Some(measure) = of.and_then(|of| of.now.as_ref()) else {
            return;
        };
        let Some(planned) = &measure.plan else { return };
        l.take_up(planned);
        if measure.in_force(now) {
            self.enforce(lane, now);
        }
    }

    /// Failures and back-off of a site that begins.
    pub(super) fn site_before(&self, key: &(Arc<str>, Arc<str>)) -> (u32, Timestamp) {
        let measure = self.automatic.sites.get(key);
        let until = measure.and_then(|m| m.until);
        (
            measure.map_or(0, |m| m.failures),
            until.unwrap_or(Timestamp(i64::MIN)),
        )
    }

    /// The site was backed off, or answers again.
    pub(super) fn note_site(&mut self, site: u32, cause: Option<String>, now: Timestamp) {
        let s = &self.sites[site as usize];
        let key = (s.relay.clone(), s.name.clone());
        let before = self.automatic.sites.remove(&key);
        if s.failures == 0 {
            if let Some(before) = before {
                self.automatic.changed.insert(before.id, None);
                self.alarm = true;
            }
            return;
        }
        let scope = Scope {
            relay: Some(s.relay.to_string()),
            site: Some(s.name.to_string()),
            ..Scope::default()
        };
        let since = before.as_ref().map_or(now, |m| m.since);
        let id = before.map_or_else(|| id_of("s", &scope, Effect::Suspend, since), |m| m.id);
        let cause: String = cause
            .unwrap_or_else(|| "no host answers".to_owned())
            .chars()
            .take(MAX_CAUSE)
            .collect();
        let measure = Measure {
            until: Some(s.backoff_until),
            by: Setter::Host,
            failures: s.failures,
            ..Measure::new(id, scope, Effect::Suspend, &cause, since)
        };
        self.automatic.put(&measure);
        self.automatic.sites.insert(key, measure);
        self.alarm = true;
    }

    /// Looks again at queues that wait for a reason.
    pub(super) fn recheck(&mut self, concerned: impl Fn(WaitReason) -> bool) {
        let parked: Vec<(u32, u32)> = self
            .queues
            .iter()
            .filter_map(|(at, q)| match q.status {
                Status::Parked { reason, ticket, .. } if concerned(reason) => {
                    Some((at as u32, ticket))
                }
                _ => None,
            })
            .collect();
        for (queue, ticket) in parked {
            self.unpark(queue, ticket);
        }
    }

    /// Looks again at the queues of a lane that wait for what its limits allow.
    pub(super) fn recheck_lane(&mut self, lane: u32) {
        let retry_after: Arc<[u32]> = self.lanes[lane as usize].limits.retry_after.clone().into();
        let mut parked = Vec::new();
        for (at, q) in self.queues.iter_mut().filter(|(_, q)| q.lane == Some(lane)) {
            q.retry_after = retry_after.clone();
            if let Status::Parked {
                reason: WaitReason::Rate | WaitReason::Concurrency | WaitReason::Suspended,
                ticket,
                ..
            } = q.status
            {
                parked.push((at as u32, ticket));
            }
        }
        self.lanes[lane as usize].parked.clear();
        for (queue, ticket) in parked {
            self.unpark(queue, ticket);
        }
    }
}
