//! Writing fields and text lines that nothing in their values can break out of.

use std::fmt::Write;

/// Preferred and largest octets of a line without CRLF (RFC 5322 s. 2.1.1).
const FOLD_AT: usize = 78;
pub(super) const MAX_LINE: usize = 998;
/// A word is cut into pieces of this many octets, so that a line is never too long.
const MAX_WORD: usize = 900;

/// Which characters may be written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    Ascii,
    Utf8,
}

/// A value without control characters; what `charset` does not have becomes `?`.
pub(super) fn clean(value: &str, charset: Charset) -> String {
    value
        .chars()
        .map(|c| match c {
            ' '..='~' => c,
            '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
            _ if c.is_control() || c.is_whitespace() => ' ',
            _ if charset == Charset::Utf8 => c,
            _ => '?',
        })
        .collect()
}

/// A field of words: white space collapsed, folded between words.
pub(super) fn field(out: &mut String, name: &str, value: &str, charset: Charset) {
    let value = clean(value, charset);
    out.push_str(name);
    out.push(':');
    let mut column = name.len() + 1;
    let mut first = true;
    for word in value.split(' ').filter(|w| !w.is_empty()) {
        for piece in pieces(word) {
            if !first && column + 1 + piece.len() > FOLD_AT {
                out.push_str("\r\n");
                column = 0;
            }
            out.push(' ');
            out.push_str(piece);
            column += 1 + piece.len();
            first = false;
        }
    }
    out.push_str("\r\n");
}

/// A field whose value must come out octet for octet, such as an address: it is not
/// folded, and is short by its own rules.
pub(super) fn exact(out: &mut String, name: &str, value: &str, charset: Charset) {
    let value = clean(value, charset);
    let room = MAX_LINE - name.len() - 2;
    let value = &value[..value.floor_char_boundary(room)];
    let _ = write!(out, "{name}: {value}\r\n");
}

/// The words of an unstructured field: as they are if ASCII, else as encoded words (RFC 2047, Q).
pub(super) fn encoded_words(text: &str) -> String {
    let text = clean(text, Charset::Utf8);
    let text = text.trim();
    if text.is_ascii() && !text.contains("=?") {
        return text.to_owned();
    }
    // 75 octets for each word, less the frame.
    const ROOM: usize = 75 - "=?utf-8?Q??=".len();
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars() {
        let mut encoded = String::new();
        match c {
            ' ' => encoded.push('_'),
            'a'..='z' | 'A'..='Z' | '0'..='9' | '!' | '*' | '+' | '-' | '/' => encoded.push(c),
            _ => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(encoded, "={byte:02X}");
                }
            }
        }
        if word.len() + encoded.len() > ROOM {
            let _ = write!(out, "=?utf-8?Q?{word}?= ");
            word.clear();
        }
        word.push_str(&encoded);
    }
    let _ = write!(out, "=?utf-8?Q?{word}?=");
    out
}

/// A paragraph of text, wrapped at 76 columns (characters) and indented. Line ends in it are kept.
pub(super) fn paragraph(out: &mut String, text: &str, indent: usize) {
    const WIDTH: usize = 76;
    for line in text.lines() {
        let line = clean(line, Charset::Utf8);
        let mut column = 0;
        for word in line.split(' ').filter(|w| !w.is_empty()) {
            for piece in pieces(word) {
                let width = piece.chars().count();
                if column > 0 && column + 1 + width > WIDTH {
                    out.push_str("\r\n");
                    column = 0;
                }
                if column == 0 {
                    out.extend(std::iter::repeat_n(' ', indent));
                    column = indent;
                } else {
                    out.push(' ');
                    column += 1;
                }
                out.push_str(piece);
                column += width;
            }
        }
        out.push_str("\r\n");
    }
}

fn pieces(word: &str) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(MAX_WORD));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Quoted-printable (RFC 2045 s. 6.7) of CRLF-ended text.
pub(super) fn quoted_printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for line in text.split_terminator("\r\n") {
        let mut column = 0;
        let bytes = line.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            let plain = matches!(byte, b' '..=b'~') && *byte != b'=';
            let last_space = *byte == b' ' && at + 1 == bytes.len();
            let width = if plain && !last_space { 1 } else { 3 };
            // 76 with the `=` of the soft break.
            if column + width > 75 {
                out.push_str("=\r\n");
                column = 0;
            }
            if width == 1 {
                out.push(*byte as char);
            } else {
                let _ = write!(out, "={byte:02X}");
            }
            column += width;
        }
        out.push_str("\r\n");
    }
    out
}

/// The Content-Transfer-Encoding of a part that is sent as it is.
pub(super) fn encoding_of(bytes: &[u8]) -> &'static str {
    if bytes.is_ascii() {
        "Content-Transfer-Encoding: 7bit\r\n"
    } else {
        "Content-Transfer-Encoding: 8bit\r\n"
    }
}

/// A host name as it may stand in a field or an address.
pub(super) fn host_name(host: &str) -> String {
    let name: String = host
        .chars()
        .take(255)
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' | ':' | '[' | ']' => c,
            _ => '?',
        })
        .collect();
    if name.is_empty() {
        "localhost".into()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn folds_between_words() {
        let mut out = String::new();
        field(&mut out, "X-A", &"word ".repeat(20), Charset::Ascii);
        let lines: Vec<&str> = out.split("\r\n").collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].len() <= 78 && lines[1].starts_with(" word"));
        out.clear();
        field(&mut out, "X-A", "a\r\nBcc: b\r\n\r\nc\0ü", Charset::Ascii);
        assert_eq!(out, "X-A: a Bcc: b c ?\r\n");
        out.clear();
        field(&mut out, "X-A", "", Charset::Ascii);
        assert_eq!(out, "X-A:\r\n");
    }

    proptest! {
        #[test]
        fn any_value_is_one_field(value in "(\\PC|[\\r\\n\\t\\x00 ]|x{950,1100}){0,30}") {
            let mut out = String::new();
            field(&mut out, "X-A", &value, Charset::Utf8);
            exact(&mut out, "X-B", &value, Charset::Ascii);
            let block = crate::header::HeaderBlock::parse(out.as_bytes());
            prop_assert_eq!(block.fields().len(), 2);
            prop_assert_eq!(block.bad_lines(), 0);
            prop_assert!(out.split("\r\n").all(|l| l.len() <= MAX_LINE && !l.contains(['\r', '\n'])));
        }

        #[test]
        fn encoded_words_read_back(text in "(\\PC|[ =?_])*") {
            let words = encoded_words(&text);
            prop_assert!(words.is_ascii());
            prop_assert!(words.split(' ').all(|w| !w.starts_with("=?") || w.len() <= 75));
            let read = crate::header::decode_words(&words);
            let cleaned = clean(&text, Charset::Utf8);
            prop_assert_eq!(read.trim(), cleaned.trim());
        }

        #[test]
        fn quoted_printable_reads_back(lines in proptest::collection::vec("\\PC{0,120}", 0..6)) {
            let text: String = lines.iter().map(|l| format!("{l}\r\n")).collect();
            let encoded = quoted_printable(&text);
            prop_assert!(encoded.is_ascii());
            prop_assert!(encoded.split("\r\n").all(|l| l.len() <= 76 && !l.ends_with(' ')));
            let read = mail_parser::decoders::quoted_printable::quoted_printable_decode(encoded.as_bytes());
            prop_assert_eq!(String::from_utf8(read.unwrap()).unwrap(), text);
        }
    }
}
