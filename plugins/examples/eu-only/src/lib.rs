//! Mail leaves by relays within the EU only. Mail with personal data of a special kind, marked by
//! a header field, does not leave for domains outside of a list at all.

use serde::Deserialize;
use tidegate_guest::routing::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The relay within the EU.
    #[serde(default)]
    relay: String,
    /// The field that marks mail with sensitive data; `X-Sensitive` where it is not named.
    sensitive_header: Option<String>,
    /// Domains, or `.suffixes`, that may receive it.
    #[serde(default)]
    allowed: Vec<String>,
}

struct EuOnly {
    relay: String,
    allowed: Vec<String>,
}

impl Policy for EuOnly {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        if config.relay.is_empty() {
            return Err("relay: name a relay that is granted to you".to_owned());
        }
        if config.allowed.is_empty() {
            return Err(
                "allowed: list the domains, or .suffixes, that may receive sensitive mail"
                    .to_owned(),
            );
        }
        let marked = config.sensitive_header.as_deref().unwrap_or("X-Sensitive");
        let descriptor = Descriptor::new("eu-only", env!("CARGO_PKG_VERSION")).headers([marked]);
        let allowed = config
            .allowed
            .iter()
            .map(|domain| domain.to_ascii_lowercase())
            .collect();
        let policy = EuOnly {
            relay: config.relay,
            allowed,
        };
        Ok((policy, descriptor))
    }

    fn decide(&self, _why: Occasion, message: Message) -> Result<Decision, PolicyError> {
        let managed = Action::ManagedRelay(Managed {
            relay: Some(self.relay.clone()),
            ..Managed::default()
        });
        let mut decision = Decision::all(managed);
        if message.header(0).is_some() {
            let outside: Vec<u32> = message
                .recipients
                .iter()
                .enumerate()
                .filter(|(_, recipient)| !self.may_receive(recipient.domain()))
                .map(|(n, _)| n as u32)
                .collect();
            if !outside.is_empty() {
                decision.splits.push(Split {
                    recipients: outside,
                    action: Action::refuse(
                        550,
                        "5.7.1",
                        "sensitive data may not leave for this domain",
                    ),
                });
            }
        }
        Ok(decision)
    }
}

impl EuOnly {
    fn may_receive(&self, domain: &str) -> bool {
        self.allowed.iter().any(|allowed| {
            domain == allowed || (allowed.starts_with('.') && domain.ends_with(allowed.as_str()))
        })
    }
}

tidegate_guest::routing_policy!(EuOnly);
