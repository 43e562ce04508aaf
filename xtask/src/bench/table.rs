//! Medians of runs, as text for the terminal and for the report.

use super::measure::Run;
use super::relay::Relaying;
use super::relays::Kind;
use super::sessions;
use super::workload::Workload;

pub fn median(mut values: Vec<f64>) -> f64 {
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

const COLUMNS: [&str; 10] = [
    "relay",
    "accepted/s",
    "delivered/s",
    "CPU us/delivery",
    "PSS MiB",
    "RSS MiB",
    "p50 ms",
    "p99 ms",
    "syncs/message",
    "sink sessions",
];

fn cells(run: &Run) -> [String; 10] {
    let optional = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
    };
    [
        run.relay.name().to_owned(),
        format!("{:.0}", run.accepted_per_s),
        format!("{:.0}", run.delivered_per_s),
        optional(run.cpu_us, 0),
        optional(run.peak_pss_mib, 0),
        optional(run.peak_rss_mib, 0),
        format!("{:.2}", run.p50_ms),
        format!("{:.2}", run.p99_ms),
        optional(run.syncs_per_message, 2),
        run.sink_sessions.to_string(),
    ]
}

/// One run as a line, while others are still to come.
pub fn line(run: &Run) -> String {
    let mut text = format!("{:8}", run.workload.name());
    for (cell, column) in cells(run).iter().zip(COLUMNS) {
        text.push_str(&format!(" {cell:>width$}", width = width(column)));
    }
    text
}

/// On the terminal, characters.
fn width(column: &str) -> usize {
    if column == COLUMNS[0] {
        Kind::OpenSmtpd.name().len()
    } else {
        column.len().max(9)
    }
}

pub fn head() -> String {
    let mut text = format!("{:8}", "workload");
    for column in COLUMNS {
        text.push_str(&format!(" {column:>width$}", width = width(column)));
    }
    text
}

/// The medians of one relay at one workload over all rounds.
pub fn middle(runs: &[Run], kind: Kind, workload: Workload) -> Option<Run> {
    let these: Vec<&Run> = runs
        .iter()
        .filter(|run| run.relay == kind && run.workload == workload)
        .collect();
    let last = *these.last()?;
    let of = |figure: fn(&Run) -> f64| median(these.iter().map(|run| figure(run)).collect());
    let maybe = |figure: fn(&Run) -> Option<f64>| {
        figure(last).map(|_| median(these.iter().filter_map(|run| figure(run)).collect()))
    };
    Some(Run {
        accepted_per_s: of(|run| run.accepted_per_s),
        delivered_per_s: of(|run| run.delivered_per_s),
        cpu_us: maybe(|run| run.cpu_us),
        peak_pss_mib: maybe(|run| run.peak_pss_mib),
        peak_rss_mib: maybe(|run| run.peak_rss_mib),
        p50_ms: of(|run| run.p50_ms),
        p99_ms: of(|run| run.p99_ms),
        ..last.clone()
    })
}

/// How the gateway compares, a sentence for each peer, and with the disk.
pub fn verdicts(figures: &Relaying, workload: Workload) -> Vec<String> {
    let Some(ours) = middle(&figures.runs, Kind::Tidegate, workload) else {
        return Vec::new();
    };
    let mut said = Vec::new();
    if let Some(free) = middle(&figures.runs, Kind::Unsynced, workload) {
        said.push(durability(&ours, &free));
    }
    for &kind in figures.relays.iter().filter(|kind| kind.is_peer()) {
        if let Some(theirs) = middle(&figures.runs, kind, workload) {
            said.push(format!(
                "tidegate / {}: {:.1} x delivered, {:.1} x less CPU",
                kind.name(),
                ours.delivered_per_s / theirs.delivered_per_s,
                theirs.cpu_us.unwrap_or(f64::NAN) / ours.cpu_us.unwrap_or(f64::NAN),
            ));
        }
    }
    said.push(format!(
        "tidegate's p99 to the 250 / p99 of a bare fdatasync ({:.2} ms): {:.1} x",
        figures.sync_p99_ms,
        ours.p99_ms / figures.sync_p99_ms
    ));
    said
}

/// What it costs to be durable.
fn durability(ours: &Run, free: &Run) -> String {
    let reached = match free.syncs_per_message {
        Some(0.0) => "none of those reached the disk, by strace".to_owned(),
        Some(some) => format!("but {some:.2} a message reached the disk, by strace"),
        None => "whether any reached the disk was not looked at".to_owned(),
    };
    format!(
        "tidegate / tidegate with its syncs off: {:.2} x delivered ({reached})",
        ours.delivered_per_s / free.delivered_per_s
    )
}

