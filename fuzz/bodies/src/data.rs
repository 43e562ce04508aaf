//! The data decoder, against a plain model of it: one that has the whole content at hand and reads
//! it line by line.

use crate::driver::{Answers, Driver, Event, MAX_HEADER, MAX_HOPS, MAX_LINE, MAX_SIZE, config};
use crate::input::Input;

const BEFORE: &[u8] = b"EHLO c\r\nAUTH PLAIN AHVzZXIAc2VjcmV0\r\nMAIL FROM:<a@acme.example>\r\n\
                        RCPT TO:<b@example.org>\r\n";

/// Input: a byte of flags, the size of the pieces, the size of the chunks, then a content.
///
/// Invariant: what is accepted, byte for byte, and where header and body part, or the fault that is
/// replied, is the model's; so only a dot between two CRLFs ends a DATA, whatever is around it.
pub fn data(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let size = usize::from(input.byte() % 64) + 1;
    let chunk = usize::from(input.byte()) + 1;
    let content = input.rest();
    let (repair, bdat) = (flags & 1 != 0, flags & 2 != 0);

    let mut driver = Driver::new(&config(false, repair), false, Answers::default());
    driver.feed(BEFORE);
    let expected = if bdat {
        driver.feed_by(size, &chunked(content, chunk));
        by_chunks(content, chunk, repair)
    } else {
        let sent = [content, b"\r\n.\r\n"].concat();
        driver.feed(b"DATA\r\n");
        let model = Model::read(&sent, true, repair);
        // Not what follows the end: it would be commands. A CR shows that it is bare by what follows.
        let fed = if model.bare { sent.len() } else { model.read };
        driver.feed_by(size, &sent[..fed]);
        model.verdict(true)
    };
    let accepted = driver.events.iter().any(|e| matches!(e, Event::Accept(_)));
    match expected {
        Verdict::Accepted { header, body } => {
            assert!(accepted, "not accepted: {}", driver.replies());
            assert_eq!(driver.content(), (header, body));
        }
        Verdict::Refused(words) => {
            assert!(!accepted, "accepted, but: {words}");
            assert!(
                driver.replies().contains(words),
                "not {words:?} in {}",
                driver.replies()
            );
            // Chunks behind the refused one are errors, and enough of them close as well.
            assert!(driver.closed == (words == BARE) || bdat);
        }
    }
}

/// BDAT commands for a content, the last one with LAST.
fn chunked(content: &[u8], size: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut left = content;
    loop {
        let (piece, rest) = left.split_at(size.min(left.len()));
        left = rest;
        let last = if left.is_empty() { " LAST" } else { "" };
        wire.extend_from_slice(format!("BDAT {}{last}\r\n", piece.len()).as_bytes());
        wire.extend_from_slice(piece);
        if left.is_empty() {
            return wire;
        }
    }
}

/// A content is given up at the end of the chunk that shows its first fault.
fn by_chunks(content: &[u8], size: usize, repair: bool) -> Verdict {
    let mut end = size;
    while end < content.len() {
        let verdict = Model::read(&content[..end], false, repair).verdict(false);
        if matches!(verdict, Verdict::Refused(_)) {
            return verdict;
        }
        end += size;
    }
    Model::read(content, false, repair).verdict(true)
}

const BARE: &str = "CR or LF by itself";

#[derive(Debug)]
enum Verdict {
    Accepted {
        header: Vec<u8>,
        body: Vec<u8>,
    },
    /// Words of the reply.
    Refused(&'static str),
}

#[derive(Default)]
struct Model {
    header: Vec<u8>,
    body: Vec<u8>,
    in_body: bool,
    hops: usize,
    bare: bool,
    /// The content ends in a CR of which it is not known what follows.
    open_cr: bool,
    nul: bool,
    long: bool,
    partial: bool,
    repair: bool,
    /// Bytes up to the end of the content, or all.
    read: usize,
}

enum End {
    CrLf,
    Bare,
    /// The input ends here, possibly behind a CR.
    Open,
}

impl Model {
    fn read(input: &[u8], dots: bool, repair: bool) -> Model {
        let mut model = Model {
            repair,
            ..Model::default()
        };
        let mut at = 0;
        let mut after_crlf = true;
        while at < input.len() {
            let line = &input[at..];
            let length = line
                .iter()
                .position(|b| matches!(b, b'\r' | b'\n'))
                .unwrap_or(line.len());
            let (mut text, behind) = line.split_at(length);
            let (end, width) = match behind {
                [b'\r', b'\n', ..] => (End::CrLf, 2),
                [] => (End::Open, 0),
                [b'\r'] => (End::Open, 1),
                _ => (End::Bare, 1),
            };
            at += length + width;
            model.read = at;
            if dots && text == b"." {
                if after_crlf && matches!(end, End::CrLf) {
                    return model;
                }
            } else if dots && text.first() == Some(&b'.') {
                text = &text[1..];
            }
            after_crlf = matches!(end, End::CrLf);
            model.line(text, &end, width);
            if model.bare {
                return model;
            }
        }
        model
    }

    fn line(&mut self, text: &[u8], end: &End, width: usize) {
        self.nul |= text.contains(&0);
        self.long |= text.len() > MAX_LINE;
        if !self.in_body {
            let name: Vec<u8> = text.iter().filter(|b| **b != 0).copied().collect();
            let received = name
                .get(..8)
                .is_some_and(|n| n.eq_ignore_ascii_case(b"received"));
            if received && matches!(name.get(8), Some(b':' | b' ' | b'\t')) {
                self.hops += 1;
            }
        }
        let out = if self.in_body {
            &mut self.body
        } else {
            &mut self.header
        };
        out.extend_from_slice(text);
        match end {
            End::CrLf => out.extend_from_slice(b"\r\n"),
            End::Bare if self.repair => out.extend_from_slice(b"\r\n"),
            End::Bare => self.bare = true,
            End::Open => {
                self.open_cr = width == 1;
                self.partial = true;
                if self.open_cr {
                    out.push(b'\r');
                }
                return;
            }
        }
        self.in_body |= text.is_empty();
    }

    /// `ended`: nothing follows; a last line without its end gets one.
    fn verdict(mut self, ended: bool) -> Verdict {
        if ended && self.open_cr && !self.repair {
            self.bare = true;
        }
        if self.bare {
            return Verdict::Refused(BARE);
        }
        if ended && self.partial {
            let out = if self.in_body {
                &mut self.body
            } else {
                &mut self.header
            };
            out.extend_from_slice(if self.open_cr { b"\n" } else { b"\r\n" });
        }
        let faults = [
            (
                (self.header.len() + self.body.len()) as u64 > MAX_SIZE,
                "the message is larger than",
            ),
            (self.header.len() > MAX_HEADER, "the header is larger than"),
            (self.hops > MAX_HOPS, "the message loops"),
            (self.nul, "the message has a NUL"),
            (self.long, "the message has a line longer than"),
        ];
        match faults.into_iter().find(|(is, _)| *is) {
            Some((_, words)) => Verdict::Refused(words),
            None => Verdict::Accepted {
                header: self.header,
                body: self.body,
            },
        }
    }
}
