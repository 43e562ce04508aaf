//! What the suites share: places to open stores in, and messages to put there.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod cluster;
pub mod model;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{
    Address, End, Envelope, Event, EventKind, IdSource, MessageId, Outcome, Owes, Promise,
    Recipient, RecipientId, RecipientState, Reply, Stage, State, Timestamp, TrafficClass,
    event::Detail, recipient::LastAttempt,
};
use tidegate_queue::*;
use tidegate_store::Options;

pub const T0: Timestamp = Timestamp(1_795_489_500_000);

/// An empty database of either kind, to be opened any number of times.
pub struct Place {
    database: String,
    pub dir: tempfile::TempDir,
    pub options: Options,
}

pub struct Opened {
    pub store: Arc<dyn Store>,
    pub registry: Arc<dyn Registry>,
}

/// Small segments, so that a few messages fill one.
pub fn options() -> Options {
    Options {
        segment_bytes: 512 * 1024,
        ..Options::default()
    }
}

impl Place {
    pub fn sqlite() -> Place {
        Place {
            database: "sqlite".into(),
            dir: tempfile::tempdir().unwrap(),
            options: options(),
        }
    }

    pub async fn postgres() -> Place {
        let cluster = cluster::Cluster::get();
        let name = cluster.database().await;
        Place {
            database: cluster.url(&name),
            dir: tempfile::tempdir().unwrap(),
            options: options(),
        }
    }

    pub fn is_sqlite(&self) -> bool {
        self.database == "sqlite"
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    pub async fn open(&self) -> Opened {
        self.try_open().await.unwrap()
    }

    pub async fn try_open(&self) -> StoreResult<Opened> {
        let (store, registry) =
            tidegate_store::open(&self.database, self.dir.path(), self.options.clone()).await?;
        Ok(Opened { store, registry })
    }

    /// Does this in the database, behind the store's back.
    pub async fn tamper(&self, sql: String) {
        use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        if self.is_sqlite() {
            let file = self.dir.path().join("queue.db");
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
            let mut conn = options.connect().await.unwrap();
            conn.execute(sql).await.unwrap();
            conn.close().await.unwrap();
        } else {
            let options: sqlx::postgres::PgConnectOptions = self.database.parse().unwrap();
            let mut conn = options.connect().await.unwrap();
            conn.execute(sql).await.unwrap();
            conn.close().await.unwrap();
        }
    }

    pub async fn reopen(&self, opened: Opened) -> Opened {
        opened.store.close().await;
        drop(opened);
        self.open().await
    }
}

pub fn ids() -> IdSource {
    IdSource::new(1)
}

pub fn promise(relay: &str) -> Arc<Promise> {
    Arc::new(Promise {
        class: TrafficClass::Transactional,
        relay: relay.into(),
        lane: None,
        priority: 0,
        lifetime_secs: 48 * 3600,
        delay_notice_secs: Some(4 * 3600),
        policy: Some("ab".repeat(32)),
    })
}

pub fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

pub fn envelope(sender: Option<&str>, recipients: &[&str]) -> Arc<Envelope> {
    Arc::new(Envelope {
        reverse_path: sender.map(address),
        envid: None,
        ret: None,
        body: Default::default(),
        smtputf8: false,
        requiretls: false,
        tls_optional: false,
        recipients: recipients
            .iter()
            .map(|r| Recipient {
                address: address(r),
                notify: Default::default(),
                original: None,
            })
            .collect(),
    })
}

pub fn event(at: Timestamp, kind: EventKind, message: MessageId, recipient: Option<u32>) -> Event {
    Event {
        at,
        kind,
        message,
        recipient,
        detail: Detail::default(),
    }
}

/// A message of `tenant-a`, accepted at `at`, waiting for all its recipients.
pub fn message(id: MessageId, at: Timestamp, to: &[&str], content: impl Into<Bytes>) -> NewMessage {
    let envelope = envelope(Some("anna@sender.example"), to);
    let promise = promise("mx");
    NewMessage {
        id,
        tenant: "tenant-a".into(),
        content: Content::Memory(content.into()),
        accepted_at: at,
        origin: Origin {
            via: "smtp".into(),
            user: Some("crm".into()),
            ..Origin::default()
        },
        keys: LogKeys {
            message_id: Some(format!("{id}@crm.example")),
            record: Some(format!("R-{id}")),
            subject: Some("Gr\u{fc}\u{df}e".into()),
        },
        automatic: false,
        recipients: (0..to.len() as u32)
            .map(|index| NewRecipient {
                index,
                state: RecipientState::accepted(&promise, at),
                promise: promise.clone(),
                shard: (index % 256) as u16,
            })
            .collect(),
        events: std::iter::once(event(at, EventKind::Accepted, id, None))
            .chain((0..to.len() as u32).map(|i| event(at, EventKind::Routed, id, Some(i))))
            .collect(),
        pays: Vec::new(),
        envelope,
    }
}

pub fn recipient(message: MessageId, index: u32) -> RecipientId {
    RecipientId { message, index }
}

pub fn last_attempt(at: Timestamp, code: u16) -> LastAttempt {
    let text = "4.2.2 the \"mailbox\" of <anna> is full | try\nlater";
    LastAttempt {
        at,
        host: Some("mx1.example.org".into()),
        heard: None,
        outcome: Outcome::from_reply(
            Stage::Rcpt,
            Reply {
                code,
                enhanced: None,
                text: text.into(),
            },
        ),
    }
}

/// Waiting again after an attempt that failed.
pub fn deferred(at: Timestamp, attempts: u32) -> RecipientState {
    let due = at.plus(Duration::from_secs(60 * u64::from(attempts)));
    RecipientState {
        state: State::Waiting { due },
        attempts,
        last: Some(last_attempt(at, 452)),
        ..RecipientState::accepted(&promise("mx"), at)
    }
}

pub fn done(at: Timestamp, end: End, owes: Owes) -> RecipientState {
    RecipientState {
        state: State::Done(end),
        attempts: 1,
        owes,
        last: Some(last_attempt(at, 550)),
        ..RecipientState::accepted(&promise("mx"), at)
    }
}

pub fn settlement(
    store: &Arc<dyn Store>,
    id: RecipientId,
    state: RecipientState,
    kind: EventKind,
    at: Timestamp,
) -> Settlement {
    let shard = (id.index % 256) as u16;
    Settlement {
        id,
        shard,
        epoch: store.epoch(shard),
        state,
        events: vec![event(at, kind, id.message, Some(id.index))],
    }
}

pub fn delivered(store: &Arc<dyn Store>, id: RecipientId, at: Timestamp) -> Settlement {
    settlement(
        store,
        id,
        done(at, End::Sent, Owes::None),
        EventKind::Delivered,
        at,
    )
}

pub async fn read_all(reader: &dyn ContentReader, step: usize) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let part = reader.read(all.len() as u64, step).await?;
        if part.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&part);
    }
}

pub async fn load_all(store: &Arc<dyn Store>, page: u32) -> Vec<QueuedRecipient> {
    let mut all: Vec<QueuedRecipient> = Vec::new();
    loop {
        let part = store.load(all.last().map(|r| r.id), page).await.unwrap();
        if part.is_empty() {
            return all;
        }
        all.extend(part);
    }
}

/// Bytes that differ from place to place.
pub fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed)
        .collect()
}
