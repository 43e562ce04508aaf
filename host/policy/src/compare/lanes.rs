//! Two plans of the same lanes, side by side: what the shadow of a shaping policy reports.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};
use tidegate_mail::Timestamp;
use tidegate_queue::shape::{LaneKey, LanePlan, LaneState, Limits, Rate};

use super::{Cost, Costs, EXAMPLES, Failures, place};

/// Lanes told apart; of those beyond only the plans are counted.
const LANES: usize = 10_000;
/// Waits named of a schedule of retries.
const RETRIES: usize = 6;

/// What changes where another revision plans.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Calls, also such as gave no answer.
    pub calls: u64,
    /// Lanes asked about, and those among them that any plan would serve otherwise; of the first
    /// 10,000 lanes.
    pub lanes: u64,
    pub changed_lanes: u64,
    /// Plans of these lanes, and those among them that would serve their lane otherwise.
    pub plans: u64,
    pub changed_plans: u64,
    pub changes: Vec<Change>,
    pub failures: Failures,
    pub costs: Costs,
    pub cost: Cost,
    /// Lanes by a hash of their key, and whether any plan differed.
    #[serde(skip)]
    seen: HashMap<u64, bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub from: String,
    pub to: String,
    pub plans: u64,
    pub examples: Vec<LaneKey>,
}

impl Report {
    /// Enters the plans of the revision on trial beside those in force. Where there is none the
    /// lane is served as before.
    pub fn answered(
        &mut self,
        now: Timestamp,
        lanes: &[LaneState],
        in_force: &[Option<LanePlan>],
        plans: &[LanePlan],
        cost_micros: u32,
    ) {
        self.calls += 1;
        self.costs.enter(cost_micros, 1);
        let unplanned = Limits::default();
        for ((lane, before), plan) in lanes.iter().zip(in_force).zip(plans) {
            let before = match before {
                Some(plan) => &plan.limits,
                None => lane.current.as_ref().unwrap_or(&unplanned),
            };
            self.plans += 1;
            let words = differ(before, &plan.limits, now);
            self.see(&lane.key, words.is_some());
            let Some((from, to)) = words else { continue };
            self.changed_plans += 1;
            let change = place(
                &mut self.changes,
                from,
                to,
                |c| (&c.from, &c.to),
                |from, to| Change {
                    from,
                    to,
                    plans: 0,
                    examples: Vec::new(),
                },
            );
            change.plans += 1;
            if change.examples.len() < EXAMPLES && !change.examples.contains(&lane.key) {
                change.examples.push(lane.key.clone());
            }
        }
    }

    /// Enters a call that gave no answer.
    pub fn failed(&mut self, what: &str) {
        self.calls += 1;
        self.failures.enter(what);
    }

    fn see(&mut self, lane: &LaneKey, changed: bool) {
        let mut hasher = DefaultHasher::new();
        lane.hash(&mut hasher);
        let hash = hasher.finish();
        let room = self.seen.len() < LANES;
        match self.seen.get_mut(&hash) {
            Some(before) => *before |= changed,
            None if room => {
                self.seen.insert(hash, changed);
            }
            None => {}
        }
    }

    /// Brings order, percentiles and the number of lanes up to date.
    pub fn finish(&mut self) {
        self.changes.sort_by_key(|c| std::cmp::Reverse(c.plans));
        self.cost = self.costs.sum_up();
        self.lanes = self.seen.len() as u64;
        self.changed_lanes = self.seen.values().filter(|changed| **changed).count() as u64;
    }
}

/// What is different, in words: how it is served, not for how long or why. `None`: it is the same.
fn differ(before: &Limits, after: &Limits, now: Timestamp) -> Option<(String, String)> {
    let (stopped, stops) = (standstill(before, now), standstill(after, now));
    if stopped.is_some() || stops.is_some() {
        if stopped == stops {
            return None;
        }
        // What is set beside a standstill is of no effect.
        let words = |still: Option<String>, limits| still.unwrap_or_else(|| all(limits));
        return Some((words(stopped, before), words(stops, after)));
    }
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (part, other) in parts(before).into_iter().zip(parts(after)) {
        if part != other {
            from.push(part);
            to.push(other);
        }
    }
    (!from.is_empty()).then(|| (from.join(", "), to.join(", ")))
}

