//! The one writer of a database, whatever the database: takes what waits, commits it as
//! one batch, answers. While a commit runs the next batch gathers; there is no timer.
//!
//! A call that contradicts what is stored must not fail the calls that share its batch:
//! the batch is then run again call by call, which is rare enough to be slow.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::Timestamp;
use tidegate_queue::{StoreError, StoreResult, SweepReport};
use tokio::sync::mpsc;

use crate::codec::Item;
use crate::gate::{Answer, Failure, MAX_BYTES, MAX_ITEMS, Op};
use crate::rows::Stmt;

/// Why a batch came to nothing.
pub(crate) enum Refusal {
    /// Nothing was written; one of several calls is to blame.
    Blame(StoreError),
    /// Nothing was written; later batches may succeed.
    Batch(StoreError),
    /// What is on the disk is unknown: nothing more is taken.
    Fatal(String),
}

impl Refusal {
    pub fn error(self) -> StoreError {
        match self {
            Refusal::Blame(error) | Refusal::Batch(error) => error,
            Refusal::Fatal(why) => StoreError::Failed(why),
        }
    }
}

/// A database as the writer drives it.
pub(crate) trait Backend: Send + 'static {
    /// Commits all items in one transaction; they are on stable storage when it returns,
    /// but for settlements, which may follow within [`Backend::idle`].
    fn attempt(&mut self, items: &[Item]) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// After a fatal refusal: takes back what may have been committed unanswered.
    fn withdraw(&mut self, items: &[Item]) -> impl Future<Output = ()> + Send;

    fn execute(
        &mut self,
        statements: Vec<Stmt>,
    ) -> impl Future<Output = Result<Vec<u64>, Refusal>> + Send;

    /// How long the writer may wait for calls before it syncs; `None`: all is synced.
    fn idle(&self) -> Option<Duration>;

    fn sync(&mut self) -> impl Future<Output = Result<(), Refusal>> + Send;

    fn sweep(
        &mut self,
        keep_from: Timestamp,
    ) -> impl Future<Output = Result<SweepReport, Refusal>> + Send;

    fn close(self) -> impl Future<Output = ()> + Send;
}

type Waiting = (Item, Answer<()>);

pub(crate) struct Writer<B> {
    backend: B,
    failure: Arc<Failure>,
}

impl<B: Backend> Writer<B> {
    pub fn new(backend: B, failure: Arc<Failure>) -> Self {
        Writer { backend, failure }
    }

    pub async fn serve(mut self, mut ops: mpsc::Receiver<Op>) {
        let mut close = None;
        loop {
            let first = match self.backend.idle() {
                Some(idle) if self.failure.get().is_none() => {
                    match tokio::time::timeout(idle, ops.recv()).await {
                        Ok(op) => op,
                        Err(_) => {
                            self.sync_quietly().await;
                            continue;
                        }
                    }
                }
                _ => ops.recv().await,
            };
            let Some(first) = first else { break };
            gather(&ops).await;
            let mut next = Some(first);
            let mut batch: Vec<Waiting> = Vec::new();
            let (mut bytes, mut other) = (0, None);
            while let Some(op) = next.take() {
                match op {
                    Op::Commit(item, answer) => {
                        bytes += item.bytes();
                        batch.push((*item, answer));
                        if batch.len() < MAX_ITEMS && bytes < MAX_BYTES {
                            next = ops.try_recv().ok();
                        }
                    }
                    op => other = Some(op),
                }
            }
            if !batch.is_empty() {
                self.commit(batch).await;
            }
            match other {
                None => {}
                Some(Op::Close(answer)) => {
                    close = Some(answer);
                    break;
                }
                Some(op) => self.other(op).await,
            }
        }
        self.sync_quietly().await;
        self.backend.close().await;
        if let Some(answer) = close {
            let _ = answer.send(Ok(()));
        }
    }

    /// Notes a fatal refusal and makes an error of any.
    fn refused(&self, refusal: Refusal) -> StoreError {
        if let Refusal::Fatal(why) = &refusal {
            self.failure.set(why);
        }
        refusal.error()
    }

    async fn sync_quietly(&mut self) {
        if self.failure.get().is_none()
            && let Err(refusal) = self.backend.sync().await
        {
            let error = self.refused(refusal);
            tracing::warn!(%error, "settlements could not be synced yet");
        }
    }

    async fn other(&mut self, op: Op) {
        let failed = self.failure.get();
        match op {
            Op::Execute(statements, answer) => {
                let result = match failed {
                    Some(error) => Err(error),
                    None => {
                        let done = self.backend.execute(statements).await;
                        done.map_err(|refusal| self.refused(refusal))
                    }
                };
                let _ = answer.send(result);
            }
            Op::Sync(answer) => {
                let result = match failed {
                    Some(error) => Err(error),
                    None => {
                        let done = self.backend.sync().await;
                        done.map_err(|refusal| self.refused(refusal))
                    }
                };
                let _ = answer.send(result);
            }
            Op::Sweep(keep_from, answer) => {
                let result: StoreResult<SweepReport> = match failed {
                    Some(error) => Err(error),
                    None => {
                        let done = self.backend.sweep(keep_from).await;
                        done.map_err(|refusal| self.refused(refusal))
                    }
                };
                let _ = answer.send(result);
            }
            // Taken by the caller.
            Op::Commit(..) | Op::Close(..) => {}
        }
    }

    async fn commit(&mut self, batch: Vec<Waiting>) {
        if let Some(error) = self.failure.get() {
            return answer_all(batch, &error);
        }
        let (items, answers): (Vec<Item>, Vec<Answer<()>>) = batch.into_iter().unzip();
        match self.backend.attempt(&items).await {
            Ok(()) => {
                for answer in answers {
                    let _ = answer.send(Ok(()));
                }
            }
            Err(refusal @ Refusal::Fatal(_)) => {
                self.backend.withdraw(&items).await;
                let error = self.refused(refusal);
                answer_all(items.into_iter().zip(answers), &error);
            }
            Err(Refusal::Blame(error)) if items.len() == 1 => {
                answer_all(items.into_iter().zip(answers), &error);
            }
            // One by one, so that only the one to blame is refused.
            Err(Refusal::Blame(_)) => {
                for one in items.into_iter().zip(answers) {
                    Box::pin(self.commit(vec![one])).await;
                }
            }
            Err(Refusal::Batch(error)) => {
                let waiting: Vec<Waiting> = items.into_iter().zip(answers).collect();
                let (new, old): (Vec<Waiting>, Vec<Waiting>) = waiting
                    .into_iter()
                    .partition(|(item, _)| item.mail.is_some());
                if matches!(error, StoreError::Full(_)) && !new.is_empty() && !old.is_empty() {
                    // Deliveries may go on where new mail finds no room.
                    answer_all(new, &error);
                    Box::pin(self.commit(old)).await;
                } else {
                    answer_all(new.into_iter().chain(old), &error);
                }
            }
        }
    }
}

/// Lets everything that can run do so, as long as that brings more calls: a busy machine
/// commits more at once, an idle one without delay.
async fn gather(ops: &mpsc::Receiver<Op>) {
    const TURNS: usize = 16;
    let mut waiting = ops.len();
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
        let now = ops.len();
        if now == waiting || now >= MAX_ITEMS {
            break;
        }
        waiting = now;
    }
}

fn answer_all(waiting: impl IntoIterator<Item = Waiting>, error: &StoreError) {
    for (_, answer) in waiting {
        let _ = answer.send(Err(error.clone()));
    }
}
