//! The submission listeners: sockets, TLS, logins and time limits around
//! [`tidegate_submit::Session`].
//!
//! Invariants: a reply to data is what the [`Intake`] answered, nothing else gives a 250; a
//! connection that waits for its client holds no buffer; a message above
//! [`SubmissionConfig::spool_above`] is never whole in memory.
//!
//! It knows neither routes nor storage.

mod auth;
mod cache;
mod connection;
mod content;
mod memory;
mod rules;
mod slots;
mod stream;
mod throttle;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_queue::intake::{MAX_HEADER, MAX_HOPS};
use tidegate_queue::{Clock, Directory, Intake};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use auth::Authenticator;
pub use auth::{AuthConfig, password_hasher};
use memory::Memory;
use slots::Slots;

/// How a listener is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerMode {
    /// In clear at first; STARTTLS is offered (port 587, RFC 6409).
    StartTls,
    /// TLS from the first byte (port 465, RFC 8314).
    Implicit,
    /// No TLS. Only for loopback.
    Plain,
}

#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Port 0 takes a free one; see [`Submission::local_addrs`].
    pub address: SocketAddr,
    pub mode: ListenerMode,
    /// Offers AUTH without TLS; refused where the address is not loopback.
    pub allow_plain_auth: bool,
    /// Makes bare CR and LF CRLF instead of refusing the message.
    pub repair_line_ends: bool,
}

/// How long is waited for what. RFC 5321 s. 4.5.3.2.7 asks for 5 minutes between commands.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the next command, and for the client to read a reply.
    pub command: Duration,
    /// For the next piece of a message.
    pub data: Duration,
    /// For a TLS handshake.
    pub handshake: Duration,
    /// From the connection to the login.
    pub login: Duration,
    /// For the whole session; a message under way is cut off by it too.
    pub session: Duration,
    /// For reading off what a client still sends after it was refused.
    pub drain: Duration,
    /// From a stop until connections with a message under way are cut off.
    pub stop: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            command: Duration::from_secs(300),
            data: Duration::from_secs(300),
            handshake: Duration::from_secs(30),
            login: Duration::from_secs(300),
            session: Duration::from_secs(7_200),
            drain: Duration::from_secs(5),
            stop: Duration::from_secs(30),
        }
    }
}

/// What is true of all listeners. Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct SubmissionConfig {
    pub listeners: Vec<ListenerConfig>,
    pub hostname: Arc<str>,
    pub max_size: u64,
    pub max_recipients: usize,
    /// Longest line of a message, without CRLF.
    pub text_line_limit: usize,
    pub max_connections: usize,
    /// From one IPv4 address or one IPv6 /64.
    pub max_connections_per_address: usize,
    /// Messages up to this size are kept in memory, others are streamed to the store.
    pub spool_above: usize,
    /// For all messages kept so together; beyond it smaller ones are streamed too.
    pub memory: usize,
    /// Whether a tenant may send with the null reverse-path.
    pub allow_null_reverse_path: bool,
    /// Whether REQUIRETLS (RFC 8689) is offered.
    pub requiretls: bool,
    pub timeouts: Timeouts,
    pub auth: AuthConfig,
}

