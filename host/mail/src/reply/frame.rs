//! Finds the end of a reply in the bytes of a peer (RFC 5321 s. 4.2).
//!
//! Most replies are positive and looked at for their code only, so they are measured, not
//! copied; who wants to keep one reads the frame with [`ReplyReader`](super::ReplyReader),
//! whose leniency is followed here: a bare LF ends a line, the separator may be missing, inside
//! a reply a line may lack its code, and the code of the last line counts. Bounded as well, and
//! sooner: what can't become a reply is not waited for.

/// Octets of one reply. EHLO replies are the longest honest ones, at about 1 KiB.
const MAX_REPLY: usize = 64 * 1024;
/// Lines of one reply.
const MAX_LINES: usize = 100;

/// A whole reply at the start of the bytes it was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub code: u16,
    /// With the end of its last line.
    pub len: usize,
}

/// The bytes are not SMTP replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

/// Incremental search for the end of a reply; remembers what it has looked at, so that a
/// reply that comes byte by byte is not scanned anew each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Framer {
    /// Start of the line being searched.
    line: usize,
    /// Bytes of it without a line end.
    scanned: usize,
    lines: usize,
}

impl Framer {
    /// `bytes` starts with the reply and has what came so far. After a frame was returned
    /// the next call is about the next reply.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<Frame>, Garbled> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &bytes[self.line + self.scanned..]) else {
                self.scanned = bytes.len() - self.line;
                let first = self.lines == 0;
                if bytes.len() > MAX_REPLY
                    || first && bytes.iter().take(3).any(|b| !b.is_ascii_digit())
                {
                    return Err(Garbled);
                }
                return Ok(None);
            };
            let next = self.line + self.scanned + end + 1;
            let head = head(&bytes[self.line..next]);
            self.lines += 1;
            if next > MAX_REPLY || self.lines > MAX_LINES || self.lines == 1 && head.is_none() {
                return Err(Garbled);
            }
            (self.line, self.scanned) = (next, 0);
            if let Some((code, true)) = head {
                *self = Framer::default();
                return Ok(Some(Frame { code, len: next }));
            }
        }
    }
}

/// Code of a line, and whether it is the last one; `None` if it has no code.
fn head(line: &[u8]) -> Option<(u16, bool)> {
    let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = line else {
        return None;
    };
    let digit = |d: &u8| u16::from(d - b'0');
    let code = digit(a) * 100 + digit(b) * 10 + digit(c);
    match rest.first() {
        Some(b'0'..=b'9') => None,
        after => Some((code, after != Some(&b'-'))),
    }
}

/// The lines of a framed reply without code, separator and line end.
pub fn lines(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    frame
        .split_inclusive(|b| *b == b'\n')
        .map(|line| line.get(4..).unwrap_or(b"").trim_ascii_end())
}

#[cfg(test)]
mod tests {
    use super::super::ReplyReader;
    use super::*;
    use proptest::prelude::*;

    fn find(bytes: &[u8]) -> Result<Option<Frame>, Garbled> {
        Framer::default().find(bytes)
    }

    #[test]
    fn frames() {
        let frame = |code, len| Ok(Some(Frame { code, len }));
        assert_eq!(find(b"250 ok\r\n"), frame(250, 8));
        assert_eq!(find(b"250 ok\r\n354 x"), frame(250, 8));
        assert_eq!(find(b"250-a\r\n250 b\r\n"), frame(250, 14));
        assert_eq!(find(b"250-a\n250\n"), frame(250, 10));
        assert_eq!(find(b"550-a\r\n451 b\r\n"), frame(451, 14));
        assert_eq!(find(b"250\r\n"), frame(250, 5));
        assert_eq!(find(b""), Ok(None));
        assert_eq!(find(b"25"), Ok(None));
        assert_eq!(find(b"250-a\r\n250 "), Ok(None));
        assert_eq!(find(b"250ok\r\n"), frame(250, 7));
        assert_eq!(find(b"250-a\r\nb\r\n250 c\r\n"), frame(250, 17));
        for garbage in [
            &b"HTTP/1.1 400 Bad\r\n"[..],
            b"SSH-2.0",
            b"999 x\r\n",
            b"150 x\r\n",
            b"2500 x\r\n",
            b"\r\n",
        ] {
            assert_eq!(find(garbage), Err(Garbled), "{garbage:?}");
        }
    }

    #[test]
    fn byte_by_byte_is_the_same() {
        let bytes = b"250-first\r\n250-second\r\n250 third\r\n";
        let mut framer = Framer::default();
        for n in 0..bytes.len() {
            assert_eq!(framer.find(&bytes[..n]), Ok(None), "{n}");
        }
        assert_eq!(framer.find(bytes).unwrap().unwrap().len, bytes.len());
    }

    #[test]
    fn endless_replies_end() {
        let mut long = b"250 ".to_vec();
        long.resize(MAX_REPLY + 5, b'x');
        assert_eq!(find(&long), Err(Garbled));
        assert_eq!(find(&b"250-x\r\n".repeat(MAX_LINES + 1)), Err(Garbled));
    }

    proptest! {
        /// What is framed can be read, and is the same reply.
        #[test]
        fn agrees_with_the_reader(
            input in "((250|550|354|99)[ -]?(5\\.1\\.1 )?[a-z0-9\\x00-\\x1f]{0,9}\r?\n){1,5}",
        ) {
            let input = input.as_bytes();
            let framed = find(input);
            match ReplyReader::new().feed(input) {
                Ok((used, Some(reply))) => {
                    prop_assert_eq!(framed, Ok(Some(Frame { code: reply.code, len: used })));
                }
                Ok((_, None)) => prop_assert_eq!(framed, Ok(None)),
                Err(_) => prop_assert_eq!(framed, Err(Garbled)),
            }
        }
    }
}
