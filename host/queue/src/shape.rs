//! Shaping: what the host counts for a lane, what a policy plans for it, and the measures in force.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_mail::{Timestamp, TrafficClass};

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
    pub recent: Window,
    pub facts: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanePlan {
    pub limits: Limits,
    pub wake: Option<Trigger>,
}

/// The policy's answer for the lanes it was asked about, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub lanes: Vec<LanePlan>,
    /// Opaque; at most 64 KiB.
    pub state: Bytes,
    /// Hex digest of the revision that planned.
    pub policy: Option<String>,
}

/// A measure in force on part of the traffic: visible, with a cause, and cancellable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    pub id: String,
    /// What it covers; a part left out covers all.
    #[serde(default)]
    pub scope: Scope,
    pub effect: Effect,
    /// The reply text, or who ordered it.
    pub cause: String,
    pub since: Timestamp,
    /// `None`: until a person lifts it.
    pub until: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scope {
    pub tenant: Option<String>,
    pub class: Option<TrafficClass>,
    pub relay: Option<String>,
    pub site: Option<String>,
    pub domain: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing is attempted; set by the gateway or its policy.
    Suspend,
    /// Nothing is attempted; set by a person.
    Hold,
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
