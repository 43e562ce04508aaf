//! NAME: mail with a campaign field goes as bulk mail in a lane of its own, all other mail by
//! managed relay on the gateway's terms.

use serde::Deserialize;
use tidegate_guest::routing::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The header field that names a campaign.
    campaign_header: String,
}

/// What `init` builds and every decision reads.
struct Router;

impl Policy for Router {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        // The host passes only the fields that are named here: number 0 is the campaign's.
        let descriptor = Descriptor::new("NAME", env!("CARGO_PKG_VERSION"))
            .headers([config.campaign_header]);
        Ok((Router, descriptor))
    }

    fn decide(&self, _why: Occasion, message: Message) -> Result<Decision, PolicyError> {
        let campaign = message.header(0).unwrap_or("");
        if campaign.is_empty() {
            return Ok(Decision::all(Action::managed()));
        }
        let bulk = Managed {
            class: TrafficClass::Bulk,
            lane: Some(campaign.chars().take(16).collect()),
            ..Managed::default()
        };
        let tag: String = campaign.chars().take(60).collect();
        Ok(Decision::all(Action::ManagedRelay(bulk)).tag("campaign", &tag))
    }
}

tidegate_guest::routing_policy!(Router);
