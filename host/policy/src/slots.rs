//! Which revision is active where.
//!
//! A slot is immutable but for its breaker: a change makes a new slot and a new map, swapped
//! in at once. A call holds the slot it began with, so it is decided wholly by one revision.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;

use crate::breaker::Breaker;
use crate::engine::Active;
use crate::harm::{Rates, Tally};
use crate::host::Fallback;
use crate::trial::{Trial, TrialStatus};

pub(crate) struct Slot {
    pub name: Arc<str>,
    pub current: Arc<Active>,
    /// What was active before and had not failed; it decides where the current one can't.
    pub last_good: Option<Arc<Active>>,
    pub fallback: Fallback,
    /// What became of what the current one decided, and of what was decided before it.
    pub tally: Tally,
    pub before: Option<Rates>,
    /// Milliseconds of the engine's uptime until which it is rolled back where it fails.
    pub probation_until: u64,
    pub breaker: Mutex<Breaker>,
    /// Of a promoted shaping policy: the state that it goes on with, until it has answered.
    pub inherited: Mutex<Option<Bytes>>,
}

impl Slot {
    pub fn new(
        name: Arc<str>,
        current: Arc<Active>,
        last_good: Option<Arc<Active>>,
        fallback: Fallback,
    ) -> Self {
        Slot {
            name,
            current,
            last_good,
            fallback,
            tally: Tally::default(),
            before: None,
            probation_until: 0,
            breaker: Mutex::default(),
            inherited: Mutex::default(),
        }
    }

    pub fn inherited(&self) -> MutexGuard<'_, Option<Bytes>> {
        self.inherited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self, trial: Option<TrialStatus>) -> SlotStatus {
        let (calls, failures, micros) = self.current.counts();
        SlotStatus {
            slot: self.name.to_string(),
            digest: self.current.digest.to_string(),
            name: self.current.descriptor.name.clone(),
            version: self.current.descriptor.version.clone(),
            last_good: self.last_good.as_ref().map(|a| a.digest.to_string()),
            fallback: self.fallback,
            breaker_open: self.breaker().is_open(),
            calls,
            failures,
            mean_micros: micros.checked_div(calls).unwrap_or(0),
            rates: self.tally.rates(),
            before: self.before,
            trial,
        }
    }
}

/// A slot as operators see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotStatus {
    pub slot: String,
    pub digest: String,
    pub name: String,
    pub version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good: Option<String>,
    pub fallback: Fallback,
    pub breaker_open: bool,
    /// Since this revision was loaded.
    pub calls: u64,
    pub failures: u64,
    /// Mean time of a call, microseconds.
    pub mean_micros: u64,
    /// Since it was activated or the gateway started.
    pub rates: Rates,
    /// Of the revision before it, until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Rates>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialStatus>,
}

/// All slots, as one immutable value.
#[derive(Clone, Default)]
pub(crate) struct Slots {
    /// `routing/TENANT`, by tenant.
    tenants: HashMap<Arc<str>, Arc<Slot>>,
    routing: Option<Arc<Slot>>,
    shaping: Option<Arc<Slot>>,
    /// `export/NAME`, by name.
    exports: HashMap<Arc<str>, Arc<Slot>>,
    /// By the name of the slot.
    trials: HashMap<Arc<str>, Arc<Trial>>,
    /// Header fields that any revision reads which may have to decide: of tenants with a slot or
    /// a trial of their own, and of all others.
    wanted: HashMap<Arc<str>, Arc<[String]>>,
    wanted_of_others: Arc<[String]>,
}

impl Slots {
    /// The slot that routes a tenant's mail: its own, else the operator's.
    pub fn routing(&self, tenant: &str) -> Option<&Arc<Slot>> {
        self.tenants.get(tenant).or(self.routing.as_ref())
    }

    /// What decides a tenant's mail where its own slot can't: the operator's revision.
    pub fn spare(&self, slot: &Slot) -> Option<&Arc<Active>> {
        let operators = self.routing.as_ref()?;
        (slot.name != operators.name && slot.current.digest != operators.current.digest)
            .then_some(&operators.current)
    }

