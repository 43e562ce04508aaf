//! The ports `Store` and `Registry`, twice: SQLite with segment files, and PostgreSQL.
//!
//! Knows nothing of SMTP, policy or retry rules. Both implementations pass the same
//! conformance suite. What is common to both: calls are turned into rows by `codec`,
//! gathered by one writer per database (`gate`), and answered once they are durable.

mod codec;
mod gate;
mod log;
mod migrate;
mod options;
mod postgres;
mod probe;
mod registry;
mod rows;
mod sqlite;
mod writer;

use std::path::Path;
use std::sync::Arc;

use tidegate_queue::{Registry, Store, StoreError, StoreResult};

pub use migrate::Schema;
pub use options::Options;
pub use postgres::PgStore;
pub use probe::{Probe, probe};
pub use sqlite::SqliteStore;
pub use sqlite::disk::{Disk, RealDisk};

/// Opens the store that `database` names: `sqlite` (in `dir`), or a `postgres://` URL.
///
/// # Errors
/// `Conflict` for a name that is neither, or where another gateway or a newer version
/// has the database; else what the chosen store says.
pub async fn open(
    database: &str,
    dir: &Path,
    options: Options,
) -> StoreResult<(Arc<dyn Store>, Arc<dyn Registry>)> {
    if database == "sqlite" {
        let store = SqliteStore::open(dir, options).await?;
        return Ok((store.clone(), store));
    }
    if is_postgres(database) {
        let store = PgStore::open(database, options).await?;
        return Ok((store.clone(), store));
    }
    Err(unknown())
}

pub(crate) fn is_postgres(database: &str) -> bool {
    database.starts_with("postgres://") || database.starts_with("postgresql://")
}

/// The name may hold a password, so it is not repeated.
pub(crate) fn unknown() -> StoreError {
    StoreError::Conflict(
        "the database is neither \"sqlite\" nor a URL such as \"postgres://USER@HOST/NAME\""
            .to_owned(),
    )
}
