//! Which revision is active where.
//!
//! A slot is immutable but for its breaker: a change makes a new slot and a new map, swapped
//! in at once. A call holds the slot it began with, so it is decided wholly by one revision.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::breaker::Breaker;
use crate::engine::Active;
use crate::host::Fallback;

pub(crate) struct Slot {
    pub name: Arc<str>,
    pub current: Arc<Active>,
    /// What was active before and had not failed; it decides where the current one can't.
    pub last_good: Option<Arc<Active>>,
    pub fallback: Fallback,
    /// Header fields that either revision reads.
    pub headers: Arc<[String]>,
    breaker: Mutex<Breaker>,
}

impl Slot {
    pub fn new(
        name: Arc<str>,
        current: Arc<Active>,
        last_good: Option<Arc<Active>>,
        fallback: Fallback,
    ) -> Self {
        let mut headers = current.descriptor.headers.clone();
        for header in last_good.iter().flat_map(|a| &a.descriptor.headers) {
            if !headers.contains(header) {
                headers.push(header.clone());
            }
        }
        Slot {
            name,
            current,
            last_good,
            fallback,
            headers: headers.into(),
            breaker: Mutex::default(),
        }
    }

    pub fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self) -> SlotStatus {
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
        }
    }
}

/// A slot as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
}

impl Slots {
    /// The slot that routes a tenant's mail: its own, else the operator's.
    pub fn routing(&self, tenant: &str) -> Option<&Arc<Slot>> {
        self.tenants.get(tenant).or(self.routing.as_ref())
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
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.routing
            .iter()
            .chain(self.tenants.values())
            .chain(&self.shaping)
            .chain(self.exports.values())
    }
}
