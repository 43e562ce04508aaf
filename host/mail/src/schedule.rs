//! When to try again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{RecipientId, Timestamp};

/// Waits between attempts; the last one repeats until the lifetime ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    intervals: Vec<Duration>,
    /// Per mille by which a wait may be longer or shorter, 0 to 500.
    jitter_per_mille: u16,
}

/// A schedule without intervals, or with one of zero.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a retry schedule needs at least one interval, each of a second or more")]
pub struct BadSchedule;

impl Schedule {
    pub fn new(intervals: Vec<Duration>, jitter_per_mille: u16) -> Result<Self, BadSchedule> {
        if intervals.is_empty() || intervals.iter().any(|i| *i < Duration::from_secs(1)) {
            return Err(BadSchedule);
        }
        Ok(Schedule {
            intervals,
            jitter_per_mille: jitter_per_mille.min(500),
        })
    }

    pub fn intervals(&self) -> &[Duration] {
        &self.intervals
    }

    /// The instant of the attempt that follows attempt number `attempts` (1 for
    /// the first), made at `now`. The jitter is a hash of recipient and attempt, so
    /// that recipients of one site spread out and a replay gives the same instants.
    pub fn next(&self, id: RecipientId, attempts: u32, now: Timestamp) -> Timestamp {
        let at = (attempts.max(1) as usize - 1).min(self.intervals.len() - 1);
        let wait = self.intervals[at];
        let span = wait.as_millis() as u64 * u64::from(self.jitter_per_mille) / 1000;
        if span == 0 {
            return now.plus(wait);
        }
        let offset = mix(id, attempts) % (2 * span + 1);
        now.plus(wait - Duration::from_millis(span) + Duration::from_millis(offset))
    }
}

impl Default for Schedule {
    /// 1, 2, 5, 10, 15, 30 min, 1 h, 2 h, then every 4 h, each +-10 %.
    fn default() -> Self {
        let minutes = [1, 2, 5, 10, 15, 30, 60, 120, 240];
        Schedule {
            intervals: minutes.map(|m| Duration::from_secs(m * 60)).to_vec(),
            jitter_per_mille: 100,
        }
    }
}

/// SplitMix64's finaliser over the three numbers.
fn mix(id: RecipientId, attempts: u32) -> u64 {
    let mut z = (id.message.as_i64() as u64)
        .wrapping_add(u64::from(id.index) << 32)
        .wrapping_add(u64::from(attempts))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;

    fn id(index: u32) -> RecipientId {
        RecipientId {
            message: MessageId::from_i64(1_882_000_000_000_000_000),
            index,
        }
    }

    #[test]
    fn default_schedule_makes_some_twenty_attempts_in_48_hours() {
        let schedule = Schedule::default();
        let start = Timestamp::from_secs(1_000_000);
        let end = start.plus(Duration::from_secs(48 * 3600));
        let (mut at, mut attempts) = (start, 1);
        while at < end {
            at = schedule.next(id(0), attempts, at);
            attempts += 1;
        }
        assert!((18..=21).contains(&attempts), "{attempts}");
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_spreads() {
        let schedule = Schedule::default();
        let now = Timestamp::from_secs(1_000_000);
        let waits: Vec<u128> = (0..1000)
            .map(|i| schedule.next(id(i), 1, now).since(now).as_millis())
            .collect();
        assert!(waits.iter().all(|w| (54_000..=66_000).contains(w)));
        assert!(waits.iter().min().unwrap() < &55_000);
        assert!(waits.iter().max().unwrap() > &65_000);
    }

    #[test]
    fn refuses_an_empty_or_zero_schedule() {
        assert_eq!(Schedule::new(vec![], 0), Err(BadSchedule));
        assert_eq!(Schedule::new(vec![Duration::ZERO], 0), Err(BadSchedule));
    }
}
