//! Passthrough: one attempt at the tenant's server inside the submission.
//!
//! Its answer is the client's answer; nothing is queued and no outcome is recorded. Only
//! where a 250 has to be given, for other recipients or because the policy wants a notice
//! rather than a refusal, does a refused one become ours.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tidegate_mail::{
    Enhanced, Event, EventKind, Fault, Outcome, Reply, Stage, Timestamp, TrafficClass, Verdict,
};

use super::accept::{Draft, Sorted, bulk_refusal};
use super::{Engine, add};
use crate::intake::Submission;
use crate::ports::*;
use crate::route::{Action, AfterFailure, Occasion, Question};

/// Whether the hand-off settled the submission.
pub(super) enum Handed {
    /// This is the reply to the data; everything is done.
    Answered(Reply),
    /// The message goes on to the store for what is left.
    GoesOn,
}

/// A recipient that nobody has taken.
struct Failed {
    index: u32,
    outcome: Outcome,
    /// The tenant's server that did not take it; `None`: the policy refused it afterwards.
    host: Option<String>,
}

impl Engine {
    /// Makes the attempts of all passthrough recipients, at all their servers at the same time.
    /// What has to become durable is moved into `draft` and `sorted`.
    pub(super) async fn hand_off(
        &self,
        submission: &Submission,
        draft: &mut Draft,
        sorted: &mut Sorted,
    ) -> Handed {
        let groups = std::mem::take(&mut sorted.passthrough);
        let until = self.now().plus(self.parts.settings.passthrough_timeout);
        let attempts = groups
            .iter()
            .map(|(server, _, indices)| {
                add(&self.counters.passthrough_tried, indices.len() as u64);
                Box::pin(self.attempt_at(submission, draft, server, indices, until))
            })
            .collect();
        let answers = together(attempts).await;
        let mut taken: Option<Reply> = None;
        let mut deferred: Option<Reply> = None;
        let mut failed: Vec<Failed> = Vec::new();
        let mut to_notify = false;
        for ((server, after_failure, _), results) in groups.into_iter().zip(answers) {
            let host = self
                .parts
                .directory
                .load()
                .server(&submission.tenant, &server)
                .map_or(server, |s| s.host.clone());
            let mut again = Vec::new();
            for (index, outcome) in results {
                match (outcome.verdict, after_failure) {
                    (Verdict::Delivered, _) => {
                        self.tried(submission, draft, index);
                        if taken.is_none() {
                            taken = outcome.reply;
                        }
                    }
                    (_, AfterFailure::ManagedRelay) => again.push((index, outcome)),
                    _ => {
                        to_notify |= after_failure == AfterFailure::GiveUpAndNotify;
                        failed.push(Failed {
                            index,
                            outcome,
                            host: Some(host.clone()),
                        });
                    }
                }
            }
            if !again.is_empty() {
                let later = self
                    .ask_again(submission, draft, &again, sorted, &mut failed)
                    .await;
                deferred = deferred.or(later);
            }
        }
        if taken.is_none()
            && let Some(reply) = deferred
        {
            // Nobody has anything yet: the client is to come again with all of them.
            for failed in failed.iter().filter(|f| f.host.is_some()) {
                self.tried(submission, draft, failed.index);
            }
            return self.answered(submission, draft, reply).await;
        }
        if !sorted.managed.is_empty()
            || to_notify
            || (taken.is_some() && !(failed.is_empty() && sorted.refused.is_empty()))
        {
            // A 250 has to be given, so each refused one is owed a notice.
            for failed in failed {
                let Failed {
                    index,
                    outcome,
                    host,
                } = failed;
                self.bounce_at_birth(submission, draft, index, outcome, host);
            }
            return Handed::GoesOn;
        }
        let reply = match taken {
            Some(mut reply) => {
                // The server's words, and the id under which the log has the attempt.
                reply.text = format!(
                    "{} ({})",
                    reply.text.lines().next().unwrap_or(""),
                    submission.id
                );
                reply
            }
            None => {
                // A 4xx among the answers: the client is to come again with all of them.
                let worst = failed
                    .iter()
                    .find(|f| f.outcome.verdict != Verdict::Permanent)
                    .or(failed.first())
                    .map(|f| answer_for(&f.outcome));
                for failed in failed.iter().filter(|f| f.host.is_some()) {
                    self.tried(submission, draft, failed.index);
                }
                worst.unwrap_or_else(|| Reply::new(451, Enhanced::new(4, 3, 0), "try again later"))
            }
        };
        self.answered(submission, draft, reply).await
    }

    /// Asks the policy what is to become of recipients that a tenant's server did not take and
    /// whose route has more to say. A `defer` is returned.
    async fn ask_again(
        &self,
        submission: &Submission,
        draft: &mut Draft,
        again: &[(u32, Outcome)],
        sorted: &mut Sorted,
        failed: &mut Vec<Failed>,
    ) -> Option<Reply> {
        for (index, _) in again {
            self.tried(submission, draft, *index);
        }
        let telling = again
            .iter()
            .find(|(_, o)| o.verdict != Verdict::Permanent)
            .or(again.first())
            .map(|(_, outcome)| answer_for(outcome))?;
        let envelope = tidegate_mail::Envelope {
            recipients: again
                .iter()
                .map(|(index, _)| draft.envelope.recipients[*index as usize].clone())
                .collect(),
            ..tidegate_mail::Envelope::clone(&draft.envelope)
        };
        let question = Question {
            occasion: Occasion::PassthroughFailed(telling),
            ..self.question(submission, Arc::new(envelope), draft.class, draft.now)
        };
        let routing = self.parts.policy.route(&question).await;
        if let Some(why) = &routing.fallback {
            add(&self.counters.policy_fallbacks, 1);
            draft.routing.fallback.get_or_insert_with(|| why.clone());
        }
        let mut deferred = None;
        let suspended = self.bulk_is_suspended(&submission.tenant);
        for (at, (index, outcome)) in again.iter().enumerate() {
            let outcome = match routing.action(at) {
                Action::Managed(managed)
                    if suspended && draft.class.max(managed.class) == TrafficClass::Bulk =>
                {
                    Outcome::from_reply(Stage::Local, bulk_refusal())
                }
                Action::Managed(managed) => {
                    sorted.managed.push((*index, managed.clone()));
                    continue;
                }
                // No answer to this question; the policy host lets none through.
                Action::Passthrough { .. } => outcome.clone(),
                Action::Defer(reply) => {
                    deferred.get_or_insert_with(|| reply.clone());
                    Outcome::from_reply(Stage::Local, reply.clone())
                }
                Action::Refuse(reply) => Outcome::from_reply(Stage::Local, reply.clone()),
            };
            failed.push(Failed {
                index: *index,
                outcome,
                host: None,
            });
        }
        deferred
    }

