//! Addresses of the envelope: the Mailbox of RFC 5321 s. 4.1.2 and RFC 6531 s. 3.3.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `local-part@domain`. The local part is kept as given (quoted where it was
/// quoted); the domain is in lower-case A-label form, or an address literal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    text: Box<str>,
    /// Byte offset of the domain.
    domain_at: u32,
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("the address has no '@'")]
    NoDomain,
    #[error("the local part is not valid")]
    BadLocalPart,
    #[error("the domain is not valid")]
    BadDomain,
    #[error("the address is too long")]
    TooLong,
}

impl Address {
    /// Parses `local-part@domain` without angle brackets.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let at = text.rfind('@').ok_or(AddressError::NoDomain)?;
        let (local, domain) = (&text[..at], &text[at + 1..]);
        if local.is_empty() {
            return Err(AddressError::BadLocalPart);
        }
        if domain.is_empty() {
            return Err(AddressError::BadDomain);
        }
        let text = format!("{local}@{}", domain.to_ascii_lowercase());
        Ok(Address {
            domain_at: at as u32 + 1,
            text: text.into(),
        })
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

    /// Whether delivering to it needs SMTPUTF8 (RFC 6531).
    pub fn is_international(&self) -> bool {
        !self.text.is_ascii()
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
