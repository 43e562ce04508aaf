//! [`FileSink`] appends to `DIR/NAME.jsonl` and returns once the bytes are on stable
//! storage. The file is always a sequence of whole lines: a line cut short by a crash or
//! a full disk is cut off again, and the batch it belonged to is handed over again by
//! the exporter, whose cursor has not moved.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_queue::ports::{ExportBatch, Fut, Sink, SinkError};

/// Where a [`FileSink`] writes, and how much it keeps.
#[derive(Clone, Debug)]
pub struct FileSinkConfig {
    /// Created with mode 0700 if it does not exist.
    pub dir: PathBuf,
    /// File name without `.jsonl`: letters, digits, `-`, `_` and `.`, not starting with `.`.
    pub name: String,
    /// The file is rotated before it would grow beyond this, bytes.
    pub max_bytes: u64,
    /// Rotated files kept as `NAME.jsonl.1` (the newest) to `NAME.jsonl.N`; 0 keeps none.
    pub keep: u32,
}

impl FileSinkConfig {
    /// 64 MiB a file, 8 rotated files.
    pub fn new(dir: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        FileSinkConfig {
            dir: dir.into(),
            name: name.into(),
            max_bytes: 64 * 1024 * 1024,
            keep: 8,
        }
    }
}

/// A rotated file of exported events.
pub struct FileSink {
    name: String,
    path: PathBuf,
    writer: Arc<Mutex<Writer>>,
}

impl FileSink {
    /// Opens the file, and cuts off what a crash left of a last line.
    pub fn open(config: FileSinkConfig) -> Result<Self, SinkError> {
        let name = config.name.clone();
        let fail = |reason: String| SinkError::for_now(name.clone(), reason);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(fail(
                "the name of a file sink may have letters, digits, '-', '_' and '.' only"
                    .to_owned(),
            ));
        }
        let path = config.dir.join(format!("{name}.jsonl"));
        let writer = Writer::open(config, path.clone())
            .map_err(|error| fail(format!("{}: {error}", path.display())))?;
        Ok(FileSink {
            name: name.clone(),
            path,
            writer: Arc::new(Mutex::new(writer)),
        })
    }
}

impl Sink for FileSink {
    fn deliver(&self, batch: ExportBatch) -> Fut<'_, Result<(), SinkError>> {
        let writer = self.writer.clone();
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || {
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                writer
                    .append(&batch)
                    .map_err(|error| format!("{}: {error}", writer.path.display()))
            })
            .await;
            match written {
                Ok(Ok(())) => Ok(()),
                Ok(Err(reason)) => Err(reason),
                Err(stopped) => Err(stopped.to_string()),
            }
            .map_err(|reason| SinkError::for_now(self.name.clone(), reason))
        })
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

struct Writer {
    config: FileSinkConfig,
    path: PathBuf,
    file: File,
    /// Length of the file; all of it whole lines, all of it synced.
    len: u64,
}

impl Writer {
    fn open(config: FileSinkConfig, path: PathBuf) -> io::Result<Self> {
        std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700)
            .create(&config.dir)?;
        let (file, len) = open_whole(&path)?;
        sync_dir(&config.dir)?;
        Ok(Writer {
            config,
            path,
            file,
            len,
        })
    }

    /// Appends the batch and syncs it, or leaves the file as it was.
    fn append(&mut self, batch: &ExportBatch) -> io::Result<()> {
        let size = |body: &[u8]| body.len() as u64 + u64::from(!body.ends_with(b"\n"));
        let more: u64 = batch.payloads.iter().map(|p| size(&p.body)).sum();
        if more == 0 {
            return Ok(());
        }
        if self.len > 0 && self.len + more > self.config.max_bytes {
            self.rotate()?;
        }
        let mut buffer = Vec::with_capacity(usize::try_from(more).unwrap_or(0));
        for payload in &batch.payloads {
            buffer.extend_from_slice(&payload.body);
            if !payload.body.ends_with(b"\n") {
                buffer.push(b'\n');
            }
        }
        let written = self
            .file
            .write_all(&buffer)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.len += more;
                Ok(())
            }
            Err(error) => {
                // Take back what was written; if that fails too, reopening does it. A file
                // whose sync failed is not trusted again: it is opened anew for the next batch.
                let _ = self.file.set_len(self.len);
                if let Ok((file, len)) = open_whole(&self.path) {
                    (self.file, self.len) = (file, len);
                }
                Err(error)
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        // A rotation that failed half-way goes on where it ended: what has moved does not move again.
        if self.path.try_exists()? {
            let mut free = 1;
            while free < self.config.keep && numbered(free).try_exists()? {
                free += 1;
            }
            for n in (1..free).rev() {
                std::fs::rename(numbered(n), numbered(n + 1))?;
            }
            if self.config.keep > 0 {
                std::fs::rename(&self.path, numbered(1))?;
            } else {
                std::fs::remove_file(&self.path)?;
            }
        }
        (self.file, self.len) = open_whole(&self.path)?;
        sync_dir(&self.config.dir)
    }
}