    /// The submission ends with this reply, and all that is kept is that an attempt was made.
    async fn answered(&self, submission: &Submission, draft: &mut Draft, reply: Reply) -> Handed {
        let logged = LoggedMessage {
            id: submission.id,
            tenant: submission.tenant.clone(),
            envelope: draft.envelope.clone(),
            size: submission.content.size(),
            accepted_at: draft.now,
            keys: self.keys(submission),
            events: std::mem::take(&mut draft.events),
        };
        if let Err(error) = self.parts.store.log(logged).await {
            // The mail was answered for by the tenant's server; only our note is missing.
            tracing::warn!(id = %submission.id, %error, "a passthrough attempt could not be logged");
        }
        Handed::Answered(reply)
    }

    fn tried(&self, submission: &Submission, draft: &mut Draft, index: u32) {
        let detail = draft.detail(None);
        draft.events.push(Event {
            at: draft.now,
            kind: EventKind::PassthroughTried,
            message: submission.id,
            recipient: Some(index),
            detail,
        });
    }

    async fn attempt_at(
        &self,
        submission: &Submission,
        draft: &Draft,
        server: &str,
        indices: &[u32],
        until: Timestamp,
    ) -> Vec<(u32, Outcome)> {
        let all = |outcome: Outcome| indices.iter().map(|i| (*i, outcome.clone())).collect();
        let Some(endpoint) = self.endpoint(&submission.tenant, server) else {
            return all(Outcome::from_fault(Stage::Local, Fault::RelayUnavailable));
        };
        let envelope = &draft.envelope;
        let job = Job {
            target: Target::Endpoint(Arc::new(endpoint)),
            reverse_path: envelope.reverse_path.clone(),
            envid: envelope.envid.clone(),
            ret: envelope.effective_ret(),
            body: envelope.body,
            smtputf8: envelope.smtputf8,
            requiretls: envelope.requiretls,
            tls_optional: envelope.tls_optional,
            content: self.content_of(submission, draft),
            recipients: indices
                .iter()
                .map(|i| JobRecipient {
                    index: *i,
                    recipient: envelope.recipients[*i as usize].clone(),
                })
                .collect(),
            source: None,
            messages_per_connection: 100,
        };
        tokio::select! {
            hand_off = self.parts.transport.deliver(job) => hand_off
                .results
                .into_iter()
                .map(|r| (r.index, r.outcome))
                .collect(),
            () = self.parts.clock.sleep_until(until) => {
                all(Outcome::from_fault(Stage::Local, Fault::Timeout))
            }
        }
    }

    fn endpoint(&self, tenant: &str, name: &str) -> Option<Endpoint> {
        let directory = self.parts.directory.load();
        let server = directory.server(tenant, name)?;
        let auth = match (&server.user, &server.sealed_password) {
            (Some(user), Some(sealed)) => Some((user.clone(), (self.parts.unseal)(sealed)?)),
            _ => None,
        };
        Some(Endpoint {
            host: server.host.clone(),
            port: server.port,
            tls: server.tls,
            auth,
            allow_private: self.parts.settings.allow_private_destinations,
            of_tenant: true,
        })
    }

    fn content_of(&self, submission: &Submission, draft: &Draft) -> Arc<dyn ContentReader> {
        match &submission.content {
            Content::Memory(bytes) => Arc::new(bytes.clone()),
            Content::Spooled { at, size } => self.parts.store.content(&QueuedMessage {
                id: submission.id,
                tenant: submission.tenant.clone(),
                envelope: draft.envelope.clone(),
                content: at.clone(),
                size: *size,
                accepted_at: draft.now,
                keys: LogKeys::default(),
                automatic: false,
            }),
        }
    }
}

/// Runs all at the same time; their outputs in the same order.
async fn together<F: Future>(mut running: Vec<Pin<Box<F>>>) -> Vec<F::Output> {
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, slot) in running.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let Poll::Ready(output) = future.as_mut().poll(cx)
            {
                *slot = Some(output);
            }
        }
        if done.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// The tenant's server's answer as ours; without one, 451 with what was found.
fn answer_for(outcome: &Outcome) -> Reply {
    match &outcome.reply {
        Some(reply) if reply.code >= 400 => reply.clone(),
        _ => {
            let permanent = outcome.verdict == Verdict::Permanent;
            let status = outcome.status;
            let class = if permanent { 5 } else { 4 };
            Reply::new(
                if permanent { 550 } else { 451 },
                Enhanced::new(class, status.subject, status.detail),
                format!(
                    "the server of the sender's organisation was not reached: {}",
                    outcome.text()
                ),
            )
        }
    }
}
