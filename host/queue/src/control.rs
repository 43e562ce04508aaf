//! What operators see of the queue and may do to it.

use serde::{Deserialize, Serialize};
use tidegate_mail::{MessageId, RecipientId, Timestamp, TrafficClass};

use crate::shape::{LaneKey, Limits, WaitReason};

/// Which recipients a listing or a measure is about. All given parts must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueQuery {
    pub tenant: Option<String>,
    pub message: Option<MessageId>,
    pub domain: Option<String>,
    pub site: Option<String>,
    pub relay: Option<String>,
    /// At most this many (1 to 10,000; 0 means 100).
    pub limit: u32,
}

/// A waiting recipient: why it waits, and when it moves next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueueEntry {
    pub id: RecipientId,
    pub tenant: String,
    pub domain: String,
    pub class: TrafficClass,
    pub relay: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    pub attempts: u32,
    /// When it was or will be ready for an attempt.
    pub due: Timestamp,
    pub expires_at: Timestamp,
    /// When it moves next; `None`: when what it waits for ends, at the latest at its expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// `None`: an attempt is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<WaitReason>,
    /// Filled from the store for listings by people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The last reply or fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// A lane with mail in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaneEntry {
    pub key: LaneKey,
    pub backlog: u32,
    pub in_flight: u32,
    pub limits: Limits,
    /// Hex digest of the shaping revision behind the limits; `None`: the host's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_until: Option<Timestamp>,
}

/// The gateway in numbers since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub accepted_messages: u64,
    pub accepted_recipients: u64,
    pub delivered: u64,
    pub deferred: u64,
    pub bounced: u64,
    pub expired: u64,
    pub cancelled: u64,
    pub notices: u64,
    pub passthrough_tried: u64,
    pub refused_messages: u64,
    pub policy_fallbacks: u64,
    /// Recipients waiting, and in flight, now.
    pub waiting: u64,
    pub in_flight: u64,
    /// Transitions that the state machine refused: always 0 unless there is a defect.
    pub illegal_transitions: u64,
    /// Attempts that found the stored content damaged: always 0 unless a disk fails.
    pub damaged: u64,
    /// Recipients in the queue well past their lifetime now: always 0 unless there is a
    /// defect or the database can't be read.
    pub overdue: u64,
}

/// How an exporter does; the numbers are since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    pub name: String,
    /// Where it hands over to.
    pub to: String,
    /// Number of the last event handed over.
    pub cursor: u64,
    /// Age of the oldest event that was not handed over yet.
    pub lag_seconds: u64,
    /// No policy is in force in its slot.
    pub inactive: bool,
    pub events: u64,
    pub batches: u64,
    /// Batches not rendered or not taken.
    pub failures: u64,
    /// Events refused for good while others were taken.
    pub left_out: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_left_out: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
    /// Why the last try failed, while it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
