//! A clock that moves only when it is told to.

use std::sync::atomic::{AtomicI64, Ordering};

use tidegate_mail::Timestamp;
use tidegate_queue::{Clock, Fut};

pub struct SimClock(AtomicI64);

impl SimClock {
    pub fn new(at: Timestamp) -> Self {
        SimClock(AtomicI64::new(at.as_millis()))
    }

    pub fn set(&self, at: Timestamp) {
        self.0.store(at.as_millis(), Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }

    /// The engine's step never waits; only the limit of a hand-off, which the
    /// simulated transport always beats, asks for this.
    fn sleep_until(&self, at: Timestamp) -> Fut<'_, ()> {
        if at <= self.now() {
            Box::pin(std::future::ready(()))
        } else {
            Box::pin(std::future::pending())
        }
    }
}
