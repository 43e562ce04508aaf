//! Contents in PostgreSQL: rows of 256 KiB.
//!
//! A content that came with its message has the message's id. One that was streamed in
//! before has a negative id of its own, known to [`Uploads`] until a message claims it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sqlx::postgres::PgPool;
use sqlx::{Executor, Row as _};
use tidegate_queue::{
    Content, ContentReader, ContentRef, ContentWriter, Fut, StoreError, StoreResult,
};

use super::{read_error, refuse};

/// Bytes in a row.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Rows written in one transaction by a stream.
const ROWS: usize = 4;
/// A content that was streamed in and not accepted for so long is given up.
const SPOOLED_FOR: Duration = Duration::from_secs(3600);

pub(crate) fn to_ref(id: i64) -> ContentRef {
    ContentRef(format!("body:{id}"))
}

pub(crate) fn body_id(at: &ContentRef) -> StoreResult<i64> {
    at.0.strip_prefix("body:")
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| StoreError::Damaged(format!("content reference {:?}", at.0)))
}

/// Streamed contents that no message has claimed.
#[derive(Default)]
pub(crate) struct Uploads(Mutex<HashMap<i64, Instant>>);

impl Uploads {
    pub fn put(&self, id: i64) {
        let mut known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        known.insert(id, Instant::now());
    }

    /// `false`: accepted already, or given up.
    pub fn claim(&self, id: i64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        known.remove(&id).is_some()
    }

    /// Takes out those that nobody claimed in an hour.
    pub fn stale(&self) -> Vec<i64> {
        let mut known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let old: Vec<i64> = known
            .iter()
            .filter(|(_, since)| since.elapsed() > SPOOLED_FOR)
            .map(|(id, _)| *id)
            .collect();
        for id in &old {
            known.remove(id);
        }
        old
    }
}

/// Removes a streamed content; what can't be removed now goes when the store is opened.
pub(crate) async fn remove(pool: &PgPool, id: i64) {
    let query = sqlx::query("DELETE FROM body WHERE id = $1").bind(id);
    if let Err(error) = query.execute(pool).await {
        tracing::warn!(id, %error, "a content that was given up is still in the database");
    }
}

pub(crate) struct BodyWriter {
    pool: PgPool,
    uploads: Arc<Uploads>,
    id: i64,
    pending: BytesMut,
    chunks: i64,
    size: u64,
    finished: bool,
}

impl BodyWriter {
    pub async fn new(pool: PgPool, uploads: Arc<Uploads>) -> StoreResult<Self> {
        let row = pool
            .fetch_one("SELECT nextval('upload_id')")
            .await
            .map_err(read_error)?;
        Ok(BodyWriter {
            pool,
            uploads,
            id: row.try_get(0).map_err(read_error)?,
            pending: BytesMut::new(),
            chunks: 0,
            size: 0,
            finished: false,
        })
    }

    /// Writes rows without waiting for a sync: the acceptance's commit comes later in
    /// the same log, so its sync covers these.
    async fn write(&mut self, data: Bytes) -> StoreResult<()> {
        let refused = |error: sqlx::Error| refuse(&error).error();
        let mut transaction = self.pool.begin().await.map_err(refused)?;
        transaction
            .execute("SET LOCAL synchronous_commit = off")
            .await
            .map_err(refused)?;
        for chunk in data.chunks(CHUNK) {
            let query = sqlx::query("INSERT INTO body (id, n, data) VALUES ($1, $2, $3)")
                .bind(self.id)
                .bind(self.chunks)
                .bind(chunk);
            transaction.execute(query).await.map_err(refused)?;
            self.chunks += 1;
        }
        transaction.commit().await.map_err(refused)
    }
}

impl ContentWriter for BodyWriter {
    fn append(&mut self, chunk: Bytes) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move {
            self.size += chunk.len() as u64;
            self.pending.extend_from_slice(&chunk);
            while self.pending.len() >= ROWS * CHUNK {
                let data = self.pending.split_to(ROWS * CHUNK).freeze();
                self.write(data).await?;
            }
            Ok(())
        })
    }

    fn finish(mut self: Box<Self>) -> Fut<'static, StoreResult<Content>> {
        Box::pin(async move {
            if !self.pending.is_empty() {
                let data = self.pending.split().freeze();
                self.write(data).await?;
            }
            self.finished = true;
            self.uploads.put(self.id);
            Ok(Content::Spooled {
                at: to_ref(self.id),
                size: self.size,
            })
        })
    }
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        if !self.finished
            && self.chunks > 0
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (pool, id) = (self.pool.clone(), self.id);
            runtime.spawn(async move { remove(&pool, id).await });
        }
    }
}

/// Reads a content; keeps the row that was read last.
pub(crate) struct BodyReader {
    pool: PgPool,
    id: StoreResult<i64>,
    size: u64,
    last: Mutex<Option<(i64, Bytes)>>,
}

impl BodyReader {
    pub fn new(pool: PgPool, id: StoreResult<i64>, size: u64) -> Self {
        BodyReader {
            pool,
            id,
            size,
            last: Mutex::new(None),
        }
    }

    async fn chunk(&self, n: i64) -> io::Result<Bytes> {
        {
            let last = self.last.lock().unwrap_or_else(|e| e.into_inner());
            if let Some((number, data)) = &*last
                && *number == n
            {
                return Ok(data.clone());
            }
        }
        let id = self.id.clone().map_err(io::Error::other)?;
        let row = sqlx::query("SELECT data FROM body WHERE id = $1 AND n = $2")
            .bind(id)
            .bind(n)
            .fetch_optional(&self.pool)
            .await
            .map_err(io::Error::other)?
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("content {id}: part {n} is missing"),
                )
            })?;
        let data: Vec<u8> = row.try_get(0).map_err(io::Error::other)?;
        let data = Bytes::from(data);
        *self.last.lock().unwrap_or_else(|e| e.into_inner()) = Some((n, data.clone()));
        Ok(data)
    }
}

impl ContentReader for BodyReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, max: usize) -> Fut<'_, io::Result<Bytes>> {
        Box::pin(async move {
            if offset >= self.size {
                return Ok(Bytes::new());
            }
            let data = self.chunk((offset / CHUNK as u64) as i64).await?;
            let from = (offset % CHUNK as u64) as usize;
            if from >= data.len() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a content is shorter than it was accepted",
                ));
            }
            Ok(data.slice(from..from.saturating_add(max).min(data.len())))
        })
    }
}
