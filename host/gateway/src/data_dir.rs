//! The data directory: made if need be, and held by one gateway at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::cli::Failure;

/// Released when dropped, also by a crash.
pub struct DataDir {
    _lock: File,
}

/// Why the directory can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("another gateway runs on it")]
    InUse,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl DataDir {
    /// Makes the directory (0700), tries it, and takes it.
    pub fn take(path: &Path) -> Result<DataDir, Unavailable> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("gateway.lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DataDir { _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Unavailable::InUse),
            Err(errno) => Err(Unavailable::Io(errno.into())),
        }
    }

    /// The same, with the words for a person.
    pub fn take_or_tell(path: &Path) -> Result<DataDir, Failure> {
        DataDir::take(path).map_err(|unavailable| {
            let remedy = match &unavailable {
                Unavailable::InUse => "stop the other gateway, or give this one a data_dir of its own",
                Unavailable::Io(_) => {
                    "make it a directory that the user who runs tidegate can write to, or change data_dir"
                }
            };
            Failure::failed(
                format!("the data directory {} can't be used: {unavailable}", path.display()),
                remedy,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gateway_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data");
        let first = DataDir::take(&path).unwrap();
        assert!(matches!(DataDir::take(&path), Err(Unavailable::InUse)));
        drop(first);
        assert!(DataDir::take(&path).is_ok());
    }

    #[test]
    fn a_file_in_the_way_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(DataDir::take(&path), Err(Unavailable::Io(_))));
    }
}
