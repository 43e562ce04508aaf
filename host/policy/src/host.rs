//! The `Policy` port: which revision is asked, what is done with its answer, and what
//! happens when it has none.
//!
//! Routing never fails: current revision, last good revision, declared fallback, in this
//! order, and the answer says which of them decided. Shaping and export report their fault;
//! the queue then keeps the limits in force, or the cursor where it is.

mod exports;
mod shaping;
mod trials;

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_mail::{Enhanced, Reply, Timestamp, Verdict};
use tidegate_queue::route::{Action, Managed, Occasion, Question, Routing};
use tidegate_queue::shape::{LaneState, Plan};
use tidegate_queue::{Directory, EventRecord, Fut, Payload, Policy, PolicyFault};
use tokio::sync::mpsc;

use crate::answer::Grants;
use crate::aside::Aside;
use crate::engine::{Active, Failure, LoadError, PolicyEngine};
use crate::gate::Gate;
use crate::incident::Incident;
use crate::limits;
use crate::observe::Observer;
use crate::prepare::Prepared;
use crate::rehearse::Rehearsal;
use crate::slots::{Slot, SlotStatus, Slots};
use crate::trial::Trial;
use crate::worlds::{World, v1};

pub use exports::RenderedAside;
pub use shaping::PlannedAside;

/// What decides a message where no revision could.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// 451 4.3.0: the client keeps the message and tries again.
    #[default]
    Defer,
    /// Managed, by the tenant's default relay.
    Managed,
}

#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// For slots that don't declare their own.
    pub fallback: Fallback,
    /// Keep decisions of tenants who do not object, for rehearsals.
    pub record: bool,
}

/// A revision was not activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    #[error("{0:?} is not a slot: routing, routing/TENANT, shaping or export/NAME")]
    NoSuchSlot(String),
    #[error("slot {slot} runs a {expected}; revision {digest} is a {found}")]
    WrongWorld {
        slot: String,
        expected: World,
        found: World,
        digest: String,
    },
    #[error(
        "slot {0}: of a canary the receiver would get two formats; an export policy is tried as a shadow"
    )]
    NoCanary(String),
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// All policies of a gateway.
pub struct PolicyHost {
    engine: PolicyEngine,
    directory: Arc<ArcSwap<Directory>>,
    slots: ArcSwap<Slots>,
    /// One change at a time.
    changing: Mutex<()>,
    gate: Gate,
    /// For calls without effect, of shadows and rehearsals: they get as much again, and take nothing
    /// from the decisions.
    aside: Arc<Gate>,
    options: HostOptions,
    observer: Observer,
    plans_aside: Aside<PlannedAside>,
    batches_aside: Aside<RenderedAside>,
    incidents: mpsc::UnboundedSender<Incident>,
    told: Mutex<Option<mpsc::UnboundedReceiver<Incident>>>,
}

impl PolicyHost {
    pub fn new(
        engine: PolicyEngine,
        directory: Arc<ArcSwap<Directory>>,
        options: HostOptions,
    ) -> Self {
        let (incidents, told) = mpsc::unbounded_channel();
        PolicyHost {
            engine,
            directory,
            slots: ArcSwap::default(),
            changing: Mutex::default(),
            gate: Gate::default(),
            aside: Arc::default(),
            options,
            observer: Observer::default(),
            plans_aside: Aside::new(limits::PLANS_ASIDE),
            batches_aside: Aside::new(limits::BATCHES_ASIDE),
            incidents,
            told: Mutex::new(Some(told)),
        }
    }

    pub fn engine(&self) -> &PolicyEngine {
        &self.engine
    }

