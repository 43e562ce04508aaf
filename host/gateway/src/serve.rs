//! `tidegate serve`: puts the parts together, tells when they are ready, and stops them in order.
//!
//! The order of a stop is what keeps mail from being lost or sent twice: first no more mail is
//! taken and sessions end, then deliveries under way are finished and written down, then
//! the admin API closes, last the store.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::json;
use tidegate_net::clock::OsClock;
use tidegate_queue::{Clock, Engine, Parts, StoreError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{Failure, Outcome, ServeArgs};
use crate::config::{Config, ListenerTls, Loaded};
use crate::data_dir::DataDir;
use crate::host::{GatewayHost, load_directory};
use crate::policies::Policies;
use crate::secrets::{self, MasterKey};
use crate::tls::Certificate;
use crate::{logging, parts, submission};

/// Name of the file in `data_dir` with the admin address in use.
pub const ADMIN_ADDRESS: &str = "admin.address";

pub fn run(loaded: Loaded, args: &ServeArgs) -> Outcome {
    let config = &loaded.config;
    logging::start(
        &config.log.level,
        args.log_format.unwrap_or(config.log.format),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tidegate")
        .build()
        .map_err(|e| Failure::failed(format!("no threads: {e}"), "raise the process limit"))?;
    runtime.block_on(serve(&loaded, args))
}

/// Takes all the open files that the process may have: service managers give 1,024 to begin
/// with, and every connection is one.
fn raise_file_limit(config: &Config) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    // Connections in and out, and the files of the store.
    let wanted = u64::from(config.submission.max_connections)
        + u64::from(config.delivery.max_deliveries)
        + 256;
    if let Some(most) = getrlimit(Resource::Nofile).current
        && most < wanted
    {
        tracing::warn!(
            most,
            wanted,
            "fewer open files than submission.max_connections and delivery.max_deliveries may need; \
             raise the limit (LimitNOFILE= of the service) or lower these"
        );
    }
}

fn master_key(config: &Config) -> Result<Arc<MasterKey>, Failure> {
    MasterKey::read(&config.master_key_file)
        .map(Arc::new)
        .map_err(|e| {
            Failure::failed(
                format!("the master key {}: {e}", config.master_key_file.display()),
                "restore it with mode 0600, or make a new one with: tidegate init --force",
            )
        })
}

fn admin_token(config: &Config) -> Result<String, Failure> {
    let path = &config.admin.token_file;
    let token = secrets::read_private(path)
        .map(|text| text.trim().to_owned())
        .map_err(|e| e.to_string())
        .and_then(|token| {
            if token.len() < 32 {
                Err("it is shorter than 32 characters".to_owned())
            } else {
                Ok(token)
            }
        });
    token.map_err(|reason| {
        Failure::failed(
            format!("the admin token {}: {reason}", path.display()),
            "restore it with mode 0600, or make a new one with: tidegate init --force",
        )
    })
}

async fn serve(loaded: &Loaded, args: &ServeArgs) -> Outcome {
    let config = &loaded.config;
    if config.submission.listener.is_empty() {
        return Err(Failure::usage(
            format!("{}: no listener is configured", loaded.path.display()),
            "add a [[submission.listener]]",
        ));
    }
    let signals = Signals::new()?;
    let clock: Arc<dyn Clock> = Arc::new(OsClock);
    let started_at = clock.now();

    raise_file_limit(config);

    // Everything that may refuse comes before anything that acts.
    let _held = DataDir::take_or_tell(&config.data_dir)?;
    let key = master_key(config)?;
    let token = admin_token(config)?;
    let certificate = certificate(config)?;
    let admin_socket = submission::listen("admin API", config.admin.address)?;
    let resolver = parts::resolver(config, clock.clone())?;
    let sinks = parts::sinks(config, &resolver, &clock)?;
    let smtp = Arc::new(parts::transport(config, resolver.clone(), clock.clone())?);
    let (store, registry) = parts::open_store(config).await?;
    let stored = |e: StoreError| {
        Failure::failed(
            format!("the database can't be read: {e}"),
            "see docs/operator.md",
        )
    };
    let directory = Arc::new(ArcSwap::from_pointee(
        load_directory(&*registry).await.map_err(stored)?,
    ));
    let policies = Policies::start(config, &key, registry.clone(), directory.clone()).await?;

    let unseal = {
        let key = key.clone();
        Arc::new(move |sealed: &str| key.open(sealed))
    };
    let engine = Engine::open(Parts {
        settings: parts::settings(config)?,
        store: store.clone(),
        clock: clock.clone(),
        resolver: resolver.clone(),
        transport: smtp.clone(),
        policy: policies.port(),
        sinks,
        directory: directory.clone(),
        unseal,
        node: config.node,
    })
    .await
    .map_err(stored)?;

    let submission = submission::bind(
        config,
        certificate.as_ref(),
        engine.clone(),
        directory.clone(),
        clock.clone(),
    )?;
    let addresses = submission
        .local_addrs()
        .map_err(|e| Failure::failed(format!("submission: {e}"), ""))?;

    let own = addresses.iter().copied().chain(admin_socket.local_addr());
    smtp.listens_at(own.collect());

    let (stop_engine, engine_stops) = watch::channel(false);
    let delivering = tokio::spawn(
        engine
            .clone()
            .run(stopped(engine_stops), config.shutdown_grace.get()),
    );
    let (stop_submission, submission_stops) = watch::channel(false);
    let accepting = tokio::spawn(submission.run(stopped(submission_stops)));

    let host = Arc::new(GatewayHost {
        registry: registry.clone(),
        directory,
        engine: engine.clone(),
        key,
        policies,
        exporters: config.export.keys().cloned().collect(),
        smtp: smtp.clone(),
        allow_private: config.delivery.allow_private_destinations,
        rebuilding: tokio::sync::Mutex::new(()),
    });
    let following = tokio::spawn(crate::policies::keep(host.clone()));
    let router = tidegate_admin::router(tidegate_admin::Context {
        engine: engine.clone(),
        registry,
        clock: clock.clone(),
        host,
        token,
        hostname: config.hostname(),
        version: env!("CARGO_PKG_VERSION"),
        started_at,
        max_component: tidegate_policy::limits::UPLOAD,
    });
    let (stop_admin, admin_stops) = watch::channel(false);
    let (admin_socket, admin_address) = admin_listener(admin_socket)?;
    let admin = tokio::spawn(tidegate_admin::serve(
        admin_socket,
        router,
        stopped(admin_stops),
    ));

    ready(config, args, admin_address, &addresses)?;
    wait(signals, config, certificate.as_deref()).await;

    tracing::info!("stopping: no more mail is taken");
    notify_manager("STOPPING=1");
    stop_submission.send_replace(true);
    if let Err(error) = accepting.await {
        tracing::error!(%error, "submission did not end in order");
    }
    stop_engine.send_replace(true);
    if let Err(error) = delivering.await {
        tracing::error!(%error, "the engine did not end in order");
    }
    smtp.close_idle().await;
    following.abort();
    let _ = following.await;
    stop_admin.send_replace(true);
    // A client that keeps its connection open must not keep the gateway from ending.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), admin).await;
    let _ = std::fs::remove_file(config.data_dir.join(ADMIN_ADDRESS));
    drop(engine);
    // Syncs what is committed, and leaves the log of the database empty.
    store.close().await;
    tracing::info!("stopped");
    Ok(())
}

fn certificate(config: &Config) -> Result<Option<Arc<Certificate>>, Failure> {
    let wanted = config
        .submission
        .listener
        .iter()
        .any(|l| l.tls != ListenerTls::None);
    if !wanted {
        return Ok(None);
    }
    Certificate::load(&config.tls).map(Some).map_err(|e| {
        Failure::failed(
            format!("the certificate can't be used: {e}"),
            "name a PEM chain and its private key under [tls], or make them with: tidegate init --force",
        )
    })
}

fn admin_listener(socket: TcpListener) -> Result<(tokio::net::TcpListener, SocketAddr), Failure> {
    let converted = socket
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(socket))
        .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
    converted.map_err(|e| Failure::failed(format!("admin API: {e}"), ""))
}

