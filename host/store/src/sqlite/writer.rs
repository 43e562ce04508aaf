//! A batch in SQLite.
//!
//! Contents are written and synced by the loader's thread while SQLite runs the
//! statements; the commit is asked for once the contents are written, and calls are
//! answered once both are on stable storage. So a row can outlive its content only if the
//! machine stops between the two, and then it belongs to the last batch, which the next
//! start verifies. A notice that pays a debt must not be dropped so, for the debt is gone
//! with its commit: a batch with one in it is committed only after its contents are synced.
//!
//! A batch of settlements alone is committed without a sync of its own; it becomes
//! durable with the next one. The first batch that finds such a commit older than
//! `sync_interval` is synced; if none comes the writer syncs by itself. Space that they
//! freed is not used again before that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection, Executor, Row as _};
use tidegate_mail::{Promise, Timestamp};
use tidegate_queue::{Content, StoreError, SweepReport};

use super::content::{Load, Loader, Synced};
use super::encode::{self, Batch, Param};
use super::record::{Piece, to_ref};
use super::rows::{bind_value, run};
use super::segments::{Segments, fault, pieces_of};
use super::{Reach, classify};
use crate::codec::{Contradiction, Item};
use crate::gate::Tally;
use crate::log::Days;
use crate::rows::Stmt;
use crate::writer::{Backend, Refusal};

pub(crate) struct SqliteWriter {
    pub conn: SqliteConnection,
    pub segments: Arc<Segments>,
    pub loader: Loader,
    pub tally: Arc<Tally>,
    pub days: Arc<Days>,
    pub promises: HashMap<Arc<Promise>, i64>,
    pub next_promise: i64,
    pub next_seq: u64,
    pub sync_interval: Duration,
    /// Whether the connection syncs at a commit now.
    pub syncing: bool,
    /// When the first commit was made that no sync has followed, or its sync failed.
    pub unsynced: Option<Instant>,
    /// Freed by commits that are not synced yet.
    pub to_free: Vec<Piece>,
    /// Held for as long as the database is open.
    pub lock: std::fs::File,
}

impl SqliteWriter {
    /// Reserves the space of all new contents; claims those that were streamed in.
    async fn place(&self, items: &[Item]) -> Result<Placed, StoreError> {
        let most = self.segments.max_record();
        let mut placed = Placed::default();
        let mut lengths: Vec<u32> = Vec::new();
        for item in items {
            if let Some(message) = &item.message
                && let Content::Memory(bytes) = &message.content
            {
                let mut left = bytes.len();
                loop {
                    let length = left.min(most);
                    lengths.push(length as u32);
                    left -= length;
                    if left == 0 {
                        break;
                    }
                }
            }
        }
        placed.fresh = self.segments.reserve(&lengths).await?;
        let mut fresh = placed.fresh.iter();
        for message in items.iter().filter_map(|item| item.message.as_ref()) {
            match &message.content {
                Content::Memory(bytes) => {
                    let parts = bytes.len().div_ceil(most).max(1);
                    let pieces: Vec<Piece> = fresh.by_ref().take(parts).copied().collect();
                    placed.refs.push(to_ref(&pieces).0);
                    let mut rest = bytes.clone();
                    for (part, piece) in pieces.iter().enumerate() {
                        let data = rest.split_to(piece.length as usize);
                        let segments = &self.segments;
                        placed
                            .load
                            .add(segments, piece, message.id, part as u32, data)
                            .map_err(|e| fault("content", &e))?;
                    }
                }
                Content::Spooled { at, .. } => {
                    let pieces = match self.segments.claim(at) {
                        Ok(pieces) => pieces,
                        Err(error) => {
                            placed.undo(&self.segments);
                            return Err(error);
                        }
                    };
                    placed
                        .load
                        .also_sync(&self.segments, &pieces)
                        .map_err(|e| fault("content", &e))?;
                    placed.refs.push(at.0.clone());
                    placed.claimed.push(pieces);
                }
            }
        }
        Ok(placed)
    }

