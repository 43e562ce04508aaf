//! Mail of the staff goes by the company's own server, so that it is in everybody's "Sent"
//! folder and signed there; when that server does not take it, by managed relay. All other mail,
//! what the CRM writes by itself, goes by managed relay at once.

use serde::Deserialize;
use tidegate_guest::routing::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Addresses and domains whose mail is the staff's: `anna@acme.example`, `staff.acme.example`.
    #[serde(default)]
    staff: Vec<String>,
    /// A server registered for the tenant.
    #[serde(default)]
    server: String,
    /// Names of senders that are never staff, such as `noreply`.
    #[serde(default)]
    robots: Vec<String>,
}

struct OwnServer {
    /// Sorted, lower case.
    staff: Vec<String>,
    robots: Vec<String>,
    server: String,
}

impl Policy for OwnServer {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        if config.staff.is_empty() {
            return Err(
                "staff: name addresses or domains whose mail goes by your server".to_owned(),
            );
        }
        if config.server.is_empty() {
            return Err("server: name a server that is registered for you".to_owned());
        }
        let lower = |names: Vec<String>| {
            let mut names: Vec<String> = names.iter().map(|n| n.to_ascii_lowercase()).collect();
            names.sort_unstable();
            names
        };
        let policy = OwnServer {
            staff: lower(config.staff),
            robots: lower(config.robots),
            server: config.server,
        };
        Ok((
            policy,
            Descriptor::new("own-server", env!("CARGO_PKG_VERSION")),
        ))
    }

    fn decide(&self, why: Occasion, message: Message) -> Result<Decision, PolicyError> {
        let managed = Decision::all(Action::managed());
        if let Occasion::PassthroughFailed(reply) = why {
            return Ok(managed.tag("own-server", &format!("failed with {}", reply.code)));
        }
        Ok(if self.is_staff(&message) {
            Decision::all(Action::passthrough(
                &self.server,
                AfterFailure::ManagedRelay,
            ))
        } else {
            managed
        })
    }
}

impl OwnServer {
    fn is_staff(&self, message: &Message) -> bool {
        let sender = message.sender.to_ascii_lowercase();
        let Some((name, domain)) = sender.rsplit_once('@') else {
            return false;
        };
        let listed = |list: &[String], name: &str| {
            list.binary_search_by(|entry| entry.as_str().cmp(name))
                .is_ok()
        };
        !listed(&self.robots, name) && (listed(&self.staff, &sender) || listed(&self.staff, domain))
    }
}

tidegate_guest::routing_policy!(OwnServer);
