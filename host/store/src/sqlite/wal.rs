//! Looking through the database's write-ahead log before SQLite recovers from it.
//!
//! SQLite reads the log up to the first frame whose checksum is wrong and takes the rest for the
//! torn end of a transaction that never completed. After a crash of the process that is so. If
//! the disk has damaged the middle of the log, whole transactions lie behind the damage, and
//! SQLite overwrites them without a word. They can't be applied without what is missing before
//! them, but a copy is kept, and somebody is told.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

const HEADER: usize = 32;
const FRAME: usize = 24;
/// The checksums' words are little-endian; the other magic number says big-endian.
const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;

/// Transactions behind a damaged frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Of the damaged frame, in bytes.
    pub at: u64,
    /// Commits behind it.
    pub transactions: u32,
}

/// Keeps a copy of a log that is damaged in the middle, and says so.
pub(crate) fn examine(database: &Path) -> io::Result<()> {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    let wal = PathBuf::from(&name);
    let damage = match File::open(&wal) {
        Ok(file) => inspect(BufReader::with_capacity(1 << 16, file))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let Some(Damage { at, transactions }) = damage else {
        return Ok(());
    };
    name.push(".damaged");
    let kept = PathBuf::from(name);
    std::fs::copy(&wal, &kept)?;
    tracing::error!(
        wal = %wal.display(),
        at,
        transactions,
        kept = %kept.display(),
        "the write-ahead log is damaged: transactions behind the damage are lost, unless a power cut left them there unsynced; a copy of the log is kept"
    );
    Ok(())
}

/// Goes through a log. What is not a log, or ends early, has no damage that could be told.
fn inspect(mut wal: impl Read) -> io::Result<Option<Damage>> {
    let mut header = [0; HEADER];
    if !fill(&mut wal, &mut header)? {
        return Ok(None);
    }
    let little = match word(&header, 0) {
        MAGIC_LITTLE => true,
        MAGIC_BIG => false,
        _ => return Ok(None),
    };
    let page = word(&header, 8) as usize;
    let mut sum = checksum(little, (0, 0), &header[..24]);
    if !(512..=65_536).contains(&page) || sum != (word(&header, 24), word(&header, 28)) {
        return Ok(None);
    }
    let salts = &header[16..24];
    let mut frame = vec![0; FRAME + page];
    let mut at = HEADER as u64;
    let mut broken = None;
    let mut transactions = 0;
    while fill(&mut wal, &mut frame)? {
        let ours = frame[8..16] == *salts;
        let commits = word(&frame, 4) != 0;
        if broken.is_some() {
            transactions += u32::from(ours && commits);
        } else {
            sum = checksum(little, sum, &frame[..8]);
            sum = checksum(little, sum, &frame[FRAME..]);
            if !ours || sum != (word(&frame, 16), word(&frame, 20)) {
                broken = Some(at);
            }
        }
        at += frame.len() as u64;
    }
    Ok(broken
        .filter(|_| transactions > 0)
        .map(|at| Damage { at, transactions }))
}

/// `false`: the end came first.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The big-endian number at this place; callers stay within the buffer.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// As SQLite's file format describes it (section 4.2, "Checksum Algorithm").
fn checksum(little: bool, (mut a, mut b): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let (x, y) = (word(pair, 0), word(pair, 4));
        let (x, y) = match little {
            true => (x.swap_bytes(), y.swap_bytes()),
            false => (x, y),
        };
        a = a.wrapping_add(x).wrapping_add(b);
        b = b.wrapping_add(y).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
    use sqlx::{ConnectOptions, Executor};

    /// A log of ten transactions, as SQLite itself writes it.
    async fn log() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let mut conn = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("wal_autocheckpoint", "0")
            .connect()
            .await
            .unwrap();
        conn.execute("CREATE TABLE t (x TEXT)").await.unwrap();
        for _ in 0..9 {
            let sql = "INSERT INTO t VALUES (hex(randomblob(3000)))";
            conn.execute(sql).await.unwrap();
        }
        std::fs::read(dir.path().join("x.db-wal")).unwrap()
    }

    #[tokio::test]
    async fn a_whole_or_torn_log_is_not_damaged_and_one_with_commits_behind_a_fault_is() {
        let whole = log().await;
        let size = FRAME + 4096;
        let frames = (whole.len() - HEADER) / size;
        assert!(frames >= 10, "{frames}");
        assert_eq!(inspect(&whole[..]).unwrap(), None);
        for cut in [10, HEADER, HEADER + 5, whole.len() - size, whole.len() - 7] {
            assert_eq!(inspect(&whole[..cut]).unwrap(), None, "{cut}");
        }
        // In the last frame: as a torn write leaves it.
        let mut torn = whole.clone();
        let last = torn.len() - 9;
        torn[last] ^= 1;
        assert_eq!(inspect(&torn[..]).unwrap(), None);
        for frame in 0..frames - 1 {
            let mut damaged = whole.clone();
            damaged[HEADER + frame * size + 700] ^= 0x40;
            let found = inspect(&damaged[..]).unwrap().unwrap();
            assert_eq!(found.at, (HEADER + frame * size) as u64);
            assert!((1..=10).contains(&found.transactions), "{found:?}");
        }
        assert_eq!(
            inspect(&b"no log at all, but long enough to be one"[..]).unwrap(),
            None
        );
    }
}
