//! Keeping up: with what the policy host rolled back by itself, with decisions that are to be kept,
//! and with what another gateway on the same database changed.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::Timestamp;
use tidegate_policy::{Incident, Observed, PolicyHost, TrialKind};
use tidegate_queue::rollout::{self, GATEWAY, SlotState};
use tidegate_queue::{Activation, Clock, DecisionRow, Purpose, Step, StoreError, StoreResult};

use tokio::task::JoinSet;

use super::{Aside, News, Policies, trial_of};
use crate::host::GatewayHost;

/// How often the registry is asked whether it changed, and decisions are written.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Decisions written in one transaction.
const BATCH: usize = 256;
/// How often what is past its time is dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Until it is dropped.
pub async fn keep(host: Arc<GatewayHost>) {
    let policies = &host.policies;
    let news = policies
        .news
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    let Some(News {
        mut incidents,
        mut observed,
        aside,
    }) = news
    else {
        return;
    };
    // They end with this task.
    let _aside = ask_aside(policies.host.clone(), aside);
    let mut unwritten: Vec<Incident> = Vec::new();
    let mut rows: Vec<DecisionRow> = Vec::new();
    let mut seen = policies.registry.version().await.unwrap_or(0);
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut swept = Timestamp::from_millis(0);
    loop {
        tokio::select! {
            biased;
            Some(incident) = incidents.recv() => {
                if incident.slot == "shaping" {
                    // The lanes that it planned are the other revision's now.
                    host.engine.replan();
                }
                unwritten.push(incident);
                policies.write_incidents(&mut unwritten).await;
            }
            _ = look.tick() => {
                policies.write_incidents(&mut unwritten).await;
                policies.write_rows(&mut rows).await;
                // What is not written down yet would be undone.
                if unwritten.is_empty() && let Ok(version) = policies.registry.version().await
                    && version != seen
                {
                    match follow(&host).await {
                        Ok(()) => seen = version,
                        Err(error) => tracing::warn!(%error, "a change of the registry could not be followed; trying again"),
                    }
                }
                let now = policies.clock.now();
                if now.since(swept) >= SWEEP_EVERY {
                    swept = now;
                    policies.sweep(now).await;
                }
            }
            Some(decision) = observed.recv() => {
                policies.observed(decision, &mut rows).await;
                if rows.len() >= BATCH {
                    policies.write_rows(&mut rows).await;
                }
            }
        }
    }
}

/// Asks shadows of the operator's policies. Each in a task of its own, since plans and batches take
/// longer than decisions, and none is to hold up another.
fn ask_aside(host: Arc<PolicyHost>, aside: Aside) -> JoinSet<()> {
    let Aside {
        mut planned,
        mut rendered,
    } = aside;
    let mut tasks = JoinSet::new();
    let planning = host.clone();
    tasks.spawn(async move {
        while let Some(plan) = planned.recv().await {
            planning.plan_aside(plan).await;
        }
    });
    tasks.spawn(async move {
        while let Some(batch) = rendered.recv().await {
            host.render_aside(batch).await;
        }
    });
    tasks
}

/// Takes over what another gateway changed.
async fn follow(host: &GatewayHost) -> StoreResult<()> {
    use tidegate_admin::Host;
    host.directory_changed().await?;
    let (replan, done) = host.policies.follow().await?;
    if replan {
        host.engine.replan();
    }
    done
}

impl Policies {
    /// Brings the host to what the history says. Returns whether lanes are planned by another
    /// revision now, and an error where some slot could not follow.
    async fn follow(&self) -> StoreResult<(bool, StoreResult<()>)> {
        let _one = self.changing.lock().await;
        let history = self.registry.activations().await?;
        let mut states = rollout::slots(&history);
        for status in self.host.status() {
            states.entry(status.slot).or_default();
        }
        for (slot, _) in self.host.trials() {
            states.entry(slot).or_default();
        }
        let mut replan = false;
        let mut done = Ok(());
        for (slot, state) in states {
            if !self.is_served(&slot) {
                continue;
            }
            match self.follow_slot(&slot, &state).await {
                Ok(changed) => replan |= changed && slot == "shaping",
                // The others are none the worse for it.
                Err(error) => {
                    done = Err(StoreError::Failed(format!(
                        "the slot {slot} could not follow: {error}"
                    )));
                }
            }
        }
        Ok((replan, done))
    }

