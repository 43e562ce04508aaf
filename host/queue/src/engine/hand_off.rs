//! Passthrough: one attempt at the tenant's server inside the submission.
//!
//! Its answer is the client's answer; nothing is queued and no outcome is recorded. Only
//! where a 250 has to be given, for other recipients or because the policy wants a notice
//! rather than a refusal, does a refused one become ours.

use std::sync::Arc;

use tidegate_mail::{Enhanced, Event, EventKind, Fault, Outcome, Reply, Stage, Verdict};

use super::accept::{Draft, Sorted};
use super::{Engine, add};
use crate::intake::Submission;
use crate::ports::*;
use crate::route::{AfterFailure, Managed};

/// Whether the hand-off settled the submission.
pub(super) enum Handed {
    /// This is the reply to the data; everything is done.
    Answered(Reply),
    /// The message goes on to the store for what is left.
    GoesOn,
}

impl Engine {
    /// Makes the attempts of all passthrough recipients. What has to become durable is
    /// moved into `draft` and `sorted`.
    pub(super) async fn hand_off(
        &self,
        submission: &Submission,
        draft: &mut Draft,
        sorted: &mut Sorted,
    ) -> Handed {
        let mut taken: Option<Reply> = None;
        let mut failed: Vec<(u32, Outcome, String)> = Vec::new();
        let mut to_notify = false;
        for (server, after_failure, indices) in std::mem::take(&mut sorted.passthrough) {
            add(&self.counters.passthrough_tried, indices.len() as u64);
            let results = self.attempt_at(submission, draft, &server, &indices).await;
            let host = self
                .parts
                .directory
                .load()
                .server(&submission.tenant, &server)
                .map_or(server, |s| s.host.clone());
            for (index, outcome) in results {
                match (outcome.verdict, after_failure) {
                    (Verdict::Delivered, _) => {
                        self.tried(submission, draft, index);
                        if taken.is_none() {
                            taken = outcome.reply;
                        }
                    }
                    (_, AfterFailure::ManagedRelay) => {
                        self.tried(submission, draft, index);
                        sorted.managed.push((index, Managed::default()));
                    }
                    _ => {
                        to_notify |= after_failure == AfterFailure::GiveUpAndNotify;
                        failed.push((index, outcome, host.clone()));
                    }
                }
            }
        }
        if !sorted.managed.is_empty()
            || to_notify
            || (taken.is_some() && !(failed.is_empty() && sorted.refused.is_empty()))
        {
            // A 250 has to be given, so each refused one is owed a notice.
            for (index, outcome, host) in failed {
                self.bounce_at_birth(submission, draft, index, outcome, Some(host));
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
                    .find(|(_, o, _)| o.verdict != Verdict::Permanent)
                    .or(failed.first())
                    .map(|(_, o, _)| answer_for(o));
                for (index, _, _) in &failed {
                    self.tried(submission, draft, *index);
                }
                worst.unwrap_or_else(|| Reply::new(451, Enhanced::new(4, 3, 0), "try again later"))
            }
        };
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
        let limit = self.now().plus(self.parts.settings.passthrough_timeout);
        tokio::select! {
            hand_off = self.parts.transport.deliver(job) => hand_off
                .results
                .into_iter()
                .map(|r| (r.index, r.outcome))
                .collect(),
            () = self.parts.clock.sleep_until(limit) => {
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
