//! The routing question and its answer, free of WIT and SQL.

use std::sync::Arc;

use tidegate_mail::{Envelope, MessageId, Promise, Reply, Timestamp, TrafficClass};

use crate::ports::Origin;

/// Why the host asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occasion {
    Submitted,
    PassthroughFailed(Reply),
    Rehearsal,
}

/// Everything a routing policy may know of a message.
#[derive(Clone, Debug)]
pub struct Question {
    pub occasion: Occasion,
    pub id: MessageId,
    pub tenant: Arc<str>,
    pub envelope: Arc<Envelope>,
    /// The fields the policy asked for: name as written, value unfolded.
    pub headers: Vec<(String, String)>,
    pub size: u64,
    pub received: Timestamp,
    pub now: Timestamp,
    pub origin: Origin,
    /// The host's view of the traffic class: a policy may raise it to bulk, never lower it.
    pub class: TrafficClass,
    pub facts: Vec<(String, String)>,
}

/// What a policy may vary of a managed recipient's promise; the host caps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    pub class: TrafficClass,
    /// A relay granted to the tenant; `None`: the tenant's default.
    pub relay: Option<String>,
    pub lane: Option<String>,
    pub priority: i8,
    pub not_before: Option<Timestamp>,
    pub expire_after_secs: Option<u32>,
    /// `Some(0)`: never. No later than the operator's, and none where the operator has none.
    pub delay_notice_secs: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    GiveUp,
    GiveUpAndNotify,
    ManagedRelay,
}

/// What to do with a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Managed(Managed),
    Passthrough {
        /// Name of a server registered for the tenant.
        server: String,
        after_failure: AfterFailure,
    },
    /// 4xx for the whole message.
    Defer(Reply),
    /// 5xx for this recipient.
    Refuse(Reply),
}

/// The answer for a whole message.
#[derive(Clone, Debug)]
pub struct Routing {
    /// The actions used, and for each recipient of the envelope its position here.
    pub actions: Vec<Action>,
    pub of_recipient: Vec<u32>,
    /// Hex digest of the revision that decided; `None`: built in.
    pub policy: Option<Arc<str>>,
    /// Set where a fallback decided, and why.
    pub fallback: Option<String>,
    pub tags: Vec<(String, String)>,
    pub cost_micros: u32,
}

impl Routing {
    /// The same action for every recipient.
    pub fn all(action: Action, recipients: usize) -> Self {
        Routing {
            actions: vec![action],
            of_recipient: vec![0; recipients],
            policy: None,
            fallback: None,
            tags: Vec::new(),
            cost_micros: 0,
        }
    }

    pub fn action(&self, recipient: usize) -> &Action {
        &self.actions[self.of_recipient[recipient] as usize]
    }
}

/// The host's bounds on what a policy may promise.
#[derive(Clone, Debug)]
pub struct Ceilings {
    /// Default and longest lifetime, seconds.
    pub lifetime_secs: u32,
    pub delay_notice_secs: Option<u32>,
    pub default_relay: Arc<str>,
}

impl Ceilings {
    /// The promise that a managed answer amounts to, within these bounds.
    pub fn promise(
        &self,
        answer: &Managed,
        class: TrafficClass,
        default_relay: &str,
        policy: Option<&str>,
    ) -> Promise {
        let lifetime_secs = answer
            .expire_after_secs
            .map_or(self.lifetime_secs, |s| s.clamp(1, self.lifetime_secs));
        let delay_notice_secs = match answer.delay_notice_secs {
            Some(0) => None,
            Some(secs) => self.delay_notice_secs.map(|most| secs.min(most)),
            None => self.delay_notice_secs,
        };
        Promise {
            class: class.max(answer.class),
            relay: answer
                .relay
                .clone()
                .unwrap_or_else(|| default_relay.to_owned()),
            lane: answer.lane.clone(),
            priority: answer.priority,
            lifetime_secs,
            delay_notice_secs,
            policy: policy.map(str::to_owned),
        }
    }
}