/// Ends when the flag is set, or its owner is gone.
async fn stopped(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|stop| *stop).await;
}

/// The signals that the gateway acts on, caught from the beginning.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let catch = |kind| {
            signal(kind).map_err(|e| Failure::failed(format!("signals can't be caught: {e}"), ""))
        };
        Ok(Signals {
            term: catch(SignalKind::terminate())?,
            int: catch(SignalKind::interrupt())?,
            hup: catch(SignalKind::hangup())?,
        })
    }
}

/// Until SIGTERM or SIGINT; SIGHUP reads the certificate again.
async fn wait(mut signals: Signals, config: &Config, certificate: Option<&Certificate>) {
    loop {
        tokio::select! {
            _ = signals.term.recv() => return,
            _ = signals.int.recv() => return,
            _ = signals.hup.recv() => {
                let Some(certificate) = certificate else { continue };
                match certificate.reload(&config.tls) {
                    Ok(()) => tracing::info!("the certificate was read again"),
                    Err(error) => tracing::error!(
                        %error,
                        "the certificate can't be used; the present one stays"
                    ),
                }
            }
        }
    }
}

/// Tells everybody who waits for it that mail is taken.
fn ready(
    config: &Config,
    args: &ServeArgs,
    admin: SocketAddr,
    addresses: &[SocketAddr],
) -> Outcome {
    let listeners: Vec<(SocketAddr, ListenerTls)> = addresses
        .iter()
        .zip(&config.submission.listener)
        .map(|(address, listener)| (*address, listener.tls))
        .collect();
    let told = |path: &Path, text: &str| {
        write_whole(path, text).map_err(|e| {
            Failure::failed(
                format!("{} can't be written: {e}", path.display()),
                "make its directory writable for the user who runs tidegate",
            )
        })
    };
    told(&config.data_dir.join(ADMIN_ADDRESS), &format!("{admin}\n"))?;
    if let Some(path) = &args.ready_file {
        let listeners: Vec<_> = listeners
            .iter()
            .map(|(address, tls)| json!({"address": address, "tls": tls}))
            .collect();
        let text = json!({
            "pid": std::process::id(),
            "admin": admin,
            "listeners": listeners,
        });
        told(path, &format!("{text}\n"))?;
    }
    let shown: Vec<String> = listeners
        .iter()
        .map(|(address, tls)| format!("{address} ({})", format!("{tls:?}").to_lowercase()))
        .collect();
    tracing::info!(
        hostname = config.hostname(),
        submission = shown.join(", "),
        admin = %admin,
        database = config.shown_database(),
        "ready"
    );
    notify_manager("READY=1");
    Ok(())
}

/// Written beside and renamed, so that a reader never sees half of it.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

/// The protocol of `sd_notify(3)`; does nothing where no service manager asked for it.
fn notify_manager(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match name.as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&name),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_for_waiting_readers_appear_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        write_whole(&path, "{}").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}");
        assert!(!dir.path().join("ready.json.new").exists());
    }
}
