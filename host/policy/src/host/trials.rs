//! Trials beside what is in force, what they are judged by, and roll-backs by the host itself.

use std::sync::{Arc, PoisonError};

use tidegate_mail::Verdict;
use tidegate_queue::Step;
use tidegate_queue::route::{Occasion, Question, Routing};
use tokio::sync::mpsc;

use super::{ActivateError, PolicyHost, grants, not_now};
use crate::answer::Grants;
use crate::engine::{Active, Failure};
use crate::incident::Incident;
use crate::observe::Observed;
use crate::prepare::Prepared;
use crate::recorded::Answer;
use crate::slots::Slot;
use crate::trial::{Trial, TrialKind, TrialStatus};
use crate::worlds::{World, v1};

impl PolicyHost {
    /// Puts a revision on trial beside the one in force. Its counts begin anew, also where
    /// only the share changes; the state of a shaping policy then goes on.
    pub fn try_out(
        &self,
        slot: &str,
        prepared: &Prepared,
        kind: TrialKind,
    ) -> Result<(), ActivateError> {
        let active = self.load_for(slot, prepared)?;
        if active.world == World::LogExporter && kind != TrialKind::Shadow {
            return Err(ActivateError::NoCanary(slot.to_owned()));
        }
        self.change_all(|slots| {
            let mut trial = Trial::new(slot.into(), active, kind);
            if let Some(before) = slots.trial_of(slot) {
                trial = trial.going_on_from(before);
            }
            slots.set_trial(slot, Some(Arc::new(trial)));
        });
        tracing::info!(slot, digest = %prepared.digest, policy = %prepared.descriptor.name, ?kind, "policy on trial");
        Ok(())
    }

    /// Ends the trial of a slot. Returns whether there was one.
    pub fn withdraw(&self, slot: &str) -> bool {
        let was = self.slots.load().trial_of(slot).is_some();
        if was {
            self.change_all(|slots| slots.set_trial(slot, None));
            tracing::info!(slot, "the trial of a policy ended");
        }
        was
    }

