//! The header block of a message, read without a MIME parser: bounded, never recursive.
//!
//! Reading never fails: what is no field is left out and counted, so that one bad line
//! of a client's does not hide the rest from policy and log. Values are free of
//! control characters, so a policy may give them back as a lane or a tag; the message
//! itself is never changed here.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;

use crate::{MessageId, Timestamp};

/// The fields of a header block, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderBlock {
    fields: Vec<Field>,
    bad_lines: usize,
}

/// One field: its name as written and its value unfolded, without the final line end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: String,
}

/// Fields kept of one block; the rest is counted as bad lines.
pub const MAX_FIELDS: usize = 2000;

/// Characters of a subject kept for the log.
pub const MAX_LOG_SUBJECT: usize = 200;

/// Where the body begins: the offset behind the empty line that ends the header block.
/// `None`: no empty line yet. Bare LF line ends are understood, since what a listener
/// lets through is its own affair.
pub fn find_end(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    for newline in memchr::memchr_iter(b'\n', bytes) {
        if matches!(&bytes[line..newline], b"" | b"\r") {
            return Some(newline + 1);
        }
        line = newline + 1;
    }
    None
}

impl HeaderBlock {
    /// Reads the bytes up to and including the empty line (or all of them).
    pub fn parse(bytes: &[u8]) -> Self {
        let mut block = HeaderBlock::default();
        // Raw value of the field being read, folds included.
        let mut open: Option<(&[u8], Vec<u8>)> = None;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (line, after) = match memchr::memchr(b'\n', rest) {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, &rest[rest.len()..]),
            };
            rest = after;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                break;
            }
            if matches!(line[0], b' ' | b'\t') {
                match &mut open {
                    Some((_, value)) => value.extend_from_slice(line),
                    None => block.bad_lines += 1,
                }
                continue;
            }
            block.close(open.take());
            match memchr::memchr(b':', line).map(|at| (line[..at].trim_ascii_end(), at)) {
                Some((name, at)) if is_name(name) && block.fields.len() < MAX_FIELDS => {
                    open = Some((name, line[at + 1..].to_vec()));
                }
                _ => block.bad_lines += 1,
            }
        }
        block.close(open);
        block
    }

    fn close(&mut self, open: Option<(&[u8], Vec<u8>)>) {
        if let Some((name, value)) = open {
            self.fields.push(Field {
                name: String::from_utf8_lossy(name).into_owned(),
                value: tidy(value),
            });
        }
    }

    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Lines that are neither a field nor part of one, and fields past [`MAX_FIELDS`].
    pub fn bad_lines(&self) -> usize {
        self.bad_lines
    }

    /// The first field of that name, compared without case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|f| f.name.eq_ignore_ascii_case(name))
            .map(|f| f.value.as_str())
    }

    /// Every field of that name, in order.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.fields
            .iter()
            .filter(move |f| f.name.eq_ignore_ascii_case(name))
            .map(|f| f.value.as_str())
    }

    /// Number of Received fields (loop detection, RFC 5321 s. 6.3).
    pub fn hops(&self) -> usize {
        self.all("received").count()
    }

    /// `TLS-Required: No` (RFC 8689 s. 5): a single such field and no other value.
    pub fn tls_optional(&self) -> bool {
        let mut values = self.all("tls-required");
        let first = values.next().map(str::trim);
        first.is_some_and(|v| v.eq_ignore_ascii_case("no")) && values.next().is_none()
    }

    /// Mail of a list, bulk or automatic mail: List-*, Precedence bulk/list/junk,
    /// Auto-Submitted other than `no`.
    pub fn is_automatic(&self) -> bool {
        self.is_bulk()
            || self
                .all("auto-submitted")
                .any(|v| !keyword(v).eq_ignore_ascii_case("no"))
    }

    /// Header fields that call a message bulk: List-* (RFC 2369, 2919, 8058) or Precedence
    /// bulk/list/junk.
    pub fn is_bulk(&self) -> bool {
        self.fields.iter().any(|f| {
            let name = f.name.as_bytes();
            name.get(..5)
                .is_some_and(|p| p.eq_ignore_ascii_case(b"list-"))
                || (f.name.eq_ignore_ascii_case("precedence")
                    && ["bulk", "list", "junk"]
                        .iter()
                        .any(|p| keyword(&f.value).eq_ignore_ascii_case(p)))
        })
    }

    /// The Message-ID without its angle brackets, cut to 500 octets.
    pub fn message_id(&self) -> Option<&str> {
        let value = self.get("message-id")?;
        let id = match value.split_once('<') {
            Some((_, rest)) => rest.split('>').next().unwrap_or(rest),
            None => value,
        };
        let id = id.trim();
        let id = &id[..id.floor_char_boundary(500)];
        (!id.is_empty()).then_some(id)
    }

    /// The subject as people read it: encoded words decoded (RFC 2047), white space
    /// collapsed, cut to [`MAX_LOG_SUBJECT`] characters.
    pub fn log_subject(&self) -> Option<String> {
        let decoded = decode_words(self.get("subject")?);
        let mut subject = String::with_capacity(decoded.len().min(4 * MAX_LOG_SUBJECT));
        let mut chars = 0;
        for word in decoded.split(|c: char| c.is_whitespace() || c.is_control()) {
            if word.is_empty() {
                continue;
            }
            if !subject.is_empty() {
                subject.push(' ');
                chars += 1;
            }
            for c in word.chars() {
                if chars >= MAX_LOG_SUBJECT {
                    subject.truncate(subject.trim_end().len());
                    return Some(subject);
                }
                subject.push(c);
                chars += 1;
            }
        }
        (!subject.is_empty()).then_some(subject)
    }
}

