//! `cargo xtask bench backlog`: a long queue for sites that do not answer, and what it costs: memory
//! for each recipient, the pace of other mail beside it, and a restart.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tidegate_tests::counting::CountingSink;
use tidegate_tests::load::{Load, Until};
use tidegate_tests::{eventually, proc};

use super::measure::{Amount, Destinations, load, submit, warm_up};
use super::relays::{Relay, Tidegate};
use super::workload::Workload;
use super::{choose_gateway, disk, place};

/// Options of `cargo xtask bench backlog`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  cargo xtask bench backlog
  cargo xtask bench backlog --recipients 100000")]
pub struct Arguments {
    /// Recipients in the queue.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    recipients: u64,
    /// Recipients of each message in the queue.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    per_message: u64,
    /// Domains that the queue is for, each with a site of its own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    domains: u64,
    /// Messages of other mail in each of five submissions, before and beside the queue.
    #[arg(long, default_value_t = 10_000)]
    messages: u64,
    /// Keep the queue below this directory.
    #[arg(long)]
    place: Option<PathBuf>,
    /// This gateway instead of a new release build.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Also write the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Other mail at one length of the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pace {
    pub accepted_per_s: f64,
    pub delivered_per_s: f64,
    pub cpu_us: f64,
    pub p99_ms: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backlog {
    pub file_system: String,
    pub recipients: u64,
    pub per_message: u64,
    pub domains: u64,
    pub filled_in_s: f64,
    pub pss_empty_mib: f64,
    pub pss_full_mib: f64,
    pub pss_restarted_mib: f64,
    pub bytes_per_recipient: f64,
    pub bytes_per_recipient_restarted: f64,
    pub empty: Pace,
    pub full: Pace,
    /// From the start of the process until it takes mail, and until the first delivery.
    pub ready_s: f64,
    pub first_delivery_s: f64,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    choose_gateway(arguments.binary.as_deref())?;
    let figures = measure(arguments)?;
    println!("{}", figures.text());
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

impl Backlog {
    pub fn text(&self) -> String {
        let pace = |name: &str, pace: &Pace| {
            format!(
                "| {name} | {:.0} | {:.0} | {:.0} | {:.2} |\n",
                pace.accepted_per_s, pace.delivered_per_s, pace.cpu_us, pace.p99_ms
            )
        };
        format!(
            "{} recipients of messages with {} each, for {} domains whose sites do not answer; {}\n\n\
             | other mail, 5 KiB, connections kept | accepted/s | delivered/s | CPU us/delivery | p99 ms |\n\
             |---|---:|---:|---:|---:|\n{}{}\n\
             - ratio of deliveries with the queue to those without: {:.2}\n\
             - memory (PSS): {:.0} MiB empty, {:.0} MiB with the queue, {:.0} MiB after a restart: {:.0} \
             bytes for each recipient, {:.0} after the restart\n\
             - filled in {:.0} s; after a restart mail is taken again in {:.2} s, and the first \
             delivery is made in {:.2} s",
            self.recipients,
            self.per_message,
            self.domains,
            self.file_system,
            pace("no queue", &self.empty),
            pace("with the queue", &self.full),
            self.full.delivered_per_s / self.empty.delivered_per_s,
            self.pss_empty_mib,
            self.pss_full_mib,
            self.pss_restarted_mib,
            self.bytes_per_recipient,
            self.bytes_per_recipient_restarted,
            self.filled_in_s,
            self.ready_s,
            self.first_delivery_s,
        )
    }
}

pub fn measure(arguments: &Arguments) -> anyhow::Result<Backlog> {
    let place = place(arguments.place.as_deref())?;
    let to = Destinations::start(false)?;
    let per_message = usize::try_from(arguments.per_message)?;
    let tidegate = Tidegate::with(&to, place.path(), None, |options| {
        options
            .set("delivery.lifetime", "48h")
            .set("delivery.delay_notice_after", "24h")
            .set("delivery.retry", vec!["6h"])
            .set("delivery.site_backoff", "1h")
            .set("delivery.site_backoff_max", "6h")
    })?;
    for at in 0..arguments.domains {
        let host = format!("mx.{}", silent(at));
        // Nobody listens at these.
        let nobody = std::net::Ipv4Addr::new(127, 255, (at >> 8) as u8, at as u8);
        tidegate.dns.mx(&silent(at), 10, &host).host(&host, nobody);
    }
    let mut relay = Relay::Tidegate(Box::new(tidegate));
    let amount = Amount {
        until: Until::Messages(arguments.messages),
        sessions: 20,
        pipelining: false,
    };
    let other = load(amount, &relay, Workload::Keep)?;
    warm_up(&other, &relay, &to.sink)?;
    let empty = pace(&other, &relay, &to.sink)?;
    let pss = |relay: &Relay| -> anyhow::Result<u64> {
        Ok(proc::family_pss_kib(relay.pid().context("it runs")?))
    };
    let pss_empty = pss(&relay)?;

    let started = Instant::now();
    for at in 0..arguments.domains {
        let messages = arguments.recipients / arguments.per_message;
        let share = messages / arguments.domains + u64::from(at < messages % arguments.domains);
        if share == 0 {
            continue;
        }
        let outcome = Load {
            recipients: (0..per_message)
                .map(|n| format!("customer.{n}@{}", silent(at)))
                .collect(),
            numbered: true,
            until: Until::Messages(share),
            ..other.clone()
        }
        .run();
        ensure!(
            outcome.accepted == share,
            "{} of {share} messages for the queue accepted: {}",
            outcome.accepted,
            outcome.first_failure.unwrap_or_default()
        );
    }
    let filled_in = started.elapsed();
    settle(&relay)?;
    let pss_full = pss(&relay)?;
    let full = pace(&other, &relay, &to.sink)?;

    let Relay::Tidegate(tidegate) = &mut relay else {
        unreachable!("it was started above");
    };
    tidegate.gateway.stop()?;
    let started = Instant::now();
    tidegate.gateway.spawn()?;
    let before = to.sink.count().recipients;
    let one = Load {
        sessions: 1,
        until: Until::Messages(1),
        ..other.clone()
    };
    eventually("mail taken again", Duration::from_secs(120), || {
        std::net::TcpStream::connect(one.target).ok()
    })?;
    let ready = started.elapsed();
    let outcome = one.run();
    ensure!(outcome.accepted == 1, "{:?}", outcome.first_failure);
    let (count, first) = to.sink.wait_for(before + 1, Duration::from_secs(60));
    ensure!(count.recipients > before, "nothing was delivered");
    let first_delivery = first - started;
    settle(&relay)?;
    let pss_restarted = pss(&relay)?;
    relay.stop()?;

    let each =
        |pss: u64| (pss.saturating_sub(pss_empty) * 1024) as f64 / arguments.recipients as f64;
    Ok(Backlog {
        file_system: disk::file_system(place.path()),
        recipients: arguments.recipients,
        per_message: arguments.per_message,
        domains: arguments.domains,
        filled_in_s: filled_in.as_secs_f64(),
        pss_empty_mib: pss_empty as f64 / 1024.0,
        pss_full_mib: pss_full as f64 / 1024.0,
        pss_restarted_mib: pss_restarted as f64 / 1024.0,
        bytes_per_recipient: each(pss_full),
        bytes_per_recipient_restarted: each(pss_restarted),
        empty,
        full,
        ready_s: ready.as_secs_f64(),
        first_delivery_s: first_delivery.as_secs_f64(),
    })
}

/// A domain whose site does not answer.
fn silent(at: u64) -> String {
    format!("silent{at}.test")
}

/// Of several submissions the one with the median rate: single ones differ by a tenth.
fn pace(other: &Load, relay: &Relay, sink: &CountingSink) -> anyhow::Result<Pace> {
    const TIMES: usize = 5;
    let mut paces = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let measured = submit(other, relay, sink)?;
        paces.push(Pace {
            accepted_per_s: measured.outcome.rate(),
            delivered_per_s: measured.delivered_per_s,
            cpu_us: measured.cpu_us.unwrap_or(f64::NAN),
            p99_ms: measured.outcome.percentile(0.99),
        });
    }
    paces.sort_by(|a, b| a.delivered_per_s.total_cmp(&b.delivered_per_s));
    Ok(paces.swap_remove(TIMES / 2))
}

/// Waits until the gateway has nothing to do: less than a tenth of a core for a second.
fn settle(relay: &Relay) -> anyhow::Result<()> {
    let mut last = relay.cpu().context("it runs")?;
    eventually("a quiet gateway", Duration::from_secs(120), || {
        std::thread::sleep(Duration::from_secs(1));
        let now = relay.cpu()?;
        let quiet = now.saturating_sub(last) < Duration::from_millis(100);
        last = now;
        quiet.then_some(())
    })
}
