//! Haraka: one process with configuration, queue and port of its own. It syncs each queue file
//! before it answers; TLS is not set up.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::measure::Destinations;
use super::super::workload::{DOMAINS, domain};
use super::daemon::Daemon;
use super::free_address;
use crate::host;

pub fn start(to: &Destinations, place: &Path, trace: Option<&Path>) -> anyhow::Result<Daemon> {
    let directory = tempfile::Builder::new()
        .prefix("haraka-")
        .tempdir_in(place)?;
    let address = free_address(to)?;
    let program = host::find("haraka").unwrap_or_else(|| "haraka".into());
    // Its own configuration, complete: what is left out of a file there is no default for.
    host::run(
        Command::new(&program)
            .arg("-i")
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    let config = directory.path().join("config");
    let smtp = format!("listen={address}\nnodes=0\nforce_shutdown_timeout=1\n");
    for (name, text) in [
        ("smtp.ini", smtp.as_str()),
        ("outbound.ini", "enable_tls=false\nlocal_mx_ok=true\n"),
        ("log.ini", "[main]\nlevel=warn\n"),
        ("me", "relay.test\n"),
        ("plugins", "bench\n"),
    ] {
        std::fs::write(config.join(name), text)?;
    }
    let plugins = directory.path().join("plugins");
    std::fs::create_dir_all(&plugins)?;
    std::fs::write(plugins.join("bench.js"), plugin(to))?;
    let mut command = Command::new(program);
    command.arg("-c").arg(directory.path());
    Daemon::start(command, directory, address, trace)
}

/// Takes mail for everyone, and knows where the domains are.
fn plugin(to: &Destinations) -> String {
    let mut routes = String::new();
    for (at, sink) in (0..DOMAINS).zip(to.sink.addresses()) {
        routes.push_str(&route(&domain(at), *sink));
    }
    format!(
        "const routes = {{\n{routes}}};\n\
         exports.hook_lookup_rdns = (next) => next(OK, 'source.test');\n\
         exports.hook_rcpt = (next, connection) => {{\n  \
           connection.relaying = true;\n  next(OK);\n}};\n\
         exports.hook_get_mx = (next, hmail, domain) => next(OK, routes[domain]);\n"
    )
}

fn route(domain: &str, sink: SocketAddr) -> String {
    let mut line = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        line,
        "  '{domain}': {{ priority: 0, exchange: '{}', port: {} }},",
        sink.ip(),
        sink.port()
    );
    line
}
