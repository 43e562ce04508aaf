//! Asking the shaping policy: when a lane is new, its plan's time is over, or its trigger fired.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::Engine;
use crate::ports::PolicyFault;

impl Engine {
    /// Asks for all lanes whose plan is due. Returns how many were asked about.
    pub(super) async fn plan_lanes(&self) -> usize {
        let now = self.now();
        let due = self.schedule().lanes_to_plan(now);
        if due.is_empty() {
            return 0;
        }
        let (numbers, states): (Vec<u32>, Vec<_>) = due.into_iter().unzip();
        let (version, state) = match self.parts.store.shaping_state().await {
            Ok(Some((version, state))) => (version, state),
            Ok(None) => (0, Bytes::new()),
            Err(error) => {
                tracing::warn!(%error, "the shaping state could not be read; limits stay as they are");
                self.keep_limits(&numbers);
                return numbers.len();
            }
        };
        match self.parts.policy.plan(now, state.clone(), states).await {
            Ok(plan) => {
                if plan.state != state {
                    match self
                        .parts
                        .store
                        .set_shaping_state(version, plan.state.clone())
                        .await
                    {
                        Ok(true) => {}
                        // Another gateway planned meanwhile; its state stands, our limits hold
                        // until the next time.
                        Ok(false) => {
                            tracing::debug!("shaping state was changed by another gateway")
                        }
                        Err(error) => {
                            tracing::warn!(%error, "the shaping state could not be stored");
                        }
                    }
                }
                let in_force = plan.rules.map(Arc::new);
                let (places, canary) = match plan.canary {
                    Some(canary) => (canary.places, Some(Arc::new(canary.rules))),
                    None => (BTreeSet::new(), None),
                };
                let mut scheduler = self.schedule();
                if let Some(rules) = &in_force {
                    scheduler.reads_replies(rules.clone());
                }
                let mut plans = plan.lanes.into_iter();
                for (place, lane) in numbers.iter().enumerate() {
                    let plan = plans.next().flatten();
                    match canary.as_ref().filter(|_| places.contains(&place)) {
                        Some(canary) => scheduler.planned_on_trial(*lane, plan, canary, now),
                        None => {
                            let policy = in_force.as_ref().and_then(|r| r.policy.as_deref());
                            scheduler.planned(*lane, plan, policy, now);
                        }
                    }
                }
            }
            Err(fault) => {
                if fault != PolicyFault::Inactive {
                    tracing::warn!(%fault, "no new shaping plan; limits stay as they are");
                }
                self.keep_limits(&numbers);
            }
        }
        self.kick();
        numbers.len()
    }

    fn keep_limits(&self, lanes: &[u32]) {
        let now = self.now();
        let mut scheduler = self.schedule();
        for lane in lanes {
            scheduler.planned(*lane, None, None, now);
        }
    }
}
