//! `cargo xtask kill`: kills the real gateway with SIGKILL at random moments under load, again and
//! again, and then counts what became of every mail that was answered with 250.
//!
//! Three things must hold, or it fails: nothing accepted is lost, no notice is made twice, and a
//! mail arrives twice only where a kill came between the delivery and its record, and the log says
//! that it may. Only the
//! processes it started are killed, and it ends by itself: every wait has a limit.

mod account;
mod load;

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use tidegate_tests::gateway::{self, Gateway, Options};
use tidegate_tests::internet::Internet;
use tidegate_tests::postgres::Postgres;
use tidegate_tests::sink::{Behaviour, Destination};

use crate::{host, plugins};
use account::Account;
use load::Load;

/// Options of `cargo xtask kill`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask kill\n  cargo xtask kill --kills 100 --database postgres\n  cargo xtask kill --seed 7"
)]
pub struct Arguments {
    /// How many times the gateway is killed.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    kills: u32,
    /// What the gateway keeps its mail in.
    #[arg(long, value_enum, default_value_t = Database::Sqlite)]
    database: Database,
    /// Repeats the moments of an earlier campaign, as far as the machine lets them be repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// Longest life of a gateway between two kills, milliseconds; many are shorter than a group
    /// commit.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    life: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Database {
    Sqlite,
    Postgres,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    plugins::build(&host::root())?;
    let plan = Plan {
        kills: arguments.kills,
        database: arguments.database,
        seed: arguments.seed.unwrap_or_else(any_seed),
        longest_life: Duration::from_millis(arguments.life),
    };
    println!("{plan}");
    let summary = conduct(&plan)?;
    println!("{summary}");
    summary.verdict()
}

/// A campaign that is short enough for every run of the tests: the line with its counts.
pub fn short() -> anyhow::Result<String> {
    let plan = Plan {
        kills: 200,
        database: Database::Sqlite,
        seed: any_seed(),
        longest_life: Duration::from_millis(400),
    };
    println!("{plan}");
    let summary = conduct(&plan)?;
    println!("{summary}");
    summary.verdict()?;
    Ok(summary.to_string())
}

fn conduct(plan: &Plan) -> anyhow::Result<Summary> {
    // A copy: a campaign is long, and must not be about two binaries if one is built meanwhile.
    let place = tempfile::tempdir()?;
    let binary = place.path().join("tidegate");
    std::fs::copy(host::build_gateway(false)?, &binary)?;
    gateway::use_binary(&binary);
    campaign(plan)
}

fn any_seed() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |now| now.as_millis() as u64)
}

/// What a campaign is to do.
#[derive(Clone, Copy, Debug)]
struct Plan {
    kills: u32,
    database: Database,
    seed: u64,
    longest_life: Duration,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            kills,
            database,
            seed,
            longest_life,
        } = self;
        write!(
            f,
            "{kills} kills, each within {} ms, database {database:?}, seed {seed}",
            longest_life.as_millis()
        )
    }
}

/// What came of it.
struct Summary {
    kills: u32,
    /// Of them, before the gateway said that it was ready.
    at_start: u32,
    elapsed: Duration,
    counts: account::Counts,
    /// What must not be, in words; a long list is cut.
    faults: Vec<String>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account::Counts {
            accepted,
            recipients,
            delivered,
            notices,
            duplicates,
            marked,
            lost,
            doubled_notices,
            unanswered,
            longest_unrecorded,
        } = self.counts;
        write!(
            f,
            "kills={} (while starting {}) accepted={accepted} recipients={recipients} \
             delivered={delivered} notices={notices} duplicates={duplicates} \
             (marked in the log as possible {marked}, delivered up to {} ms before the kill) \
             unanswered-but-sent={unanswered} doubled-notices={doubled_notices} lost={lost} \
             in {:.0} s",
            self.kills,
            self.at_start,
            longest_unrecorded.as_millis(),
            self.elapsed.as_secs_f64()
        )
    }
}

impl Summary {
    fn verdict(&self) -> anyhow::Result<()> {
        if self.faults.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 20;
        let more = self.faults.len().saturating_sub(SHOWN);
        let shown = self.faults[..self.faults.len() - more].join("\n  ");
        bail!(
            "{} faults:\n  {shown}{}",
            self.faults.len(),
            if more > 0 { "\n  and more" } else { "" }
        )
    }
}

/// A kill: the process died between the two moments.
#[derive(Clone, Copy, Debug)]
struct Kill {
    before: Instant,
    after: Instant,
    /// `before` by the wall clock, milliseconds since the epoch, as the gateway's log has it.
    wall_millis: i64,
}

/// Longest time that a kill comes after the start of a process that is not ready yet.
const LONGEST_START: Duration = Duration::from_millis(400);
/// For what is still queued after the last kill.
const DRAIN: Duration = Duration::from_secs(180);

/// What the slow destination waits before it answers for a message.
const SLOWNESS: Duration = Duration::from_millis(30);

/// The gateway and the destinations of the campaign.
struct World {
    gateway: Gateway,
    internet: Internet,
    /// Where mail for recipients goes.
    destinations: Vec<Destination>,
    /// Where notices go.
    inbox: Destination,
    _postgres: Option<Postgres>,
}

const USER: &str = "crm@acme";
const PASSWORD: &str = "a password of the CRM";

