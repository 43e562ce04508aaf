//! Warm-up of a new sending address: on the first day `start` messages to each site, and on every
//! day twice as many, up to `ceiling`. A site that defers one message in ten is held at the pace of
//! the day before, one that speaks of reputation is left alone for an hour.

use std::collections::BTreeMap;

use serde::Deserialize;
use tidegate_guest::shaping::*;

const HOUR: u64 = 3600 * 1000;
const DAY: u32 = 24 * 3600 * 1000;
/// Lanes that are remembered: the state has 64 KiB.
const MOST: usize = 150;

/// Both in messages a day.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    start: u32,
    ceiling: u32,
}

struct WarmUp {
    start: u32,
    ceiling: u32,
}

/// For each lane that was held back, for how many days.
type Held = BTreeMap<String, u32>;

impl Policy for WarmUp {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let Config { start, ceiling } =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        if !(1..=ceiling).contains(&start) || ceiling > 1_000_000_000 {
            return Err("start, ceiling: messages a day, start first".to_owned());
        }
        let descriptor = Descriptor::new("warm-up", env!("CARGO_PKG_VERSION"));
        Ok((WarmUp { start, ceiling }, descriptor))
    }

    fn plan(&self, now: Millis, state: &[u8], lanes: Vec<LaneState>) -> Result<Plan, PolicyError> {
        // There may be none yet, or that of an earlier revision: then anew.
        let mut held: Held = serde_json::from_slice(state).unwrap_or_default();
        let plans = lanes.iter().map(|lane| self.lane(now, lane, &mut held));
        let lanes = plans.collect();
        let state = serde_json::to_vec(&held).map_err(|e| PolicyError::Broken(e.to_string()))?;
        Ok(Plan { lanes, state })
    }
}

impl WarmUp {
    fn lane(&self, now: Millis, lane: &LaneState, held: &mut Held) -> LanePlan {
        if lane.key.class == TrafficClass::Transactional {
            return LanePlan::new(Limits::default());
        }
        let recent = &lane.recent;
        if let Some(angry) = recent.replies.iter().find(|reply| is_angry(&reply.sample)) {
            let limits = Limits {
                connections: 1,
                paused_until: Some(now + HOUR),
                ..Limits::default()
            };
            let words: String = angry.sample.chars().take(90).collect();
            return LanePlan::new(limits).because(&format!("paused: {words}"));
        }
        let defers =
            recent.attempts >= 10 && u64::from(recent.deferred) * 10 >= u64::from(recent.attempts);
        let since = lane.sending_since.unwrap_or(now);
        let age = now.saturating_sub(since) / u64::from(DAY);
        let back = days_held(&lane.key, held, defers);
        let day = age.saturating_sub(back.into()).min(30);
        let messages = (u64::from(self.start) << day).min(self.ceiling.into()) as u32;
        let limits = Limits {
            rate: Some(Rate {
                messages,
                per_ms: DAY,
            }),
            burst: 10,
            connections: 2,
            ttl: 300,
            ..Limits::default()
        };
        let plan = LanePlan::new(limits).wake(Trigger {
            deferred_per_mille: 100,
            min_attempts: 10,
            codes: vec![421],
        });
        if defers {
            plan.because(&format!("day {} of the warm-up: the site defers", day + 1))
        } else {
            plan
        }
    }
}

fn is_angry(sample: &str) -> bool {
    let sample = sample.to_ascii_lowercase();
    ["reputation", "blocked", "spam"]
        .iter()
        .any(|word| sample.contains(word))
}

/// The days for which the lane was held back, one more where it is now.
fn days_held(key: &LaneKey, held: &mut Held, more: bool) -> u32 {
    let key = format!("{}/{}/{}", key.tenant, key.relay, key.site);
    let days = held.get(&key).copied().unwrap_or(0);
    if !more || (!held.contains_key(&key) && held.len() >= MOST) {
        return days;
    }
    let days = (days + 1).min(30);
    held.insert(key, days);
    days
}

tidegate_guest::shaping_policy!(WarmUp);
