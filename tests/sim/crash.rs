//! A store that dies before or after its n-th writing call.
//!
//! From then on it does nothing and every call fails, as for a process that is gone; what
//! it had committed is on the disk for the next one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{MessageId, Owes, RecipientId, Timestamp};
use tidegate_queue::shape::Measure;
use tidegate_queue::*;

/// When to die.
#[derive(Default)]
pub struct Crash {
    /// Writing calls still to come before the crash; negative: none is planned.
    left: AtomicI64,
    after: AtomicBool,
    armed: AtomicBool,
    dead: AtomicBool,
}

impl Crash {
    /// Dies at the `n`-th writing call from now (from 0): before it, or after it was
    /// done and before its caller learns of it.
    pub fn arm(&self, n: u32, after: bool) {
        self.left.store(i64::from(n), Ordering::Relaxed);
        self.after.store(after, Ordering::Relaxed);
        self.armed.store(true, Ordering::Relaxed);
    }

    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
        self.dead.store(false, Ordering::Relaxed);
    }

    pub fn happened(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    fn due(&self) -> bool {
        self.armed.load(Ordering::Relaxed) && self.left.fetch_sub(1, Ordering::Relaxed) == 0
    }
}

fn gone() -> StoreError {
    StoreError::Failed("the process is gone".to_owned())
}

pub struct FaultyStore {
    inner: Arc<dyn Store>,
    crash: Arc<Crash>,
}

impl FaultyStore {
    /// Opens the embedded store; one that was just dropped may hold its lock a moment longer.
    pub async fn open(dir: PathBuf, crash: Arc<Crash>) -> Arc<Self> {
        let mut tries = 0;
        let inner = loop {
            match tidegate_store::open("sqlite", &dir, small()).await {
                Ok((store, _registry)) => break store,
                Err(error) => {
                    tries += 1;
                    assert!(tries < 200, "the store does not open: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        };
        Arc::new(FaultyStore { inner, crash })
    }

    async fn write<T, F: Future<Output = StoreResult<T>>>(&self, call: F) -> StoreResult<T> {
        if self.crash.happened() {
            return Err(gone());
        }
        let due = self.crash.due();
        if due && !self.crash.after.load(Ordering::Relaxed) {
            self.crash.dead.store(true, Ordering::Relaxed);
            return Err(gone());
        }
        let result = call.await;
        if due {
            self.crash.dead.store(true, Ordering::Relaxed);
            return Err(gone());
        }
        result
    }

    async fn read<T, F: Future<Output = StoreResult<T>>>(&self, call: F) -> StoreResult<T> {
        if self.crash.happened() {
            return Err(gone());
        }
        call.await
    }
}

fn small() -> tidegate_store::Options {
    tidegate_store::Options {
        segment_bytes: 1024 * 1024,
        ..tidegate_store::Options::default()
    }
}

impl Store for FaultyStore {
    fn epoch(&self, shard: u16) -> u64 {
        self.inner.epoch(shard)
    }

    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>> {
        Box::pin(self.read(self.inner.content_writer()))
    }

    fn accept(&self, message: NewMessage) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write(self.inner.accept(message)))
    }

    fn settle(&self, settlements: Vec<Settlement>) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write(self.inner.settle(settlements)))
    }

    fn log(&self, message: LoggedMessage) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write(self.inner.log(message)))
    }

    fn load(
        &self,
        after: Option<RecipientId>,
        max: u32,
    ) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>> {
        Box::pin(self.read(self.inner.load(after, max)))
    }

    fn messages(&self, ids: Vec<MessageId>) -> Fut<'_, StoreResult<Vec<QueuedMessage>>> {
        Box::pin(self.read(self.inner.messages(ids)))
    }

    fn recipients(&self, id: MessageId) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>> {
        Box::pin(self.read(self.inner.recipients(id)))
    }

    fn content(&self, message: &QueuedMessage) -> Arc<dyn ContentReader> {
        self.inner.content(message)
    }

    fn owing(&self, max: u32) -> Fut<'_, StoreResult<Vec<(RecipientId, Owes)>>> {
        Box::pin(self.read(self.inner.owing(max)))
    }

    fn events(&self, after: u64, max: u32) -> Fut<'_, StoreResult<Vec<EventRecord>>> {
        Box::pin(self.read(self.inner.events(after, max)))
    }

    fn search(&self, query: LogQuery) -> Fut<'_, StoreResult<Vec<LogEntry>>> {
        Box::pin(self.read(self.inner.search(query)))
    }

    fn sweep(&self, keep_from: Timestamp) -> Fut<'_, StoreResult<SweepReport>> {
        Box::pin(self.write(self.inner.sweep(keep_from)))
    }

    fn counts(&self) -> Fut<'_, StoreResult<StoreCounts>> {
        Box::pin(self.read(self.inner.counts()))
    }

    fn cursor(&self, exporter: String) -> Fut<'_, StoreResult<u64>> {
        Box::pin(self.read(self.inner.cursor(exporter)))
    }

    fn set_cursor(&self, exporter: String, seq: u64) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write(self.inner.set_cursor(exporter, seq)))
    }

    fn measures(&self) -> Fut<'_, StoreResult<Vec<Measure>>> {
        Box::pin(self.read(self.inner.measures()))
    }

    fn put_measure(&self, measure: Measure) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write(self.inner.put_measure(measure)))
    }

    fn remove_measure(&self, id: String) -> Fut<'_, StoreResult<bool>> {
        Box::pin(self.write(self.inner.remove_measure(id)))
    }

    fn shaping_state(&self) -> Fut<'_, StoreResult<Option<(u64, Bytes)>>> {
        Box::pin(self.read(self.inner.shaping_state()))
    }

    fn set_shaping_state(&self, expected: u64, state: Bytes) -> Fut<'_, StoreResult<bool>> {
        Box::pin(self.write(self.inner.set_shaping_state(expected, state)))
    }
}
