//! The engine: wires intake, scheduler, delivery, notices and export together.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tidegate_mail::{MessageId, RecipientId, Reply, Timestamp};

use crate::control::{LaneEntry, QueueEntry, QueueQuery, Stats};
use crate::directory::Directory;
use crate::intake::{Intake, Submission};
use crate::ports::*;
use crate::settings::Settings;
use crate::shape::Measure;

/// What an engine is made of.
pub struct Parts {
    pub settings: Settings,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub resolver: Arc<dyn Resolver>,
    pub transport: Arc<dyn Transport>,
    pub policy: Arc<dyn Policy>,
    /// By exporter name.
    pub sinks: HashMap<String, Arc<dyn Sink>>,
    pub directory: Arc<ArcSwap<Directory>>,
    /// Opens a sealed password; `None` if it can't be opened with the master key.
    pub unseal: Arc<dyn Fn(&str) -> Option<String> + Send + Sync>,
    /// Number of this gateway, 0 to 255, for its queue ids.
    pub node: u8,
}

pub struct Engine {
    _parts: Parts,
}

impl Engine {
    /// Reloads the queue from the store; nothing is attempted before [`Engine::run`].
    pub async fn open(parts: Parts) -> StoreResult<Arc<Engine>> {
        Ok(Arc::new(Engine { _parts: parts }))
    }

    /// Serves until `stop` ends, then finishes the attempts under way (within `grace`)
    /// and settles them.
    pub async fn run(self: Arc<Self>, stop: impl Future<Output = ()> + Send, grace: std::time::Duration) {
        let _ = grace;
        stop.await;
    }

    /// Does what is due at `now`, to the end, and returns the next instant of interest.
    /// The simulation's way to drive the engine instead of [`Engine::run`].
    pub async fn run_due(&self, now: Timestamp) -> Timestamp {
        now
    }

    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Waiting recipients, those that move next first.
    pub async fn queue(&self, query: QueueQuery) -> StoreResult<Vec<QueueEntry>> {
        let _ = query;
        Ok(Vec::new())
    }

    pub fn lanes(&self) -> Vec<LaneEntry> {
        Vec::new()
    }

    /// Takes recipients out of the queue; the log says by whom and why. Returns how many.
    pub async fn cancel(&self, query: QueueQuery, by: &str, why: &str) -> StoreResult<u64> {
        let _ = (query, by, why);
        Ok(0)
    }

    /// Makes recipients due now. Returns how many.
    pub async fn retry(&self, query: QueueQuery) -> StoreResult<u64> {
        let _ = query;
        Ok(0)
    }

    pub fn measures(&self) -> Vec<Measure> {
        Vec::new()
    }

    pub async fn put_measure(&self, measure: Measure) -> StoreResult<()> {
        let _ = measure;
        Ok(())
    }

    pub async fn remove_measure(&self, id: &str) -> StoreResult<bool> {
        let _ = id;
        Ok(false)
    }

    /// Asks the shaping policy again for every lane, as after a change of the policy.
    pub fn replan(&self) {}

    pub fn store(&self) -> &Arc<dyn Store> {
        &self._parts.store
    }
}

impl Intake for Engine {
    fn new_id(&self) -> MessageId {
        MessageId::from_i64(0)
    }

    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>> {
        self._parts.store.content_writer()
    }

    fn submit(&self, submission: Submission) -> Fut<'_, Reply> {
        let _ = submission;
        Box::pin(async { Reply::new(451, tidegate_mail::Enhanced::new(4, 3, 0), "not ready") })
    }

    fn refusal(&self) -> Option<Reply> {
        None
    }
}

#[allow(unused)]
fn _unused(_: RecipientId) {}