    /// The trial that concerns a tenant's mail: of its own slot, else of the operator's where
    /// that decides.
    pub fn trial(&self, tenant: &str) -> Option<&Arc<Trial>> {
        if self.trials.is_empty() {
            return None;
        }
        match self.trials.get(format!("routing/{tenant}").as_str()) {
            Some(trial) => Some(trial),
            None if self.tenants.contains_key(tenant) => None,
            None => self.trials.get("routing"),
        }
    }

    pub fn trial_of(&self, slot: &str) -> Option<&Arc<Trial>> {
        self.trials.get(slot)
    }

    /// The trial of an exporter's slot.
    pub fn trial_of_export(&self, name: &str) -> Option<&Arc<Trial>> {
        if self.trials.is_empty() {
            return None;
        }
        self.trials.get(format!("export/{name}").as_str())
    }

    pub fn trials(&self) -> impl Iterator<Item = &Arc<Trial>> {
        self.trials.values()
    }

    pub fn wanted(&self, tenant: &str) -> &Arc<[String]> {
        self.wanted.get(tenant).unwrap_or(&self.wanted_of_others)
    }

    pub fn set_trial(&mut self, name: &str, trial: Option<Arc<Trial>>) {
        match trial {
            Some(trial) => self.trials.insert(name.into(), trial),
            None => self.trials.remove(name),
        };
        self.want(name);
    }

    /// Brings the wanted header fields up to date after a change of a slot.
    fn want(&mut self, name: &str) {
        if name == "routing" {
            self.wanted_of_others = self.headers_of(None);
            let tenants: Vec<Arc<str>> = self.wanted.keys().cloned().collect();
            for tenant in tenants {
                let headers = self.headers_of(Some(&tenant));
                self.wanted.insert(tenant, headers);
            }
        } else if let Some(tenant) = name.strip_prefix("routing/") {
            if self.tenants.contains_key(tenant) || self.trials.contains_key(name) {
                let headers = self.headers_of(Some(tenant));
                self.wanted.insert(tenant.into(), headers);
            } else {
                self.wanted.remove(tenant);
            }
        }
    }

    fn headers_of(&self, tenant: Option<&str>) -> Arc<[String]> {
        let own = tenant.and_then(|t| self.tenants.get(t));
        let trial = match tenant {
            Some(tenant) => self.trial(tenant),
            None => self.trials.get("routing"),
        };
        let revisions = own
            .into_iter()
            .chain(&self.routing)
            .flat_map(|slot| std::iter::once(&slot.current).chain(&slot.last_good))
            .chain(trial.map(|t| &t.active));
        let mut headers: Vec<String> = Vec::new();
        for header in revisions.flat_map(|a| &a.descriptor.headers) {
            if !headers.contains(header) {
                headers.push(header.clone());
            }
        }
        headers.into()
    }

    pub fn shaping(&self) -> Option<&Arc<Slot>> {
        self.shaping.as_ref()
    }

    pub fn export(&self, name: &str) -> Option<&Arc<Slot>> {
        self.exports.get(name)
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Slot>> {
        match name.split_once('/') {
            None if name == "routing" => self.routing.as_ref(),
            None if name == "shaping" => self.shaping.as_ref(),
            Some(("routing", tenant)) => self.tenants.get(tenant),
            Some(("export", exporter)) => self.exports.get(exporter),
            _ => None,
        }
    }

    /// Puts a slot in its place, or takes it out. The name must be one of a slot.
    pub fn set(&mut self, name: &str, slot: Option<Arc<Slot>>) {
        fn place(map: &mut HashMap<Arc<str>, Arc<Slot>>, key: &str, slot: Option<Arc<Slot>>) {
            match slot {
                Some(slot) => map.insert(key.into(), slot),
                None => map.remove(key),
            };
        }
        match name.split_once('/') {
            None if name == "routing" => self.routing = slot,
            None if name == "shaping" => self.shaping = slot,
            Some(("routing", tenant)) => place(&mut self.tenants, tenant, slot),
            Some(("export", exporter)) => place(&mut self.exports, exporter, slot),
            _ => {}
        }
        self.want(name);
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.routing
            .iter()
            .chain(self.tenants.values())
            .chain(&self.shaping)
            .chain(self.exports.values())
    }
}
