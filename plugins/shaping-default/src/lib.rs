//! The shaping policy that a gateway starts with: a pace for each site, slower when the site
//! complains, faster again when it does not.
//!
//! ```json
//! {
//!   "sites": [
//!     { "site": "*.google.com", "rate": "600/min", "connections": 10 },
//!     { "site": "*", "class": "bulk", "rate": "120/min", "connections": 4, "messages_per_connection": 50,
//!       "warm_up": { "start": "50/day", "double_every_days": 1 } }
//!   ],
//!   "back_off": { "deferred_per_mille": 100, "min_attempts": 20, "factor": 0.5, "recover_per_mille": 50 },
//!   "pause": [ { "text": "blocked", "minutes": 60 }, { "code": 421, "minutes": 5 } ],
//!   "temporary": [ { "code": 550, "text": "rate limit exceeded", "site": "*.example.net" } ]
//! }
//! ```
//!
//! `temporary` names permanent replies that are limits in truth: such a recipient is retried as
//! after a 4xx. A rule needs a `text` or an `enhanced` code; `code` and `site` narrow it.
//!
//! The first entry of `sites` whose pattern (`*` stands for any run of characters), class, tenant
//! and relay match gives the lane's ceiling; a lane that none matches gets the host's defaults.
//! Without a configuration, transactional mail goes as fast as the host allows and bulk mail at
//! 10 messages a second and site.
//!
//! The pace is additive increase, multiplicative decrease: a window with too many deferrals
//! multiplies it by `factor`, a clean window adds `recover_per_mille` of the ceiling. Replies
//! that speak of reputation pause the lane. What is remembered per lane is its present pace and
//! the time of the last change; a lane not seen for a day is forgotten.

use serde::{Deserialize, Serialize};
use tidegate_guest::shaping::*;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Seconds between two looks at a lane: also the length of a step up.
const TTL: u32 = 60;
/// Lanes remembered; more would not fit the state.
const REMEMBERED: usize = 400;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Config {
    sites: Option<Vec<SiteConfig>>,
    back_off: BackOff,
    pause: Option<Vec<PauseConfig>>,
    temporary: Vec<TemporaryConfig>,
}

/// A permanent reply that is a limit in truth.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TemporaryConfig {
    #[serde(default)]
    code: Option<u16>,
    #[serde(default)]
    enhanced: Option<String>,
    /// Part of the reply text, without case.
    #[serde(default)]
    text: Option<String>,
    /// Name of the site or, behind a leading `*`, its end.
    #[serde(default)]
    site: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteConfig {
    site: String,
    #[serde(default)]
    class: Option<ClassConfig>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    relay: Option<String>,
    /// `600/min`; left out: no rate.
    #[serde(default)]
    rate: Option<String>,
    #[serde(default = "default_connections")]
    connections: u16,
    #[serde(default = "default_messages")]
    messages_per_connection: u16,
    /// Seconds between attempts.
    #[serde(default)]
    retry_after: Vec<u32>,
    #[serde(default)]
    warm_up: Option<WarmUpConfig>,
}

fn default_connections() -> u16 {
    20
}

