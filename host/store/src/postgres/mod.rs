//! The store in PostgreSQL: for a database that is already looked after, and as the
//! ground on which several gateways can share a queue.
//!
//! Ownership is by shard: this gateway takes all shards when it opens the database and
//! raises their epochs. Every transaction of the one writer names the epochs it relies on and
//! locks those rows against a change, so once another gateway has taken over this one changes
//! nothing any more. (A content that streams in is nobody's before a message claims it.)

mod content;
mod open;
mod rows;
mod statements;
mod writer;

use std::sync::Arc;

use bytes::Bytes;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tidegate_mail::{MessageId, Owes, Promise, RecipientId, Timestamp};
use tidegate_queue::directory::{Credential, Relay, Server, Tenant, Token};
use tidegate_queue::measure::Measure;
use tidegate_queue::*;

use crate::codec::{self, Interner, StoredRecipient, parse};
use crate::gate::{Failure, Gate, Op, Tally};
use crate::log::{self, Days};
use crate::registry;
use crate::rows::{Kind, Rows, Value};
use crate::writer::Refusal;

pub(crate) use open::probe;

use content::{BodyReader, BodyWriter, Uploads, body_id};
use rows::PgRows;

/// See the module.
pub struct PgStore {
    rows: PgRows,
    uploads: Arc<Uploads>,
    tally: Arc<Tally>,
    failure: Arc<Failure>,
    days: Arc<Days>,
    epochs: Arc<[u64]>,
}

/// What an error means for the batch it struck.
pub(crate) fn refuse(error: &sqlx::Error) -> Refusal {
    let code = match error {
        sqlx::Error::Database(database) => database.code(),
        _ => None,
    };
    match code.as_deref() {
        Some("23505") => Refusal::Blame(StoreError::Conflict(format!(
            "it is in the queue or the log already: {error}"
        ))),
        // Class 22: a value that no column can hold. The others of its batch can be stored.
        Some(code) if code.starts_with("22") => Refusal::Blame(StoreError::Conflict(format!(
            "PostgreSQL can't store it: {error}"
        ))),
        // Class 53: insufficient resources; 53100 is a full disk.
        Some(code) if code.starts_with("53") => Refusal::Batch(StoreError::Full(error.to_string())),
        Some(_) => Refusal::Batch(StoreError::Failed(format!("PostgreSQL: {error}"))),
        None => Refusal::Batch(StoreError::Failed(format!(
            "PostgreSQL can't be reached: {error}"
        ))),
    }
}

pub(crate) fn read_error(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            StoreError::Damaged(error.to_string())
        }
        other => refuse(&other).error(),
    }
}

const RECIPIENT_COLUMNS: &str = "message, idx, shard, tenant, domain, promise, due, done, attempts, \
     accepted_at, expires_at, owes, delay_reported, last";

impl PgStore {
    fn gate(&self) -> &Gate {
        &self.rows.gate
    }

    /// A settlement under an epoch that this gateway never held or holds no more. The
    /// transaction checks again, against the database.
    fn fence(&self, settlements: &[Settlement]) -> StoreResult<()> {
        let stale = settlements
            .iter()
            .find(|s| self.epochs.get(usize::from(s.shard)) != Some(&s.epoch));
        match stale {
            Some(stale) => Err(StoreError::Fenced(stale.shard)),
            None => Ok(()),
        }
    }

    async fn page(
        &self,
        after: (i64, i64),
        until: i64,
        max: i64,
    ) -> StoreResult<Vec<QueuedRecipient>> {
        let sql = format!(
            "SELECT {RECIPIENT_COLUMNS} FROM recipient
             WHERE (message, idx) > ($1, $2) AND message <= $3
             ORDER BY message, idx LIMIT $4"
        );
        let found = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(after.0)
            .bind(after.1)
            .bind(until)
            .bind(max)
            .fetch_all(&self.rows.pool)
            .await
            .map_err(read_error)?;
        let promises = self.promises().await?;
        let mut names = Interner::default();
        found
            .iter()
            .map(|row| recipient(row, &promises)?.decode(&mut names))
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

fn recipient<'r>(
    row: &'r PgRow,
    promises: &std::collections::HashMap<i64, Arc<Promise>>,
) -> StoreResult<StoredRecipient<'r>> {
    let int = |at: usize| row.try_get::<i64, _>(at).map_err(read_error);
    let promise = int(5)?;
    Ok(StoredRecipient {
        message: int(0)?,
        index: int(1)?,
        shard: int(2)?,
        tenant: row.try_get(3).map_err(read_error)?,
        domain: row.try_get(4).map_err(read_error)?,
        promise: promises
            .get(&promise)
            .cloned()
            .ok_or_else(|| StoreError::Damaged(format!("no promise {promise}")))?,
        due: row.try_get(6).map_err(read_error)?,
        done: int(7)?,
        attempts: int(8)?,
        accepted_at: int(9)?,
        expires_at: int(10)?,
        owes: int(11)?,
        delay_reported: int(12)?,
        last: row.try_get(13).map_err(read_error)?,
    })
}

