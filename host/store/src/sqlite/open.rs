//! Opening: the lock, the migrations, what is read back, and what a crash left.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row as _};
use tidegate_mail::MessageId;
use tidegate_queue::{StoreError, StoreResult};

use super::content::Loader;
use super::record::{self, Piece, from_ref};
use super::rows::{SqliteRows, run};
use super::segments::{Segments, fault, pieces_of};
use super::writer::SqliteWriter;
use super::{SqliteStore, load_promises, read_error};
use crate::gate::{Failure, Gate, Tally};
use crate::log::{Day, Days};
use crate::writer::Writer;
use crate::{Options, migrate};

/// The first SQLite in which a reset of the WAL cannot corrupt the database.
const MIN_SQLITE: i32 = 3_051_003;
/// How long an opener waits for the last owner to go.
const LOCK_WAIT: Duration = Duration::from_secs(2);

impl SqliteStore {
    /// Opens or makes the store in `dir`: `queue.db` and `segments/`.
    ///
    /// # Errors
    /// `Conflict` if another gateway has it open or it was made by a newer version,
    /// `Full` without room for the first segment, `Damaged` if it can't be read,
    /// `Failed` for anything else that the file system says.
    pub async fn open(dir: &Path, options: Options) -> StoreResult<Arc<Self>> {
        let opened = SqliteStore::open_in(dir, options).await;
        opened.map_err(|error| with_remedy(&dir.join("queue.db"), error))
    }

    async fn open_in(dir: &Path, options: Options) -> StoreResult<Arc<Self>> {
        // SAFETY: takes no arguments and only returns a constant of the linked library.
        let version = unsafe { libsqlite3_sys::sqlite3_libversion_number() };
        if version < MIN_SQLITE {
            return Err(StoreError::Failed(format!(
                "SQLite {version} is too old: 3.51.3 or newer is needed (older ones can corrupt a database in WAL mode)"
            )));
        }
        std::fs::create_dir_all(dir).map_err(|e| fault(&dir.display().to_string(), &e))?;
        let lock = lock(dir).await?;
        let path = dir.join("queue.db");
        super::wal::examine(&path).map_err(|e| fault("the write-ahead log", &e))?;
        let base = SqliteConnectOptions::new()
            .filename(&path)
            .foreign_keys(false)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(256)
            .pragma("temp_store", "memory")
            .disable_statement_logging();
        let mut conn = base
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", "4000")
            .pragma("cache_size", "-8000")
            .connect()
            .await
            .map_err(|e| open_error(&path, &e))?;
        migrate::sqlite(&mut conn).await?;
        if let Some(limit) = options.max_database_bytes {
            let sql = format!("PRAGMA max_page_count = {}", (limit / 4096).max(64));
            run(&mut conn, sql).await.map_err(read_error)?;
        }

        let days = Arc::new(Days::default());
        let last_seq = load_days(&mut conn, &days).await?;
        let live = load_contents(&mut conn).await?;
        let content_dir = dir.join("segments");
        let segments = Segments::open(
            content_dir,
            options.disk.clone(),
            options.segment_bytes,
            options.max_content_bytes,
            &live,
        )?;
        let boot: Option<String> = meta(&mut conn, "boot").await?;
        if options.boot.is_empty() || boot.as_ref() != Some(&options.boot) {
            drop_unwritten(&mut conn, &segments).await?;
            note_boot(&mut conn, &options.boot).await;
        }
        let promises = load_promises(&mut conn).await?;
        let tally = Arc::new(Tally::default());
        let (messages, recipients) = count(&mut conn).await?;
        tally.messages.store(messages, Relaxed);
        tally.recipients.store(recipients, Relaxed);
        tally.committed.store(last_seq, Relaxed);
        tally.synced.store(last_seq, Relaxed);

        let readers = SqlitePoolOptions::new()
            .max_connections(3)
            .min_connections(1)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(base.read_only(true))
            .await
            .map_err(read_error)?;
        let failure = Arc::new(Failure::default());
        let (gate, ops) = Gate::new(failure.clone());
        let writer = SqliteWriter {
            conn,
            segments: segments.clone(),
            loader: Loader::start(options.disk.clone())?,
            tally: tally.clone(),
            days: days.clone(),
            next_promise: promises.iter().map(|(id, _)| id + 1).max().unwrap_or(1),
            promises: promises.into_iter().map(|(id, p)| (p, id)).collect(),
            next_seq: last_seq + 1,
            sync_interval: options.sync_interval,
            syncing: true,
            unsynced: None,
            to_free: Vec::new(),
            lock,
        };
        tokio::spawn(Writer::new(writer, failure.clone()).serve(ops));
        Ok(Arc::new(SqliteStore {
            rows: SqliteRows { readers, gate },
            segments,
            tally,
            failure,
            days,
        }))
    }
}

fn open_error(path: &Path, error: &sqlx::Error) -> StoreError {
    StoreError::Failed(format!("can't open {}: {error}", path.display()))
}

/// SQLite's words for a damaged database say nothing of what to do.
pub(crate) fn with_remedy(path: &Path, error: StoreError) -> StoreError {
    let said = error.to_string();
    let damaged = ["file is not a database", "disk image is malformed"];
    if !damaged.iter().any(|words| said.contains(words)) {
        return error;
    }
    StoreError::Damaged(format!(
        "{} is damaged ({said}): keep a copy of its directory, then restore it from a backup, or save what can be read with \"sqlite3 queue.db .recover\"",
        path.display()
    ))
}

