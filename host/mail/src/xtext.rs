//! xtext (RFC 3461 s. 4) and the forms of internationalised addresses in DSN
//! parameters and fields (RFC 6533 s. 3).
//!
//! Decoding is strict, and what it gives has no control character: a decoded ENVID or
//! ORCPT goes into notices and parameters of the next hop, and `+0D+0A` is how one would
//! smuggle a line into them.

use std::fmt::Write;

use crate::OriginalRecipient;

/// Longest decoded ENVID, in characters (RFC 3461 s. 4.4).
pub const MAX_ENVID: usize = 100;
/// Longest ORCPT parameter value as sent, in octets (RFC 3461 s. 4.2).
pub const MAX_ORCPT: usize = 500;

/// Why a parameter value was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XtextError {
    #[error("a character that xtext does not allow unencoded: {0:?}")]
    BadCharacter(char),
    #[error("'+' must be followed by two upper-case hexadecimal digits")]
    BadHex,
    #[error("'\\' must begin \\x{{HEX}} with the code point of a character, upper-case")]
    BadEscape,
    #[error("the encoded text has a character that is not printable")]
    Unprintable,
    #[error("the address type is missing: the form is type;address")]
    NoType,
    #[error("the address type is not an atom")]
    BadType,
    #[error("the value is empty")]
    Empty,
    #[error("the value is too long")]
    TooLong,
}

/// Encodes text as xtext: `+` with two hexadecimal digits for every octet
/// but printable ASCII without space, `+` and `=`.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        match byte {
            b'!'..=b'~' if byte != b'+' && byte != b'=' => out.push(byte as char),
            _ => {
                let _ = write!(out, "+{byte:02X}");
            }
        }
    }
    out
}

/// Decodes xtext that stands for printable ASCII, as ENVID and `rfc822` ORCPT values do.
pub fn decode(xtext: &str) -> Result<String, XtextError> {
    let mut out = String::with_capacity(xtext.len());
    let mut chars = xtext.chars();
    while let Some(c) = chars.next() {
        let decoded = match c {
            '+' => {
                let high = chars.next().and_then(upper_hex).ok_or(XtextError::BadHex)?;
                let low = chars.next().and_then(upper_hex).ok_or(XtextError::BadHex)?;
                char::from((high * 16 + low) as u8)
            }
            '!'..='~' if c != '=' => c,
            _ => return Err(XtextError::BadCharacter(c)),
        };
        if !matches!(decoded, ' '..='~') {
            return Err(XtextError::Unprintable);
        }
        out.push(decoded);
    }
    Ok(out)
}

/// Reads the value of ENVID.
pub fn parse_envid(xtext: &str) -> Result<String, XtextError> {
    let envid = decode(xtext)?;
    match envid.len() {
        0 => Err(XtextError::Empty),
        1..=MAX_ENVID => Ok(envid),
        _ => Err(XtextError::TooLong),
    }
}

/// utf-8-addr-xtext: ASCII only, `\x{HEX}` for every character but QCHAR. It passes
/// through an xtext parameter unharmed, since it has neither `+` nor `=`.
pub fn encode_utf8_xtext(address: &str) -> String {
    escape(address, false)
}

/// utf-8-addr-unitext: as [`encode_utf8_xtext`], with non-ASCII characters as they are.
pub fn encode_unitext(address: &str) -> String {
    escape(address, true)
}

fn escape(address: &str, keep_utf8: bool) -> String {
    let mut out = String::with_capacity(address.len() + 16);
    for c in address.chars() {
        let plain = match c {
            '+' | '=' | '\\' => false,
            '!'..='~' => true,
            _ => keep_utf8 && !c.is_ascii() && is_printable(c),
        };
        if plain {
            out.push(c);
        } else {
            let _ = write!(out, "\\x{{{:02X}}}", c as u32);
        }
    }
    out
}

