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
mod registry;
mod rows;
mod sqlite;
mod writer;

use std::path::Path;
use std::sync::Arc;

use tidegate_queue::{Registry, Store, StoreError, StoreResult};

pub use options::Options;
pub use postgres::PgStore;
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
    if database.starts_with("postgres://") || database.starts_with("postgresql://") {
        let store = PgStore::open(database, options).await?;
        return Ok((store.clone(), store));
    }
    Err(StoreError::Conflict(format!(
        "database {database:?}: expected \"sqlite\" or \"postgres://USER@HOST/NAME\""
    )))
}
