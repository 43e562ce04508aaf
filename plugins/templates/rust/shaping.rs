//! NAME: a rate for every lane of bulk mail, and half of it while a site defers.

use serde::Deserialize;
use tidegate_guest::shaping::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Bulk messages in every minute, for each receiving site.
    per_minute: u32,
}

struct Shaper {
    per_minute: u32,
}

impl Policy for Shaper {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        if config.per_minute == 0 {
            return Err("per_minute: at least 1".to_owned());
        }
        let shaper = Shaper {
            per_minute: config.per_minute,
        };
        Ok((shaper, Descriptor::new("NAME", env!("CARGO_PKG_VERSION"))))
    }

    fn plan(&self, _now: Millis, state: &[u8], lanes: Vec<LaneState>) -> Result<Plan, PolicyError> {
        let plans = lanes.iter().map(|lane| self.lane(lane)).collect();
        // What is remembered is given back at the next call; this policy needs nothing.
        Ok(Plan {
            lanes: plans,
            state: state.to_vec(),
        })
    }
}

impl Shaper {
    fn lane(&self, lane: &LaneState) -> LanePlan {
        if lane.key.class == TrafficClass::Transactional {
            return LanePlan::new(Limits::default());
        }
        let recent = &lane.recent;
        let defers = recent.attempts >= 10 && recent.deferred * 10 >= recent.attempts;
        let messages = if defers {
            (self.per_minute / 2).max(1)
        } else {
            self.per_minute
        };
        let limits = Limits {
            rate: Some(Rate {
                messages,
                per_ms: 60_000,
            }),
            connections: 4,
            ..Limits::default()
        };
        let plan = LanePlan::new(limits);
        if defers {
            plan.because("the site defers one message in ten")
        } else {
            plan
        }
    }
}

tidegate_guest::shaping_policy!(Shaper);
