//! OpenSMTPD: configuration, queue, control socket and port of its own. It has no setting for
//! where the queue and the socket are, so it runs in a mount namespace where its own directories
//! lie over the system's; nobody else sees them.
//!
//! It answers before what it took is on stable storage, and no setting changes that.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::measure::Destinations;
use super::super::workload::{DOMAINS, domain};
use super::daemon::Daemon;
use super::free_address;
use crate::host;

/// Accounts that it runs as, for a machine where it was unpacked and not installed.
const ACCOUNTS: [&str; 2] = ["opensmtpd", "opensmtpq"];

/// Where it changes its root to.
const EMPTY: &str = "/var/lib/opensmtpd/empty";

/// Its daemon in PATH; other mail servers have programs of the same name.
pub fn program() -> Option<PathBuf> {
    let program = host::find("smtpd")?;
    let said = Command::new(&program).arg("-h").output().ok()?;
    let text = [said.stdout, said.stderr].concat();
    String::from_utf8_lossy(&text)
        .contains("OpenSMTPD")
        .then_some(program)
}

/// `OpenSMTPD 6.8.0p2`, as the program says it.
pub fn version() -> Option<String> {
    let said = Command::new(program()?).arg("-h").output().ok()?;
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    let line = text.lines().find(|line| line.contains("OpenSMTPD"))?;
    Some(line.split("OpenSMTPD").nth(1)?.trim().to_owned())
}

pub fn start(to: &Destinations, place: &Path, trace: Option<&Path>) -> anyhow::Result<Daemon> {
    let directory = tempfile::Builder::new()
        .prefix("opensmtpd-")
        .tempdir_in(place)?;
    let home = directory.path();
    let address = free_address(to)?;
    let run = home.join("run");
    for made in ["run", "spool", "lib/opensmtpd/empty"] {
        std::fs::create_dir_all(home.join(made))?;
    }
    std::fs::write(run.join("smtpd.conf"), configuration(to, address))?;
    let mut mounts = vec![("hosts", "/etc/hosts")];
    std::fs::write(home.join("hosts"), hosts(to))?;
    // It looks up the names of all addresses, and begins with DNS where not told otherwise.
    let resolver = "lookup file\n";
    // Where there is no such file, there is nothing to lie over.
    if let Ok(real) = std::fs::canonicalize("/etc/resolv.conf") {
        if let Ok(below) = real.strip_prefix("/run") {
            let below = run.join(below);
            std::fs::create_dir_all(below.parent().unwrap_or(&run))?;
            std::fs::write(below, resolver)?;
        } else {
            std::fs::write(home.join("resolv.conf"), resolver)?;
            mounts.push(("resolv.conf", "/etc/resolv.conf"));
        }
    }
    let accounts = std::fs::read_to_string("/etc/passwd")?;
    let groups = std::fs::read_to_string("/etc/group")?;
    if let Some((accounts, groups)) = with_accounts(&accounts, &groups) {
        std::fs::write(home.join("passwd"), accounts)?;
        std::fs::write(home.join("group"), groups)?;
        mounts.extend([("passwd", "/etc/passwd"), ("group", "/etc/group")]);
    }
    if !Path::new(EMPTY).is_dir() {
        mounts.push(("lib", "/var/lib"));
    }
    mounts.extend([("spool", "/var/spool"), ("run", "/run")]);
    let mounts: Vec<String> = mounts
        .iter()
        .map(|(ours, theirs)| format!("mount --bind {ours} {theirs}"))
        .collect();
    let script = format!(
        "{} && exec \"$0\" -d -f /run/smtpd.conf",
        mounts.join(" && ")
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .arg(program().unwrap_or_else(|| "smtpd".into()))
        .current_dir(home);
    Daemon::start(command, directory, address, trace)
}

/// Both files with the accounts that are missing; nothing if none is.
fn with_accounts(accounts: &str, groups: &str) -> Option<(String, String)> {
    let (mut accounts, mut groups) = (accounts.to_owned(), groups.to_owned());
    let mut id = 64_000;
    let mut missing = false;
    for name in ACCOUNTS {
        if accounts
            .lines()
            .any(|line| line.starts_with(&format!("{name}:")))
        {
            continue;
        }
        missing = true;
        while accounts.contains(&format!(":{id}:")) || groups.contains(&format!(":{id}:")) {
            id += 1;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(accounts, "{name}:x:{id}:{id}::{EMPTY}:/bin/false");
        let _ = writeln!(groups, "{name}:x:{id}:");
    }
    missing.then_some((accounts, groups))
}

/// Names for all addresses that it meets.
fn hosts(to: &Destinations) -> String {
    let mut text = String::from("127.0.0.1 localhost\n");
    let _ = writeln!(text, "{} relay.test", to.relay);
    for (at, sink) in (0..DOMAINS).zip(to.sink.addresses()) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} mx.{}", sink.ip(), domain(at));
    }
    text
}

/// Without its limits on what goes to one host, which would be the slowest part.
fn configuration(to: &Destinations, address: SocketAddr) -> String {
    let mut text =
        String::from("smtp limit max-mails 1000000\nmta limit session-transaction-delay 0\n");
    for of in ["host", "route", "source", "connector", "relay", "domain"] {
        let _ = writeln!(text, "mta limit max-conn-per-{of} 100");
        let _ = writeln!(text, "mta limit conn-delay-{of} 0");
    }
    let _ = writeln!(
        text,
        "listen on {} port {} hostname relay.test",
        address.ip(),
        address.port()
    );
    for (at, sink) in (0..DOMAINS).zip(to.sink.addresses()) {
        let _ = writeln!(text, "action \"d{at}\" relay host smtp://{sink}");
        let _ = writeln!(
            text,
            "match from any for domain \"{}\" action \"d{at}\"",
            domain(at)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_added_once_and_with_numbers_of_their_own() {
        let accounts = "root:x:0:0::/root:/bin/sh\nother:x:64000:64000::/:/bin/false\n";
        let groups = "root:x:0:\nother:x:64000:\nthird:x:64001:\n";
        let (accounts, groups) = with_accounts(accounts, groups).expect("both were missing");
        assert!(accounts.ends_with(
            "opensmtpd:x:64002:64002::/var/lib/opensmtpd/empty:/bin/false\n\
             opensmtpq:x:64003:64003::/var/lib/opensmtpd/empty:/bin/false\n"
        ));
        assert!(groups.ends_with("opensmtpd:x:64002:\nopensmtpq:x:64003:\n"));
        assert_eq!(with_accounts(&accounts, &groups), None);
    }
}