/// Decodes the encoded words of an unstructured value; charsets that the decoder
/// does not know come out as replacement characters.
pub(crate) fn decode_words(value: &str) -> Cow<'_, str> {
    if !value.contains("=?") {
        return Cow::Borrowed(value);
    }
    let line = format!("{value}\n");
    match mail_parser::parsers::MessageStream::new(line.as_bytes()).parse_unstructured() {
        mail_parser::HeaderValue::Text(text) => Cow::Owned(text.into_owned()),
        _ => Cow::Borrowed(value),
    }
}

/// ftext (RFC 5322 s. 3.6.8), at most 200 octets.
fn is_name(name: &[u8]) -> bool {
    (1..=200).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic)
}

/// A value with blanks for control characters, trimmed; invalid UTF-8 is replaced.
fn tidy(mut raw: Vec<u8>) -> String {
    for byte in &mut raw {
        if byte.is_ascii_control() {
            *byte = b' ';
        }
    }
    let from = raw.iter().take_while(|b| b.is_ascii_whitespace()).count();
    raw.drain(..from);
    raw.truncate(raw.trim_ascii_end().len());
    let value = match String::from_utf8(raw) {
        Ok(value) if value.is_ascii() => return value,
        Ok(value) => value.replace(char::is_control, " "),
        Err(e) => String::from_utf8_lossy(e.as_bytes()).replace(char::is_control, " "),
    };
    // Controls beyond ASCII may have stood at the ends.
    value.trim_ascii().to_owned()
}

/// The first word of a value, without parameters and comment.
fn keyword(value: &str) -> &str {
    let end = value
        .find(|c: char| c.is_whitespace() || c == ';' || c == '(')
        .unwrap_or(value.len());
    &value[..end]
}

/// The trace field that an accepting server adds (RFC 5321 s. 4.4).
pub struct Received<'a> {
    pub helo: &'a str,
    pub peer: std::net::IpAddr,
    /// `ESMTPSA` and its kin (RFC 3848), `UTF8SMTPSA` (RFC 6531).
    pub protocol: &'a str,
    pub by: &'a str,
    pub id: crate::MessageId,
    pub at: Timestamp,
    /// `TLSv1.3 ...`, as a comment.
    pub tls: Option<&'a str>,
}

impl Received<'_> {
    /// The whole field, folded, with its final CRLF. `for` is left out: it would show
    /// recipients to each other. The HELO argument is the client's to choose, so what
    /// is not of a host name or literal becomes `?`.
    pub fn render(&self) -> String {
        let Received { protocol, at, .. } = self;
        let id: MessageId = self.id;
        let mut out = String::with_capacity(256);
        let helo = host_text(self.helo);
        let _ = write!(out, "Received: from {helo} (");
        let _ = match self.peer.to_canonical() {
            IpAddr::V4(ip) => write!(out, "[{ip}]"),
            IpAddr::V6(ip) => write!(out, "[IPv6:{ip}]"),
        };
        out.push_str(")\r\n");
        if let Some(tls) = self.tls {
            let tls: String = tls
                .chars()
                .take(200)
                .map(|c| match c {
                    '(' | ')' | '\\' => '?',
                    ' '..='~' => c,
                    _ => '?',
                })
                .collect();
            let _ = write!(out, "\t(using {tls})\r\n");
        }
        let (by, protocol) = (host_text(self.by), host_text(protocol));
        let _ = write!(out, "\tby {by} with {protocol} id {id};\r\n");
        let _ = write!(out, "\t{}\r\n", at.rfc5322());
        out
    }
}

