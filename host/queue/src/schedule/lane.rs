//! A lane: tenant, class, relay, site and sub-queue, with its limits and what was counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::{Outcome, Timestamp, Verdict};

use super::automatic::effect_of;
use crate::measure::Planned;
use crate::shape::{
    LaneKey, LanePlan, LaneState, Limits, Rate, ReplyCount, ReplyRules, Trigger, Window,
};

/// Kinds of reply remembered between two plans.
const MAX_REPLIES: usize = 16;

#[derive(Debug)]
pub(super) struct Lane {
    pub key: LaneKey,
    /// In force: what was planned, but for what a person lifted.
    pub limits: Limits,
    /// The last plan.
    pub plan: Option<Planned>,
    /// The reply seen most before it, as a cause where the policy gives none.
    reply: Option<String>,
    /// Digest of the shaping revision behind the limits.
    pub policy: Option<String>,
    /// Queues tied to it.
    pub queues: u32,
    pub in_flight: u32,
    pub backlog: u32,
    /// Queues that wait for a connection of this lane, with their parking ticket.
    pub parked: VecDeque<(u32, u32)>,
    /// Whether a shaping policy is to be asked before the first message goes.
    pub shaped: bool,
    pub planned: bool,
    /// An answer of the policy is under way.
    pub asking: bool,
    /// What is under way is out of date when it comes.
    pub ask_again: bool,
    /// The rules for replies of the revision on trial that planned it; `None`: those in force.
    pub temporary: Option<Arc<ReplyRules>>,
    pub next_plan: Timestamp,
    trigger: Option<Trigger>,
    bucket: Bucket,
    window: Window,
    window_since: Timestamp,
    sending_since: Option<Timestamp>,
    sent_total: u64,
}

impl Lane {
    pub fn new(key: LaneKey, shaped: bool, limits: Limits, now: Timestamp) -> Self {
        Lane {
            bucket: Bucket::full(&limits, now),
            key,
            limits,
            plan: None,
            reply: None,
            policy: None,
            queues: 0,
            in_flight: 0,
            backlog: 0,
            parked: VecDeque::new(),
            shaped,
            planned: !shaped,
            asking: false,
            ask_again: false,
            temporary: None,
            next_plan: if shaped { now } else { Timestamp::FAR_FUTURE },
            trigger: None,
            window: Window::default(),
            window_since: now,
            sending_since: None,
            sent_total: 0,
        }
    }

    /// When the next message may go: now, or the instant at which a token is there.
    pub fn ready_at(&mut self, now: Timestamp) -> Timestamp {
        self.bucket
            .ready_at(self.limits.rate, self.limits.burst, now)
    }

    /// Whether its rate holds nothing back: one that begins anew may send no more.
    pub fn is_rested(&mut self, now: Timestamp) -> bool {
        let Limits { rate, burst, .. } = self.limits;
        self.bucket.settle(rate, burst, now);
        rate.is_none() || self.bucket.tokens >= f64::from(burst.max(1))
    }

    pub fn spend(&mut self, now: Timestamp) {
        if self.limits.rate.is_some() {
            self.bucket.tokens -= 1.0;
        }
        self.sending_since.get_or_insert(now);
    }

    /// Gives a token back: the message was not sent after all.
    pub fn refund(&mut self) {
        if self.limits.rate.is_some() {
            self.bucket.tokens += 1.0;
        }
    }

    pub fn count(&mut self, outcome: &Outcome) {
        let window = &mut self.window;
        match outcome.verdict {
            Verdict::Withdrawn => return,
            Verdict::Delivered => {
                window.delivered += 1;
                self.sent_total += 1;
            }
            Verdict::Permanent => window.bounced += 1,
            Verdict::Temporary | Verdict::Uncertain => window.deferred += 1,
        }
        window.attempts += 1;
        match &outcome.reply {
            None => window.connect_failures += 1,
            Some(reply) if reply.code >= 400 => {
                let enhanced = reply.enhanced.map(|e| e.to_string()).unwrap_or_default();
                if let Some(seen) = window
                    .replies
                    .iter_mut()
                    .find(|r| r.code == reply.code && r.enhanced == enhanced)
                {
                    seen.count += 1;
                } else if window.replies.len() < MAX_REPLIES {
                    window.replies.push(ReplyCount {
                        code: reply.code,
                        enhanced,
                        sample: reply.text.chars().take(200).collect(),
                        count: 1,
                    });
                }
            }
            Some(_) => {}
        }
    }

    /// Whether what was counted since the last plan calls for a new one at once.
    pub fn triggered(&self) -> bool {
        let Some(trigger) = &self.trigger else {
            return false;
        };
        let window = &self.window;
        let deferred = window.attempts >= trigger.min_attempts.max(1)
            && u64::from(window.deferred) * 1000
                >= u64::from(trigger.deferred_per_mille) * u64::from(window.attempts)
            && trigger.deferred_per_mille > 0;
        deferred
            || window
                .replies
                .iter()
                .any(|r| trigger.codes.contains(&r.code))
    }

