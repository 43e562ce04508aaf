//! `tidegate serve`: puts the parts together, tells when they are ready, and stops them in order.
//!
//! The order of a stop is what keeps mail from being lost or sent twice: first no more mail is
//! taken and sessions end, then deliveries under way are finished and written down, then
//! the admin API closes, last the store.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::json;
use tidegate_mail::Timestamp;
use tidegate_net::clock::OsClock;
use tidegate_queue::{Clock, Directory, Engine, Parts, StoreError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{Failure, Outcome, ServeArgs};
use crate::config::{Config, ListenerTls, Loaded};
use crate::data_dir::DataDir;
use crate::host::{GatewayHost, load_directory};
use crate::policies::Policies;
use crate::tls::Certificate;
use crate::{logging, parts, submission, tls};

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

    // Everything that may refuse comes before anything that acts: opening the store takes it away
    // from a gateway that has it, and from the engine on a start that fails looks like a crash.
    let _held = DataDir::take_or_tell(&config.data_dir)?;
    if let Some(path) = &args.ready_file {
        std::fs::write(beside(path), "").map_err(|e| unwritable(path, &e))?;
    }
    let key = parts::master_key(config)?;
    let token = parts::admin_token(config)?;
    let certificate = certificate(config)?;
    let admin_socket = submission::listen("admin API", config.admin.address)?;
    let (admin_socket, admin_address) = admin_listener(admin_socket)?;
    let directory = Arc::new(ArcSwap::from_pointee(Directory::default()));
    let submission = submission::bind(
        config,
        certificate.as_ref(),
        directory.clone(),
        clock.clone(),
    )?;
    let addresses = submission
        .local_addrs()
        .map_err(|e| Failure::failed(format!("submission: {e}"), ""))?;
    let settings = parts::settings(config)?;
    let resolver = parts::resolver(config, clock.clone())?;
    let sinks = parts::sinks(config, &resolver, &clock)?;
    let smtp = Arc::new(parts::transport(config, resolver.clone(), clock.clone())?);
    smtp.listens_at(addresses.iter().copied().chain([admin_address]).collect());
    let (store, registry) = parts::open_store(config).await?;
    let stored = |e: StoreError| {
        Failure::failed(
            format!("the database can't be read: {e}"),
            "see docs/operator.md",
        )
    };
    directory.store(Arc::new(load_directory(&*registry).await.map_err(stored)?));
    let policies = Policies::start(config, &key, registry.clone(), directory.clone()).await?;

    let unseal = {
        let key = key.clone();
        Arc::new(move |sealed: &str| key.open(sealed))
    };
    let engine = Engine::open(Parts {
        settings,
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

    // From here on a failure ends like a stop, so that what is under way is finished.
    let (stop_engine, engine_stops) = watch::channel(None);
    let delivering = tokio::spawn(engine.clone().run(told_until(engine_stops, clock.clone())));
    let (stop_submission, submission_stops) = watch::channel(false);
    let accepting = tokio::spawn(submission.run(engine.clone(), stopped(submission_stops)));

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
        max_config: tidegate_policy::limits::CONFIG,
    });
    let (stop_admin, admin_stops) = watch::channel(false);
    let admin = tokio::spawn(tidegate_admin::serve(
        admin_socket,
        router,
        stopped(admin_stops),
    ));

    let told = ready(config, args, admin_address, &addresses);
    if told.is_ok() {
        wait(signals, config, certificate.as_deref()).await;
    }

    tracing::info!("stopping: no more mail is taken");
    notify_manager("STOPPING=1");
    // One time for all: what submission does not need is left for the deliveries.
    let until = clock.now().plus(config.shutdown_grace.get());
    stop_submission.send_replace(true);
    if let Err(error) = accepting.await {
        tracing::error!(%error, "submission did not end in order");
    }
    stop_engine.send_replace(Some(until));
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
    told
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
            tls::remedy(&config.tls),
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

/// Ends when there is a time until which attempts may go on, or nobody is left to tell one.
async fn told_until(
    mut until: watch::Receiver<Option<Timestamp>>,
    clock: Arc<dyn Clock>,
) -> Timestamp {
    let told = until.wait_for(Option::is_some).await;
    told.ok()
        .and_then(|until| *until)
        .unwrap_or_else(|| clock.now())
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
    let told = |path: &Path, text: &str| write_whole(path, text).map_err(|e| unwritable(path, &e));
    let noted = told(&config.data_dir.join(ADMIN_ADDRESS), &format!("{admin}\n"));
    match noted {
        // The configuration has it, too: nobody needs the file.
        Err(failure) if config.admin.address.port() != 0 => {
            tracing::warn!(error = %failure, "the admin address could not be noted");
        }
        noted => noted?,
    }
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

/// The file that a text is written to before it gets its name.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Written beside and renamed, so that a reader never sees half of it.
pub fn write_whole(path: &Path, text: impl AsRef<[u8]>) -> std::io::Result<()> {
    let beside = beside(path);
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path).inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(
        format!("{} can't be written: {error}", path.display()),
        "make its directory writable for the user who runs tidegate",
    )
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
