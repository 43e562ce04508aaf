//! Where the mail of a domain goes: MX and address records through hickory.
//!
//! Invariants: a [`Destination`] has at least one address; unless private destinations are
//! allowed all its addresses are public; hosts of the same or a worse preference than
//! this gateway's own name are not in it (RFC 5321 s. 5.1), so mail can't loop.
//!
//! Answers are kept by domain for their TTL within bounds, so that the hot path asks
//! hickory nothing; of several who ask for the same domain at once one does the work.
//! Knows nothing of SMTP, TLS policy or retries.

pub mod address;
pub(crate) mod ask;
mod dane;
pub(crate) mod records;
mod site;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};
use tidegate_mail::sts::{Mode, Policy};
use tidegate_mail::{Fault, Outcome, Stage};
use tidegate_queue::ports::{Clock, Destination, Fut, MxHost, Protection, Resolver};
use tokio::sync::OnceCell;

pub use self::ask::Dnssec;
use self::ask::{Dns, Trust};
use self::records::{
    Addresses, Found, addresses, fqdn, mx_hosts, records, remaining, shuffle_equals,
};
pub use self::site::site_name;
use crate::sts::{Sts, StsConfig};

/// How the DNS is asked and how long answers are believed.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Recursive servers to ask, over UDP and TCP; empty: those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// For one query to one server.
    pub timeout: Duration,
    /// Times a query is sent before it counts as unanswered.
    pub attempts: usize,
    /// Records kept by the resolver below.
    pub cache_records: u64,
    /// Domains whose destination is kept.
    pub cache_domains: usize,
    /// A destination is kept for the TTL of its records within these bounds.
    pub ttl: (Duration, Duration),
    /// Names of this gateway. An MX host of such a name is ourselves.
    pub own_names: Vec<String>,
    /// Deliver to loopback, private and other special addresses.
    pub allow_private: bool,
    /// MX hosts of a destination that are considered.
    pub max_hosts: usize,
    /// Addresses of one host that are considered.
    pub max_addresses: usize,
    /// Ask for AAAA records.
    pub ipv6: bool,
    /// What makes an answer a secure one.
    pub dnssec: Dnssec,
    /// Look for the TLSA records of MX hosts whose answers are secure: those of this port.
    pub dane: Option<u16>,
    /// Look for the MTA-STS policies of domains.
    pub sts: Option<StsConfig>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig {
            servers: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 3,
            cache_records: 32_768,
            cache_domains: 16_384,
            ttl: (Duration::from_secs(5), Duration::from_secs(15 * 60)),
            own_names: Vec::new(),
            allow_private: false,
            max_hosts: 5,
            max_addresses: 4,
            ipv6: true,
            dnssec: Dnssec::Off,
            dane: None,
            sts: None,
        }
    }
}

/// The resolver could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct DnsSetupError {
    reason: String,
}

/// How long a failure is believed: a permanent one, and one of the DNS itself.
const FAILURE_TTL: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(2));

/// An answer that came about in spite of a failed query is asked again soon.
const PARTIAL_TTL: Duration = Duration::from_secs(60);

type Answer = Result<Arc<Destination>, Outcome>;

struct Kept {
    answer: Answer,
    until: tidegate_mail::Timestamp,
}

#[derive(Default)]
struct Memory {
    kept: HashMap<Box<str>, Kept>,
    /// Domains being asked for.
    asked: HashMap<Box<str>, Arc<OnceCell<Answer>>>,
}

/// The [`Resolver`] port over hickory.
pub struct DnsResolver {
    dns: Dns,
    sts: Option<Arc<Sts>>,
    config: DnsConfig,
    clock: Arc<dyn Clock>,
    memory: Mutex<Memory>,
}

impl DnsResolver {
    /// Must be called within a tokio runtime.
    pub fn new(config: DnsConfig, clock: Arc<dyn Clock>) -> Result<Self, DnsSetupError> {
        let dns = Dns::new(&config).map_err(|reason| DnsSetupError { reason })?;
        let sts = config.sts.clone().map(|sts| Sts::new(sts, clock.clone()));
        let sts = sts.transpose().map_err(|error| DnsSetupError {
            reason: error.to_string(),
        })?;
        Ok(DnsResolver {
            dns,
            sts: sts.map(Arc::new),
            config,
            clock,
            memory: Mutex::default(),
        })
    }

    /// Whether answers can be secure, so that there is DANE.
    pub fn is_dnssec_aware(&self) -> bool {
        self.dns.trust != Trust::Nothing
    }

