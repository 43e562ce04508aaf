//! Asking the shaping policy: when a lane is new, its plan's time is over, or its trigger fired.

use bytes::Bytes;

use super::Engine;
use crate::ports::PolicyFault;
use crate::shape::ReplyRules;

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
                let mut scheduler = self.schedule();
                scheduler.reads_replies(ReplyRules {
                    rules: plan.temporary,
                    policy: plan.policy.clone(),
                });
                let mut plans = plan.lanes.into_iter();
                for lane in &numbers {
                    scheduler.planned(*lane, plans.next(), plan.policy.as_deref(), now);
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
