//! `cargo xtask bench log`: how long the first page of a search in a long log takes.
//!
//! The log is written through the store's own interface, by an example of the store; then the
//! gateway runs on it, and is asked as the operator's tools ask it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_tests::gateway::{Gateway, Options};
use tidegate_tests::{address, loopback_block};

use super::table::median;
use super::{choose_gateway, disk, place};
use crate::host::{self, cargo};

/// Options of `cargo xtask bench log`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  cargo xtask bench log
  cargo xtask bench log --events 1000000 --place /var/tmp")]
pub struct Arguments {
    /// Events in the log, spread over seven days.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    events: u64,
    /// Searches of each kind, each for something else.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(3..=60))]
    times: u64,
    /// Keep the log below this directory; it is deleted at the end.
    #[arg(long)]
    place: Option<PathBuf>,
    /// This gateway instead of a new release build.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// This build of the store's example log_fill instead of a new release build.
    #[arg(long)]
    filler: Option<PathBuf>,
    /// Also write the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Octets of disk for each event, with room to spare.
const OCTETS: u64 = 500;
/// Searches of each kind right after a start, with nothing of the log in memory.
const COLD: usize = 3;

/// What one kind of search took, milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Search {
    pub name: String,
    /// Messages on the first page, at most 50; the median.
    pub found: usize,
    pub cold: Times,
    pub warm: Times,
    /// The whole command `tidegate log`.
    pub command: Times,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Times {
    pub median_ms: f64,
    pub worst_ms: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    pub file_system: String,
    pub events: u64,
    pub messages: u64,
    pub filled_in_s: f64,
    pub octets: u64,
    pub searches: Vec<Search>,
}

/// What the example prints.
#[derive(Deserialize)]
struct Filled {
    events: u64,
    messages: u64,
    seconds: f64,
    samples: Vec<Sample>,
}

/// A message that can be looked for.
#[derive(Deserialize)]
struct Sample {
    id: String,
    at: i64,
    tenant: String,
    sender: String,
    recipient: String,
    message_id: String,
    record: String,
    subject: String,
}

/// A search: names and values of its terms as the API has them; an id alone is no search.
type Terms = Vec<(&'static str, String)>;

/// A kind of search.
struct Wanted {
    name: &'static str,
    terms: fn(&Sample) -> Terms,
    expects: Expects,
}

#[derive(Clone, Copy, PartialEq)]
enum Expects {
    /// The message itself.
    It,
    /// A full page.
    Many,
    Some,
    Nothing,
}

const HOUR: i64 = 3_600_000;

const WANTED: [Wanted; 13] = [
    Wanted {
        name: "queue id",
        terms: |s| vec![("id", s.id.clone())],
        expects: Expects::It,
    },
    Wanted {
        name: "recipient",
        terms: |s| vec![("recipient", s.recipient.clone())],
        expects: Expects::It,
    },
    Wanted {
        name: "Message-ID",
        terms: |s| vec![("message_id", s.message_id.clone())],
        expects: Expects::It,
    },
    Wanted {
        name: "CRM record",
        terms: |s| vec![("record", s.record.clone())],
        expects: Expects::It,
    },
    Wanted {
        name: "number in the subject",
        terms: |s| vec![("subject", telling_word(&s.subject).to_owned())],
        expects: Expects::Some,
    },
    Wanted {
        name: "common word of the subject",
        terms: |_| vec![("subject", "invoice".into())],
        expects: Expects::Many,
    },
    Wanted {
        name: "sender",
        terms: |s| vec![("sender", s.sender.clone())],
        expects: Expects::Many,
    },
    Wanted {
        name: "tenant",
        terms: |s| vec![("tenant", s.tenant.clone())],
        expects: Expects::Many,
    },
    Wanted {
        name: "tenant, two hours of the week",
        terms: |s| {
            vec![
                ("tenant", s.tenant.clone()),
                ("since", (s.at - HOUR).to_string()),
                ("until", (s.at + HOUR).to_string()),
            ]
        },
        expects: Expects::Some,
    },
    Wanted {
        name: "small tenant and a common word",
        terms: |_| {
            vec![
                ("tenant", "tenant-49".into()),
                ("subject", "invoice".into()),
            ]
        },
        expects: Expects::Many,
    },
    Wanted {
        name: "nothing at all: the newest",
        terms: |_| Vec::new(),
        expects: Expects::Many,
    },
    Wanted {
        name: "recipient who never got any",
        terms: |s| vec![("recipient", format!("nobody.{}@nowhere.example", s.at))],
        expects: Expects::Nothing,
    },
    Wanted {
        name: "two common words, never together",
        terms: |_| vec![("subject", "invoice shipped".into())],
        expects: Expects::Nothing,
    },
];

/// The number in a subject, or its last word.
fn telling_word(subject: &str) -> &str {
    let mut words = subject
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty());
    let number = |word: &&str| word.contains(char::is_numeric) && *word != "2026";
    words
        .clone()
        .find(number)
        .or_else(|| words.next_back())
        .unwrap_or(subject)
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} events of {} messages over seven days, embedded store, {:.1} GB on {}; written through the store in {:.0} s ({:.0} events/s). The first page (at most 50 messages with all their events), by the admin API. Cold: the first search after a start, with nothing of the log in memory; warm: asked once before.\n",
            self.events,
            self.messages,
            self.octets as f64 / 1e9,
            self.file_system,
            self.filled_in_s,
            self.events as f64 / self.filled_in_s,
        )?;
        writeln!(
            f,
            "| search for | found | cold, ms: median | worst | warm, ms: median | worst | `tidegate log`, ms: median | worst |\n|---|---:|---:|---:|---:|---:|---:|---:|"
        )?;
        for search in &self.searches {
            write!(f, "| {} | {}", search.name, search.found)?;
            for times in [search.cold, search.warm, search.command] {
                write!(f, " | {:.1} | {:.1}", times.median_ms, times.worst_ms)?;
            }
            writeln!(f, " |")?;
        }
        let worst = |of: fn(&Search) -> f64| self.searches.iter().map(of).fold(0.0, f64::max);
        write!(
            f,
            "\n- the slowest: {:.0} ms cold, {:.0} ms warm, {:.0} ms by the command",
            worst(|s| s.cold.worst_ms),
            worst(|s| s.warm.worst_ms),
            worst(|s| s.command.worst_ms)
        )
    }
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    choose_gateway(arguments.binary.as_deref())?;
    let figures = measure(arguments)?;
    println!("{figures}");
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

