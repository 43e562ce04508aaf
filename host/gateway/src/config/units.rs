//! Durations and sizes as they are written in the file: a number and its unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration: `250ms`, `30s`, `15m`, `48h`, `7d`, or several such as `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    pub const fn millis(n: u64) -> Self {
        Span(Duration::from_millis(n))
    }

    pub const fn secs(n: u64) -> Self {
        Span(Duration::from_secs(n))
    }

    pub const fn mins(n: u64) -> Self {
        Span(Duration::from_secs(n * 60))
    }

    pub const fn hours(n: u64) -> Self {
        Span(Duration::from_secs(n * 3600))
    }

    pub const fn days(n: u64) -> Self {
        Span(Duration::from_secs(n * 86_400))
    }

    pub const fn get(self) -> Duration {
        self.0
    }

    /// Whole seconds, at least 1 of a duration that is not zero.
    pub fn whole_secs(self) -> u32 {
        let secs = u32::try_from(self.0.as_secs()).unwrap_or(u32::MAX);
        if secs == 0 && !self.0.is_zero() {
            1
        } else {
            secs
        }
    }
}

/// A text that is not a duration or size, with the remedy in its words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUnit {
    #[error(
        "{0:?} is not a duration: write a number and a unit, such as \"30s\", \"15m\", \"48h\" or \"7d\""
    )]
    Span(String),
    #[error(
        "{0:?} is not a size: write a number and a unit, such as \"512KiB\", \"10MiB\" or \"1GiB\""
    )]
    Size(String),
}

/// Splits off a leading number and the letters that follow it.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..digits].parse().ok()?;
    let rest = text[digits..].trim_start();
    let letters = rest
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(rest.len());
    Some((number, &rest[..letters], rest[letters..].trim_start()))
}

impl FromStr for Span {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit::Span(text.chars().take(40).collect());
        let mut rest = text.trim();
        let mut total: u64 = 0;
        loop {
            let (number, unit, after) = number_and_unit(rest).ok_or_else(bad)?;
            let millis: u64 = match unit {
                "ms" => 1,
                "s" => 1000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(bad()),
            };
            total = number
                .checked_mul(millis)
                .and_then(|n| total.checked_add(n))
                .ok_or_else(bad)?;
            rest = after;
            if rest.is_empty() {
                return Ok(Span(Duration::from_millis(total)));
            }
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis() as u64;
        if millis == 0 {
            return f.write_str("0s");
        }
        // The largest unit that gives a whole number; hours are kept up to 48, as people say.
        for (unit, size, least) in [
            ("d", 86_400_000, 3),
            ("h", 3_600_000, 1),
            ("m", 60_000, 1),
            ("s", 1000, 1),
        ] {
            if millis.is_multiple_of(size) && millis / size >= least {
                return write!(f, "{}{unit}", millis / size);
            }
        }
        write!(f, "{millis}ms")
    }
}

/// A number of bytes: `512KiB`, `10MiB`, `1GiB`; `KB`, `MB`, `GB` are powers of 1,000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    pub const fn kib(n: u64) -> Self {
        Size(n << 10)
    }

    pub const fn mib(n: u64) -> Self {
        Size(n << 20)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// For sizes of things in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit::Size(text.chars().take(40).collect());
        let (number, unit, rest) = number_and_unit(text.trim()).ok_or_else(bad)?;
        let bytes: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "KB" | "kB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(bad()),
        };
        if !rest.is_empty() {
            return Err(bad());
        }
        number.checked_mul(bytes).map(Size).ok_or_else(bad)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

macro_rules! as_text {
    ($($ty:ty, $expecting:literal, $bad:expr;)*) => {$(
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $ty {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $ty;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$ty, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$ty, E> {
                        Err(E::custom($bad(number.to_string())))
                    }
                }
                d.deserialize_any(Visitor)
            }
        }
    )*};
}

as_text! {
    Span, "a duration such as \"30s\"", BadUnit::Span;
    Size, "a size such as \"10MiB\"", BadUnit::Size;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("15m", 900_000),
            ("48h", 172_800_000),
            ("7d", 604_800_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(
                text.parse::<Span>().unwrap().get().as_millis(),
                millis,
                "{text}"
            );
        }
        for bad in [
            "",
            "30",
            "s",
            "30x",
            "-1s",
            "1.5h",
            "99999999999999999999s",
            "1h-",
        ] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_printed_as_people_write_them() {
        for text in [
            "250ms", "30s", "15m", "4h", "48h", "7d", "90m", "1500ms", "0s",
        ] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("2d".parse::<Span>().unwrap().to_string(), "48h");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1B", 1),
            ("512KiB", 524_288),
            ("10MiB", 10_485_760),
            ("10 MiB", 10_485_760),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().get(), bytes, "{text}");
        }
        for bad in ["", "10", "10Mib", "MiB", "1MiB2", "99999999999GiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(Size::mib(50).to_string(), "50MiB");
        assert_eq!(Size::mib(1024).to_string(), "1GiB");
    }
}
