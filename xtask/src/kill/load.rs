//! Mail for the campaign: sessions that submit as long as they are told to, also while nobody
//! listens, and remember what was answered with 250.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use tidegate_tests::raw::{Raw, Reply};
use tidegate_tests::sink::Destination;

const SESSIONS: usize = 6;

/// Recipients accepted and not delivered yet beyond which the sources pause, so that what is left
/// after the last kill is a matter of seconds.
const BACKLOG: u64 = 400;

pub const SENDER: &str = "sales@acme.test";

/// The address that its destination refuses.
pub const GONE: &str = "gone@mixed.test";

/// What is to become of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    /// Refused by the destination: a failure notice, and no delivery.
    Refused,
    /// Delivered, and a success notice, because the next hop reports none.
    Relayed,
}

/// One mail that was answered with 250.
#[derive(Debug)]
pub struct Sent {
    pub id: String,
    /// Unique; also the left side of its Message-ID.
    pub subject: String,
    pub recipients: Vec<(String, Fate)>,
}

/// Mail from several sessions.
pub struct Load {
    target: SocketAddr,
    user: String,
    password: String,
    stop: AtomicBool,
    number: AtomicU64,
    /// Recipients of accepted mail that some destination is to take.
    expected: AtomicU64,
    /// Replies that were neither 250 nor the loss of the connection.
    refusals: Mutex<BTreeMap<String, u32>>,
}

impl Load {
    pub fn new(target: SocketAddr, user: &str, password: &str) -> Load {
        Load {
            target,
            user: user.to_owned(),
            password: password.to_owned(),
            stop: AtomicBool::new(false),
            number: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            refusals: Mutex::default(),
        }
    }

    /// The sessions, each in a thread of its own, until [`Load::stop`].
    pub fn start<'s, 'e>(
        &'e self,
        scope: &'s Scope<'s, 'e>,
        destinations: &'e [Destination],
    ) -> Vec<ScopedJoinHandle<'s, Vec<Sent>>> {
        (0..SESSIONS)
            .map(|_| scope.spawn(move || self.source(destinations)))
            .collect()
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What the gateway said to mail that it should have taken, and how often.
    pub fn refusals(&self) -> Vec<String> {
        let refusals = self.refusals.lock().expect("no holder panics");
        refusals
            .iter()
            .map(|(reply, times)| format!("refused {times} times: {reply}"))
            .collect()
    }

    fn source(&self, destinations: &[Destination]) -> Vec<Sent> {
        let mut sent = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            // No listener, or gone in the middle: the client still has its mail, and tries anew.
            if let Err(error) = self.session(destinations, &mut sent) {
                if let Some(Refused(reply)) = error.downcast_ref() {
                    let mut refusals = self.refusals.lock().expect("no holder panics");
                    *refusals.entry(reply.clone()).or_default() += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        sent
    }

    fn session(&self, destinations: &[Destination], sent: &mut Vec<Sent>) -> anyhow::Result<()> {
        let mut raw = Raw::login(self.target, &self.user, &self.password)?;
        while !self.stop.load(Ordering::Relaxed) {
            let delivered: u64 = destinations.iter().map(|d| d.counts().recipients).sum();
            // Duplicates make `delivered` run ahead, so this errs on the side of more load.
            if self.expected.load(Ordering::Relaxed) > delivered + BACKLOG {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            let number = self.number.fetch_add(1, Ordering::Relaxed);
            let recipients = recipients(number);
            let subject = format!("kill-{number}");
            let id = submit(&mut raw, &subject, &recipients, size(number))?;
            let arriving = recipients.iter().filter(|(_, f)| *f != Fate::Refused);
            self.expected
                .fetch_add(arriving.count() as u64, Ordering::Relaxed);
            sent.push(Sent {
                id,
                subject,
                recipients,
            });
        }
        Ok(())
    }
}

/// A mix: most mail has one recipient, some has several at different sites, some is greylisted,
/// refused in part or whole, or wants to know of success.
fn recipients(number: u64) -> Vec<(String, Fate)> {
    // The greylist knows a recipient by its address, so each address is new.
    let to = |domain: &str| format!("u{number}@{domain}");
    match number % 10 {
        0 => vec![(GONE.to_owned(), Fate::Refused)],
        1 => vec![
            (to("fast.test"), Fate::Delivered),
            (GONE.to_owned(), Fate::Refused),
            (to("mixed.test"), Fate::Delivered),
        ],
        2 => vec![(to("grey.test"), Fate::Delivered)],
        3 => vec![
            (to("plain.test"), Fate::Relayed),
            (to("slow.test"), Fate::Delivered),
        ],
        4 | 5 => vec![(to("slow.test"), Fate::Delivered)],
        _ => vec![(to("fast.test"), Fate::Delivered)],
    }
}

/// Octets of the body, so that records of many lengths lie beside each other.
fn size(number: u64) -> usize {
    match number % 16 {
        0 => 60_000,
        n => 100 + 400 * n as usize,
    }
}

/// A reply to mail that is in order.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// One transaction; the queue id.
fn submit(
    raw: &mut Raw,
    subject: &str,
    recipients: &[(String, Fate)],
    size: usize,
) -> anyhow::Result<String> {
    let demand = |reply: Reply, code: u16| {
        // 421 announces that the connection is about to close.
        if reply.code == code || reply.code == 421 {
            Ok(reply)
        } else {
            Err(Refused(format!("{} {}", reply.code, reply.text())))
        }
    };
    demand(raw.send(&format!("MAIL FROM:<{SENDER}>"))?, 250)?;
    for (address, fate) in recipients {
        let notify = match fate {
            Fate::Relayed => " NOTIFY=SUCCESS,FAILURE",
            Fate::Delivered | Fate::Refused => "",
        };
        demand(raw.send(&format!("RCPT TO:<{address}>{notify}"))?, 250)?;
    }
    demand(raw.send("DATA")?, 354)?;
    let mut content = format!(
        "From: <{SENDER}>\r\nSubject: {subject}\r\nMessage-ID: <{subject}@acme.test>\r\n\r\n"
    );
    while content.len() < size {
        content.push_str("0123456789 0123456789 0123456789 0123456789 0123456789\r\n");
    }
    content.push_str(".\r\n");
    raw.write(content.as_bytes())?;
    let reply = demand(raw.reply()?, 250)?;
    reply
        .queue_id()
        .ok_or_else(|| Refused(format!("no queue id: {} {}", reply.code, reply.text())).into())
}
