//! The relays under measurement: how each is configured, started, and ended.
//!
//! All sync what they accept before they answer for it, sign nothing, and deliver to the ten
//! domains of the benchmark at ten addresses.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;
use tidegate_tests::counting::CountingSink;
use tidegate_tests::dns::Dns;
use tidegate_tests::gateway::{Gateway, Options};
use tidegate_tests::raw::Raw;
use tidegate_tests::{eventually, proc};

use super::{DOMAINS, domain};
use crate::host;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    None,
    Tidegate,
    Postfix,
}

/// A running relay.
pub enum Relay {
    /// The sink itself.
    None(SocketAddr),
    Tidegate(Box<Tidegate>),
    Postfix(Postfix),
}

/// The gateway with policies active, and the name server it asks.
pub struct Tidegate {
    gateway: Gateway,
    _dns: Dns,
}

/// An instance with configuration, queue and port of its own.
pub struct Postfix {
    directory: tempfile::TempDir,
    address: SocketAddr,
    master: u32,
    tracer: Option<Child>,
}

const USER: &str = "bench";
const PASSWORD: &str = "bench-password-1";

pub fn postfix_installed() -> bool {
    host::find("postfix").is_some()
}

/// Makes the support library start this gateway.
pub fn choose_binary(binary: &Path) {
    tidegate_tests::gateway::use_binary(binary);
}

impl Relay {
    /// Starts, with its syncs traced to a file if one is given.
    pub fn start(
        kind: Kind,
        ip: Ipv4Addr,
        sink: &CountingSink,
        trace: Option<&Path>,
    ) -> anyhow::Result<Relay> {
        Ok(match kind {
            Kind::None => Relay::None(sink.addresses()[0]),
            Kind::Tidegate => Relay::Tidegate(Box::new(Tidegate::start(ip, sink, trace)?)),
            Kind::Postfix => Relay::Postfix(Postfix::start(ip, sink, trace)?),
        })
    }

    pub fn address(&self) -> SocketAddr {
        match self {
            Relay::None(address) => *address,
            Relay::Tidegate(tidegate) => tidegate.gateway.smtp(),
            Relay::Postfix(postfix) => postfix.address,
        }
    }

    pub fn login(&self) -> Option<(String, String)> {
        matches!(self, Relay::Tidegate(_)).then(|| (USER.into(), PASSWORD.into()))
    }

    /// The process whose family is the relay.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Relay::None(_) => None,
            Relay::Tidegate(tidegate) => tidegate.gateway.pid().ok(),
            Relay::Postfix(postfix) => Some(postfix.master),
        }
    }

    pub fn cpu(&self) -> Option<Duration> {
        self.pid().map(proc::family_cpu)
    }

    pub fn stop(self) -> anyhow::Result<()> {
        match self {
            Relay::None(_) => Ok(()),
            Relay::Tidegate(mut tidegate) => tidegate.gateway.stop().map(drop),
            Relay::Postfix(postfix) => postfix.stop(),
        }
    }
}

impl Tidegate {
    fn start(ip: Ipv4Addr, sink: &CountingSink, trace: Option<&Path>) -> anyhow::Result<Tidegate> {
        let dns = Dns::start()?;
        for (at, address) in (0..DOMAINS).zip(sink.addresses()) {
            let host = format!("mx.{}", domain(at));
            dns.mx(&domain(at), 10, &host).host(&host, address.ip());
        }
        let options = Options::on(ip, dns.address(), sink.port())?
            .set("log.level", "warn")
            .set("submission.max_connections_per_address", 1000);
        let mut gateway = Gateway::new(options)?;
        if let Some(trace) = trace {
            let trace = trace.display().to_string();
            gateway.wrap(&[
                "strace",
                "-f",
                "-q",
                "-e",
                "trace=fsync,fdatasync",
                "-o",
                &trace,
            ]);
        }
        gateway.start()?;
        gateway.tenant("bench", &["source.test"])?;
        gateway.credential("bench", USER, PASSWORD)?;
        Ok(Tidegate { gateway, _dns: dns })
    }
}

