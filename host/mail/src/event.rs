//! The delivery log: each step of each recipient, as it is stored and exported.

use serde::{Deserialize, Serialize};

use crate::{Enhanced, Hop, MessageId, Outcome, Stage, Timestamp, Verdict};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The message is on stable storage; the client was given the 250 after this.
    Accepted,
    /// The routing policy's answer for this recipient, and the promise that follows.
    Routed,
    Delivered,
    Deferred,
    Bounced,
    Expired,
    Cancelled,
    /// A delay notice was accepted into the queue.
    DelayNotified,
    /// A failure or success notice was accepted into the queue.
    DsnSent,
    /// A passthrough attempt was made; its outcome is not recorded.
    PassthroughTried,
    /// The route refused this recipient of a message that was otherwise accepted.
    Refused,
    /// The gateway ended without order while an attempt may have been under way: if one was,
    /// what follows is a second one, and the mail may arrive twice.
    Recovered,
}

impl EventKind {
    pub const ALL: [EventKind; 12] = [
        EventKind::Accepted,
        EventKind::Routed,
        EventKind::Delivered,
        EventKind::Deferred,
        EventKind::Bounced,
        EventKind::Expired,
        EventKind::Cancelled,
        EventKind::DelayNotified,
        EventKind::DsnSent,
        EventKind::PassthroughTried,
        EventKind::Refused,
        EventKind::Recovered,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Accepted => "accepted",
            EventKind::Routed => "routed",
            EventKind::Delivered => "delivered",
            EventKind::Deferred => "deferred",
            EventKind::Bounced => "bounced",
            EventKind::Expired => "expired",
            EventKind::Cancelled => "cancelled",
            EventKind::DelayNotified => "delay-notified",
            EventKind::DsnSent => "dsn-sent",
            EventKind::PassthroughTried => "passthrough-tried",
            EventKind::Refused => "refused",
            EventKind::Recovered => "recovered",
        }
    }
}

/// One step. What identifies the message (sender, subject, record id) is stored once
/// beside it, not in every event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub at: Timestamp,
    pub kind: EventKind,
    pub message: MessageId,
    /// Position in the envelope; `None` where the event concerns the whole message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<u32>,
    #[serde(flatten)]
    pub detail: Detail,
}

/// The part of an event that is stored as one JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Number of the attempt, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Enhanced>,
    /// The peer's reply or our finding, sanitised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop: Option<Hop>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The next instant of interest for a recipient that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// Hex digest of the policy revision that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promise: Option<crate::Promise>,
    /// For `accepted` what the message asked for, for `routed` the recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<crate::Asked>,
    /// The queue id of the notice, for `delay-notified` and `dsn-sent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<MessageId>,
    /// Further pairs: a policy's tags, who cancelled, which fallback applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<(String, String)>,
}

impl Detail {
    /// The record of an attempt.
    pub fn of_attempt(attempt: u32, hop: Hop, outcome: &Outcome, site: Option<String>) -> Self {
        Detail {
            attempt: Some(attempt),
            stage: Some(outcome.stage),
            verdict: Some(outcome.verdict),
            code: outcome.reply.as_ref().map(|r| r.code),
            status: Some(outcome.status),
            text: Some(match &outcome.detail {
                Some(detail) => format!("{} ({detail})", outcome.text()),
                None => outcome.text(),
            }),
            hop: Some(hop),
            site,
            ..Detail::default()
        }
    }
}
