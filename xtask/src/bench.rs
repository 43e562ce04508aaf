//! `cargo xtask bench relay`: what relaying costs, on loopback, every delivery counted at the sink.
//!
//! Source and sink run in this process, the relay in its own, so the relay's CPU time is its
//! alone. The relays take turns within each round, and each run starts its relay anew: machines
//! are noisy, so figures mean something as ratios within one call only.

pub mod policy;
mod relays;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tidegate_tests::counting::CountingSink;
use tidegate_tests::load::{Load, Outcome, Until};
use tidegate_tests::{address, loopback_block, proc};

use crate::{host, plugins};
use relays::Relay;

/// Options of `cargo xtask bench relay`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench relay
  cargo xtask bench relay --seconds 10 --rounds 5 --workloads keep,many
  cargo xtask bench relay --relays tidegate --json > relay.json")]
pub struct Arguments {
    /// Messages submitted in each run.
    #[arg(long, default_value_t = 5000, conflicts_with = "seconds")]
    messages: u64,
    /// Submit for so long instead.
    #[arg(long)]
    seconds: Option<u64>,
    /// Parallel submission sessions.
    #[arg(long, default_value_t = 20)]
    sessions: usize,
    /// Times every relay does every workload.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// keep: 5 KiB, kept connections; one: a connection each; big: 50 KiB; many: 10 recipients
    /// in 10 domains.
    #[arg(long, value_delimiter = ',', default_values = ["keep", "one", "big", "many"])]
    workloads: Vec<Workload>,
    /// none: source straight to sink. postfix is left out where it is not installed.
    #[arg(long, value_delimiter = ',', default_values = ["none", "tidegate", "postfix"])]
    relays: Vec<relays::Kind>,
    /// The source pipelines its commands; few real mail programs do.
    #[arg(long)]
    pipelining: bool,
    /// Count fsync and fdatasync calls under strace, in an extra run that is not timed.
    #[arg(long)]
    syncs: bool,
    /// This gateway instead of a new release build.
    #[arg(long)]
    binary: Option<std::path::PathBuf>,
    /// Print the runs as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Workload {
    Keep,
    One,
    Big,
    Many,
}

impl Workload {
    fn size(self) -> usize {
        if self == Workload::Big {
            50 * 1024
        } else {
            5 * 1024
        }
    }

    fn recipients(self) -> Vec<String> {
        let number = if self == Workload::Many { DOMAINS } else { 1 };
        (0..number)
            .map(|at| format!("someone@{}", domain(at)))
            .collect()
    }
}

/// Destinations, each an address with a domain of its own.
pub const DOMAINS: u8 = 10;

pub fn domain(at: u8) -> String {
    format!("d{at}.test")
}

/// The sender that relays have to let in.
pub const SENDER: &str = "bench@source.test";

/// One run of one relay at one workload.
#[derive(Clone, Debug, Serialize)]
struct Run {
    relay: relays::Kind,
    workload: Workload,
    round: u32,
    accepted: u64,
    failed: u64,
    deliveries: u64,
    accepted_per_s: f64,
    delivered_per_s: f64,
    /// Of the relay's processes, for each delivery.
    cpu_us: Option<f64>,
    peak_pss_mib: Option<f64>,
    /// Of the main process; of a relay with many processes the sum means little.
    peak_rss_mib: Option<f64>,
    p50_ms: f64,
    p99_ms: f64,
    sink_sessions: u64,
    syncs_per_message: Option<f64>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = &arguments.relays;
    let mut kinds: Vec<relays::Kind> = wanted.clone();
    if kinds.contains(&relays::Kind::Postfix) && !relays::postfix_installed() {
        eprintln!("postfix is not installed: left out (Debian: apt-get install postfix)");
        kinds.retain(|kind| *kind != relays::Kind::Postfix);
    }
    let binary = match &arguments.binary {
        // The gateway is started in directories of its own.
        Some(binary) => std::fs::canonicalize(binary)
            .with_context(|| format!("the gateway {}", binary.display()))?,
        None if kinds.contains(&relays::Kind::Tidegate) => {
            plugins::build(&host::root())?;
            host::build_gateway(true)?
        }
        None => Default::default(),
    };
    // Of this process only, before any thread is started.
    relays::choose_binary(&binary);