    /// Brings one slot to its state. Returns whether another revision decides now, or a part of it.
    async fn follow_slot(&self, slot: &str, state: &SlotState) -> Result<bool, String> {
        let wanted = state.in_force.as_ref().map(|a| a.digest.as_str());
        let mut changed = wanted != self.host.active(slot).as_deref();
        if changed {
            match wanted {
                Some(digest) => {
                    let prepared = self.prepared(digest).await?;
                    self.host
                        .activate(slot, &prepared)
                        .map_err(|e| e.to_string())?;
                }
                None => {
                    self.host.deactivate(slot);
                }
            }
        }
        let trials = self.host.trials();
        let on_trial = trials
            .iter()
            .find(|(name, _)| *name == slot)
            .map(|(_, t)| (t.digest.as_str(), t.kind));
        let is_canary =
            |trial: Option<(&str, TrialKind)>| matches!(trial, Some((_, TrialKind::Canary { .. })));
        let wanted = trial_of(state);
        changed |= wanted != on_trial && (is_canary(wanted) || is_canary(on_trial));
        match wanted {
            wanted if wanted == on_trial => {}
            Some((digest, kind)) => {
                let prepared = self.prepared(digest).await?;
                self.host
                    .try_out(slot, &prepared, kind)
                    .map_err(|e| e.to_string())?;
            }
            None => {
                self.host.withdraw(slot);
            }
        }
        Ok(changed)
    }

    /// Writes down what is in force already. What can't be written stays, for the next time.
    async fn write_incidents(&self, unwritten: &mut Vec<Incident>) {
        while let Some(incident) = unwritten.first() {
            let change = Activation {
                seq: 0,
                slot: incident.slot.clone(),
                digest: incident.digest.clone(),
                step: incident.step,
                purpose: Some(Purpose::RollBack),
                at: self.clock.now(),
                by: GATEWAY.to_owned(),
                note: format!("instead of {:.12}", incident.failed),
                cause: Some(incident.cause.clone()),
            };
            match self.registry.activate(change.clone()).await {
                Ok(()) => {
                    // A canary is withdrawn from beside what is in force.
                    let before = match incident.step {
                        Step::Withdraw => self.host.active(&incident.slot),
                        _ => Some(incident.failed.clone()),
                    };
                    self.changes.tell(&change, before.as_deref());
                }
                // Its tenant is gone meanwhile: there is nothing to write it to.
                Err(StoreError::Conflict(_)) => {}
                Err(error) => {
                    tracing::error!(%error, slot = incident.slot, "a roll-back could not be written down; trying again");
                    return;
                }
            }
            unwritten.remove(0);
        }
    }

    async fn observed(&self, decision: Observed, rows: &mut Vec<DecisionRow>) {
        if decision.keep {
            let record = decision.record();
            if let Ok(body) = serde_json::to_string(&record) {
                rows.push(DecisionRow {
                    id: 0,
                    tenant: record.tenant,
                    at: record.now,
                    body,
                });
            }
        }
        self.host.shadow(&decision).await;
    }

    async fn write_rows(&self, rows: &mut Vec<DecisionRow>) {
        if rows.is_empty() {
            return;
        }
        // They are for rehearsals: what can't be written is let go.
        if let Err(error) = self.registry.keep_decisions(std::mem::take(rows)).await {
            tracing::warn!(%error, "decisions could not be kept for rehearsals");
        }
    }

    async fn sweep(&self, now: Timestamp) {
        let swept = self
            .registry
            .sweep_decisions(now.minus(self.kept.inputs), self.kept.inputs_per_tenant)
            .await;
        if let Err(error) = swept {
            tracing::warn!(%error, "old decisions could not be dropped");
        }
        if let Err(error) = self.sweep_revisions(now).await {
            tracing::warn!(%error, "old revisions could not be dropped");
        }
    }

    pub(super) async fn sweep_revisions(&self, now: Timestamp) -> StoreResult<()> {
        let _one = self.changing.lock().await;
        let history = self.registry.activations().await?;
        let uploads = self.registry.uploads().await?;
        let keep_from = now.minus(self.kept.log);
        let kept = rollout::kept(&history, &uploads, keep_from, self.kept.revisions);
        for revision in self.registry.revisions().await? {
            if !kept.contains(&revision.digest) {
                self.registry
                    .remove_revision(revision.digest.clone())
                    .await?;
                self.workshop.cache.remove(&revision.digest);
                tracing::info!(
                    digest = revision.digest,
                    "an old policy revision was dropped"
                );
            }
        }
        Ok(())
    }
}
