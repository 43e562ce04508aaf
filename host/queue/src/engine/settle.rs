//! The ledger: new states on their way to the store, batched while the last commit runs.
//!
//! A settlement that the store could not take is offered again until it does: the outcome
//! of an attempt is never forgotten while the process lives. Until then no attempt is begun,
//! since what it leads to could not be written down either, and would be made twice.
//! The ledger's task is therefore never cut short: at the end it is told to finish.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate_mail::{Event, Owes, RecipientState, State};
use tokio::sync::{Notify, oneshot};

use super::flight::Loaded;
use super::{Engine, delay_at};
use crate::ports::{Settlement, StoreError, StoreResult};
use crate::schedule::{Next, Ticket};

/// Settlements in one call of the store.
const MAX_BATCH: usize = 1000;

#[derive(Default)]
pub(super) struct Ledger {
    pending: Mutex<Vec<Entry>>,
    pub filled: Notify,
    closing: AtomicBool,
    /// Cuts the pause before the next try short.
    closed: Notify,
}

struct Entry {
    settlement: Settlement,
    ticket: Ticket,
    next: Next,
    /// For who waits until it is stored, or could not be.
    told: Option<Told>,
}

type Told = oneshot::Sender<StoreResult<()>>;

/// A new state on its way to the store, for who waits for it.
pub(super) type Stored = oneshot::Receiver<StoreResult<()>>;

/// Those who wait need not any longer: the entries are offered again without them.
fn tell(entries: &mut [Entry], error: &StoreError) {
    for told in entries.iter_mut().filter_map(|e| e.told.take()) {
        // Nobody may be there any more.
        let _ = told.send(Err(error.clone()));
    }
}

impl Ledger {
    /// The task ends once what is there is stored, or can't be.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.filled.notify_one();
        self.closed.notify_one();
    }

    fn take(&self) -> Vec<Entry> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.len() <= MAX_BATCH {
            std::mem::take(&mut *pending)
        } else {
            let rest = pending.split_off(MAX_BATCH);
            std::mem::replace(&mut *pending, rest)
        }
    }

    fn give_back(&self, mut entries: Vec<Entry>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        entries.append(&mut pending);
        *pending = entries;
    }

    pub fn is_empty(&self) -> bool {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }
}

impl Engine {
    /// Enters a recipient's new state; the ticket returns to the schedule once it is committed.
    pub(super) fn enter(
        &self,
        ticket: Ticket,
        before: &Loaded,
        state: RecipientState,
        events: Vec<Event>,
    ) {
        self.enter_for(None, ticket, before, state, events);
    }

    /// The same for who waits until it is stored.
    pub(super) fn enter_told(
        &self,
        ticket: Ticket,
        before: &Loaded,
        state: RecipientState,
        events: Vec<Event>,
    ) -> Stored {
        let (told, stored) = oneshot::channel();
        self.enter_for(Some(told), ticket, before, state, events);
        stored
    }

