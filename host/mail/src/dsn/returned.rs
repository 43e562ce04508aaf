//! The third part of a notice: the original message or its header block.

use super::fields::{Charset, MAX_LINE, clean, encoding_of};
use super::{Content, Kind, Notice};
use crate::Ret;
use crate::header::find_end;

/// The third part: the original, or its header block; empty where there is nothing to return.
pub(super) fn returned_part(notice: &Notice<'_>) -> Vec<u8> {
    let original = &notice.original;
    let whole_wanted = notice.kind == Kind::Failure && original.ret == Some(Ret::Full);
    let bytes = match original.content {
        Content::Unavailable => return Vec::new(),
        Content::Whole(bytes)
            if whole_wanted && bytes.len() <= notice.return_limit && is_sendable(bytes) =>
        {
            return whole(bytes);
        }
        Content::Whole(bytes) | Content::Head(bytes) => bytes,
    };
    let headers = header_lines(bytes, notice.return_limit);
    let kind = if headers.is_ascii() {
        "text/rfc822-headers"
    } else {
        "message/global-headers"
    };
    let mut part = format!(
        "Content-Description: Message headers\r\nContent-Type: {kind}\r\n{}\r\n",
        encoding_of(headers.as_bytes())
    );
    part.push_str(&headers);
    part.into_bytes()
}

fn whole(bytes: &[u8]) -> Vec<u8> {
    let head = &bytes[..find_end(bytes).unwrap_or(bytes.len())];
    // RFC 6532 headers make it message/global; other 8-bit bytes in a header have no type.
    let kind = if !head.is_ascii() && str::from_utf8(head).is_ok() {
        "message/global"
    } else {
        "message/rfc822"
    };
    let mut part = format!(
        "Content-Description: Undelivered message\r\nContent-Type: {kind}\r\n{}\r\n",
        encoding_of(bytes)
    )
    .into_bytes();
    part.extend_from_slice(bytes);
    part
}

/// Whether the original may be sent as it is: CRLF line ends, no NUL, lines within the limit.
fn is_sendable(bytes: &[u8]) -> bool {
    bytes.split_inclusive(|b| *b == b'\n').all(|line| {
        let (content, ended) = match line.strip_suffix(b"\r\n") {
            Some(content) => (content, true),
            None => (line, false),
        };
        content.len() <= MAX_LINE
            && !content.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))
            // Only the last line may be without its end.
            && (ended || !line.ends_with(b"\n"))
    })
}

/// The header block with CRLF line ends, no control characters, lines within the limit, and
/// whole fields up to `limit` octets. Not UTF-8 throughout: the odd octets become `?`.
fn header_lines(bytes: &[u8], limit: usize) -> String {
    let end = find_end(bytes).unwrap_or(bytes.len());
    let (head, charset) = match str::from_utf8(&bytes[..end]) {
        Ok(head) => (head.as_bytes(), Charset::Utf8),
        // What was read of it ends within a character.
        Err(e) if e.error_len().is_none() => (&bytes[..e.valid_up_to()], Charset::Utf8),
        Err(_) => (&bytes[..end], Charset::Ascii),
    };
    let mut out = String::with_capacity(head.len().min(limit));
    let mut field_start = 0;
    for line in head.split(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        if !matches!(line[0], b' ' | b'\t') {
            field_start = out.len();
        }
        if out.len() + line.len() + 2 > limit {
            out.truncate(field_start);
            break;
        }
        let line = String::from_utf8_lossy(line);
        let indent = if line.starts_with('\t') { "\t" } else { "" };
        let line = clean(&line[indent.len()..], charset);
        out.push_str(indent);
        out.push_str(&line[..line.floor_char_boundary(MAX_LINE - 1)]);
        out.push_str("\r\n");
    }
    out
}
