//! Postfix: an instance with configuration, queue and port of its own.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::bail;
use tidegate_tests::raw::Raw;
use tidegate_tests::{eventually, proc};

use super::super::measure::Destinations;
use super::super::workload::{DOMAINS, domain};
use super::daemon::attach;
use super::{Peer, free_address};
use crate::host;

pub struct Postfix {
    directory: tempfile::TempDir,
    address: SocketAddr,
    master: u32,
    tracer: Option<Child>,
}

impl Postfix {
    pub fn start(to: &Destinations, place: &Path, trace: Option<&Path>) -> anyhow::Result<Postfix> {
        let directory = tempfile::Builder::new()
            .prefix("postfix-")
            .tempdir_in(place)?;
        // Its daemons run as an account of their own.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let address = free_address(to)?;
        let home = directory.path().display();
        let transports: String = (0..DOMAINS)
            .zip(to.sink.addresses())
            .map(|(at, to)| format!("{{ {} = smtp:[{}]:{} }} ", domain(at), to.ip(), to.port()))
            .collect();
        std::fs::create_dir(directory.path().join("spool"))?;
        std::fs::create_dir(directory.path().join("data"))?;
        host::run(
            Command::new("chown")
                .arg("postfix")
                .arg(directory.path().join("data")),
        )?;
        let tls = match &to.identity {
            None => "smtp_tls_security_level = none\nsmtpd_tls_security_level = none\n".to_owned(),
            Some(identity) => {
                let pem = directory.path().join("identity.pem");
                let both = format!("{}{}", identity.key_pem, identity.certificate_pem);
                std::fs::write(&pem, both)?;
                std::fs::set_permissions(&pem, std::fs::Permissions::from_mode(0o600))?;
                format!(
                    "smtpd_tls_security_level = may\n\
                     smtpd_tls_chain_files = {}\n\
                     smtp_tls_security_level = encrypt\n\
                     smtp_tls_connection_reuse = yes\n\
                     smtp_tls_session_cache_database = btree:${{data_directory}}/smtp_scache\n",
                    pem.display()
                )
            }
        };
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
                 disable_dns_lookups = yes\n\
                 smtp_host_lookup = native\n\
                 transport_maps = inline:{{ {transports}}}\n\
                 maillog_file = {home}/mail.log\n\
                 maillog_file_prefixes = {home}\n\
                 {tls}"
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
            relay.tracer = Some(attach(trace, &proc::family(master))?);
        }
        Ok(relay)
    }
}

impl Peer for Postfix {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pid(&self) -> u32 {
        self.master
    }

    fn stop(mut self: Box<Self>) -> anyhow::Result<()> {
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
        "tlsproxy unix - - n - 0 tlsproxy",
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
