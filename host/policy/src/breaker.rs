//! Keeps a policy that fails again and again from being asked at all.
//!
//! Time is milliseconds of any monotonic clock, given by the caller.

use crate::limits::{BREAKER_FAILURES, BREAKER_HALF_OPEN_MS, BREAKER_WINDOW_MS};

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Times of the last failures, oldest first.
    failures: Vec<u64>,
    /// While open: when it opened or last let a call through.
    open_since: Option<u64>,
}

impl Breaker {
    /// Whether the policy is to be asked. An open breaker lets one call through every
    /// half-open time, to find out.
    pub fn allows(&mut self, now: u64) -> bool {
        match self.open_since {
            None => true,
            Some(since) if now.saturating_sub(since) >= BREAKER_HALF_OPEN_MS => {
                self.open_since = Some(now);
                true
            }
            Some(_) => false,
        }
    }

    pub fn succeeded(&mut self) {
        if self.open_since.take().is_some() {
            self.failures.clear();
        }
    }

    /// Returns whether this failure opened it.
    pub fn failed(&mut self, now: u64) -> bool {
        self.failures
            .retain(|at| now.saturating_sub(*at) < BREAKER_WINDOW_MS);
        self.failures.push(now);
        if self.open_since.is_some() {
            self.open_since = Some(now);
            return false;
        }
        if self.failures.len() >= BREAKER_FAILURES {
            self.failures.clear();
            self.open_since = Some(now);
            return true;
        }
        false
    }

    pub fn is_open(&self) -> bool {
        self.open_since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_at_the_fifth_failure_within_a_minute() {
        let mut b = Breaker::default();
        for at in [0, 20_000, 40_000, 59_000] {
            assert!(!b.failed(at));
        }
        // The first is forgotten by now.
        assert!(!b.failed(60_000));
        assert!(b.allows(60_000));
        assert!(b.failed(61_000));
        assert!(b.is_open() && !b.allows(61_001));
    }

    #[test]
    fn half_open_lets_one_call_through_and_closes_on_success() {
        let mut b = Breaker::default();
        for _ in 0..5 {
            b.failed(0);
        }
        assert!(!b.allows(29_999));
        assert!(b.allows(30_000));
        assert!(!b.allows(30_001), "only one");
        b.failed(30_002);
        assert!(!b.allows(60_001));
        assert!(b.allows(60_002));
        b.succeeded();
        assert!(!b.is_open());
        for at in 60_003..60_007 {
            assert!(!b.failed(at), "starts to count anew");
        }
    }
}
