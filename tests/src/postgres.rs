//! A throw-away PostgreSQL cluster, reached over a Unix socket only.
//!
//! The server refuses to run as root, so under root it runs as `postgres` or `nobody`. It syncs
//! as the default is: the gateway does not accept mail into a database that does not.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

/// Stops, and is deleted, when dropped.
pub struct Postgres {
    server: Child,
    directory: tempfile::TempDir,
    programs: PathBuf,
    account: Option<(u32, u32)>,
}

const USER: &str = "tidegate";

impl Postgres {
    /// Makes a cluster and waits until it answers. Fails with the remedy where PostgreSQL is not
    /// installed.
    pub fn start() -> anyhow::Result<Postgres> {
        let programs = programs().context(
            "no initdb found in PATH or /usr/lib/postgresql: install PostgreSQL \
             (Debian: apt-get install postgresql)",
        )?;
        let account = unprivileged()?;
        let directory = tempfile::Builder::new().prefix("tidegate-pg-").tempdir()?;
        if let Some((user, group)) = account {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group))?;
        }
        let data = directory.path().join("data");
        let made = command(&programs.join("initdb"), account)
            .args(["--username", USER, "--auth", "trust", "--encoding", "UTF8"])
            .args(["--no-sync", "--no-instructions", "--pgdata"])
            .arg(&data)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .output()
            .context("initdb")?;
        if !made.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        let server = launch(&programs, directory.path(), account)?;
        let mut postgres = Postgres {
            server,
            directory,
            programs,
            account,
        };
        postgres.wait_ready()?;
        Ok(postgres)
    }

    /// For the gateway's `database` setting.
    pub fn url(&self) -> String {
        format!(
            "postgres://{USER}@localhost/postgres?host={}",
            self.directory.path().display()
        )
    }

    /// Ends the server and all its sessions at once, as a crash does: no checkpoint, no goodbye.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.server.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT)?;
        self.server.wait()?;
        Ok(())
    }

    /// Starts the server again on its cluster, and waits until it answers.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server = launch(&self.programs, self.directory.path(), self.account)?;
        self.wait_ready()
    }

    /// Runs one statement and gives its unadorned output.
    pub fn query(&self, sql: &str) -> anyhow::Result<String> {
        let output = command(&self.programs.join("psql"), self.account)
            .arg("--host")
            .arg(self.directory.path())
            .args(["--username", USER, "--dbname", "postgres", "--no-psqlrc"])
            .args(["--tuples-only", "--no-align", "--command", sql])
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let log = self.directory.path().join("log");
        crate::eventually("PostgreSQL ready", Duration::from_secs(30), || {
            if let Ok(Some(status)) = self.server.try_wait() {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Some(Err(anyhow::anyhow!("postgres ended with {status}: {said}")));
            }
            std::fs::read_to_string(&log)
                .is_ok_and(|said| said.contains("ready to accept connections"))
                .then_some(Ok(()))
        })?
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown: it ends its children, too.
        let ended = i32::try_from(self.server.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .is_some_and(|pid| {
                rustix::process::kill_process(pid, rustix::process::Signal::INT).is_ok()
            });
        if !ended {
            let _ = self.server.kill();
        }
        let _ = self.server.wait();
    }
}

fn launch(programs: &Path, directory: &Path, account: Option<(u32, u32)>) -> anyhow::Result<Child> {
    let data = directory.join("data");
    let log = std::fs::File::create(directory.join("log"))?;
    command(&programs.join("postgres"), account)
        .arg("-D")
        .arg(&data)
        .arg("-k")
        .arg(directory)
        .args(["-c", "listen_addresses="])
        .args(["-c", "max_connections=40", "-c", "shared_buffers=32MB"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("postgres")
}

fn command(program: &Path, account: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = account {
        command.uid(user).gid(group);
    }
    // Of the environment, only what finds libraries and the locale that always exists.
    command.env("LC_ALL", "C.UTF-8");
    command
}

fn programs() -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    // The newest first.
    places.sort_by_key(|place| {
        std::cmp::Reverse(
            place
                .parent()
                .and_then(Path::file_name)
                .and_then(OsStr::to_str)
                .and_then(|version| version.parse::<u32>().ok()),
        )
    });
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path));
    }
    places
        .into_iter()
        .find(|place| place.join("initdb").exists() && place.join("postgres").exists())
}

/// User and group to run as, where this process is root.
fn unprivileged() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd")?;
    for wanted in ["postgres", "nobody"] {
        for line in accounts.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, user, group, ..] = fields[..]
                && name == wanted
            {
                return Ok(Some((user.parse()?, group.parse()?)));
            }
        }
    }
    bail!("neither postgres nor nobody is in /etc/passwd, and PostgreSQL does not run as root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_answers_and_goes_away() {
        let postgres = Postgres::start().unwrap();
        assert_eq!(postgres.query("select 6 * 7").unwrap(), "42");
        let directory = postgres.directory.path().to_owned();
        drop(postgres);
        assert!(!directory.exists());
    }
}