/// Opens for appending and truncates to the last line end.
fn open_whole(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let len = file.metadata()?.len();
    let whole = last_line_end(&mut file, len)?;
    if whole < len {
        tracing::warn!(
            file = %path.display(),
            bytes = len - whole,
            "cut off an incomplete last line; its events are exported again"
        );
        file.set_len(whole)?;
        file.sync_all()?;
    }
    Ok((file, whole))
}

/// Offset behind the last `\n`.
fn last_line_end(file: &mut File, len: u64) -> io::Result<u64> {
    let mut buffer = [0u8; 4096];
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        // At most 4,096, so it fits.
        let part = &mut buffer[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = memchr::memrchr(b'\n', part) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tidegate_queue::ports::Payload;

    use super::*;

    fn batch(bodies: &[&str]) -> ExportBatch {
        ExportBatch {
            exporter: "log".to_owned(),
            first: 1,
            last: bodies.len() as u64,
            payloads: bodies
                .iter()
                .map(|b| Payload {
                    body: (*b).to_owned().into_bytes().into(),
                    content_type: "application/x-ndjson".to_owned(),
                })
                .collect(),
        }
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[tokio::test]
    async fn appends_whole_lines_and_rotates() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut config = FileSinkConfig::new(&out, "log");
        config.max_bytes = 12;
        config.keep = 2;
        let sink = FileSink::open(config).unwrap();
        sink.deliver(batch(&["{1}\n", "{2}"])).await.unwrap();
        let path = out.join("log.jsonl");
        assert_eq!(read(&path), "{1}\n{2}\n");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for body in ["{3}{3}\n", "{4}{4}\n", "{5}{5}\n"] {
            sink.deliver(batch(&[body])).await.unwrap();
        }
        assert_eq!(read(&path), "{5}{5}\n");
        assert_eq!(read(&out.join("log.jsonl.1")), "{4}{4}\n");
        assert_eq!(read(&out.join("log.jsonl.2")), "{3}{3}\n");
        assert!(!out.join("log.jsonl.3").exists());
    }

    #[tokio::test]
    async fn a_rotation_that_failed_half_way_goes_on_and_destroys_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = FileSinkConfig::new(dir.path(), "log");
        (config.max_bytes, config.keep) = (12, 3);
        let sink = FileSink::open(config).unwrap();
        let path = dir.path().join("log.jsonl");
        let numbered = |n: u32| dir.path().join(format!("log.jsonl.{n}"));
        for body in ["{1}{1}\n", "{2}{2}\n", "{3}{3}\n"] {
            sink.deliver(batch(&[body])).await.unwrap();
        }
        // The numbered files had moved, and then the current one could not.
        std::fs::rename(numbered(2), numbered(3)).unwrap();
        std::fs::rename(numbered(1), numbered(2)).unwrap();
        sink.deliver(batch(&["{4}{4}\n"])).await.unwrap();
        let kept = |n: u32| read(&numbered(n));
        assert_eq!(
            [kept(3), kept(2), kept(1)],
            ["{1}{1}\n", "{2}{2}\n", "{3}{3}\n"]
        );
        // The current one had moved as well, and a new one could not be opened.
        std::fs::remove_file(numbered(3)).unwrap();
        for (from, to) in [(numbered(2), numbered(3)), (numbered(1), numbered(2))] {
            std::fs::rename(from, to).unwrap();
        }
        std::fs::rename(&path, numbered(1)).unwrap();
        sink.deliver(batch(&["{5}{5}\n"])).await.unwrap();
        assert_eq!(
            [kept(3), kept(2), kept(1), read(&path)],
            ["{2}{2}\n", "{3}{3}\n", "{4}{4}\n", "{5}{5}\n"]
        );
    }

    #[tokio::test]
    async fn a_line_cut_short_by_a_crash_is_removed_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let long = "x".repeat(9000);
        std::fs::write(&path, format!("{{1}}\n{{2}}\n{long}")).unwrap();
        let sink = FileSink::open(FileSinkConfig::new(dir.path(), "log")).unwrap();
        assert_eq!(read(&path), "{1}\n{2}\n");
        sink.deliver(batch(&["{3}\n"])).await.unwrap();
        assert_eq!(read(&path), "{1}\n{2}\n{3}\n");
    }

    #[test]
    fn a_name_can_not_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../x", "", ".hidden", "a/b"] {
            assert!(FileSink::open(FileSinkConfig::new(dir.path(), name)).is_err());
        }
    }
}
