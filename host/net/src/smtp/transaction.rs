//! One mail transaction on an open connection: MAIL, RCPT..., DATA, the content, and what
//! each reply means for each recipient (the reply table of `docs/semantics.md`).
//!
//! With PIPELINING the envelope is one write and, as a rule, one read. Invariants: every
//! recipient of the batch has an outcome afterwards, except those of [`Ended::again`] and
//! except after [`Next::Unanswered`]; "uncertain" is said only when the whole message has
//! left us. Knows nothing of hosts, pools or who is next.

use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{Enhanced, Fault, Outcome, Reply, Stage};
use tidegate_queue::ports::Job;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Timeouts;
use super::body::{self, BodyLimits, Cut};
use super::capabilities::Capabilities;
use super::command::{self, MailParameters};
use super::wire::{Lost, Wire};

/// Replies that can't change an outcome any more are not waited for longer than this, each within
/// what is left for the envelope.
const COURTESY: Duration = Duration::from_secs(30);

/// What the connection is good for after a transaction.
#[derive(Debug)]
pub enum Next {
    /// Another transaction; with `dirty`, after RSET.
    Ready { dirty: bool },
    /// As [`Next::Ready`], but the peer does not want the message now: this is the
    /// outcome of recipients that were not in the batch, too.
    Refused { outcome: Outcome, dirty: bool },
    /// Nothing. Why.
    Gone(Outcome),
    /// Nothing, and MAIL got no answer, so the transaction may be made again elsewhere.
    Unanswered(Outcome),
}

/// How a transaction ended.
#[derive(Debug)]
pub struct Ended {
    /// Recipients that the peer wants in a transaction of their own.
    pub again: Vec<usize>,
    pub next: Next,
}

/// A message as the transaction needs it.
pub struct Mail<'a> {
    pub job: &'a Job,
    pub parameters: MailParameters<'a>,
    /// The first block of the content.
    pub first: Bytes,
}

/// Makes the transaction for the recipients `batch` (positions in the job), whose
/// outcomes are `None` before.
pub async fn transact<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    caps: &Capabilities,
    timeouts: &Timeouts,
    mail: &Mail<'_>,
    batch: &[usize],
    dirty: bool,
    outcomes: &mut [Option<Outcome>],
) -> Ended {
    let transaction = Transaction {
        wire,
        caps,
        timeouts,
        mail,
        batch,
        outcomes,
        again: Vec::new(),
        deadline: Instant::now() + timeouts.envelope,
    };
    transaction.run(dirty).await
}

