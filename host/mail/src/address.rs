//! Addresses of the envelope: the Mailbox of RFC 5321 s. 4.1.2 and RFC 6531 s. 3.3, and
//! the paths that MAIL and RCPT put around it.
//!
//! Invariant: an [`Address`] has no control character, no space and no angle bracket
//! outside a quoted local part, and parsing its text gives the same address again. What
//! is a mailbox and what is not is the destination's to say: the local part is
//! never unquoted, folded or lower-cased here.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// `local-part@domain`. The local part is kept as given (quoted where it was
/// quoted); the domain is in lower-case A-label form, or an address literal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    text: Box<str>,
    /// Byte offset of the domain.
    domain_at: u32,
}

/// Why a text is not an address or a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("the address has no '@' and domain")]
    NoDomain,
    #[error(
        "the local part is not valid: it needs atoms joined by single dots, or a quoted string"
    )]
    BadLocalPart,
    #[error("the local part is longer than 64 octets")]
    LocalPartTooLong,
    #[error(
        "the domain is not valid: it needs labels of letters, digits and hyphens, joined by single dots"
    )]
    BadDomain,
    #[error("a label of the domain is longer than 63 octets, or the domain longer than 255")]
    DomainTooLong,
    #[error("the address literal is not valid: [192.0.2.1] or [IPv6:2001:db8::1] is")]
    BadLiteral,
    #[error("the address has a control character")]
    ControlCharacter,
    #[error("the address is longer than 254 octets")]
    TooLong,
    #[error("the path is not enclosed in '<' and '>'")]
    NoBrackets,
    #[error("the source route before the address is not valid")]
    BadRoute,
}

impl Address {
    /// Longest address in octets: a path of 256 (RFC 5321 s. 4.5.3.1.3) without its brackets.
    pub const MAX: usize = 254;
    /// Longest local part in octets, quotes included (RFC 5321 s. 4.5.3.1.1).
    pub const MAX_LOCAL_PART: usize = 64;
    /// Longest domain in octets (RFC 5321 s. 4.5.3.1.2).
    pub const MAX_DOMAIN: usize = 255;

    /// Parses `local-part@domain` without angle brackets. A domain of U-labels is
    /// turned into A-labels (RFC 5891 by way of UTS 46).
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        // Twice the limit bounds the work; U-labels may shrink or grow in the conversion.
        if text.len() > 2 * Self::MAX {
            return Err(AddressError::TooLong);
        }
        if text.chars().any(is_forbidden) {
            return Err(AddressError::ControlCharacter);
        }
        let local_len = local_part_len(text)?;
        let rest = &text[local_len..];
        let domain = match rest.strip_prefix('@') {
            Some(domain) => domain,
            None if rest.is_empty() => return Err(AddressError::NoDomain),
            None => return Err(AddressError::BadLocalPart),
        };
        if local_len > Self::MAX_LOCAL_PART {
            return Err(AddressError::LocalPartTooLong);
        }
        let domain = canonical_domain(domain)?;
        if local_len + 1 + domain.len() > Self::MAX {
            return Err(AddressError::TooLong);
        }
        let text: Box<str> = match domain {
            Cow::Borrowed(_) => text.into(),
            Cow::Owned(domain) => [&text[..=local_len], &domain].concat().into(),
        };
        Ok(Address {
            text,
            domain_at: local_len as u32 + 1,
        })
    }

    /// Parses a whole path as MAIL and RCPT have it: `<>` is `None`, a source route
    /// (`<@a,@b:user@host>`, RFC 5321 appendix C) is dropped, and `<postmaster>` (RFC 5321
    /// s. 4.1.1.3) is the postmaster of `local_host`, where one is given.
    pub fn parse_path(text: &str, local_host: Option<&str>) -> Result<Option<Self>, AddressError> {
        match Self::take_path(text, local_host)? {
            (path, "") => Ok(path),
            _ => Err(AddressError::NoBrackets),
        }
    }

    /// As [`Address::parse_path`], and gives back what follows the closing bracket: the
    /// parameters of the command.
    pub fn take_path<'t>(
        text: &'t str,
        local_host: Option<&str>,
    ) -> Result<(Option<Self>, &'t str), AddressError> {
        let inner = text.strip_prefix('<').ok_or(AddressError::NoBrackets)?;
        let end = closing_bracket(inner).ok_or(AddressError::NoBrackets)?;
        let (path, rest) = (&inner[..end], &inner[end + 1..]);
        if path.is_empty() {
            return Ok((None, rest));
        }
        let mailbox = if path.starts_with('@') {
            strip_route(path)?
        } else {
            path
        };
        let address = match local_host {
            Some(host) if mailbox.eq_ignore_ascii_case("postmaster") => {
                Address::parse(&format!("{mailbox}@{host}"))?
            }
            _ => Address::parse(mailbox)?,
        };
        Ok((Some(address), rest))
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn local_part(&self) -> &str {
        &self.text[..self.domain_at as usize - 1]
    }

    /// Lower-case A-label form, or an address literal in brackets.
    pub fn domain(&self) -> &str {
        &self.text[self.domain_at as usize..]
    }

    pub fn domain_at(&self) -> usize {
        self.domain_at as usize
    }

    /// The address of a literal domain: mail for it goes there without DNS.
    pub fn literal(&self) -> Option<IpAddr> {
        parse_literal(self.domain())
    }

    /// Whether delivering to it needs SMTPUTF8 (RFC 6531).
    pub fn is_international(&self) -> bool {
        !self.text.is_ascii()
    }
}

