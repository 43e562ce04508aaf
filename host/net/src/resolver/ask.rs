//! How hickory is asked, and how far its answers are believed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use hickory_proto::dnssec::TrustAnchors;
use hickory_proto::op::DnsRequest;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
    ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::DnsExchange;
use hickory_resolver::net::{DnsHandle, NetError};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{ConnectionProvider, PoolContext, Resolver};

use super::DnsConfig;

/// What makes an answer a secure one (RFC 4033 s. 5), without which there is no DANE.
#[derive(Clone, Debug, Default)]
pub enum Dnssec {
    /// Nothing: no answer is secure.
    #[default]
    Off,
    /// The AD bit of the servers, if every one of them has a loopback address: nobody can
    /// forge it on the way. Otherwise as `Off`.
    Auto,
    /// The AD bit of the servers, wherever they are.
    TrustAd,
    /// Signatures, checked by this process up to the root's keys as built in.
    Validate,
    /// As `Validate`, up to the DNSKEY records in this file instead.
    ValidateFrom(PathBuf),
}

/// What the answers of a resolver are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    Nothing,
    AdBit,
    Proofs,
}

/// A resolver and what its answers are worth.
#[derive(Clone)]
pub(crate) struct Dns {
    pub resolver: Resolver<Asking>,
    pub trust: Trust,
}

impl Dns {
    /// Must be called within a tokio runtime.
    pub fn new(config: &DnsConfig) -> Result<Self, String> {
        let (servers, mut options) = if config.servers.is_empty() {
            read_system_conf()
                .map_err(|e| format!("the system's DNS configuration can't be used: {e}"))?
        } else {
            let servers = config.servers.iter().map(name_server).collect();
            let mut options = ResolverOpts::default();
            options.use_hosts_file = ResolveHosts::Never;
            options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
            (ResolverConfig::from_name_servers(servers), options)
        };
        let near = !servers.name_servers().is_empty()
            && servers.name_servers().iter().all(|s| s.ip.is_loopback());
        let trust = match config.dnssec {
            Dnssec::Off => Trust::Nothing,
            Dnssec::Auto if near => Trust::AdBit,
            Dnssec::Auto => Trust::Nothing,
            Dnssec::TrustAd => Trust::AdBit,
            Dnssec::Validate | Dnssec::ValidateFrom(_) => Trust::Proofs,
        };
        options.timeout = config.timeout;
        // hickory counts the tries that come after the first.
        options.attempts = config.attempts.saturating_sub(1);
        options.cache_size = config.cache_records;
        options.max_active_requests = 512;
        // A chain of aliases is as secure as its weakest link, so they have to be seen.
        options.preserve_intermediates = trust == Trust::Proofs;
        options.validate = trust == Trust::Proofs;
        let asking = Asking {
            tokio: TokioRuntimeProvider::default(),
            ad: trust == Trust::AdBit,
        };
        let mut builder = Resolver::builder_with_config(servers, asking).with_options(options);
        if let Dnssec::ValidateFrom(file) = &config.dnssec {
            let anchors = TrustAnchors::from_file(file)
                .map_err(|e| format!("DNSSEC trust anchors in {}: {e}", file.display()))?;
            builder = builder.with_trust_anchor(Arc::new(anchors));
        }
        Ok(Dns {
            resolver: builder.build().map_err(|e| e.to_string())?,
            trust,
        })
    }
}

fn name_server(server: &SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = server.port();
    }
    NameServerConfig::new(server.ip(), true, connections)
}

/// Connections to name servers that ask for the AD bit (RFC 6840 s. 5.7), which hickory does
/// not do unless it checks signatures itself.
#[derive(Clone)]
pub(crate) struct Asking {
    tokio: TokioRuntimeProvider,
    ad: bool,
}

type Exchange = DnsExchange<TokioRuntimeProvider>;

impl ConnectionProvider for Asking {
    type Conn = Asked;
    type FutureConn = Pin<Box<dyn Future<Output = Result<Asked, NetError>> + Send>>;
    type RuntimeProvider = TokioRuntimeProvider;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        cx: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let opening = self.tokio.new_connection(ip, config, cx)?;
        let ad = self.ad;
        Ok(Box::pin(async move {
            Ok(Asked {
                exchange: opening.await?,
                ad,
            })
        }))
    }

    fn runtime_provider(&self) -> &TokioRuntimeProvider {
        &self.tokio
    }
}

/// A connection to a name server.
#[derive(Clone)]
pub(crate) struct Asked {
    exchange: Exchange,
    ad: bool,
}

impl DnsHandle for Asked {
    type Response = <Exchange as DnsHandle>::Response;
    type Runtime = <Exchange as DnsHandle>::Runtime;

    fn send(&self, mut request: DnsRequest) -> Self::Response {
        request.metadata.authentic_data |= self.ad;
        self.exchange.send(request)
    }
}