/// Takes the directory for this process. The lock goes with the file handle.
async fn lock(dir: &Path) -> StoreResult<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| fault(&path.display().to_string(), &e))?;
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(20);
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(fault(&path.display().to_string(), &error.into()));
        }
        if waited >= LOCK_WAIT {
            return Err(StoreError::Conflict(format!(
                "another gateway has {} open; stop it first, or give this one a directory of its own",
                dir.display()
            )));
        }
        tokio::time::sleep(step).await;
        waited += step;
    }
    Ok(file)
}

/// The days with tables, and the highest event number ever given.
async fn load_days(conn: &mut SqliteConnection, days: &Days) -> StoreResult<u64> {
    let sql = "SELECT CAST(substr(name, 7) AS INTEGER) FROM sqlite_schema
               WHERE type = 'table' AND name GLOB 'event_[0-9]*'";
    let names = conn.fetch_all(sqlx::query(sql)).await.map_err(read_error)?;
    let mut last_seq = 0;
    for row in names {
        let day: i64 = row.try_get(0).map_err(read_error)?;
        let sql = format!(
            "SELECT coalesce((SELECT min(seq) FROM event_{day}), 0),
                    coalesce((SELECT max(seq) FROM event_{day}), 0)"
        );
        let row = conn
            .fetch_one(sqlx::query(AssertSqlSafe(sql)))
            .await
            .map_err(read_error)?;
        let first = row.try_get::<i64, _>(0).map_err(read_error)? as u64;
        let last = row.try_get::<i64, _>(1).map_err(read_error)? as u64;
        days.put(day as u32, Day { first, last });
        last_seq = last_seq.max(last);
    }
    let kept: Option<String> = meta(conn, "seq").await?;
    let kept = kept.and_then(|seq| seq.parse::<u64>().ok()).unwrap_or(1);
    Ok(last_seq.max(kept.saturating_sub(1)))
}

async fn meta(conn: &mut SqliteConnection, name: &'static str) -> StoreResult<Option<String>> {
    let row = conn
        .fetch_optional(sqlx::query("SELECT value FROM meta WHERE name = $1").bind(name))
        .await
        .map_err(read_error)?;
    row.map(|row| row.try_get(0))
        .transpose()
        .map_err(read_error)
}

/// Where the contents of all queued messages lie.
async fn load_contents(conn: &mut SqliteConnection) -> StoreResult<Vec<Piece>> {
    let sql = "SELECT group_concat(content, ' ') FROM message";
    let row = conn.fetch_one(sqlx::query(sql)).await.map_err(read_error)?;
    let text: Option<&str> = row.try_get(0).map_err(read_error)?;
    pieces_of(text.unwrap_or("").split_ascii_whitespace())
}

async fn count(conn: &mut SqliteConnection) -> StoreResult<(u64, u64)> {
    let sql = "SELECT count(DISTINCT message), count(*) FROM recipient";
    let row = conn.fetch_one(sqlx::query(sql)).await.map_err(read_error)?;
    let messages: i64 = row.try_get(0).map_err(read_error)?;
    let recipients: i64 = row.try_get(1).map_err(read_error)?;
    Ok((messages as u64, recipients as u64))
}

async fn note_boot(conn: &mut SqliteConnection, boot: &str) {
    let sql = "INSERT INTO meta (name, value) VALUES ('boot', $1)
               ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    let noted = conn.execute(sqlx::query(sql).bind(boot.to_owned())).await;
    if let Err(error) = noted {
        // On a full disk; the next start looks at the last commit again.
        tracing::warn!(%error, "the run of the machine could not be noted");
    }
}

/// A crash of the machine can leave rows of the last commit whose contents did not reach the
/// disk. They were never acknowledged, so they are dropped. Any earlier content was synced before
/// the last commit began. A crash of the process alone leaves none, since what it wrote is the
/// system's: what can't be read then is damaged, and is told. So is the content of a file that
/// is missing as a whole: files are synced before their first record. A disk that gives an error
/// has not said that a record is not there, so its message stays and is deferred.
async fn drop_unwritten(conn: &mut SqliteConnection, segments: &Segments) -> StoreResult<()> {
    let sql = "SELECT id, content FROM message WHERE id IN
               (SELECT value FROM json_each((SELECT value FROM meta WHERE name = 'latest')))";
    let rows = conn.fetch_all(sqlx::query(sql)).await.map_err(read_error)?;
    let mut dropped = 0u32;
    for row in rows {
        let id: i64 = row.try_get(0).map_err(read_error)?;
        let content: String = row.try_get(1).map_err(read_error)?;
        let pieces = from_ref(&content)?;
        if !is_torn(segments, MessageId::from_i64(id), &pieces) {
            continue;
        }
        let day = crate::codec::log_day(MessageId::from_i64(id));
        let sql = format!(
            "BEGIN IMMEDIATE; DELETE FROM message WHERE id = {id};
             DELETE FROM recipient WHERE message = {id};
             DELETE FROM mail_{day} WHERE id = {id};
             DELETE FROM event_{day} WHERE message = {id}; COMMIT;"
        );
        run(conn, sql).await.map_err(read_error)?;
        segments.release(&pieces);
        dropped += 1;
    }
    if dropped > 0 {
        tracing::warn!(
            dropped,
            "messages of the last commit before the crash had no content on the disk; they were never acknowledged and are dropped"
        );
    }
    Ok(())
}

/// Whether a content did not reach the disk as a whole: blocking.
fn is_torn(segments: &Segments, message: MessageId, pieces: &[Piece]) -> bool {
    for piece in pieces {
        let Some(file) = segments.file(piece.segment) else {
            continue;
        };
        match record::read(&*segments.disk, &file, piece) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return true,
            Err(error) => {
                tracing::error!(%message, %error, "a content can't be read now; its message stays");
            }
        }
    }
    false
}