/// Decodes utf-8-addr-xtext and utf-8-addr-unitext alike.
pub fn decode_utf8(text: &str) -> Result<String, XtextError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let decoded = match c {
            '\\' => {
                let body = rest.strip_prefix("x{").ok_or(XtextError::BadEscape)?;
                let end = body.find('}').ok_or(XtextError::BadEscape)?;
                rest = &body[end + 1..];
                code_point(&body[..end]).ok_or(XtextError::BadEscape)?
            }
            '+' | '=' => return Err(XtextError::BadCharacter(c)),
            '!'..='~' => c,
            _ if !c.is_ascii() => c,
            _ => return Err(XtextError::BadCharacter(c)),
        };
        if !is_printable(decoded) {
            return Err(XtextError::Unprintable);
        }
        out.push(decoded);
    }
    Ok(out)
}

/// HEXPOINT: two to six upper-case digits, without more leading zeros than two digits need.
fn code_point(hex: &str) -> Option<char> {
    if !(2..=6).contains(&hex.len()) || (hex.len() > 2 && hex.starts_with('0')) {
        return None;
    }
    let value = hex
        .chars()
        .try_fold(0, |value, c| Some(value * 16 + upper_hex(c)?))?;
    char::from_u32(value)
}

fn upper_hex(c: char) -> Option<u32> {
    if c.is_ascii_lowercase() {
        return None;
    }
    c.to_digit(16)
}

fn is_printable(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}')
}

