//! One run of one relay at one workload.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::{Deserialize, Serialize};
use tidegate_tests::counting::CountingSink;
use tidegate_tests::load::{Load, Outcome, Until};
use tidegate_tests::tls::Identity;
use tidegate_tests::{address, loopback_block, proc};

use super::relays::{Kind, Relay};
use super::workload::{DOMAINS, SENDER, Workload, domain};
use crate::host;

/// Deliveries that are waited for after the last message, while none comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much is submitted, and how.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    pub until: Until,
    pub sessions: usize,
    pub pipelining: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    pub relay: Kind,
    pub workload: Workload,
    pub round: u32,
    pub accepted: u64,
    pub failed: u64,
    pub deliveries: u64,
    pub accepted_per_s: f64,
    pub delivered_per_s: f64,
    /// Of the relay's processes, for each delivery.
    pub cpu_us: Option<f64>,
    pub peak_pss_mib: Option<f64>,
    /// Of the main process; of a relay with many processes the sum means little.
    pub peak_rss_mib: Option<f64>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub sink_sessions: u64,
    pub syncs_per_message: Option<f64>,
}

/// A sink on ten addresses of a block, and the block's first address for the relay.
pub struct Destinations {
    pub sink: CountingSink,
    pub relay: Ipv4Addr,
    /// Whose certificate the sink shows, if it offers TLS.
    pub identity: Option<Identity>,
}

impl Destinations {
    pub fn start(tls: bool) -> anyhow::Result<Destinations> {
        let block = loopback_block();
        let addresses: Vec<Ipv4Addr> = (0..DOMAINS).map(|at| address(block, 10 + at)).collect();
        let identity = if tls {
            let names: Vec<String> = (0..DOMAINS)
                .map(|at| format!("mx.{}", domain(at)))
                .chain(["relay.test".to_owned()])
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Some(Identity::new(&names)?)
        } else {
            None
        };
        let server = identity.as_ref().map(|identity| identity.server.clone());
        Ok(Destinations {
            sink: CountingSink::start(&addresses, server)?,
            relay: address(block, 1),
            identity,
        })
    }
}

/// The load of a workload on a relay.
pub fn load(amount: Amount, relay: &Relay, workload: Workload) -> anyhow::Result<Load> {
    let tls = if workload.tls() {
        Some(relay.trust()?)
    } else {
        None
    };
    Ok(Load {
        target: relay.address(tls.is_some()),
        login: relay.login(),
        tls,
        sessions: amount.sessions,
        keep: workload.keeps(),
        pipelining: amount.pipelining,
        sender: SENDER.into(),
        recipients: workload.recipients(),
        numbered: false,
        size: workload.size(),
        until: amount.until,
    })
}

/// What one load did to a relay that runs.
pub struct Measured {
    pub outcome: Outcome,
    pub deliveries: u64,
    pub delivered_per_s: f64,
    /// Microseconds for each delivery.
    pub cpu_us: Option<f64>,
    pub peak_pss_kib: Option<u64>,
    pub sink_sessions: u64,
}

/// Submits, waits until all has arrived, and demands that it has.
pub fn submit(load: &Load, relay: &Relay, sink: &CountingSink) -> anyhow::Result<Measured> {
    let per_message = load.recipients.len() as u64;
    let before = sink.count();
    let cpu_before = relay.cpu();
    let over = AtomicBool::new(false);
    let started = Instant::now();
    let (outcome, count, ended, peak_pss_kib) = std::thread::scope(|scope| {
        let watch = relay.pid().map(|pid| {
            let over = &over;
            scope.spawn(move || {
                let mut peak = 0;
                while !over.load(Ordering::Relaxed) {
                    peak = peak.max(proc::family_pss_kib(pid));
                    std::thread::sleep(Duration::from_millis(400));
                }
                peak
            })
        });
        let outcome = load.run();
        let expected = before.recipients + outcome.accepted * per_message;
        let (count, ended) = sink.wait_for(expected, PATIENCE);
        over.store(true, Ordering::Relaxed);
        let peak = watch.and_then(|watch| watch.join().ok());
        (outcome, count, ended, peak)
    });
    let cpu = relay.cpu().zip(cpu_before).map(|(now, then)| now - then);
    let deliveries = count.recipients - before.recipients;
    if deliveries < outcome.accepted * per_message {
        bail!(
            "{deliveries} of {} deliveries arrived",
            outcome.accepted * per_message
        );
    }
    if let Some(failure) = &outcome.first_failure {
        bail!("{} submissions failed: {failure}", outcome.failed);
    }
    Ok(Measured {
        deliveries,
        delivered_per_s: deliveries as f64 / (ended - started).as_secs_f64(),
        cpu_us: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / deliveries as f64),
        peak_pss_kib,
        sink_sessions: count.sessions - before.sessions,
        outcome,
    })
}