pub fn print(figures: &Relaying) {
    println!(
        "\nmedians of {} rounds, {} sessions, loopback, {}; every accepted message was counted at the sink",
        figures.rounds, figures.sessions, figures.file_system
    );
    println!("{}", head());
    for &workload in &figures.workloads {
        for &kind in &figures.relays {
            if let Some(run) = middle(&figures.runs, kind, workload) {
                println!("{}", line(&run));
            }
        }
        for said in verdicts(figures, workload) {
            println!("{:8} {said}", "");
        }
    }
    for why in &figures.failed {
        println!("no figure: {why}");
    }
    sessions::print(&figures.by_sessions);
}

/// The same as Markdown.
pub fn markdown(figures: &Relaying) -> String {
    let accepted: Vec<String> = figures
        .relays
        .iter()
        .filter_map(|kind| {
            let most = figures.runs.iter().filter(|run| run.relay == *kind);
            let most = most.map(|run| run.accepted).max()?;
            Some(format!("{} {most}", kind.name()))
        })
        .collect();
    let mut text = format!(
        "\nQueues on {}; {} rounds, {} sessions; messages in each run: {}.\n",
        figures.file_system,
        figures.rounds,
        figures.sessions,
        accepted.join(", ")
    );
    for &workload in &figures.workloads {
        text.push_str(&format!(
            "\n### {}\n\n| {} |\n|",
            workload.title(),
            COLUMNS.join(" | ")
        ));
        text.push_str("---|");
        text.push_str(&"---:|".repeat(COLUMNS.len() - 1));
        text.push('\n');
        for &kind in &figures.relays {
            if let Some(run) = middle(&figures.runs, kind, workload) {
                text.push_str(&format!("| {} |\n", cells(&run).join(" | ")));
            }
        }
        text.push('\n');
        for said in verdicts(figures, workload) {
            text.push_str(&format!("- {said}\n"));
        }
    }
    if !figures.failed.is_empty() {
        text.push_str("\nRuns without a figure:\n\n");
        for why in &figures.failed {
            text.push_str(&format!("- {why}\n"));
        }
    }
    text.push_str(&sessions::markdown(&figures.by_sessions));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(relay: Kind, delivered_per_s: f64, syncs_per_message: Option<f64>) -> Run {
        Run {
            relay,
            workload: Workload::Keep,
            round: 1,
            accepted: 100,
            failed: 0,
            deliveries: 100,
            accepted_per_s: delivered_per_s,
            delivered_per_s,
            cpu_us: Some(1e6 / delivered_per_s),
            peak_pss_mib: None,
            peak_rss_mib: None,
            p50_ms: 1.0,
            p99_ms: 2.0,
            sink_sessions: 1,
            syncs_per_message,
        }
    }

    #[test]
    fn every_peer_has_its_line_and_so_have_the_syncs() {
        let figures = Relaying {
            file_system: "ext4".into(),
            rounds: 1,
            sessions: 20,
            workloads: vec![Workload::Keep],
            relays: vec![
                Kind::None,
                Kind::Tidegate,
                Kind::Unsynced,
                Kind::Postfix,
                Kind::OpenSmtpd,
            ],
            sync_p99_ms: 0.5,
            runs: vec![
                run(Kind::None, 9000.0, None),
                run(Kind::Tidegate, 4000.0, Some(0.2)),
                run(Kind::Unsynced, 5000.0, Some(0.0)),
                run(Kind::Postfix, 800.0, Some(1.0)),
                run(Kind::OpenSmtpd, 100.0, Some(0.0)),
            ],
            failed: vec!["exim at keep: no answer".into()],
            by_sessions: Vec::new(),
            crash: None,
        };
        assert!(markdown(&figures).contains("\n- exim at keep: no answer\n"));
        assert_eq!(
            verdicts(&figures, Workload::Keep),
            [
                "tidegate / tidegate with its syncs off: 0.80 x delivered (none of those reached the disk, by strace)",
                "tidegate / postfix: 5.0 x delivered, 5.0 x less CPU",
                "tidegate / opensmtpd (not synced): 40.0 x delivered, 40.0 x less CPU",
                "tidegate's p99 to the 250 / p99 of a bare fdatasync (0.50 ms): 4.0 x",
            ]
        );
        let leaks = durability(&figures.runs[1], &run(Kind::Unsynced, 4000.0, Some(0.25)));
        assert!(
            leaks.ends_with("1.00 x delivered (but 0.25 a message reached the disk, by strace)")
        );
    }
}
