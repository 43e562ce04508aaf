//! Destinations, DNS and routing as the seed has them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tidegate_mail::{
    Enhanced, Fault, Hop, Outcome, Recipient, Reply, Ret, Stage, Timestamp, Verdict,
};
use tidegate_queue::route::{Action, AfterFailure, Managed, Question, Routing};
use tidegate_queue::shape::{LanePlan, LaneState, Limits, Plan, Rate};
use tidegate_queue::*;

use crate::crash::Crash;

/// How the hosts of a domain behave.
#[derive(Clone, Debug)]
pub enum Manner {
    Accept,
    /// Takes the mail and the DSN parameters with it.
    PassesDsnOn,
    /// 450 to a recipient's first n attempts.
    Greylist(u32),
    /// 451 to the final dot, n times.
    Later(u32),
    /// 550 to RCPT.
    Refuse,
    /// 550 5.7.1 to a recipient's first n attempts, which speaks of a rate.
    Limits(u32),
    /// The same, but for recipients of this local part.
    TakesOnly(&'static str),
    /// Says nothing, ever.
    Hangs,
    /// No connection for the first n attempts.
    Unreachable(u32),
    /// The first n final replies are lost after the data was taken.
    LosesReplies(u32),
    NoSuchDomain,
    /// SERVFAIL the first n times.
    BrokenDns(u32),
}

pub const NEVER: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub struct Delivery {
    pub at: Timestamp,
    pub recipient: String,
    pub content: Bytes,
}

/// The parameters of RFC 3461 as a next hop was given them.
#[derive(Clone, Debug)]
pub struct Passed {
    pub envid: Option<String>,
    pub ret: Option<Ret>,
    pub recipient: Recipient,
}

#[derive(Default)]
struct State {
    passed: HashMap<String, Passed>,
    manners: HashMap<String, Manner>,
    /// Attempts seen, by recipient or domain.
    seen: HashMap<String, u32>,
    delivered: Vec<Delivery>,
    attempts: Vec<(Timestamp, String)>,
    sources: Vec<(String, Option<IpAddr>)>,
    lost_replies: u32,
}

/// Everything outside the gateway; it survives the gateway's crashes.
pub struct World {
    clock: Arc<dyn Clock>,
    /// A process that is gone delivers nothing.
    crash: Arc<Crash>,
    state: Mutex<State>,
}

impl World {
    pub fn new(clock: Arc<dyn Clock>, crash: Arc<Crash>) -> Arc<Self> {
        Arc::new(World {
            clock,
            crash,
            state: Mutex::default(),
        })
    }

    pub fn set(&self, domain: &str, manner: Manner) {
        self.lock().manners.insert(domain.to_owned(), manner);
    }

    pub fn delivered(&self) -> Vec<Delivery> {
        self.lock().delivered.clone()
    }

    pub fn attempts_for(&self, recipient: &str) -> Vec<Timestamp> {
        self.lock()
            .attempts
            .iter()
            .filter(|(_, r)| r == recipient)
            .map(|(at, _)| *at)
            .collect()
    }

    /// What the next hop was told with the last attempt for this recipient.
    pub fn passed_for(&self, recipient: &str) -> Option<Passed> {
        self.lock().passed.get(recipient).cloned()
    }

    /// The source address of each attempt for this recipient.
    pub fn sources_for(&self, recipient: &str) -> Vec<Option<IpAddr>> {
        self.lock()
            .sources
            .iter()
            .filter(|(r, _)| r == recipient)
            .map(|(_, source)| *source)
            .collect()
    }

    pub fn lost_replies(&self) -> u32 {
        self.lock().lost_replies
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while holding it")
    }

    fn manner(&self, domain: &str) -> Manner {
        self.lock()
            .manners
            .get(domain)
            .cloned()
            .unwrap_or(Manner::Accept)
    }

