//! Contents to and from segments: the stream in, the reader, and the thread that
//! writes and syncs what a batch brings.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};

use bytes::{Bytes, BytesMut};
use tidegate_queue::{Content, ContentReader, ContentWriter, Fut, StoreResult};
use tokio::sync::oneshot;

use super::disk::Disk;
use super::record::{self, HEADER, Piece};
use super::segments::{Segments, fault};

/// A run of records that lie next to each other in one file.
struct Run {
    file: Arc<File>,
    offset: u64,
    buffers: Vec<Bytes>,
}

/// The records of one batch: one write per segment, one sync per segment.
#[derive(Default)]
pub(crate) struct Load {
    runs: Vec<Run>,
    /// Segment numbers and files to sync, also those that streams wrote to.
    files: Vec<(u32, Arc<File>)>,
    end: Option<(u32, u64)>,
}

impl Load {
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    fn touch(&mut self, segments: &Segments, number: u32) -> io::Result<Arc<File>> {
        if let Some((_, file)) = self.files.iter().rev().find(|(n, _)| *n == number) {
            return Ok(file.clone());
        }
        let file = segments
            .file(number)
            .ok_or_else(|| io::Error::other(format!("segment {number} is gone")))?;
        self.files.push((number, file.clone()));
        Ok(file)
    }

    /// Adds a record at its reserved place.
    pub fn add(
        &mut self,
        segments: &Segments,
        piece: &Piece,
        message: i64,
        part: u32,
        data: Bytes,
    ) -> io::Result<()> {
        let file = self.touch(segments, piece.segment)?;
        let header = record::header(piece, message, part, &data);
        if self.end != Some((piece.segment, piece.offset)) {
            self.runs.push(Run {
                file,
                offset: piece.offset,
                buffers: Vec::with_capacity(16),
            });
        }
        if let Some(run) = self.runs.last_mut() {
            run.buffers.push(Bytes::copy_from_slice(&header));
            run.buffers.push(data);
        }
        self.end = Some((piece.segment, piece.offset + piece.span()));
        Ok(())
    }

    /// Syncs the segments of records that a stream wrote.
    pub fn also_sync(&mut self, segments: &Segments, pieces: &[Piece]) -> io::Result<()> {
        for piece in pieces {
            self.touch(segments, piece.segment)?;
        }
        Ok(())
    }

    fn write(&self, disk: &dyn Disk) -> io::Result<()> {
        for run in &self.runs {
            let buffers: Vec<IoSlice<'_>> = run.buffers.iter().map(|b| IoSlice::new(b)).collect();
            disk.write(&run.file, &buffers, run.offset)?;
        }
        Ok(())
    }

    fn sync(&self, disk: &dyn Disk) -> io::Result<u64> {
        for (_, file) in &self.files {
            disk.sync(file)?;
        }
        Ok(self.files.len() as u64)
    }
}

/// Tells how many syncs brought a load to stable storage.
pub(crate) type Synced = oneshot::Receiver<io::Result<u64>>;

struct Job {
    load: Load,
    written: oneshot::Sender<io::Result<()>>,
    synced: oneshot::Sender<io::Result<u64>>,
}

/// The thread that writes and syncs loads, in order.
pub(crate) struct Loader {
    jobs: mpsc::Sender<Job>,
}

impl Loader {
    pub fn start(disk: Arc<dyn Disk>) -> StoreResult<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("contents".into())
            .spawn(move || {
                // The system tells of a lost write once. The batch that it is told to may
                // be refused for another reason, so it is remembered here.
                let mut broken: Option<String> = None;
                while let Ok(job) = todo.recv() {
                    let written = match &broken {
                        Some(why) => Err(io::Error::other(why.clone())),
                        None => job.load.write(&*disk),
                    };
                    let failed = written.is_err();
                    // A receiver that is gone has given the batch up.
                    let _ = job.written.send(written);
                    if failed {
                        continue;
                    }
                    let synced = job.load.sync(&*disk);
                    if let Err(error) = &synced {
                        broken = Some(format!("an earlier sync failed: {error}"));
                    }
                    let _ = job.synced.send(synced);
                }
            })
            .map_err(|e| fault("thread", &e))?;
        Ok(Loader { jobs })
    }

    /// The first answer: written (to the page cache); the second: on stable storage.
    pub fn begin(&self, load: Load) -> (oneshot::Receiver<io::Result<()>>, Synced) {
        let (written, was_written) = oneshot::channel();
        let (synced, was_synced) = oneshot::channel();
        // If the thread is gone the senders are dropped, which the receivers see.
        let _ = self.jobs.send(Job {
            load,
            written,
            synced,
        });
        (was_written, was_synced)
    }
}

/// Streams at the same time beyond which each gets smaller records: what a record is made of
/// lies in memory until it is full.
const MANY_STREAMS: usize = 16;
const SMALL_RECORD: usize = 64 * 1024;

/// Streams a large content into segments, a record per megabyte, or per 64 KiB where there are many.
pub(crate) struct SegmentWriter {
    segments: Arc<Segments>,
    pending: BytesMut,
    pieces: Vec<Piece>,
    size: u64,
}

