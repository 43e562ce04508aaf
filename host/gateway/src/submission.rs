//! The submission listeners as the configuration wants them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tidegate_net::submission::{
    ListenerConfig, ListenerMode, Submission, SubmissionConfig, Timeouts,
};
use tidegate_queue::{Clock, Directory};

use crate::cli::Failure;
use crate::config::{Config, ListenerTls};
use crate::tls::Certificate;

/// What is to be done about an address that can't be listened on.
pub fn port_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "stop what listens there (ss -ltnp shows it), or change the port in the configuration"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE; grant it, or use a higher port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "the address is not one of this machine; change it in the configuration"
        }
        _ => "change the address in the configuration",
    }
}

/// Opens a listening socket, for the admin API and for `tidegate check`.
pub fn listen(what: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).map_err(|error| {
        Failure::failed(
            format!("{what}: {address} can't be listened on: {error}"),
            port_remedy(&error),
        )
    })
}

fn listeners(config: &Config) -> Vec<ListenerConfig> {
    config
        .submission
        .listener
        .iter()
        .map(|listener| ListenerConfig {
            address: listener.address,
            mode: match listener.tls {
                ListenerTls::None => ListenerMode::Plain,
                ListenerTls::StartTls => ListenerMode::StartTls,
                ListenerTls::Implicit => ListenerMode::Implicit,
            },
            allow_plain_auth: listener.allow_plain_auth,
            repair_line_ends: listener.repair_line_ends,
        })
        .collect()
}

/// Opens all listeners; they accept once the result is run.
pub fn bind(
    config: &Config,
    certificate: Option<&Arc<Certificate>>,
    directory: Arc<ArcSwap<Directory>>,
    clock: Arc<dyn Clock>,
) -> Result<Submission, Failure> {
    let tls = certificate
        .map(Certificate::server_config)
        .transpose()
        .map_err(|e| Failure::failed(format!("TLS can't be set up: {e}"), ""))?;
    let submission = &config.submission;
    let idle = submission.idle_timeout.get();
    let defaults = Timeouts::default();
    let settings = SubmissionConfig {
        listeners: listeners(config),
        hostname: config.hostname().into(),
        max_size: submission.max_message_size.get(),
        max_recipients: submission.max_recipients as usize,
        // Honoured in full on the way out, or the mail is not sent; offered under TLS only.
        requiretls: true,
        max_connections: submission.max_connections as usize,
        max_connections_per_address: submission.max_connections_per_address as usize,
        memory: submission.memory.as_usize(),
        timeouts: Timeouts {
            command: idle,
            data: idle,
            handshake: defaults.handshake.min(idle),
            login: defaults.login.min(idle),
            session: submission.session_timeout.get(),
            // The other half is for what they brought.
            stop: config.shutdown_grace.get() / 2,
            ..defaults
        },
        ..SubmissionConfig::default()
    };
    Submission::bind(settings, tls, directory, clock).map_err(|error| {
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((message, remedy)) => Failure::failed(message, remedy),
            None => Failure::failed(text, ""),
        }
    })
}