    fn enter_for(
        &self,
        told: Option<Told>,
        ticket: Ticket,
        before: &Loaded,
        state: RecipientState,
        mut events: Vec<Event>,
    ) {
        if !events.is_empty()
            && let Some(mark) = self.cut_off_mark(before)
        {
            events.insert(0, mark);
        }
        let next = match state.state {
            State::Waiting { due } => Next::Waiting {
                due,
                delay_at: delay_at(&state, &before.promise),
                attempts: state.attempts,
            },
            State::Done(_) => Next::Gone,
        };
        let settlement = Settlement {
            id: before.id,
            shard: before.shard,
            epoch: self.parts.store.epoch(before.shard),
            state,
            events,
        };
        self.ledger
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Entry {
                settlement,
                ticket,
                next,
                told,
            });
        self.ledger.filled.notify_one();
    }

    /// Offers what is in the ledger to the store, once. `false`: it was not taken.
    pub(super) async fn settle_pending(&self) -> bool {
        let entries = self.ledger.take();
        if entries.is_empty() {
            return true;
        }
        let taken = self.offer(entries).await;
        self.stuck.store(!taken, Ordering::Relaxed);
        taken
    }

    async fn offer(&self, mut entries: Vec<Entry>) -> bool {
        let settlements = entries.iter().map(|e| e.settlement.clone()).collect();
        match self.parts.store.settle(settlements).await {
            Ok(()) => {
                self.committed(entries);
                true
            }
            Err(error @ StoreError::Fenced(_)) => {
                tell(&mut entries, &error);
                // Another gateway owns these recipients now and makes its own attempts.
                self.note_store_error(&error);
                let now = self.now();
                let mut scheduler = self.schedule();
                for entry in entries {
                    scheduler.settled(entry.ticket, Next::Gone, now);
                }
                true
            }
            Err(StoreError::Conflict(_)) if entries.len() > 1 => {
                // One by one, so that one does not hold up the rest.
                let mut entries = entries.into_iter();
                while let Some(entry) = entries.next() {
                    if !Box::pin(self.offer(vec![entry])).await {
                        self.ledger.give_back(entries.collect());
                        return false;
                    }
                }
                true
            }
            Err(StoreError::Conflict(why)) => {
                tell(&mut entries, &StoreError::Conflict(why.clone()));
                // Its commit broke off and was reported as failed, and stands all the same: the
                // recipient has left the queue.
                let now = self.now();
                for entry in entries {
                    tracing::warn!(recipient = %entry.settlement.id, why, "a result is on record already");
                    self.schedule().settled(entry.ticket, Next::Gone, now);
                }
                true
            }
            Err(error) => {
                tracing::error!(%error, waiting = entries.len(), "results of attempts could not be stored; trying again");
                self.note_store_error(&error);
                tell(&mut entries, &error);
                self.ledger.give_back(entries);
                false
            }
        }
    }

    fn committed(&self, entries: Vec<Entry>) {
        let now = self.now();
        let alarm = {
            let mut scheduler = self.schedule();
            for entry in entries {
                if let Some(told) = entry.told {
                    let _ = told.send(Ok(()));
                }
                let state = &entry.settlement.state;
                let owes = state.owes != Owes::None;
                let message = entry.settlement.id.message;
                if owes && !state.is_done() {
                    self.debts.push(message, Some((entry.ticket, entry.next)));
                    continue;
                }
                scheduler.settled(entry.ticket, entry.next, now);
                if owes {
                    self.debts.push(message, None);
                }
            }
            scheduler.alarm()
        };
        if alarm {
            self.alarm.notify_one();
        }
    }

    /// Ends intake and attempts where the store takes nothing any more.
    pub(super) fn note_store_error(&self, error: &StoreError) {
        let for_good = match error {
            StoreError::Failed(_) => !self.parts.store.recovers(),
            // What is in memory is another's to deliver: any attempt would be made twice.
            StoreError::Fenced(_) => true,
            _ => false,
        };
        if for_good && !self.store_failed.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "no mail is taken and nothing is attempted until a restart");
        }
    }

    /// Serves the ledger until it is closed.
    pub(super) async fn keep_ledger(&self) {
        let closing = || self.ledger.closing.load(Ordering::Relaxed);
        loop {
            self.ledger.filled.notified().await;
            while !self.ledger.is_empty() {
                if !self.settle_pending().await {
                    if closing() {
                        return;
                    }
                    let again = self.now().plus(Duration::from_secs(1));
                    tokio::select! {
                        () = self.parts.clock.sleep_until(again) => {}
                        () = self.ledger.closed.notified() => {}
                    }
                }
                self.kick();
            }
            if closing() {
                return;
            }
        }
    }

    /// Whether these are stored; what was on record already, and so is as it was, counts as not.
    /// An error: of some that is not known, and they are offered to the store again.
    pub(super) async fn until_stored(&self, stored: Vec<Stored>) -> StoreResult<u64> {
        if !self.running.load(Ordering::Relaxed) {
            // Nobody else serves the ledger.
            while !self.ledger.is_empty() && self.settle_pending().await {}
        }
        let mut count = 0;
        for stored in stored {
            match stored.await {
                Ok(Ok(())) => count += 1,
                Ok(Err(StoreError::Conflict(_))) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(StoreError::Failed("the gateway is stopping".to_owned())),
            }
        }
        Ok(count)
    }
}
