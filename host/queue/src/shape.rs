//! Shaping: what the host counts for a lane, and what a policy plans for it.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_mail::{Outcome, Timestamp, TrafficClass, Verdict};

/// Tenant, class, relay, site and the policy's own sub-queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LaneKey {
    pub tenant: String,
    pub class: TrafficClass,
    pub relay: String,
    pub site: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
}

/// Replies of one kind within a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyCount {
    pub code: u16,
    pub enhanced: String,
    /// One of the texts.
    pub sample: String,
    pub count: u32,
}

/// What happened in a lane lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub seconds: u32,
    pub attempts: u32,
    pub delivered: u32,
    pub deferred: u32,
    pub bounced: u32,
    pub connect_failures: u32,
    pub replies: Vec<ReplyCount>,
}

/// `messages` in every `per_ms` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub messages: u32,
    pub per_ms: u32,
}

/// How fast and how a lane may be served. The host's ceilings apply on top.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub rate: Option<Rate>,
    /// Messages that may go at once after a pause; at least 1.
    pub burst: u32,
    pub connections: u16,
    pub messages_per_connection: u16,
    /// Seconds between attempts; empty: the host's schedule.
    pub retry_after: Vec<u32>,
    pub paused_until: Option<Timestamp>,
    /// Seconds for which the plan holds.
    pub ttl: u32,
    /// Why the lane is slowed or paused, in the policy's words: for people and the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

impl Default for Limits {
    /// Without a policy: no rate, 20 connections, 100 messages on each.
    fn default() -> Self {
        Limits {
            rate: None,
            burst: 1,
            connections: 20,
            messages_per_connection: 100,
            retry_after: Vec::new(),
            paused_until: None,
            ttl: 60,
            cause: None,
        }
    }
}

/// When the host asks again before the plan's time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    pub deferred_per_mille: u16,
    pub min_attempts: u32,
    pub codes: Vec<u16>,
}

/// A lane as the policy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    pub key: LaneKey,
    pub backlog: u32,
    pub oldest_seconds: u32,
    pub open_connections: u16,
    pub sending_since: Option<Timestamp>,
    pub sent_total: u64,
    pub current: Option<Limits>,
    /// Hex digest of the revision that planned these; policies are not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_by: Option<String>,
    /// What was counted under these limits.
    pub recent: Window,
    pub facts: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanePlan {
    pub limits: Limits,
    pub wake: Option<Trigger>,
}

/// The answer for the lanes that were asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One for each lane, in their order. `None`: its limits stay as they are.
    pub lanes: Vec<Option<LanePlan>>,
    /// Of the revision in force, for the next call. Opaque; at most 64 KiB.
    pub state: Bytes,
    /// The revision in force and what it takes for limits. `None`: it planned no lane.
    pub rules: Option<ReplyRules>,
    pub canary: Option<CanaryLanes>,
}

/// The lanes of an answer that a revision on trial planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanaryLanes {
    /// Their places in the answer.
    pub places: BTreeSet<usize>,
    /// The revision on trial and what it takes for limits in these lanes.
    pub rules: ReplyRules,
}

/// A permanent reply that a shaping policy takes for a limit. All parts given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyRule {
    pub code: Option<u16>,
    pub enhanced: Option<String>,
    /// Part of the text, lower case.
    pub text: Option<String>,
    /// A site's name or, behind a leading `*`, its end.
    pub site: Option<String>,
}

impl ReplyRule {
    fn matches(&self, site: &str, code: u16, enhanced: &str, text: &str) -> bool {
        // A bare code would make every refusal of that kind temporary.
        (self.enhanced.is_some() || self.text.is_some())
            && self.code.is_none_or(|c| c == code)
            && self.enhanced.as_deref().is_none_or(|e| e == enhanced)
            && self.text.as_deref().is_none_or(|t| text.contains(t))
            && self
                .site
                .as_deref()
                .is_none_or(|s| match s.strip_prefix('*') {
                    Some(end) => site.ends_with(end),
                    None => site == s,
                })
    }
}

/// A shaping revision, and which permanent replies are limits in truth by its word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyRules {
    /// At most 64.
    pub rules: Vec<ReplyRule>,
    /// Hex digest.
    pub policy: Option<String>,
}

