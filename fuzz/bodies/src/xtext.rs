//! xtext, ENVID and ORCPT.

use tidegate_mail::OriginalRecipient;
use tidegate_mail::xtext::{
    MAX_ENVID, MAX_ORCPT, decode, decode_utf8, encode, encode_unitext, encode_utf8_xtext,
    parse_envid,
};

/// Input: the value of a parameter.
///
/// Invariants: what was decoded has no control, encodes to xtext that decodes to it, and is no
/// longer than what it came from; an encoded value is one parameter value: printable, without
/// space or `=`; an ORCPT passed on means what it meant, in the ASCII form as in the other.
pub fn xtext(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(decoded) = decode(&text) {
        assert!(decoded.len() <= text.len());
        assert!(decoded.bytes().all(|b| matches!(b, b' '..=b'~')));
        let encoded = encode(&decoded);
        is_value(&encoded);
        assert_eq!(decode(&encoded), Ok(decoded));
    }
    if let Ok(envid) = parse_envid(&text) {
        assert!((1..=MAX_ENVID).contains(&envid.len()));
        assert_eq!(parse_envid(&encode(&envid)), Ok(envid));
    }
    if let Ok(decoded) = decode_utf8(&text) {
        assert!(!decoded.contains(char::is_control));
        let ascii = encode_utf8_xtext(&decoded);
        is_value(&ascii);
        assert_eq!(decode_utf8(&ascii).as_ref(), Ok(&decoded));
        assert_eq!(decode_utf8(&encode_unitext(&decoded)), Ok(decoded));
    }
    if let Ok(original) = OriginalRecipient::parse_orcpt(&text) {
        assert!(text.len() <= MAX_ORCPT && !original.address.is_empty());
        assert!(!original.address.contains(char::is_control));
        let international = original.to_orcpt(true);
        assert_eq!(
            OriginalRecipient::parse_orcpt(&international).as_ref(),
            Ok(&original)
        );
        let ascii = original.to_orcpt(false);
        is_value(&ascii);
        // The escapes may take it past the limit; it is then no longer a value.
        if ascii.len() <= MAX_ORCPT {
            assert_eq!(
                OriginalRecipient::parse_orcpt(&ascii).as_ref(),
                Ok(&original)
            );
        }
    }
    // Any text can be encoded.
    is_value(&encode(&text));
    is_value(&encode_utf8_xtext(&text));
    let printable: String = text.chars().filter(|c| matches!(c, ' '..='~')).collect();
    assert_eq!(decode(&encode(&printable)), Ok(printable));
}

fn is_value(encoded: &str) {
    assert!(
        encoded.bytes().all(|b| b.is_ascii_graphic() && b != b'='),
        "{encoded:?}"
    );
}