    let mut runs = Vec::new();
    let mut sync_p99 = Vec::new();
    for round in 1..=arguments.rounds {
        sync_p99.push(bare_sync_p99()?);
        for &workload in &arguments.workloads {
            for &kind in &kinds {
                let run = measure(arguments, kind, workload, round)
                    .with_context(|| format!("{kind:?} at {workload:?}"))?;
                if !arguments.json {
                    eprintln!("{}", line(&run));
                }
                runs.push(run);
            }
        }
    }
    if arguments.syncs {
        for &kind in kinds.iter().filter(|kind| **kind != relays::Kind::None) {
            for &workload in &arguments.workloads {
                let run = count_syncs(arguments, kind, workload)?;
                for earlier in &mut runs {
                    if earlier.relay == kind && earlier.workload == workload {
                        earlier.syncs_per_message = run;
                    }
                }
            }
        }
    }
    let sync_p99 = median(sync_p99);
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({"bare_fdatasync_p99_ms": sync_p99, "runs": runs})
        );
    } else {
        print_table(arguments, &kinds, &runs, sync_p99);
    }
    Ok(())
}

/// A sink on ten addresses of a block, and the block's first address for the relay.
fn sink() -> anyhow::Result<(CountingSink, Ipv4Addr)> {
    let block = loopback_block();
    let addresses: Vec<Ipv4Addr> = (0..DOMAINS).map(|at| address(block, 10 + at)).collect();
    Ok((CountingSink::start(&addresses)?, address(block, 1)))
}

fn load(arguments: &Arguments, relay: &Relay, workload: Workload, until: Until) -> Outcome {
    Load {
        target: relay.address(),
        login: relay.login(),
        sessions: arguments.sessions,
        keep: workload != Workload::One,
        pipelining: arguments.pipelining,
        sender: SENDER.into(),
        recipients: workload.recipients(),
        size: workload.size(),
        until,
    }
    .run()
}

fn measure(
    arguments: &Arguments,
    kind: relays::Kind,
    workload: Workload,
    round: u32,
) -> anyhow::Result<Run> {
    let (sink, ip) = sink()?;
    let relay = Relay::start(kind, ip, &sink, None)?;
    let per_message = workload.recipients().len() as u64;

    // Caches, connections and workers are there before the clock starts.
    let warm = load(arguments, &relay, workload, Until::Messages(100));
    if warm.accepted < 100 {
        bail!(
            "warming up: {} of 100 accepted; {}",
            warm.accepted,
            warm.first_failure.unwrap_or_default()
        );
    }
    let (before, _) = sink.wait_for(100 * per_message, Duration::from_secs(20));
    if before.recipients < 100 * per_message {
        bail!("warming up: {} deliveries of 100", before.recipients);
    }

    let cpu_before = relay.cpu();
    let over = AtomicBool::new(false);
    let started = Instant::now();
    let until = match arguments.seconds {
        Some(seconds) => Until::Elapsed(Duration::from_secs(seconds)),
        None => Until::Messages(arguments.messages),
    };
    let (outcome, count, ended, peak_pss) = std::thread::scope(|scope| {
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
        let outcome = load(arguments, &relay, workload, until);
        let expected = before.recipients + outcome.accepted * per_message;
        let (count, ended) = sink.wait_for(expected, Duration::from_secs(20));
        over.store(true, Ordering::Relaxed);
        let peak = watch.and_then(|watch| watch.join().ok());
        (outcome, count, ended, peak)
    });
    let cpu = relay.cpu().zip(cpu_before).map(|(now, then)| now - then);
    let deliveries = count.recipients - before.recipients;
    if deliveries < outcome.accepted * per_message {
        bail!(
            "{} of {} deliveries arrived",
            deliveries,
            outcome.accepted * per_message
        );
    }
    if let Some(failure) = &outcome.first_failure {
        bail!("{} submissions failed: {failure}", outcome.failed);
    }
    let run = Run {
        relay: kind,
        workload,
        round,
        accepted: outcome.accepted,
        failed: outcome.failed,
        deliveries,
        accepted_per_s: outcome.rate(),
        delivered_per_s: deliveries as f64 / (ended - started).as_secs_f64(),
        cpu_us: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / deliveries as f64),
        peak_pss_mib: peak_pss.map(|kib| kib as f64 / 1024.0),
        peak_rss_mib: relay
            .pid()
            .and_then(proc::peak_rss_kib)
            .map(|kib| kib as f64 / 1024.0),
        p50_ms: outcome.percentile(0.5),
        p99_ms: outcome.percentile(0.99),
        sink_sessions: count.sessions - before.sessions,
        syncs_per_message: None,
    };
    relay.stop()?;
    Ok(run)
}

