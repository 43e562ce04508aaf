//! Measures, relays and plans: what changes the limits from outside.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_mail::Timestamp;

use super::{Scheduler, Status};
use crate::shape::{LanePlan, LaneState, Measure, ReplyRules, WaitReason};

impl Scheduler {
    /// Replaces the measures in force; everything they parked is looked at anew.
    pub fn set_measures(&mut self, measures: Vec<Measure>) {
        self.measures = measures;
        let parked: Vec<(u32, u32)> = self
            .queues
            .iter()
            .filter_map(|(at, q)| match q.status {
                Status::Parked {
                    reason: WaitReason::Held | WaitReason::Suspended,
                    ticket,
                    ..
                } => Some((at as u32, ticket)),
                _ => None,
            })
            .collect();
        for (queue, ticket) in parked {
            self.unpark(queue, ticket);
        }
    }

    /// Looks again at queues whose relay was not there.
    pub fn recheck_relays(&mut self) {
        let parked: Vec<(u32, u32)> = self
            .queues
            .iter()
            .filter_map(|(at, q)| match q.status {
                Status::Parked {
                    reason: WaitReason::RelayDown,
                    ticket,
                    ..
                } => Some((at as u32, ticket)),
                _ => None,
            })
            .collect();
        for (queue, ticket) in parked {
            self.unpark(queue, ticket);
        }
    }

    pub fn measures(&self) -> &[Measure] {
        &self.measures
    }

    /// Makes every shaped lane ask its policy again.
    pub fn replan(&mut self, now: Timestamp) {
        for (_, lane) in self.lanes.iter_mut() {
            if lane.shaped {
                lane.next_plan = now;
            }
        }
        self.ring_by(now);
    }

    /// Up to 256 lanes whose plan is due, with what the policy may know of them.
    pub fn lanes_to_plan(&mut self, now: Timestamp) -> Vec<(u32, LaneState)> {
        let mut due: Vec<u32> = self
            .lanes
            .iter()
            .filter(|(_, l)| {
                l.shaped && !l.asking && l.next_plan <= now && (l.backlog > 0 || l.in_flight > 0)
            })
            .map(|(at, _)| at as u32)
            .collect();
        due.truncate(256);
        let mut oldest: HashMap<u32, Timestamp> = HashMap::new();
        for (_, q) in &self.queues {
            let Some(lane) = q.lane.filter(|l| due.contains(l)) else {
                continue;
            };
            for (slot, _) in q.fresh.front().into_iter().chain(q.retried.front()) {
                if let Some(entry) = self.entries.get(*slot as usize) {
                    let at = entry.id.message.given_at();
                    oldest
                        .entry(lane)
                        .and_modify(|o| *o = (*o).min(at))
                        .or_insert(at);
                }
            }
        }
        due.into_iter()
            .map(|at| {
                let lane = &mut self.lanes[at as usize];
                lane.asking = true;
                let age = oldest.get(&at).map_or(0, |o| now.since(*o).as_secs());
                (at, lane.state(u32::try_from(age).unwrap_or(u32::MAX), now))
            })
            .collect()
    }

    /// Puts the reply rules of a plan in force, for the attempts that begin from now on.
    pub fn reads_replies(&mut self, rules: ReplyRules) {
        self.temporary = (!rules.rules.is_empty()).then(|| Arc::new(rules));
    }

    /// Puts a plan in force, or, without one, leaves the lane as it is for now.
    pub fn planned(
        &mut self,
        lane: u32,
        plan: Option<LanePlan>,
        policy: Option<&str>,
        now: Timestamp,
    ) {
        let most = self.bounds.max_site_connections;
        let l = &mut self.lanes[lane as usize];
        match plan {
            Some(mut plan) => {
                // None at all: the lane waits for its next plan.
                plan.limits.connections = plan.limits.connections.min(most);
                plan.limits.messages_per_connection = plan.limits.messages_per_connection.max(1);
                l.apply(plan, policy.map(str::to_owned), now);
            }
            None => l.plan_failed(now),
        }
        let retry_after: Arc<[u32]> = l.limits.retry_after.clone().into();
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