fn all(limits: &Limits) -> String {
    parts(limits).join(", ")
}

fn parts(limits: &Limits) -> [String; 5] {
    [
        limits.rate.map_or_else(|| "no rate".to_owned(), rate),
        format!("burst {}", limits.burst),
        format!("connections {}", limits.connections),
        format!("{} messages a connection", limits.messages_per_connection),
        retries(&limits.retry_after),
    ]
}

/// Why nothing goes, where it does not.
fn standstill(limits: &Limits, now: Timestamp) -> Option<String> {
    match limits.paused_until {
        Some(until) if until > now => {
            // By the minute: two plans of one call name the same one.
            let minutes = until.since(now).as_secs().div_ceil(60);
            Some(format!("paused for {}", length(minutes * 60_000)))
        }
        _ if limits.connections == 0 => Some("no connection".to_owned()),
        _ => None,
    }
}

/// In the least terms, so that 60 a minute and 1 a second are the same.
fn rate(rate: Rate) -> String {
    let (mut a, mut b) = (rate.messages.max(1), rate.per_ms.max(1));
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let (messages, per_ms) = (rate.messages / a, rate.per_ms.max(1) / a);
    // A number of messages in a whole unit reads best.
    for unit in [1_000u32, 60_000, 3_600_000, 86_400_000] {
        if unit % per_ms == 0 {
            let messages = u64::from(messages) * u64::from(unit / per_ms);
            return format!("rate {messages}/{}", length(unit.into()));
        }
    }
    format!("rate {messages}/{}", length(per_ms.into()))
}

fn retries(steps: &[u32]) -> String {
    if steps.is_empty() {
        return "ordinary retries".to_owned();
    }
    let mut words: Vec<String> = steps
        .iter()
        .take(RETRIES)
        .map(|secs| length(u64::from(*secs) * 1000))
        .collect();
    if steps.len() > RETRIES {
        words.push("...".to_owned());
    }
    format!("retries after {}", words.join(" "))
}

/// Milliseconds in the largest unit that they are a multiple of.
fn length(ms: u64) -> String {
    for (unit, name) in [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ] {
        if ms >= unit && ms.is_multiple_of(unit) {
            return format!("{}{name}", ms / unit);
        }
    }
    format!("{ms}ms")
}

#[cfg(test)]
mod tests {
    use super::super::PAIRS;
    use super::*;
    use std::time::Duration;
    use tidegate_mail::TrafficClass;
    use tidegate_queue::shape::Window;

    const NOW: Timestamp = Timestamp::from_secs(1_795_489_500);

    fn limits(messages: u32, per_ms: u32) -> Limits {
        Limits {
            rate: Some(Rate { messages, per_ms }),
            ..Limits::default()
        }
    }

    fn told(before: &Limits, after: &Limits) -> Option<String> {
        differ(before, after, NOW).map(|(from, to)| format!("{from} -> {to}"))
    }

    #[test]
    fn only_what_changes_is_named() {
        let slow = Limits {
            connections: 2,
            ..limits(40, 60_000)
        };
        for (before, after, words) in [
            (
                limits(100, 60_000),
                limits(40, 60_000),
                Some("rate 100/1m -> rate 40/1m"),
            ),
            (limits(60, 60_000), limits(1, 1_000), None),
            (limits(864_000, 86_400_000), limits(10, 1_000), None),
            (
                limits(7, 2_500),
                limits(50, 86_400_000),
                Some("rate 168/1m -> rate 50/1d"),
            ),
            (
                Limits::default(),
                slow,
                Some("no rate, connections 20 -> rate 40/1m, connections 2"),
            ),
            (
                Limits::default(),
                Limits {
                    retry_after: vec![300, 5400],
                    cause: Some("why".to_owned()),
                    ttl: 7,
                    ..Limits::default()
                },
                Some("ordinary retries -> retries after 5m 90m"),
            ),
            (
                Limits::default(),
                Limits {
                    ttl: 7,
                    cause: Some("why".to_owned()),
                    paused_until: Some(NOW),
                    ..Limits::default()
                },
                None,
            ),
        ] {
            assert_eq!(
                told(&before, &after).as_deref(),
                words,
                "{before:?} {after:?}"
            );
        }
    }

