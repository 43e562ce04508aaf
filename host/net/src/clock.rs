//! The operating system's clock behind the [`Clock`] port.
//!
//! Waiting is done in slices of at most [`SLICE`]: tokio counts monotonic time, so a
//! wall clock set forward (by NTP, or after a suspended machine wakes) is noticed at
//! the end of a slice instead of after the whole wait.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidegate_mail::Timestamp;
use tidegate_queue::ports::{Clock, Fut};

/// Longest wait without a look at the wall clock.
const SLICE: Duration = Duration::from_secs(1);

/// Wall-clock time of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsClock;

impl Clock for OsClock {
    fn now(&self) -> Timestamp {
        // A clock before 1970 is a broken clock; the epoch keeps the arithmetic defined.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn sleep_until(&self, at: Timestamp) -> Fut<'_, ()> {
        Box::pin(async move {
            loop {
                let left = at.since(self.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(SLICE)).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_until_the_instant_and_not_for_one_that_has_passed() {
        let clock = OsClock;
        let start = clock.now();
        clock.sleep_until(start.minus(Duration::from_secs(5))).await;
        let at = start.plus(Duration::from_millis(30));
        clock.sleep_until(at).await;
        assert!(clock.now() >= at);
        assert!(start > Timestamp::from_secs(1_700_000_000));
    }
}