/// Caches, connections and workers are there before the clock starts. With at most a hundred
/// messages, and with fewer where few are measured: those are slow.
pub fn warm_up(load: &Load, relay: &Relay, sink: &CountingSink) -> anyhow::Result<()> {
    let load = Load {
        until: Until::Messages(match load.until {
            Until::Messages(number) => (number / 5).clamp(20, 100),
            Until::Elapsed(_) => 100,
        }),
        ..load.clone()
    };
    match submit(&load, relay, sink) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.context("warming up")),
    }
}

/// Starts a relay anew with its queue below `place`, and measures it.
pub fn measure(
    amount: Amount,
    kind: Kind,
    workload: Workload,
    round: u32,
    place: &Path,
) -> anyhow::Result<Run> {
    let to = Destinations::start(workload.tls())?;
    let relay = Relay::start(kind, &to, place, None)?;
    let load = load(amount, &relay, workload)?;
    warm_up(&load, &relay, &to.sink)?;
    let measured = submit(&load, &relay, &to.sink)?;
    let outcome = &measured.outcome;
    let run = Run {
        relay: kind,
        workload,
        round,
        accepted: outcome.accepted,
        failed: outcome.failed,
        deliveries: measured.deliveries,
        accepted_per_s: outcome.rate(),
        delivered_per_s: measured.delivered_per_s,
        cpu_us: measured.cpu_us,
        peak_pss_mib: measured.peak_pss_kib.map(|kib| kib as f64 / 1024.0),
        peak_rss_mib: relay
            .pid()
            .and_then(proc::peak_rss_kib)
            .map(|kib| kib as f64 / 1024.0),
        p50_ms: outcome.percentile(0.5),
        p99_ms: outcome.percentile(0.99),
        sink_sessions: measured.sink_sessions,
        syncs_per_message: None,
    };
    relay.stop()?;
    Ok(run)
}

/// Calls that sync for each accepted message, under strace.
pub fn count_syncs(
    amount: Amount,
    kind: Kind,
    workload: Workload,
    place: &Path,
) -> anyhow::Result<Option<f64>> {
    if host::find("strace").is_none() {
        eprintln!("strace is not installed: syncs are not counted");
        return Ok(None);
    }
    let to = Destinations::start(workload.tls())?;
    let trace = place.join("syncs");
    let relay = Relay::start(kind, &to, place, Some(&trace))?;
    let before = syncs(&trace);
    let load = load(amount, &relay, workload)?;
    let outcome = load.run();
    to.sink
        .wait_for(outcome.accepted * load.recipients.len() as u64, PATIENCE);
    let counted = syncs(&trace) - before;
    relay.stop()?;
    let _ = std::fs::remove_file(&trace);
    Ok(Some(counted as f64 / outcome.accepted as f64))
}

fn syncs(trace: &Path) -> usize {
    std::fs::read_to_string(trace).map_or(0, |text| called(&text))
}

/// Calls in what strace wrote: a line for each, two where another came in between, and some of
/// signals and ends.
fn called(trace: &str) -> usize {
    trace
        .lines()
        .filter(|line| line.contains("sync") && !line.contains(" resumed>"))
        .count()
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_call_that_syncs_is_counted_once() {
        let trace = "\
            812   fdatasync(11)                     = 0\n\
            813   fsync(12 <unfinished ...>\n\
            812   sync_file_range(3, 0, 4096, 2)    = 0\n\
            813   <... fsync resumed>)              = 0\n\
            812   --- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=1, si_uid=0} ---\n\
            812   +++ exited with 0 +++\n";
        assert_eq!(super::called(trace), 3);
    }
}
