//! Campaigns: mail with a campaign field is bulk, in a lane of its own, by the relay of its kind,
//! and gives up after a day without a notice of delay. A campaign without a way to unsubscribe
//! (RFC 8058) is refused: large mailbox providers would count it against the whole tenant.

use std::collections::BTreeMap;

use serde::Deserialize;
use tidegate_guest::routing::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The field that names a campaign; `X-Campaign` where it is not named.
    header: Option<String>,
    /// The relay for campaigns.
    #[serde(default)]
    relay: String,
    /// Beginnings of names, with the relay of such campaigns; the longest counts.
    #[serde(default)]
    by_prefix: BTreeMap<String, String>,
}

struct Campaigns {
    relay: String,
    by_prefix: BTreeMap<String, String>,
}

impl Policy for Campaigns {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        if config.relay.is_empty() {
            return Err("relay: name the relay for campaigns".to_owned());
        }
        let header = config.header.as_deref().unwrap_or("X-Campaign");
        let descriptor = Descriptor::new("campaign", env!("CARGO_PKG_VERSION"))
            .headers([header, "List-Unsubscribe"]);
        let policy = Campaigns {
            relay: config.relay,
            by_prefix: config.by_prefix,
        };
        Ok((policy, descriptor))
    }

    fn decide(&self, _why: Occasion, message: Message) -> Result<Decision, PolicyError> {
        let campaign = message.header(0).unwrap_or("").trim();
        if campaign.is_empty() {
            return Ok(Decision::all(Action::managed()));
        }
        if message.header(1).is_none() {
            let text = "a campaign needs a List-Unsubscribe field";
            return Ok(Decision::all(Action::refuse(550, "5.7.1", text)));
        }
        let terms = Managed {
            class: TrafficClass::Bulk,
            relay: Some(self.relay_of(campaign).to_owned()),
            lane: Some(lane_of(campaign)),
            expire_after: Some(24 * 3600),
            notify_delay_after: Some(0),
            ..Managed::default()
        };
        let tag: String = campaign.chars().take(60).collect();
        Ok(Decision::all(Action::ManagedRelay(terms)).tag("campaign", &tag))
    }
}

impl Campaigns {
    fn relay_of(&self, campaign: &str) -> &str {
        self.by_prefix
            .iter()
            .filter(|(prefix, _)| campaign.starts_with(prefix.as_str()))
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(&self.relay, |(_, relay)| relay)
    }
}

/// Lower-case letters, digits and dots: a hyphen for all that is none of these.
fn lane_of(campaign: &str) -> String {
    let mut lane = String::new();
    for c in campaign.chars() {
        if c.is_ascii_alphanumeric() || c == '.' {
            lane.push(c.to_ascii_lowercase());
        } else if !lane.ends_with('-') {
            lane.push('-');
        }
    }
    lane.truncate(64);
    lane
}

tidegate_guest::routing_policy!(Campaigns);