impl Postfix {
    fn start(ip: Ipv4Addr, sink: &CountingSink, trace: Option<&Path>) -> anyhow::Result<Postfix> {
        let directory = tempfile::Builder::new()
            .prefix("tidegate-postfix-")
            .tempdir()?;
        // Its daemons run as an account of their own.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let port = std::net::TcpListener::bind((ip, 0))?.local_addr()?.port();
        let address = SocketAddr::from((ip, port));
        let home = directory.path().display();
        let transports: String = (0..DOMAINS)
            .zip(sink.addresses())
            .map(|(at, to)| format!("{{ {} = smtp:[{}]:{} }} ", domain(at), to.ip(), to.port()))
            .collect();
        std::fs::create_dir(directory.path().join("spool"))?;
        std::fs::create_dir(directory.path().join("data"))?;
        host::run(
            Command::new("chown")
                .arg("postfix")
                .arg(directory.path().join("data")),
        )?;
        std::fs::write(
            directory.path().join("main.cf"),
            format!(
                "compatibility_level = 3.6\n\
                 queue_directory = {home}/spool\n\
                 data_directory = {home}/data\n\
                 mail_owner = postfix\n\
                 setgid_group = postdrop\n\
                 myhostname = relay.test\n\
                 inet_interfaces = loopback-only\n\
                 inet_protocols = ipv4\n\
                 mynetworks = 127.0.0.0/8\n\
                 mydestination =\n\
                 local_recipient_maps =\n\
                 alias_maps =\n\
                 alias_database =\n\
                 smtpd_relay_restrictions = permit_mynetworks, reject\n\
                 smtpd_client_connection_count_limit = 0\n\
                 smtp_tls_security_level = none\n\
                 smtpd_tls_security_level = none\n\
                 disable_dns_lookups = yes\n\
                 smtp_host_lookup = native\n\
                 transport_maps = inline:{{ {transports}}}\n\
                 maillog_file = {home}/mail.log\n\
                 maillog_file_prefixes = {home}\n"
            ),
        )?;
        std::fs::write(directory.path().join("master.cf"), master_cf(address))?;
        let started = postfix(directory.path()).arg("start").output()?;
        if !started.status.success() {
            let log = std::fs::read_to_string(directory.path().join("mail.log"));
            bail!(
                "postfix start: {}{}",
                String::from_utf8_lossy(&started.stderr),
                log.unwrap_or_default()
            );
        }
        let master = eventually("postfix started", Duration::from_secs(20), || {
            std::fs::read_to_string(directory.path().join("spool/pid/master.pid"))
                .ok()?
                .trim()
                .parse()
                .ok()
        })?;
        let mut relay = Postfix {
            directory,
            address,
            master,
            tracer: None,
        };
        eventually("postfix greets", Duration::from_secs(20), || {
            Raw::connect(address).ok()?.expect(220).ok()
        })?;
        if let Some(trace) = trace {
            let tracer = Command::new("strace")
                .args(["-f", "-q", "-e", "trace=fsync,fdatasync", "-o"])
                .arg(trace)
                .args(proc::family(master).iter().map(|pid| format!("-p{pid}")))
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            relay.tracer = Some(tracer);
            // Attached when the kernel says so of the main process.
            eventually("strace attached", Duration::from_secs(10), || {
                std::fs::read_to_string(format!("/proc/{master}/status"))
                    .ok()?
                    .lines()
                    .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
                    .then_some(())
            })?;
        }
        Ok(relay)
    }

    fn stop(mut self) -> anyhow::Result<()> {
        host::run(
            postfix(self.directory.path())
                .arg("stop")
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        if let Some(mut tracer) = self.tracer.take() {
            tracer.wait()?;
        }
        Ok(())
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        // After an error only; a second stop finds nothing to do.
        let _ = postfix(self.directory.path())
            .arg("abort")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

fn postfix(directory: &Path) -> Command {
    let mut command = Command::new(host::find("postfix").unwrap_or_else(|| "postfix".into()));
    command.arg("-c").arg(directory).stdin(Stdio::null());
    command
}

/// Debian's services, without chroot, on one port.
fn master_cf(address: SocketAddr) -> String {
    let mut text = format!("{address} inet n - n - 200 smtpd\n");
    for line in [
        "pickup unix n - n 60 1 pickup",
        "cleanup unix n - n - 0 cleanup",
        "qmgr unix n - n 300 1 qmgr",
        "tlsmgr unix - - n 1000? 1 tlsmgr",
        "rewrite unix - - n - - trivial-rewrite",
        "bounce unix - - n - 0 bounce",
        "defer unix - - n - 0 bounce",
        "trace unix - - n - 0 bounce",
        "verify unix - - n - 1 verify",
        "flush unix n - n 1000? 0 flush",
        "proxymap unix - - n - - proxymap",
        "proxywrite unix - - n - 1 proxymap",
        "smtp unix - - n - - smtp",
        "relay unix - - n - - smtp",
        "showq unix n - n - - showq",
        "error unix - - n - - error",
        "retry unix - - n - - error",
        "discard unix - - n - - discard",
        "anvil unix - - n - 1 anvil",
        "scache unix - - n - 1 scache",
        "postlog unix-dgram n - n - 1 postlogd",
    ] {
        text.push_str(line);
        text.push('\n');
    }
    text
}
