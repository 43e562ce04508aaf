//! How segment files are written, synced and read: the seam at which tests inject faults.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Blocking file operations of the segment store.
pub trait Disk: Send + Sync + 'static {
    /// Makes a file of `bytes` zeros, synced, with its directory entry.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File>;

    /// Writes all buffers one after another from `offset`.
    fn write(&self, file: &File, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Returns once what was written is on stable storage.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Fills the buffer with what lies at `offset`.
    fn read(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }
}

/// The operating system's files.
pub struct RealDisk;

/// Most buffers that one `pwritev` takes (IOV_MAX).
const MAX_BUFFERS: usize = 1024;

impl Disk for RealDisk {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        let zeros = vec![0u8; 256 * 1024];
        let mut at = 0;
        while at < bytes {
            let step = (bytes - at).min(zeros.len() as u64);
            file.write_all_at(&zeros[..step as usize], at)?;
            at += step;
        }
        file.sync_all()?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(file)
    }

    fn write(&self, file: &File, buffers: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        for group in buffers.chunks(MAX_BUFFERS) {
            let wanted: usize = group.iter().map(|b| b.len()).sum();
            let mut done = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, group, offset))?;
            if done < wanted {
                // A short write: finish buffer by buffer.
                let mut skip = done;
                for buffer in group {
                    if skip >= buffer.len() {
                        skip -= buffer.len();
                        continue;
                    }
                    let rest = &buffer[skip..];
                    skip = 0;
                    file.write_all_at(rest, offset + done as u64)?;
                    done += rest.len();
                }
            }
            offset += wanted as u64;
        }
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_more_buffers_than_one_call_takes() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.create(&dir.path().join("f"), 10_000).unwrap();
        let texts: Vec<Vec<u8>> = (0..2500u32)
            .map(|n| n.to_le_bytes()[..3].to_vec())
            .collect();
        let buffers: Vec<IoSlice<'_>> = texts.iter().map(|t| IoSlice::new(t)).collect();
        RealDisk.write(&file, &buffers, 7).unwrap();
        RealDisk.sync(&file).unwrap();
        let mut back = vec![0u8; 7500];
        file.read_exact_at(&mut back, 7).unwrap();
        assert_eq!(back, texts.concat());
        assert_eq!(file.metadata().unwrap().len(), 10_000);
    }
}
