//! One attempt for the recipients of a job: finds a host that takes the transaction, and
//! makes as many transactions as it takes.
//!
//! Invariants: each recipient of the job gets exactly one outcome; a host failure leads to the
//! next address, and to the recipients only when there is none left; a pooled
//! connection that turns out to be dead before MAIL was answered is not held against
//! anybody: the transaction is made again, once, over a new one; what a message or its domain
//! demands beyond the ordinary is not held against the site, which others share.

use std::sync::Arc;

use tidegate_mail::{Enhanced, Fault, Hop, Outcome, Stage, Verdict};
use tidegate_queue::ports::{Contact, Hand, HandOff, Job, Target, TlsMode};
use tokio::time::Instant;

use super::body;
use super::command;
use super::fitness::{self, Peer, Unfit};
use super::pool::{self, Identity, Key};
use super::protection::{self, Demand};
use super::session::{self, Call, Failure, Session};
use super::transaction::{self, Mail, Next, deferred};
use super::{Candidate, Smtp};

/// Makes the attempt. A notice that can't be protected as the message was that it tells of
/// goes without: it is not to be lost for that (RFC 8689 s. 5).
pub async fn deliver(smtp: &Smtp, job: &Job) -> HandOff {
    let done = attempt(smtp, job).await;
    let unprotected = |hand: &Hand| {
        matches!(
            hand.outcome.fault,
            Some(Fault::RequireTlsUnsupported | Fault::RequireTlsUnprotected)
        )
    };
    if job.requiretls && job.reverse_path.is_none() && done.results.iter().all(unprotected) {
        let mut relaxed = job.clone();
        relaxed.requiretls = false;
        return attempt(smtp, &relaxed).await;
    }
    done
}

async fn attempt(smtp: &Smtp, job: &Job) -> HandOff {
    let mut delivery = Delivery {
        smtp,
        job,
        outcomes: vec![None; job.recipients.len()],
        hop: Hop::nowhere(smtp.clock.now()),
        earlier: Vec::new(),
        unmet: false,
        begun: Instant::now(),
    };
    let contact = match delivery.run().await {
        Ok(()) => Contact::Reached,
        Err(stop) => {
            let reached = delivery.was_answered();
            delivery.settle(&stop.outcome);
            if reached {
                Contact::Reached
            } else {
                stop.contact
            }
        }
    };
    delivery.hand_off(contact)
}

struct Delivery<'a> {
    smtp: &'a Smtp,
    job: &'a Job,
    outcomes: Vec<Option<Outcome>>,
    /// The latest.
    hop: Hop,
    /// Recipients whose outcome came over an earlier connection, and over which.
    earlier: Vec<(usize, Arc<Hop>)>,
    /// A host was not used for a demand that not all mail makes.
    unmet: bool,
    begun: Instant,
}

/// Why there is nothing more to be done, for all who have no outcome yet.
struct Stop {
    outcome: Outcome,
    contact: Contact,
}

impl Stop {
    /// For reasons of the message.
    fn untried(outcome: Outcome) -> Self {
        Stop {
            outcome,
            contact: Contact::Untried,
        }
    }
}

/// How the transactions on a connection ended.
enum Done {
    Finished,
    /// Not all have an outcome, and another connection is wanted: this one was dead, or has
    /// carried as many messages as it may.
    Again,
}

/// An open connection and where it goes back to.
struct Held {
    session: Session,
    key: Key,
    identity: Identity,
}

