//! What a store can be told when it is opened.

use std::sync::Arc;
use std::time::Duration;

use crate::sqlite::disk::{Disk, RealDisk};

/// Settings of a store. [`Options::default`] is right for production.
#[derive(Clone)]
pub struct Options {
    /// Bytes of a segment file (SQLite only); 256 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// The database file may not outgrow this (SQLite only); `None`: as far as the disk goes.
    pub max_database_bytes: Option<u64>,
    /// All segment files together may not outgrow this (SQLite only).
    pub max_content_bytes: Option<u64>,
    /// The longest time for which a settlement that shares its commit with no acceptance
    /// stays unsynced. A crash of the machine within it makes the attempt again.
    pub sync_interval: Duration,
    /// Name of this gateway, shown as the owner of shards (PostgreSQL only).
    pub owner: String,
    /// Which run of the machine this is: after another one, what had not been synced may be gone
    /// from the disk (SQLite only).
    pub boot: String,
    /// How segment files are written and read; replaced by tests that inject faults.
    pub disk: Arc<dyn Disk>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: 64 * 1024 * 1024,
            max_database_bytes: None,
            max_content_bytes: None,
            sync_interval: Duration::from_millis(100),
            owner: String::from("tidegate"),
            boot: boot_id(),
            disk: Arc::new(RealDisk),
        }
    }
}

/// Linux makes one at each boot; elsewhere every start counts as another.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}
