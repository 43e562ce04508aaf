//! Fills a delivery log with the events of a busy week, through the store's own way of writing.
//!
//! `cargo run --release -p tidegate-store --example log_fill DIR EVENTS END`
//!
//! `cargo xtask bench log` runs it: DIR is the data directory of a gateway that does not run, END
//! the last moment of the week in milliseconds since 1970. Messages are spread evenly over the
//! seven days before. Of fifty tenants the first has a fifth of the mail, the last half a percent. Most
//! messages have one recipient; one of ten has deferred attempts, up to a day later; one of fifty
//! bounces.
//!
//! Prints what there is to look for as JSON: of messages spread over the week, all keys.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tidegate_mail::event::Detail;
use tidegate_mail::{
    Address, Enhanced, Envelope, Event, EventKind, Hop, IdSource, MessageId, Outcome, Promise,
    Recipient, Reply, Stage, Timestamp, TlsInfo, TrafficClass,
};
use tidegate_queue::*;
use tidegate_store::{Options, SqliteStore};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const TENANTS: usize = 50;
/// Messages whose keys are printed.
const SAMPLES: u64 = 64;
/// Calls that wait for their commit together.
const TOGETHER: usize = 1000;

/// SplitMix64: the same log each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, sides: u64) -> u64 {
        self.roll() % sides
    }

    /// An index by its weight.
    fn skewed(&mut self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        let mut at = self.roll() as f64 / u64::MAX as f64 * total;
        for (index, weight) in weights.iter().enumerate() {
            at -= weight;
            if at <= 0.0 {
                return index;
            }
        }
        weights.len() - 1
    }
}

struct Writer {
    dice: Dice,
    source: IdSource,
    tenants: Vec<Arc<str>>,
    weights: Vec<f64>,
    promises: [Promise; 2],
    policy: String,
}

fn address(text: &str) -> Address {
    Address::parse(text).expect("a valid address")
}

fn promise(class: TrafficClass) -> Promise {
    Promise {
        class,
        relay: "mx".into(),
        lane: None,
        priority: 0,
        lifetime_secs: 48 * 3600,
        delay_notice_secs: Some(4 * 3600),
        policy: Some("3f".repeat(32)),
    }
}

impl Writer {
    fn message(&mut self, n: u64, at: Timestamp) -> LoggedMessage {
        let id = self.source.next(at);
        let at_tenant = self.dice.skewed(&self.weights);
        let role = ["billing", "support", "service", "sales", "news"][self.dice.below(5) as usize];
        let more = if self.dice.below(20) == 0 {
            self.dice.below(3)
        } else {
            0
        };
        let recipients: Vec<Recipient> = (0..=more)
            .map(|_| {
                let person = self.dice.below(400_000);
                Recipient {
                    address: address(&format!("customer.{person}@d{}.example", person % 500)),
                    notify: Default::default(),
                    original: None,
                }
            })
            .collect();
        let case = (n + self.dice.below(3000)) / 3;
        let subject = match self.dice.below(8) {
            0 | 1 => format!("Your invoice 2026-{n} is ready"),
            2 | 3 => format!("Re: [case {case}] your question about the delivery"),
            4 => format!("Reminder: appointment {n} on Thursday"),
            5 => format!("Your order {n} has been shipped today"),
            6 => format!("Please confirm your new address (reference {n})"),
            _ => "News of November: what we have planned for you".into(),
        };
        let sender = format!("{role}@t{at_tenant}.example");
        let count = recipients.len() as u32;
        LoggedMessage {
            id,
            tenant: self.tenants[at_tenant].clone(),
            envelope: Arc::new(Envelope {
                reverse_path: Some(address(&sender)),
                envid: None,
                ret: None,
                body: Default::default(),
                smtputf8: false,
                requiretls: false,
                tls_optional: false,
                recipients,
            }),
            size: 2000 + self.dice.below(60_000),
            accepted_at: at,
            keys: LogKeys {
                message_id: Some(format!(
                    "{:016x}.{n}@crm.t{at_tenant}.example",
                    self.dice.roll()
                )),
                record: Some(format!("case-{case}")),
                subject: Some(subject),
            },
            events: self.events(id, at, count),
        }
    }

