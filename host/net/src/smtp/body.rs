//! The content of a message on its way through DATA.
//!
//! A line that starts with a dot gets another (RFC 5321 s. 4.5.2). The content is sent
//! from where it lies: a stuffed dot is the same byte sent twice, by slices that overlap.
//! A line starts behind any LF: for valid content this is the same as CRLF, and content
//! with bare LFs can't smuggle an end of data past a lenient peer.

use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem::Finder;
use tidegate_queue::ports::ContentReader;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::wire::{Lost, Wire, Written};

/// Content read and sent at a time.
pub const BLOCK: usize = 128 * 1024;
/// Slices of one write.
const SLICES: usize = 32;
/// How long to look for a reply after a write has failed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why the end of the data was not sent. The peer can't have taken the message.
#[derive(Debug)]
pub enum Cut {
    /// The peer replied before the end; the reply is the last one read.
    Early,
    Lost(Lost),
    /// Our own store failed, or the content is not as long as it was said to be.
    Unreadable(String),
}

/// Time limits of sending content.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// For each block.
    pub block: Duration,
    /// For all of it, so that a peer that takes a little now and then gains nothing.
    pub total: Duration,
}

/// Reads the block at `offset`. The first is read before a transaction is begun, so that
/// unreadable content costs the peer nothing.
pub async fn block(content: &dyn ContentReader, offset: u64) -> Result<Bytes, String> {
    let left = content.size().saturating_sub(offset);
    let max = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
    if max == 0 {
        return Ok(Bytes::new());
    }
    let mut block = content
        .read(offset, max)
        .await
        .map_err(|error| error.to_string())?;
    if block.is_empty() {
        return Err(format!(
            "the content ends at {offset} of {}",
            content.size()
        ));
    }
    block.truncate(max);
    Ok(block)
}

/// Sends the content from `first` on and the end of data. When it returns `Ok` the peer
/// may have the whole message.
pub async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    content: &dyn ContentReader,
    first: Bytes,
    limits: BodyLimits,
) -> Result<(), Cut> {
    let total = Instant::now() + limits.total;
    let size = content.size();
    let dots = Finder::new(b"\n.");
    let mut tail = Tail::default();
    let mut current = first;
    let mut offset = current.len() as u64;
    loop {
        let line_start = tail.at_line_start();
        tail.push(&current);
        let last = offset >= size;
        let deadline = (Instant::now() + limits.block).min(total);
        let end: &[u8] = match (last, tail.at_line_end()) {
            (false, _) => b"",
            (true, true) => b".\r\n",
            (true, false) => b"\r\n.\r\n",
        };
        send_block(wire, &dots, &current, line_start, end, deadline).await?;
        if last {
            return Ok(());
        }
        wire.take_in().await.map_err(Cut::Lost)?;
        if wire.has_unread() {
            return Err(interrupted(wire, limits.block).await);
        }
        current = block(content, offset).await.map_err(Cut::Unreadable)?;
        offset += current.len() as u64;
    }
}

async fn send_block<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    dots: &Finder<'_>,
    block: &[u8],
    line_start: bool,
    end: &[u8],
    deadline: Instant,
) -> Result<(), Cut> {
    let mut at = 0;
    let mut first = line_start && block.first() == Some(&b'.');
    let mut done = false;
    while !done {
        let mut slices = [IoSlice::new(b""); SLICES];
        let mut used = 0;
        // The last two are kept for the rest of the block and the end of data.
        while used < SLICES - 2 {
            if first {
                first = false;
                slices[used] = IoSlice::new(b".");
                used += 1;
            }
            let Some(found) = dots.find(&block[at..]) else {
                slices[used] = IoSlice::new(&block[at..]);
                slices[used + 1] = IoSlice::new(end);
                used += 2;
                done = true;
                break;
            };
            // With the dot; the next slice starts at the dot and sends it again.
            slices[used] = IoSlice::new(&block[at..found + at + 2]);
            used += 1;
            at += found + 1;
        }
        match wire.write(&mut slices[..used], true, deadline).await {
            Ok(Written::All) => {}
            Ok(Written::Interrupted) => return Err(interrupted(wire, LAST_WORDS).await),
            Err(Lost::Failed(error)) => {
                // A server that refuses and closes breaks our write; its reply says why.
                return Err(match wire.read(LAST_WORDS).await {
                    Ok(_) => Cut::Early,
                    Err(_) => Cut::Lost(Lost::Failed(error)),
                });
            }
            Err(lost) => return Err(Cut::Lost(lost)),
        }
    }
    Ok(())
}