/// The canonical form of a domain or address literal, as in [`Address::domain`].
pub fn canonical_domain(domain: &str) -> Result<Cow<'_, str>, AddressError> {
    if domain.starts_with('[') {
        return match parse_literal(domain).ok_or(AddressError::BadLiteral)? {
            IpAddr::V4(_) => Ok(Cow::Borrowed(domain)),
            IpAddr::V6(ip) => {
                let canonical = format!("[IPv6:{ip}]");
                Ok(if canonical == domain {
                    Cow::Borrowed(domain)
                } else {
                    Cow::Owned(canonical)
                })
            }
        };
    }
    if !domain.is_ascii() {
        let ascii = idna::uts46::Uts46::new()
            .to_ascii(
                domain.as_bytes(),
                idna::AsciiDenyList::STD3,
                idna::uts46::Hyphens::CheckFirstLast,
                idna::uts46::DnsLength::Ignore,
            )
            .map_err(|_| AddressError::BadDomain)?;
        check_labels(&ascii)?;
        return Ok(Cow::Owned(ascii.into_owned()));
    }
    check_labels(domain)?;
    Ok(if domain.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(domain.to_ascii_lowercase())
    } else {
        Cow::Borrowed(domain)
    })
}

/// Labels of letters, digits and inner hyphens, with their limits.
fn check_labels(domain: &str) -> Result<(), AddressError> {
    if domain.len() > Address::MAX_DOMAIN {
        return Err(AddressError::DomainTooLong);
    }
    for label in domain.split('.') {
        let bytes = label.as_bytes();
        match (bytes.first(), bytes.last()) {
            (Some(b'-'), _) | (_, Some(b'-')) | (None, _) | (_, None) => {
                return Err(AddressError::BadDomain);
            }
            _ => {}
        }
        if !bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        {
            return Err(AddressError::BadDomain);
        }
        if bytes.len() > 63 {
            return Err(AddressError::DomainTooLong);
        }
    }
    Ok(())
}

/// `[192.0.2.1]` or `[IPv6:2001:db8::1]`; other tags are not registered (RFC 5321 s. 4.1.3).
fn parse_literal(domain: &str) -> Option<IpAddr> {
    let inner = domain.strip_prefix('[')?.strip_suffix(']')?;
    match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => {
            inner[5..].parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        }
        _ => inner.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

/// Octets of the local part that `text` begins with.
fn local_part_len(text: &str) -> Result<usize, AddressError> {
    let bytes = text.as_bytes();
    if bytes.first() == Some(&b'"') {
        return quoted_len(bytes).ok_or(AddressError::BadLocalPart);
    }
    let mut dot = true;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'.' if dot => return Err(AddressError::BadLocalPart),
            b'.' => dot = true,
            b'@' if dot => return Err(AddressError::BadLocalPart),
            b'@' => return Ok(at),
            _ if is_atext(*byte) => dot = false,
            _ => return Err(AddressError::BadLocalPart),
        }
    }
    if text.chars().any(char::is_whitespace) || bytes.is_empty() {
        return Err(AddressError::BadLocalPart);
    }
    Err(AddressError::NoDomain)
}

/// Octets of the quoted string that `bytes` begins with, both quotes included.
/// An empty one is in the grammar (RFC 5321 s. 4.1.2, QcontentSMTP may be absent).
fn quoted_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            // A quoted pair is one printable ASCII character (RFC 5321 quoted-pairSMTP).
            b'\\' if matches!(bytes.get(at + 1)?, b' '..=b'~') => at += 2,
            b'\\' => return None,
            _ => at += 1,
        }
    }
}

