//! A clock that moves only when it is told to.

use std::future::poll_fn;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;

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

    /// The engine's step never waits; only the limit of a hand-off asks for this. Nobody
    /// is woken: a test that moves the clock meanwhile polls again.
    fn sleep_until(&self, at: Timestamp) -> Fut<'_, ()> {
        Box::pin(poll_fn(move |_| {
            if at <= self.now() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }))
    }
}
