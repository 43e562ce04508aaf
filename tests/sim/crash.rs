//! A store that dies before or after its n-th writing call, or its n-th call of a name.
//!
//! From then on it does nothing and every call fails, as for a process that is gone; what
//! it had committed is on the disk for the next one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{MessageId, Owes, RecipientId, Timestamp};
use tidegate_queue::measure::Measure;
use tidegate_queue::*;

/// A call of the store by its method's name; the contents' own are `content-append`,
/// `content-finish` and `content-read`.
type Call = &'static str;

/// When to die.
#[derive(Default)]
pub struct Crash {
    plan: Mutex<Option<Plan>>,
    calls: Mutex<BTreeMap<Call, u32>>,
    dead: AtomicBool,
    /// Its next call is done and reported as failed, as where a connection breaks at the commit.
    doubtful: Mutex<Option<Call>>,
    /// Fails until it is mended.
    broken: Mutex<Option<Call>>,
    /// Waits until it is let go.
    held: Mutex<Option<Call>>,
    /// As of a database server: a failure is not for good.
    recovers: AtomicBool,
    /// What every writing call is answered with instead of being done.
    refuses: Mutex<Option<StoreError>>,
}

#[derive(Clone, Copy)]
struct Plan {
    /// `None`: any call that writes.
    call: Option<Call>,
    /// Such calls still to come before the crash.
    left: u32,
    after: bool,
}

impl Crash {
    /// Dies at the `n`-th writing call from now (from 0): before it, or after it was
    /// done and before its caller learns of it.
    pub fn arm(&self, n: u32, after: bool) {
        *lock(&self.plan) = Some(Plan {
            call: None,
            left: n,
            after,
        });
    }

    /// The same at the `n`-th call of this name.
    pub fn arm_at(&self, call: Call, n: u32, after: bool) {
        *lock(&self.plan) = Some(Plan {
            call: Some(call),
            left: n,
            after,
        });
    }

    /// The next call of this name is done, and reported as failed; the store goes on.
    pub fn doubt(&self, call: Call) {
        self.recovers.store(true, Ordering::Relaxed);
        *lock(&self.doubtful) = Some(call);
    }

    /// Calls of this name fail until the next such order.
    pub fn fail(&self, call: Option<Call>) {
        self.recovers.store(true, Ordering::Relaxed);
        *lock(&self.broken) = call;
    }

    /// Calls of this name wait until the next such order.
    pub fn hold(&self, call: Option<Call>) {
        *lock(&self.held) = call;
    }

    /// Every writing call is refused so until the next such order.
    pub fn refuse(&self, error: Option<StoreError>) {
        *lock(&self.refuses) = error;
    }

    pub fn disarm(&self) {
        *lock(&self.plan) = None;
        self.dead.store(false, Ordering::Relaxed);
    }

    pub fn happened(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// The crash that was planned has come.
    pub fn spent(&self) -> bool {
        lock(&self.plan).is_none()
    }

    /// How often each call was made.
    pub fn calls(&self) -> BTreeMap<Call, u32> {
        lock(&self.calls).clone()
    }

    /// Notes a call; whether the process dies before (`Some(false)`) or after it.
    fn due(&self, call: Call, writes: bool) -> Option<bool> {
        *lock(&self.calls).entry(call).or_default() += 1;
        let mut plan = lock(&self.plan);
        let meant = plan.as_mut()?;
        match meant.call {
            Some(name) if name != call => return None,
            None if !writes => return None,
            _ => {}
        }
        if meant.left > 0 {
            meant.left -= 1;
            return None;
        }
        plan.take().map(|plan| plan.after)
    }

    async fn call<T, E>(
        &self,
        name: Call,
        writes: bool,
        call: impl Future<Output = Result<T, E>>,
        gone: impl Fn() -> E,
    ) -> Result<T, E> {
        if self.happened() || *lock(&self.broken) == Some(name) {
            return Err(gone());
        }
        let due = self.due(name, writes);
        while *lock(&self.held) == Some(name) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if due == Some(false) {
            self.dead.store(true, Ordering::Relaxed);
            return Err(gone());
        }
        let result = call.await;
        if due.is_some() {
            self.dead.store(true, Ordering::Relaxed);
            return Err(gone());
        }
        if lock(&self.doubtful).take_if(|call| *call == name).is_some() {
            return Err(gone());
        }
        result
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("no test panics while holding it")
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

    async fn write<T>(&self, name: Call, call: Fut<'_, StoreResult<T>>) -> StoreResult<T> {
        if let Some(error) = lock(&self.crash.refuses).clone() {
            return Err(error);
        }
        self.crash.call(name, true, call, gone).await
    }

    async fn read<T>(&self, name: Call, call: Fut<'_, StoreResult<T>>) -> StoreResult<T> {
        self.crash.call(name, false, call, gone).await
    }
}

/// A content on its way in, of a process that may be gone by its next step.
struct FaultyWriter {
    inner: Box<dyn ContentWriter>,
    crash: Arc<Crash>,
}

impl ContentWriter for FaultyWriter {
    fn append(&mut self, chunk: Bytes) -> Fut<'_, StoreResult<()>> {
        let call = self.inner.append(chunk);
        Box::pin(self.crash.call("content-append", false, call, gone))
    }

    fn finish(self: Box<Self>) -> Fut<'static, StoreResult<Content>> {
        Box::pin(async move {
            let call = self.inner.finish();
            self.crash.call("content-finish", false, call, gone).await
        })
    }
}