    /// Counts an attempt and says how many there were before.
    fn count(&self, key: &str) -> u32 {
        let mut state = self.lock();
        let seen = state.seen.entry(key.to_owned()).or_default();
        *seen += 1;
        *seen - 1
    }
}

/// As a transport does it: piece by piece.
async fn read_all(content: &dyn ContentReader) -> std::io::Result<Bytes> {
    let mut all = Vec::new();
    loop {
        let piece = content.read(all.len() as u64, usize::MAX).await?;
        if piece.is_empty() {
            return Ok(all.into());
        }
        all.extend_from_slice(&piece);
    }
}

fn reply(code: u16, subject: u16, detail: u16, text: &str) -> Reply {
    Reply::new(
        code,
        Enhanced::new((code / 100) as u8, subject, detail),
        text,
    )
}

impl Resolver for World {
    fn resolve<'a>(&'a self, domain: &'a str) -> Fut<'a, Result<Arc<Destination>, Outcome>> {
        Box::pin(async move {
            match self.manner(domain) {
                Manner::NoSuchDomain => {
                    return Err(Outcome::from_fault(Stage::Dns, Fault::NoSuchDomain));
                }
                Manner::BrokenDns(n) if self.count(&format!("dns {domain}")) < n => {
                    return Err(Outcome::from_fault(Stage::Dns, Fault::DnsUnavailable));
                }
                _ => {}
            }
            Ok(Arc::new(Destination {
                domain: domain.to_owned(),
                site: domain.into(),
                hosts: vec![MxHost::new(
                    format!("mx.{domain}"),
                    10,
                    vec!["192.0.2.1".parse().expect("an address")],
                )],
                valid_until: self.clock.now().plus(std::time::Duration::from_secs(300)),
            }))
        })
    }
}

impl Transport for World {
    fn deliver(&self, job: Job) -> Fut<'_, HandOff> {
        Box::pin(async move {
            let content = read_all(&*job.content).await;
            let (domain, host) = match &job.target {
                Target::Mx(destination) => (
                    destination.domain.clone(),
                    destination.hosts[0].name.clone(),
                ),
                Target::Endpoint(endpoint) => (endpoint.host.clone(), endpoint.host.clone()),
            };
            let now = self.clock.now();
            let hop = Arc::new(Hop {
                host: Some(host),
                duration_ms: 5,
                ..Hop::nowhere(now)
            });
            let manner = self.manner(&domain);
            if matches!(manner, Manner::Hangs) {
                std::future::pending::<()>().await;
            }
            let mut contact = Contact::Reached;
            let mut results = Vec::new();
            for r in &job.recipients {
                let address = r.recipient.address.to_string();
                {
                    let mut state = self.lock();
                    state.attempts.push((now, address.clone()));
                    state.sources.push((address.clone(), job.source));
                    let passed = Passed {
                        envid: job.envid.clone(),
                        ret: job.ret,
                        recipient: r.recipient.clone(),
                    };
                    state.passed.insert(address.clone(), passed);
                }
                let earlier = self.count(&format!("rcpt {address}"));
                let content = match &content {
                    Ok(content) if !self.crash.happened() => content,
                    _ => {
                        let outcome = Outcome::from_fault(Stage::Local, Fault::ContentUnreadable);
                        results.push(Hand {
                            index: r.index,
                            hop: hop.clone(),
                            outcome,
                        });
                        continue;
                    }
                };
                let outcome = match manner {
                    Manner::Refuse => {
                        Outcome::from_reply(Stage::Rcpt, reply(550, 1, 1, "no such user"))
                    }
                    Manner::TakesOnly(who) if address.split('@').next() != Some(who) => {
                        Outcome::from_reply(Stage::Rcpt, reply(550, 1, 1, "no such user"))
                    }
                    Manner::Limits(n) if earlier < n => {
                        Outcome::from_reply(Stage::Rcpt, reply(550, 7, 1, "Rate limit exceeded"))
                    }
                    Manner::Greylist(n) if earlier < n => {
                        Outcome::from_reply(Stage::Rcpt, reply(450, 7, 1, "greylisted"))
                    }
                    Manner::Later(n) if earlier < n => {
                        Outcome::from_reply(Stage::Dot, reply(451, 3, 0, "try later"))
                    }
                    Manner::Unreachable(n) if earlier < n => {
                        contact = Contact::Failed;
                        Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout)
                    }
                    Manner::LosesReplies(n) if earlier < n => {
                        let mut state = self.lock();
                        state.lost_replies += 1;
                        state.delivered.push(Delivery {
                            at: now,
                            recipient: address,
                            content: content.clone(),
                        });
                        Outcome::uncertain(Fault::ConnectionLost)
                    }
                    _ => {
                        self.lock().delivered.push(Delivery {
                            at: now,
                            recipient: address,
                            content: content.clone(),
                        });
                        let mut taken = Outcome::from_reply(Stage::Dot, reply(250, 0, 0, "taken"));
                        taken.dsn_passed_on = matches!(manner, Manner::PassesDsnOn);
                        taken
                    }
                };
                assert_ne!(outcome.verdict, Verdict::Withdrawn);
                results.push(Hand {
                    index: r.index,
                    hop: hop.clone(),
                    outcome,
                });
            }
            HandOff { results, contact }
        })
    }
}

/// Routes by the domain's first label: `own-…` goes to the tenant's server `own`, `no-…`
/// is refused, everything else is managed.
pub struct ByName {
    pub limits: Limits,
}

impl Default for ByName {
    fn default() -> Self {
        ByName {
            limits: Limits {
                rate: Some(Rate {
                    messages: 1,
                    per_ms: 1000,
                }),
                burst: 2,
                connections: 3,
                ttl: 3600,
                ..Limits::default()
            },
        }
    }
}

impl Policy for ByName {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        let mut routing = Routing::all(
            Action::Managed(Managed::default()),
            question.envelope.recipients.len(),
        );
        routing.actions.push(Action::Passthrough {
            server: "own".to_owned(),
            after_failure: AfterFailure::GiveUp,
        });
        routing
            .actions
            .push(Action::Refuse(reply(550, 7, 1, "not to them")));
        for (at, r) in question.envelope.recipients.iter().enumerate() {
            routing.of_recipient[at] = match r.address.domain() {
                d if d.starts_with("own-") => 1,
                d if d.starts_with("no-") => 2,
                _ => 0,
            };
        }
        Box::pin(std::future::ready(routing))
    }

    fn plan(
        &self,
        _now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        Box::pin(std::future::ready(Ok(Plan {
            lanes: lanes
                .iter()
                .map(|_| {
                    Some(LanePlan {
                        limits: self.limits.clone(),
                        wake: None,
                    })
                })
                .collect(),
            state,
            rules: None,
            canary: None,
        })))
    }

    fn render<'a>(
        &'a self,
        _exporter: &'a str,
        _batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>> {
        Box::pin(std::future::ready(Err(PolicyFault::Inactive)))
    }

    fn wanted_headers(&self, _tenant: &str) -> Arc<[String]> {
        Arc::from([])
    }
}
