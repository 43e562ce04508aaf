//! The embedded store: one SQLite database for the queue and the log, and segment files
//! for the contents beside it.

mod content;
pub(crate) mod disk;
mod encode;
mod open;
mod record;
mod rows;
mod segments;
mod wal;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Executor, Row as _};
use tidegate_mail::{MessageId, Owes, Promise, RecipientId, Timestamp};
use tidegate_queue::directory::{Credential, Relay, Server, Tenant, Token};
use tidegate_queue::measure::Measure;
use tidegate_queue::*;

use crate::codec::{self, Interner, StoredRecipient, parse};
use crate::gate::{Failure, Gate, Op, Tally};
use crate::log::{self, Days};
use crate::registry;
use crate::rows::{Kind, Rows, Value};

use content::{SegmentReader, SegmentWriter};
pub(crate) use open::with_remedy;
use rows::SqliteRows;
use segments::Segments;

/// How long a close waits for reads under way.
const READERS_GO: Duration = Duration::from_secs(2);

/// What an error of SQLite means for the batch it struck.
pub(crate) enum Reach {
    Constraint,
    Full,
    Busy,
    Broken,
}

pub(crate) fn classify(error: &sqlx::Error) -> Reach {
    let code = match error {
        sqlx::Error::Database(database) => database
            .code()
            .and_then(|code| code.parse::<i32>().ok())
            .unwrap_or(0),
        _ => 0,
    };
    match code & 0xff {
        libsqlite3_sys::SQLITE_CONSTRAINT => Reach::Constraint,
        libsqlite3_sys::SQLITE_FULL => Reach::Full,
        libsqlite3_sys::SQLITE_BUSY | libsqlite3_sys::SQLITE_LOCKED => Reach::Busy,
        _ => Reach::Broken,
    }
}

/// An error of a read: it says nothing about what is on the disk.
pub(crate) fn read_error(error: sqlx::Error) -> StoreError {
    match classify(&error) {
        Reach::Full => StoreError::Full(error.to_string()),
        Reach::Busy => StoreError::Busy(error.to_string()),
        _ => StoreError::Damaged(format!("the database can't be read: {error}")),
    }
}

/// See the module.
pub struct SqliteStore {
    rows: SqliteRows,
    segments: Arc<Segments>,
    tally: Arc<Tally>,
    failure: Arc<Failure>,
    days: Arc<Days>,
}

impl SqliteStore {
    fn gate(&self) -> &Gate {
        &self.rows.gate
    }

    /// There is one gateway, which holds all shards in epoch 0.
    fn fence(settlements: &[Settlement]) -> StoreResult<()> {
        match settlements.iter().find(|s| s.epoch != 0) {
            Some(stale) => Err(StoreError::Fenced(stale.shard)),
            None => Ok(()),
        }
    }

    async fn page(
        &self,
        after: (i64, i64),
        until: i64,
        max: u32,
    ) -> StoreResult<Vec<QueuedRecipient>> {
        // One text for the page: a row of fourteen columns costs sqlx far more than
        // taking a line apart. No column can hold the separator, a control character,
        // and JSON holds no line end.
        let sql = concat!(
            "SELECT group_concat(format('%lld\u{1f}%lld\u{1f}%lld\u{1f}%s\u{1f}%s\u{1f}%lld\u{1f}%s",
            "\u{1f}%d\u{1f}%lld\u{1f}%lld\u{1f}%lld\u{1f}%d\u{1f}%d\u{1f}%s',
                message, idx, shard, tenant, domain, promise, due, done, attempts, accepted_at,
                expires_at, owes, delay_reported, last), char(10))
             FROM (SELECT * FROM recipient WHERE (message, idx) > ($1, $2) AND message <= $3
                   ORDER BY message, idx LIMIT $4)"
        );
        let args = vec![
            Value::Int(after.0),
            Value::Int(after.1),
            Value::Int(until),
            Value::Int(i64::from(max)),
        ];
        let found = self.rows.select(sql.into(), args, &[Kind::Text]).await?;
        let text = match found.first() {
            Some(row) => row.opt_text(0)?.unwrap_or(""),
            None => "",
        };
        let promises = self.promises().await?;
        let mut names = Interner::default();
        text.split_terminator('\n')
            .map(|line| decode_line(line, &promises, &mut names))
            .collect()
    }

    async fn promises(&self) -> StoreResult<std::collections::HashMap<i64, Arc<Promise>>> {
        let sql = "SELECT id, body FROM promise";
        let found = self
            .rows
            .select(sql.into(), Vec::new(), &[Kind::Int, Kind::Text])
            .await?;
        found
            .iter()
            .map(|row| Ok((row.int(0)?, Arc::new(parse("promise", row.text(1)?)?))))
            .collect()
    }
}

