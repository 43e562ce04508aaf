//! Relay by the sender's domain; `*` stands for all others. A domain that is not named, where there
//! is no `*`, is refused: nobody sends in the name of a domain that was not set up. A notice, which
//! has no sender, goes as the tenant's mail goes without a policy.

use std::collections::BTreeMap;

use serde::Deserialize;
use tidegate_guest::routing::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Domains, or `*`, with the name of the relay of each.
    #[serde(default)]
    relays: BTreeMap<String, String>,
}

struct SenderDomain {
    /// Names in lower case.
    relays: BTreeMap<String, String>,
}

impl Policy for SenderDomain {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        if config.relays.is_empty() {
            return Err("relays: name at least one domain and its relay".to_owned());
        }
        let relays = config.relays.into_iter();
        let policy = SenderDomain {
            relays: relays
                .map(|(domain, relay)| (domain.to_ascii_lowercase(), relay))
                .collect(),
        };
        let descriptor = Descriptor::new("sender-domain", env!("CARGO_PKG_VERSION"));
        Ok((policy, descriptor))
    }

    fn decide(&self, _why: Occasion, message: Message) -> Result<Decision, PolicyError> {
        if message.sender.is_empty() {
            return Ok(Decision::all(Action::managed()));
        }
        let domain = message.sender_domain().to_ascii_lowercase();
        let relay = self.relays.get(&domain).or_else(|| self.relays.get("*"));
        Ok(Decision::all(match relay {
            Some(relay) => Action::ManagedRelay(Managed {
                relay: Some(relay.clone()),
                ..Managed::default()
            }),
            None => Action::refuse(550, "5.7.1", "no relay is set up for the sender's domain"),
        }))
    }
}

tidegate_guest::routing_policy!(SenderDomain);