struct FaultyReader {
    inner: Arc<dyn ContentReader>,
    crash: Arc<Crash>,
}

impl ContentReader for FaultyReader {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read(&self, offset: u64, max: usize) -> Fut<'_, std::io::Result<Bytes>> {
        let call = self.inner.read(offset, max);
        let gone = || std::io::Error::other("the process is gone");
        Box::pin(self.crash.call("content-read", false, call, gone))
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

    fn recovers(&self) -> bool {
        self.crash.recovers.load(Ordering::Relaxed)
    }

    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>> {
        Box::pin(async {
            let inner = self
                .read("content_writer", self.inner.content_writer())
                .await?;
            let crash = self.crash.clone();
            Ok(Box::new(FaultyWriter { inner, crash }) as Box<dyn ContentWriter>)
        })
    }

    fn accept(&self, message: NewMessage) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write("accept", self.inner.accept(message)))
    }

    fn settle(&self, settlements: Vec<Settlement>) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write("settle", self.inner.settle(settlements)))
    }

    fn log(&self, message: LoggedMessage) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write("log", self.inner.log(message)))
    }

    fn load(
        &self,
        after: Option<RecipientId>,
        max: u32,
    ) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>> {
        Box::pin(self.read("load", self.inner.load(after, max)))
    }

    fn newest_id(&self, until: Timestamp) -> Fut<'_, StoreResult<Option<MessageId>>> {
        Box::pin(self.read("newest_id", self.inner.newest_id(until)))
    }

    fn messages(&self, ids: Vec<MessageId>) -> Fut<'_, StoreResult<Vec<QueuedMessage>>> {
        Box::pin(self.read("messages", self.inner.messages(ids)))
    }

    fn recipients(&self, id: MessageId) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>> {
        Box::pin(self.read("recipients", self.inner.recipients(id)))
    }

    fn content(&self, message: &QueuedMessage) -> Arc<dyn ContentReader> {
        Arc::new(FaultyReader {
            inner: self.inner.content(message),
            crash: self.crash.clone(),
        })
    }

    fn owing(&self, max: u32) -> Fut<'_, StoreResult<Vec<(RecipientId, Owes)>>> {
        Box::pin(self.read("owing", self.inner.owing(max)))
    }

    fn events(&self, after: u64, max: u32) -> Fut<'_, StoreResult<Vec<EventRecord>>> {
        Box::pin(self.read("events", self.inner.events(after, max)))
    }

    fn search(&self, query: LogQuery) -> Fut<'_, StoreResult<Vec<LogEntry>>> {
        Box::pin(self.read("search", self.inner.search(query)))
    }

    fn sweep(&self, keep_from: Timestamp) -> Fut<'_, StoreResult<SweepReport>> {
        Box::pin(self.write("sweep", self.inner.sweep(keep_from)))
    }

    fn counts(&self) -> Fut<'_, StoreResult<StoreCounts>> {
        Box::pin(self.read("counts", self.inner.counts()))
    }

    fn cursor(&self, exporter: String) -> Fut<'_, StoreResult<u64>> {
        Box::pin(self.read("cursor", self.inner.cursor(exporter)))
    }

    fn set_cursor(&self, exporter: String, seq: u64) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write("set_cursor", self.inner.set_cursor(exporter, seq)))
    }

    fn measures(&self) -> Fut<'_, StoreResult<Vec<Measure>>> {
        Box::pin(self.read("measures", self.inner.measures()))
    }

    fn change_measures(&self, put: Vec<Measure>, remove: Vec<String>) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write("change_measures", self.inner.change_measures(put, remove)))
    }

    fn quota_use(&self) -> Fut<'_, StoreResult<Vec<QuotaUse>>> {
        Box::pin(self.read("quota_use", self.inner.quota_use()))
    }

    fn set_quota_use(&self, used: Vec<QuotaUse>) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write("set_quota_use", self.inner.set_quota_use(used)))
    }

    fn shaping_state(&self) -> Fut<'_, StoreResult<Option<(u64, Bytes)>>> {
        Box::pin(self.read("shaping_state", self.inner.shaping_state()))
    }

    fn set_shaping_state(&self, expected: u64, state: Bytes) -> Fut<'_, StoreResult<bool>> {
        Box::pin(self.write(
            "set_shaping_state",
            self.inner.set_shaping_state(expected, state),
        ))
    }

    fn life(&self, node: u8) -> Fut<'_, StoreResult<Life>> {
        Box::pin(self.read("life", self.inner.life(node)))
    }

    fn set_life(&self, node: u8, life: Life) -> Fut<'_, StoreResult<()>> {
        Box::pin(self.write("set_life", self.inner.set_life(node, life)))
    }

    fn discard(&self, content: Content) {
        if !self.crash.happened() {
            self.inner.discard(content);
        }
    }
}
