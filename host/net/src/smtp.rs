//! The SMTP client: the [`Transport`] port over real connections.
//!
//! A job's hosts are tried in their order until one takes the transaction; each
//! recipient gets one [`Outcome`] with the stage and the peer's own words. Refusals are
//! data, so nothing here returns an error. Own client rather than mail-send's: that one loses the
//! replies of single recipients and early replies, knows one time-out and no pipelining,
//! and has STARTTLS as required or not at all.
//!
//! Knows nothing of retries, queues or notices.

mod body;
mod capabilities;
mod command;
mod delivery;
mod fitness;
mod memory;
mod pool;
mod protection;
mod session;
mod tls;
mod transaction;
mod verify;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidegate_mail::{Fault, Outcome, Stage, Verdict};
use tidegate_queue::ports::{Clock, Fut, HandOff, Job, MxHost, Target, Transport};

use self::memory::Memory;
use self::pool::Pool;
use self::tls::TlsClient;
pub(crate) use self::tls::roots;
pub use self::tls::{TlsSetupError, TrustAnchors};
use crate::resolver::DnsResolver;
use crate::resolver::address::{is_foreign, is_of_this_machine, is_public};

/// Time limits of the client (RFC 5321 s. 4.5.3.2). Each is for a whole reply.
#[derive(Clone, Debug)]
pub struct Timeouts {
    pub connect: Duration,
    /// For a TLS handshake.
    pub tls: Duration,
    /// From the connection until the peer is ready for MAIL, once more in clear included.
    pub opening: Duration,
    /// After so long no other address is tried for a job, and no further transaction begun.
    pub attempt: Duration,
    pub banner: Duration,
    /// EHLO, STARTTLS, AUTH.
    pub ehlo: Duration,
    pub mail: Duration,
    pub rcpt: Duration,
    /// For all of MAIL, RCPT and DATA together.
    pub envelope: Duration,
    /// The reply to DATA.
    pub data: Duration,
    /// For each 128 KiB of content.
    pub block: Duration,
    /// For all of the content.
    pub content: Duration,
    /// The reply to the end of the data. If it is cut short, mail is sent twice.
    pub dot: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        Timeouts {
            connect: Duration::from_secs(30),
            tls: Duration::from_secs(60),
            opening: minutes(10),
            attempt: minutes(10),
            banner: minutes(5),
            ehlo: minutes(5),
            mail: minutes(5),
            rcpt: minutes(5),
            envelope: minutes(15),
            data: minutes(2),
            block: minutes(3),
            content: minutes(60),
            dot: minutes(10),
        }
    }
}

/// What the client can be told by configuration.
#[derive(Clone, Debug)]
pub struct SmtpConfig {
    /// Our name in EHLO.
    pub hostname: Arc<str>,
    /// Port of MX hosts. 25 but for tests.
    pub mx_port: u16,
    pub timeouts: Timeouts,
    /// For verified TLS.
    pub trust_anchors: TrustAnchors,
    /// MX hosts may have loopback, private and other special addresses.
    pub allow_private: bool,
    /// Connections kept idle, in all.
    pub pool_size: usize,
    /// How long a connection is kept idle.
    pub pool_idle: Duration,
    /// Recipients in one transaction. RFC 5321 s. 4.5.3.1.8 lets servers refuse more than 100.
    pub recipients_per_transaction: usize,
    /// Addresses tried for one job.
    pub max_addresses: usize,
    /// Peers that took a connection and then would not take mail, for one job. Two hosts of two
    /// families: some refuse to talk over IPv6 only.
    pub max_peers: usize,
    /// How long a host whose TLS is broken is sent to in clear at once.
    pub broken_tls_memory: Duration,
    /// How long an address that took no connection is tried after the others.
    pub dead_host_memory: Duration,
}

impl SmtpConfig {
    /// Defaults for a gateway of this name.
    pub fn new(hostname: impl Into<Arc<str>>) -> Self {
        SmtpConfig {
            hostname: hostname.into(),
            mx_port: 25,
            timeouts: Timeouts::default(),
            trust_anchors: TrustAnchors::default(),
            allow_private: false,
            pool_size: 1000,
            pool_idle: Duration::from_secs(15),
            recipients_per_transaction: 100,
            max_addresses: 10,
            max_peers: 4,
            broken_tls_memory: Duration::from_secs(3600),
            dead_host_memory: Duration::from_secs(60),
        }
    }
}

/// The SMTP client.
pub struct Smtp {
    config: SmtpConfig,
    resolver: Arc<DnsResolver>,
    clock: Arc<dyn Clock>,
    tls: TlsClient,
    pool: Arc<Pool>,
    /// Addresses whose TLS does not work, and which take no connection.
    broken_tls: Memory,
    dead: Memory,
    /// Where this gateway itself listens.
    listeners: OnceLock<Vec<SocketAddr>>,
}

