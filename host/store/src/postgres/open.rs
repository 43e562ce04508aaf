//! Opening: what the server must promise, the migrations, taking the shards, and what is
//! read back.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row as _};
use tidegate_mail::Promise;
use tidegate_queue::{StoreError, StoreResult};

use super::content::Uploads;
use super::rows::PgRows;
use super::writer::PgWriter;
use super::{PgStore, read_error};
use crate::codec::parse;
use crate::gate::{Failure, Gate, Tally};
use crate::log::{Day, Days};
use crate::writer::Writer;
use crate::{Options, Probe, migrate};

pub(crate) const SHARDS: usize = 256;

impl PgStore {
    /// Opens the store at a `postgres://` URL, makes its tables if there are none, and
    /// takes all shards: a gateway that held them is fenced from then on.
    ///
    /// # Errors
    /// `Conflict` for a URL that is none, a server that does not sync its commits, a database
    /// that can't hold every character, or one of a newer version; `Failed` if the server
    /// can't be reached.
    pub async fn open(url: &str, options: Options) -> StoreResult<Arc<Self>> {
        let connect = options_of(url)?;
        let mut conn = connect.connect().await.map_err(read_error)?;
        check_durability(&mut conn).await?;
        check_encoding(&mut conn).await?;
        migrate::postgres(&mut conn).await?;
        let epochs = take_shards(&mut conn, &options.owner).await?;
        conn.execute(
            "DELETE FROM body WHERE id < 0
             AND NOT EXISTS (SELECT 1 FROM message WHERE message.content = body.id)",
        )
        .await
        .map_err(read_error)?;
        let days = Arc::new(Days::default());
        let last_seq = load_days(&mut conn, &days).await?;
        let promises = load_promises(&mut conn).await?;
        let row = conn
            .fetch_one("SELECT (SELECT count(*) FROM message), (SELECT count(*) FROM recipient)")
            .await
            .map_err(read_error)?;
        let tally = Arc::new(Tally::default());
        let number = |at| row.try_get::<i64, _>(at).map_err(read_error);
        tally.messages.store(number(0)? as u64, Relaxed);
        tally.recipients.store(number(1)? as u64, Relaxed);
        tally.committed.store(last_seq, Relaxed);
        tally.synced.store(last_seq, Relaxed);

        let pool = PgPoolOptions::new()
            .max_connections(6)
            .acquire_timeout(Duration::from_secs(10))
            .connect_with(connect.clone())
            .await
            .map_err(read_error)?;
        let failure = Arc::new(Failure::default());
        let (gate, ops) = Gate::new(failure.clone());
        let uploads = Arc::new(Uploads::default());
        let writer = PgWriter {
            connect,
            conn: Some(conn),
            epochs: epochs.clone(),
            uploads: uploads.clone(),
            tally: tally.clone(),
            days: days.clone(),
            next_promise: promises.iter().map(|(id, _)| id + 1).max().unwrap_or(1),
            promises: promises.into_iter().map(|(id, p)| (p, id)).collect(),
            next_seq: last_seq + 1,
            doubt: None,
            freed_bytes: 0,
        };
        tokio::spawn(Writer::new(writer, failure.clone()).serve(ops));
        Ok(Arc::new(PgStore {
            rows: PgRows { pool, gate },
            uploads,
            tally,
            failure,
            days,
            epochs,
        }))
    }
}

fn options_of(url: &str) -> StoreResult<PgConnectOptions> {
    Ok(url
        .parse::<PgConnectOptions>()
        .map_err(|e| StoreError::Conflict(format!("the database URL is not valid: {e}")))?
        .application_name("tidegate")
        .disable_statement_logging())
}

/// A look at the database at a `postgres://` URL; its owner goes on undisturbed.
pub(crate) async fn probe(url: &str) -> StoreResult<Probe> {
    let mut conn = options_of(url)?.connect().await.map_err(read_error)?;
    check_durability(&mut conn).await?;
    let found = crate::probe::postgres(&mut conn).await;
    // What was asked for is known: how the session ends changes nothing.
    let _ = conn.close().await;
    found
}