impl Store for PgStore {
    /// The server answers for what is on its disk; when it is back, so are we.
    fn recovers(&self) -> bool {
        true
    }

    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>> {
        Box::pin(async move {
            if let Some(error) = self.failure.get() {
                return Err(error);
            }
            let writer: Box<dyn ContentWriter> =
                Box::new(BodyWriter::new(self.rows.pool.clone(), self.uploads.clone()).await?);
            Ok(writer)
        })
    }

    fn accept(&self, message: NewMessage) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move {
            self.fence(&message.pays)?;
            let spooled = match &message.content {
                Content::Spooled { .. } => Some(message.content.clone()),
                Content::Memory(_) => None,
            };
            let item = codec::accept_item(message)?;
            let unused = spooled.filter(|_| item.message.is_none());
            self.gate().commit(item).await?;
            if let Some(content) = unused {
                self.discard(content);
            }
            Ok(())
        })
    }

    fn settle(&self, settlements: Vec<Settlement>) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move {
            self.fence(&settlements)?;
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
            let max = i64::from(max.clamp(1, 50_000));
            self.page(after, i64::MAX, max).await
        })
    }

    fn newest_id(&self, until: Timestamp) -> Fut<'_, StoreResult<Option<MessageId>>> {
        Box::pin(log::newest_id(&self.rows, &self.days, until))
    }

    fn messages(&self, ids: Vec<MessageId>) -> Fut<'_, StoreResult<Vec<QueuedMessage>>> {
        Box::pin(async move {
            let ids: Vec<i64> = ids.iter().map(|id| id.as_i64()).collect();
            let sql = "SELECT id, content, size, accepted_at, tenant, data FROM message
                       WHERE id = ANY($1) ORDER BY id";
            let found = sqlx::query(sql)
                .bind(ids)
                .fetch_all(&self.rows.pool)
                .await
                .map_err(read_error)?;
            found
                .iter()
                .map(|row| {
                    codec::queued_message(
                        row.try_get(0).map_err(read_error)?,
                        content::to_ref(row.try_get(1).map_err(read_error)?).0,
                        row.try_get(2).map_err(read_error)?,
                        row.try_get(3).map_err(read_error)?,
                        row.try_get(4).map_err(read_error)?,
                        row.try_get(5).map_err(read_error)?,
                    )
                })
                .collect()
        })
    }

    fn recipients(&self, id: MessageId) -> Fut<'_, StoreResult<Vec<QueuedRecipient>>> {
        Box::pin(async move { self.page((id.as_i64(), -1), id.as_i64(), i64::MAX).await })
    }

    fn content(&self, message: &QueuedMessage) -> Arc<dyn ContentReader> {
        Arc::new(BodyReader::new(
            self.rows.pool.clone(),
            body_id(&message.content),
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
        Box::pin(log::events(&self.rows, &self.days, after, max))
    }

    fn search(&self, query: LogQuery) -> Fut<'_, StoreResult<Vec<LogEntry>>> {
        Box::pin(log::search(&self.rows, &self.days, query))
    }

    fn sweep(&self, keep_from: Timestamp) -> Fut<'_, StoreResult<SweepReport>> {
        Box::pin(async move {
            for id in self.uploads.stale() {
                content::remove(&self.rows.pool, id).await;
            }
            let mut report = self
                .gate()
                .ask(move |answer| Op::Sweep(keep_from, answer))
                .await?;
            let sql = "SELECT coalesce(sum(size), 0)::bigint FROM message";
            let held = self
                .rows
                .select(sql.into(), Vec::new(), &[Kind::Int])
                .await?;
            report.content_bytes_held = held.first().map_or(Ok(0), |row| row.int(0))? as u64;
            Ok(report)
        })
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

    fn epoch(&self, shard: u16) -> u64 {
        self.epochs.get(usize::from(shard)).copied().unwrap_or(0)
    }

    fn discard(&self, content: Content) {
        if let Content::Spooled { at, .. } = content
            && let Ok(id) = body_id(&at)
            && self.uploads.claim(id)
        {
            let pool = self.rows.pool.clone();
            tokio::spawn(async move { content::remove(&pool, id).await });
        }
    }

    fn close(&self) -> Fut<'_, ()> {
        Box::pin(async move {
            // An error says that the store has failed or is closed: nothing is left to do.
            let _ = self.gate().ask(Op::Close).await;
            self.rows.pool.close().await;
        })
    }

    crate::registry::store_methods!();
}

impl Registry for PgStore {
    crate::registry::registry_methods!();
}