/// A host and one of its addresses.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    host: &'a str,
    peer: SocketAddr,
    /// None for a server named by configuration.
    mx: Option<&'a MxHost>,
}

impl Smtp {
    /// `resolver` finds the addresses of endpoints; those of MX hosts come with the job.
    pub fn new(
        config: SmtpConfig,
        resolver: Arc<DnsResolver>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TlsSetupError> {
        Ok(Smtp {
            tls: TlsClient::new(&config.trust_anchors)?,
            pool: Pool::new(config.pool_size, config.pool_idle),
            broken_tls: Memory::new(config.broken_tls_memory),
            dead: Memory::new(config.dead_host_memory),
            listeners: OnceLock::new(),
            config,
            resolver,
            clock,
        })
    }

    /// Tells where this gateway listens itself; nobody is delivered to there. Counts once.
    pub fn listens_at(&self, listeners: Vec<SocketAddr>) {
        let _ = self.listeners.set(listeners);
    }

    fn is_own_listener(&self, peer: SocketAddr) -> bool {
        let ip = peer.ip().to_canonical();
        self.listeners.get().is_some_and(|listeners| {
            listeners.iter().any(|own| {
                let at = own.ip().to_canonical();
                own.port() == peer.port()
                    && (at == ip
                        || (at.is_unspecified() || ip.is_unspecified()) && is_of_this_machine(ip))
            })
        })
    }

    /// Why a tenant's server can't be at this address: it is the gateway, or on its network.
    pub fn forbids(&self, peer: SocketAddr, allow_private: bool) -> Option<Fault> {
        if self.is_own_listener(peer) {
            return Some(Fault::LoopsToSelf);
        }
        (!allow_private && !is_foreign(peer.ip())).then_some(Fault::ForbiddenAddress)
    }

    /// Connections at rest.
    pub fn idle_connections(&self) -> usize {
        self.pool.len()
    }

    /// Takes leave of all idle connections, as before the process ends.
    pub async fn close_idle(&self) {
        self.pool.close().await;
    }

    /// The addresses of the job's target in the order to be tried: of the right family for the
    /// source, allowed, and those that took no connection lately last.
    async fn candidates<'j>(&self, job: &'j Job) -> Result<Vec<Candidate<'j>>, Outcome> {
        let mut all = Vec::new();
        let allow_private = match &job.target {
            Target::Mx(destination) => {
                for host in &destination.hosts {
                    all.extend(host.addresses.iter().map(|ip| Candidate {
                        host: &host.name,
                        peer: SocketAddr::new(*ip, self.config.mx_port),
                        mx: Some(host),
                    }));
                }
                self.config.allow_private
            }
            Target::Endpoint(endpoint) => {
                let found = self.resolver.host_addresses(&endpoint.host).await;
                let found = found.map_err(missing)?;
                all.extend(found.into_iter().map(|ip| Candidate {
                    host: &endpoint.host,
                    peer: SocketAddr::new(ip, endpoint.port),
                    mx: None,
                }));
                endpoint.allow_private
            }
        };
        let of_tenant = matches!(&job.target, Target::Endpoint(e) if e.of_tenant);
        let mut forbidden = None;
        all.retain(|c| {
            let fault = if of_tenant {
                self.forbids(c.peer, allow_private)
            } else if self.is_own_listener(c.peer) {
                Some(Fault::LoopsToSelf)
            } else {
                (!allow_private && !is_public(c.peer.ip())).then_some(Fault::ForbiddenAddress)
            };
            forbidden = forbidden.or(fault);
            fault.is_none()
        });
        if let Some(fault) = forbidden
            && all.is_empty()
        {
            let outcome = Outcome::from_fault(Stage::Dns, fault);
            return Err(match &job.target {
                // The operator's mistake; of a tenant's server it is what the tenant is told.
                Target::Endpoint(endpoint) if !endpoint.of_tenant => missing(outcome),
                _ => outcome,
            });
        }
        if let Some(source) = job.source {
            all.retain(|c| same_family(c.peer.ip(), source));
            if all.is_empty() {
                return Err(Outcome::from_fault(Stage::Connect, Fault::ConnectRefused)
                    .with_detail(format!("no address of the family of the source {source}")));
            }
        }
        if !self.dead.is_empty() {
            let now = tokio::time::Instant::now();
            all.sort_by_key(|c| self.dead.has(&c.peer, now));
        }
        all.truncate(self.config.max_addresses);
        Ok(all)
    }
}

/// What keeps a server that somebody configured from being found is no fault of the addresses
/// that mail is for: it waits until the name is put right.
fn missing(why: Outcome) -> Outcome {
    if why.verdict != Verdict::Permanent {
        return why;
    }
    Outcome::from_fault(Stage::Dns, Fault::RelayUnavailable).with_detail(why.text())
}

fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

impl Transport for Smtp {
    fn deliver(&self, job: Job) -> Fut<'_, HandOff> {
        Box::pin(async move { delivery::deliver(self, &job).await })
    }
}
