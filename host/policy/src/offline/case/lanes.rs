//! Cases of a shaping policy: lanes as the host would see them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tidegate_mail::{Timestamp, TrafficClass};
use tidegate_queue::shape::{LaneKey, LaneState, Limits, ReplyCount, Window};

use super::{InstantText, TENANT, instant};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LanesText {
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub now: Option<InstantText>,
    pub lanes: Vec<LaneText>,
    #[serde(default)]
    pub expect: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LaneText {
    site: String,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    class: Option<TrafficClass>,
    #[serde(default)]
    relay: Option<String>,
    #[serde(default)]
    lane: Option<String>,
    #[serde(default)]
    backlog: u32,
    #[serde(default)]
    oldest_seconds: u32,
    #[serde(default)]
    open_connections: u16,
    #[serde(default)]
    sending_since: Option<InstantText>,
    #[serde(default)]
    sent_total: u64,
    #[serde(default)]
    current: Option<Limits>,
    #[serde(default)]
    recent: WindowText,
    #[serde(default)]
    facts: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WindowText {
    seconds: Option<u32>,
    attempts: u32,
    delivered: u32,
    deferred: u32,
    bounced: u32,
    connect_failures: u32,
    replies: Vec<ReplyCountText>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyCountText {
    code: u16,
    #[serde(default)]
    enhanced: String,
    #[serde(default)]
    sample: String,
    #[serde(default = "one")]
    count: u32,
}

fn one() -> u32 {
    1
}

impl LaneText {
    pub fn state(self, now: Timestamp) -> Result<LaneState, String> {
        Ok(LaneState {
            key: LaneKey {
                tenant: self.tenant.unwrap_or_else(|| TENANT.to_owned()),
                class: self.class.unwrap_or(TrafficClass::Bulk),
                relay: self.relay.unwrap_or_else(|| "mx".to_owned()),
                site: self.site,
                lane: self.lane,
            },
            backlog: self.backlog,
            oldest_seconds: self.oldest_seconds,
            open_connections: self.open_connections,
            sending_since: instant("lanes.sending_since", self.sending_since.as_ref())?
                .map(|t| t.min(now)),
            sent_total: self.sent_total,
            current: self.current,
            planned_by: None,
            recent: Window {
                seconds: self.recent.seconds.unwrap_or(60),
                attempts: self.recent.attempts,
                delivered: self.recent.delivered,
                deferred: self.recent.deferred,
                bounced: self.recent.bounced,
                connect_failures: self.recent.connect_failures,
                replies: self
                    .recent
                    .replies
                    .into_iter()
                    .map(|r| ReplyCount {
                        code: r.code,
                        enhanced: r.enhanced,
                        sample: r.sample,
                        count: r.count,
                    })
                    .collect(),
            },
            facts: self.facts.into_iter().collect(),
        })
    }
}
