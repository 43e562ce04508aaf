//! Tenants, their domains, credentials and servers, and the operator's relays.
//!
//! [`Directory`] is an immutable snapshot; a change builds the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_mail::Timestamp;
use tidegate_mail::dsn::Wording;

use crate::ports::TlsMode;

/// A customer of the CRM. Untrusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Lower-case letters, digits and `-`, 1 to 63 characters.
    pub id: String,
    /// Domains it may send from, lower case; sub-domains are not included.
    pub domains: Vec<String>,
    /// Relays it may use; the first is its default. Empty: the built-in `mx`.
    #[serde(default)]
    pub relays: Vec<String>,
    /// Suspended tenants submit nothing (550 5.7.1 at MAIL); what is queued goes on.
    #[serde(default)]
    pub suspended: bool,
    /// Bulk mail only.
    #[serde(default)]
    pub bulk_suspended: bool,
    /// How its notices read; `None`: as the gateway's own. Always one that passed
    /// [`Wording::check`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wording: Option<Box<Wording>>,
    /// Whether what its routing policy was asked and answered is kept for rehearsals.
    #[serde(default = "yes")]
    pub record_inputs: bool,
    /// How much bulk mail of it goes out; `None`: any amount. What is beyond waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bulk_quota: Option<Quota>,
}

/// So many recipients in any stretch of time of that length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// At least 1.
    pub recipients: u32,
    /// Seconds: a minute to 31 days.
    pub window_secs: u32,
}

impl Quota {
    pub fn window(self) -> Duration {
        Duration::from_secs(u64::from(self.window_secs))
    }
}

fn yes() -> bool {
    true
}

/// A tenant's token for the admin API. The token itself is shown once and kept nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// For people: to tell and to revoke it.
    pub id: String,
    pub tenant: String,
    /// Hex SHA-256 of the token, which has 160 random bits.
    pub hash: String,
    #[serde(default)]
    pub note: String,
    pub created_at: Timestamp,
}

/// An account for AUTH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Unique over all tenants.
    pub user: String,
    pub tenant: String,
    /// Argon2id in PHC form.
    pub hash: String,
    /// Everything submitted with it is bulk.
    #[serde(default)]
    pub bulk: bool,
}

/// A tenant's own server, for passthrough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub tenant: String,
    pub name: String,
    pub host: String,
    pub port: u16,
    #[serde(default)]
    pub tls: TlsMode,
    #[serde(default)]
    pub user: Option<String>,
    /// Sealed with the master key (AES-256-GCM-SIV), base64.
    #[serde(default)]
    pub sealed_password: Option<String>,
}

/// A configured way out for managed mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    pub name: String,
    pub way: Way,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Way {
    /// To the MX of each domain, from one of these source addresses (none: the system's choice).
    Mx {
        #[serde(default)]
        sources: Vec<std::net::IpAddr>,
    },
    /// Everything to one host.
    Smarthost {
        host: String,
        port: u16,
        #[serde(default)]
        tls: TlsMode,
        #[serde(default)]
        user: Option<String>,
        #[serde(default)]
        sealed_password: Option<String>,
    },
}

/// Name of the relay that is always there: direct to MX.
pub const BUILT_IN_RELAY: &str = "mx";

/// What the hot path looks up, as one immutable value.
#[derive(Debug, Default)]
pub struct Directory {
    tenants: HashMap<Arc<str>, Arc<Tenant>>,
    by_domain: HashMap<String, Vec<Arc<str>>>,
    credentials: HashMap<String, Arc<Credential>>,
    servers: HashMap<(String, String), Arc<Server>>,
    relays: HashMap<String, Arc<Relay>>,
}

impl Directory {
    pub fn new(
        tenants: Vec<Tenant>,
        credentials: Vec<Credential>,
        servers: Vec<Server>,
        relays: Vec<Relay>,
    ) -> Self {
        let mut directory = Directory::default();
        for tenant in tenants {
            let id: Arc<str> = tenant.id.as_str().into();
            for domain in &tenant.domains {
                directory
                    .by_domain
                    .entry(domain.to_ascii_lowercase())
                    .or_default()
                    .push(id.clone());
            }
            directory.tenants.insert(id, Arc::new(tenant));
        }
        for credential in credentials {
            directory
                .credentials
                .insert(credential.user.clone(), Arc::new(credential));
        }
        for server in servers {
            directory.servers.insert(
                (server.tenant.clone(), server.name.clone()),
                Arc::new(server),
            );
        }
        directory.relays.insert(
            BUILT_IN_RELAY.to_owned(),
            Arc::new(Relay {
                name: BUILT_IN_RELAY.to_owned(),
                way: Way::Mx {
                    sources: Vec::new(),
                },
            }),
        );
        for relay in relays {
            directory.relays.insert(relay.name.clone(), Arc::new(relay));
        }
        directory
    }

    pub fn tenant(&self, id: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(id)
    }

    pub fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.tenants.values()
    }

    pub fn credential(&self, user: &str) -> Option<&Arc<Credential>> {
        self.credentials.get(user)
    }

    pub fn server(&self, tenant: &str, name: &str) -> Option<&Arc<Server>> {
        self.servers.get(&(tenant.to_owned(), name.to_owned()))
    }

    pub fn relay(&self, name: &str) -> Option<&Arc<Relay>> {
        self.relays.get(name)
    }

    pub fn relays(&self) -> impl Iterator<Item = &Arc<Relay>> {
        self.relays.values()
    }

    /// Whether the tenant may use this domain in a reverse-path.
    pub fn owns(&self, tenant: &str, domain: &str) -> bool {
        self.by_domain
            .get(domain)
            .is_some_and(|ids| ids.iter().any(|id| &**id == tenant))
    }

    /// The relay of a tenant's mail where its policy names none.
    pub fn default_relay(&self, tenant: &str) -> &str {
        self.tenants
            .get(tenant)
            .and_then(|t| t.relays.first())
            .map_or(BUILT_IN_RELAY, String::as_str)
    }

    /// Whether a tenant may use that relay.
    pub fn grants_relay(&self, tenant: &str, relay: &str) -> bool {
        relay == self.default_relay(tenant)
            || self
                .tenants
                .get(tenant)
                .is_some_and(|t| t.relays.iter().any(|r| r == relay))
    }
}