    async fn write(&mut self, items: &[Item], refs: &[String], load: Load) -> Result<(), Refusal> {
        let batch = encode::encode(
            items,
            refs,
            &self.promises,
            self.next_promise,
            self.next_seq,
        );
        let batch = match batch {
            Ok(Ok(batch)) => batch,
            Ok(Err(Contradiction)) => {
                return Err(Refusal::Blame(StoreError::Conflict(
                    "a recipient that has left the queue is settled again".into(),
                )));
            }
            Err(error) => return Err(Refusal::Batch(error)),
        };
        let sync = !load.is_empty() || items.iter().any(Item::needs_sync) || self.is_overdue();
        let loading = (!load.is_empty()).then(|| self.loader.begin(load));
        self.make_days(items).await?;
        self.set_sync(sync).await?;
        let freed = match self.run_batch(&batch).await {
            Ok(freed) => freed,
            Err(refusal) => {
                self.roll_back().await;
                return Err(refusal);
            }
        };
        let mut synced = match loading {
            None => None,
            Some((written, synced)) => {
                let written = written
                    .await
                    .unwrap_or_else(|_| Err(std::io::Error::other("the content thread has ended")));
                if let Err(error) = written {
                    self.roll_back().await;
                    return Err(match fault("content", &error) {
                        StoreError::Failed(why) => Refusal::Fatal(why),
                        error => Refusal::Batch(error),
                    });
                }
                Some(synced)
            }
        };
        if items.iter().any(Item::pays)
            && let Some(synced) = synced.take()
            && let Err(refusal) = self.contents_synced(synced).await
        {
            self.roll_back().await;
            return Err(refusal);
        }
        if let Err(error) = run(&mut self.conn, "COMMIT").await {
            self.roll_back().await;
            return Err(refuse(&error));
        }
        if let Some(synced) = synced {
            self.contents_synced(synced).await?;
        }
        self.note(batch, freed, sync);
        Ok(())
    }

    async fn contents_synced(&self, synced: Synced) -> Result<(), Refusal> {
        let result = synced
            .await
            .unwrap_or_else(|_| Err(std::io::Error::other("the content thread has ended")));
        match result {
            Ok(syncs) => {
                Tally::add(&self.tally.syncs, syncs);
                Ok(())
            }
            Err(error) => Err(Refusal::Fatal(format!("sync of contents: {error}"))),
        }
    }

    /// Takes note of a batch that was committed.
    fn note(&mut self, batch: Batch, freed: Vec<String>, sync: bool) {
        let tally = &self.tally;
        Tally::add(&tally.commits, 1);
        Tally::add(&tally.messages, batch.messages);
        Tally::add(&tally.recipients, batch.recipients);
        Tally::sub(&tally.messages, freed.len() as u64);
        Tally::sub(&tally.recipients, batch.removals);
        for (day, first, last) in &batch.days {
            self.days.note(*day, *first, *last);
        }
        self.next_seq = batch.next_seq;
        self.next_promise += batch.new_promises.len() as i64;
        self.promises.extend(batch.new_promises);
        use std::sync::atomic::Ordering::Relaxed;
        tally.committed.store(self.next_seq - 1, Relaxed);
        match pieces_of(freed.iter()) {
            Ok(pieces) => self.to_free.extend(pieces),
            Err(error) => tracing::error!(%error, "space of a message can't be freed"),
        }
        if sync {
            self.note_sync();
        } else {
            self.unsynced.get_or_insert_with(Instant::now);
        }
    }

    fn is_overdue(&self) -> bool {
        self.unsynced
            .is_some_and(|since| since.elapsed() >= self.sync_interval)
    }

    fn note_sync(&mut self) {
        Tally::add(&self.tally.syncs, 1);
        self.unsynced = None;
        use std::sync::atomic::Ordering::Relaxed;
        self.tally.synced.store(self.next_seq - 1, Relaxed);
        let pieces = std::mem::take(&mut self.to_free);
        self.segments.release(&pieces);
    }