    fn events(&mut self, id: MessageId, at: Timestamp, recipients: u32) -> Vec<Event> {
        let event = |at, kind, recipient, detail| Event {
            at,
            kind,
            message: id,
            recipient,
            detail,
        };
        let mut events = vec![event(at, EventKind::Accepted, None, Detail::default())];
        for index in 0..recipients {
            let routed = Detail {
                promise: Some(self.promises[self.dice.below(2) as usize].clone()),
                policy: Some(self.policy.clone()),
                ..Detail::default()
            };
            events.push(event(at, EventKind::Routed, Some(index), routed));
            // How many attempts come to nothing, and the hours to the last.
            let (deferred, hours) = match self.dice.below(100) {
                0..90 => (0, 0),
                90..97 => (1, 1),
                _ => (3, 20),
            };
            for attempt in 1..=deferred {
                let when = at.plus(Duration::from_secs(hours * 3600 * u64::from(attempt) / 4));
                let next = at.plus(Duration::from_secs(
                    hours * 3600 * u64::from(attempt + 1) / 4,
                ));
                let mut detail = self.attempt(
                    attempt,
                    when,
                    Stage::Rcpt,
                    "451 4.7.1 Greylisted, try again later",
                );
                detail.next = Some(next);
                events.push(event(when, EventKind::Deferred, Some(index), detail));
            }
            let last = at
                .plus(Duration::from_secs(hours * 3600))
                .plus(Duration::from_millis(90));
            let (kind, stage, reply) = if self.dice.below(50) == 0 {
                (
                    EventKind::Bounced,
                    Stage::Rcpt,
                    "550 5.1.1 No such user here".to_owned(),
                )
            } else {
                let queued = self.dice.roll() as u32;
                (
                    EventKind::Delivered,
                    Stage::Dot,
                    format!("250 2.0.0 Ok: queued as {queued:X}"),
                )
            };
            let detail = self.attempt(deferred + 1, last, stage, &reply);
            events.push(event(last, kind, Some(index), detail));
        }
        events
    }

    fn attempt(&mut self, attempt: u32, at: Timestamp, stage: Stage, reply: &str) -> Detail {
        let words: Vec<&str> = reply.splitn(3, ' ').collect();
        let mut digits = words[1].split('.').map(|d| d.parse().expect("a digit"));
        let mut digit = || digits.next().expect("three of them");
        let outcome = Outcome::from_reply(
            stage,
            Reply {
                code: words[0].parse().expect("a code"),
                enhanced: Some(Enhanced::new(digit() as u8, digit(), digit())),
                text: words[2].to_owned(),
            },
        );
        let site = self.dice.below(500);
        let hop = Hop {
            host: Some(format!("mx1.d{site}.example")),
            peer: Some(([192, 0, 2, (site % 250) as u8], 25).into()),
            source: None,
            tls: Some(TlsInfo {
                version: "TLSv1.3".into(),
                cipher: "TLS13_AES_256_GCM_SHA384".into(),
                verified: "webpki".into(),
            }),
            tls_policy: None,
            started: at,
            duration_ms: self.dice.below(2000) as u32,
        };
        Detail::of_attempt(attempt, hop, &outcome, Some(format!("mx1.d{site}.example")))
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().expect("DIR EVENTS END");
    let dir = PathBuf::from(next());
    let wanted: u64 = next().parse().expect("a number of events");
    let end = Timestamp(next().parse().expect("milliseconds since 1970"));
    let store = SqliteStore::open(&dir, Options::default())
        .await
        .expect("the directory can be written");
    let mut writer = Writer {
        dice: Dice(4711),
        source: IdSource::new(1),
        tenants: (0..TENANTS).map(|n| format!("tenant-{n}").into()).collect(),
        // The first is twice as likely as the second, and so on (Zipf).
        weights: (1..=TENANTS).map(|n| 1.0 / n as f64).collect(),
        promises: [
            promise(TrafficClass::Transactional),
            promise(TrafficClass::Bulk),
        ],
        policy: "3f".repeat(32),
    };
    let since = Instant::now();
    let start = end.minus(WEEK);
    let (mut events, mut messages) = (0, 0);
    let mut samples = Vec::new();
    let mut pending = tokio::task::JoinSet::new();
    while events < wanted {
        let done = events as f64 / wanted as f64;
        let new = writer.message(messages, start.plus(WEEK.mul_f64(done)));
        let subject = new.keys.subject.as_deref().unwrap_or("");
        if done * SAMPLES as f64 >= samples.len() as f64 && subject.contains(char::is_numeric) {
            samples.push(sample(&new));
        }
        if messages.is_multiple_of(250_000) {
            let rate = events as f64 / since.elapsed().as_secs_f64();
            eprintln!("{events} of {wanted} events, {rate:.0}/s");
        }
        messages += 1;
        events += new.events.len() as u64;
        let store = store.clone();
        pending.spawn(async move { store.log(new).await.expect("logged") });
        if pending.len() >= TOGETHER {
            pending.join_next().await;
        }
    }
    while pending.join_next().await.is_some() {}
    store.close().await;
    let filled = json!({
        "events": events,
        "messages": messages,
        "seconds": since.elapsed().as_secs_f64(),
        "samples": samples,
    });
    println!("{filled}");
}

fn sample(message: &LoggedMessage) -> serde_json::Value {
    let keys = &message.keys;
    json!({
        "id": message.id.to_string(),
        "at": message.accepted_at.as_millis(),
        "tenant": &*message.tenant,
        "sender": message.envelope.reverse_path.as_ref().map(|a| a.as_str()),
        "recipient": message.envelope.recipients[0].address.as_str(),
        "message_id": keys.message_id,
        "record": keys.record,
        "subject": keys.subject,
    })
}