impl Delivery<'_> {
    fn settle(&mut self, outcome: &Outcome) {
        for slot in &mut self.outcomes {
            if slot.is_none() {
                *slot = Some(outcome.clone());
            }
        }
    }

    /// Whether a host took part in a transaction.
    fn was_answered(&self) -> bool {
        let in_transaction = |o: &Outcome| {
            matches!(
                o.stage,
                Stage::Mail | Stage::Rcpt | Stage::Data | Stage::Dot
            )
        };
        self.outcomes.iter().flatten().any(in_transaction)
    }

    /// Milliseconds since the attempt began.
    fn took(&self) -> u32 {
        u32::try_from(self.begun.elapsed().as_millis()).unwrap_or(u32::MAX)
    }

    /// What was answered so far was answered over this connection; the next is another.
    fn leave_hop(&mut self) {
        let known = |n: usize| self.earlier.iter().any(|(at, _)| *at == n);
        let new: Vec<usize> = (0..self.outcomes.len())
            .filter(|n| self.outcomes[*n].is_some() && !known(*n))
            .collect();
        if !new.is_empty() {
            let hop = Arc::new(Hop {
                duration_ms: self.took(),
                ..self.hop.clone()
            });
            self.earlier
                .extend(new.into_iter().map(|n| (n, hop.clone())));
        }
    }

    fn hand_off(self, contact: Contact) -> HandOff {
        let hop = Arc::new(Hop {
            duration_ms: self.took(),
            ..self.hop
        });
        let earlier = self.earlier;
        let hop_of = |n: usize| {
            let known = earlier.iter().find(|(at, _)| *at == n);
            known.map_or(&hop, |(_, hop)| hop).clone()
        };
        let results = self
            .job
            .recipients
            .iter()
            .zip(self.outcomes)
            .enumerate()
            .map(|(n, (recipient, outcome))| Hand {
                index: recipient.index,
                hop: hop_of(n),
                // `run` leaves nobody without; if it did, another attempt is the safe reading.
                outcome: outcome
                    .unwrap_or_else(|| Outcome::from_fault(Stage::Local, Fault::RelayUnavailable)),
            })
            .collect();
        HandOff { results, contact }
    }

    async fn run(&mut self) -> Result<(), Stop> {
        self.refuse_unsafe()?;
        let unreadable = |detail: String| {
            let outcome = Outcome::from_fault(Stage::Local, Fault::ContentUnreadable);
            Stop::untried(outcome.with_detail(detail))
        };
        let first = body::block(&*self.job.content, 0)
            .await
            .map_err(unreadable)?;
        let candidates = self.smtp.candidates(self.job).await.map_err(|outcome| {
            // A server whose name can't be resolved is as good as down.
            let down = outcome.stage == Stage::Dns && outcome.verdict == Verdict::Temporary;
            Stop {
                contact: if down {
                    Contact::Failed
                } else {
                    Contact::Untried
                },
                outcome,
            }
        })?;
        let config = &self.smtp.config;
        let mut peers = 0;
        let mut failed: Option<(Outcome, Hop)> = None;
        for candidate in candidates {
            if failed.is_some()
                && (peers >= config.max_peers || self.begun.elapsed() >= config.timeouts.attempt)
            {
                break;
            }
            let mut fresh = false;
            loop {
                let opened = self.obtain(candidate, fresh).await;
                let ended = match opened {
                    Ok((held, reused)) => self.transactions(held, reused && !fresh, &first).await,
                    Err(outcome) => Err(outcome),
                };
                match ended {
                    Ok(Done::Finished) => return Ok(()),
                    Ok(Done::Again) => {
                        tracing::debug!(host = candidate.host, "on over a new connection");
                        self.leave_hop();
                        fresh = true;
                    }
                    Err(outcome) => {
                        tracing::debug!(
                            host = candidate.host,
                            peer = %candidate.peer,
                            outcome = %outcome.text(),
                            "host failure"
                        );
                        let ourselves = outcome.fault == Some(Fault::LoopsToSelf);
                        peers += usize::from(matches!(
                            outcome.stage,
                            Stage::Banner | Stage::Ehlo | Stage::StartTls | Stage::Auth
                        ));
                        if failed
                            .as_ref()
                            .is_none_or(|(so_far, _)| tells_more(&outcome, so_far))
                        {
                            failed = Some((outcome, self.hop.clone()));
                        }
                        if ourselves {
                            // What comes behind ourselves must not be tried (RFC 5321 s. 5.1).
                            return Err(self.no_host(failed));
                        }
                        break;
                    }
                }
            }
        }
        Err(self.no_host(failed))
    }

    fn no_host(&mut self, failed: Option<(Outcome, Hop)>) -> Stop {
        match failed {
            Some((outcome, hop)) => {
                self.hop = hop;
                let contact = if self.unmet || outcome.verdict == Verdict::Permanent {
                    Contact::Untried
                } else {
                    Contact::Failed
                };
                Stop { outcome, contact }
            }
            // A destination always has an address; an empty one is asked for again.
            None => Stop {
                outcome: Outcome::from_fault(Stage::Dns, Fault::DnsUnavailable),
                contact: Contact::Failed,
            },
        }
    }

    /// Addresses that could end a command never get near one.
    fn refuse_unsafe(&mut self) -> Result<(), Stop> {
        let bad = |status: Enhanced| Outcome {
            verdict: Verdict::Permanent,
            status,
            ..Outcome::from_fault(Stage::Local, Fault::NoSuchDomain)
                .with_detail("the address has control characters")
        };
        let from = self.job.reverse_path.as_ref();
        if from.is_some_and(|a| !command::is_safe(a)) {
            return Err(Stop::untried(bad(Enhanced::new(5, 1, 7))));
        }
        for (slot, to) in self.outcomes.iter_mut().zip(&self.job.recipients) {
            if !command::is_safe(&to.recipient.address) {
                *slot = Some(bad(Enhanced::new(5, 1, 3)));
            }
        }
        if self.outcomes.iter().all(Option::is_some) {
            // Nobody to connect for; the outcome given here reaches nobody either.
            return Err(Stop::untried(bad(Enhanced::new(5, 1, 3))));
        }
        Ok(())
    }

    /// A connection to the candidate, kept or new; the error is a host failure.
    async fn obtain(
        &mut self,
        candidate: Candidate<'_>,
        fresh: bool,
    ) -> Result<(Held, bool), Outcome> {
        self.hop.host = Some(candidate.host.to_owned());
        self.hop.peer = Some(candidate.peer);
        (self.hop.source, self.hop.tls) = (None, None);
        let demand = protection::demand(self.job, candidate).map_err(|(policy, outcome)| {
            self.hop.tls_policy = policy.map(str::to_owned);
            self.unmet = true;
            outcome
        })?;
        let key = Key {
            peer: candidate.peer,
            source: self.job.source,
            tls: demand.mode,
        };
        let identity = demand.identity(self.job, candidate.host);
        let kept = if fresh {
            None
        } else {
            self.smtp.pool.take(&key, &identity).await
        };
        let reused = kept.is_some();
        let opened = match kept {
            Some(session) => Ok(session),
            None => self.open(candidate, &demand).await,
        };
        let (source, mut info, policy) = match &opened {
            Ok(session) => (session.source, session.tls.clone(), demand.told(session)),
            Err(failure) => (
                failure.source,
                failure.tls.clone(),
                demand.policy.map(str::to_owned),
            ),
        };
        if let Some(info) = &mut info
            && demand.policy == Some("mta-sts")
        {
            info.verified = "mta-sts".to_owned();
        }
        self.hop.source = source;
        self.hop.tls = info;
        self.hop.tls_policy = policy;
        match opened {
            Ok(session) => Ok((
                Held {
                    session,
                    key,
                    identity,
                },
                reused,
            )),
            Err(failure) => {
                self.unmet |= demand.policy.is_some() && failure.is_unprotected();
                Err(self.read_failure(failure))
            }
        }
    }

    fn read_failure(&self, failure: Failure) -> Outcome {
        let outcome = failure.outcome;
        // RFC 8689 s. 4.2.1: what waiting does not change is reported at once.
        let for_good = matches!(
            outcome.fault,
            Some(Fault::TlsRequired | Fault::TlsUntrusted | Fault::DaneMismatch)
        );
        if self.job.requiretls && for_good {
            let why = outcome.fault.map(Fault::text).unwrap_or_default();
            let detail = match outcome.detail {
                Some(detail) => format!("{why}: {detail}"),
                None => why.to_owned(),
            };
            return Outcome {
                reply: outcome.reply,
                ..Outcome::from_fault(outcome.stage, Fault::RequireTlsUnprotected)
                    .with_detail(detail)
            };
        }
        outcome
    }

    async fn open(&self, candidate: Candidate<'_>, demand: &Demand) -> Result<Session, Failure> {
        let peer = candidate.peer;
        let smtp = self.smtp;
        let (auth, detect_self) = match &self.job.target {
            Target::Mx(_) => (None, true),
            // An operator's smarthost may go by any name.
            Target::Endpoint(endpoint) => (endpoint.auth.as_ref(), endpoint.of_tenant),
        };
        let opportunistic = demand.mode == TlsMode::Opportunistic;
        let mut call = Call {
            hostname: &smtp.config.hostname,
            host: candidate.host,
            peer,
            source: self.job.source,
            tls: demand.mode,
            check: &demand.check,
            skip_starttls: opportunistic && smtp.broken_tls.has(&peer, self.begun),
            auth,
            detect_self,
            until: Instant::now() + smtp.config.timeouts.opening,
        };
        let mut opened = session::open(call, &smtp.tls, &smtp.config.timeouts).await;
        if let Err(failure) = &opened
            && failure.broken_tls
            && opportunistic
        {
            tracing::info!(
                host = candidate.host,
                %peer,
                detail = failure.outcome.detail.as_deref().unwrap_or(""),
                "TLS is broken there; sending in clear"
            );
            smtp.broken_tls.add(peer, Instant::now());
            call.skip_starttls = true;
            opened = session::open(call, &smtp.tls, &smtp.config.timeouts).await;
        }
        match &opened {
            Err(failure) if failure.outcome.stage == Stage::Connect => {
                smtp.dead.add(peer, Instant::now())
            }
            _ => smtp.dead.forget(&peer),
        }
        opened
    }

    /// As many transactions as it takes on this connection. The error is a host failure.
    async fn transactions(
        &mut self,
        mut held: Held,
        reused: bool,
        first: &bytes::Bytes,
    ) -> Result<Done, Outcome> {
        let job = self.job;
        let smtp = self.smtp;
        let peer = Peer {
            caps: &held.session.caps,
            tls: held.session.tls.as_ref(),
        };
        let parameters = match fitness::parameters(job, peer, &mut self.outcomes).await {
            Ok(parameters) => parameters,
            Err(Unfit::Host(outcome)) => {
                self.unmet = true;
                self.put_back(held);
                return Err(outcome);
            }
            Err(Unfit::Message(outcome)) => {
                self.settle(&outcome);
                self.put_back(held);
                return Ok(Done::Finished);
            }
        };
        let mail = Mail {
            job,
            parameters,
            first: first.clone(),
        };
        let mut pending: Vec<usize> = (0..self.outcomes.len())
            .filter(|n| self.outcomes[*n].is_none())
            .collect();
        let most = smtp
            .config
            .recipients_per_transaction
            .min(held.session.caps.rcpt_max.unwrap_or(usize::MAX))
            .max(1);
        let allowed = self.messages_over(&held.session);
        let mut first_transaction = true;
        while !pending.is_empty() {
            if !first_transaction && self.begun.elapsed() >= smtp.config.timeouts.attempt {
                // The rest comes again when it is its turn, and has lost nothing.
                self.settle(&Outcome::withdrawn());
                break;
            }
            if !first_transaction && held.session.messages >= allowed {
                pool::leave(held.session);
                return Ok(Done::Again);
            }
            let batch = pending.len().min(most);
            let session = &mut held.session;
            let ended = transaction::transact(
                &mut session.wire,
                &session.caps,
                &smtp.config.timeouts,
                &mail,
                &pending[..batch],
                session.dirty,
                &mut self.outcomes,
            )
            .await;
            session.messages = session.messages.saturating_add(1);
            match ended.next {
                Next::Ready { dirty } => {
                    session.dirty = dirty;
                    pending.splice(..batch, ended.again);
                }
                Next::Refused { outcome, dirty } => {
                    session.dirty = dirty;
                    self.settle(&outcome);
                    break;
                }
                Next::Gone(outcome) => {
                    // Those who were not in this transaction are not to blame for its end.
                    self.settle(&deferred(outcome));
                    return Ok(Done::Finished);
                }
                // A kept connection may have died meanwhile, and a peer may take no more
                // than it has: each round makes progress, or ends here.
                Next::Unanswered(_) if reused || !first_transaction => return Ok(Done::Again),
                Next::Unanswered(outcome) => {
                    self.settle(&outcome);
                    return Ok(Done::Finished);
                }
            }
            first_transaction = false;
        }
        self.put_back(held);
        Ok(Done::Finished)
    }

    /// How many messages a connection may carry.
    fn messages_over(&self, session: &Session) -> u16 {
        let announced = session.caps.mail_max.unwrap_or(u16::MAX);
        self.job.messages_per_connection.min(announced)
    }

    fn put_back(&self, held: Held) {
        let allowed = self.messages_over(&held.session);
        // A peer that says more than it was asked for is about to close.
        if held.session.messages < allowed && !held.session.wire.has_unread() {
            self.smtp.pool.put(held.key, held.identity, held.session);
        } else {
            pool::leave(held.session);
        }
    }
}

/// Which of two host failures is reported: one that can pass before one that can't, then
/// one with the peer's words, then the later.
fn tells_more(new: &Outcome, old: &Outcome) -> bool {
    let rank = |o: &Outcome| (o.verdict == Verdict::Temporary, o.reply.is_some());
    rank(new) >= rank(old)
}