fn decode_line(
    line: &str,
    promises: &std::collections::HashMap<i64, Arc<Promise>>,
    names: &mut Interner,
) -> StoreResult<QueuedRecipient> {
    let bad = || StoreError::Damaged(format!("queued recipient {line:?}"));
    let mut cells = line.splitn(14, '\u{1f}');
    let mut text = || cells.next().ok_or_else(bad);
    let int = |text: &str| text.parse::<i64>().map_err(|_| bad());
    let message = int(text()?)?;
    let index = int(text()?)?;
    let shard = int(text()?)?;
    let (tenant, domain) = (text()?, text()?);
    let promise = promises.get(&int(text()?)?).cloned().ok_or_else(bad)?;
    let due = match text()? {
        "" => None,
        due => Some(int(due)?),
    };
    StoredRecipient {
        message,
        index,
        shard,
        tenant,
        domain,
        promise,
        due,
        done: int(text()?)?,
        attempts: int(text()?)?,
        accepted_at: int(text()?)?,
        expires_at: int(text()?)?,
        owes: int(text()?)?,
        delay_reported: int(text()?)?,
        last: Some(text()?).filter(|last| !last.is_empty()),
    }
    .decode(names)
}

async fn load_promises(conn: &mut SqliteConnection) -> StoreResult<Vec<(i64, Arc<Promise>)>> {
    let rows = conn
        .fetch_all(sqlx::query("SELECT id, body FROM promise"))
        .await
        .map_err(read_error)?;
    rows.iter()
        .map(|row| {
            let body: &str = row.try_get(1).map_err(read_error)?;
            let id: i64 = row.try_get(0).map_err(read_error)?;
            Ok((id, Arc::new(parse("promise", body)?)))
        })
        .collect()
}

impl Store for SqliteStore {
    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>> {
        Box::pin(async move {
            if let Some(error) = self.failure.get() {
                return Err(error);
            }
            let writer: Box<dyn ContentWriter> =
                Box::new(SegmentWriter::new(self.segments.clone()));
            Ok(writer)
        })
    }

