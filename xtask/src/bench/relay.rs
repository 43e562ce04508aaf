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
use super::{choose_gateway, crash, disk, place, sessions, table};

/// Options of `cargo xtask bench relay`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  cargo xtask bench relay
  cargo xtask bench relay --seconds 10 --rounds 5 --workloads keep,many
  cargo xtask bench relay --relays tidegate,postfix,exim,opensmtpd,haraka
  cargo xtask bench relay --relays tidegate --unsynced --by-sessions 1,4,20
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
    /// none: source straight to sink. What is not installed is left out, and said so. Slow ones get
    /// fewer messages; OpenSMTPD answers before what it took is on the disk.
    #[arg(long, value_delimiter = ',', default_values = ["none", "tidegate", "postfix"])]
    relays: Vec<Kind>,
    /// Also the gateway with its syncs turned off (by libeatmydata), in turn with the rest: what it
    /// costs to be durable.
    #[arg(long)]
    unsynced: bool,
    /// Also the time to the 250 with so many sessions (5 KiB, connections kept), beside a bare
    /// fdatasync: with more sessions than processors a message waits for its turn, not for the disk.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1000))]
    by_sessions: Vec<u16>,
    /// The source pipelines its commands; few real mail programs do.
    #[arg(long)]
    pipelining: bool,
    /// Count the calls that sync under strace, in an extra run that is not timed.
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
    /// Runs of other mail servers that came to nothing, and why.
    #[serde(default)]
    pub failed: Vec<String>,
    #[serde(default)]
    pub by_sessions: Vec<sessions::Point>,
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

/// The gateway without its syncs comes right after the gateway.
fn wanted(arguments: &Arguments) -> Vec<Kind> {
    let mut relays = arguments.relays.clone();
    if arguments.unsynced {
        let after = relays.iter().position(|kind| *kind == Kind::Tidegate);
        relays.insert(after.map_or(0, |at| at + 1), Kind::Unsynced);
    }
    relays
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
    let relays = installed(&wanted(arguments));
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
    let mut failed = Vec::new();
    let mut sync_p99 = Vec::new();
    eprintln!("{}", table::head());
    for round in 1..=arguments.rounds {
        sync_p99.push(disk::bare_sync_p99(place.path())?);
        for &workload in &arguments.workloads {
            for &kind in relays.iter().filter(|kind| kind.can(workload)) {
                let amount = shortened(amount, kind, workload);
                let run = measure(amount, kind, workload, round, place.path())
                    .with_context(|| format!("{} at {}", kind.name(), workload.name()));
                match run {
                    Ok(run) => {
                        eprintln!("{}", table::line(&run));
                        runs.push(run);
                    }
                    // Another server's trouble is no reason to lose what was measured.
                    Err(why) if kind.is_peer() => failed.push(told(&why)),
                    Err(why) => return Err(why),
                }
            }
        }
    }
    let few = Amount {
        // Slow under strace, and not timed.
        until: Until::Messages(500),
        ..amount
    };
    for &kind in relays.iter().filter(|kind| **kind != Kind::None) {
        if !arguments.syncs && kind != Kind::Unsynced {
            continue;
        }
        for &workload in arguments.workloads.iter().filter(|w| kind.can(**w)) {
            eprintln!("counting syncs: {} at {}", kind.name(), workload.name());
            let counted =
                match count_syncs(shortened(few, kind, workload), kind, workload, place.path()) {
                    Err(why) if kind.is_peer() => {
                        let what =
                            format!("counting syncs: {} at {}", kind.name(), workload.name());
                        failed.push(told(&why.context(what)));
                        None
                    }
                    counted => counted?,
                };
            for run in &mut runs {
                if run.relay == kind && run.workload == workload {
                    run.syncs_per_message = counted;
                }
            }
        }
    }
    let by_sessions = sessions::measure_all(
        &arguments.by_sessions,
        &relays,
        arguments.rounds,
        place.path(),
    )?;
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
        failed,
        by_sessions,
        crash,
    })
}

/// In one line; also said at once, since the run goes on for long.
fn told(why: &anyhow::Error) -> String {
    let text = format!("{why:#}").replace('\n', " ");
    eprintln!("no figure: {text}");
    text
}

/// Some take minutes for what others do in a second: Exim forks for every message, OpenSMTPD has
/// a backlog of five connections and one queue process, Haraka connects for every delivery. Fifty
/// messages are the least.
fn shortened(amount: Amount, kind: Kind, workload: Workload) -> Amount {
    let divisor = match (kind, workload) {
        (Kind::Exim, Workload::Many) => 20,
        (Kind::Exim, _) => 10,
        (Kind::OpenSmtpd, Workload::Many) => 50,
        (Kind::OpenSmtpd, _) => 25,
        (Kind::Haraka, Workload::Many) => 25,
        (Kind::Haraka, _) => 10,
        _ => 1,
    };
    match amount.until {
        Until::Messages(number) => Amount {
            until: Until::Messages((number / divisor).max(number.min(50))),
            ..amount
        },
        Until::Elapsed(_) => amount,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parsed(words: &[&str]) -> Arguments {
        let words = ["relay"].iter().chain(words);
        Line::try_parse_from(words).expect("valid").arguments
    }

    #[test]
    fn the_gateway_without_syncs_is_measured_right_after_the_gateway() {
        let arguments = parsed(&["--relays", "none,tidegate,opensmtpd", "--unsynced"]);
        let order = [Kind::None, Kind::Tidegate, Kind::Unsynced, Kind::OpenSmtpd];
        assert_eq!(wanted(&arguments), order);
        assert_eq!(
            wanted(&parsed(&[])),
            [Kind::None, Kind::Tidegate, Kind::Postfix]
        );
        // Not by its name: it is no relay that one could run.
        assert!(Line::try_parse_from(["relay", "--relays", "unsynced"]).is_err());
    }

    #[test]
    fn slow_peers_get_fewer_messages_and_the_gateway_all() {
        let amount = Amount {
            until: Until::Messages(5000),
            sessions: 20,
            pipelining: false,
        };
        let of = |kind, workload| shortened(amount, kind, workload).until;
        assert_eq!(of(Kind::Tidegate, Workload::Many), amount.until);
        assert_eq!(of(Kind::Postfix, Workload::Many), amount.until);
        assert_eq!(of(Kind::Exim, Workload::Keep), Until::Messages(500));
        assert_eq!(of(Kind::OpenSmtpd, Workload::Many), Until::Messages(100));
        let few = Amount {
            until: Until::Messages(500),
            ..amount
        };
        let of = |kind, workload| shortened(few, kind, workload).until;
        assert_eq!(of(Kind::OpenSmtpd, Workload::Keep), Until::Messages(50));
        let one = Amount {
            until: Until::Messages(1),
            ..amount
        };
        let of = |kind, workload| shortened(one, kind, workload).until;
        assert_eq!(of(Kind::Exim, Workload::Keep), Until::Messages(1));
        let amount = Amount {
            until: Until::Elapsed(Duration::from_secs(3)),
            ..amount
        };
        let same = shortened(amount, Kind::Exim, Workload::Keep).until;
        assert_eq!(same, amount.until);
    }
}