impl SegmentWriter {
    pub fn new(segments: Arc<Segments>) -> Self {
        segments.streams.fetch_add(1, Ordering::Relaxed);
        SegmentWriter {
            segments,
            pending: BytesMut::new(),
            pieces: Vec::new(),
            size: 0,
        }
    }

    async fn write(&mut self, data: Bytes) -> StoreResult<()> {
        let reserved = self.segments.reserve(&[data.len() as u32]).await?;
        let part = self.pieces.len() as u32;
        self.pieces.extend_from_slice(&reserved);
        for piece in reserved {
            let segments = self.segments.clone();
            let data = data.clone();
            let written = tokio::task::spawn_blocking(move || {
                let file = segments
                    .file(piece.segment)
                    .ok_or_else(|| io::Error::other("segment is gone"))?;
                let header = record::header(&piece, 0, part, &data);
                let buffers = [IoSlice::new(&header), IoSlice::new(&data)];
                segments.disk.write(&file, &buffers, piece.offset)
            })
            .await
            .unwrap_or_else(|e| Err(io::Error::other(e)));
            written.map_err(|e| fault("content", &e))?;
        }
        Ok(())
    }
}

impl ContentWriter for SegmentWriter {
    fn append(&mut self, chunk: Bytes) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move {
            self.size += chunk.len() as u64;
            let mut most = self.segments.max_record();
            if self.segments.streams.load(Ordering::Relaxed) > MANY_STREAMS {
                most = most.min(SMALL_RECORD);
            }
            let mut rest = chunk;
            loop {
                let room = most.saturating_sub(self.pending.len());
                if rest.len() < room {
                    self.pending.extend_from_slice(&rest);
                    return Ok(());
                }
                let part = rest.split_to(room);
                let data = if self.pending.is_empty() {
                    part
                } else {
                    self.pending.extend_from_slice(&part);
                    // A buffer that was written is given up, not filled again: it may be
                    // far larger than the next needs.
                    std::mem::take(&mut self.pending).freeze()
                };
                self.write(data).await?;
            }
        })
    }

    fn finish(mut self: Box<Self>) -> Fut<'static, StoreResult<Content>> {
        Box::pin(async move {
            if !self.pending.is_empty() {
                let data = self.pending.split().freeze();
                self.write(data).await?;
            }
            let pieces = std::mem::take(&mut self.pieces);
            Ok(Content::Spooled {
                at: self.segments.spool(pieces),
                size: self.size,
            })
        })
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        self.segments.release(&self.pieces);
        self.segments.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads a content; keeps the record that was read last.
pub(crate) struct SegmentReader {
    segments: Arc<Segments>,
    pieces: Result<Vec<Piece>, String>,
    size: u64,
    last: Mutex<Option<(usize, Bytes)>>,
}

impl SegmentReader {
    pub fn new(segments: Arc<Segments>, pieces: StoreResult<Vec<Piece>>, size: u64) -> Self {
        SegmentReader {
            segments,
            pieces: pieces.map_err(|e| e.to_string()),
            size,
            last: Mutex::new(None),
        }
    }

    async fn record(&self, at: usize, piece: Piece) -> io::Result<Bytes> {
        {
            let last = self.last.lock().unwrap_or_else(|e| e.into_inner());
            if let Some((number, data)) = &*last
                && *number == at
            {
                return Ok(data.clone());
            }
        }
        let file = self
            .segments
            .file(piece.segment)
            .ok_or_else(|| io::Error::other(format!("segment {} is gone", piece.segment)))?;
        let data = match cached(&file, &piece)? {
            Some(data) => data,
            None => {
                let disk = self.segments.disk.clone();
                tokio::task::spawn_blocking(move || record::read(&*disk, &file, &piece))
                    .await
                    .unwrap_or_else(|e| Err(io::Error::other(e)))?
            }
        };
        *self.last.lock().unwrap_or_else(|e| e.into_inner()) = Some((at, data.clone()));
        Ok(data)
    }
}

/// The record if the page cache has it whole: without waiting for the disk, hence
/// without another thread.
fn cached(file: &File, piece: &Piece) -> io::Result<Option<Bytes>> {
    let mut buffer = vec![0u8; HEADER + piece.length as usize];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    let got = rustix::io::preadv2(
        file,
        &mut [IoSliceMut::new(&mut buffer)],
        piece.offset,
        flags,
    );
    match got {
        Ok(got) if got == buffer.len() => record::check(piece, Bytes::from(buffer)).map(Some),
        _ => Ok(None),
    }
}

impl ContentReader for SegmentReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, max: usize) -> Fut<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let pieces = self
                .pieces
                .as_ref()
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.clone()))?;
            let mut skip = offset;
            for (at, piece) in pieces.iter().enumerate() {
                if skip >= u64::from(piece.length) {
                    skip -= u64::from(piece.length);
                    continue;
                }
                let data = self.record(at, *piece).await?;
                let from = skip as usize;
                return Ok(data.slice(from..from.saturating_add(max).min(data.len())));
            }
            Ok(Bytes::new())
        })
    }
}