impl ReplyRules {
    /// The outcome as the rules have it. Only a reply that a server gave is looked at, and one
    /// about the address itself (5.1.z) stays permanent whatever a policy says.
    pub fn read(&self, site: &str, outcome: Outcome) -> Outcome {
        let Some(reply) = &outcome.reply else {
            return outcome;
        };
        if outcome.verdict != Verdict::Permanent
            || outcome.fault.is_some()
            || outcome.status.subject == 1
        {
            return outcome;
        }
        let enhanced = reply.enhanced.map(|e| e.to_string()).unwrap_or_default();
        let text = reply.text.to_lowercase();
        let limit = self
            .rules
            .iter()
            .any(|rule| rule.matches(site, reply.code, &enhanced, &text));
        if limit {
            outcome.as_temporary()
        } else {
            outcome
        }
    }
}

/// Why a recipient waits: the closed list of `docs/semantics.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitReason {
    RetrySchedule,
    SiteBackoff,
    Rate,
    Concurrency,
    Quota,
    Suspended,
    Held,
    RelayDown,
    Dns,
    Lease,
}

#[cfg(test)]
mod tests {
    use tidegate_mail::{Enhanced, Fault, Reply, Stage};

    use super::*;

    fn rule(text: Option<&str>) -> ReplyRule {
        ReplyRule {
            text: text.map(str::to_owned),
            ..ReplyRule::default()
        }
    }

    fn verdict(rule: ReplyRule, site: &str, outcome: Outcome) -> Verdict {
        let rules = ReplyRules {
            rules: vec![rule],
            policy: None,
        };
        rules.read(site, outcome).verdict
    }

    fn said(code: u16, enhanced: (u8, u16, u16), text: &str) -> Outcome {
        let enhanced = Enhanced::new(enhanced.0, enhanced.1, enhanced.2);
        Outcome::from_reply(Stage::Rcpt, Reply::new(code, enhanced, text))
    }

    #[test]
    fn a_limit_in_truth_is_temporary_and_its_reply_stays() {
        let rules = ReplyRules {
            rules: vec![rule(Some("rate limit"))],
            policy: None,
        };
        let read = rules.read("mx.test", said(550, (5, 7, 1), "Rate Limit exceeded"));
        assert_eq!(read.verdict, Verdict::Temporary);
        assert!(read.is_reclassified());
        assert_eq!(read.status.to_string(), "4.7.1");
        assert_eq!(read.text(), "550 5.7.1 Rate Limit exceeded");
    }

    #[test]
    fn every_part_of_a_rule_must_match() {
        let full = ReplyRule {
            code: Some(554),
            enhanced: Some("5.7.1".to_owned()),
            text: Some("too many".to_owned()),
            site: Some("*.big.test".to_owned()),
        };
        let reply = || said(554, (5, 7, 1), "Too many messages");
        assert_eq!(
            verdict(full.clone(), "mx.big.test", reply()),
            Verdict::Temporary
        );
        assert_eq!(
            verdict(full.clone(), "mx.small.test", reply()),
            Verdict::Permanent
        );
        for other in [
            said(550, (5, 7, 1), "too many messages"),
            said(554, (5, 7, 0), "too many messages"),
            said(554, (5, 7, 1), "spam"),
        ] {
            assert_eq!(
                verdict(full.clone(), "mx.big.test", other),
                Verdict::Permanent
            );
        }
    }

    #[test]
    fn what_no_policy_may_change_stays() {
        // An address that does not exist, a finding of our own, a rule of a code alone.
        let unknown = said(550, (5, 1, 1), "rate limit");
        assert_eq!(
            verdict(rule(Some("rate")), "x", unknown),
            Verdict::Permanent
        );
        let ours = Outcome::from_fault(Stage::Connect, Fault::TooLarge);
        assert_eq!(verdict(rule(Some("")), "x", ours), Verdict::Permanent);
        let code = ReplyRule {
            code: Some(550),
            ..ReplyRule::default()
        };
        let refused = said(550, (5, 7, 1), "no");
        assert_eq!(verdict(code, "x", refused), Verdict::Permanent);
        let taken = said(250, (2, 0, 0), "rate limit");
        assert_eq!(verdict(rule(Some("rate")), "x", taken), Verdict::Delivered);
    }
}
