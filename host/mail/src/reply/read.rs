//! Reading a peer's replies, without I/O.
//!
//! Hostile by assumption: lines are cut, their number and the octets of one reply are
//! bounded, and the text that comes out has no control character but the `\n` between
//! lines. Lenient: bare LF, a missing text, codes that change between the lines (the last one
//! counts), a line without a code inside a reply. What does not begin with a code is not SMTP.

use super::{Enhanced, Reply};

/// Lines of one reply.
const MAX_LINES: usize = 100;
/// Octets of a line that are looked at; the rest is dropped.
const MAX_LINE: usize = 2048;
/// Octets of one reply that are read at all.
const MAX_OCTETS: usize = 256 * 1024;

/// The peer's bytes were not a reply. The connection can't be used any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    #[error("the reply does not begin with a code from 200 to 599: {0:?}")]
    Garbled(String),
    #[error("the reply has more than {MAX_LINES} lines")]
    TooManyLines,
    #[error("the reply is longer than {MAX_OCTETS} octets")]
    TooLong,
}

/// Reads replies from bytes as they come.
#[derive(Debug, Default)]
pub struct ReplyReader {
    /// A line whose end has not come yet, cut to [`MAX_LINE`].
    partial: Vec<u8>,
    code: u16,
    enhanced: Option<Enhanced>,
    text: String,
    lines: usize,
    octets: usize,
}

impl ReplyReader {
    pub fn new() -> Self {
        ReplyReader::default()
    }

    /// Whether part of a reply has been read.
    pub fn is_midway(&self) -> bool {
        self.octets > 0
    }

    /// Reads from the front of `input`: how many bytes were used up, and the reply if it is
    /// complete. Without one all of `input` was used; with one, what follows it was
    /// not looked at. After an error the reader is of no more use.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Option<Reply>), BadReply> {
        let mut used = 0;
        while used < input.len() {
            let rest = &input[used..];
            let newline = memchr::memchr(b'\n', rest);
            let piece = &rest[..newline.unwrap_or(rest.len())];
            used += newline.map_or(piece.len(), |at| at + 1);
            self.octets += piece.len() + 1;
            if self.octets > MAX_OCTETS {
                return Err(BadReply::TooLong);
            }
            if newline.is_some() && self.partial.is_empty() {
                if self.line(&piece[..piece.len().min(MAX_LINE)])? {
                    return Ok((used, Some(self.finish())));
                }
                continue;
            }
            let room = MAX_LINE - self.partial.len();
            self.partial
                .extend_from_slice(&piece[..piece.len().min(room)]);
            if newline.is_some() {
                let line = std::mem::take(&mut self.partial);
                if self.line(&line)? {
                    return Ok((used, Some(self.finish())));
                }
            }
        }
        Ok((used, None))
    }

    /// Takes one line without its LF; `true` if it is the last of the reply.
    fn line(&mut self, line: &[u8]) -> Result<bool, BadReply> {
        self.lines += 1;
        if self.lines > MAX_LINES {
            return Err(BadReply::TooManyLines);
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (text, last) = match code_of(line) {
            Some(code) => {
                self.code = code;
                let more = line.get(3) == Some(&b'-');
                let text_at = match line.get(3) {
                    Some(b' ' | b'-' | b'\t') => 4,
                    _ => 3,
                };
                (&line[text_at.min(line.len())..], !more)
            }
            // Servers with a text of several lines in their configuration send this.
            None if self.lines > 1 => (line, false),
            None => return Err(BadReply::Garbled(excerpt(line))),
        };
        let text = String::from_utf8_lossy(text);
        let text = self.without_enhanced(text.trim());
        if self.lines > 1 && self.text.len() < Reply::MAX_TEXT {
            self.text.push('\n');
        }
        for c in text.chars() {
            let c = sanitised(c);
            if self.text.len() + c.len_utf8() > Reply::MAX_TEXT {
                break;
            }
            self.text.push(c);
        }
        Ok(last)
    }

    /// Notes the enhanced code of the first line that has one, and drops it from every line
    /// that repeats it.
    fn without_enhanced<'t>(&mut self, text: &'t str) -> &'t str {
        let (token, rest) = match text.split_once([' ', '\t']) {
            Some((token, rest)) => (token, rest.trim_start()),
            None => (text, ""),
        };
        // `550 5.1.1: no such user` is common.
        let Ok(code) = token.strip_suffix(':').unwrap_or(token).parse::<Enhanced>() else {
            return text;
        };
        // On a later line it is only believed if it fits the basic code: it may be a
        // word of the text.
        let fits = self.lines == 1 || u16::from(code.class) == self.code / 100;
        match self.enhanced {
            None if fits => self.enhanced = Some(code),
            Some(_) if fits => {}
            _ => return text,
        }
        rest
    }

    fn finish(&mut self) -> Reply {
        let done = std::mem::take(self);
        Reply {
            code: done.code,
            enhanced: done.enhanced,
            text: done.text,
        }
    }
}