struct Transaction<'a, S> {
    wire: &'a mut Wire<S>,
    caps: &'a Capabilities,
    timeouts: &'a Timeouts,
    mail: &'a Mail<'a>,
    batch: &'a [usize],
    outcomes: &'a mut [Option<Outcome>],
    again: Vec<usize>,
    /// For all of the envelope.
    deadline: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transaction<'_, S> {
    async fn run(mut self, dirty: bool) -> Ended {
        let next = match self.dialogue(dirty).await {
            Ok(next) | Err(next) => next,
        };
        match &next {
            Next::Gone(outcome) | Next::Refused { outcome, .. } => {
                // Nobody is sent again after this; who had no answer of his own gets it.
                self.again.clear();
                let outcome = outcome.clone();
                self.settle(&outcome);
            }
            Next::Ready { .. } | Next::Unanswered(_) => {}
        }
        Ended {
            again: self.again,
            next,
        }
    }

    /// Gives the outcome to all of the batch that have none, but those to be sent again.
    fn settle(&mut self, outcome: &Outcome) {
        for &n in self.batch {
            if self.outcomes[n].is_none() && !self.again.contains(&n) {
                self.outcomes[n] = Some(outcome.clone());
            }
        }
    }

    fn step(&self, limit: Duration) -> Duration {
        limit.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// `Err` is an early end.
    async fn dialogue(&mut self, dirty: bool) -> Result<Next, Next> {
        self.mail_from(dirty).await?;
        let accepted = self.recipients().await?;
        if accepted == 0 {
            return self.nobody().await;
        }
        self.data().await?;
        self.content().await
    }

    async fn mail_from(&mut self, dirty: bool) -> Result<(), Next> {
        let unanswered = |lost: Lost| Next::Unanswered(lost.outcome(Stage::Mail));
        let limit = self.step(self.timeouts.mail);
        let piped = self.caps.pipelining;
        let job = self.mail.job;
        if dirty {
            self.wire.output.extend_from_slice(b"RSET\r\n");
            if !piped {
                self.wire.flush(limit).await.map_err(unanswered)?;
                self.rset_reply(limit).await?;
            }
        }
        command::mail(
            &mut self.wire.output,
            job.reverse_path.as_ref(),
            self.mail.parameters,
        );
        if piped {
            for &n in self.batch {
                let recipient = &job.recipients[n].recipient;
                command::rcpt(&mut self.wire.output, recipient, self.caps);
            }
            self.wire.output.extend_from_slice(b"DATA\r\n");
        }
        self.wire.flush(limit).await.map_err(unanswered)?;
        if dirty && piped {
            self.rset_reply(limit).await?;
        }
        match self.wire.read(limit).await.map_err(unanswered)? {
            200..=299 => Ok(()),
            421 => Err(Next::Unanswered(self.wire.refusal(Stage::Mail))),
            code @ 400..=599 => {
                let outcome = self.wire.refusal(Stage::Mail);
                tracing::trace!(code, "MAIL refused");
                // The replies to what was pipelined behind it.
                let rest = if piped { self.batch.len() + 1 } else { 0 };
                for n in 1..=rest {
                    match self.wire.read(self.step(COURTESY)).await {
                        // Waiting for a message that nobody will get.
                        Ok(code) if n == rest && code < 400 => return Err(Next::Gone(outcome)),
                        Ok(421) | Err(_) => return Err(Next::Gone(outcome)),
                        Ok(_) => {}
                    }
                }
                Err(Next::Refused {
                    outcome,
                    dirty: false,
                })
            }
            _ => Err(Next::Gone(self.wire.refusal(Stage::Mail))),
        }
    }

    async fn rset_reply(&mut self, limit: Duration) -> Result<(), Next> {
        match self.wire.read(limit).await {
            Ok(200..=299) => Ok(()),
            Ok(_) => Err(Next::Unanswered(self.wire.refusal(Stage::Mail))),
            Err(lost) => Err(Next::Unanswered(lost.outcome(Stage::Mail))),
        }
    }

    /// How many were accepted.
    async fn recipients(&mut self) -> Result<usize, Next> {
        let gone = |lost: Lost| Next::Gone(lost.outcome(Stage::Rcpt));
        let mut accepted = 0;
        for &n in self.batch {
            let limit = self.step(self.timeouts.rcpt);
            if !self.caps.pipelining {
                let recipient = &self.mail.job.recipients[n].recipient;
                command::rcpt(&mut self.wire.output, recipient, self.caps);
                self.wire.flush(limit).await.map_err(gone)?;
            }
            match self.wire.read(limit).await.map_err(gone)? {
                200..=299 => accepted += 1,
                421 => return Err(Next::Gone(self.wire.refusal(Stage::Rcpt))),
                code @ 400..=599 => {
                    let mut outcome = self.wire.refusal(Stage::Rcpt);
                    if code == 452 || code == 552 && outcome.reply.as_ref().is_some_and(too_many) {
                        if accepted > 0 {
                            self.again.push(n);
                            continue;
                        }
                        outcome = deferred(outcome);
                    }
                    self.outcomes[n] = Some(outcome);
                }
                _ => return Err(Next::Gone(self.wire.refusal(Stage::Rcpt))),
            }
        }
        Ok(accepted)
    }

    /// All are refused. The peer may wait for a message all the same (RFC 2920 s. 3.1).
    async fn nobody(&mut self) -> Result<Next, Next> {
        if !self.caps.pipelining {
            return Ok(Next::Ready { dirty: true });
        }
        // Every recipient has an outcome; this one is for those not in the batch.
        let gone = |lost: Lost| Next::Gone(lost.outcome(Stage::Data));
        let code = self.wire.read(self.step(COURTESY)).await.map_err(gone)?;
        if code == 421 {
            return Err(Next::Gone(self.wire.refusal(Stage::Data)));
        }
        if code < 400 {
            self.wire.output.extend_from_slice(b".\r\n");
            self.wire.flush(self.step(COURTESY)).await.map_err(gone)?;
            self.wire.read(self.step(COURTESY)).await.map_err(gone)?;
        }
        Ok(Next::Ready { dirty: true })
    }

    async fn data(&mut self) -> Result<(), Next> {
        let gone = |lost: Lost| Next::Gone(lost.outcome(Stage::Data));
        let limit = self.step(self.timeouts.data);
        if !self.caps.pipelining {
            self.wire.output.extend_from_slice(b"DATA\r\n");
            self.wire.flush(limit).await.map_err(gone)?;
        }
        match self.wire.read(limit).await.map_err(gone)? {
            300..=399 => Ok(()),
            code => Err(self.refused(code, Stage::Data, true)),
        }
    }

    /// A reply that refuses the message: what it means for who was accepted.
    fn refused(&mut self, code: u16, stage: Stage, dirty: bool) -> Next {
        let outcome = self.wire.refusal(stage);
        match code {
            421 => Next::Gone(outcome),
            400..=499 => Next::Refused { outcome, dirty },
            500..=599 => {
                // The others may hear something else.
                self.settle(&outcome);
                Next::Ready { dirty }
            }
            _ => Next::Gone(outcome),
        }
    }

    async fn content(&mut self) -> Result<Next, Next> {
        let limits = BodyLimits {
            block: self.timeouts.block,
            total: self.timeouts.content,
        };
        let sent = body::send(
            self.wire,
            &*self.mail.job.content,
            self.mail.first.clone(),
            limits,
        );
        match sent.await {
            Ok(()) => {}
            // The peer and we no longer agree where we are: nothing more can be sent.
            Err(Cut::Early) => return Err(Next::Gone(self.wire.refusal(Stage::Data))),
            Err(Cut::Lost(lost)) => return Err(Next::Gone(lost.outcome(Stage::Data))),
            Err(Cut::Unreadable(detail)) => {
                let fault = Outcome::from_fault(Stage::Local, Fault::ContentUnreadable);
                return Err(Next::Gone(fault.with_detail(detail)));
            }
        }
        // From here on the peer may have the message.
        match self.wire.read(self.timeouts.dot).await {
            Ok(200..=299) => {
                let mut outcome = Outcome::from_reply(Stage::Dot, self.wire.reply());
                outcome.dsn_passed_on = self.caps.dsn;
                self.settle(&outcome);
                Ok(Next::Ready { dirty: false })
            }
            Ok(code @ 400..=599) => Err(self.refused(code, Stage::Dot, false)),
            Ok(_) => {
                let mut outcome = Outcome::uncertain(Fault::GarbledReply);
                outcome.reply = Some(self.wire.reply());
                Err(Next::Gone(outcome))
            }
            Err(lost) => Err(Next::Gone(lost.uncertain())),
        }
    }
}

/// The same, to be tried again: what a host says before or besides a recipient's own
/// reply is not held against the recipient.
pub fn deferred(mut outcome: Outcome) -> Outcome {
    use tidegate_mail::Verdict;
    outcome.verdict = Verdict::Temporary;
    if outcome.status.class != 4 {
        let own = outcome.reply.as_ref().and_then(|r| r.enhanced).is_some();
        outcome.status = if own || outcome.reply.is_none() {
            Enhanced {
                class: 4,
                ..outcome.status
            }
        } else {
            // System not accepting network messages, RFC 3463 s. 3.4.
            Enhanced::new(4, 3, 2)
        };
    }
    outcome
}

/// 552 means "too many recipients" (RFC 5321 s. 4.5.3.1.10) only where it says so:
/// otherwise it is a full mailbox or a message too large.
fn too_many(reply: &Reply) -> bool {
    if reply.code != 552 {
        return false;
    }
    reply.enhanced == Some(Enhanced::new(5, 5, 3))
        || reply
            .text
            .to_ascii_lowercase()
            .contains("too many recipients")
}
