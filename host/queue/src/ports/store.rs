use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_mail::{
    Envelope, Event, EventKind, MessageId, Owes, Promise, RecipientId, RecipientState, Timestamp,
};

use super::{ContentReader, Fut};
use crate::measure::Measure;
use crate::schedule::QuotaUse;

/// Why the store did not do what was asked. A remote refusal is never one of these.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No room: stop accepting (452 4.3.1), go on delivering where that is safe.
    #[error("storage is full: {0}")]
    Full(String),
    /// Nothing was written; it may be when it is tried again (451 4.3.0).
    #[error("storage is busy: {0}")]
    Busy(String),
    /// A sync or commit failed, so what is on the disk is unknown. The store takes no
    /// more mail until it is opened again (451 4.3.0).
    #[error("storage failed: {0}")]
    Failed(String),
    /// The shard has another owner now; nothing was written.
    #[error("shard {0} is owned by another gateway")]
    Fenced(u16),
    /// A record that ought to be there is missing or damaged.
    #[error("damaged record: {0}")]
    Damaged(String),
    /// What was asked for contradicts what is stored (a name taken, an unknown id).
    #[error("{0}")]
    Conflict(String),
}

pub type StoreResult<T> = Result<T, StoreError>;

/// Where a stored content lies. Opaque to all but the store that gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRef(pub String);

/// The content of a message on its way into the store.
#[derive(Clone, Debug)]
pub enum Content {
    /// Small: still in memory, written by `accept`.
    Memory(Bytes),
    /// Large: streamed in by a [`ContentWriter`]; made durable by `accept` at the latest.
    Spooled { at: ContentRef, size: u64 },
}

impl Content {
    pub fn size(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Spooled { size, .. } => *size,
        }
    }
}

/// Streams a large content into the store. Dropping it unfinished gives the space back.
pub trait ContentWriter: Send {
    fn append(&mut self, chunk: Bytes) -> Fut<'_, StoreResult<()>>;

    fn finish(self: Box<Self>) -> Fut<'static, StoreResult<Content>>;
}

/// Who submitted a message, and over what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `smtp`, `smtps`, or `notice` for the gateway's own.
    pub via: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    #[serde(default)]
    pub helo: String,
    #[serde(default)]
    pub tls: bool,
}

/// What `tidegate log` finds a message by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogKeys {
    /// The Message-ID field, without angle brackets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The CRM's record id, from the configured header field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// Decoded and cut to 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// A managed recipient as it enters the queue.
#[derive(Clone, Debug)]
pub struct NewRecipient {
    /// Position in the envelope.
    pub index: u32,
    pub state: RecipientState,
    pub promise: Arc<Promise>,
    /// 0 to 255; decides which gateway delivers it where several share a database.
    pub shard: u16,
}

/// A message as it enters the queue.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub id: MessageId,
    pub tenant: Arc<str>,
    pub envelope: Arc<Envelope>,
    pub content: Content,
    pub accepted_at: Timestamp,
    pub origin: Origin,
    pub keys: LogKeys,
    /// List, bulk or automatic mail (see `HeaderBlock::is_automatic`).
    pub automatic: bool,
    /// Those that the gateway answers for; passthrough recipients are not among them.
    pub recipients: Vec<NewRecipient>,
    pub events: Vec<Event>,
    /// Debts that this message, a notice, pays: cleared in the same transaction, with
    /// the state each recipient then has.
    pub pays: Vec<Settlement>,
}

/// The new state of a recipient, with the events that led there.
#[derive(Clone, Debug)]
pub struct Settlement {
    pub id: RecipientId,
    pub shard: u16,
    /// The fencing token under which the shard is held.
    pub epoch: u64,
    pub state: RecipientState,
    pub events: Vec<Event>,
}

/// A queued message as an attempt needs it.
#[derive(Clone, Debug)]
pub struct QueuedMessage {
    pub id: MessageId,
    pub tenant: Arc<str>,
    pub envelope: Arc<Envelope>,
    pub content: ContentRef,
    pub size: u64,
    pub accepted_at: Timestamp,
    pub keys: LogKeys,
    pub automatic: bool,
}