    /// Puts a revision in force; the next call of the slot is its. What was active before
    /// stays loaded as the last good one, unless its breaker is open. A trial ends by it.
    pub fn activate(&self, slot: &str, prepared: &Prepared) -> Result<(), ActivateError> {
        let current = self.load_for(slot, prepared)?;
        let now = self.engine.uptime_ms();
        let trial = self.slots.load().trial_of(slot).cloned();
        let inherited = trial
            .filter(|trial| trial.active.digest == current.digest)
            .and_then(|trial| trial.leaves());
        self.change(slot, |before| {
            let last_good = before.and_then(|slot| {
                if slot.current.digest == current.digest || slot.breaker().is_open() {
                    slot.last_good.clone()
                } else {
                    Some(slot.current.clone())
                }
            });
            let fallback = before.map_or(self.options.fallback, |slot| slot.fallback);
            let rates = before
                .filter(|slot| slot.current.digest != current.digest)
                .map(|slot| slot.tally.rates());
            Some(Slot {
                before: rates,
                probation_until: now + limits::PROBATION_MS,
                inherited: Mutex::new(inherited),
                ..Slot::new(
                    slot.into(),
                    current.clone(),
                    last_good.filter(|a| a.digest != current.digest),
                    fallback,
                )
            })
        });
        self.withdraw(slot);
        tracing::info!(slot, digest = %prepared.digest, policy = %prepared.descriptor.name, "policy activated");
        Ok(())
    }

    /// Puts a revision in force as it was before a restart: with what it would fall back to, and
    /// what is left of its probation.
    pub fn restore(
        &self,
        slot: &str,
        prepared: &Prepared,
        last_good: Option<&Prepared>,
        active_for: std::time::Duration,
    ) -> Result<(), ActivateError> {
        let current = self.load_for(slot, prepared)?;
        let last_good = last_good.map(|p| self.load_for(slot, p)).transpose()?;
        let spent = u64::try_from(active_for.as_millis()).unwrap_or(u64::MAX);
        let left = limits::PROBATION_MS.saturating_sub(spent);
        let until = if left == 0 {
            0
        } else {
            self.engine.uptime_ms() + left
        };
        self.change(slot, |_| {
            Some(Slot {
                probation_until: until,
                ..Slot::new(slot.into(), current, last_good, self.options.fallback)
            })
        });
        Ok(())
    }

    /// A revision for a slot of its world: as it is loaded already, or loaded now.
    fn load_for(&self, slot: &str, prepared: &Prepared) -> Result<Arc<Active>, ActivateError> {
        let world =
            World::of_slot(slot).ok_or_else(|| ActivateError::NoSuchSlot(slot.to_owned()))?;
        if world != prepared.world {
            return Err(ActivateError::WrongWorld {
                slot: slot.to_owned(),
                expected: world,
                found: prepared.world,
                digest: prepared.digest.clone(),
            });
        }
        match self.loaded(&prepared.digest) {
            Some(active) => Ok(active),
            None => Ok(Arc::new(self.engine.load(prepared)?)),
        }
    }

    /// Loads a revision for a rehearsal of what a slot was asked.
    pub fn rehearsal(&self, slot: &str, prepared: &Prepared) -> Result<Rehearsal, LoadError> {
        let mut rehearsal = Rehearsal::new(
            &self.engine,
            prepared,
            self.directory.load_full(),
            self.aside.clone(),
        )?;
        let tenant = slot.strip_prefix("routing/").unwrap_or_default();
        rehearsal.recorded_headers(self.slots.load().wanted(tenant));
        Ok(rehearsal)
    }

    /// Empties a slot. Returns whether there was something in it.
    pub fn deactivate(&self, slot: &str) -> bool {
        let was = self.slots.load().get(slot).is_some();
        if was {
            self.change(slot, |_| None);
            tracing::info!(slot, "policy deactivated");
        }
        was
    }

    /// Declares what decides where no revision of the slot can. Returns whether the slot is
    /// in use.
    pub fn set_fallback(&self, slot: &str, fallback: Fallback) -> bool {
        let mut found = false;
        self.change(slot, |before| {
            let slot = before?;
            found = true;
            Some(Slot::new(
                slot.name.clone(),
                slot.current.clone(),
                slot.last_good.clone(),
                fallback,
            ))
        });
        found
    }

    /// Digest of the revision in force.
    pub fn active(&self, slot: &str) -> Option<String> {
        self.slots
            .load()
            .get(slot)
            .map(|slot| slot.current.digest.to_string())
    }

    /// Instructions that all calls of the slot's revision took, where they are counted.
    pub(crate) fn fuel(&self, slot: &str) -> u64 {
        self.slots
            .load()
            .get(slot)
            .map_or(0, |slot| slot.current.fuel())
    }