impl Default for SubmissionConfig {
    fn default() -> Self {
        SubmissionConfig {
            listeners: Vec::new(),
            hostname: "localhost".into(),
            max_size: 50 * 1024 * 1024,
            max_recipients: 1_000,
            text_line_limit: 65_536,
            max_connections: 16_384,
            // No single address can take the last quarter.
            max_connections_per_address: 12_288,
            spool_above: 256 * 1024,
            memory: 64 * 1024 * 1024,
            allow_null_reverse_path: false,
            requiretls: false,
            timeouts: Timeouts::default(),
            auth: AuthConfig::default(),
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct SubmissionStats {
    pub connections: AtomicU64,
    /// Turned away because too many were open.
    pub connections_refused: AtomicU64,
    pub logins: AtomicU64,
    pub logins_failed: AtomicU64,
    /// Answered with 250.
    pub messages_accepted: AtomicU64,
    /// Answered with 4xx or 5xx at the end of their data.
    pub messages_refused: AtomicU64,
}

impl SubmissionStats {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    Running,
    /// Idle connections are closed, messages under way are finished.
    Draining,
    /// Everything is cut off that does not wait for the intake.
    Now,
}

/// One listener as its connections see it.
struct Listener {
    session: Arc<tidegate_submit::Config>,
    mode: ListenerMode,
}

/// What all connections share.
struct Shared {
    config: SubmissionConfig,
    tls: Option<TlsAcceptor>,
    intake: Arc<dyn Intake>,
    directory: Arc<ArcSwap<Directory>>,
    clock: Arc<dyn Clock>,
    auth: Authenticator,
    slots: Arc<Slots>,
    memory: Arc<Memory>,
    stats: Arc<SubmissionStats>,
    stop: watch::Sender<Stop>,
}

/// The bound listeners, not yet accepting.
pub struct Submission {
    listeners: Vec<(TcpListener, Arc<Listener>)>,
    config: SubmissionConfig,
    tls: Option<TlsAcceptor>,
    directory: Arc<ArcSwap<Directory>>,
    clock: Arc<dyn Clock>,
    auth: Authenticator,
    slots: Arc<Slots>,
    stats: Arc<SubmissionStats>,
}

impl Submission {
    /// Opens all sockets; must be called within a tokio runtime. An error names the listener
    /// and the remedy. Whoever connects is greeted once it runs.
    pub fn bind(
        config: SubmissionConfig,
        tls: Option<Arc<rustls::ServerConfig>>,
        directory: Arc<ArcSwap<Directory>>,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Submission> {
        let mut listeners = Vec::with_capacity(config.listeners.len());
        for listener in &config.listeners {
            check(listener, tls.is_some())?;
            let socket = listen(listener.address).map_err(|e| bind_error(listener.address, &e))?;
            let session = tidegate_submit::Config {
                hostname: config.hostname.clone(),
                max_size: config.max_size,
                max_recipients: config.max_recipients,
                max_header: MAX_HEADER,
                max_hops: MAX_HOPS,
                text_line_limit: config.text_line_limit,
                starttls: listener.mode == ListenerMode::StartTls,
                allow_plain_auth: listener.allow_plain_auth,
                repair_line_ends: listener.repair_line_ends,
                requiretls: config.requiretls,
                ..tidegate_submit::Config::default()
            };
            listeners.push((
                socket,
                Arc::new(Listener {
                    session: Arc::new(session),
                    mode: listener.mode,
                }),
            ));
        }
        Ok(Submission {
            listeners,
            auth: Authenticator::new(config.auth, directory.clone(), clock.clone())?,
            slots: Slots::new(config.max_connections, config.max_connections_per_address),
            tls: tls.map(TlsAcceptor::from),
            stats: Arc::default(),
            config,
            directory,
            clock,
        })
    }

    /// The addresses bound, in the order of the configuration.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(|(l, _)| l.local_addr()).collect()
    }

    pub fn stats(&self) -> Arc<SubmissionStats> {
        self.stats.clone()
    }

    /// A function that tells how many connections are open.
    pub fn connections_open(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let slots = self.slots.clone();
        move || slots.open()
    }

    /// Serves until `stop` is ready. Then takes no more connections, closes the idle ones with
    /// 421 4.3.2, and returns when those with a message under way have ended, or
    /// [`Timeouts::stop`] after; 5 seconds more (but no more than that time again) are for what
    /// waits for the intake. The intake must go on working until then.
    pub async fn run(self, intake: Arc<dyn Intake>, stop: impl Future<Output = ()>) {
        let shared = Arc::new(Shared {
            memory: Memory::new(self.config.memory),
            config: self.config,
            tls: self.tls,
            intake,
            directory: self.directory,
            clock: self.clock,
            auth: self.auth,
            slots: self.slots,
            stats: self.stats,
            stop: watch::Sender::new(Stop::Running),
        });
        let mut accepting = JoinSet::new();
        for (socket, listener) in self.listeners {
            accepting.spawn(accept(socket, listener, shared.clone()));
        }
        stop.await;
        accepting.shutdown().await;
        shared.stop.send_replace(Stop::Draining);
        let grace = shared.config.timeouts.stop;
        if tokio::time::timeout(grace, shared.slots.all_free())
            .await
            .is_ok()
        {
            return;
        }
        tracing::warn!(
            open = shared.slots.open(),
            "submission: cutting off connections that did not end in time"
        );
        shared.stop.send_replace(Stop::Now);
        // What waits for the intake now gets the chance to send its reply.
        let replies = Duration::from_secs(5).min(grace);
        let _ = tokio::time::timeout(replies, shared.slots.all_free()).await;
    }
}

fn check(listener: &ListenerConfig, has_tls: bool) -> io::Result<()> {
    let address = listener.address;
    let refuse = |text: &str| {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("submission listener {address}: {text}"),
        ))
    };
    if listener.mode != ListenerMode::Plain && !has_tls {
        return refuse(
            "TLS needs a certificate and key; run `tidegate init` or name them in [tls]",
        );
    }
    if listener.allow_plain_auth && !address.ip().is_loopback() {
        return refuse(
            "passwords without TLS are for loopback only; remove allow_plain_auth or listen on 127.0.0.1",
        );
    }
    if listener.mode == ListenerMode::Plain && !listener.allow_plain_auth {
        return refuse("nobody could log in; use TLS, or allow_plain_auth on loopback");
    }
    Ok(())
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // The kernel lowers it to net.core.somaxconn.
    socket.listen(4_096)?;
    TcpListener::from_std(socket.into())
}

fn bind_error(address: SocketAddr, error: &io::Error) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there; stop it or choose another port",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; grant it or choose a higher port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; choose one of its own, or [::] for all"
        }
        _ => "check the address",
    };
    io::Error::new(
        error.kind(),
        format!("submission listener {address}: {error}; {remedy}"),
    )
}

async fn accept(socket: TcpListener, listener: Arc<Listener>, shared: Arc<Shared>) {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => admit(stream, peer.ip().to_canonical(), &listener, &shared),
            Err(error) => {
                // Out of descriptors or memory: others may give some back.
                tracing::warn!(%error, "submission: accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn admit(stream: TcpStream, peer: IpAddr, listener: &Arc<Listener>, shared: &Arc<Shared>) {
    let slot = match shared.slots.take(peer) {
        Ok(slot) => slot,
        Err(full) => {
            SubmissionStats::add(&shared.stats.connections_refused);
            tracing::info!(%peer, "submission: connection refused: {full}");
            if listener.mode != ListenerMode::Implicit {
                // Best effort: the connection is dropped either way.
                let _ =
                    stream.try_write(format!("421 4.7.0 {full}; try again later\r\n").as_bytes());
            }
            return;
        }
    };
    SubmissionStats::add(&shared.stats.connections);
    // Replies are written whole, so waiting for more to send only adds latency.
    let _ = stream.set_nodelay(true);
    tokio::spawn(connection::serve(
        stream,
        peer,
        listener.clone(),
        shared.clone(),
        slot,
    ));
}
