//! The time to the 250 by the number of sessions.
//!
//! With more sessions than processors each message waits for its turn (sessions / messages a
//! second, by Little's law); with one it waits for its own work and for the disk.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tidegate_tests::load::Until;

use super::disk;
use super::measure::{Amount, measure};
use super::relays::Kind;
use super::table::median;
use super::workload::Workload;

/// How long each run submits.
const LENGTH: Duration = Duration::from_secs(3);

/// Medians over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub relay: Kind,
    pub sessions: usize,
    pub accepted_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Of a bare fdatasync in the same rounds.
    pub sync_p99_ms: f64,
}

impl Point {
    pub fn ratio(&self) -> f64 {
        self.p99_ms / self.sync_p99_ms
    }
}

/// The gateway and Postfix, of the relays at hand, taking turns.
pub fn measure_all(
    numbers: &[u16],
    relays: &[Kind],
    rounds: u32,
    place: &Path,
) -> anyhow::Result<Vec<Point>> {
    let mut points = Vec::new();
    for _ in 1..=rounds {
        for &sessions in numbers {
            let sessions = usize::from(sessions);
            let sync_p99_ms = disk::bare_sync_p99(place)?;
            let amount = Amount {
                until: Until::Elapsed(LENGTH),
                sessions,
                pipelining: false,
            };
            for &relay in relays
                .iter()
                .filter(|kind| matches!(kind, Kind::Tidegate | Kind::Postfix))
            {
                let run = measure(amount, relay, Workload::Keep, 0, place)
                    .with_context(|| format!("{} with {sessions} sessions", relay.name()))?;
                let point = Point {
                    relay,
                    sessions,
                    accepted_per_s: run.accepted_per_s,
                    p50_ms: run.p50_ms,
                    p99_ms: run.p99_ms,
                    sync_p99_ms,
                };
                eprintln!("{}", line(&point));
                points.push(point);
            }
        }
    }
    Ok(medians(&points))
}

fn line(point: &Point) -> String {
    format!(
        "{:10} {:>4} sessions: {:>6.0} accepted/s, p50 {:.2} ms, p99 {:.2} ms: {:.1} x a bare fdatasync's {:.2} ms",
        point.relay.name(),
        point.sessions,
        point.accepted_per_s,
        point.p50_ms,
        point.p99_ms,
        point.ratio(),
        point.sync_p99_ms
    )
}

/// One point for each relay and number of sessions, in the order of their first.
fn medians(points: &[Point]) -> Vec<Point> {
    let mut middle: Vec<Point> = Vec::new();
    for point in points {
        let same = |other: &&Point| other.relay == point.relay && other.sessions == point.sessions;
        if middle.iter().any(|done| same(&done)) {
            continue;
        }
        let of =
            |figure: fn(&Point) -> f64| median(points.iter().filter(same).map(figure).collect());
        middle.push(Point {
            accepted_per_s: of(|p| p.accepted_per_s),
            p50_ms: of(|p| p.p50_ms),
            p99_ms: of(|p| p.p99_ms),
            sync_p99_ms: of(|p| p.sync_p99_ms),
            ..point.clone()
        });
    }
    middle
}

/// For the terminal; nothing without points.
pub fn print(points: &[Point]) {
    if points.is_empty() {
        return;
    }
    println!("\ntime to the 250 by sessions, {}", Workload::Keep.title());
    for point in points {
        println!("{}", line(point));
    }
}

/// As a section of the report; empty without points.
pub fn markdown(points: &[Point]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n### Time to the 250 by the number of sessions\n\n{}. With more sessions than processors a \
         message waits for its turn: sessions / accepted a second is how long it takes on average \
         (Little's law), whatever the disk does.\n\n\
         | relay | sessions | accepted/s | sessions / accepted/s, ms | p50 ms | p99 ms | p99 of a bare fdatasync, ms | p99 / that |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|\n",
        Workload::Keep.title()
    );
    for point in points {
        text.push_str(&format!(
            "| {} | {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} x |\n",
            point.relay.name(),
            point.sessions,
            point.accepted_per_s,
            point.sessions as f64 * 1000.0 / point.accepted_per_s,
            point.p50_ms,
            point.p99_ms,
            point.sync_p99_ms,
            point.ratio()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(relay: Kind, sessions: usize, p99_ms: f64) -> Point {
        Point {
            relay,
            sessions,
            accepted_per_s: 1000.0,
            p50_ms: 0.5,
            p99_ms,
            sync_p99_ms: 0.25,
        }
    }

    #[test]
    fn the_median_is_taken_of_each_relay_at_each_number_of_sessions() {
        let points = [
            point(Kind::Tidegate, 1, 9.0),
            point(Kind::Postfix, 1, 30.0),
            point(Kind::Tidegate, 4, 4.0),
            point(Kind::Tidegate, 1, 1.0),
            point(Kind::Tidegate, 1, 2.0),
        ];
        let middle = medians(&points);
        assert_eq!(
            middle,
            [
                point(Kind::Tidegate, 1, 2.0),
                point(Kind::Postfix, 1, 30.0),
                point(Kind::Tidegate, 4, 4.0),
            ]
        );
        assert_eq!(middle[0].ratio(), 8.0);
        assert!(
            markdown(&middle)
                .contains("| tidegate | 4 | 1000 | 4.00 | 0.50 | 4.00 | 0.25 | 16.0 x |")
        );
        assert_eq!(markdown(&[]), "");
    }
}
