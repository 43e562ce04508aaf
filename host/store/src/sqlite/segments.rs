//! Where contents lie: append-only segment files, zeroed ahead and recycled.
//!
//! Overwriting zeroed blocks needs no file-system metadata in the sync path. One segment
//! is active; one more is kept ready by a background thread. A count of live bytes per
//! segment, rebuilt from the rows at a start, tells when a segment may be used again;
//! it then gets a new epoch, synced before its first record. The space of a content is
//! taken by [`Segments::reserve`] and given back by [`Segments::release`], which callers
//! do only once no durable row refers to it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use tidegate_queue::{ContentRef, StoreError, StoreResult};
use tokio::sync::Notify;

use super::disk::Disk;
use super::record::{Piece, from_ref, to_ref};

/// The block at the head of a segment: magic, CRC-32C, epoch.
const HEAD: u64 = 4096;
const HEAD_MAGIC: [u8; 4] = *b"TGs1";
/// Largest data of one record.
const MAX_RECORD: u64 = 1024 * 1024;
/// The first segment of a new store is made while its opener waits: keep it short.
const FIRST_SEGMENT: u64 = 8 * 1024 * 1024;
/// Unused segments kept for recycling; more are removed.
const KEEP_FREE: usize = 3;
/// A content that was streamed in and not accepted for so long is given up.
const SPOOLED_FOR: Duration = Duration::from_secs(3600);

struct Segment {
    file: Arc<File>,
    epoch: u64,
    capacity: u64,
    live: u64,
    use_: Use,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Empty, with an old epoch.
    Free,
    /// With the background thread.
    Preparing,
    /// Empty, its new epoch synced.
    Ready,
    Active,
    Sealed,
}

enum Chore {
    Create { number: u32, epoch: u64, bytes: u64 },
    Recycle { number: u32, epoch: u64 },
    Remove { number: u32 },
}

struct State {
    segments: BTreeMap<u32, Segment>,
    active: Option<(u32, u64)>,
    ready: VecDeque<u32>,
    /// A chore that ends with a ready segment is under way.
    preparing: bool,
    /// Why the last such chore failed; taken by the one it hurts.
    trouble: Option<StoreError>,
    next_number: u32,
    next_epoch: u64,
    spooled: HashMap<String, (Vec<Piece>, Instant)>,
    freed_bytes: u64,
}

pub(crate) struct Segments {
    dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    segment_bytes: u64,
    max_bytes: u64,
    state: Mutex<State>,
    changed: Notify,
    chores: mpsc::Sender<Chore>,
    /// Contents that are being streamed in.
    pub streams: AtomicUsize,
}

fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:06}.seg"))
}

/// No room, as the disk says it.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

pub(crate) fn fault(what: &str, error: &io::Error) -> StoreError {
    if is_full(error) {
        StoreError::Full(format!("{what}: {error}"))
    } else {
        StoreError::Failed(format!("{what}: {error}"))
    }
}

fn write_head(disk: &dyn Disk, file: &File, epoch: u64) -> io::Result<()> {
    let mut head = [0u8; HEAD as usize];
    head[..4].copy_from_slice(&HEAD_MAGIC);
    head[8..16].copy_from_slice(&epoch.to_le_bytes());
    let sum = crc32c::crc32c(&head[8..]);
    head[4..8].copy_from_slice(&sum.to_le_bytes());
    disk.write(file, &[IoSlice::new(&head)], 0)?;
    disk.sync(file)
}

/// The epoch in a segment's head; 0 if it was never written or is damaged.
fn read_head(file: &File) -> io::Result<u64> {
    let mut head = [0u8; HEAD as usize];
    file.read_exact_at(&mut head, 0)?;
    let sum = crc32c::crc32c(&head[8..]);
    if head[..4] != HEAD_MAGIC || head[4..8] != sum.to_le_bytes() {
        return Ok(0);
    }
    let mut epoch = [0u8; 8];
    epoch.copy_from_slice(&head[8..16]);
    Ok(u64::from_le_bytes(epoch))
}