    /// Runs all statements but the commit. Returns the contents that were freed.
    async fn run_batch(&mut self, batch: &Batch) -> Result<Vec<String>, Refusal> {
        let mut query = sqlx::query(AssertSqlSafe(batch.sql.as_str()));
        for param in &batch.params {
            query = match param {
                Param::Text(text) => query.bind(text.clone()),
                Param::Blob(blob) => query.bind(blob.clone()),
            };
        }
        let rows: Vec<SqliteRow> = (&mut self.conn)
            .fetch_all(query)
            .await
            .map_err(|e| refuse(&e))?;
        let mut freed = Vec::new();
        let (mut changed, mut removed) = (0, 0);
        for row in rows {
            match row.get::<i64, _>(0) {
                1 => changed = row.get::<i64, _>(1) as u64,
                2 => removed = row.get::<i64, _>(1) as u64,
                _ => freed.push(row.get::<String, _>(2)),
            }
        }
        if changed != batch.changes || removed != batch.removals {
            return Err(Refusal::Blame(StoreError::Conflict(
                "a recipient to be settled is not in the queue".into(),
            )));
        }
        Ok(freed)
    }

    async fn make_days(&mut self, items: &[Item]) -> Result<(), Refusal> {
        let mut missing: Vec<u32> = items
            .iter()
            .flat_map(|item| {
                let mail = item.mail.as_ref().map(|mail| mail.day);
                mail.into_iter().chain(item.events.iter().map(|e| e.day))
            })
            .filter(|day| !self.days.contains(*day))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for day in missing {
            let sql = format!("BEGIN IMMEDIATE; {} COMMIT;", encode::create_day(day));
            if let Err(error) = run(&mut self.conn, sql).await {
                self.roll_back().await;
                return Err(refuse(&error));
            }
            self.days.put(day, Default::default());
        }
        Ok(())
    }

    async fn set_sync(&mut self, sync: bool) -> Result<(), Refusal> {
        if self.syncing != sync {
            let sql = if sync {
                "PRAGMA synchronous = FULL"
            } else {
                "PRAGMA synchronous = NORMAL"
            };
            run(&mut self.conn, sql).await.map_err(|e| refuse(&e))?;
            self.syncing = sync;
        }
        Ok(())
    }

    async fn roll_back(&mut self) {
        // "No transaction is active" where SQLite has rolled back by itself.
        let _ = run(&mut self.conn, "ROLLBACK").await;
    }

    async fn try_execute(&mut self, statements: Vec<Stmt>) -> Result<Vec<u64>, Refusal> {
        self.set_sync(true).await?;
        let mut counts = Vec::with_capacity(statements.len());
        run(&mut self.conn, "BEGIN IMMEDIATE")
            .await
            .map_err(|e| refuse(&e))?;
        for statement in statements {
            let mut query = sqlx::query(AssertSqlSafe(statement.sql.into_owned()));
            for value in statement.args {
                query = bind_value(query, value);
            }
            let done = (&mut self.conn)
                .execute(query)
                .await
                .map_err(|e| refuse(&e))?;
            counts.push(done.rows_affected());
        }
        run(&mut self.conn, "COMMIT")
            .await
            .map_err(|e| refuse(&e))?;
        Ok(counts)
    }

    /// Forgets the promises that no recipient has any more.
    async fn drop_promises(&mut self) -> Result<(), Refusal> {
        self.execute(vec![Stmt::new(
            "DELETE FROM promise WHERE id NOT IN (SELECT promise FROM recipient)",
            Vec::new(),
        )])
        .await?;
        self.promises = super::load_promises(&mut self.conn)
            .await
            .map_err(Refusal::Batch)?
            .into_iter()
            .map(|(id, promise)| (promise, id))
            .collect();
        Ok(())
    }
}

impl Backend for SqliteWriter {
    async fn attempt(&mut self, items: &[Item]) -> Result<(), Refusal> {
        let mut placed = self.place(items).await.map_err(|error| match error {
            StoreError::Failed(why) => Refusal::Fatal(why),
            error @ StoreError::Full(_) => Refusal::Batch(error),
            error => Refusal::Blame(error),
        })?;
        let load = std::mem::take(&mut placed.load);
        let done = self.write(items, &placed.refs, load).await;
        match &done {
            Ok(()) => {}
            // What reached the disk is unknown: the space stays taken.
            Err(Refusal::Fatal(_)) => {}
            Err(Refusal::Blame(_)) if items.len() > 1 => placed.undo(&self.segments),
            Err(_) => placed.give_up(&self.segments),
        }
        done
    }

