//! Notices: paying what transitions left owing.
//!
//! The debt is on the recipient's row. The notice is accepted and the debt cleared in one
//! transaction, so it is sent once, whatever crashes. A notice has a null reverse-path,
//! so there is never a notice about a notice; it takes the built-in managed route, so no
//! policy stands between a failure and its notice.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_mail::dsn::Kind;
use tidegate_mail::event::Detail;
use tidegate_mail::recipient::{Input, step};
use tidegate_mail::{Event, EventKind, MessageId, Owes, RecipientState, TrafficClass};
use tokio::sync::Notify;

use super::flight::Carried;
use super::{Engine, add, new_entry, queue_key, shard_of};
use crate::directory::BUILT_IN_RELAY;
use crate::ports::*;
use crate::route::Managed;
use crate::schedule::{Next, Ticket};

/// When to look again at a notice that could not be stored.
const PAY_AGAIN: Duration = Duration::from_secs(5);

/// A message with recipients that owe a notice.
///
/// A recipient that still waits is held here, out of the schedule, until its debt is
/// paid: an attempt meanwhile would start from a state that is about to change.
pub(super) struct Debt {
    pub message: MessageId,
    pub held: Vec<(Ticket, Next)>,
    /// The notice that the store said it could not take. Where that was said because its
    /// commit broke off, it may stand all the same.
    tried: Option<MessageId>,
}

#[derive(Default)]
pub(super) struct Debts {
    queue: Mutex<VecDeque<Debt>>,
    pub filled: Notify,
}

impl Debts {
    pub fn push(&self, message: MessageId, held: Option<(Ticket, Next)>) {
        {
            let mut queue = self.lock();
            // Recipients of one message often end together; one look pays for all of them.
            match queue.back_mut() {
                Some(last) if last.message == message => last.held.extend(held),
                _ => queue.push_back(Debt {
                    message,
                    held: held.into_iter().collect(),
                    tried: None,
                }),
            }
        }
        self.filled.notify_one();
    }

    fn pop(&self) -> Option<Debt> {
        self.lock().pop_front()
    }