    pub fn state(&self, oldest_seconds: u32, now: Timestamp) -> LaneState {
        let mut recent = self.window.clone();
        recent.seconds = u32::try_from(now.since(self.window_since).as_secs()).unwrap_or(u32::MAX);
        LaneState {
            key: self.key.clone(),
            backlog: self.backlog,
            oldest_seconds,
            open_connections: u16::try_from(self.in_flight).unwrap_or(u16::MAX),
            sending_since: self.sending_since,
            sent_total: self.sent_total,
            current: self.planned.then(|| self.limits.clone()),
            planned_by: self.policy.clone(),
            recent,
            facts: Vec::new(),
        }
    }

    /// Takes a plan and begins a new window. What of it is in force is said by
    /// [`Lane::limit`].
    pub fn apply(&mut self, plan: LanePlan, policy: Option<String>, now: Timestamp) {
        let ordinary = match effect_of(&plan.limits, now) {
            None => Some(plan.limits.clone()),
            Some(_) => self.plan.take().and_then(|before| before.ordinary),
        };
        let most = self.window.replies.iter().max_by_key(|r| r.count);
        self.reply = most.map(|r| format!("{} {} {}", r.code, r.enhanced, r.sample));
        self.take_up(&Planned {
            policy,
            at: now,
            plan,
            ordinary,
        });
        self.window = Window::default();
        self.window_since = now;
        self.asking = false;
    }

    /// Takes a plan for the lane's own; it is asked for anew when its time is over.
    pub fn take_up(&mut self, planned: &Planned) {
        let ttl = planned.plan.limits.ttl.clamp(1, 24 * 3600);
        self.next_plan = planned.at.plus(Duration::from_secs(u64::from(ttl)));
        self.trigger = planned.plan.wake.clone();
        self.policy = planned.policy.clone();
        self.plan = Some(planned.clone());
    }

    /// Puts limits in force.
    pub fn limit(&mut self, limits: Limits, now: Timestamp) {
        self.bucket.settle(self.limits.rate, self.limits.burst, now);
        self.limits = limits;
        if !self.planned {
            self.bucket = Bucket::full(&self.limits, now);
        }
        self.planned = true;
    }

    /// Why the lane is slowed or paused: the policy's words, or else the reply before.
    pub fn cause(&self, limits: &Limits) -> String {
        if let Some(cause) = &limits.cause {
            return cause.clone();
        }
        let what = match limits.connections {
            0 => "the shaping policy gives it no connection",
            _ => "paused by the shaping policy",
        };
        match &self.reply {
            Some(reply) => format!("{what}; before: {reply}"),
            None => what.to_owned(),
        }
    }

    /// The policy did not answer: what is in force stays so for a while.
    pub fn plan_failed(&mut self, now: Timestamp) {
        self.planned = true;
        self.asking = false;
        self.next_plan = now.plus(Duration::from_secs(u64::from(
            self.limits.ttl.clamp(5, 600),
        )));
    }
}

/// Tokens for messages; fractional, so that slow rates are exact over time.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

impl Bucket {
    fn full(limits: &Limits, now: Timestamp) -> Self {
        Bucket {
            tokens: f64::from(limits.burst.max(1)),
            at: now,
        }
    }

    fn settle(&mut self, rate: Option<Rate>, burst: u32, now: Timestamp) {
        if let Some(rate) = rate {
            let gained = now.since(self.at).as_millis() as f64 * f64::from(rate.messages)
                / f64::from(rate.per_ms.max(1));
            self.tokens = (self.tokens + gained).min(f64::from(burst.max(1)));
        }
        self.at = self.at.max(now);
    }

    fn ready_at(&mut self, rate: Option<Rate>, burst: u32, now: Timestamp) -> Timestamp {
        let Some(rate) = rate else { return now };
        self.settle(Some(rate), burst, now);
        if self.tokens >= 1.0 {
            return now;
        }
        if rate.messages == 0 {
            return now.plus(Duration::from_secs(60));
        }
        let wait = (1.0 - self.tokens) * f64::from(rate.per_ms.max(1)) / f64::from(rate.messages);
        now.plus(Duration::from_millis(wait.ceil().max(1.0) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_mail::TrafficClass;

    fn lane(limits: Limits) -> Lane {
        let key = LaneKey {
            tenant: "acme".into(),
            class: TrafficClass::Bulk,
            relay: "mx".into(),
            site: "example".into(),
            lane: None,
        };
        Lane::new(key, true, limits, Timestamp::from_secs(0))
    }

    #[test]
    fn a_rate_is_kept_over_time_and_a_burst_is_bounded() {
        let mut lane = lane(Limits {
            rate: Some(Rate {
                messages: 10,
                per_ms: 1000,
            }),
            burst: 3,
            ..Limits::default()
        });
        let (mut now, mut sent) = (Timestamp::from_secs(0), 0);
        let end = now.plus(Duration::from_secs(100));
        while now < end {
            let at = lane.ready_at(now);
            if at > now {
                now = at;
                continue;
            }
            lane.spend(now);
            sent += 1;
        }
        assert!((1000..=1003).contains(&sent), "{sent}");
    }

    #[test]
    fn a_rate_of_zero_never_opens() {
        let mut lane = lane(Limits {
            rate: Some(Rate {
                messages: 0,
                per_ms: 1000,
            }),
            ..Limits::default()
        });
        lane.spend(Timestamp::from_secs(0));
        assert!(lane.ready_at(Timestamp::from_secs(1000)) > Timestamp::from_secs(1000));
    }
}