/// A queued recipient as the scheduler needs it: what is loaded at a start.
#[derive(Clone, Debug)]
pub struct QueuedRecipient {
    pub id: RecipientId,
    pub tenant: Arc<str>,
    /// Of the recipient's address.
    pub domain: Arc<str>,
    pub state: RecipientState,
    pub promise: Arc<Promise>,
    pub shard: u16,
}

/// An event as it is read back, with what identifies its message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventRecord {
    /// Grows with every event of the store; the export cursor.
    pub seq: u64,
    #[serde(flatten)]
    pub event: Event,
    pub tenant: String,
    /// Empty: the null reverse-path.
    pub sender: String,
    /// Address of the event's recipient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient_address: Option<String>,
    pub size: u64,
    #[serde(flatten)]
    pub keys: LogKeys,
}

/// What to look for in the log. All given parts must match; text without case.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogQuery {
    /// Restricts to one tenant.
    pub tenant: Option<String>,
    pub message: Option<MessageId>,
    pub recipient: Option<String>,
    pub sender: Option<String>,
    pub message_id: Option<String>,
    pub record: Option<String>,
    /// Words of the subject, in any order; each as a whole.
    pub subject: Option<String>,
    /// Not before, not after: time of acceptance.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Newest first; at most this many messages (1 to 1,000; 0 means 50).
    pub limit: u32,
}

/// A message found in the log, with all its events in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogEntry {
    pub message: MessageId,
    pub tenant: String,
    pub accepted_at: Timestamp,
    pub sender: String,
    pub size: u64,
    #[serde(flatten)]
    pub keys: LogKeys,
    /// Index and address.
    pub recipients: Vec<(u32, String)>,
    pub events: Vec<Event>,
}

/// What a sweep removed and what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    pub log_days_dropped: u32,
    pub content_bytes_freed: u64,
    pub content_bytes_held: u64,
}

/// Counts that a test and the metrics compare with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCounts {
    pub messages: u64,
    pub recipients: u64,
    pub owing: u64,
    pub commits: u64,
    pub syncs: u64,
}

/// What the store remembers of the gateway's own life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// A gateway serves this store, or ended without order.
    pub running: bool,
    /// When the last start after such an end was. Attempts for recipients that were due by
    /// then may have been cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crashed: Option<Timestamp>,
}