/// The code of a line: three digits, 200 to 599, with no fourth.
fn code_of(line: &[u8]) -> Option<u16> {
    let digits = line.get(..3)?;
    if !digits.iter().all(u8::is_ascii_digit) || line.get(3).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let code = digits
        .iter()
        .fold(0, |code, d| code * 10 + u16::from(d - b'0'));
    (200..600).contains(&code).then_some(code)
}

/// What may stand in a log or a notice: controls, line separators and what reorders
/// the text around it are replaced.
fn sanitised(c: char) -> char {
    match c {
        '\t' => ' ',
        '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
        _ if c.is_control() => '?',
        _ => c,
    }
}

fn excerpt(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(80)])
        .chars()
        .map(sanitised)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All replies in `input`, which must have nothing left over.
    #[track_caller]
    fn read(input: &str) -> Vec<String> {
        let mut reader = ReplyReader::new();
        let mut rest = input.as_bytes();
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let (used, reply) = reader.feed(rest).unwrap();
            rest = &rest[used..];
            replies.extend(reply.map(|r| r.to_string()));
        }
        assert!(!reader.is_midway());
        replies
    }

    #[track_caller]
    fn refuses(input: &str) -> BadReply {
        ReplyReader::new().feed(input.as_bytes()).unwrap_err()
    }

    #[test]
    fn reads_what_servers_send() {
        for (input, replies) in [
            ("250 2.1.0 Ok\r\n", &["250 2.1.0 Ok"][..]),
            ("250 Ok\n", &["250 Ok"]),
            ("250\r\n", &["250"]),
            ("250 \r\n", &["250"]),
            ("250-\r\n250\r\n", &["250"]),
            ("250Ok\r\n", &["250 Ok"]),
            (
                "550-5.1.1 one\r\n550 5.1.1 two\r\n",
                &["550 5.1.1 one; two"],
            ),
            ("550-one\r\n550 5.7.1 two\r\n", &["550 5.7.1 one; two"]),
            ("550-one\r\n550 2.7.1 two\r\n", &["550 one; 2.7.1 two"]),
            ("550 5.1.1: gone\r\n", &["550 5.1.1 gone"]),
            ("550 5.1.1\r\n", &["550 5.1.1"]),
            ("550 5.1.1.1 x\r\n", &["550 5.1.1.1 x"]),
            ("550 5.1 x\r\n", &["550 5.1 x"]),
            ("250-a\r\n350 b\r\n", &["350 a; b"]),
            ("550-a\r\nfree text\r\n550 b\r\n", &["550 a; free text; b"]),
            (
                "250 a\r\n250-b\r\n250 c\r\n354 d\r\n",
                &["250 a", "250 b; c", "354 d"],
            ),
            ("450 a\tb\u{1b}[1m\0\u{202e}\r\n", &["450 a b?[1m??"]),
        ] {
            assert_eq!(read(input), replies, "{input:?}");
        }
    }

    #[test]
    fn leaves_what_follows_the_reply() {
        let input = b"220 2.0.0 Go ahead\r\n\x16\x03\x01";
        let (used, reply) = ReplyReader::new().feed(input).unwrap();
        assert_eq!(reply.unwrap().code, 220);
        assert_eq!(&input[used..], b"\x16\x03\x01");
    }

    #[test]
    fn refuses_what_is_not_smtp() {
        for input in [
            "\r\n",
            "HTTP/1.1 400 Bad\r\n",
            "25\r\n",
            "2500 x\r\n",
            "199 x\r\n",
            "600 x\r\n",
            "999 x\r\n",
            " 250 x\r\n",
            "+OK\r\n",
            "\x15\x03\r\n",
            "\u{662}\u{665}\u{660} x\r\n",
        ] {
            assert!(matches!(refuses(input), BadReply::Garbled(_)), "{input:?}");
        }
        assert_eq!(
            refuses("\x15\x03\x01\n"),
            BadReply::Garbled("???".to_owned())
        );
    }

    #[test]
    fn is_bounded() {
        assert_eq!(
            read(&format!("{}250 x\r\n", "250-x\r\n".repeat(99))).len(),
            1
        );
        assert_eq!(refuses(&"250-x\r\n".repeat(101)), BadReply::TooManyLines);
        assert_eq!(refuses(&"2".repeat(MAX_OCTETS + 1)), BadReply::TooLong);
        let mut reader = ReplyReader::new();
        let error = (0..1000).find_map(|_| reader.feed(&[b'x'; 1000]).err());
        assert_eq!(error, Some(BadReply::TooLong));
        let long = format!("550-{}\r\n550 {}\r\n", "é".repeat(1500), "b".repeat(3000));
        let (_, reply) = ReplyReader::new().feed(long.as_bytes()).unwrap();
        assert_eq!(reply.unwrap().text.len(), Reply::MAX_TEXT);
    }

    #[test]
    fn replaces_invalid_utf8() {
        let (_, reply) = ReplyReader::new().feed(b"550 caf\xe9\r\n").unwrap();
        assert_eq!(reply.unwrap().text, "caf\u{fffd}");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            input in "((250|550|354)[ -]?(5\\.1\\.1 |2\\.0\\.0 )?[a-zé\\t\\x00-\\x1f]{0,12}\r?\n){0,6}",
            cuts in proptest::collection::vec(1usize..9, 1..40),
        ) {
            let mut all = Vec::new();
            let mut rest = input.as_bytes();
            let mut whole = ReplyReader::new();
            let mut failed = false;
            while !rest.is_empty() && !failed {
                match whole.feed(rest) {
                    Ok((used, reply)) => { rest = &rest[used..]; all.extend(reply); }
                    Err(_) => failed = true,
                }
            }
            let mut pieces = Vec::new();
            let mut reader = ReplyReader::new();
            let mut rest = input.as_bytes();
            let mut cuts = cuts.into_iter().cycle();
            let mut piece_failed = false;
            'input: while !rest.is_empty() {
                let (mut piece, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                rest = after;
                while !piece.is_empty() {
                    match reader.feed(piece) {
                        Ok((used, reply)) => { piece = &piece[used..]; pieces.extend(reply); }
                        Err(_) => { piece_failed = true; break 'input; }
                    }
                }
            }
            prop_assert_eq!(failed, piece_failed);
            for reply in &all {
                prop_assert!(!reply.text.contains(|c: char| c.is_control() && c != '\n'));
            }
            prop_assert_eq!(all, pieces);
        }

        #[test]
        fn any_bytes_are_survived(input in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((used, Some(reply))) = ReplyReader::new().feed(&input) {
                prop_assert!(used <= input.len());
                prop_assert!((200..600).contains(&reply.code));
                prop_assert!(reply.text.len() <= Reply::MAX_TEXT);
            }
        }
    }
}
