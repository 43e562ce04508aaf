//! The way to the one writer of a database: calls go over a channel, each with an
//! answer; the writer takes all that wait as one batch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tidegate_mail::Timestamp;
use tidegate_queue::{StoreError, StoreResult, SweepReport};
use tokio::sync::{mpsc, oneshot};

use crate::codec::Item;
use crate::rows::Stmt;

/// Most calls in one batch, and most bytes of content.
pub(crate) const MAX_ITEMS: usize = 512;
pub(crate) const MAX_BYTES: usize = 8 * 1024 * 1024;

pub(crate) type Answer<T> = oneshot::Sender<StoreResult<T>>;

pub(crate) enum Op {
    Commit(Box<Item>, Answer<()>),
    /// Small statements, a synced transaction of their own.
    Execute(Vec<Stmt>, Answer<Vec<u64>>),
    /// All commits before it are to be synced.
    Sync(Answer<()>),
    Sweep(Timestamp, Answer<SweepReport>),
    Close(Answer<()>),
}

/// Numbers that readers and the writer share.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub messages: AtomicU64,
    pub recipients: AtomicU64,
    pub commits: AtomicU64,
    pub syncs: AtomicU64,
    /// Highest event number committed, and highest known to be on stable storage.
    pub committed: AtomicU64,
    pub synced: AtomicU64,
}

impl Tally {
    pub fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    pub fn sub(counter: &AtomicU64, by: u64) {
        // Only the writer changes the counters.
        counter.store(
            counter.load(Ordering::Relaxed).saturating_sub(by),
            Ordering::Relaxed,
        );
    }

    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Why the store takes nothing more until it is opened again.
#[derive(Debug, Default)]
pub(crate) struct Failure(Mutex<Option<String>>);

impl Failure {
    pub fn set(&self, why: &str) {
        let mut slot = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if slot.is_none() {
            tracing::error!(why, "storage failed; no more mail is accepted");
            *slot = Some(why.to_owned());
        }
    }

    pub fn get(&self) -> Option<StoreError> {
        let slot = self.0.lock().unwrap_or_else(|e| e.into_inner());
        slot.clone().map(StoreError::Failed)
    }
}

#[derive(Clone)]
pub(crate) struct Gate {
    ops: mpsc::Sender<Op>,
    failure: Arc<Failure>,
}

impl Gate {
    pub fn new(failure: Arc<Failure>) -> (Self, mpsc::Receiver<Op>) {
        let (ops, receiver) = mpsc::channel(4 * MAX_ITEMS);
        (Gate { ops, failure }, receiver)
    }

    pub async fn ask<T>(&self, op: impl FnOnce(Answer<T>) -> Op) -> StoreResult<T> {
        if let Some(error) = self.failure.get() {
            return Err(error);
        }
        let (answer, answered) = oneshot::channel();
        let closed = || {
            self.failure
                .get()
                .unwrap_or_else(|| StoreError::Failed("the store is closed".into()))
        };
        self.ops.send(op(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    pub async fn commit(&self, item: Item) -> StoreResult<()> {
        self.ask(|answer| Op::Commit(Box::new(item), answer)).await
    }
}
