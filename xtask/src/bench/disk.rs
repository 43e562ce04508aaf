//! What the disk costs, and a disk that costs more: ext4 with a journal, in a loop image.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;

use crate::host;

/// The 99th percentile of overwriting 4 KiB and syncing it, milliseconds.
pub fn bare_sync_p99(place: &Path) -> anyhow::Result<f64> {
    let path = place.join("sync");
    let file = std::fs::File::create(&path)?;
    let block = [7; 4096];
    for at in 0..256 {
        file.write_at(&block, at * 4096)?;
    }
    file.sync_all()?;
    let mut times = Vec::new();
    for at in 0..500 {
        let started = Instant::now();
        file.write_at(&block, at % 256 * 4096)?;
        file.sync_data()?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path)?;
    times.sort_by(f64::total_cmp);
    Ok(times[494])
}

/// Octets that are free at a directory.
pub fn free(place: &Path) -> anyhow::Result<u64> {
    let output = Command::new("df")
        .args(["--output=avail", "--block-size=1"])
        .arg(place)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let free = text
        .lines()
        .nth(1)
        .and_then(|line| line.trim().parse().ok());
    free.with_context(|| format!("df of {} says {text:?}", place.display()))
}

/// The file system that holds a directory, as `ext4 (without a journal)`.
pub fn file_system(place: &Path) -> String {
    let told = |columns: &str| {
        let mut command = Command::new("findmnt");
        command.args(["-n", "-o", columns, "-T"]).arg(place);
        let output = command.stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let Some(kind) = told("FSTYPE") else {
        return "unknown".into();
    };
    if kind != "ext4" {
        return kind;
    }
    let journal = told("SOURCE").and_then(|device| {
        let name = Path::new(&device)
            .file_name()?
            .to_string_lossy()
            .into_owned();
        if !Path::new("/proc/fs/ext4").join(&name).exists() {
            return None;
        }
        let journals = std::fs::read_dir("/proc/fs/jbd2").into_iter().flatten();
        let of_it = format!("{name}-");
        Some(
            journals
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with(&of_it)),
        )
    });
    match journal {
        Some(true) => "ext4 with a journal".into(),
        Some(false) => "ext4 without a journal".into(),
        None => kind,
    }
}

/// A journalled ext4 of its own in an image file; unmounted when dropped.
pub struct Image {
    mounted: PathBuf,
    _directory: tempfile::TempDir,
}

impl Image {
    /// Of 4 GiB, sparse. The error says what is not permitted here.
    pub fn mount() -> anyhow::Result<Image> {
        let directory = tempfile::Builder::new()
            .prefix("tidegate-ext4-")
            .tempdir()?;
        let file = directory.path().join("image");
        std::fs::File::create(&file)?.set_len(4 << 30)?;
        let mkfs = host::find("mkfs.ext4").context("mkfs.ext4 is not installed")?;
        host::run(
            Command::new(mkfs)
                .args(["-q", "-F", "-O", "has_journal"])
                .arg(&file),
        )?;
        let mounted = directory.path().join("mounted");
        std::fs::create_dir(&mounted)?;
        host::run(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&file)
                .arg(&mounted)
                .stderr(Stdio::null()),
        )
        .context("mounting a loop image is not permitted here")?;
        Ok(Image {
            mounted,
            _directory: directory,
        })
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = host::run(Command::new("umount").arg(&self.mounted)) {
            eprintln!("{} stays mounted: {error:#}", self.mounted.display());
        }
    }
}
