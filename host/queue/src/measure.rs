//! Measures: what people, the shaping policy and the host itself do to part of the traffic.
//! Each one is a row: visible, with its cause, its end, and who may have lifted it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_mail::{Timestamp, TrafficClass};

use crate::shape::{LaneKey, LanePlan, Limits};

/// A lifted measure keeps its policy from repeating it for at least this long.
pub const LEAST_OVERRIDE: Duration = Duration::from_secs(3600);

/// A measure in force on part of the traffic, or the memory of one that a person lifted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    pub id: String,
    /// What it covers; a part left out covers all, but for a policy's measure, which is on
    /// the one lane.
    #[serde(default)]
    pub scope: Scope,
    pub effect: Effect,
    /// The reply text, or who ordered it.
    pub cause: String,
    pub since: Timestamp,
    /// `None`: until a person lifts it.
    pub until: Option<Timestamp>,
    #[serde(default)]
    pub by: Setter,
    /// Of a policy's measure: what it planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Box<Planned>>,
    /// Of the host's measure on a site: failures in a row.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifted: Option<Lifted>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Measure {
    /// Of a person, or not said by whom.
    pub fn new(
        id: impl Into<String>,
        scope: Scope,
        effect: Effect,
        cause: &str,
        since: Timestamp,
    ) -> Self {
        Measure {
            id: id.into(),
            scope,
            effect,
            cause: cause.to_owned(),
            since,
            until: None,
            by: Setter::Operator,
            plan: None,
            failures: 0,
            lifted: None,
        }
    }

    /// Whether traffic is under it.
    pub fn in_force(&self, now: Timestamp) -> bool {
        self.lifted.is_none() && self.until.is_none_or(|until| until > now)
    }

    /// Whether it was lifted, and what its policy plans of the kind is not put in force yet.
    pub fn overrides(&self, now: Timestamp) -> bool {
        let until = self.lifted.as_ref().and_then(|l| l.until);
        until.is_some_and(|until| until > now)
    }
}

/// What a shaping policy planned for a lane, as it is taken up again at a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Hex digest of the revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    pub at: Timestamp,
    #[serde(flatten)]
    pub plan: LanePlan,
    /// The last limits of the lane that were nothing out of the ordinary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinary: Option<Limits>,
}

/// Who lifted a measure, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifted {
    pub at: Timestamp,
    pub by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Of a policy's measure: until when what it plans of this kind for the lane is not put
    /// in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    /// A policy's sub-queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
}

impl Scope {
    pub(crate) fn of_lane(key: &LaneKey) -> Self {
        Scope {
            tenant: Some(key.tenant.clone()),
            class: Some(key.class),
            relay: Some(key.relay.clone()),
            site: Some(key.site.clone()),
            domain: None,
            lane: key.lane.clone(),
        }
    }

    /// The lane of a policy's measure.
    pub(crate) fn lane_key(&self) -> Option<LaneKey> {
        Some(LaneKey {
            tenant: self.tenant.clone()?,
            class: self.class?,
            relay: self.relay.clone()?,
            site: self.site.clone()?,
            lane: self.lane.clone(),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing is attempted; set by the gateway or its policy.
    Suspend,
    /// Nothing is attempted; set by a person.
    Hold,
    /// Attempted more slowly than it would be; set by the policy.
    Slow,
}

/// Who took a measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Setter {
    #[default]
    Operator,
    /// The shaping policy.
    Policy,
    /// The gateway: a site whose hosts don't answer.
    Host,
}

/// A name for a measure that nobody gave one: of what it is on, its kind, and its beginning.
pub(crate) fn id_of(kind: &str, scope: &Scope, effect: Effect, since: Timestamp) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let text = format!("{scope:?} {effect:?} {since:?}");
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{kind}-{hash:016x}")
}
