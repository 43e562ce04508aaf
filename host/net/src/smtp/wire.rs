//! Bytes to and from a peer: commands collected for one write, replies framed from one
//! read, and never one without minding the other.
//!
//! Invariants: while something is written, what the peer says meanwhile is read, so that
//! two sides with full buffers don't wait for each other; bytes behind a reply are kept
//! for the next one, never dropped; each wait has a deadline for the whole reply, so a
//! peer that sends a byte now and then gains nothing.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_mail::reply::ReplyReader;
use tidegate_mail::reply::frame::{self, Frame, Framer};
use tidegate_mail::{Fault, Outcome, Reply, Stage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

/// Unread bytes of a peer kept at most: replies to a pipelined batch of recipients.
const MAX_UNREAD: usize = 512 * 1024;
/// Room that a connection at rest keeps for itself, in each direction.
const REST_SIZE: usize = 16 * 1024;
/// Room for one read.
const READ_SIZE: usize = 2048;

/// Why nothing more can be said or heard.
#[derive(Debug)]
pub enum Lost {
    Closed,
    Failed(io::Error),
    Timeout,
    Garbled(String),
}

impl Lost {
    pub fn fault(&self) -> Fault {
        match self {
            Lost::Closed | Lost::Failed(_) => Fault::ConnectionLost,
            Lost::Timeout => Fault::Timeout,
            Lost::Garbled(_) => Fault::GarbledReply,
        }
    }

    pub fn outcome(self, stage: Stage) -> Outcome {
        let outcome = Outcome::from_fault(stage, self.fault());
        self.describe(outcome)
    }

    /// For data whose final reply did not come.
    pub fn uncertain(self) -> Outcome {
        let outcome = Outcome::uncertain(self.fault());
        self.describe(outcome)
    }

    fn describe(self, outcome: Outcome) -> Outcome {
        match self {
            Lost::Failed(error) => outcome.with_detail(error.to_string()),
            Lost::Garbled(bytes) => outcome.with_detail(bytes),
            Lost::Closed | Lost::Timeout => outcome,
        }
    }
}

/// How a write ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    All,
    /// The peer spoke or closed before all was written.
    Interrupted,
}