pub fn measure(arguments: &Arguments) -> anyhow::Result<Log> {
    let place = place(arguments.place.as_deref())?;
    let (free, needed) = (disk::free(place.path())?, arguments.events * OCTETS);
    ensure!(
        free > needed,
        "{} MB are free at {}, and {} are needed: use --place or fewer --events",
        free / 1_000_000,
        place.path().display(),
        needed / 1_000_000
    );
    let ip = address(loopback_block(), 1);
    let options = Options::on(ip, (ip, 53).into(), 25)?
        .without_policies()
        .set("log.level", "warn")
        .set("log.retention", "30d")
        // An exporter would read ten million events while searches are timed.
        .set("export", toml::Table::new());
    let mut gateway = Gateway::kept(&place.path().join("gateway"), options)?;
    let data = gateway.directory().join("data");
    let filled = fill(arguments, &data)?;
    let octets = std::fs::read_dir(&data)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("queue.db"))
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum();
    let samples: Vec<&Sample> = spread(&filled.samples, arguments.times as usize);
    let mut searches = Vec::new();
    for wanted in &WANTED {
        eprintln!("searching: {}", wanted.name);
        searches.push(search(&mut gateway, &data, wanted, &samples)?);
    }
    Ok(Log {
        file_system: disk::file_system(place.path()),
        events: filled.events,
        messages: filled.messages,
        filled_in_s: filled.seconds,
        octets,
        searches,
    })
}