    fn accept(&self, message: NewMessage) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move {
            Self::fence(&message.pays)?;
            let spooled = match &message.content {
                Content::Spooled { at, .. } => Some(at.clone()),
                Content::Memory(_) => None,
            };
            let item = codec::accept_item(message)?;
            let unused = spooled.filter(|_| item.message.is_none());
            self.gate().commit(item).await?;
            if let Some(at) = unused {
                self.segments.discard(&at);
            }
            Ok(())
        })
    }

    fn settle(&self, settlements: Vec<Settlement>) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move {
            Self::fence(&settlements)?;
            self.gate().commit(codec::settle_item(settlements)?).await
        })
    }

    fn log(&self, message: LoggedMessage) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move { self.gate().commit(codec::log_item(message)?).await })
    }

    fn load(
        &self,
        after: Option<RecipientId>,
        max: u32,
    ) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>> {
        Box::pin(async move {
            let after = after.map_or((i64::MIN, 0), |id| {
                (id.message.as_i64(), i64::from(id.index))
            });
            self.page(after, i64::MAX, max.clamp(1, 50_000)).await
        })
    }

    fn newest_id(&self, until: Timestamp) -> Fut<'_, StoreResult<Option<MessageId>>> {
        Box::pin(log::newest_id(&self.rows, &self.days, until))
    }

    fn messages(&self, ids: Vec<MessageId>) -> Fut<'_, StoreResult<Vec<QueuedMessage>>> {
        Box::pin(async move {
            let sql = "SELECT id, content, size, accepted_at, tenant, data FROM message
                       WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id";
            let found = self
                .rows
                .select(
                    sql.into(),
                    vec![log::number_list(ids.iter().map(|id| id.as_i64()))],
                    &[
                        Kind::Int,
                        Kind::Text,
                        Kind::Int,
                        Kind::Int,
                        Kind::Text,
                        Kind::Text,
                    ],
                )
                .await?;
            found
                .iter()
                .map(|row| {
                    codec::queued_message(
                        row.int(0)?,
                        row.text(1)?.to_owned(),
                        row.int(2)?,
                        row.int(3)?,
                        row.text(4)?,
                        row.text(5)?,
                    )
                })
                .collect()
        })
    }

    fn recipients(&self, id: MessageId) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>> {
        Box::pin(async move {
            let id = id.as_i64();
            self.page((id, -1), id, u32::MAX).await
        })
    }

    fn content(&self, message: &QueuedMessage) -> Arc<dyn ContentReader> {
        Arc::new(SegmentReader::new(
            self.segments.clone(),
            record::from_ref(&message.content.0),
            message.size,
        ))
    }

    fn owing(&self, max: u32) -> Fut<'_, StoreResult<Vec<(RecipientId, Owes)>>> {
        Box::pin(async move {
            let sql = "SELECT message, idx, owes FROM recipient WHERE owes > 0
                       ORDER BY message, idx LIMIT $1";
            let args = vec![Value::Int(i64::from(max.max(1)))];
            let kinds = &[Kind::Int, Kind::Int, Kind::Int];
            let found = self.rows.select(sql.into(), args, kinds).await?;
            found
                .iter()
                .map(|row| {
                    let id = RecipientId {
                        message: MessageId::from_i64(row.int(0)?),
                        index: row.int(1)? as u32,
                    };
                    Ok((id, codec::owes(row.int(2)?)?))
                })
                .collect()
        })
    }

    fn events(&self, after: u64, max: u32) -> Fut<'_, StoreResult<Vec<EventRecord>>> {
        Box::pin(async move {
            // A number that was handed out must not come back for another event after a
            // crash, so only synced events are shown.
            if Tally::get(&self.tally.synced) < Tally::get(&self.tally.committed) {
                self.gate().ask(Op::Sync).await?;
            }
            log::events(&self.rows, &self.days, after, max).await
        })
    }

    fn search(&self, query: LogQuery) -> Fut<'_, StoreResult<Vec<LogEntry>>> {
        Box::pin(log::search(&self.rows, &self.days, query))
    }

    fn sweep(&self, keep_from: Timestamp) -> Fut<'_, StoreResult<SweepReport>> {
        Box::pin(self.gate().ask(move |answer| Op::Sweep(keep_from, answer)))
    }

    fn counts(&self) -> Fut<'_, StoreResult<StoreCounts>> {
        Box::pin(async move {
            let sql = "SELECT count(*) FROM recipient WHERE owes > 0";
            let owing = self
                .rows
                .select(sql.into(), Vec::new(), &[Kind::Int])
                .await?;
            Ok(StoreCounts {
                messages: Tally::get(&self.tally.messages),
                recipients: Tally::get(&self.tally.recipients),
                owing: owing.first().map_or(Ok(0), |row| row.int(0))? as u64,
                commits: Tally::get(&self.tally.commits),
                syncs: Tally::get(&self.tally.syncs),
            })
        })
    }

    fn discard(&self, content: Content) {
        if let Content::Spooled { at, .. } = content {
            self.segments.discard(&at);
        }
    }

    fn close(&self) -> Fut<'_, ()> {
        Box::pin(async move {
            // The last to leave empties the write-ahead log, which only the writer may do. A
            // read of somebody who is gone must not hold up the stop for long.
            let _ = tokio::time::timeout(READERS_GO, self.rows.readers.close()).await;
            // An error says that the store has failed or is closed: nothing is left to do.
            let _ = self.gate().ask(Op::Close).await;
        })
    }

    crate::registry::store_methods!();
}

impl Registry for SqliteStore {
    crate::registry::registry_methods!();
}
