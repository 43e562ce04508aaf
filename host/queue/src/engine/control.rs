//! What operators do to the queue while it runs.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_mail::event::Detail;
use tidegate_mail::recipient::{Input, LastAttempt, step};
use tidegate_mail::{Event, EventKind, MessageId, RecipientId, Stage};

use super::{Engine, add};
use crate::control::{LaneEntry, QueueEntry, QueueQuery};
use crate::directory::Way;
use crate::ports::StoreResult;
use crate::schedule::{Next, Ticket};
use crate::shape::WaitReason;

impl Engine {
    /// Waiting recipients, those that move next first, with address, sender and last reply.
    pub async fn queue(&self, query: QueueQuery) -> StoreResult<Vec<QueueEntry>> {
        let mut entries = self.schedule().list(&query);
        let mut ids: Vec<MessageId> = entries.iter().map(|e| e.id.message).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut senders = HashMap::new();
        let mut last: HashMap<RecipientId, LastAttempt> = HashMap::new();
        let mut envelopes = HashMap::new();
        for message in self.parts.store.messages(ids.clone()).await? {
            let sender = message
                .envelope
                .reverse_path
                .as_ref()
                .map(|a| a.to_string())
                .unwrap_or_default();
            senders.insert(message.id, sender);
            envelopes.insert(message.id, message.envelope);
        }
        for id in ids {
            for recipient in self.parts.store.recipients(id).await? {
                if let Some(attempt) = recipient.state.last {
                    last.insert(recipient.id, attempt);
                }
            }
        }
        for entry in &mut entries {
            entry.sender = senders.get(&entry.id.message).cloned();
            entry.address = envelopes
                .get(&entry.id.message)
                .and_then(|e| e.recipients.get(entry.id.index as usize))
                .map(|r| r.address.to_string());
            let last = last.get(&entry.id);
            entry.last = last.map(|l| l.outcome.text());
            if entry.reason == Some(WaitReason::RetrySchedule) {
                entry.reason = last
                    .and_then(|l| self.cause(&entry.relay, l))
                    .or(entry.reason);
            }
        }
        Ok(entries)
    }

    /// What is behind a wait for the next attempt, where it is not the recipient's own server.
    fn cause(&self, relay: &str, last: &LastAttempt) -> Option<WaitReason> {
        let directory = self.parts.directory.load();
        let smarthost = || {
            let relay = directory.relay(relay);
            relay.is_some_and(|r| matches!(r.way, Way::Smarthost { .. }))
        };
        match last.outcome.stage {
            Stage::Dns => Some(WaitReason::Dns),
            Stage::Connect | Stage::Banner | Stage::Ehlo if smarthost() => {
                Some(WaitReason::RelayDown)
            }
            _ => None,
        }
    }

    pub fn lanes(&self) -> Vec<LaneEntry> {
        self.schedule().lanes()
    }

    /// Takes recipients out of the queue; the log says by whom and why. What is in
    /// flight is left alone. Returns how many, once that is stored.
    pub async fn cancel(&self, query: QueueQuery, by: &str, why: &str) -> StoreResult<u64> {
        let facts = vec![
            ("by".to_owned(), by.to_owned()),
            ("why".to_owned(), why.to_owned()),
        ];
        self.see_through(|engine| async move {
            let tickets = engine.schedule().pick(&query);
            let count = engine
                .apply(tickets, || Input::Cancelled, Some(facts))
                .await?;
            add(&engine.counters.cancelled, count);
            Ok(count)
        })
        .await
    }

    /// Makes recipients due now. Returns how many, once that is stored.
    pub async fn retry(&self, query: QueueQuery) -> StoreResult<u64> {
        self.see_through(|engine| async move {
            let tickets = engine.schedule().pick(&query);
            engine.apply(tickets, || Input::Retry, None).await
        })
        .await
    }

    /// Does what a person ordered to its end, though who ordered it may be gone before: an HTTP
    /// client that hangs up leaves no recipient taken out of the schedule, and nothing stored
    /// that is not in force.
    pub(super) async fn see_through<T, W>(&self, work: impl FnOnce(Arc<Engine>) -> W) -> T
    where
        T: Send + 'static,
        W: Future<Output = T> + Send + 'static,
    {
        let Some(me) = self.me.upgrade() else {
            unreachable!("an engine is made within its Arc, and who calls holds it")
        };
        match tokio::spawn(work(me)).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is at its end, and with it who waits.
                Err(_) => std::future::pending().await,
            },
        }
    }

    async fn apply(
        &self,
        mut tickets: Vec<Ticket>,
        input: impl Fn() -> Input,
        cancelled: Option<Vec<(String, String)>>,
    ) -> StoreResult<u64> {
        tickets.sort_unstable_by_key(|t| t.id);
        let mut stored = Vec::new();
        let mut groups = tickets.chunk_by(|a, b| a.id.message == b.id.message);
        while let Some(group) = groups.next() {
            let (carried, loaded) = match self.load(group[0].id.message, group).await {
                Ok(Some(found)) => found,
                Ok(None) => {
                    let now = self.now();
                    for ticket in group {
                        self.schedule().settled(*ticket, Next::Gone, now);
                    }
                    continue;
                }
                Err(error) => {
                    self.put_back(group);
                    groups.for_each(|rest| self.put_back(rest));
                    return Err(error);
                }
            };
            let now = self.now();
            for ticket in group {
                let Some(before) = loaded.iter().find(|l| l.id == ticket.id) else {
                    self.schedule().settled(*ticket, Next::Gone, now);
                    continue;
                };
                let rights = carried.rights(before.id.index);
                match step(&before.state, input(), &before.promise, rights, now) {
                    Ok(state) => {
                        let events = cancelled.iter().map(|facts| Event {
                            at: now,
                            kind: EventKind::Cancelled,
                            message: before.id.message,
                            recipient: Some(before.id.index),
                            detail: Detail {
                                facts: facts.clone(),
                                ..Detail::default()
                            },
                        });
                        stored.push(self.enter_told(*ticket, before, state, events.collect()));
                    }
                    Err(illegal) => self.refuse_transition(*ticket, before, &illegal, now),
                }
            }
        }
        self.until_stored(stored).await
    }

    /// Tickets whose rows could not be read wait a little and are looked at again.
    fn put_back(&self, tickets: &[Ticket]) {
        let now = self.now();
        let mut scheduler = self.schedule();
        for ticket in tickets {
            let next = Next::Waiting {
                due: now.plus(std::time::Duration::from_secs(1)),
                delay_at: now.plus(std::time::Duration::from_secs(1)),
                attempts: ticket.attempts,
            };
            scheduler.settled(*ticket, next, now);
        }
    }

    /// Asks the shaping policy again for every lane, as after a change of the policy.
    pub fn replan(&self) {
        let now = self.now();
        self.schedule().replan(now);
        self.alarm.notify_one();
    }

    /// Looks again at every queue that waits for a relay or for its tenant's quota, as after a
    /// change of these.
    pub fn directory_changed(&self) {
        self.schedule().directory_changed();
        self.kick();
    }
}