fn fill(arguments: &Arguments, data: &Path) -> anyhow::Result<Filled> {
    eprintln!("filling the log with {} events", arguments.events);
    let mut command = match &arguments.filler {
        Some(filler) => Command::new(filler),
        None => {
            let mut command = cargo();
            let example = ["-p", "tidegate-store", "--example", "log_fill", "--"];
            command.args(["run", "--release", "--quiet"]).args(example);
            command
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let output = command
        .arg(data)
        .arg(arguments.events.to_string())
        .arg(now.as_millis().to_string())
        .stderr(Stdio::inherit())
        .output()
        .context("start log_fill")?;
    ensure!(output.status.success(), "log_fill: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// So many of them, spread over all.
fn spread<T>(all: &[T], number: usize) -> Vec<&T> {
    let number = number.min(all.len());
    (0..number)
        .map(|at| &all[at * all.len() / number])
        .collect()
}

fn search(
    gateway: &mut Gateway,
    data: &Path,
    wanted: &Wanted,
    samples: &[&Sample],
) -> anyhow::Result<Search> {
    let mut cold = Vec::new();
    for sample in spread(samples, COLD) {
        if gateway.pid().is_ok() {
            gateway.stop()?;
        }
        forget(data)?;
        gateway.start()?;
        cold.push(ask(gateway, wanted, sample)?.0);
    }
    let (mut warm, mut command, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for sample in samples {
        ask(gateway, wanted, sample)?;
        let (time, number) = ask(gateway, wanted, sample)?;
        warm.push(time);
        found.push(number as f64);
        command.push(by_command(gateway, &(wanted.terms)(sample))?);
    }
    Ok(Search {
        name: wanted.name.to_owned(),
        found: median(found) as usize,
        cold: times(cold),
        warm: times(warm),
        command: times(command),
    })
}

fn times(values: Vec<f64>) -> Times {
    Times {
        worst_ms: values.iter().copied().fold(0.0, f64::max),
        median_ms: median(values),
    }
}

/// Takes the log out of the memory of the system, as after a start of the machine.
fn forget(data: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(data)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("queue.db") {
            let file = entry.path().display().to_string();
            // Of a whole file, where nothing is copied.
            host::run(Command::new("dd").args([
                &format!("if={file}"),
                "iflag=nocache",
                "count=0",
                "status=none",
            ]))?;
        }
    }
    Ok(())
}

/// Milliseconds, and messages on the page; demands that the right ones are there.
fn ask(gateway: &Gateway, wanted: &Wanted, sample: &Sample) -> anyhow::Result<(f64, usize)> {
    let path = path(&(wanted.terms)(sample));
    let started = Instant::now();
    let (code, body) = gateway.api(&path)?;
    let took = started.elapsed();
    ensure!(code == 200, "{path}: {code} {body}");
    let answer: Value = serde_json::from_str(&body)?;
    let page = match answer {
        Value::Array(page) => page,
        one => vec![one],
    };
    let right = match wanted.expects {
        Expects::It => page
            .iter()
            .any(|entry| entry["message"] == sample.id.as_str()),
        Expects::Many => page.len() == 50,
        Expects::Some => !page.is_empty(),
        Expects::Nothing => page.is_empty(),
    };
    ensure!(right, "{path} found {} messages", page.len());
    Ok((milliseconds(took), page.len()))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn path(terms: &Terms) -> String {
    if let [("id", id)] = &terms[..] {
        return format!("/log/{id}");
    }
    let pairs: Vec<String> = terms
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)))
        .collect();
    format!("/log?{}", pairs.join("&"))
}

/// For a query (RFC 3986 s. 2.1).
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// The same by the command line, milliseconds.
fn by_command(gateway: &Gateway, terms: &Terms) -> anyhow::Result<f64> {
    let words = command_line(terms)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let started = Instant::now();
    gateway.run(&words)?;
    Ok(milliseconds(started.elapsed()))
}

fn command_line(terms: &Terms) -> anyhow::Result<Vec<String>> {
    let mut words = vec!["log".to_owned()];
    for (name, value) in terms {
        match *name {
            "id" => words.push(value.clone()),
            "since" | "until" => {
                // It takes times as people write them.
                let time = Command::new("date")
                    .args(["-u", "-d", &format!("@{}", value.parse::<i64>()? / 1000)])
                    .arg("+%FT%TZ")
                    .output()?;
                let time = String::from_utf8(time.stdout)?.trim().to_owned();
                words.extend([format!("--{name}"), time]);
            }
            name => words.extend([format!("--{}", name.replace('_', "-")), value.clone()]),
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_asked_the_same_way_by_api_and_command() {
        let terms: Terms = vec![
            ("message_id", "a b@crm.example".into()),
            ("since", "1795489500000".into()),
        ];
        assert_eq!(
            path(&terms),
            "/log?message_id=a%20b%40crm.example&since=1795489500000"
        );
        assert_eq!(
            command_line(&terms).unwrap(),
            [
                "log",
                "--message-id",
                "a b@crm.example",
                "--since",
                "2026-11-24T03:05:00Z"
            ]
        );
        let id: Terms = vec![("id", "01jd3k5x0e0g0".into())];
        assert_eq!(path(&id), "/log/01jd3k5x0e0g0");
        assert_eq!(command_line(&id).unwrap(), ["log", "01jd3k5x0e0g0"]);
    }

    #[test]
    fn the_number_of_a_subject_is_what_it_is_looked_for_by() {
        assert_eq!(telling_word("Your invoice 2026-4711 is ready"), "4711");
        assert_eq!(telling_word("News of November"), "November");
    }

    #[test]
    fn samples_are_spread_over_all() {
        assert_eq!(spread(&[0, 1, 2, 3, 4, 5], 3), [&0, &2, &4]);
        assert_eq!(spread(&[0, 1], 3), [&0, &1]);
    }
}
