//! A look at the database of a gateway that may be running: nothing is made, changed or taken.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteLockingMode};
use sqlx::{ConnectOptions, Executor, Row as _};
use tidegate_queue::{Activation, StoreError, StoreResult};

use crate::codec::parse;
use crate::migrate::{self, Schema};
use crate::sqlite::with_remedy;

/// What is there.
#[derive(Debug)]
pub struct Probe {
    pub schema: Schema,
    /// What was ever put in force, oldest first; empty where the schema has no place for it.
    pub activations: Vec<Activation>,
    /// SQLite's write-ahead log has commits, as after a crash. They are in what is told here, and
    /// the next start takes them into the database.
    pub behind: bool,
}

const ACTIVATIONS: &str = "SELECT body FROM activation ORDER BY id";

impl Probe {
    fn nothing(behind: bool) -> Self {
        Probe {
            schema: Schema::None,
            activations: Vec::new(),
            behind,
        }
    }
}

/// Looks at the database that `database` names, as [`crate::open`] has it. SQLite's must not be
/// written meanwhile; PostgreSQL's may be in use.
///
/// # Errors
/// `Conflict` for a name that is neither and for a database of a newer version, `Failed` where
/// the gateway could not read or write it, `Damaged` if it can't be read.
pub async fn probe(database: &str, dir: &Path) -> StoreResult<Probe> {
    if database == "sqlite" {
        let path = dir.join("queue.db");
        return sqlite(&path).await.map_err(|e| with_remedy(&path, e));
    }
    if crate::is_postgres(database) {
        return crate::postgres::probe(database).await;
    }
    Err(crate::unknown())
}

async fn sqlite(path: &Path) -> StoreResult<Probe> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let behind = std::fs::metadata(log).is_ok_and(|log| log.len() > 0);
    // SQLite takes a log beside an empty database for a stranger's and deletes it.
    if std::fs::metadata(path).map_or(0, |database| database.len()) == 0 {
        return Ok(Probe::nothing(behind));
    }
    let failed = |e: sqlx::Error| StoreError::Failed(format!("{}: {e}", path.display()));
    rustix::fs::access(
        path,
        rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
    )
    .map_err(|e| StoreError::Failed(format!("{}: {e}", path.display())))?;
    let there = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .disable_statement_logging();
    // Either way SQLite makes no file. Alone, the database of a crashed gateway may be half of
    // what it was: commits are copied into it page by page. The log's index is then kept in this
    // process's memory, for which SQLite wants the file to itself; no lock is taken, since a
    // lock needs a file that may be written.
    let there = match behind {
        true => there
            .vfs("unix-none")
            .locking_mode(SqliteLockingMode::Exclusive),
        false => there.immutable(true),
    };
    let mut conn = there.connect().await.map_err(failed)?;
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('migration', 'activation')";
    let row = conn.fetch_one(tables).await.map_err(failed)?;
    let tables: i64 = row.try_get(0).map_err(failed)?;
    if tables == 0 {
        return Ok(Probe::nothing(behind));
    }
    let row = conn.fetch_one(migrate::LAST).await.map_err(failed)?;
    let schema = Schema::of(row.try_get(0).map_err(failed)?)?;
    let mut activations = Vec::new();
    if tables > 1 {
        for row in conn.fetch_all(ACTIVATIONS).await.map_err(failed)? {
            activations.push(parse("activation", row.try_get(0).map_err(failed)?)?);
        }
    }
    Ok(Probe {
        schema,
        activations,
        behind,
    })
}

/// Of a connection that may use the database as the gateway does.
pub(crate) async fn postgres(conn: &mut sqlx::PgConnection) -> StoreResult<Probe> {
    let failed = |e: sqlx::Error| StoreError::Failed(format!("PostgreSQL: {e}"));
    let sql = "SELECT pg_is_in_recovery(),
                      coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
                      to_regclass('migration') IS NOT NULL,
                      to_regclass('activation') IS NOT NULL";
    let row = conn.fetch_one(sql).await.map_err(failed)?;
    let is = |at: usize| row.try_get::<bool, _>(at).map_err(failed);
    if is(0)? {
        return Err(StoreError::Failed(
            "PostgreSQL: the server is a standby, which takes no changes".to_owned(),
        ));
    }
    if !is(1)? {
        return Err(StoreError::Failed(
            "PostgreSQL: the user may not make tables (CREATE on the schema)".to_owned(),
        ));
    }
    if !is(2)? {
        return Ok(Probe::nothing(false));
    }
    let last = conn.fetch_one(migrate::LAST).await.map_err(failed)?;
    let schema = Schema::of(last.try_get(0).map_err(failed)?)?;
    let mut activations = Vec::new();
    if is(3)? {
        for row in conn.fetch_all(ACTIVATIONS).await.map_err(failed)? {
            activations.push(parse("activation", row.try_get(0).map_err(failed)?)?);
        }
    }
    Ok(Probe {
        schema,
        activations,
        behind: false,
    })
}
