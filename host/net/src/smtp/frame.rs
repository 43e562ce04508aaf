//! Finds whole replies in the bytes of a peer (RFC 5321 s. 4.2).
//!
//! Lenient as s. 4.2.1 asks: a bare LF ends a line, text may be missing, the codes of a
//! multi-line reply may differ (the last one counts). Bounded: [`MAX_LINE`], [`MAX_REPLY`].
//! A frame is only measured; the text is copied when somebody wants to keep it.

use tidegate_mail::{Enhanced, Reply};

/// Longest line taken for SMTP, bytes. RFC 5321 s. 4.5.3.1.5 says 512.
pub const MAX_LINE: usize = 4096;
/// Longest reply, bytes. EHLO replies are the longest honest ones, at about 1 KiB.
pub const MAX_REPLY: usize = 64 * 1024;

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
}

impl Framer {
    /// `bytes` starts with the reply and has what came so far. After a frame was returned
    /// the next call is about the next reply.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<Frame>, Garbled> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &bytes[self.line + self.scanned..]) else {
                self.scanned = bytes.len() - self.line;
                // What can't become a reply is not waited for.
                let so_far = &bytes[self.line..];
                if self.scanned > MAX_LINE
                    || bytes.len() > MAX_REPLY
                    || so_far.iter().take(3).any(|b| !b.is_ascii_digit())
                {
                    return Err(Garbled);
                }
                return Ok(None);
            };
            let next = self.line + self.scanned + end + 1;
            let (code, last) = line_head(&bytes[self.line..next])?;
            if next > MAX_REPLY || next - self.line > MAX_LINE {
                return Err(Garbled);
            }
            (self.line, self.scanned) = (next, 0);
            if last {
                *self = Framer::default();
                return Ok(Some(Frame { code, len: next }));
            }
        }
    }
}

/// Code of a line, and whether it is the last one.
fn line_head(line: &[u8]) -> Result<(u16, bool), Garbled> {
    let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = line else {
        return Err(Garbled);
    };
    let last = match rest.first() {
        Some(b'-') => false,
        Some(b' ' | b'\t' | b'\r' | b'\n') => true,
        _ => return Err(Garbled),
    };
    let digit = |d: &u8| u16::from(d - b'0');
    Ok((digit(a) * 100 + digit(b) * 10 + digit(c), last))
}

/// The lines of a framed reply without code, separator and line end.
pub fn lines(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    frame
        .split_inclusive(|b| *b == b'\n')
        .map(|line| line.get(4..).unwrap_or(b"").trim_ascii_end())
}

/// The reply as kept and shown: enhanced code apart, control characters replaced,
/// at most [`Reply::MAX_TEXT`] bytes.
pub fn reply(code: u16, frame: &[u8]) -> Reply {
    let mut enhanced: Option<Enhanced> = None;
    let mut text = String::new();
    for (n, line) in lines(frame).enumerate() {
        let line = String::from_utf8_lossy(line);
        let (word, after) = line.split_once(' ').unwrap_or((&line, ""));
        let rest = match word.parse::<Enhanced>() {
            // Each line repeats the code (RFC 2034 s. 4); one that says another is text.
            Ok(found) if n == 0 || enhanced == Some(found) => {
                enhanced = Some(found);
                after
            }
            _ => &line,
        };
        if n > 0 {
            text.push('\n');
        }
        text.extend(rest.chars().map(|c| if c.is_control() { '?' } else { c }));
        if text.len() > Reply::MAX_TEXT {
            text.truncate(text.floor_char_boundary(Reply::MAX_TEXT));
            break;
        }
    }
    Reply {
        code,
        enhanced,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for garbage in [
            &b"HTTP/1.1 400 Bad\r\n"[..],
            b"SSH-2.0",
            b"999 x\r\n",
            b"150 x\r\n",
            b"250x\r\n",
            b"\r\n",
            b"250-a\r\nb\r\n",
            &[b'2'; 5],
        ] {
            let got = find(garbage);
            assert!(
                got == Err(Garbled) || garbage == [b'2'; 5] && got == Ok(None),
                "{garbage:?}"
            );
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
        long.resize(MAX_LINE + 5, b'x');
        assert_eq!(find(&long), Err(Garbled));
        assert_eq!(find(&b"250-x\r\n".repeat(MAX_REPLY / 7 + 2)), Err(Garbled));
    }

    #[test]
    fn text_is_sanitised_and_the_enhanced_code_taken_apart() {
        let bytes = b"550-5.1.1 no\x00 such\x1b user\r\n550 5.1.1 here\xff\r\n";
        let got = reply(550, bytes);
        assert_eq!(got.enhanced, Some(Enhanced::new(5, 1, 1)));
        assert_eq!(got.text, "no? such? user\nhere\u{fffd}");
        assert_eq!(reply(250, b"250\r\n").text, "");
        assert_eq!(
            reply(550, b"550 5.1.1\r\n").enhanced,
            Some(Enhanced::new(5, 1, 1))
        );
        assert_eq!(
            reply(550, b"550 1.2.3.4 is listed\r\n").text,
            "1.2.3.4 is listed"
        );
        let long = [b"550 ".as_slice(), &[0xc3, 0xa9].repeat(2000), b"\r\n"].concat();
        assert!(reply(550, &long).text.len() <= Reply::MAX_TEXT);
    }
}