/// A connection as replies and commands.
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
    input: Vec<u8>,
    /// Start of what no reply was made of yet.
    unread: usize,
    framer: Framer,
    /// Bounds of the last reply, valid until the next is read.
    last: (u16, usize, usize),
    closed: bool,
    /// Commands not yet written.
    pub output: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S) -> Self {
        Wire {
            stream,
            input: Vec::with_capacity(READ_SIZE),
            unread: 0,
            framer: Framer::default(),
            last: (0, 0, 0),
            closed: false,
            output: Vec::with_capacity(512),
        }
    }

    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Whether the peer has said something nobody asked for.
    pub fn has_unread(&self) -> bool {
        self.unread < self.input.len()
    }

    /// Gives back the room that a long exchange took, for the time that nothing is said.
    pub fn shrink(&mut self) {
        if !self.has_unread() {
            self.input.clear();
            (self.unread, self.last) = (0, (0, 0, 0));
        }
        self.input.shrink_to(REST_SIZE);
        self.output.shrink_to(REST_SIZE);
    }

    /// A look without waiting: an idle peer has neither spoken nor closed.
    pub async fn is_idle(&mut self) -> bool {
        let quiet = poll_fn(|cx| Poll::Ready(self.poll_fill(cx).is_pending())).await;
        quiet && !self.has_unread() && !self.closed
    }

    /// Writes the collected commands.
    pub async fn flush(&mut self, limit: Duration) -> Result<(), Lost> {
        let output = std::mem::take(&mut self.output);
        let result = self
            .write(&mut [IoSlice::new(&output)], false, Instant::now() + limit)
            .await;
        self.output = output;
        self.output.clear();
        match result {
            // What the peer said before it went still counts: a connection that broke shows
            // again when its reply is read.
            Ok(_) | Err(Lost::Failed(_)) => Ok(()),
            Err(lost) => Err(lost),
        }
    }

    /// Writes all of `bufs`. With `watch`, stops as soon as the peer speaks or closes.
    pub async fn write(
        &mut self,
        mut bufs: &mut [IoSlice<'_>],
        watch: bool,
        deadline: Instant,
    ) -> Result<Written, Lost> {
        let writing = poll_fn(|cx| {
            loop {
                if watch && (self.has_unread() || self.closed) {
                    return Poll::Ready(Ok(Written::Interrupted));
                }
                let step = if bufs.iter().all(|b| b.is_empty()) {
                    match Pin::new(&mut self.stream).poll_flush(cx) {
                        Poll::Ready(done) => {
                            return Poll::Ready(done.map(|()| Written::All).map_err(Lost::Failed));
                        }
                        Poll::Pending => Poll::Pending,
                    }
                } else {
                    Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
                };
                match step {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(Lost::Failed(io::ErrorKind::WriteZero.into())));
                    }
                    Poll::Ready(Ok(n)) => IoSlice::advance_slices(&mut bufs, n),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Lost::Failed(error))),
                    Poll::Pending => {
                        if self.closed {
                            return Poll::Ready(Ok(Written::Interrupted));
                        }
                        // The peer may be waiting for us to read. Its words don't end this
                        // write unless we watch for them.
                        match self.poll_fill(cx) {
                            Poll::Ready(Ok(())) => {}
                            Poll::Ready(Err(lost)) => return Poll::Ready(Err(lost)),
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                }
            }
        });
        timeout_at(deadline, writing)
            .await
            .unwrap_or(Err(Lost::Timeout))
    }

    /// Takes in what has come already, without waiting.
    pub async fn take_in(&mut self) -> Result<(), Lost> {
        poll_fn(|cx| {
            Poll::Ready(match self.poll_fill(cx) {
                Poll::Ready(Err(lost)) => Err(lost),
                _ => Ok(()),
            })
        })
        .await
    }

    /// Reads some bytes, or notes that the peer has closed.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        if self.unread > 0 && self.unread == self.input.len() {
            self.input.clear();
            self.unread = 0;
            self.last = (0, 0, 0);
        } else if self.unread >= 16 * READ_SIZE {
            self.input.drain(..self.unread);
            self.unread = 0;
            self.last = (0, 0, 0);
        }
        let len = self.input.len();
        if len - self.unread >= MAX_UNREAD {
            return Poll::Ready(Err(Lost::Garbled("more replies than commands".to_owned())));
        }
        self.input.resize(len + READ_SIZE, 0);
        let mut buf = ReadBuf::new(&mut self.input[len..]);
        let step = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
        let got = buf.filled().len();
        self.input.truncate(len + got);
        match step {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                self.closed = got == 0;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                self.closed = true;
                Poll::Ready(Err(Lost::Failed(error)))
            }
        }
    }

    /// Waits for the next reply and returns its code; [`Wire::reply`] has the rest.
    pub async fn read(&mut self, limit: Duration) -> Result<u16, Lost> {
        if let Some(code) = self.buffered()? {
            return Ok(code);
        }
        let reading = async {
            loop {
                if self.closed {
                    return Err(Lost::Closed);
                }
                poll_fn(|cx| self.poll_fill(cx)).await?;
                if let Some(code) = self.buffered()? {
                    return Ok(code);
                }
            }
        };
        timeout_at(Instant::now() + limit, reading)
            .await
            .unwrap_or(Err(Lost::Timeout))
    }

    /// The next reply if all of it has come.
    pub fn buffered(&mut self) -> Result<Option<u16>, Lost> {
        match self.framer.find(&self.input[self.unread..]) {
            Ok(Some(Frame { code, len })) => {
                self.last = (code, self.unread, self.unread + len);
                self.unread += len;
                Ok(Some(code))
            }
            Ok(None) => Ok(None),
            Err(frame::Garbled) => {
                let seen = &self.input[self.unread..];
                let shown: String = String::from_utf8_lossy(&seen[..seen.len().min(80)])
                    .chars()
                    .map(|c| if c.is_control() { '?' } else { c })
                    .collect();
                Err(Lost::Garbled(format!("received: {shown}")))
            }
        }
    }

    /// The bytes of the last reply read.
    pub fn last_frame(&self) -> &[u8] {
        &self.input[self.last.1..self.last.2]
    }

    /// The last reply read.
    pub fn reply(&self) -> Reply {
        match ReplyReader::new().feed(self.last_frame()) {
            Ok((_, Some(reply))) => reply,
            // A frame is a whole reply; see the test in `frame`.
            _ => Reply {
                code: self.last.0,
                enhanced: None,
                text: String::new(),
            },
        }
    }

    /// The last reply read, as a reason not to go on: 4xx and 5xx as they are, anything
    /// else is out of place and blamed on the peer.
    pub fn refusal(&self, stage: Stage) -> Outcome {
        let reply = self.reply();
        if matches!(reply.code, 400..=599) {
            return Outcome::from_reply(stage, reply);
        }
        Outcome {
            reply: Some(reply),
            ..Outcome::from_fault(stage, Fault::GarbledReply)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn replies_of_one_read_are_given_one_by_one() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let mut wire = Wire::new(ours);
        theirs
            .write_all(b"250 one\r\n550-5.1.1 no\r\n550 5.1.1 never\r\n354 go")
            .await
            .unwrap();
        assert_eq!(wire.read(LIMIT).await.unwrap(), 250);
        assert_eq!(wire.read(LIMIT).await.unwrap(), 550);
        assert_eq!(wire.reply().text, "no\nnever");
        assert!(wire.has_unread());
        drop(theirs);
        assert!(matches!(wire.read(LIMIT).await, Err(Lost::Closed)));
    }

    #[tokio::test]
    async fn both_sides_with_full_buffers_do_not_deadlock() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let peer = tokio::spawn(async move {
            // Answers each line before it reads the next, as simple servers do.
            let mut got = Vec::new();
            let mut byte = [0u8; 1];
            while theirs.read(&mut byte).await.unwrap() == 1 {
                got.push(byte[0]);
                if byte[0] == b'\n' {
                    let text = format!("250 {}\r\n", "x".repeat(80));
                    theirs.write_all(text.as_bytes()).await.unwrap();
                }
            }
            got.len()
        });
        let mut wire = Wire::new(ours);
        for _ in 0..500 {
            wire.output
                .extend_from_slice(b"RCPT TO:<a@example.org>\r\n");
        }
        wire.flush(LIMIT).await.unwrap();
        for _ in 0..500 {
            assert_eq!(wire.read(LIMIT).await.unwrap(), 250);
        }
        assert!(wire.is_idle().await);
        drop(wire);
        assert_eq!(peer.await.unwrap(), 500 * 25);
    }

    #[tokio::test]
    async fn a_connection_at_rest_keeps_little() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(ours);
        for _ in 0..5000 {
            wire.output
                .extend_from_slice(b"RCPT TO:<a@example.org>\r\n");
        }
        wire.flush(LIMIT).await.unwrap();
        theirs
            .write_all(&b"250 2.1.5 ok\r\n".repeat(10_000))
            .await
            .unwrap();
        for _ in 0..10_000 {
            assert_eq!(wire.read(LIMIT).await.unwrap(), 250);
            wire.take_in().await.unwrap();
        }
        assert!(wire.output.capacity() > REST_SIZE && wire.input.capacity() > REST_SIZE);
        wire.shrink();
        assert!(wire.output.capacity() <= REST_SIZE && wire.input.capacity() <= REST_SIZE);
        theirs.write_all(b"421 bye\r\n").await.unwrap();
        assert_eq!(wire.read(LIMIT).await.unwrap(), 421);
        assert_eq!(wire.reply().text, "bye");
        // What is unread stays.
        theirs.write_all(b"250 one\r\n").await.unwrap();
        wire.take_in().await.unwrap();
        wire.shrink();
        assert_eq!(wire.read(LIMIT).await.unwrap(), 250);
    }

    #[tokio::test]
    async fn a_watched_write_ends_when_the_peer_speaks() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut wire = Wire::new(ours);
        theirs.write_all(b"552 too much\r\n").await.unwrap();
        let body = vec![b'x'; 1000];
        let end = wire
            .write(&mut [IoSlice::new(&body)], true, Instant::now() + LIMIT)
            .await
            .unwrap();
        assert_eq!(end, Written::Interrupted);
        assert_eq!(wire.read(LIMIT).await.unwrap(), 552);
    }

    #[tokio::test]
    async fn a_drip_feed_meets_the_deadline_of_the_whole_reply() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut wire = Wire::new(ours);
        let drip = tokio::spawn(async move {
            for byte in b"250-".iter().chain(std::iter::repeat(&b'x')) {
                if theirs.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let limit = Duration::from_millis(100);
        assert!(matches!(wire.read(limit).await, Err(Lost::Timeout)));
        drop(wire);
        drip.await.unwrap();
    }
}