/// The durable record of the queue and the log. Each call is one transaction; calls
/// made at the same time may share a commit. The schedule is not here: it lives in the
/// memory of the gateway that owns the shards.
pub trait Store: Send + Sync + 'static {
    /// The fencing token under which a shard is held; 0 where the store has one owner.
    fn epoch(&self, shard: u16) -> u64 {
        let _ = shard;
        0
    }

    /// Whether the store may work again after [`StoreError::Failed`] without being opened
    /// anew, as a database server does after its restart.
    fn recovers(&self) -> bool {
        false
    }

    /// Begins a content too large to be held in memory.
    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>>;

    /// When it returns `Ok`, content, envelope, recipients, events and cleared debts are
    /// on stable storage, all of them; this is the moment of responsibility. On an error
    /// nothing of it will be seen again, also after a crash; but a message that pays debts
    /// may stand after [`StoreError::Failed`], with the debts paid: where it does, its
    /// recipients are found under its id, and the same id is not taken again.
    fn accept(&self, message: NewMessage) -> Fut<'_, StoreResult<()>>;

    /// When it returns, the states and events are committed in order. A recipient that is
    /// done and owes nothing leaves the queue; a message without recipients goes with
    /// its content. A crash may undo a settlement whose commit was not yet synced: the
    /// attempt is then made again.
    fn settle(&self, settlements: Vec<Settlement>) -> Fut<'_, StoreResult<()>>;

    /// Events that belong to no managed recipient (passthrough).
    fn log(&self, message: LoggedMessage) -> Fut<'_, StoreResult<()>>;

    /// Queued recipients of the shards held, in the order of their ids, after `after`.
    fn load(
        &self,
        after: Option<RecipientId>,
        max: u32,
    ) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>>;

    /// The highest id in the queue and the log that was given no later than `until`.
    fn newest_id(&self, until: Timestamp) -> Fut<'_, StoreResult<Option<MessageId>>>;

    /// The messages of that ids; those that are gone are left out.
    fn messages(&self, ids: Vec<MessageId>) -> Fut<'_, StoreResult<Vec<QueuedMessage>>>;

    /// The recipients of a message that are still in the queue.
    fn recipients(&self, id: MessageId) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>>;

    fn content(&self, message: &QueuedMessage) -> Arc<dyn ContentReader>;

    /// Recipients that owe a notice, oldest first.
    fn owing(&self, max: u32) -> Fut<'_, StoreResult<Vec<(RecipientId, Owes)>>>;

    /// Events with a sequence number above `after`, in order.
    fn events(&self, after: u64, max: u32) -> Fut<'_, StoreResult<Vec<EventRecord>>>;

    fn search(&self, query: LogQuery) -> Fut<'_, StoreResult<Vec<LogEntry>>>;

    /// Drops log days that ended before `keep_from` and frees content no longer needed.
    fn sweep(&self, keep_from: Timestamp) -> Fut<'_, StoreResult<SweepReport>>;

    fn counts(&self) -> Fut<'_, StoreResult<StoreCounts>>;

    /// The position of an exporter, 0 at first.
    fn cursor(&self, exporter: String) -> Fut<'_, StoreResult<u64>>;
    fn set_cursor(&self, exporter: String, seq: u64) -> Fut<'_, StoreResult<()>>;

    /// All measures: automatic and people's, and those that people lifted.
    fn measures(&self) -> Fut<'_, StoreResult<Vec<Measure>>>;
    /// Keeps some, each in place of one of the same id, and removes others, in one transaction.
    fn change_measures(&self, put: Vec<Measure>, remove: Vec<String>) -> Fut<'_, StoreResult<()>>;

    /// What tenants used of their quotas.
    fn quota_use(&self) -> Fut<'_, StoreResult<Vec<QuotaUse>>>;
    /// Keeps it, for each tenant in place of what was there.
    fn set_quota_use(&self, used: Vec<QuotaUse>) -> Fut<'_, StoreResult<()>>;

    /// The shaping policy's opaque state with its version; `None` before the first.
    fn shaping_state(&self) -> Fut<'_, StoreResult<Option<(u64, Bytes)>>>;
    /// Compare and swap: `false` if the stored version is no longer `expected` (0: none).
    fn set_shaping_state(&self, expected: u64, state: Bytes) -> Fut<'_, StoreResult<bool>>;

    /// How the gateway of this number (0 to 255) has lived so far.
    fn life(&self, node: u8) -> Fut<'_, StoreResult<Life>>;
    fn set_life(&self, node: u8, life: Life) -> Fut<'_, StoreResult<()>>;

    /// Gives back the space of a finished content that will not be accepted (the message
    /// was refused or passed through). Without this it is freed after an hour at a sweep.
    fn discard(&self, content: Content) {
        let _ = content;
    }

    /// Syncs what is committed, ends the writer and gives up the database: the same
    /// place can be opened again. Later calls fail.
    fn close(&self) -> Fut<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A message that was handed off within its submission: only that is recorded.
#[derive(Clone, Debug)]
pub struct LoggedMessage {
    pub id: MessageId,
    pub tenant: Arc<str>,
    pub envelope: Arc<Envelope>,
    pub size: u64,
    pub accepted_at: Timestamp,
    pub keys: LogKeys,
    pub events: Vec<Event>,
}

/// The kinds of event that end a recipient.
pub fn ends_recipient(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Delivered
            | EventKind::Bounced
            | EventKind::Expired
            | EventKind::Cancelled
            | EventKind::Refused
    )
}