    /// Every slot in use.
    pub fn status(&self) -> Vec<SlotStatus> {
        let slots = self.slots.load();
        let trial = |slot: &str| slots.trial_of(slot).map(|t| t.status());
        let mut all: Vec<SlotStatus> = slots.all().map(|s| s.status(trial(&s.name))).collect();
        all.sort_by(|a, b| a.slot.cmp(&b.slot));
        all
    }

    fn change(&self, name: &str, next: impl FnOnce(Option<&Slot>) -> Option<Slot>) {
        self.change_all(|slots| {
            let slot = next(slots.get(name).map(|slot| &**slot)).map(Arc::new);
            slots.set(name, slot);
        });
    }

    fn change_all(&self, change: impl FnOnce(&mut Slots)) {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slots = Slots::clone(&self.slots.load());
        change(&mut slots);
        self.slots.store(Arc::new(slots));
    }

    /// A revision that some slot has loaded already.
    fn loaded(&self, digest: &str) -> Option<Arc<Active>> {
        self.slots
            .load()
            .all()
            .flat_map(|slot| std::iter::once(&slot.current).chain(&slot.last_good))
            .chain(self.slots.load().trials().map(|trial| &trial.active))
            .find(|active| &*active.digest == digest)
            .cloned()
    }

    async fn decide(&self, question: &Question) -> Routing {
        let (slot, trial) = {
            let slots = self.slots.load();
            (
                slots.routing(&question.tenant).cloned(),
                slots.trial(&question.tenant).cloned(),
            )
        };
        let routing = match &slot {
            None if trial.is_none() => return self.managed(question),
            _ => {
                self.decide_by(slot.as_deref(), trial.as_deref(), question)
                    .await
            }
        };
        self.observe(question, &routing, trial);
        routing
    }

    async fn decide_by(
        &self,
        slot: Option<&Slot>,
        trial: Option<&Trial>,
        question: &Question,
    ) -> Routing {
        let directory = self.directory.load_full();
        let grants = grants(question, &directory);
        let Some(_turn) = self.gate.enter(Some(&question.tenant)).await else {
            let busy = Failure::Busy.to_string();
            return match slot {
                Some(slot) => self.fall_back(slot, question, &busy),
                None => self.managed(question),
            };
        };
        let mut first = None;
        if let Some(trial) = trial
            && trial.decides(question.id)
        {
            match self.decide_by_trial(trial, question, &grants).await {
                Ok(routing) => return routing,
                Err(why) => first = Some(why),
            }
        }
        let mut routing = match slot {
            Some(slot) => self.decide_by_slot(slot, question, &grants).await,
            None => self.managed(question),
        };
        if let Some(trial) = trial
            && first.is_none()
        {
            trial.base.decided(&routing);
        }
        if let Some(why) = first {
            routing.fallback = Some(match routing.fallback {
                None => format!("revision in force: the canary failed: {why}"),
                Some(fallback) => format!("{fallback}; the canary failed: {why}"),
            });
        }
        routing
    }

    async fn decide_by_slot(
        &self,
        slot: &Slot,
        question: &Question,
        grants: &Grants<'_>,
    ) -> Routing {
        let mut why = "it failed again and again".to_owned();
        if slot.breaker().allows(self.engine.uptime_ms()) {
            let answer = match v1::decide(&self.engine, &slot.current, question, grants).await {
                Err(Failure::Temporary(text)) => Ok(not_now(&slot.current, question, text)),
                answer => answer,
            };
            match answer {
                Ok(routing) => {
                    slot.breaker().succeeded();
                    slot.tally.decided(&routing);
                    self.judge(slot);
                    return routing;
                }
                Err(failure) => {
                    slot.tally.failed();
                    why = self.failed(slot, &failure);
                }
            }
        }
        // A tenant's first revision has none before it but the operator's.
        let spare = self.slots.load().spare(slot).cloned();
        if let Some(last_good) = slot.last_good.as_ref().or(spare.as_ref()) {
            match v1::decide(&self.engine, last_good, question, grants).await {
                Ok(routing) => {
                    return Routing {
                        fallback: Some(format!("last good revision: {why}")),
                        ..routing
                    };
                }
                Err(Failure::Temporary(text)) => return not_now(last_good, question, text),
                Err(failure) => {
                    last_good.count_failure();
                    why = format!("{why}; last good revision: {failure}");
                }
            }
        }
        self.fall_back(slot, question, &why)
    }

