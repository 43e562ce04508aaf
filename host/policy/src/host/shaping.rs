//! Shaping: which revision plans which lane, and the plans of a shadow beside those in force.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_mail::Timestamp;
use tidegate_queue::PolicyFault;
use tidegate_queue::shape::{CanaryLanes, LanePlan, LaneState, Plan};
use tokio::sync::mpsc;

use super::PolicyHost;
use crate::engine::Failure;
use crate::limits;
use crate::trial::{Trial, TrialKind};
use crate::worlds::v1::{self, Planned};

/// A call about lanes that was answered, for the shadow.
pub struct PlannedAside {
    trial: Arc<Trial>,
    now: Timestamp,
    /// In force before the call.
    state: Bytes,
    lanes: Vec<LaneState>,
    plans: Vec<Option<LanePlan>>,
}

impl PolicyHost {
    /// Calls about lanes that are to be shown to a shadow. Can be taken once.
    pub fn planned_aside(&self) -> Option<mpsc::Receiver<PlannedAside>> {
        self.plans_aside.receiver()
    }

    /// Every lane is planned by the canary that it falls to, else, and where that fails, by the
    /// revision in force.
    pub(super) async fn plan_lanes(
        &self,
        now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Result<Plan, PolicyFault> {
        if lanes.len() > limits::LANES {
            return Err(PolicyFault::Broken(format!(
                "{} lanes in one call; at most {}",
                lanes.len(),
                limits::LANES
            )));
        }
        let (slot, trial) = {
            let slots = self.slots.load();
            (slots.shaping().cloned(), slots.trial_of("shaping").cloned())
        };
        for lane in &lanes {
            let by = lane.planned_by.as_deref();
            // What was counted under the limits of others is none of theirs.
            if let Some(trial) = trial.as_ref().filter(|t| by == Some(&t.active.digest)) {
                trial.own.counted(&lane.recent);
            }
            if let Some(slot) = slot.as_ref().filter(|s| by == Some(&s.current.digest)) {
                slot.tally.counted(&lane.recent);
                if let Some(trial) = &trial {
                    trial.base.counted(&lane.recent);
                }
            }
        }
        let mut plan = Plan {
            lanes: vec![None; lanes.len()],
            state: state.clone(),
            rules: None,
            canary: None,
        };
        let inherited = slot.as_ref().and_then(|slot| slot.inherited().clone());
        let state = inherited.unwrap_or(state);
        if let Some(trial) = &trial {
            plan.canary = self
                .plan_by_canary(trial, now, &state, &lanes, &mut plan.lanes)
                .await;
        }
        let rest: Vec<usize> = (0..lanes.len())
            .filter(|place| plan.lanes[*place].is_none())
            .collect();
        let mut fault = None;
        if !rest.is_empty() {
            let theirs: Vec<&LaneState> = rest.iter().map(|place| &lanes[*place]).collect();
            let planned = self
                .ask(slot.clone(), async |active| {
                    v1::plan(&self.engine, active, now, &state, &theirs).await
                })
                .await;
            match planned {
                Ok(planned) => {
                    if let Some(slot) = &slot {
                        *slot.inherited() = None;
                    }
                    for (place, lane) in rest.iter().zip(planned.lanes) {
                        plan.lanes[*place] = Some(lane);
                    }
                    plan.state = planned.state;
                    plan.rules = Some(planned.rules);
                    if let Some(trial) = &trial {
                        trial.base.answered();
                    }
                }
                Err(why) => fault = Some(why),
            }
        }
        let answered = matches!(fault, None | Some(PolicyFault::Inactive));
        if let Some(trial) = trial.filter(|t| t.kind == TrialKind::Shadow && answered) {
            match self.plans_aside.place() {
                Some(place) => place.send(PlannedAside {
                    trial,
                    now,
                    state,
                    lanes,
                    plans: plan.lanes.clone(),
                }),
                None => trial.skipped(),
            }
        }
        match fault {
            Some(fault) if plan.canary.is_none() => Err(fault),
            Some(fault) => {
                // The canary's plans hold all the same.
                if fault != PolicyFault::Inactive {
                    tracing::warn!(%fault, lanes = rest.len(), "no new shaping plan but the canary's");
                }
                Ok(plan)
            }
            None => Ok(plan),
        }
    }

    /// Enters the canary's plans for its lanes. What it leaves, since it is left alone or fails, is
    /// for the revision in force.
    async fn plan_by_canary(
        &self,
        trial: &Trial,
        now: Timestamp,
        state: &Bytes,
        lanes: &[LaneState],
        plans: &mut [Option<LanePlan>],
    ) -> Option<CanaryLanes> {
        let places: BTreeSet<usize> = (0..lanes.len())
            .filter(|place| trial.plans(&lanes[*place].key))
            .collect();
        if places.is_empty() {
            return None;
        }
        let its: Vec<&LaneState> = places.iter().map(|place| &lanes[*place]).collect();
        let planned = self.ask_canary(trial, now, state, &its).await?;
        for (place, lane) in places.iter().zip(planned.lanes) {
            plans[*place] = Some(lane);
        }
        Some(CanaryLanes {
            places,
            rules: planned.rules,
        })
    }

    async fn ask_canary(
        &self,
        trial: &Trial,
        now: Timestamp,
        in_force: &Bytes,
        lanes: &[&LaneState],
    ) -> Option<Planned> {
        if !trial.breaker().allows(self.engine.uptime_ms()) {
            return None;
        }
        let _turn = self.gate.enter(None).await?;
        match self.plan_by_trial(trial, now, in_force, lanes).await {
            Ok(planned) => {
                trial.breaker().succeeded();
                Some(planned)
            }
            Err(Failure::Temporary(text)) => {
                tracing::warn!(slot = %trial.slot, digest = %trial.active.digest, "the canary can't plan now: {text}");
                None
            }
            Err(failure) => {
                self.trial_failed(trial, &failure);
                None
            }
        }
    }

    /// Asks a revision on trial, with the state that is its own.
    async fn plan_by_trial(
        &self,
        trial: &Trial,
        now: Timestamp,
        in_force: &Bytes,
        lanes: &[&LaneState],
    ) -> Result<Planned, Failure> {
        let own = trial.state().clone();
        let state = own.unwrap_or_else(|| in_force.clone());
        let planned = v1::plan(&self.engine, &trial.active, now, &state, lanes).await?;
        *trial.state() = Some(planned.state.clone());
        trial.own.answered();
        Ok(planned)
    }

    /// Asks a shadow about lanes that were planned, and compares.
    pub async fn plan_aside(&self, asked: PlannedAside) {
        let trial = &asked.trial;
        let Some(_turn) = self.aside.enter(None).await else {
            return trial.skipped();
        };
        if !trial.breaker().allows(self.engine.uptime_ms()) {
            return trial.skipped();
        }
        let lanes: Vec<&LaneState> = asked.lanes.iter().collect();
        match self
            .plan_by_trial(trial, asked.now, &asked.state, &lanes)
            .await
        {
            Ok(planned) => {
                trial.breaker().succeeded();
                trial.lanes().answered(
                    asked.now,
                    &asked.lanes,
                    &asked.plans,
                    &planned.lanes,
                    planned.cost_micros,
                );
            }
            Err(failure) => {
                self.shadow_failed(trial);
                trial.lanes().failed(&failure.to_string());
            }
        }
    }
}
