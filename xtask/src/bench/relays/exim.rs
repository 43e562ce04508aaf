//! Exim: one daemon with configuration, spool and port of its own; delivers at once.
//!
//! Its deliveries leave the family when they are handed on. In a process namespace of its own the
//! daemon is who they come back to when they end, so that their CPU time is counted.

use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::measure::Destinations;
use super::super::workload::{DOMAINS, domain};
use super::daemon::Daemon;
use super::free_address;
use crate::host;

pub fn program() -> Option<PathBuf> {
    host::find("exim4").or_else(|| host::find("exim"))
}

pub fn start(to: &Destinations, place: &Path, trace: Option<&Path>) -> anyhow::Result<Daemon> {
    let directory = tempfile::Builder::new().prefix("exim-").tempdir_in(place)?;
    // It delivers as an account of its own.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let address = free_address(to)?;
    let config = directory.path().join("exim.conf");
    let program = program().unwrap_or_else(|| "exim4".into());
    let text = configuration(to, directory.path(), address, &program);
    std::fs::write(&config, text)?;
    for name in ["spool", "log"] {
        let made = directory.path().join(name);
        std::fs::create_dir(&made)?;
        host::run(Command::new("chown").arg("Debian-exim").arg(&made))?;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child"])
        .arg(program)
        .args(["-bdf", "-q1h", "-C"])
        .arg(&config);
    Daemon::start(command, directory, address, trace).map(Daemon::child)
}

fn configuration(to: &Destinations, home: &Path, address: SocketAddr, program: &Path) -> String {
    let home = home.display();
    let mut routes = String::new();
    for (at, sink) in (0..DOMAINS).zip(to.sink.addresses()) {
        // Writing to a String cannot fail.
        let _ = write!(routes, "{} {}::{} ; ", domain(at), sink.ip(), sink.port());
    }
    format!(
        "primary_hostname = relay.test\n\
         exim_path = {program}\n\
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
        program = program.display(),
    )
}