    /// Notes a failure of the current revision; returns it in words.
    fn failed(&self, slot: &Slot, failure: &Failure) -> String {
        slot.current.count_failure();
        let now = self.engine.uptime_ms();
        let opened = slot.breaker().failed(now);
        tracing::warn!(
            slot = %slot.name,
            digest = %slot.current.digest,
            breaker_opened = opened,
            "policy failed: {failure}"
        );
        if (opened || slot.tally.rates().fails_often()) && now < slot.probation_until {
            self.roll_back(slot, &format!("it failed again and again: {failure}"));
        }
        failure.to_string()
    }

    /// Without any policy: managed, by the tenant's default relay.
    fn managed(&self, question: &Question) -> Routing {
        Routing::all(
            Action::Managed(Managed {
                class: question.class,
                ..Managed::default()
            }),
            question.envelope.recipients.len(),
        )
    }

    fn fall_back(&self, slot: &Slot, question: &Question, why: &str) -> Routing {
        let routing = match slot.fallback {
            Fallback::Managed => self.managed(question),
            Fallback::Defer => Routing::all(
                Action::Defer(Reply::new(
                    451,
                    Enhanced::new(4, 3, 0),
                    "the routing policy is not available, try again later",
                )),
                question.envelope.recipients.len(),
            ),
        };
        Routing {
            fallback: Some(why.to_owned()),
            ..routing
        }
    }

    /// One call of a slot that is not about a message of a tenant.
    async fn ask<R>(
        &self,
        slot: Option<Arc<Slot>>,
        call: impl AsyncFnOnce(&Arc<Active>) -> Result<R, Failure>,
    ) -> Result<R, PolicyFault> {
        let slot = slot.ok_or(PolicyFault::Inactive)?;
        let Some(_turn) = self.gate.enter(None).await else {
            return Err(PolicyFault::Temporary(Failure::Busy.to_string()));
        };
        if !slot.breaker().allows(self.engine.uptime_ms()) {
            // Not the fault of what is asked now.
            return Err(PolicyFault::Temporary(
                "it failed again and again, and is left alone for a while".to_owned(),
            ));
        }
        match call(&slot.current).await {
            Ok(answer) => {
                slot.breaker().succeeded();
                slot.tally.answered();
                Ok(answer)
            }
            Err(Failure::Temporary(text)) => Err(PolicyFault::Temporary(text)),
            Err(failure) => {
                slot.tally.failed();
                Err(PolicyFault::Broken(self.failed(&slot, &failure)))
            }
        }
    }
}

fn grants<'a>(question: &'a Question, directory: &'a Directory) -> Grants<'a> {
    Grants {
        tenant: &question.tenant,
        directory,
        class: question.class,
        no_passthrough: matches!(question.occasion, Occasion::PassthroughFailed(_)),
    }
}

/// The policy itself wants the message later.
fn not_now(active: &Active, question: &Question, text: String) -> Routing {
    let text = if text.trim().is_empty() {
        "the routing policy can't decide now".to_owned()
    } else {
        text
    };
    Routing {
        policy: Some(active.digest.clone()),
        ..Routing::all(
            Action::Defer(Reply::new(451, Enhanced::new(4, 3, 0), text)),
            question.envelope.recipients.len(),
        )
    }
}

impl Policy for PolicyHost {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        Box::pin(self.gate.metered(
            &question.tenant,
            question.envelope.recipients.len(),
            self.decide(question),
        ))
    }

    fn plan(
        &self,
        now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        Box::pin(self.plan_lanes(now, state, lanes))
    }

    fn render<'a>(
        &'a self,
        exporter: &'a str,
        batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>> {
        Box::pin(self.render_batch(exporter, batch))
    }

    fn wanted_headers(&self, tenant: &str) -> Arc<[String]> {
        self.slots.load().wanted(tenant).clone()
    }

    fn attempted(&self, tenant: &str, policy: &str, verdict: Verdict) {
        self.note_attempt(tenant, policy, verdict);
    }
}