async fn setting(conn: &mut PgConnection, name: &'static str) -> StoreResult<String> {
    let row = conn
        .fetch_one(sqlx::query("SELECT current_setting($1)").bind(name))
        .await
        .map_err(read_error)?;
    row.try_get(0).map_err(read_error)
}

/// A 250 means "on stable storage": a server that says so without syncing won't do.
async fn check_durability(conn: &mut PgConnection) -> StoreResult<()> {
    for name in ["fsync", "synchronous_commit"] {
        if setting(conn, name).await? == "off" {
            return Err(StoreError::Conflict(format!(
                "PostgreSQL runs with {name} = off: accepted mail could be lost in a crash; set {name} = on (in postgresql.conf, or for this database or role)"
            )));
        }
    }
    Ok(())
}

/// Mail and replies hold characters of any script: a text that can't be stored would be refused
/// with its message, or its attempt be made again.
async fn check_encoding(conn: &mut PgConnection) -> StoreResult<()> {
    let encoding = setting(conn, "server_encoding").await?;
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(StoreError::Conflict(format!(
        "the PostgreSQL database has the encoding {encoding}, which can't hold every character: make one with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
    )))
}

async fn take_shards(conn: &mut PgConnection, owner: &str) -> StoreResult<Arc<[u64]>> {
    let sql = "UPDATE shard SET owner = $1, epoch = epoch + 1, lease_until = NULL
               RETURNING id, epoch";
    let rows = conn
        .fetch_all(sqlx::query(sql).bind(owner))
        .await
        .map_err(read_error)?;
    let mut epochs = vec![0u64; SHARDS];
    for row in rows {
        let id: i64 = row.try_get(0).map_err(read_error)?;
        let epoch: i64 = row.try_get(1).map_err(read_error)?;
        if let Some(slot) = epochs.get_mut(id as usize) {
            *slot = epoch as u64;
        }
    }
    Ok(epochs.into())
}

async fn load_days(conn: &mut PgConnection, days: &Days) -> StoreResult<u64> {
    let sql = "SELECT substr(tablename, 7)::bigint FROM pg_tables
               WHERE schemaname = current_schema() AND tablename ~ '^event_[0-9]+$'";
    let names = conn.fetch_all(sql).await.map_err(read_error)?;
    let mut last_seq = 0;
    for row in names {
        let day: i64 = row.try_get(0).map_err(read_error)?;
        let sql = format!("SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM event_{day}");
        let row = conn
            .fetch_one(sqlx::query(AssertSqlSafe(sql)))
            .await
            .map_err(read_error)?;
        let first = row.try_get::<i64, _>(0).map_err(read_error)? as u64;
        let last = row.try_get::<i64, _>(1).map_err(read_error)? as u64;
        days.put(day as u32, Day { first, last });
        last_seq = last_seq.max(last);
    }
    let kept = conn
        .fetch_optional("SELECT value FROM meta WHERE name = 'seq'")
        .await
        .map_err(read_error)?;
    let kept: Option<String> = kept
        .map(|row| row.try_get(0))
        .transpose()
        .map_err(read_error)?;
    let kept = kept.and_then(|seq| seq.parse::<u64>().ok()).unwrap_or(1);
    Ok(last_seq.max(kept.saturating_sub(1)))
}

pub(crate) async fn load_promises(
    conn: &mut PgConnection,
) -> StoreResult<Vec<(i64, Arc<Promise>)>> {
    let rows = conn
        .fetch_all("SELECT id, body FROM promise")
        .await
        .map_err(read_error)?;
    rows.iter()
        .map(|row| {
            let id: i64 = row.try_get(0).map_err(read_error)?;
            let body: &str = row.try_get(1).map_err(read_error)?;
            Ok((id, Arc::new(parse("promise", body)?)))
        })
        .collect()
}