/// Calls of fsync and fdatasync for each accepted message.
fn count_syncs(
    arguments: &Arguments,
    kind: relays::Kind,
    workload: Workload,
) -> anyhow::Result<Option<f64>> {
    if host::find("strace").is_none() {
        eprintln!("strace is not installed: syncs are not counted");
        return Ok(None);
    }
    let (sink, ip) = sink()?;
    let trace = tempfile_path("syncs");
    let relay = Relay::start(kind, ip, &sink, Some(&trace))?;
    let before = syncs(&trace);
    let outcome = load(arguments, &relay, workload, Until::Messages(1000));
    sink.wait_for(
        outcome.accepted * workload.recipients().len() as u64,
        Duration::from_secs(20),
    );
    let counted = syncs(&trace) - before;
    relay.stop()?;
    let _ = std::fs::remove_file(&trace);
    Ok(Some(counted as f64 / outcome.accepted as f64))
}

fn tempfile_path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("tidegate-bench-{name}-{}", std::process::id()))
}

fn syncs(trace: &std::path::Path) -> usize {
    std::fs::read_to_string(trace).map_or(0, |text| {
        text.lines()
            .filter(|line| line.contains("sync(") && !line.contains("resumed"))
            .count()
    })
}

/// The 99th percentile of overwriting 4 KiB and syncing it, milliseconds: what the disk costs.
fn bare_sync_p99() -> anyhow::Result<f64> {
    use std::os::unix::fs::FileExt;
    let path = tempfile_path("sync");
    let file = std::fs::File::create(&path)?;
    let block = [7; 4096];
    for at in 0..256 {
        file.write_at(&block, at * 4096)?;
    }
    file.sync_all()?;
    let mut times = Vec::new();
    for at in 0..500 {
        let started = Instant::now();
        file.write_at(&block, at % 256 * 4096)?;
        file.sync_data()?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path)?;
    times.sort_by(f64::total_cmp);
    Ok(times[494])
}

fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

const HEAD: &str = "workload relay      accepted/s delivered/s CPU us/delivery PSS MiB RSS MiB   p50 ms   p99 ms syncs/msg";

fn line(run: &Run) -> String {
    let optional = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
    };
    format!(
        "{:8} {:10} {:10.0} {:11.0} {:>15} {:>7} {:>7} {:8.2} {:8.2} {:>9}",
        format!("{:?}", run.workload).to_lowercase(),
        format!("{:?}", run.relay).to_lowercase(),
        run.accepted_per_s,
        run.delivered_per_s,
        optional(run.cpu_us, 0),
        optional(run.peak_pss_mib, 0),
        optional(run.peak_rss_mib, 0),
        run.p50_ms,
        run.p99_ms,
        optional(run.syncs_per_message, 2),
    )
}

fn print_table(arguments: &Arguments, kinds: &[relays::Kind], runs: &[Run], sync_p99: f64) {
    println!(
        "\nmedians of {} rounds, {} sessions, loopback; every accepted message was counted at the sink",
        arguments.rounds, arguments.sessions
    );
    println!("{HEAD}");
    for &workload in &arguments.workloads {
        let mut postfix = None;
        let mut ours = None;
        for &kind in kinds {
            let these: Vec<&Run> = runs
                .iter()
                .filter(|run| run.relay == kind && run.workload == workload)
                .collect();
            let Some(&last) = these.last() else { continue };
            let of =
                |figure: fn(&Run) -> f64| median(these.iter().map(|run| figure(run)).collect());
            let maybe = |figure: fn(&Run) -> Option<f64>| {
                figure(last).map(|_| median(these.iter().filter_map(|run| figure(run)).collect()))
            };
            let middle = Run {
                accepted_per_s: of(|run| run.accepted_per_s),
                delivered_per_s: of(|run| run.delivered_per_s),
                cpu_us: maybe(|run| run.cpu_us),
                peak_pss_mib: maybe(|run| run.peak_pss_mib),
                peak_rss_mib: maybe(|run| run.peak_rss_mib),
                p50_ms: of(|run| run.p50_ms),
                p99_ms: of(|run| run.p99_ms),
                ..last.clone()
            };
            println!("{}", line(&middle));
            match kind {
                relays::Kind::Postfix => postfix = Some(middle),
                relays::Kind::Tidegate => ours = Some(middle),
                relays::Kind::None => {}
            }
        }
        if let (Some(ours), Some(postfix)) = (&ours, &postfix) {
            println!(
                "{:8} ratio      tidegate / postfix: {:.1} x delivered, {:.1} x less CPU",
                "",
                ours.delivered_per_s / postfix.delivered_per_s,
                postfix.cpu_us.unwrap_or(f64::NAN) / ours.cpu_us.unwrap_or(f64::NAN),
            );
        }
        if let Some(ours) = &ours {
            println!(
                "{:8} latency    tidegate p99 / bare fdatasync p99 ({sync_p99:.2} ms): {:.1} x",
                "",
                ours.p99_ms / sync_p99
            );
        }
    }
}