    /// The addresses of a named server; an address as such is taken as it is. Whether
    /// they are allowed is for the caller to check, at each use.
    pub async fn host_addresses(&self, host: &str) -> Result<Vec<IpAddr>, Outcome> {
        let literal = match address::literal(host) {
            Some(Ok(ip)) => Some(ip),
            _ => host.parse().ok(),
        };
        if let Some(ip) = literal {
            return Ok(vec![ip]);
        }
        let Some(name) = fqdn(host) else {
            return Err(no_such_domain("not a host name"));
        };
        let found = addresses(&self.dns, name, &self.config, true).await;
        if !found.usable.is_empty() {
            return Ok(found.usable);
        }
        Err(match found.failed {
            Some(detail) => unavailable(detail),
            None if found.no_such_name => Outcome::from_fault(Stage::Dns, Fault::NoSuchDomain),
            None => Outcome::from_fault(Stage::Dns, Fault::NoAddress),
        })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing panics while it is held, and each change is complete in itself.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, domain: &str) -> Answer {
        let cell = {
            let mut memory = self.memory();
            match memory.asked.get(domain) {
                Some(cell) => cell.clone(),
                None => {
                    let cell = Arc::new(OnceCell::new());
                    memory.asked.insert(domain.into(), cell.clone());
                    cell
                }
            }
        };
        let answer = cell
            .get_or_init(|| async {
                let (answer, valid_for) = self.look_up(domain).await;
                let until = self.clock.now().plus(valid_for);
                let mut memory = self.memory();
                memory.asked.remove(domain);
                self.make_room(&mut memory);
                memory.kept.insert(
                    domain.into(),
                    Kept {
                        answer: answer.clone(),
                        until,
                    },
                );
                answer
            })
            .await;
        answer.clone()
    }

    /// Drops what has expired when full, and everything if that is not enough: a refill
    /// costs queries, a search for the least used would cost every delivery.
    fn make_room(&self, memory: &mut Memory) {
        if memory.kept.len() >= self.config.cache_domains {
            let now = self.clock.now();
            memory.kept.retain(|_, kept| kept.until > now);
            if memory.kept.len() >= self.config.cache_domains {
                memory.kept.clear();
            }
        }
    }

    async fn look_up(&self, domain: &str) -> (Answer, Duration) {
        match self.destination(domain).await {
            Ok((mut destination, valid_for)) => {
                let valid_for = valid_for.clamp(self.config.ttl.0, self.config.ttl.1);
                destination.valid_until = self.clock.now().plus(valid_for);
                (Ok(Arc::new(destination)), valid_for)
            }
            Err(outcome) => {
                let permanent = outcome.verdict == tidegate_mail::Verdict::Permanent;
                let ttl = if permanent {
                    FAILURE_TTL.0
                } else {
                    FAILURE_TTL.1
                };
                (Err(outcome), ttl)
            }
        }
    }

    async fn destination(&self, domain: &str) -> Result<(Destination, Duration), Outcome> {
        if let Some(literal) = address::literal(domain) {
            let ip = literal.map_err(|()| no_such_domain("not an address literal"))?;
            if !address::is_allowed(ip, self.config.allow_private) {
                return Err(Outcome::from_fault(Stage::Dns, Fault::ForbiddenAddress));
            }
            let host = MxHost::new(domain, 0, vec![ip]);
            return Ok((self.finished(domain, domain, vec![host]), Duration::MAX));
        }
        let name = fqdn(domain).ok_or_else(|| no_such_domain("not a domain name"))?;
        let policy = async {
            match &self.sts {
                Some(sts) => sts.policy(&self.dns, &self.config, domain).await,
                None => None,
            }
        };
        let (found, policy) = tokio::join!(records(&self.dns, &name, RecordType::MX), policy);
        let (mut hosts, mut valid_for, secure_mx) = match found {
            Found::Records(lookup, secure) => (mx_hosts(&lookup)?, remaining(&lookup), secure),
            Found::Nothing => (Vec::new(), Duration::MAX, true),
            Found::NoSuchName => {
                return Err(Outcome::from_fault(Stage::Dns, Fault::NoSuchDomain));
            }
            Found::Failed(detail) => return Err(unavailable(detail)),
        };
        let implicit = hosts.is_empty();
        if implicit {
            // RFC 5321 s. 5.1: the domain itself is its implicit MX.
            hosts.push((0, domain.to_owned()));
        }
        self.drop_ourselves(&mut hosts)?;
        let site = site_name(hosts.iter().map(|(_, name)| name.as_str()));
        shuffle_equals(&mut hosts);
        hosts.truncate(self.config.max_hosts);

        let mut found = self.addresses_of(&hosts, secure_mx, domain).await;
        let none = found.iter().all(|f| f.addresses.usable.is_empty());
        if none {
            if let Some(detail) = found.iter_mut().find_map(|f| f.addresses.failed.take()) {
                return Err(unavailable(detail));
            }
            let fault = if found.iter().any(|f| f.addresses.forbidden) {
                Fault::ForbiddenAddress
            } else {
                Fault::NoAddress
            };
            return Err(Outcome::from_fault(Stage::Dns, fault));
        }
        for host in &found {
            let addresses = &host.addresses;
            valid_for = valid_for
                .min(addresses.valid_for.unwrap_or(Duration::MAX))
                .min(host.valid_for);
            if addresses.failed.is_some() || matches!(host.dane, Protection::Unknown(_)) {
                valid_for = valid_for.min(PARTIAL_TTL);
            }
        }
        let hosts = hosts
            .into_iter()
            .zip(found)
            .map(|((preference, name), found)| {
                let listed = policy.as_ref().is_some_and(|p| p.names(&name));
                MxHost {
                    protection: demanded(found.dane, policy.as_deref(), listed),
                    // The name of an implicit MX is the one that the sender gave.
                    authentic: implicit || listed || (secure_mx && self.is_dnssec_aware()),
                    ..MxHost::new(name, preference, found.addresses.usable)
                }
            })
            .collect();
        Ok((self.finished(domain, &site, hosts), valid_for))
    }