/// A domain or literal as it may stand in a trace field.
fn host_text(claimed: &str) -> Cow<'_, str> {
    let fits =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if claimed.is_empty() {
        return Cow::Borrowed("unknown");
    }
    if claimed.len() <= 255 && claimed.chars().all(fits) {
        return Cow::Borrowed(claimed);
    }
    claimed
        .chars()
        .take(255)
        .map(|c| if fits(c) { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(text: &str) -> HeaderBlock {
        HeaderBlock::parse(text.as_bytes())
    }

    #[test]
    fn reads_fields_in_order_and_stops_at_the_body() {
        let block = block(
            "Received: a\r\nX-A : one\r\n\ttwo \r\nreceived: b\r\nEmpty:\r\n\r\nBody: no\r\n",
        );
        let fields: Vec<(&str, &str)> = block
            .fields()
            .iter()
            .map(|f| (f.name.as_str(), f.value.as_str()))
            .collect();
        assert_eq!(
            fields,
            [
                ("Received", "a"),
                ("X-A", "one two"),
                ("received", "b"),
                ("Empty", "")
            ]
        );
        assert_eq!(block.hops(), 2);
        assert_eq!(block.bad_lines(), 0);
        assert_eq!(block.get("x-a"), Some("one two"));
    }

    #[test]
    fn a_value_has_no_space_at_its_ends_where_a_control_stood() {
        let block = block("A: \u{85}b\u{85}\r\nB: c\u{9b}\td\r\n");
        assert_eq!(block.get("a"), Some("b"));
        assert_eq!(block.get("b"), Some("c  d"));
    }

    #[test]
    fn skips_and_counts_what_is_no_field() {
        let block = block(
            " folded first\r\nFrom me Mon Nov 24 03:05:00\r\n and more\r\nno colon\r\n: x\r\nA: b\r\nü: y",
        );
        assert_eq!(block.fields().len(), 1);
        assert_eq!(block.bad_lines(), 6);
        let many = "A: b\r\n".repeat(MAX_FIELDS + 5);
        assert_eq!(HeaderBlock::parse(many.as_bytes()).bad_lines(), 5);
    }

    #[test]
    fn values_have_no_controls_and_are_utf8() {
        let block = HeaderBlock::parse(b"A: x\0y\rz\r\nB: \xff\xfc\nC: a\xc2\x85b\r\n\r\n");
        assert_eq!(block.get("A"), Some("x y z"));
        assert_eq!(block.get("B"), Some("\u{fffd}\u{fffd}"));
        assert_eq!(block.get("C"), Some("a b"));
    }

    #[test]
    fn finds_the_body() {
        for (text, end) in [
            ("A: b\r\n\r\nbody", Some(8)),
            ("A: b\n\nbody", Some(6)),
            ("\r\nbody", Some(2)),
            ("A: b\r\n", None),
            ("A: b\r\n\r", None),
            ("", None),
        ] {
            assert_eq!(find_end(text.as_bytes()), end, "{text:?}");
        }
    }

    #[test]
    fn knows_automatic_and_bulk_mail() {
        for (text, bulk, automatic) in [
            ("Subject: x\r\n", false, false),
            ("List-Unsubscribe: <https://x>\r\n", true, true),
            ("LIST-ID: x\r\n", true, true),
            ("Listing: x\r\n", false, false),
            ("Precedence: Bulk\r\n", true, true),
            ("Precedence: junk (really)\r\n", true, true),
            ("Precedence: first-class\r\n", false, false),
            ("Auto-Submitted: no\r\n", false, false),
            ("Auto-Submitted: No (c)\r\n", false, false),
            ("Auto-Submitted: auto-generated; x=y\r\n", false, true),
        ] {
            assert_eq!(
                (block(text).is_bulk(), block(text).is_automatic()),
                (bulk, automatic),
                "{text}"
            );
        }
    }

    #[test]
    fn message_id_without_brackets() {
        for (text, id) in [
            ("Message-ID:\r\n <a.b@c>\r\n", Some("a.b@c")),
            ("Message-Id: a@b\r\n", Some("a@b")),
            ("Message-Id: x <a@b> y\r\n", Some("a@b")),
            ("Message-Id: <a@b\r\n", Some("a@b")),
            ("Message-Id: <>\r\n", None),
            ("Subject: x\r\n", None),
        ] {
            assert_eq!(block(text).message_id(), id, "{text}");
        }
        let long = block(&format!("Message-Id: <{}@x>\r\n", "é".repeat(400)));
        assert_eq!(long.message_id().unwrap().len(), 500);
    }

    #[test]
    fn subject_is_decoded_for_the_log() {
        for (text, subject) in [
            ("plain  text\r\n here", Some("plain text here")),
            (
                "=?utf-8?Q?Gr=C3=BC=C3=9Fe?= =?utf-8?B?IGFuIHNpZQ==?=",
                Some("Grüße an sie"),
            ),
            ("=?iso-8859-1?q?caf=E9?= 5=?", Some("café 5=?")),
            ("=?utf-8?Q?a=0D=0ABcc:_x=00?=", Some("a Bcc: x")),
            ("roh ü", Some("roh ü")),
            (" \r\n ", None),
        ] {
            let read = block(&format!("Subject: {text}\r\n")).log_subject();
            assert_eq!(read.as_deref(), subject, "{text}");
        }
        let long = block(&format!("Subject: {}\r\n", "ü".repeat(300))).log_subject();
        assert_eq!(long.unwrap().chars().count(), MAX_LOG_SUBJECT);
    }

    fn received(helo: &str) -> String {
        Received {
            helo,
            peer: "::ffff:192.0.2.7".parse().unwrap(),
            protocol: "ESMTPSA",
            by: "gate.example",
            id: MessageId::from_i64(1_882_000_000_000_000_000),
            at: Timestamp::from_secs(1_795_489_500),
            tls: Some("TLSv1.3 (x)\r\n"),
        }
        .render()
    }

    #[test]
    fn trace_field() {
        assert_eq!(
            received("crm.example"),
            "Received: from crm.example ([192.0.2.7])\r\n\
             \t(using TLSv1.3 ?x???)\r\n\
             \tby gate.example with ESMTPSA id 1m7m9mtcn0000;\r\n\
             \tTue, 24 Nov 2026 03:05:00 +0000\r\n"
                .replace(
                    "1m7m9mtcn0000",
                    &MessageId::from_i64(1_882_000_000_000_000_000).to_string()
                )
        );
        assert!(received("[IPv6:2001:db8::1]").starts_with("Received: from [IPv6:2001:db8::1] ("));
        assert!(received("").starts_with("Received: from unknown ("));
    }

    proptest! {
        #[test]
        fn helo_injects_nothing(helo in "(\\PC|[\\r\\n\\t ();]){0,60}") {
            let field = received(&helo);
            let block = HeaderBlock::parse(field.as_bytes());
            prop_assert_eq!(block.fields().len(), 1);
            prop_assert_eq!(block.bad_lines(), 0);
            prop_assert_eq!(field.matches("\r\n").count(), 4);
            prop_assert_eq!(field.matches('(').count(), 2);
            prop_assert_eq!(field.matches(';').count(), 1);
            prop_assert!(field.is_ascii());
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), Just(b'='), Just(b'?'),
                b'a'..=b'f', any::<u8>()], 0..200)) {
            let block = HeaderBlock::parse(&bytes);
            for field in block.fields() {
                prop_assert!(!field.value.contains(char::is_control));
            }
            let _ = (block.message_id(), block.is_automatic());
            let subject = [b"Subject: ", bytes.as_slice()].concat();
            if let Some(subject) = HeaderBlock::parse(&subject).log_subject() {
                prop_assert!(!subject.contains(char::is_control));
                prop_assert!(subject.chars().count() <= MAX_LOG_SUBJECT);
            }
            if let Some(end) = find_end(&bytes) {
                prop_assert!(end <= bytes.len());
            }
        }
    }
}
