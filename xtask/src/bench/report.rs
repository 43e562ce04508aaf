//! `cargo xtask bench report`: all benchmarks in one call, and docs/benchmarks.md from them.
//!
//! A part can be measured again by itself; the figures of the others then stay as they are in the
//! JSON file beside the report. Ratios are always of one part, and so of one run.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use super::backlog::{self, Backlog};
use super::disk::Image;
use super::log::{self, Log};
use super::machine::Machine;
use super::relay::{self, Relaying};
use super::{choose_gateway, policy, table};
use crate::host;

/// Options of `cargo xtask bench report`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench report
  cargo xtask bench report --rounds 1 --recipients 100000 --log-events 1000000 --output draft.md
  cargo xtask bench report --parts log")]
pub struct Arguments {
    /// Messages submitted in each run.
    #[arg(long, default_value_t = 5000)]
    messages: u64,
    /// Times every relay does every workload.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Recipients in the long queue.
    #[arg(long, default_value_t = 1_000_000)]
    recipients: u64,
    /// Events in the log that is searched.
    #[arg(long, default_value_t = 10_000_000)]
    log_events: u64,
    /// What to measure; the rest of the report stays as it is.
    #[arg(long, value_delimiter = ',', default_values = ["relay", "journal", "backlog", "log", "policy"])]
    parts: Vec<Part>,
    /// What else a reader should know, such as how the gateway was built.
    #[arg(long)]
    note: Option<String>,
    /// This gateway instead of a new release build.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where to write the report; the figures go beside it, as JSON.
    #[arg(long, default_value = "docs/benchmarks.md")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// All relays, all workloads.
    Relay,
    /// Some of them on ext4 with a journal.
    Journal,
    Backlog,
    /// Searches in a long log.
    Log,
    /// Decisions beside Lua and a policy service, and neighbours of hostile policies.
    Policy,
}

/// Everything the report is made of.
#[derive(Default, Serialize, Deserialize)]
struct Figures {
    machine: Option<Machine>,
    note: Option<String>,
    relaying: Option<Relaying>,
    /// On ext4 with a journal, or why not.
    journalled: Option<Result<Relaying, String>>,
    backlog: Option<Backlog>,
    #[serde(default)]
    log: Option<Log>,
    /// As the benchmark prints it.
    #[serde(default)]
    policy: Option<String>,
}

/// For the options of the other tasks, as on their command lines.
#[derive(Parser)]
struct Line<A: clap::Args> {
    #[command(flatten)]
    arguments: A,
}

fn options<A: clap::Args>(words: &[&str]) -> A {
    let line: Line<A> = Line::parse_from(["bench"].iter().chain(words));
    line.arguments
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    choose_gateway(arguments.binary.as_deref())?;
    let output = host::root().join(&arguments.output);
    let json = output.with_extension("json");
    let mut figures: Figures = match std::fs::read_to_string(&json) {
        Ok(text) if arguments.parts.len() < Part::value_variants().len() => {
            serde_json::from_str(&text)
                .with_context(|| format!("{} is not of this version", json.display()))?
        }
        _ => Figures::default(),
    };
    figures.machine = Some(Machine::here());
    figures.note.clone_from(&arguments.note);
    let messages = arguments.messages.to_string();
    let rounds = arguments.rounds.to_string();
    let amount = ["--messages", &messages, "--rounds", &rounds];
    for part in &arguments.parts {
        match part {
            Part::Relay => {
                let all = [
                    "--relays",
                    "none,tidegate,postfix,exim,opensmtpd,haraka",
                    "--unsynced",
                    "--by-sessions",
                    "1,4,20",
                    "--workloads",
                    "keep,one,big,many,tls,tls-one",
                    "--syncs",
                    "--crash",
                ];
                let found = relay::interleaved(&options(&[&amount[..], &all].concat()))?;
                table::print(&found);
                figures.relaying = Some(found);
            }
            Part::Journal => figures.journalled = Some(journalled(&amount)?),
            Part::Backlog => {
                let recipients = arguments.recipients.to_string();
                let found = backlog::measure(&options(&["--recipients", &recipients]))?;
                println!("{}", found.text());
                figures.backlog = Some(found);
            }
            Part::Log => {
                let events = arguments.log_events.to_string();
                let found = log::measure(&options(&["--events", &events]))?;
                println!("{found}");
                figures.log = Some(found);
            }
            Part::Policy => figures.policy = Some(policy::measure()?),
        }
    }
    std::fs::write(&output, figures.report())
        .with_context(|| format!("write {}", output.display()))?;
    std::fs::write(&json, serde_json::to_string_pretty(&figures)? + "\n")
        .with_context(|| format!("write {}", json.display()))
}

fn journalled(amount: &[&str]) -> anyhow::Result<Result<Relaying, String>> {
    let image = match Image::mount() {
        Ok(image) => image,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    let place = image.path().display().to_string();
    let some = [
        "--place",
        &place,
        "--relays",
        "tidegate,postfix",
        "--workloads",
        "keep,one,big,many",
    ];
    let found = relay::interleaved(&options(&[amount, &some].concat()))?;
    table::print(&found);
    Ok(Ok(found))
}

impl Figures {
    fn report(&self) -> String {
        let mut text = String::from(
            "# Benchmarks\n\n\
             Written by `cargo xtask bench report`; do not edit. Every single run is in \
             `benchmarks.json`. Each section is of one call, in which the relays took turns: compare \
             within a section.\n\n",
        );
        if let Some(machine) = &self.machine {
            let versions: Vec<String> = machine
                .versions
                .iter()
                .map(|(name, version)| format!("{name} {version}"))
                .collect();
            text.push_str(&format!(
                "- Machine: {} cores of {}, {} GiB, Linux {}, {}; load before the run {}\n- Versions: {}\n",
                machine.cores,
                machine.processor,
                machine.memory_gib,
                machine.kernel,
                machine.system,
                machine.load,
                versions.join("; "),
            ));
        }
        if let Some(note) = &self.note {
            text.push_str(&format!("- Note: {note}\n"));
        }
        text.push_str(
            "\nSource, relay and sink run on this machine, on loopback; the source does not pipeline. \
             Figures are medians over the rounds. Every relay syncs what it accepts before its 250, \
             unless its name says otherwise, and every accepted message is counted at the sink. CPU time is that of the relay's processes \
             alone. The gateway routes every message with the default WebAssembly policy, has its \
             clients log in, and keeps its log; the other relays do none of these. `none` is the source \
             straight into the sink: what source and sink alone can do.\n",
        );
        if let Some(figures) = &self.relaying {
            text.push_str("\n## Relaying\n");
            text.push_str(&table::markdown(figures));
            if let Some(crash) = &figures.crash {
                text.push_str(&format!("\n## What a 250 is worth\n\n{crash}.\n"));
            }
        }
        match &self.journalled {
            None => {}
            Some(Ok(figures)) => {
                text.push_str("\n## Relaying on ext4 with a journal, in a loop image\n");
                text.push_str(&table::markdown(figures));
            }
            Some(Err(why)) => text.push_str(&format!(
                "\n## Relaying on ext4 with a journal\n\nNot measured: {why}.\n"
            )),
        }
        if let Some(backlog) = &self.backlog {
            text.push_str(&format!("\n## A long queue\n\n{}\n", backlog.text()));
        }
        if let Some(log) = &self.log {
            text.push_str(&format!("\n## Searching a long log\n\n{log}\n"));
        }
        if let Some(policy) = &self.policy {
            text.push_str(&format!(
                "\n## Decisions by policies\n\n```\n{}\n```\n",
                policy.trim_end()
            ));
        }
        text
    }
}