impl World {
    fn start(database: Database) -> anyhow::Result<World> {
        let mut internet = Internet::start()?;
        let inbox = internet.destination("acme.test", Behaviour::accept())?;
        let destinations = vec![
            internet.destination("fast.test", Behaviour::accept())?,
            // Often caught between the final dot and the reply to it.
            internet.destination("slow.test", Behaviour::accept().delay(SLOWNESS))?,
            internet.destination("grey.test", Behaviour::greylist(1))?,
            internet.destination(
                "mixed.test",
                Behaviour::accept().reply_to(load::GONE, "550 5.1.1 no such user"),
            )?,
            // Without DSN, so that success is for the gateway to report.
            internet.destination(
                "plain.test",
                Behaviour::accept().extensions(&["PIPELINING", "8BITMIME"]),
            )?,
        ];
        let mut options = Options::new(&internet)?;
        let postgres = match database {
            Database::Sqlite => None,
            Database::Postgres => {
                let postgres = Postgres::start()?;
                options = options.set("database", postgres.url().as_str());
                Some(postgres)
            }
        };
        let gateway = Gateway::running(options)?;
        gateway.tenant("acme", &["acme.test"])?;
        gateway.credential("acme", USER, PASSWORD)?;
        Ok(World {
            gateway,
            internet,
            destinations,
            inbox,
            _postgres: postgres,
        })
    }
}

fn campaign(plan: &Plan) -> anyhow::Result<Summary> {
    let started = Instant::now();
    let mut world = World::start(plan.database)?;
    let mut random = Random::new(plan.seed);
    let mut kills = Vec::new();
    let mut at_start = 0;
    let load = Load::new(world.gateway.smtp(), USER, PASSWORD);
    // Generous: a start takes some tenths of a second.
    let deadline = started + Duration::from_secs(60) + Duration::from_secs(10) * plan.kills;
    let sent = std::thread::scope(|scope| {
        let sources = load.start(scope, &world.destinations);
        let killed = kill_often(
            plan,
            deadline,
            &mut world.gateway,
            &mut random,
            &mut kills,
            &mut at_start,
        );
        load.stop();
        let sent: Vec<load::Sent> = sources
            .into_iter()
            .flat_map(|source| source.join().expect("sources do not panic"))
            .collect();
        killed.map(|()| sent)
    })
    .with_context(|| tail(&world.gateway.said()))?;

    let mut account = Account::default();
    let drained = tidegate_tests::eventually("everything accepted has arrived", DRAIN, || {
        account = Account::take(&sent, &world.destinations, &world.inbox);
        let done = account.missing().is_empty() && queue_is_empty(&world.gateway);
        if !done {
            std::thread::sleep(Duration::from_millis(500));
        }
        done.then_some(())
    });
    // What arrived while the queue was looked at counts as well.
    account = Account::take(&sent, &world.destinations, &world.inbox);
    let (counts, mut faults) = account.judge(&kills, &world.gateway)?;
    if let Err(error) = drained {
        faults.push(format!("{error:#}"));
    }
    if counts.accepted == 0 {
        faults.push("nothing was accepted, so nothing was tried".to_owned());
    }
    faults.extend(load.refusals());
    for destination in world.destinations.iter().chain([&world.inbox]) {
        faults.extend(destination.protocol_errors());
    }
    let status = world.gateway.stop()?;
    if !status.success() {
        faults.push(format!("the last stop was not orderly: {status}"));
    }
    drop(world.internet);
    Ok(Summary {
        kills: plan.kills,
        at_start,
        elapsed: started.elapsed(),
        counts,
        faults,
    })
}

/// Leaves the gateway running at the end.
fn kill_often(
    plan: &Plan,
    deadline: Instant,
    gateway: &mut Gateway,
    random: &mut Random,
    kills: &mut Vec<Kill>,
    at_start: &mut u32,
) -> anyhow::Result<()> {
    let mut running = true;
    for number in 1..=plan.kills {
        if Instant::now() > deadline {
            bail!("out of time after {} kills", number - 1);
        }
        let while_starting = random.below(8) == 0 && number > 1;
        if !running && while_starting {
            gateway.spawn()?;
            std::thread::sleep(random.time(LONGEST_START));
            *at_start += 1;
        } else {
            if !running {
                gateway.start()?;
            }
            std::thread::sleep(random.time(plan.longest_life));
        }
        let before = Instant::now();
        let wall_millis = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        gateway.kill()?;
        running = false;
        kills.push(Kill {
            before,
            after: Instant::now(),
            wall_millis,
        });
        if number % 50 == 0 {
            println!("{number} kills");
        }
    }
    gateway.start()
}

fn queue_is_empty(gateway: &Gateway) -> bool {
    gateway
        .json(&["queue", "list"])
        .is_ok_and(|list| list.as_array().is_some_and(Vec::is_empty))
}

/// The end of a long text.
fn tail(text: &str) -> String {
    let from = text.len().saturating_sub(4000);
    text[text.ceil_char_boundary(from)..].to_owned()
}

/// xorshift64*: moments need no better.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        // Zero is the one state that it never leaves.
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn time(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acknowledged_is_lost_in_ten_kills_over_postgresql() {
        let plan = Plan {
            kills: 10,
            database: Database::Postgres,
            seed: any_seed(),
            longest_life: Duration::from_millis(800),
        };
        let summary = campaign(&plan).unwrap_or_else(|error| panic!("{plan}: {error:#}"));
        println!("{plan}: {summary}");
        if let Err(error) = summary.verdict() {
            panic!("{plan}: {summary}\n{error:#}");
        }
        assert!(summary.counts.delivered >= summary.counts.accepted);
    }
}
