//! A mail server that stays in the foreground: one process with its family, its directory, its
//! address, and the tracer of its syncs.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tidegate_tests::raw::Raw;
use tidegate_tests::{eventually, proc};

use super::Peer;

/// Ends with its family when dropped.
pub struct Daemon {
    _directory: tempfile::TempDir,
    address: SocketAddr,
    process: Child,
    /// The server's own process, where another one started it and stays.
    own: u32,
    tracer: Option<Child>,
}

impl Daemon {
    /// Starts, and waits until it greets. What it writes is kept in the directory, and is part of
    /// every error here.
    pub fn start(
        mut command: Command,
        directory: tempfile::TempDir,
        address: SocketAddr,
        trace: Option<&Path>,
    ) -> anyhow::Result<Daemon> {
        let said = directory.path().join("said");
        let output = std::fs::File::create(&said)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let mut daemon = Daemon {
            _directory: directory,
            address,
            own: process.id(),
            process,
            tracer: None,
        };
        let greeted = eventually("it greets", Duration::from_secs(20), || {
            if let Ok(Some(status)) = daemon.process.try_wait() {
                return Some(Err(anyhow::anyhow!("it ended with {status}")));
            }
            Raw::connect(address).ok()?.expect(220).ok().map(Ok)
        });
        greeted.and_then(|greeted| greeted).with_context(|| {
            let said = std::fs::read_to_string(&said).unwrap_or_default();
            format!("{}: {said}", command.get_program().display())
        })?;
        if let Some(trace) = trace {
            daemon.tracer = Some(attach(trace, &proc::family(daemon.process.id()))?);
        }
        Ok(daemon)
    }

    /// The server is the child of what was started.
    pub fn child(mut self) -> Daemon {
        if let Some(child) = proc::family(self.process.id()).get(1) {
            self.own = *child;
        }
        self
    }
}

impl Peer for Daemon {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pid(&self) -> u32 {
        self.own
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for pid in proc::family(self.process.id()).into_iter().rev() {
            // Those that ended meanwhile are no loss.
            let _ = Command::new("kill")
                .arg(pid.to_string())
                .stderr(Stdio::null())
                .status();
        }
        let ended = eventually("it ends", Duration::from_secs(10), || {
            self.process.try_wait().ok().flatten()
        });
        if ended.is_err() {
            // An orderly stop can wait for connections that nobody needs.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        if let Some(mut tracer) = self.tracer.take() {
            let _ = tracer.wait();
        }
    }
}

/// Traces the syncs of running processes and of all that they start; returns when attached.
pub fn attach(trace: &Path, family: &[u32]) -> anyhow::Result<Child> {
    let first = family.first().context("a process to trace")?;
    let tracer = Command::new("strace")
        .args(["-f", "-q", "-e", super::SYNCS, "-o"])
        .arg(trace)
        .args(family.iter().map(|pid| format!("-p{pid}")))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start strace")?;
    // The kernel says so of the main process, which is the first.
    eventually("strace attached", Duration::from_secs(10), || {
        std::fs::read_to_string(format!("/proc/{first}/status"))
            .ok()?
            .lines()
            .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
            .then_some(())
    })?;
    // And of the others a little later.
    std::thread::sleep(Duration::from_millis(500));
    Ok(tracer)
}
