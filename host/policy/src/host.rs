//! The `Policy` port: which revision is asked, what is done with its answer, and what
//! happens when it has none.
//!
//! Routing never fails: current revision, last good revision, declared fallback, in this
//! order, and the answer says which of them decided. Shaping and export report their fault;
//! the queue then keeps the limits in force, or the cursor where it is.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_mail::{Enhanced, Reply, Timestamp};
use tidegate_queue::route::{Action, Managed, Occasion, Question, Routing};
use tidegate_queue::shape::{LaneState, Plan};
use tidegate_queue::{Directory, EventRecord, Fut, Payload, Policy, PolicyFault};

use crate::answer::Grants;
use crate::engine::{Active, Failure, LoadError, PolicyEngine};
use crate::gate::Gate;
use crate::limits;
use crate::prepare::Prepared;
use crate::slots::{Slot, SlotStatus, Slots};
use crate::worlds::{World, v1};

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
    options: HostOptions,
    nothing_wanted: Arc<[String]>,
}

impl PolicyHost {
    pub fn new(
        engine: PolicyEngine,
        directory: Arc<ArcSwap<Directory>>,
        options: HostOptions,
    ) -> Self {
        PolicyHost {
            engine,
            directory,
            slots: ArcSwap::default(),
            changing: Mutex::default(),
            gate: Gate::default(),
            options,
            nothing_wanted: Arc::default(),
        }
    }

    pub fn engine(&self) -> &PolicyEngine {
        &self.engine
    }

    /// Puts a revision in force; the next call of the slot is its. What was active before
    /// stays loaded as the last good one, unless its breaker is open.
    pub fn activate(&self, slot: &str, prepared: &Prepared) -> Result<(), ActivateError> {
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
        let loaded = self.loaded(&prepared.digest);
        let current = match loaded {
            Some(active) => active,
            None => Arc::new(self.engine.load(prepared)?),
        };
        self.change(slot, |before| {
            let last_good = before.and_then(|slot| {
                if slot.current.digest == current.digest {
                    return slot.last_good.clone();
                }
                if slot.breaker().is_open() {
                    slot.last_good.clone()
                } else {
                    Some(slot.current.clone())
                }
            });
            let fallback = before.map_or(self.options.fallback, |slot| slot.fallback);
            Some(Slot::new(
                slot.into(),
                current.clone(),
                last_good.filter(|a| a.digest != current.digest),
                fallback,
            ))
        });
        tracing::info!(slot, digest = %prepared.digest, policy = %prepared.descriptor.name, "policy activated");
        Ok(())
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
        let mut all: Vec<SlotStatus> = self.slots.load().all().map(|s| s.status()).collect();
        all.sort_by(|a, b| a.slot.cmp(&b.slot));
        all
    }

    fn change(&self, name: &str, next: impl FnOnce(Option<&Slot>) -> Option<Slot>) {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slots = Slots::clone(&self.slots.load());
        let slot = next(slots.get(name).map(|slot| &**slot)).map(Arc::new);
        slots.set(name, slot);
        self.slots.store(Arc::new(slots));
    }

    /// A revision that some slot has loaded already.
    fn loaded(&self, digest: &str) -> Option<Arc<Active>> {
        self.slots
            .load()
            .all()
            .flat_map(|slot| std::iter::once(&slot.current).chain(&slot.last_good))
            .find(|active| &*active.digest == digest)
            .cloned()
    }

    async fn decide(&self, question: &Question) -> Routing {
        let Some(slot) = self.slots.load().routing(&question.tenant).cloned() else {
            return self.managed(question);
        };
        let directory = self.directory.load_full();
        let grants = Grants {
            tenant: &question.tenant,
            directory: &directory,
            class: question.class,
            no_passthrough: matches!(question.occasion, Occasion::PassthroughFailed(_)),
        };
        let Some(_turn) = self.gate.enter(Some(&question.tenant)).await else {
            return self.fall_back(&slot, question, &Failure::Busy.to_string());
        };
        let mut why = "it failed again and again".to_owned();
        if slot.breaker().allows(self.engine.uptime_ms()) {
            match v1::decide(&self.engine, &slot.current, question, &grants).await {
                Ok(routing) => {
                    slot.breaker().succeeded();
                    return routing;
                }
                Err(Failure::Temporary(text)) => return not_now(&slot.current, question, text),
                Err(failure) => why = self.failed(&slot, &failure),
            }
        }
        if let Some(last_good) = &slot.last_good {
            match v1::decide(&self.engine, last_good, question, &grants).await {
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
        self.fall_back(&slot, question, &why)
    }

    /// Notes a failure of the current revision; returns it in words.
    fn failed(&self, slot: &Slot, failure: &Failure) -> String {
        slot.current.count_failure();
        let opened = slot.breaker().failed(self.engine.uptime_ms());
        tracing::warn!(
            slot = %slot.name,
            digest = %slot.current.digest,
            breaker_opened = opened,
            "policy failed: {failure}"
        );
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
            return Err(PolicyFault::Broken("it failed again and again".to_owned()));
        }
        match call(&slot.current).await {
            Ok(answer) => {
                slot.breaker().succeeded();
                Ok(answer)
            }
            Err(Failure::Temporary(text)) => Err(PolicyFault::Temporary(text)),
            Err(failure) => Err(PolicyFault::Broken(self.failed(&slot, &failure))),
        }
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
        Box::pin(self.gate.metered(&question.tenant, self.decide(question)))
    }

    fn plan(
        &self,
        now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        Box::pin(async move {
            if lanes.len() > limits::LANES {
                return Err(PolicyFault::Broken(format!(
                    "{} lanes in one call; at most {}",
                    lanes.len(),
                    limits::LANES
                )));
            }
            let slot = self.slots.load().shaping().cloned();
            self.ask(slot, async |active| {
                v1::plan(&self.engine, active, now, &state, &lanes).await
            })
            .await
        })
    }

    fn render<'a>(
        &'a self,
        exporter: &'a str,
        batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>> {
        Box::pin(async move {
            if batch.len() > limits::EVENTS {
                return Err(PolicyFault::Broken(format!(
                    "{} events in one call; at most {}",
                    batch.len(),
                    limits::EVENTS
                )));
            }
            let slot = self.slots.load().export(exporter).cloned();
            self.ask(slot, async |active| {
                v1::render(&self.engine, active, batch).await
            })
            .await
        })
    }

    fn wanted_headers(&self, tenant: &str) -> Arc<[String]> {
        self.slots
            .load()
            .routing(tenant)
            .map_or_else(|| self.nothing_wanted.clone(), |slot| slot.headers.clone())
    }
}