/// atext of RFC 5322 s. 3.2.3, and non-ASCII (RFC 6531 s. 3.3). What is not a character for
/// addresses among the latter, [`is_forbidden`] has refused.
fn is_atext(byte: u8) -> bool {
    byte >= 0x80
        || byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'/'
                | b'='
                | b'?'
                | b'^'
                | b'_'
                | b'`'
                | b'{'
                | b'|'
                | b'}'
                | b'~'
        )
}

/// Characters that no address may have, quoted or not: controls, white space other than the
/// ASCII space, and those that reorder the text around them in a log or a notice.
fn is_forbidden(c: char) -> bool {
    c.is_control()
        || (c != ' ' && c.is_whitespace())
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Where the path ends: the first `>` outside a quoted string.
fn closing_bracket(inner: &str) -> Option<usize> {
    let bytes = inner.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'>' => return Some(at),
            b'"' => at += quoted_len(&bytes[at..])?,
            _ => at += 1,
        }
    }
    None
}

/// What follows the colon of `@a,@b:user@host`.
fn strip_route(path: &str) -> Result<&str, AddressError> {
    // Only an IPv6 literal in the route has further colons.
    let mut from = 0;
    loop {
        let colon = from + path[from..].find(':').ok_or(AddressError::BadRoute)?;
        let route = &path[..colon];
        let all_hosts = route.split(',').all(|hop| {
            hop.strip_prefix('@')
                .is_some_and(|h| canonical_domain(h).is_ok())
        });
        if all_hosts {
            return Ok(&path[colon + 1..]);
        }
        from = colon + 1;
    }
}

