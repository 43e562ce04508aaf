//! The data directory: made if need be, private, and held by one gateway at a time.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Access, FlockOperation, access, flock};

use crate::cli::Failure;

const LOCK: &str = "gateway.lock";

/// Released when dropped, also by a crash.
pub struct DataDir {
    _lock: File,
}

/// Why the directory can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("another gateway runs on it")]
    InUse,
    #[error("others than its owner can read it (mode {0:o}), and it is not tidegate's alone")]
    Shared(u32),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a start would find.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It can be made.
    Nothing,
    Free,
    /// A gateway runs on it.
    InUse,
}

/// Whether a directory is there and can be written to, or can be made; nothing is done to it.
/// `false`: it would have to be made.
///
/// # Errors
/// Why neither.
pub fn look_at(path: &Path) -> io::Result<bool> {
    let nearest = path
        .ancestors()
        .find(|p| p.symlink_metadata().is_ok())
        .ok_or(io::ErrorKind::NotFound)?;
    if !nearest.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    access(
        nearest,
        Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
    )?;
    Ok(nearest == path)
}

impl DataDir {
    /// Makes the directory (0700) or makes it private, tries it, and takes it.
    pub fn take(path: &Path) -> Result<DataDir, Unavailable> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if is_open(path)? {
            std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DataDir { _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Unavailable::InUse),
            Err(errno) => Err(Unavailable::Io(errno.into())),
        }
    }

    /// What [`DataDir::take`] would find; changes nothing. The lock is tried for an instant, beside
    /// others that look.
    pub fn look(path: &Path) -> Result<Found, Unavailable> {
        if !look_at(path)? {
            return Ok(Found::Nothing);
        }
        let user = rustix::process::geteuid();
        if is_open(path)? && !user.is_root() && user.as_raw() != path.metadata()?.uid() {
            // A start could not make it private.
            return Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
        }
        let lock = match File::open(path.join(LOCK)) {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Free),
            Err(e) => return Err(e.into()),
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Found::Free),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Found::InUse),
            Err(errno) => Err(Unavailable::Io(errno.into())),
        }
    }

    /// [`DataDir::take`], with the words for a person.
    pub fn take_or_tell(path: &Path) -> Result<DataDir, Failure> {
        DataDir::take(path).map_err(|unavailable| unavailable.tell(path))
    }
}

impl Unavailable {
    /// The words for a person.
    pub fn tell(&self, path: &Path) -> Failure {
        let remedy = match self {
            Unavailable::InUse => "stop the other gateway, or give this one a data_dir of its own",
            Unavailable::Shared(_) => {
                "give data_dir a directory of its own, or take the others' rights away: chmod 0700"
            }
            Unavailable::Io(_) => {
                "make it a directory that the user who runs tidegate can write to, or change data_dir"
            }
        };
        Failure::failed(
            format!(
                "the data directory {} can't be used: {self}",
                path.display()
            ),
            remedy,
        )
    }
}

/// Whether others can get into it. Contents of mail are in it, so it is made private; but not
/// one that holds something else, such as `/tmp` by mistake.
fn is_open(path: &Path) -> Result<bool, Unavailable> {
    let mode = path.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(false);
    }
    let own = path.join(LOCK).exists() || std::fs::read_dir(path)?.next().is_none();
    if own {
        Ok(true)
    } else {
        Err(Unavailable::Shared(mode))
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

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn others_are_kept_out_of_it_but_never_of_a_directory_with_other_things() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| {
            std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        };
        // As a service manager makes one, and as it may be left later.
        let path = dir.path().join("data");
        std::fs::create_dir(&path).unwrap();
        for _ in 0..2 {
            open(&path);
            drop(DataDir::take(&path).unwrap());
            assert_eq!(mode(&path), 0o700);
        }
        open(&path);
        std::fs::remove_file(path.join(LOCK)).unwrap();
        std::fs::write(path.join("somebody's"), "").unwrap();
        for refused in [
            DataDir::take(&path).map(drop),
            DataDir::look(&path).map(drop),
        ] {
            assert!(matches!(refused, Err(Unavailable::Shared(0o755))));
        }
        assert_eq!(mode(&path), 0o755);
    }

    #[test]
    fn looking_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data");
        assert_eq!(DataDir::look(&path).unwrap(), Found::Nothing);
        assert!(!dir.path().join("deep").exists());
        let held = DataDir::take(&path).unwrap();
        assert_eq!(DataDir::look(&path).unwrap(), Found::InUse);
        drop(held);
        assert_eq!(DataDir::look(&path).unwrap(), Found::Free);
        std::fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        assert_eq!(DataDir::look(&path).unwrap(), Found::Free);
        assert_eq!(mode(&path), 0o750);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for bad in [&file, &file.join("below")] {
            assert!(matches!(DataDir::look(bad), Err(Unavailable::Io(_))));
        }
    }

    #[test]
    fn a_file_in_the_way_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(DataDir::take(&path), Err(Unavailable::Io(_))));
    }
}
