//! Measures, relays and plans: what changes the limits from outside.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_mail::Timestamp;

use super::Scheduler;
use crate::measure::Measure;
use crate::shape::{LanePlan, LaneState, ReplyRules, WaitReason};

impl Scheduler {
    /// Puts a person's measure in force.
    pub fn add_measure(&mut self, measure: Measure) {
        self.measures.retain(|m| m.id != measure.id);
        self.measures.push(measure);
        self.recheck(|reason| matches!(reason, WaitReason::Held | WaitReason::Suspended));
    }

    /// Looks again at queues whose relay was not there or whose tenant's quota was used up.
    pub fn directory_changed(&mut self) {
        self.recheck(|reason| matches!(reason, WaitReason::RelayDown | WaitReason::Quota));
    }

    /// Makes every shaped lane ask its policy again, also one whose answer is under way: that is
    /// of the revision before.
    pub fn replan(&mut self, now: Timestamp) {
        for (_, lane) in self.lanes.iter_mut() {
            if lane.shaped {
                lane.next_plan = now;
                lane.ask_again = lane.asking;
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
            // They are in the order of their numbers.
            let Some(lane) = q.lane.filter(|l| due.binary_search(l).is_ok()) else {
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

    /// Puts the reply rules of a plan in force, for the attempts that begin from now on in lanes
    /// without rules of their own.
    pub fn reads_replies(&mut self, rules: Arc<ReplyRules>) {
        self.temporary = (!rules.rules.is_empty()).then_some(rules);
    }

    /// Puts a plan of a revision on trial in force for one of its lanes, and its rules with it.
    pub fn planned_on_trial(
        &mut self,
        lane: u32,
        plan: Option<LanePlan>,
        by: &Arc<ReplyRules>,
        now: Timestamp,
    ) {
        self.planned(lane, plan, by.policy.as_deref(), now);
        self.lanes[lane as usize].temporary = Some(by.clone());
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
                l.temporary = None;
            }
            None => l.plan_failed(now),
        }
        if std::mem::take(&mut l.ask_again) {
            l.next_plan = now;
        }
        self.enforce(lane, now);
        self.recheck_lane(lane);
    }
}