impl Segments {
    /// Opens the files in `dir`; `live` are the references of all queued messages.
    pub fn open(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        max_bytes: Option<u64>,
        live: &[Piece],
    ) -> StoreResult<Arc<Self>> {
        let segment_bytes = segment_bytes.clamp(256 * 1024, 1 << 30);
        std::fs::create_dir_all(&dir).map_err(|e| fault(&dir.display().to_string(), &e))?;
        let mut segments = BTreeMap::new();
        let mut epochs = 0;
        let entries = std::fs::read_dir(&dir).map_err(|e| fault("segments", &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| fault("segments", &e))?;
            let name = entry.file_name();
            let Some(number) = name
                .to_str()
                .and_then(|n| n.strip_suffix(".seg"))
                .and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            let what = entry.path().display().to_string();
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(entry.path())
                .map_err(|e| fault(&what, &e))?;
            let capacity = file.metadata().map_err(|e| fault(&what, &e))?.len();
            if capacity < 2 * HEAD {
                // Left over from a crash while it was being made.
                std::fs::remove_file(entry.path()).map_err(|e| fault(&what, &e))?;
                continue;
            }
            let epoch = read_head(&file).map_err(|e| fault(&what, &e))?;
            epochs = epochs.max(epoch);
            segments.insert(
                number,
                Segment {
                    file: Arc::new(file),
                    epoch,
                    capacity,
                    live: 0,
                    use_: Use::Free,
                },
            );
        }
        let mut missing: BTreeMap<u32, u32> = BTreeMap::new();
        let mut next_number = segments.keys().next_back().map_or(1, |n| n + 1);
        for piece in live {
            epochs = epochs.max(piece.epoch);
            if let Some(segment) = segments.get_mut(&piece.segment) {
                segment.live += piece.span();
                segment.use_ = Use::Sealed;
            } else {
                *missing.entry(piece.segment).or_default() += 1;
                // Its number stays free for when it is put back.
                next_number = next_number.max(piece.segment + 1);
            }
        }
        for (number, contents) in missing {
            tracing::error!(
                path = %path(&dir, number).display(),
                contents,
                "a segment file is missing: put it back while the gateway is stopped; until then its mail is deferred, and returned at the end of its lifetime"
            );
        }
        let (chores, todo) = mpsc::channel();
        let store = Arc::new(Segments {
            dir,
            disk,
            segment_bytes,
            max_bytes: max_bytes.unwrap_or(u64::MAX),
            state: Mutex::new(State {
                segments,
                active: None,
                ready: VecDeque::new(),
                preparing: false,
                trouble: None,
                next_number,
                next_epoch: epochs + 1,
                spooled: HashMap::new(),
                freed_bytes: 0,
            }),
            changed: Notify::new(),
            chores,
            streams: AtomicUsize::new(0),
        });
        let weak = Arc::downgrade(&store);
        std::thread::Builder::new()
            .name("segments".into())
            .spawn(move || {
                while let Ok(chore) = todo.recv() {
                    match weak.upgrade() {
                        Some(store) => store.run(chore),
                        None => return,
                    }
                }
            })
            .map_err(|e| fault("thread", &e))?;
        store.prepare(&mut store.lock());
        Ok(store)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held leaves counters that are at worst too high,
        // which keeps space from being used again and loses nothing.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Largest data of one record; longer contents are split.
    pub fn max_record(&self) -> usize {
        MAX_RECORD.min((self.segment_bytes - HEAD) / 4) as usize
    }

    /// Has one more segment made ready, unless that is under way.
    fn prepare(&self, state: &mut State) {
        if state.preparing || !state.ready.is_empty() {
            return;
        }
        let epoch = state.next_epoch;
        let free = state
            .segments
            .iter_mut()
            .find(|(_, s)| s.use_ == Use::Free && s.live == 0);
        let chore = if let Some((number, segment)) = free {
            segment.use_ = Use::Preparing;
            Chore::Recycle {
                number: *number,
                epoch,
            }
        } else {
            let held: u64 = state.segments.values().map(|s| s.capacity).sum();
            let bytes = if held == 0 {
                self.segment_bytes.min(FIRST_SEGMENT)
            } else {
                self.segment_bytes
            };
            if held.saturating_add(bytes) > self.max_bytes {
                state.trouble = Some(StoreError::Full(format!(
                    "contents have reached their limit of {} bytes",
                    self.max_bytes
                )));
                self.changed.notify_waiters();
                return;
            }
            let number = state.next_number;
            state.next_number += 1;
            Chore::Create {
                number,
                epoch,
                bytes,
            }
        };
        state.next_epoch += 1;
        state.preparing = true;
        // The receiver lives as long as `self`.
        let _ = self.chores.send(chore);
    }

    /// On the background thread.
    fn run(&self, chore: Chore) {
        match chore {
            Chore::Create {
                number,
                epoch,
                bytes,
            } => {
                let path = path(&self.dir, number);
                let made = self.disk.create(&path, bytes).and_then(|file| {
                    write_head(&*self.disk, &file, epoch)?;
                    Ok(file)
                });
                let mut state = self.lock();
                state.preparing = false;
                match made {
                    Ok(file) => {
                        let segment = Segment {
                            file: Arc::new(file),
                            epoch,
                            capacity: bytes,
                            live: 0,
                            use_: Use::Ready,
                        };
                        state.segments.insert(number, segment);
                        state.ready.push_back(number);
                    }
                    Err(error) => {
                        // Half a segment on a full disk only makes it fuller.
                        let _ = std::fs::remove_file(&path);
                        state.trouble = Some(fault(&path.display().to_string(), &error));
                    }
                }
            }
            Chore::Recycle { number, epoch } => {
                let file = self.lock().segments.get(&number).map(|s| s.file.clone());
                let Some(file) = file else { return };
                let done = write_head(&*self.disk, &file, epoch);
                let mut state = self.lock();
                state.preparing = false;
                match done {
                    Ok(()) => {
                        if let Some(segment) = state.segments.get_mut(&number) {
                            segment.epoch = epoch;
                            segment.use_ = Use::Ready;
                        }
                        state.ready.push_back(number);
                    }
                    Err(error) => {
                        if let Some(segment) = state.segments.get_mut(&number) {
                            segment.use_ = Use::Free;
                        }
                        state.trouble = Some(fault("segment", &error));
                    }
                }
            }
            Chore::Remove { number } => {
                let path = path(&self.dir, number);
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "can't remove a segment");
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// Space for records of these data lengths, next to each other as far as a segment
    /// reaches. Waits for a segment to be made ready; all or nothing.
    pub async fn reserve(&self, lengths: &[u32]) -> StoreResult<Vec<Piece>> {
        let mut pieces = Vec::with_capacity(lengths.len());
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the state is looked at, so no change is missed.
            changed.as_mut().enable();
            match self.try_reserve(lengths, &mut pieces) {
                Ok(true) => return Ok(pieces),
                Ok(false) => changed.await,
                Err(error) => {
                    self.release(&pieces);
                    return Err(error);
                }
            }
        }
    }

    /// Goes on where `pieces` ends; `false`: a segment is being made.
    fn try_reserve(&self, lengths: &[u32], pieces: &mut Vec<Piece>) -> StoreResult<bool> {
        let mut state = self.lock();
        while let Some(length) = lengths.get(pieces.len()) {
            let span = crate::sqlite::record::HEADER as u64 + u64::from(*length);
            if let Some((number, offset)) = state.active {
                // The active segment is always in the map.
                let Some(segment) = state.segments.get_mut(&number) else {
                    return Err(StoreError::Damaged("no active segment".into()));
                };
                if offset + span <= segment.capacity {
                    segment.live += span;
                    pieces.push(Piece {
                        segment: number,
                        epoch: segment.epoch,
                        offset,
                        length: *length,
                    });
                    state.active = Some((number, offset + span));
                    continue;
                }
                segment.use_ = Use::Sealed;
                state.active = None;
                self.settle_use(&mut state, number);
            }
            let Some(next) = state.ready.pop_front() else {
                if let Some(trouble) = state.trouble.take() {
                    return Err(trouble);
                }
                self.prepare(&mut state);
                if let Some(trouble) = state.trouble.take() {
                    return Err(trouble);
                }
                return Ok(false);
            };
            if let Some(segment) = state.segments.get_mut(&next) {
                segment.use_ = Use::Active;
            }
            state.active = Some((next, HEAD));
            // What an earlier chore ran into no longer matters.
            state.trouble = None;
            self.prepare(&mut state);
            // Running out is told to the one who needs the next segment, not to this one.
            state.trouble = None;
        }
        Ok(true)
    }

    /// Gives the space of these records back.
    pub fn release(&self, pieces: &[Piece]) {
        if pieces.is_empty() {
            return;
        }
        let mut state = self.lock();
        for piece in pieces {
            if let Some(segment) = state.segments.get_mut(&piece.segment)
                && segment.epoch == piece.epoch
            {
                segment.live = segment.live.saturating_sub(piece.span());
                state.freed_bytes += piece.span();
                self.settle_use(&mut state, piece.segment);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Frees a sealed segment without live bytes, or has it removed if enough are free.
    fn settle_use(&self, state: &mut State, number: u32) {
        let Some(segment) = state.segments.get_mut(&number) else {
            return;
        };
        if segment.use_ != Use::Sealed || segment.live > 0 {
            return;
        }
        segment.use_ = Use::Free;
        let free = state
            .segments
            .values()
            .filter(|s| s.use_ == Use::Free)
            .count();
        if free > KEEP_FREE {
            state.segments.remove(&number);
            let _ = self.chores.send(Chore::Remove { number });
        }
    }

    pub fn file(&self, segment: u32) -> Option<Arc<File>> {
        self.lock().segments.get(&segment).map(|s| s.file.clone())
    }

    /// Notes a content that was streamed in, until its message is accepted.
    pub fn spool(&self, pieces: Vec<Piece>) -> ContentRef {
        let at = to_ref(&pieces);
        self.lock()
            .spooled
            .insert(at.0.clone(), (pieces, Instant::now()));
        at
    }

    /// The records of a streamed content that is now being accepted.
    pub fn claim(&self, at: &ContentRef) -> StoreResult<Vec<Piece>> {
        match self.lock().spooled.remove(&at.0) {
            Some((pieces, _)) => Ok(pieces),
            None => Err(StoreError::Conflict(
                "the content was accepted already, or given up".into(),
            )),
        }
    }

    /// A claim that came to nothing for now.
    pub fn unclaim(&self, pieces: Vec<Piece>) {
        self.spool(pieces);
    }

    pub fn discard(&self, at: &ContentRef) {
        let spooled = self.lock().spooled.remove(&at.0);
        if let Some((pieces, _)) = spooled {
            self.release(&pieces);
        }
    }

    /// Gives up streamed contents that nobody accepted in an hour. Returns the bytes
    /// freed since the last call, and the live ones.
    pub fn sweep(&self) -> (u64, u64) {
        let stale: Vec<Vec<Piece>> = {
            let mut state = self.lock();
            let old: Vec<String> = state
                .spooled
                .iter()
                .filter(|(_, (_, since))| since.elapsed() > SPOOLED_FOR)
                .map(|(at, _)| at.clone())
                .collect();
            old.iter()
                .filter_map(|at| state.spooled.remove(at))
                .map(|(pieces, _)| pieces)
                .collect()
        };
        for pieces in stale {
            self.release(&pieces);
        }
        let mut state = self.lock();
        let freed = std::mem::take(&mut state.freed_bytes);
        (freed, state.segments.values().map(|s| s.live).sum())
    }
}

/// The pieces of several references.
pub(crate) fn pieces_of(refs: impl Iterator<Item = impl AsRef<str>>) -> StoreResult<Vec<Piece>> {
    let mut all = Vec::new();
    for text in refs {
        all.extend(from_ref(text.as_ref())?);
    }
    Ok(all)
}