impl OriginalRecipient {
    /// Reads the value of ORCPT: `type;address` with the address in xtext, or for
    /// type `utf-8` in one of the forms of RFC 6533.
    pub fn parse_orcpt(value: &str) -> Result<Self, XtextError> {
        if value.len() > MAX_ORCPT {
            return Err(XtextError::TooLong);
        }
        let (kind, encoded) = value.split_once(';').ok_or(XtextError::NoType)?;
        if kind.is_empty() {
            return Err(XtextError::NoType);
        }
        // An IANA-registered type is an atom; those registered have letters, digits, hyphens.
        if kind.len() > 40 || !kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(XtextError::BadType);
        }
        let kind = kind.to_ascii_lowercase();
        let address = if kind == "utf-8" {
            decode_utf8(encoded)?
        } else {
            decode(encoded)?
        };
        if address.is_empty() {
            return Err(XtextError::Empty);
        }
        Ok(OriginalRecipient { kind, address })
    }

    /// The value for ORCPT to a next hop; `smtputf8` tells whether non-ASCII may be sent to it.
    pub fn to_orcpt(&self, smtputf8: bool) -> String {
        let address = match (self.kind == "utf-8", smtputf8) {
            (true, true) => encode_unitext(&self.address),
            (true, false) => encode_utf8_xtext(&self.address),
            (false, _) => encode(&self.address),
        };
        format!("{};{address}", self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn xtext_is_strict() {
        assert_eq!(encode("a+b=c d"), "a+2Bb+3Dc+20d");
        assert_eq!(decode("a+2Bb+3Dc+20d").unwrap(), "a+b=c d");
        for (bad, why) in [
            ("a+2b", XtextError::BadHex),
            ("a+", XtextError::BadHex),
            ("a+2", XtextError::BadHex),
            ("a+G0", XtextError::BadHex),
            ("a=b", XtextError::BadCharacter('=')),
            ("a b", XtextError::BadCharacter(' ')),
            ("\u{fc}", XtextError::BadCharacter('\u{fc}')),
            ("a+0D+0AX: y", XtextError::Unprintable),
            ("+00", XtextError::Unprintable),
            ("+C3+BC", XtextError::Unprintable),
        ] {
            assert_eq!(decode(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn envid_has_limits() {
        assert_eq!(parse_envid("QQ314159").unwrap(), "QQ314159");
        assert_eq!(parse_envid(""), Err(XtextError::Empty));
        assert!(parse_envid(&"+2B".repeat(100)).is_ok());
        assert_eq!(parse_envid(&"a".repeat(101)), Err(XtextError::TooLong));
    }

    #[test]
    fn utf8_forms() {
        assert_eq!(
            encode_utf8_xtext("ü+\\=@例"),
            r"\x{FC}\x{2B}\x{5C}\x{3D}@\x{4F8B}"
        );
        assert_eq!(encode_unitext("ü+\\=@例"), r"ü\x{2B}\x{5C}\x{3D}@例");
        assert_eq!(decode_utf8(r"\x{FC}\x{2B}@\x{4F8B}例").unwrap(), "ü+@例例");
        assert_eq!(decode_utf8(r"\x{1F4A9}").unwrap(), "\u{1f4a9}");
        for (bad, why) in [
            (r"\x{fc}", XtextError::BadEscape),
            (r"\x{D800}", XtextError::BadEscape),
            (r"\x{110000}", XtextError::BadEscape),
            (r"\x{00FC}", XtextError::BadEscape),
            (r"\x{C", XtextError::BadEscape),
            (r"\n", XtextError::BadEscape),
            (r"a\x{0D}\x{0A}", XtextError::Unprintable),
            (r"\x{2028}", XtextError::Unprintable),
            ("a+2B", XtextError::BadCharacter('+')),
            ("a\r\nb", XtextError::BadCharacter('\r')),
        ] {
            assert_eq!(decode_utf8(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn orcpt_keeps_its_type() {
        let orcpt = OriginalRecipient::parse_orcpt("RFC822;Ann+2Bcrm@example.com").unwrap();
        assert_eq!(orcpt.kind, "rfc822");
        assert_eq!(orcpt.address, "Ann+crm@example.com");
        assert_eq!(orcpt.to_orcpt(true), "rfc822;Ann+2Bcrm@example.com");
        let orcpt = OriginalRecipient::parse_orcpt(r"utf-8;\x{FC}@example.com").unwrap();
        assert_eq!(orcpt.address, "ü@example.com");
        assert_eq!(orcpt.to_orcpt(true), "utf-8;ü@example.com");
        assert_eq!(orcpt.to_orcpt(false), r"utf-8;\x{FC}@example.com");
        for (bad, why) in [
            ("a@b", XtextError::NoType),
            (";a@b", XtextError::NoType),
            ("a b;a@b", XtextError::BadType),
            ("rfc822;", XtextError::Empty),
            ("rfc822;a+0D+0Ab@c", XtextError::Unprintable),
        ] {
            assert_eq!(OriginalRecipient::parse_orcpt(bad), Err(why), "{bad}");
        }
        assert_eq!(
            OriginalRecipient::parse_orcpt(&format!("rfc822;{}", "a".repeat(500))),
            Err(XtextError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn decode_reverses_encode(text in "[ -~]{0,40}") {
            let xtext = encode(&text);
            prop_assert!(xtext.bytes().all(|b| b.is_ascii_graphic() && b != b'='));
            prop_assert_eq!(decode(&xtext), Ok(text));
        }

        #[test]
        fn utf8_forms_are_reversed(text in "\\PC{0,20}") {
            prop_assume!(text.chars().all(is_printable));
            let xtext = encode_utf8_xtext(&text);
            prop_assert!(xtext.bytes().all(|b| b.is_ascii_graphic() && !b"+=".contains(&b)));
            prop_assert_eq!(decode_utf8(&xtext), Ok(text.clone()));
            prop_assert_eq!(decode_utf8(&encode_unitext(&text)), Ok(text));
        }

        #[test]
        fn nothing_decoded_has_controls(text in "(rfc822|utf-8);[+0-9A-Fx{}\\\\a-c\\r\\n]{0,30}") {
            if let Ok(orcpt) = OriginalRecipient::parse_orcpt(&text) {
                prop_assert!(!orcpt.address.contains(char::is_control));
                let again = OriginalRecipient::parse_orcpt(&orcpt.to_orcpt(false));
                prop_assert_eq!(again, Ok(orcpt));
            }
        }
    }
}
