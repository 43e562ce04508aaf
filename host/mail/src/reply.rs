//! SMTP replies, as peers give them and as we give them (RFC 5321 s. 4.2, RFC 2034, RFC 3463).

use std::fmt;
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
    /// code, else `class.0.0`.
    pub fn status(&self) -> Enhanced {
        let class = (self.code / 100) as u8;
        match self.enhanced {
            Some(enhanced) if enhanced.class == class => enhanced,
            _ => Enhanced::new(class, 0, 0),
        }
    }

    pub fn is_positive(&self) -> bool {
        (200..300).contains(&self.code)
    }
}

impl fmt::Display for Reply {
    /// On one line: `550 5.1.1 No such user; second line`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for (n, line) in self.text.lines().enumerate() {
            f.write_str(if n == 0 { " " } else { "; " })?;
            f.write_str(line)?;
        }
        Ok(())
    }
}