    /// If this fails too, the messages may be seen after a restart; nobody was told that
    /// they were accepted.
    async fn withdraw(&mut self, items: &[Item]) {
        for item in items {
            if let Some(mail) = &item.mail {
                let (id, day) = (mail.id, mail.day);
                let sql = format!(
                    "BEGIN IMMEDIATE; DELETE FROM message WHERE id = {id};
                     DELETE FROM recipient WHERE message = {id};
                     DELETE FROM mail_{day} WHERE id = {id};
                     DELETE FROM event_{day} WHERE message = {id}; COMMIT;"
                );
                if run(&mut self.conn, sql).await.is_err() {
                    self.roll_back().await;
                }
            }
        }
    }

    async fn execute(&mut self, statements: Vec<Stmt>) -> Result<Vec<u64>, Refusal> {
        match self.try_execute(statements).await {
            Ok(counts) => {
                Tally::add(&self.tally.commits, 1);
                self.note_sync();
                Ok(counts)
            }
            Err(refusal) => {
                self.roll_back().await;
                Err(refusal)
            }
        }
    }

    fn idle(&self) -> Option<Duration> {
        self.unsynced
            .map(|since| self.sync_interval.saturating_sub(since.elapsed()))
    }

    /// By a small commit that is synced, and with it all before it.
    async fn sync(&mut self) -> Result<(), Refusal> {
        if self.unsynced.is_none() {
            return Ok(());
        }
        let beat = Stmt::new(
            "INSERT INTO meta (name, value) VALUES ('beat', '1') ON CONFLICT (name)
             DO UPDATE SET value = CAST(value + 1 AS TEXT)",
            Vec::new(),
        );
        let done = self.execute(vec![beat]).await;
        if done.is_err() {
            // Not again at once.
            self.unsynced = Some(Instant::now());
        }
        done.map(drop)
    }

    async fn sweep(&mut self, keep_from: Timestamp) -> Result<SweepReport, Refusal> {
        self.sync().await?;
        let mut report = SweepReport::default();
        for day in self.days.before(keep_from.day()) {
            let info = self.days.take(day).unwrap_or_default();
            let seq = self.next_seq;
            let mut statements: Vec<Stmt> = encode::drop_day(day)
                .split_inclusive(';')
                .filter(|sql| sql.contains("DROP"))
                .map(|sql| Stmt {
                    sql: sql.trim().to_owned().into(),
                    args: Vec::new(),
                })
                .collect();
            // Numbers go on where they were, also after a restart with an empty log.
            statements.push(Stmt::new(
                "INSERT INTO meta (name, value) VALUES ('seq', $1)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                vec![seq.to_string().into()],
            ));
            if let Err(error) = self.execute(statements).await {
                self.days.put(day, info);
                return Err(error);
            }
            report.log_days_dropped += 1;
        }
        if self.promises.len() > 1000 {
            self.drop_promises().await?;
        }
        let (freed, held) = self.segments.sweep();
        report.content_bytes_freed = freed;
        report.content_bytes_held = held;
        Ok(report)
    }

    async fn close(self) {
        // The lock is given up last, whatever the database says.
        let _ = self.conn.close().await;
        drop(self.lock);
    }
}

/// Where the contents of a batch go.
#[derive(Default)]
struct Placed {
    fresh: Vec<Piece>,
    claimed: Vec<Vec<Piece>>,
    refs: Vec<String>,
    load: Load,
}

impl Placed {
    /// The batch is tried again: streamed contents can be claimed again.
    fn undo(self: &mut Placed, segments: &Segments) {
        segments.release(&self.fresh);
        for pieces in self.claimed.drain(..) {
            segments.unclaim(pieces);
        }
    }

    /// The callers are refused: all space is given back.
    fn give_up(self: &mut Placed, segments: &Segments) {
        segments.release(&self.fresh);
        for pieces in self.claimed.drain(..) {
            segments.release(&pieces);
        }
    }
}

fn refuse(error: &sqlx::Error) -> Refusal {
    match classify(error) {
        Reach::Constraint => Refusal::Blame(StoreError::Conflict(format!(
            "it is in the queue or the log already: {error}"
        ))),
        Reach::Full => Refusal::Batch(StoreError::Full(error.to_string())),
        Reach::Busy => Refusal::Batch(StoreError::Busy(format!(
            "another program has locked the database: {error}"
        ))),
        Reach::Broken => Refusal::Fatal(error.to_string()),
    }
}
