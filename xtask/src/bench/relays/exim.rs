//! Exim: one daemon with configuration, spool and port of its own; delivers at once.

use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidegate_tests::raw::Raw;
use tidegate_tests::{eventually, proc};

use super::super::measure::Destinations;
use super::super::workload::{DOMAINS, domain};
use crate::host;

pub struct Exim {
    _directory: tempfile::TempDir,
    address: SocketAddr,
    daemon: Child,
    tracer: Option<Child>,
}

pub fn program() -> Option<PathBuf> {
    host::find("exim4").or_else(|| host::find("exim"))
}

impl Exim {
    pub fn start(to: &Destinations, place: &Path, trace: Option<&Path>) -> anyhow::Result<Exim> {
        let directory = tempfile::Builder::new().prefix("exim-").tempdir_in(place)?;
        let port = std::net::TcpListener::bind((to.relay, 0))?
            .local_addr()?
            .port();
        let address = SocketAddr::from((to.relay, port));
        let config = directory.path().join("exim.conf");
        std::fs::write(&config, configuration(to, directory.path(), address))?;
        for name in ["spool", "log"] {
            let made = directory.path().join(name);
            std::fs::create_dir(&made)?;
            host::run(Command::new("chown").arg("Debian-exim").arg(&made))?;
        }
        let mut command = Command::new(program().unwrap_or_else(|| "exim4".into()));
        command
            .args(["-bdf", "-q1h", "-C"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        let daemon = command.spawn()?;
        let mut exim = Exim {
            _directory: directory,
            address,
            daemon,
            tracer: None,
        };
        eventually("exim greets", Duration::from_secs(20), || {
            Raw::connect(address).ok()?.expect(220).ok()
        })?;
        if let Some(trace) = trace {
            let tracer = Command::new("strace")
                .args(["-f", "-q", "-e", "trace=fsync,fdatasync", "-o"])
                .arg(trace)
                .arg(format!("-p{}", exim.pid()))
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            exim.tracer = Some(tracer);
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(exim)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The daemon. Its deliveries leave the family when they are handed on; their CPU time
    /// counts where they were waited for.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    pub fn stop(self) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Drop for Exim {
    fn drop(&mut self) {
        for pid in proc::family(self.daemon.id()).into_iter().rev() {
            // Those that ended meanwhile are no loss.
            let _ = Command::new("kill")
                .arg(pid.to_string())
                .stderr(Stdio::null())
                .status();
        }
        let _ = self.daemon.wait();
        if let Some(mut tracer) = self.tracer.take() {
            let _ = tracer.wait();
        }
    }
}

fn configuration(to: &Destinations, home: &Path, address: SocketAddr) -> String {
    let home = home.display();
    let mut routes = String::new();
    for (at, sink) in (0..DOMAINS).zip(to.sink.addresses()) {
        // Writing to a String cannot fail.
        let _ = write!(routes, "{} {}::{} ; ", domain(at), sink.ip(), sink.port());
    }
    format!(
        "primary_hostname = relay.test\n\
         spool_directory = {home}/spool\n\
         log_file_path = {home}/log/%slog\n\
         pid_file_path = {home}/spool/exim.pid\n\
         local_interfaces = {ip}\n\
         daemon_smtp_ports = {port}\n\
         disable_ipv6 = true\n\
         tls_advertise_hosts =\n\
         host_lookup =\n\
         rfc1413_hosts =\n\
         smtp_accept_max = 200\n\
         smtp_accept_queue_per_connection = 0\n\
         smtp_accept_max_per_connection = 0\n\
         acl_smtp_rcpt = everyone\n\
         acl_smtp_data = everyone\n\
         remote_max_parallel = 20\n\
         begin acl\n\
         everyone:\n  accept\n\
         begin routers\n\
         out:\n  driver = manualroute\n  transport = out\n  self = send\n  route_list = {routes}\n\
         begin transports\n\
         out:\n  driver = smtp\n  allow_localhost\n",
        ip = address.ip(),
        port = address.port(),
    )
}
