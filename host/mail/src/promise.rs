//! The promise made for a recipient at acceptance: the terms in force, kept with
//! it and shown with its log, whatever the policy says later.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Transactional mail goes before bulk, and bulk is shaped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum TrafficClass {
    #[default]
    Transactional,
    Bulk,
}

impl TrafficClass {
    pub fn as_str(self) -> &'static str {
        match self {
            TrafficClass::Transactional => "transactional",
            TrafficClass::Bulk => "bulk",
        }
    }
}

/// Terms of a managed recipient.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Promise {
    pub class: TrafficClass,
    /// Name of the relay (a configured way out).
    pub relay: String,
    /// Sub-queue named by the policy, such as a campaign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
    #[serde(default)]
    pub priority: i8,
    /// Seconds from acceptance until the gateway gives up.
    pub lifetime_secs: u32,
    /// Seconds from acceptance until the delay notice; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_notice_secs: Option<u32>,
    /// Hex SHA-256 of the routing policy revision that decided; `None`: built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

impl Promise {
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(u64::from(self.lifetime_secs))
    }

    pub fn delay_notice(&self) -> Option<Duration> {
        self.delay_notice_secs
            .map(|s| Duration::from_secs(u64::from(s)))
    }
}
