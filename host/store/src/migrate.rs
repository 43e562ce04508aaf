//! The schema, step by step: the same numbers and names for both databases, embedded.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Executor, Row as _};
use tidegate_queue::{StoreError, StoreResult};

/// A step: number and name, and its text for each database.
struct Step {
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! step {
    ($name:literal) => {
        Step {
            name: $name,
            sqlite: include_str!(concat!("../../../migrations/sqlite/", $name, ".sql")),
            postgres: include_str!(concat!("../../../migrations/postgres/", $name, ".sql")),
        }
    };
}

/// In order; the position is the number less one. Never changed once released.
const STEPS: &[Step] = &[
    step!("0001_queue"),
    step!("0002_registry"),
    step!("0003_rollout"),
    step!("0004_quota"),
    step!("0005_history"),
];

/// How the schema of a database compares with this version's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// There is none: the first start makes it.
    None,
    /// The next start brings it up to date.
    Older {
        steps: u32,
    },
    Current,
}

impl Schema {
    /// # Errors
    /// `Conflict` for one that a newer version made.
    pub(crate) fn of(last: i64) -> StoreResult<Self> {
        match STEPS.len() as i64 - last {
            missing if missing < 0 => Err(too_new(last)),
            0 => Ok(Schema::Current),
            missing if last > 0 => Ok(Schema::Older {
                steps: missing as u32,
            }),
            _ => Ok(Schema::None),
        }
    }
}

const TABLE: &str = "CREATE TABLE IF NOT EXISTS migration (
    number BIGINT PRIMARY KEY,
    name   TEXT NOT NULL
)";
pub(crate) const LAST: &str = "SELECT coalesce(max(number), 0) FROM migration";
const NOTE: &str = "INSERT INTO migration (number, name) VALUES ($1, $2)";

fn too_new(number: i64) -> StoreError {
    StoreError::Conflict(format!(
        "the database has migration {number}, this version knows {} at most: it was made by a newer version",
        STEPS.len()
    ))
}

fn failed(error: sqlx::Error) -> StoreError {
    StoreError::Failed(format!("migration of the database: {error}"))
}

pub(crate) async fn sqlite(conn: &mut SqliteConnection) -> StoreResult<()> {
    conn.execute(TABLE).await.map_err(failed)?;
    let row = conn.fetch_one(LAST).await.map_err(failed)?;
    let last: i64 = row.try_get(0).map_err(failed)?;
    if last > STEPS.len() as i64 {
        return Err(too_new(last));
    }
    for (number, step) in (1i64..).zip(STEPS).skip(last as usize) {
        let mut transaction = conn.begin().await.map_err(failed)?;
        transaction
            .execute(sqlx::raw_sql(step.sqlite))
            .await
            .map_err(failed)?;
        transaction
            .execute(sqlx::query(NOTE).bind(number).bind(step.name))
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
    }
    Ok(())
}

pub(crate) async fn postgres(conn: &mut sqlx::PgConnection) -> StoreResult<()> {
    let mut transaction = conn.begin().await.map_err(failed)?;
    // Two gateways may start at the same time.
    transaction
        .execute("SELECT pg_advisory_xact_lock(7823462348)")
        .await
        .map_err(failed)?;
    transaction.execute(TABLE).await.map_err(failed)?;
    let row = transaction.fetch_one(LAST).await.map_err(failed)?;
    let last: i64 = row.try_get(0).map_err(failed)?;
    if last > STEPS.len() as i64 {
        return Err(too_new(last));
    }
    for (number, step) in (1i64..).zip(STEPS).skip(last as usize) {
        transaction
            .execute(sqlx::raw_sql(step.postgres))
            .await
            .map_err(failed)?;
        transaction
            .execute(sqlx::query(NOTE).bind(number).bind(step.name))
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}