impl std::str::FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Address::parse(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.text)
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Address::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn accepts(text: &str, canonical: &str) {
        let address = Address::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(address.as_str(), canonical);
        assert_eq!(
            format!("{}@{}", address.local_part(), address.domain()),
            canonical
        );
        assert_eq!(Address::parse(canonical), Ok(address));
    }

    #[track_caller]
    fn refuses(text: &str, why: AddressError) {
        assert_eq!(Address::parse(text), Err(why), "{text:?}");
    }

    #[test]
    fn keeps_the_local_part_and_lowers_the_domain() {
        accepts("Ann.Lee+crm=1@Example.COM", "Ann.Lee+crm=1@example.com");
        accepts("\"a b\"@example.com", "\"a b\"@example.com");
        accepts("\"a\\\"@>b\"@example.com", "\"a\\\"@>b\"@example.com");
        accepts("\"\"@example.com", "\"\"@example.com");
        accepts("!#$%&'*+-/=?^_`{|}~@a", "!#$%&'*+-/=?^_`{|}~@a");
        accepts("jürgen@example.com", "jürgen@example.com");
        accepts("a@xn--mnchen-3ya.de", "a@xn--mnchen-3ya.de");
    }

    #[test]
    fn turns_u_labels_into_a_labels() {
        accepts("a@MÜNCHEN.de", "a@xn--mnchen-3ya.de");
        accepts("用户@例え.テスト", "用户@xn--r8jz45g.xn--zckzah");
        assert!(!Address::parse("a@münchen.de").unwrap().is_international());
        assert!(Address::parse("ü@münchen.de").unwrap().is_international());
    }

    #[test]
    fn knows_address_literals() {
        accepts("a@[192.0.2.1]", "a@[192.0.2.1]");
        accepts("a@[ipv6:2001:DB8:0::1]", "a@[IPv6:2001:db8::1]");
        let literal = |text| Address::parse(text).unwrap().literal();
        assert_eq!(literal("a@[192.0.2.1]"), "192.0.2.1".parse().ok());
        assert_eq!(literal("a@[IPv6:::1]"), "::1".parse().ok());
        assert_eq!(literal("a@192.0.2.1"), None);
        for bad in [
            "a@[192.0.2]",
            "a@[::1]",
            "a@[IPv6:x]",
            "a@[1.2.3.4",
            "a@[x:y]",
        ] {
            refuses(bad, AddressError::BadLiteral);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        refuses("", AddressError::BadLocalPart);
        refuses("postmaster", AddressError::NoDomain);
        refuses("\"a b\"", AddressError::NoDomain);
        for bad in [
            "@a",
            ".a@b",
            "a.@b",
            "a..b@c",
            "a b@c",
            "a,b@c",
            "<a@b>",
            "(a)@b",
            "\"a@b",
            "\"a\"b@c",
            "a\"b\"@c",
            "\"a\\\u{e9}\"@c",
            "a b",
        ] {
            refuses(bad, AddressError::BadLocalPart);
        }
        for bad in [
            "a@",
            "a@.b",
            "a@b.",
            "a@b..c",
            "a@-b",
            "a@b-",
            "a@b_c",
            "a@b c",
            "a@b@c",
            "a@b>c",
            "a@xn--ü.de",
            "a@ü..de",
            "a@b,c",
            "a@b:25",
        ] {
            refuses(bad, AddressError::BadDomain);
        }
        for bad in [
            "a\r\nb@c",
            "a\0@b",
            "a@b\n",
            "\"a\u{7f}\"@b",
            "a\u{85}@b",
            "a\u{2028}@b",
            "a\u{a0}@b",
            "a\u{202e}@b",
        ] {
            refuses(bad, AddressError::ControlCharacter);
        }
    }

    #[test]
    fn holds_the_limits() {
        let local = "a".repeat(64);
        assert!(Address::parse(&format!("{local}@b")).is_ok());
        refuses(&format!("{local}a@b"), AddressError::LocalPartTooLong);
        let label = "b".repeat(63);
        assert!(Address::parse(&format!("a@{label}.c")).is_ok());
        refuses(&format!("a@{label}b.c"), AddressError::DomainTooLong);
        let domain = [label.as_str(); 3].join(".");
        let longest = format!("{}@{domain}", "a".repeat(254 - domain.len() - 1));
        assert_eq!(Address::parse(&longest).unwrap().as_str().len(), 254);
        refuses(&format!("a{longest}"), AddressError::TooLong);
        refuses(&"a".repeat(5000), AddressError::TooLong);
    }

    #[test]
    fn reads_paths() {
        let path = |text| Address::parse_path(text, Some("gate.example"));
        let some = |text: &str| Ok(Some(Address::parse(text).unwrap()));
        assert_eq!(path("<>"), Ok(None));
        assert_eq!(path("<a@b>"), some("a@b"));
        assert_eq!(path("<@x,@y.example:a@b>"), some("a@b"));
        assert_eq!(path("<@[IPv6:::1]:a@b>"), some("a@b"));
        assert_eq!(path("<Postmaster>"), some("Postmaster@gate.example"));
        assert_eq!(
            Address::parse_path("<postmaster>", None),
            Err(AddressError::NoDomain)
        );
        for bad in ["", "a@b", "<a@b", "<a@b> ", "<a@b>x", "a<b@c>", "<\"a>"] {
            assert_eq!(path(bad), Err(AddressError::NoBrackets), "{bad}");
        }
        for bad in ["<@x>", "<@x,y:a@b>", "<@x,:a@b>", "<@:a@b>"] {
            assert_eq!(path(bad), Err(AddressError::BadRoute), "{bad}");
        }
        assert_eq!(
            Address::take_path("<\"> x\"@b> SIZE=1", None),
            Ok((Some(Address::parse("\"> x\"@b").unwrap()), " SIZE=1"))
        );
    }

    /// Texts near the grammar, so that a good part is accepted.
    fn near_address() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[a-zA-Z0-9]{1,8}",
            Just(".".to_owned()),
            Just("@".to_owned()),
            Just("\"".to_owned()),
            Just("\\".to_owned()),
            "[ <>,:+=\\[\\]-]",
            "\\PC",
            any::<char>().prop_map(String::from),
        ];
        let soup = proptest::collection::vec(piece, 0..12).prop_map(|p| p.concat());
        prop_oneof![
            soup.clone(),
            (soup.clone(), "[a-z]{1,9}\\.[a-z]{2,3}").prop_map(|(l, d)| format!("{l}@{d}")),
            (soup, "[a-z]{1,9}").prop_map(|(l, d)| format!("\"{l}\"@{d}")),
            "\\PC{1,6}@\\PC{1,6}\\.[a-z]{2}",
        ]
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_safe_and_parses_again(text in near_address()) {
            let Ok(address) = Address::parse(&text) else { return Ok(()) };
            prop_assert_eq!(&Address::parse(&address.to_string()), &Ok(address.clone()));
            prop_assert!(address.as_str().len() <= Address::MAX);
            prop_assert!(!address.as_str().chars().any(char::is_control));
            prop_assert!(address.domain().is_ascii());
            let bare = if address.local_part().starts_with('"') {
                address.domain()
            } else {
                address.as_str()
            };
            prop_assert!(!bare.contains(|c: char| c.is_whitespace() || "<>\"(),;\\".contains(c)));
            let path = format!("<{address}> X=1");
            prop_assert_eq!(Address::take_path(&path, None), Ok((Some(address), " X=1")));
        }

        #[test]
        fn no_path_panics(text in "[<>@:,\"\\\\a-z\\[\\]é ]{0,20}") {
            let _ = Address::take_path(&text, Some("host.example"));
        }
    }
}
