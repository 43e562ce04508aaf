//! `cargo xtask bench relay`: what relaying costs, on loopback, every delivery counted at the sink.
//!
//! The relays take turns within each round, and each run starts its relay anew.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tidegate_tests::load::Until;

use super::measure::{Amount, Run, count_syncs, measure};
use super::relays::Kind;
use super::workload::Workload;
use super::{choose_gateway, crash, disk, place, table};

/// Options of `cargo xtask bench relay`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  cargo xtask bench relay
  cargo xtask bench relay --seconds 10 --rounds 5 --workloads keep,many
  cargo xtask bench relay --relays tidegate --json relay.json")]
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
    /// in 10 domains; tls and tls-one: keep and one with TLS on both sides.
    #[arg(long, value_delimiter = ',', default_values = ["keep", "one", "big", "many", "tls"])]
    workloads: Vec<Workload>,
    /// none: source straight to sink. What is not installed is left out, and said so.
    #[arg(long, value_delimiter = ',', default_values = ["none", "tidegate", "postfix"])]
    relays: Vec<Kind>,
    /// The source pipelines its commands; few real mail programs do.
    #[arg(long)]
    pipelining: bool,
    /// Count fsync and fdatasync calls under strace, in an extra run that is not timed.
    #[arg(long)]
    syncs: bool,
    /// Kill the gateway under load at the end, and count what became of what it accepted.
    #[arg(long)]
    crash: bool,
    /// Keep the relays' queues below this directory, to measure its file system.
    #[arg(long)]
    place: Option<PathBuf>,
    /// This gateway instead of a new release build.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Also write all runs to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What one call found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Relaying {
    pub file_system: String,
    pub rounds: u32,
    pub sessions: usize,
    pub workloads: Vec<Workload>,
    pub relays: Vec<Kind>,
    /// Of a bare fdatasync, the median over the rounds.
    pub sync_p99_ms: f64,
    pub runs: Vec<Run>,
    pub crash: Option<crash::Crash>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    choose_gateway(arguments.binary.as_deref())?;
    let figures = interleaved(arguments)?;
    table::print(&figures);
    if let Some(crash) = &figures.crash {
        println!("{crash}");
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The relays wanted that are here; says which are not.
fn installed(wanted: &[Kind]) -> Vec<Kind> {
    wanted
        .iter()
        .copied()
        .filter(|kind| match kind.missing() {
            None => true,
            Some(remedy) => {
                eprintln!("{} is not installed: left out ({remedy})", kind.name());
                false
            }
        })
        .collect()
}

/// All runs, round by round.
pub fn interleaved(arguments: &Arguments) -> anyhow::Result<Relaying> {
    let relays = installed(&arguments.relays);
    let place = place(arguments.place.as_deref())?;
    let amount = Amount {
        until: match arguments.seconds {
            Some(seconds) => Until::Elapsed(Duration::from_secs(seconds)),
            None => Until::Messages(arguments.messages),
        },
        sessions: arguments.sessions,
        pipelining: arguments.pipelining,
    };
    let mut runs: Vec<Run> = Vec::new();
    let mut sync_p99 = Vec::new();
    eprintln!("{}", table::head());
    for round in 1..=arguments.rounds {
        sync_p99.push(disk::bare_sync_p99(place.path())?);
        for &workload in &arguments.workloads {
            for &kind in relays.iter().filter(|kind| kind.can(workload)) {
                let run = measure(shortened(amount, kind), kind, workload, round, place.path())
                    .with_context(|| format!("{} at {}", kind.name(), workload.name()))?;
                eprintln!("{}", table::line(&run));
                runs.push(run);
            }
        }
    }
    if arguments.syncs {
        for &kind in relays.iter().filter(|kind| **kind != Kind::None) {
            for &workload in arguments.workloads.iter().filter(|w| kind.can(**w)) {
                let counted = count_syncs(amount, kind, workload, place.path())?;
                for run in &mut runs {
                    if run.relay == kind && run.workload == workload {
                        run.syncs_per_message = counted;
                    }
                }
            }
        }
    }
    let crash = if arguments.crash {
        Some(crash::check(amount, place.path())?)
    } else {
        None
    };
    Ok(Relaying {
        file_system: disk::file_system(place.path()),
        rounds: arguments.rounds,
        sessions: arguments.sessions,
        workloads: arguments.workloads.clone(),
        relays,
        sync_p99_ms: table::median(sync_p99),
        runs,
        crash,
    })
}

/// Exim forks for every message: a run of the others' length would take minutes.
fn shortened(amount: Amount, kind: Kind) -> Amount {
    match (kind, amount.until) {
        (Kind::Exim, Until::Messages(number)) => Amount {
            until: Until::Messages(number.div_ceil(10)),
            ..amount
        },
        _ => amount,
    }
}