/// The peer has spoken or closed in the middle of the data.
async fn interrupted<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    limit: Duration,
) -> Cut {
    match wire.read(limit).await {
        Ok(_) => Cut::Early,
        Err(lost) => Cut::Lost(lost),
    }
}

/// The last two bytes sent.
#[derive(Default)]
struct Tail {
    bytes: [u8; 2],
    some: bool,
}

impl Tail {
    fn push(&mut self, block: &[u8]) {
        match block {
            [] => return,
            [one] => self.bytes = [self.bytes[1], *one],
            [.., a, b] => self.bytes = [*a, *b],
        }
        self.some = true;
    }

    fn at_line_start(&self) -> bool {
        !self.some || self.bytes[1] == b'\n'
    }

    fn at_line_end(&self) -> bool {
        !self.some || self.bytes == *b"\r\n"
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tidegate_queue::ports::Fut;
    use tokio::io::AsyncReadExt;

    use super::*;

    const LIMITS: BodyLimits = BodyLimits {
        block: Duration::from_secs(5),
        total: Duration::from_secs(20),
    };

    /// Content that comes in blocks of a chosen size.
    struct Chunky(Bytes, usize);

    impl ContentReader for Chunky {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, offset: u64, max: usize) -> Fut<'_, std::io::Result<Bytes>> {
            let from = offset as usize;
            let to = (from + max.min(self.1)).min(self.0.len());
            Box::pin(std::future::ready(Ok(self.0.slice(from..to))))
        }
    }

    fn on_the_wire(content: &[u8], chunk: usize) -> Vec<u8> {
        let content = Arc::new(Chunky(Bytes::copy_from_slice(content), chunk));
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async move {
                let (ours, mut theirs) = tokio::io::duplex(37);
                let peer = tokio::spawn(async move {
                    let mut got = Vec::new();
                    theirs.read_to_end(&mut got).await.unwrap();
                    got
                });
                let mut wire = Wire::new(ours);
                let first = block(&*content, 0).await.unwrap();
                send(&mut wire, &*content, first, LIMITS).await.unwrap();
                drop(wire);
                peer.await.unwrap()
            })
    }

    /// The rule, line by line.
    fn expected(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in content.split_inclusive(|b| *b == b'\n') {
            if line.first() == Some(&b'.') {
                out.push(b'.');
            }
            out.extend_from_slice(line);
        }
        if !content.is_empty() && !content.ends_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
        out
    }

    #[test]
    fn stuffing_and_the_end_of_data() {
        for content in [
            &b""[..],
            b".",
            b"..\r\n.\r\n",
            b"a\r\n.b\r\n",
            b"no line end",
            b"half\r",
            b"\r\n",
            b"a\n.\r\nb",
        ] {
            for chunk in [1, 2, 3, 1000] {
                assert_eq!(
                    on_the_wire(content, chunk),
                    expected(content),
                    "{content:?}"
                );
            }
        }
        let many = b".\r\n".repeat(500);
        assert_eq!(on_the_wire(&many, 700), expected(&many));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_content_in_any_blocks(
            parts in proptest::collection::vec(
                prop_oneof![Just("."), Just("\r\n"), Just("\n"), Just("\r"), Just("ab")], 0..80),
            chunk in 1usize..20,
        ) {
            let content = parts.concat().into_bytes();
            prop_assert_eq!(on_the_wire(&content, chunk), expected(&content));
        }
    }

    #[tokio::test]
    async fn content_shorter_than_said_is_not_ended() {
        struct Short;
        impl ContentReader for Short {
            fn size(&self) -> u64 {
                10
            }
            fn read(&self, offset: u64, _: usize) -> Fut<'_, std::io::Result<Bytes>> {
                let part = if offset == 0 { &b"12345"[..] } else { b"" };
                Box::pin(std::future::ready(Ok(Bytes::from_static(part))))
            }
        }
        let (ours, mut theirs) = tokio::io::duplex(100);
        let mut wire = Wire::new(ours);
        let first = block(&Short, 0).await.unwrap();
        let end = send(&mut wire, &Short, first, LIMITS).await;
        assert!(matches!(end, Err(Cut::Unreadable(_))));
        drop(wire);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"12345");
    }
}
