//! What was learnt about an address a while ago.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Addresses remembered at most. Beyond that the memory starts anew: it only saves time.
const MAX: usize = 10_000;

/// A set of addresses that forgets.
pub struct Memory {
    until: Mutex<HashMap<SocketAddr, Instant>>,
    /// So that the usual case, nothing remembered, costs no lock.
    len: AtomicUsize,
    span: Duration,
}

impl Memory {
    pub fn new(span: Duration) -> Self {
        Memory {
            until: Mutex::default(),
            len: AtomicUsize::new(0),
            span,
        }
    }

    fn until(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    pub fn add(&self, peer: SocketAddr, now: Instant) {
        if self.span.is_zero() {
            return;
        }
        let mut until = self.until();
        if until.len() >= MAX {
            until.clear();
        }
        until.insert(peer, now + self.span);
        self.len.store(until.len(), Ordering::Relaxed);
    }

    pub fn has(&self, peer: &SocketAddr, now: Instant) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut until = self.until();
        let live = until.get(peer).is_some_and(|t| *t > now);
        if !live && until.remove(peer).is_some() {
            self.len.store(until.len(), Ordering::Relaxed);
        }
        live
    }

    pub fn forget(&self, peer: &SocketAddr) {
        if self.is_empty() {
            return;
        }
        let mut until = self.until();
        until.remove(peer);
        self.len.store(until.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_in_time_and_when_told() {
        let memory = Memory::new(Duration::from_secs(10));
        let now = Instant::now();
        let (a, b) = (
            "192.0.2.1:25".parse().unwrap(),
            "192.0.2.2:25".parse().unwrap(),
        );
        memory.add(a, now);
        memory.add(b, now);
        assert!(memory.has(&a, now) && memory.has(&b, now));
        memory.forget(&b);
        assert!(!memory.has(&b, now));
        assert!(!memory.has(&a, now + Duration::from_secs(10)));
        assert!(memory.is_empty());
    }
}