    #[test]
    fn beside_a_standstill_nothing_else_counts() {
        let paused = |secs: u64| Limits {
            paused_until: Some(NOW.plus(Duration::from_secs(secs))),
            ..limits(10, 1_000)
        };
        let none = Limits {
            connections: 0,
            ..Limits::default()
        };
        assert_eq!(
            told(
                &paused(3600),
                &Limits {
                    burst: 9,
                    ..paused(3590)
                }
            ),
            None
        );
        assert_eq!(
            told(&paused(3600), &paused(300)).as_deref(),
            Some("paused for 1h -> paused for 5m")
        );
        assert_eq!(
            told(&none, &limits(5, 1_000)).unwrap(),
            format!("no connection -> {}", all(&limits(5, 1_000)))
        );
        assert_eq!(
            told(
                &none,
                &Limits {
                    burst: 7,
                    ..none.clone()
                }
            ),
            None
        );
    }

    fn lane(site: &str) -> LaneState {
        LaneState {
            key: LaneKey {
                tenant: "acme".to_owned(),
                class: TrafficClass::Bulk,
                relay: "mx".to_owned(),
                site: site.to_owned(),
                lane: None,
            },
            backlog: 1,
            oldest_seconds: 0,
            open_connections: 0,
            sending_since: None,
            sent_total: 0,
            current: None,
            planned_by: None,
            recent: Window::default(),
            facts: Vec::new(),
        }
    }

    fn plan(limits: Limits) -> LanePlan {
        LanePlan { limits, wake: None }
    }

    #[test]
    fn lanes_are_counted_once_and_their_plans_each_time() {
        let mut report = Report::default();
        let lanes = [lane("a"), lane("b"), lane("c")];
        let fast = plan(limits(100, 60_000));
        let slow = plan(limits(40, 60_000));
        for _ in 0..4 {
            // Nothing in force: the host's own limits.
            let in_force = [Some(fast.clone()), Some(slow.clone()), None];
            let plans = [slow.clone(), slow.clone(), plan(Limits::default())];
            report.answered(NOW, &lanes, &in_force, &plans, 7);
        }
        report.failed("trap: unreachable");
        report.finish();
        assert_eq!(
            (report.calls, report.plans, report.changed_plans),
            (5, 12, 4)
        );
        assert_eq!((report.lanes, report.changed_lanes), (3, 1));
        let [change] = &report.changes[..] else {
            panic!("{report:?}");
        };
        assert_eq!(
            (change.from.as_str(), change.to.as_str()),
            ("rate 100/1m", "rate 40/1m")
        );
        assert_eq!(
            (change.plans, &change.examples),
            (4, &vec![lanes[0].key.clone()])
        );
        assert_eq!(report.cost.max, 7);
    }

    #[test]
    fn a_policy_that_never_plans_the_same_does_not_fill_the_memory() {
        let mut report = Report::default();
        for n in 0..20_000 {
            let lanes = [lane(&format!("s{n}"))];
            report.answered(NOW, &lanes, &[None], &[plan(limits(n + 1, 7))], 1);
            report.failed(&format!("trap {n}"));
        }
        report.finish();
        assert_eq!(report.changed_plans, 20_000);
        assert_eq!(report.lanes, LANES as u64);
        assert_eq!(report.changes.len(), PAIRS + 1);
        assert_eq!(report.changes.iter().map(|c| c.plans).sum::<u64>(), 20_000);
        assert_eq!(report.failures.iter().count(), PAIRS);
        assert_eq!(report.failures.calls(), 20_000);
        assert!(report.changes.iter().all(|c| c.examples.len() <= EXAMPLES));
    }
}
