//! What a 250 is worth: the gateway is killed with SIGKILL at full speed, started again, and
//! everything that it had answered with 250 must arrive at the sink.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use tidegate_tests::load::{Load, Until};

use super::measure::{Amount, Destinations, load};
use super::relays::{Kind, Relay};
use super::workload::Workload;

/// How long the load runs before the kill.
const BEFORE: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Crash {
    /// Messages answered with 250.
    pub accepted: u64,
    /// Of them, those that arrived.
    pub arrived: u64,
    /// Arrived twice: delivered, and killed before that was on stable storage.
    pub twice: u64,
    /// Arrived though the client had no answer yet.
    pub unanswered: u64,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SIGKILL under load: {} messages answered with 250, {} of them arrived ({} twice); \
             {} more arrived that had no answer yet",
            self.accepted, self.arrived, self.twice, self.unanswered
        )
    }
}

/// Fails if anything that was accepted is missing.
pub fn check(amount: Amount, place: &Path) -> anyhow::Result<Crash> {
    let mut to = Destinations::start(false)?;
    to.sink.record();
    let mut relay = Relay::start(Kind::Tidegate, &to, place, None)?;
    let load = Load {
        numbered: true,
        until: Until::Elapsed(BEFORE + Duration::from_secs(1)),
        ..load(amount, &relay, Workload::Keep)?
    };
    let outcome = std::thread::scope(|scope| -> anyhow::Result<_> {
        let sources = scope.spawn(|| load.run());
        std::thread::sleep(BEFORE);
        relay.kill()?;
        sources
            .join()
            .map_err(|_| anyhow::anyhow!("the sources panicked"))
    })?;
    relay.restart()?;
    // Waits for what is missing; what comes twice must not hide it.
    let missing = |to: &Destinations| {
        let arrived = to.sink.recorded();
        outcome
            .numbers
            .iter()
            .filter(|number| !arrived.contains_key(number))
            .count()
    };
    let mut patience = 60;
    while missing(&to) > 0 && patience > 0 {
        std::thread::sleep(Duration::from_millis(500));
        patience -= 1;
    }
    // And for what nobody waits for.
    std::thread::sleep(Duration::from_secs(2));
    let arrived = to.sink.recorded();
    let accepted: std::collections::BTreeSet<u64> = outcome.numbers.iter().copied().collect();
    let crash = Crash {
        accepted: outcome.accepted,
        arrived: accepted.iter().filter(|n| arrived.contains_key(n)).count() as u64,
        twice: arrived.values().filter(|times| **times > 1).count() as u64,
        unanswered: arrived.keys().filter(|n| !accepted.contains(n)).count() as u64,
    };
    relay.stop()?;
    ensure!(crash.arrived == crash.accepted, "mail was lost: {crash}");
    Ok(crash)
}
