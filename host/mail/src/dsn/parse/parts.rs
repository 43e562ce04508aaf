//! The parts of a MIME message, as far as reading a report needs them: bounded, not recursive.

use std::borrow::Cow;

use mail_parser::decoders::base64::base64_decode;
use mail_parser::decoders::quoted_printable::quoted_printable_decode;

use crate::header::{HeaderBlock, find_end};

const MAX_PARTS: usize = 100;
const MAX_DEPTH: usize = 4;

pub(super) struct Part<'a> {
    /// `type/subtype` in lower case.
    pub kind: String,
    encoding: String,
    pub body: &'a [u8],
}

impl Part<'_> {
    pub fn is_original(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "message/rfc822" | "message/global" | "text/rfc822-headers" | "message/global-headers"
        )
    }

    pub fn decoded(&self) -> Cow<'_, [u8]> {
        let decoded = match self.encoding.as_str() {
            "base64" => base64_decode(self.body),
            "quoted-printable" => quoted_printable_decode(self.body),
            _ => None,
        };
        match decoded {
            Some(bytes) => bytes.into(),
            None => self.body.into(),
        }
    }
}

/// The parts that are not multiparts, in order. A returned message is a leaf.
pub(super) fn leaves(message: &[u8]) -> Vec<Part<'_>> {
    let mut leaves = Vec::new();
    let mut pending = vec![(message, 0)];
    while let Some((entity, depth)) = pending.pop() {
        if leaves.len() + pending.len() > MAX_PARTS {
            break;
        }
        let body_at = find_end(entity).unwrap_or(entity.len());
        let header = HeaderBlock::parse(&entity[..body_at]);
        let body = &entity[body_at..];
        let content_type = header.get("content-type").unwrap_or("text/plain");
        let kind = content_type
            .trim_start()
            .split(|c: char| c == ';' || c.is_whitespace())
            .next()
            .unwrap_or("")
            .trim();
        let kind = kind.to_ascii_lowercase();
        let children = match depth < MAX_DEPTH && kind.starts_with("multipart/") {
            true => children(body, parameter(content_type, "boundary")),
            false => Vec::new(),
        };
        if !children.is_empty() {
            pending.extend(children.into_iter().rev().map(|child| (child, depth + 1)));
            continue;
        }
        leaves.push(Part {
            kind,
            encoding: header
                .get("content-transfer-encoding")
                .unwrap_or("")
                .trim()
                .to_ascii_lowercase(),
            body,
        });
    }
    leaves
}

/// The parts of a multipart. Its boundary may have been lost or changed on the way: then the
/// first line that looks like a delimiter counts. None at all: it is no multipart in truth.
fn children(body: &[u8], boundary: Option<String>) -> Vec<&[u8]> {
    let declared = boundary.map_or_else(Vec::new, |b| split(body, &b));
    if !declared.is_empty() {
        return declared;
    }
    let guess = body
        .split(|b| *b == b'\n')
        .map(|line| line.trim_ascii_end())
        .find(|line| line.len() > 4 && line.starts_with(b"--") && !line.contains(&b' '));
    match guess.and_then(|line| str::from_utf8(&line[2..]).ok()) {
        Some(guess) => split(body, guess),
        None => Vec::new(),
    }
}

/// The entities between the delimiter lines of a multipart body.
fn split<'a>(body: &'a [u8], boundary: &str) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut open: Option<usize> = None;
    let mut line_at = 0;
    for line in body.split_inclusive(|b| *b == b'\n') {
        let at = line_at;
        line_at += line.len();
        let delimiter = line
            .strip_prefix(b"--")
            .and_then(|l| l.strip_prefix(boundary.as_bytes()));
        let Some(rest) = delimiter else { continue };
        let closing = rest.starts_with(b"--");
        if !closing && !rest.trim_ascii().is_empty() {
            continue;
        }
        if let Some(from) = open.take() {
            // The line end before a delimiter belongs to it.
            let part = &body[from..at];
            let part = part.strip_suffix(b"\n").unwrap_or(part);
            parts.push(part.strip_suffix(b"\r").unwrap_or(part));
        }
        if closing || parts.len() >= MAX_PARTS {
            return parts;
        }
        open = Some(line_at);
    }
    // Cut off: the last part is what there is.
    parts.extend(open.map(|from| &body[from..]));
    parts
}

/// A parameter of a Content-Type value.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut rest = value;
    while let Some(at) = rest.find(';') {
        rest = rest[at + 1..].trim_start();
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let found = key.trim().eq_ignore_ascii_case(name);
        let text = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find('"').unwrap_or(quoted.len());
                rest = &quoted[end..];
                &quoted[..end]
            }
            None => {
                let end = after
                    .find(|c: char| c == ';' || c.is_whitespace())
                    .unwrap_or(after.len());
                rest = &after[end..];
                &after[..end]
            }
        };
        if found {
            return (!text.is_empty()).then(|| text.to_owned());
        }
    }
    None
}