    fn finished(&self, domain: &str, site: &str, hosts: Vec<MxHost>) -> Destination {
        Destination {
            domain: domain.to_owned(),
            site: site.into(),
            hosts,
            valid_until: self.clock.now(),
        }
    }

    /// RFC 5321 s. 5.1: if we are one of the hosts, it and all that are not better are
    /// left out, or mail would go round.
    fn drop_ourselves(&self, hosts: &mut Vec<(u16, String)>) -> Result<(), Outcome> {
        let own = |name: &str| {
            self.config
                .own_names
                .iter()
                .any(|own| own.eq_ignore_ascii_case(name))
        };
        let ours = hosts.iter().filter(|(_, name)| own(name));
        if let Some(limit) = ours.map(|(preference, _)| *preference).min() {
            hosts.retain(|(preference, _)| *preference < limit);
            if hosts.is_empty() {
                return Err(Outcome::from_fault(Stage::Dns, Fault::LoopsToSelf));
            }
        }
        Ok(())
    }

    /// All hosts at the same time, in their order.
    async fn addresses_of(
        &self,
        hosts: &[(u16, String)],
        secure_mx: bool,
        domain: &str,
    ) -> Vec<HostFound> {
        let dane = self
            .config
            .dane
            .filter(|_| secure_mx && self.is_dnssec_aware());
        let asked = |host: &str| {
            let name = fqdn(host)?;
            let (dns, config) = (self.dns.clone(), self.config.clone());
            let domain = domain.to_owned();
            Some(async move { look_at(&dns, name, &config, dane, &domain).await })
        };
        if let [(_, only)] = hosts {
            return match asked(only) {
                Some(asking) => vec![asking.await],
                None => vec![HostFound::default()],
            };
        }
        let mut found: Vec<HostFound> = hosts.iter().map(|_| HostFound::default()).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, (_, host)) in hosts.iter().enumerate() {
            // A host whose name is not one has no addresses.
            if let Some(asking) = asked(host) {
                tasks.spawn(async move { (n, asking.await) });
            }
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok((n, host)) => found[n] = host,
                Err(error) => tracing::error!(%error, "an address lookup ended abnormally"),
            }
        }
        found
    }
}

/// What there is to know of one host.
struct HostFound {
    addresses: Addresses,
    dane: Protection,
    /// Of what DANE says.
    valid_for: Duration,
}

impl Default for HostFound {
    fn default() -> Self {
        HostFound {
            addresses: Addresses::default(),
            dane: Protection::Opportunistic,
            valid_for: Duration::MAX,
        }
    }
}

async fn look_at(
    dns: &Dns,
    name: Name,
    config: &DnsConfig,
    dane_port: Option<u16>,
    domain: &str,
) -> HostFound {
    let addresses = addresses(dns, name.clone(), config, config.allow_private).await;
    let (dane, valid_for) = match dane_port {
        Some(port) if !addresses.usable.is_empty() => {
            dane::protection(dns, &name, &addresses, port, domain).await
        }
        _ => (Protection::Opportunistic, Duration::MAX),
    };
    HostFound {
        addresses,
        dane,
        valid_for,
    }
}

/// DANE where it applies, else the domain's MTA-STS policy (RFC 8461 s. 2). TLSA records of which
/// none can be used demand less than a policy in force, and don't take its place.
fn demanded(dane: Protection, policy: Option<&Policy>, listed: bool) -> Protection {
    match (dane, policy.map(|p| p.mode)) {
        (Protection::Opportunistic | Protection::Encrypted, Some(Mode::Enforce)) => {
            if listed {
                Protection::Sts
            } else {
                Protection::StsMismatch
            }
        }
        (Protection::Opportunistic, Some(Mode::Testing)) => Protection::StsTesting { listed },
        (dane, _) => dane,
    }
}

impl Resolver for DnsResolver {
    fn resolve<'a>(&'a self, domain: &'a str) -> Fut<'a, Answer> {
        let now = self.clock.now();
        let known = self
            .memory()
            .kept
            .get(domain)
            .filter(|kept| kept.until > now)
            .map(|kept| kept.answer.clone());
        match known {
            Some(answer) => Box::pin(std::future::ready(answer)),
            None => Box::pin(self.ask(domain)),
        }
    }
}

fn no_such_domain(detail: &str) -> Outcome {
    Outcome::from_fault(Stage::Dns, Fault::NoSuchDomain).with_detail(detail)
}

fn unavailable(detail: String) -> Outcome {
    Outcome::from_fault(Stage::Dns, Fault::DnsUnavailable).with_detail(detail)
}