    fn give_back(&self, debt: Debt) {
        self.lock().push_front(debt);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Debt>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    pub(super) async fn keep_notifying(&self) {
        loop {
            match self.pay_debts().await {
                Ok(0) => self.debts.filled.notified().await,
                Ok(_) => {}
                Err(_) => {
                    let again = self.now().plus(PAY_AGAIN);
                    self.parts.clock.sleep_until(again).await;
                }
            }
        }
    }

    /// Pays every debt there is; returns how many messages were looked at. What could
    /// not be stored stays owed.
    pub(super) async fn pay_debts(&self) -> StoreResult<usize> {
        let mut looked_at = 0;
        while let Some(mut debt) = self.debts.pop() {
            looked_at += 1;
            if let Err(error) = self.pay(&mut debt).await {
                tracing::error!(message = %debt.message, %error, "a notice could not be stored; trying again");
                self.note_store_error(&error);
                self.debts.give_back(debt);
                return Err(error);
            }
            if !debt.held.is_empty() {
                let now = self.now();
                {
                    let mut scheduler = self.schedule();
                    for (ticket, next) in debt.held {
                        scheduler.settled(ticket, next, now);
                    }
                }
                self.alarm.notify_one();
                self.kick();
            }
        }
        Ok(looked_at)
    }

    /// One notice for each kind that is owed by recipients of this message.
    async fn pay(&self, debt: &mut Debt) -> StoreResult<()> {
        let message = debt.message;
        if let Some(notice) = debt.tried
            && self.take_up(notice).await?
        {
            debt.tried = None;
        }
        let owing: Vec<QueuedRecipient> = self
            .parts
            .store
            .recipients(message)
            .await?
            .into_iter()
            .filter(|r| r.state.owes != Owes::None)
            .filter(|r| r.state.is_done() || debt.held.iter().any(|(t, _)| t.id == r.id))
            .collect();
        if owing.is_empty() {
            return Ok(());
        }
        let Some(carried) = self.carried(message).await? else {
            return Ok(());
        };
        for kind in [Owes::Failure, Owes::Delay, Owes::Success] {
            let of_kind: Vec<&QueuedRecipient> =
                owing.iter().filter(|r| r.state.owes == kind).collect();
            if !of_kind.is_empty() {
                // The same id again: one that stands after all excludes a second.
                let id = debt.tried.unwrap_or_else(|| self.ids.next(self.now()));
                debt.tried = Some(id);
                self.send_notice(&carried, kind, &of_kind, id).await?;
                debt.tried = None;
            }
        }
        Ok(())
    }

    /// Puts a notice that the store has into the schedule. `false`: it hasn't.
    async fn take_up(&self, notice: MessageId) -> StoreResult<bool> {
        let found = self.parts.store.recipients(notice).await?;
        if found.is_empty() {
            return Ok(false);
        }
        tracing::warn!(%notice, "a notice whose commit was in doubt is in the queue");
        add(&self.counters.notices, 1);
        let now = self.now();
        {
            let mut scheduler = self.schedule();
            for r in found.iter().filter(|r| !r.state.is_done()) {
                let key = queue_key(&r.tenant, &r.domain, &r.promise);
                scheduler.add(&key, new_entry(r.id, &r.state, &r.promise), now);
            }
        }
        self.alarm.notify_one();
        self.kick();
        Ok(true)
    }

    async fn send_notice(
        &self,
        about: &Carried,
        kind: Owes,
        recipients: &[&QueuedRecipient],
        id: MessageId,
    ) -> StoreResult<()> {
        let Some(sender) = about.envelope.reverse_path.clone() else {
            return Ok(());
        };
        let now = self.now();
        let (event, pays) = self.payments(about, kind, recipients, id)?;
        let Some(dsn_kind) = Kind::of(kind) else {
            return Ok(());
        };
        let (envelope, content) = self.compose(about, &sender, dsn_kind, recipients, id).await;
        let envelope = Arc::new(envelope);
        let promise = Arc::new(self.parts.settings.ceilings.promise(
            &Managed::default(),
            TrafficClass::Transactional,
            BUILT_IN_RELAY,
            None,
        ));
        let state = RecipientState::accepted(&promise, now);
        let domain = envelope.recipients[0].address.domain();
        let new_recipients = vec![NewRecipient {
            index: 0,
            state,
            shard: shard_of(&about.tenant, domain),
            promise: promise.clone(),
        }];
        let keys = LogKeys {
            message_id: Some(format!("{id}@{}", self.parts.settings.hostname)),
            record: about.keys.record.clone(),
            subject: Some(match kind {
                Owes::Delay => format!("Delay notice for {}", about.id),
                Owes::Success => format!("Delivery notice for {}", about.id),
                Owes::Failure | Owes::None => format!("Failure notice for {}", about.id),
            }),
        };
        let mut events = vec![
            Event {
                at: now,
                kind: EventKind::Accepted,
                message: id,
                recipient: None,
                detail: Detail {
                    facts: vec![("about".to_owned(), about.id.to_string())],
                    ..Detail::default()
                },
            },
            Event {
                at: now,
                kind: EventKind::Routed,
                message: id,
                recipient: Some(0),
                detail: Detail {
                    promise: Some((*promise).clone()),
                    ..Detail::default()
                },
            },
        ];
        events.extend(event);
        let content = Content::Memory(content);
        let message = NewMessage {
            id,
            tenant: about.tenant.clone(),
            envelope: envelope.clone(),
            content: content.clone(),
            accepted_at: now,
            origin: Origin {
                via: "notice".to_owned(),
                ..Origin::default()
            },
            keys: keys.clone(),
            automatic: true,
            recipients: new_recipients.clone(),
            events,
            pays,
        };
        self.parts.store.accept(message).await?;
        add(&self.counters.notices, 1);
        let Content::Memory(bytes) = &content else {
            return Ok(());
        };
        let carried = Carried {
            id,
            tenant: about.tenant.clone(),
            envelope,
            content: Arc::new(bytes.clone()),
            accepted_at: now,
            keys,
            automatic: true,
        };
        self.enqueue(carried, new_recipients, &content);
        Ok(())
    }

    /// The cleared states, and the events that say which notice reported each recipient.
    fn payments(
        &self,
        about: &Carried,
        kind: Owes,
        recipients: &[&QueuedRecipient],
        notice: MessageId,
    ) -> StoreResult<(Vec<Event>, Vec<Settlement>)> {
        let now = self.now();
        let mut events = Vec::with_capacity(recipients.len());
        let mut pays = Vec::with_capacity(recipients.len());
        for r in recipients {
            let rights = about.rights(r.id.index);
            let state = step(&r.state, Input::NoticePaid, &r.promise, rights, now)
                .map_err(|illegal| StoreError::Damaged(illegal.to_string()))?;
            events.push(Event {
                at: now,
                kind: if kind == Owes::Delay {
                    EventKind::DelayNotified
                } else {
                    EventKind::DsnSent
                },
                message: about.id,
                recipient: Some(r.id.index),
                detail: Detail {
                    notice: Some(notice),
                    ..Detail::default()
                },
            });
            pays.push(Settlement {
                id: r.id,
                shard: r.shard,
                epoch: self.parts.store.epoch(r.shard),
                state,
                events: Vec::new(),
            });
        }
        Ok((events, pays))
    }
}