    /// What the host rolled back by itself, as it happens. Can be taken once.
    pub fn incidents(&self) -> Option<mpsc::UnboundedReceiver<Incident>> {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Decisions that are to be kept or shown to a shadow. Can be taken once.
    pub fn observed(&self) -> Option<mpsc::Receiver<Observed>> {
        self.observer.receiver()
    }

    /// Asks a shadow about a decision that was made, and compares.
    pub async fn shadow(&self, observed: &Observed) {
        let Some(trial) = &observed.shadow else {
            return;
        };
        let question = observed.question();
        let Some(_turn) = self.aside.enter(Some(&question.tenant)).await else {
            return trial.skipped();
        };
        if !trial.breaker().allows(self.engine.uptime_ms()) {
            return trial.skipped();
        }
        let directory = self.directory.load_full();
        let grants = grants(question, &directory);
        let answer = self
            .aside
            .metered(
                &question.tenant,
                question.envelope.recipients.len(),
                v1::decide(&self.engine, &trial.active, question, &grants),
            )
            .await;
        let record = observed.record();
        match answer {
            Ok(routing) => {
                trial.own.decided(&routing);
                trial.breaker().succeeded();
                trial.report().answered(&record, &Answer::from(&routing));
            }
            Err(failure) => {
                self.shadow_failed(trial);
                trial.report().failed(&record, &failure.to_string());
            }
        }
    }

    /// Trials of every slot, also of those that are empty.
    pub fn trials(&self) -> Vec<(String, TrialStatus)> {
        let slots = self.slots.load();
        let mut all: Vec<_> = slots
            .trials()
            .map(|t| (t.slot.to_string(), t.status()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    pub(super) async fn decide_by_trial(
        &self,
        trial: &Trial,
        question: &Question,
        grants: &Grants<'_>,
    ) -> Result<Routing, String> {
        if !trial.breaker().allows(self.engine.uptime_ms()) {
            return Err("it failed again and again".to_owned());
        }
        let answer = match v1::decide(&self.engine, &trial.active, question, grants).await {
            Err(Failure::Temporary(text)) => Ok(not_now(&trial.active, question, text)),
            answer => answer,
        };
        match answer {
            Ok(routing) => {
                trial.breaker().succeeded();
                trial.own.decided(&routing);
                self.judge_trial(trial);
                Ok(routing)
            }
            Err(failure) => {
                self.trial_failed(trial, &failure);
                Err(failure.to_string())
            }
        }
    }

    /// Notes a failure of a canary, and withdraws one that fails again and again.
    pub(super) fn trial_failed(&self, trial: &Trial, failure: &Failure) {
        trial.active.count_failure();
        trial.own.failed();
        let opened = trial.breaker().failed(self.engine.uptime_ms());
        tracing::warn!(slot = %trial.slot, digest = %trial.active.digest, "canary failed: {failure}");
        if opened || trial.own.rates().fails_often() {
            self.roll_back_trial(trial, &format!("it failed again and again: {failure}"));
        }
    }

    /// Notes a failure of a shadow, which its breaker keeps to a few.
    pub(super) fn shadow_failed(&self, trial: &Trial) {
        trial.own.failed();
        trial.active.count_failure();
        trial.breaker().failed(self.engine.uptime_ms());
    }

    /// Copies a decision for the record and for a shadow, where either is wanted.
    pub(super) fn observe(
        &self,
        question: &Question,
        routing: &Routing,
        trial: Option<Arc<Trial>>,
    ) {
        let shadow = trial.filter(|t| t.kind == TrialKind::Shadow);
        // The second question says how a tenant's own server answered, and no outcome of a
        // passthrough is kept.
        let wanted = self.options.record
            && !matches!(question.occasion, Occasion::PassthroughFailed(_))
            && self
                .directory
                .load()
                .tenant(&question.tenant)
                .is_none_or(|t| t.record_inputs);
        // Last: what is not kept takes no room from what is.
        let keep = wanted
            && self
                .observer
                .sample(&question.tenant, self.engine.uptime_ms() / 1000);
        if keep || shadow.is_some() {
            self.observer.observe(question, routing, keep, shadow);
        }
    }

    /// Rolls back where a revision on probation does harm.
    pub(super) fn judge(&self, slot: &Slot) {
        if slot.probation_until > 0
            && let Some(before) = &slot.before
            && self.engine.uptime_ms() < slot.probation_until
            && let Some(harm) = slot.tally.rates().harm(before)
        {
            self.roll_back(slot, &harm);
        }
    }

    fn judge_trial(&self, trial: &Trial) {
        if trial.kind != TrialKind::Shadow
            && let Some(harm) = trial.own.rates().harm(&trial.base.rates())
        {
            self.roll_back_trial(trial, &harm);
        }
    }

    /// Puts back what was in force before, at once, and tells of it.
    pub(super) fn roll_back(&self, slot: &Slot, cause: &str) {
        let mut step = None;
        self.change_all(|slots| {
            // Another call may have done it already, or a person something else.
            let Some(now) = slots.get(&slot.name).cloned() else {
                return;
            };
            if now.current.digest != slot.current.digest {
                return;
            }
            if let Some(last_good) = &slot.last_good {
                let digest = last_good.digest.to_string();
                let back = Slot::new(slot.name.clone(), last_good.clone(), None, slot.fallback);
                slots.set(&slot.name, Some(Arc::new(back)));
                step = Some((Step::Activate, digest));
            } else if slots.spare(slot).is_some() {
                slots.set(&slot.name, None);
                step = Some((Step::Vacate, slot.current.digest.to_string()));
            }
        });
        if let Some((step, digest)) = step {
            self.tell(&slot.name, step, digest, &slot.current, cause);
        }
    }

    fn roll_back_trial(&self, trial: &Trial, cause: &str) {
        let mut was = false;
        self.change_all(|slots| {
            was = slots
                .trial_of(&trial.slot)
                .is_some_and(|now| now.active.digest == trial.active.digest);
            if was {
                slots.set_trial(&trial.slot, None);
            }
        });
        if was {
            let digest = trial.active.digest.to_string();
            self.tell(&trial.slot, Step::Withdraw, digest, &trial.active, cause);
        }
    }

    fn tell(&self, slot: &str, step: Step, digest: String, failed: &Active, cause: &str) {
        tracing::error!(slot, digest = %failed.digest, step = step.as_str(), cause, "policy rolled back");
        let incident = Incident {
            slot: slot.to_owned(),
            step,
            digest,
            failed: failed.digest.to_string(),
            cause: cause.to_owned(),
        };
        // Nobody listens: there is no history to write it to either.
        let _ = self.incidents.send(incident);
    }

    /// How the first attempt at a recipient went.
    pub(super) fn note_attempt(&self, tenant: &str, policy: &str, verdict: Verdict) {
        let (slot, trial) = {
            let slots = self.slots.load();
            (slots.routing(tenant).cloned(), slots.trial(tenant).cloned())
        };
        if let Some(trial) = trial {
            let side = if *trial.active.digest == *policy {
                &trial.own
            } else {
                &trial.base
            };
            side.attempted(verdict);
            // Whichever side completes the sample.
            self.judge_trial(&trial);
        }
        if let Some(slot) = slot
            && *slot.current.digest == *policy
        {
            slot.tally.attempted(verdict);
            if verdict != Verdict::Delivered {
                self.judge(&slot);
            }
        }
    }
}