fn default_messages() -> u16 {
    100
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum ClassConfig {
    Transactional,
    Bulk,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WarmUpConfig {
    start: String,
    #[serde(default = "one")]
    double_every_days: u32,
}

fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BackOff {
    /// Deferrals per thousand attempts that slow a lane.
    deferred_per_mille: u16,
    min_attempts: u32,
    factor: f64,
    /// Of the ceiling, added after a clean window.
    recover_per_mille: u32,
    /// Slowest pace, of the ceiling.
    floor_per_mille: u32,
}

impl Default for BackOff {
    fn default() -> Self {
        BackOff {
            deferred_per_mille: 100,
            min_attempts: 20,
            factor: 0.5,
            recover_per_mille: 50,
            floor_per_mille: 10,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PauseConfig {
    /// Part of the reply text, without case.
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    code: Option<u16>,
    minutes: u32,
}

struct Site {
    pattern: String,
    class: Option<TrafficClass>,
    tenant: Option<String>,
    relay: Option<String>,
    /// Messages a day.
    per_day: Option<u64>,
    connections: u16,
    messages_per_connection: u16,
    retry_after: Vec<u32>,
    warm_up: Option<(u64, u32)>,
}

struct Pause {
    text: Option<String>,
    code: Option<u16>,
    minutes: u32,
}

struct Shaper {
    temporary: Vec<ReplyRule>,
    sites: Vec<Site>,
    back_off: BackOff,
    pauses: Vec<Pause>,
    wake_codes: Vec<u16>,
}

/// Messages a day of `600/min`.
fn per_day(at: &str, text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{at}: {text:?} is not a rate; write \"10/s\", \"600/min\", \"1000/h\" or \"5000/day\""
        )
    };
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let count: u64 = count.trim().parse().map_err(|_| wrong())?;
    let times = match unit.trim() {
        "s" | "sec" => 86_400,
        "min" => 1_440,
        "h" => 24,
        "day" | "d" => 1,
        _ => return Err(wrong()),
    };
    if count == 0 || count > 1_000_000_000 {
        return Err(wrong());
    }
    Ok(count * times)
}

/// A pace as the host counts it: whole messages in at least a second.
fn rate(per_day: u64) -> Rate {
    let per_day = per_day.max(1);
    if per_day >= 86_400 {
        Rate {
            messages: u32::try_from(per_day / 86_400).unwrap_or(u32::MAX),
            per_ms: 1_000,
        }
    } else {
        Rate {
            messages: 1,
            per_ms: u32::try_from(DAY_MS / per_day).unwrap_or(u32::MAX),
        }
    }
}

/// Whether a pattern with `*` matches, without case.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern.eq_ignore_ascii_case(text),
        Some((start, rest)) => {
            let Some(head) = text.get(..start.len()) else {
                return false;
            };
            head.eq_ignore_ascii_case(start)
                && (rest.is_empty()
                    || (start.len()..=text.len())
                        .filter_map(|at| text.get(at..))
                        .any(|tail| matches(rest, tail)))
        }
    }
}

impl Policy for Shaper {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config = if config.trim().is_empty() {
            Config::default()
        } else {
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?
        };
        let b = &config.back_off;
        if !(b.factor > 0.0 && b.factor < 1.0) {
            return Err(format!(
                "back_off.factor: {} is not between 0 and 1",
                b.factor
            ));
        }
        if b.deferred_per_mille == 0 || b.deferred_per_mille > 1000 {
            return Err("back_off.deferred_per_mille: 1 to 1000".to_owned());
        }
        let sites = config.sites.unwrap_or_else(|| {
            vec![SiteConfig {
                site: "*".to_owned(),
                class: Some(ClassConfig::Bulk),
                tenant: None,
                relay: None,
                rate: Some("10/s".to_owned()),
                connections: 5,
                messages_per_connection: default_messages(),
                retry_after: Vec::new(),
                warm_up: None,
            }]
        });
        let mut checked = Vec::with_capacity(sites.len());
        for (n, site) in sites.into_iter().enumerate() {
            let at = |key: &str| format!("sites[{n}].{key}");
            if site.site.is_empty() {
                return Err(format!("{}: name a site, or \"*\"", at("site")));
            }
            if site.connections == 0 || site.messages_per_connection == 0 {
                return Err(format!(
                    "{}: at least 1",
                    at("connections, messages_per_connection")
                ));
            }
            let warm_up = match &site.warm_up {
                None => None,
                Some(_) if site.rate.is_none() => {
                    return Err(format!("{}: needs a \"rate\" to end at", at("warm_up")));
                }
                Some(w) if w.double_every_days == 0 => {
                    return Err(format!("{}: at least 1", at("warm_up.double_every_days")));
                }
                Some(w) => Some((
                    per_day(&at("warm_up.start"), &w.start)?,
                    w.double_every_days,
                )),
            };
            checked.push(Site {
                per_day: site
                    .rate
                    .as_deref()
                    .map(|r| per_day(&at("rate"), r))
                    .transpose()?,
                pattern: site.site,
                class: site.class.map(|c| match c {
                    ClassConfig::Transactional => TrafficClass::Transactional,
                    ClassConfig::Bulk => TrafficClass::Bulk,
                }),
                tenant: site.tenant,
                relay: site.relay,
                connections: site.connections,
                messages_per_connection: site.messages_per_connection,
                retry_after: site.retry_after,
                warm_up,
            });
        }
        let pauses: Vec<Pause> = match config.pause {
            Some(pauses) => pauses
                .into_iter()
                .enumerate()
                .map(|(n, p)| {
                    if p.text.is_none() && p.code.is_none() {
                        return Err(format!("pause[{n}]: give \"text\", \"code\" or both"));
                    }
                    Ok(Pause {
                        text: p.text.map(|t| t.to_lowercase()),
                        code: p.code,
                        minutes: p.minutes,
                    })
                })
                .collect::<Result<_, _>>()?,
            None => [
                "blocked",
                "blacklist",
                "block list",
                "reputation",
                "spamhaus",
            ]
            .into_iter()
            .map(|text| Pause {
                text: Some(text.to_owned()),
                code: None,
                minutes: 60,
            })
            .collect(),
        };
        let mut wake_codes: Vec<u16> = pauses.iter().filter_map(|p| p.code).collect();
        wake_codes.push(421);
        wake_codes.sort_unstable();
        wake_codes.dedup();
        wake_codes.truncate(32);
        let mut temporary = Vec::with_capacity(config.temporary.len());
        for (n, rule) in config.temporary.into_iter().enumerate() {
            if rule.enhanced.is_none() && rule.text.as_deref().is_none_or(str::is_empty) {
                return Err(format!(
                    "temporary[{n}]: give a \"text\" or an \"enhanced\" code of the reply"
                ));
            }
            if rule.code.is_some_and(|code| !(500..600).contains(&code)) {
                return Err(format!("temporary[{n}].code: 500 to 599"));
            }
            temporary.push(ReplyRule {
                code: rule.code,
                enhanced: rule.enhanced,
                text: rule.text,
                site: rule.site,
            });
        }
        if temporary.len() > 64 {
            return Err("temporary: at most 64 rules".to_owned());
        }
        Ok((
            Shaper {
                temporary,
                sites: checked,
                back_off: config.back_off,
                pauses,
                wake_codes,
            },
            Descriptor::new("shaping-default", env!("CARGO_PKG_VERSION")),
        ))
    }

    fn plan(&self, now: Millis, state: &[u8], lanes: Vec<LaneState>) -> Result<Plan, PolicyError> {
        // A state of another revision is not an error: paces start anew.
        let mut memory: Memory = serde_json::from_slice(state).unwrap_or_default();
        let plans = lanes
            .iter()
            .map(|lane| self.plan_lane(now, &mut memory, lane))
            .collect();
        memory
            .lanes
            .retain(|lane| now.saturating_sub(lane.seen) < DAY_MS);
        if memory.lanes.len() > REMEMBERED {
            memory
                .lanes
                .sort_unstable_by_key(|lane| std::cmp::Reverse(lane.seen));
            memory.lanes.truncate(REMEMBERED);
        }
        Ok(Plan {
            lanes: plans,
            state: serde_json::to_vec(&memory)
                .map_err(|e| PolicyError::Broken(format!("state: {e}")))?,
        })
    }

    fn temporary_replies(&self) -> Vec<ReplyRule> {
        self.temporary.clone()
    }
}

