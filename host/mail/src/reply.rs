//! SMTP replies, as peers give them and as we give them (RFC 5321 s. 4.2, RFC 2034, RFC 3463).
//!
//! [`ReplyReader`] turns a peer's bytes into a [`Reply`]: bounded, lenient where real
//! servers need it, and never past the end of one reply, so that pipelined replies are read
//! one after another and nothing behind the reply to STARTTLS is swallowed. [`frame`] finds where
//! a reply ends and its code, for those who need no more of it.

pub mod frame;
mod read;

pub use read::{BadReply, ReplyReader};

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Enhanced status code, RFC 3463.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Enhanced {
    pub class: u8,
    pub subject: u16,
    pub detail: u16,
}

impl Enhanced {
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Enhanced {
            class,
            subject,
            detail,
        }
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

impl fmt::Debug for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Not of the form `class.subject.detail`, class 2, 4 or 5, the others of 1 to 3 digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an enhanced status code")]
pub struct BadEnhanced;

impl FromStr for Enhanced {
    type Err = BadEnhanced;

    fn from_str(text: &str) -> Result<Self, BadEnhanced> {
        let mut parts = text.split('.');
        let mut number = |max_len: usize| -> Result<u16, BadEnhanced> {
            let part = parts.next().ok_or(BadEnhanced)?;
            if part.is_empty() || part.len() > max_len || !part.bytes().all(|b| b.is_ascii_digit())
            {
                return Err(BadEnhanced);
            }
            part.parse().map_err(|_| BadEnhanced)
        };
        let (class, subject, detail) = (number(1)?, number(3)?, number(3)?);
        if parts.next().is_some() || !matches!(class, 2 | 4 | 5) {
            return Err(BadEnhanced);
        }
        Ok(Enhanced::new(class as u8, subject, detail))
    }
}

impl Serialize for Enhanced {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Enhanced {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A whole reply. The text is free of control characters except `\n` between
/// its lines, and has at most [`Reply::MAX_TEXT`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Basic code, 200 to 599.
    pub code: u16,
    /// As the peer gave it, whatever its class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enhanced: Option<Enhanced>,
    /// Without codes; lines joined by `\n`.
    pub text: String,
}

impl Reply {
    /// Longest text kept, in bytes.
    pub const MAX_TEXT: usize = 2048;

    pub fn new(code: u16, enhanced: Enhanced, text: impl Into<String>) -> Self {
        Reply {
            code,
            enhanced: Some(enhanced),
            text: text.into(),
        }
    }

    /// The status to report: the enhanced code if its class agrees with the basic
    /// code, else `class.0.0`. There is no class 3 (RFC 3463 s. 3): a 3xx where none
    /// belongs is a transient failure.
    pub fn status(&self) -> Enhanced {
        let class = match self.code / 100 {
            2 => 2,
            5 => 5,
            _ => 4,
        };
        match self.enhanced {
            Some(enhanced) if enhanced.class == class => enhanced,
            _ => Enhanced::new(class, 0, 0),
        }
    }

    pub fn is_positive(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Longest line sent, in octets with its CRLF (RFC 5321 s. 4.5.3.1.5).
    pub const MAX_WIRE_LINE: usize = 512;

    /// The reply as a server sends it. See [`Reply::write_wire`].
    pub fn to_wire(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.text.len() + 32);
        self.write_wire(&mut out);
        out
    }

    /// Appends the reply as a server sends it: `250-2.1.0 one CRLF 250 2.1.0 two CRLF`. Each
    /// line of the text becomes a line, cut to [`Reply::MAX_WIRE_LINE`]; whatever is not
    /// printable ASCII becomes `?`, so that no text can add a line or a reply.
    pub fn write_wire(&self, out: &mut Vec<u8>) {
        let mut lines = self.text.lines().peekable();
        let mut line = lines.next().unwrap_or("");
        loop {
            let start = out.len();
            let more = lines.peek().is_some();
            // Writing to a Vec does not fail.
            let _ = write!(out, "{:03}", self.code.clamp(200, 599));
            out.push(if more { b'-' } else { b' ' });
            if let Some(enhanced) = self.enhanced {
                let _ = write!(out, "{enhanced}");
                if !line.is_empty() {
                    out.push(b' ');
                }
            }
            out.extend(line.chars().map(|c| match c {
                ' '..='~' => c as u8,
                '\t' => b' ',
                _ => b'?',
            }));
            out.truncate(start + Self::MAX_WIRE_LINE - 2);
            out.extend_from_slice(b"\r\n");
            match lines.next() {
                Some(next) => line = next,
                None => return,
            }
        }
    }
}

impl fmt::Display for Reply {
    /// On one line: `550 5.1.1 No such user; second line`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for (n, line) in self.text.lines().filter(|l| !l.is_empty()).enumerate() {
            f.write_str(if n == 0 { " " } else { "; " })?;
            f.write_str(line)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(reply: &Reply) -> String {
        String::from_utf8(reply.to_wire()).unwrap()
    }

    #[test]
    fn renders_each_line_with_its_codes() {
        let ok = Enhanced::new(2, 1, 0);
        assert_eq!(wire(&Reply::new(250, ok, "Ok")), "250 2.1.0 Ok\r\n");
        assert_eq!(wire(&Reply::new(250, ok, "")), "250 2.1.0\r\n");
        assert_eq!(
            wire(&Reply::new(250, ok, "one\ntwo")),
            "250-2.1.0 one\r\n250 2.1.0 two\r\n"
        );
        let ehlo = Reply {
            code: 250,
            enhanced: None,
            text: "gate.example\nSIZE 1000\nDSN".into(),
        };
        assert_eq!(
            wire(&ehlo),
            "250-gate.example\r\n250-SIZE 1000\r\n250 DSN\r\n"
        );
    }

    #[test]
    fn cuts_long_lines_and_hides_controls() {
        let reply = Reply::new(550, Enhanced::new(5, 7, 1), "ü\r250 ok".repeat(100));
        let wire = wire(&reply);
        assert_eq!(wire.len(), Reply::MAX_WIRE_LINE);
        assert!(wire.starts_with("550 5.7.1 ??250 ok??250 ok"));
    }

    #[test]
    fn status_follows_the_basic_code() {
        let status = |code, class| Reply::new(code, Enhanced::new(class, 1, 1), "").status();
        assert_eq!(status(550, 5), Enhanced::new(5, 1, 1));
        assert_eq!(status(450, 5), Enhanced::new(4, 0, 0));
        assert_eq!(status(550, 2), Enhanced::new(5, 0, 0));
    }

    #[test]
    fn enhanced_codes_are_parsed_strictly() {
        assert_eq!("5.1.10".parse(), Ok(Enhanced::new(5, 1, 10)));
        for bad in [
            "", "5", "5.1", "5.1.1.1", "3.1.1", "5.1.1000", "5..1", "5.1.-1", "5.1.1 ",
        ] {
            assert_eq!(bad.parse::<Enhanced>(), Err(BadEnhanced), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_one_reply_and_reads_back(code in 200u16..600, text in "(\\PC|[\\r\\n\\t]){0,80}") {
            let reply = Reply::new(code, Enhanced::new(5, 1, 1), text);
            let wire = reply.to_wire();
            let (used, read) = ReplyReader::new().feed(&wire).unwrap();
            let read = read.unwrap();
            prop_assert_eq!(used, wire.len());
            prop_assert_eq!(read.code, code);
            prop_assert_eq!(read.enhanced, reply.enhanced);
            prop_assert!(read.text.split('\n').count() == reply.text.lines().count().max(1));
        }
    }
}
