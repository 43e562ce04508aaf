//! Office hours: bulk mail that comes in the evening, at night or at the weekend waits for the next
//! morning, so that replies find somebody there. Other mail goes at once.

use serde::Deserialize;
use tidegate_guest::routing::*;

const HOUR: i64 = 3600 * 1000;
const DAY: i64 = 24 * HOUR;

/// All in hours.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    from: f64,
    to: f64,
    utc_offset_hours: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            from: 8.0,
            to: 18.0,
            utc_offset_hours: 0.0,
        }
    }
}

/// All in milliseconds.
struct OfficeHours {
    opens: i64,
    closes: i64,
    offset: i64,
}

impl Policy for OfficeHours {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        if !(config.from >= 0.0 && config.from < config.to && config.to <= 24.0) {
            return Err("from, to: hours of a day, such as 8 and 18".to_owned());
        }
        if !(-12.0..=14.0).contains(&config.utc_offset_hours) {
            return Err("utc_offset_hours: -12 to 14".to_owned());
        }
        let millis = |hours: f64| (hours * HOUR as f64) as i64;
        let policy = OfficeHours {
            opens: millis(config.from),
            closes: millis(config.to),
            offset: millis(config.utc_offset_hours),
        };
        let descriptor = Descriptor::new("office-hours", env!("CARGO_PKG_VERSION"));
        Ok((policy, descriptor))
    }

    fn decide(&self, _why: Occasion, message: Message) -> Result<Decision, PolicyError> {
        let mut terms = Managed::default();
        if message.class == TrafficClass::Bulk {
            let now = message.now as i64;
            let start = self.next_open(now);
            terms.not_before = (start > now).then_some(start as u64);
        }
        Ok(Decision::all(Action::ManagedRelay(terms)))
    }
}

impl OfficeHours {
    /// The first instant from `now` on that lies within office hours; at most 48 hours ahead,
    /// which is the most that the gateway grants.
    fn next_open(&self, now: i64) -> i64 {
        let mut local = now + self.offset;
        let time = local % DAY;
        if time >= self.closes {
            local = self.opening(local) + DAY;
        } else if time < self.opens {
            local = self.opening(local);
        }
        while is_weekend(local) {
            local = self.opening(local) + DAY;
        }
        (local - self.offset).min(now + 48 * HOUR)
    }

    /// When the office opens on that day.
    fn opening(&self, local: i64) -> i64 {
        local / DAY * DAY + self.opens
    }
}

/// The first day of 1970 was a Thursday.
fn is_weekend(local: i64) -> bool {
    (local / DAY + 3) % 7 >= 5
}

tidegate_guest::routing_policy!(OfficeHours);