/// What is remembered of a lane that does not go at its full pace.
#[derive(Serialize, Deserialize, Default)]
struct Memory {
    #[serde(default)]
    lanes: Vec<LaneMemory>,
}

#[derive(Serialize, Deserialize)]
struct LaneMemory {
    /// A hash of the lane's key.
    key: u64,
    /// Thousandths of the ceiling.
    pace: u32,
    /// When the pace last changed.
    changed: u64,
    seen: u64,
    #[serde(default)]
    paused_until: u64,
}

/// FNV-1a over the parts of the key.
fn hash(key: &LaneKey) -> u64 {
    let class = [u8::from(key.class == TrafficClass::Bulk)];
    let parts = [
        key.tenant.as_bytes(),
        &class,
        key.relay.as_bytes(),
        key.site.as_bytes(),
        key.lane.as_deref().unwrap_or("").as_bytes(),
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

impl Shaper {
    fn site(&self, key: &LaneKey) -> Option<&Site> {
        self.sites.iter().find(|s| {
            s.class.is_none_or(|c| c == key.class)
                && s.tenant.as_ref().is_none_or(|t| *t == key.tenant)
                && s.relay.as_ref().is_none_or(|r| *r == key.relay)
                && matches(&s.pattern, &key.site)
        })
    }

    /// The reply, if any, for which the lane is to be paused, and for how long.
    fn pause<'a>(&self, window: &'a Window) -> Option<(&'a ReplyCount, u32)> {
        window
            .replies
            .iter()
            .filter(|r| r.code >= 400)
            .find_map(|reply| {
                let sample = reply.sample.to_lowercase();
                self.pauses
                    .iter()
                    .find(|p| {
                        p.code.is_none_or(|c| c == reply.code)
                            && p.text.as_ref().is_none_or(|t| sample.contains(t.as_str()))
                    })
                    .map(|p| (reply, p.minutes))
            })
    }

    fn plan_lane(&self, now: Millis, memory: &mut Memory, lane: &LaneState) -> LanePlan {
        let site = self.site(&lane.key);
        let key = hash(&lane.key);
        let at = match memory.lanes.iter().position(|l| l.key == key) {
            Some(at) => at,
            None => {
                memory.lanes.push(LaneMemory {
                    key,
                    pace: 1000,
                    changed: now,
                    seen: now,
                    paused_until: 0,
                });
                memory.lanes.len() - 1
            }
        };
        let known = &mut memory.lanes[at];
        known.seen = now;
        let window = &lane.recent;
        let b = &self.back_off;
        let mut cause = None;

        let unwell = window.deferred.saturating_add(window.connect_failures);
        let complains = window.attempts >= b.min_attempts
            && u64::from(unwell) * 1000
                >= u64::from(window.attempts) * u64::from(b.deferred_per_mille);
        // One step for each window: a window looked at twice does not slow a lane twice.
        let window_over =
            now.saturating_sub(known.changed) >= u64::from(window.seconds.clamp(1, TTL)) * 1000;
        if complains && (window_over || known.pace == 1000) {
            known.pace = ((f64::from(known.pace) * b.factor) as u32).max(b.floor_per_mille.max(1));
            known.changed = now;
        } else if !complains
            && known.pace < 1000
            && now.saturating_sub(known.changed) >= u64::from(TTL) * 1000
        {
            known.pace = (known.pace + b.recover_per_mille.max(1)).min(1000);
            known.changed = now;
        }
        if known.pace < 1000 {
            cause = Some(format!(
                "slowed to {}.{} % of the pace: {unwell} of {} attempts deferred in {} s",
                known.pace / 10,
                known.pace % 10,
                window.attempts,
                window.seconds
            ));
        }

        if let Some((reply, minutes)) = self.pause(window)
            && known.paused_until <= now
        {
            known.paused_until = now + u64::from(minutes) * 60_000;
            cause = Some(clean(&format!(
                "paused for {minutes} min: {} {}",
                reply.code, reply.sample
            )));
        } else if known.paused_until > now {
            cause = cause.or(Some(
                "paused after a reply that speaks of reputation".to_owned(),
            ));
        }
        let paused_until = (known.paused_until > now).then_some(known.paused_until);

        let ceiling = site.and_then(|s| s.per_day);
        let ceiling = match (ceiling, site.and_then(|s| s.warm_up)) {
            (Some(full), Some((start, every))) => {
                let days = now.saturating_sub(lane.sending_since.unwrap_or(now)) / DAY_MS;
                let doublings = u32::try_from(days / u64::from(every)).unwrap_or(63).min(40);
                let today = start.saturating_mul(1 << doublings);
                if today < full {
                    cause = cause.or(Some(format!("warming up: {today} messages a day")));
                }
                Some(today.min(full))
            }
            (ceiling, _) => ceiling,
        };
        let connections = site.map_or(default_connections(), |s| s.connections);
        let slowed = |n: u64| (n.saturating_mul(u64::from(known.pace)) / 1000).max(1);
        let limits = Limits {
            // A lane without a rate is slowed by its connections alone.
            rate: ceiling.map(|per_day| rate(slowed(per_day))),
            burst: ceiling.map_or(1, |per_day| {
                u32::try_from(slowed(per_day) / 86_400)
                    .unwrap_or(u32::MAX)
                    .max(1)
            }),
            connections: u16::try_from(slowed(connections.into())).unwrap_or(connections),
            messages_per_connection: site.map_or(default_messages(), |s| s.messages_per_connection),
            retry_after: site.map(|s| s.retry_after.clone()).unwrap_or_default(),
            paused_until,
            ttl: TTL,
        };
        LanePlan {
            limits,
            wake: Some(Trigger {
                deferred_per_mille: b.deferred_per_mille,
                min_attempts: b.min_attempts,
                codes: self.wake_codes.clone(),
            }),
            cause,
        }
    }
}

/// A reply's text in a line of at most 400 bytes.
fn clean(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > 400 {
            break;
        }
        line.push(c);
    }
    line
}

tidegate_guest::shaping_policy!(Shaper);
