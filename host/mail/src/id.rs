//! Queue ids: unique, ordered by time of acceptance, short to read aloud.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Crockford's base 32 in lower case: no i, l, o, u, so that ids survive being read out.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The queue id of a message: 43 bits of milliseconds, 8 bits of node, 12 bits of
/// sequence. It fits the positive half of an `i64`, so both databases use it as a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u64);

impl MessageId {
    /// Wraps a stored key.
    pub const fn from_i64(raw: i64) -> Self {
        MessageId(raw as u64)
    }

    pub const fn as_i64(self) -> i64 {
        self.0 as i64
    }

    /// Above every id that was given by the end of this millisecond, and not above any later one.
    pub fn after(at: Timestamp) -> MessageId {
        let next = u64::try_from(at.as_millis()).map_or(0, |ms| ms.saturating_add(1));
        MessageId(next.min(u64::MAX >> 21) << 20)
    }

    /// The millisecond in which the id was given.
    pub const fn given_at(self) -> Timestamp {
        Timestamp((self.0 >> 20) as i64)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 13];
        let mut rest = self.0;
        for slot in text.iter_mut().rev() {
            *slot = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text that is not a queue id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a queue id: {0:?} (13 characters of 0-9 and a-z without i, l, o, u)")]
pub struct BadId(String);

impl FromStr for MessageId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId(text.chars().take(40).collect());
        if text.len() != 13 {
            return Err(bad());
        }
        let mut value: u64 = 0;
        for byte in text.bytes() {
            let digit = ALPHABET
                .iter()
                .position(|c| *c == byte.to_ascii_lowercase())
                .ok_or_else(bad)? as u64;
            if value >> 59 != 0 {
                return Err(bad());
            }
            value = (value << 5) | digit;
        }
        if value > i64::MAX as u64 {
            return Err(bad());
        }
        Ok(MessageId(value))
    }
}

impl Serialize for MessageId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One recipient of one message: its position in the envelope as submitted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct RecipientId {
    pub message: MessageId,
    pub index: u32,
}

impl fmt::Display for RecipientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.message, self.index)
    }
}

/// Gives ids that only grow, also when the clock is set back or more than 4,096
/// are asked for in a millisecond (the sequence then runs ahead of the clock).
#[derive(Debug)]
pub struct IdSource {
    node: u8,
    /// Milliseconds and sequence of the last id given.
    last: AtomicU64,
}

impl IdSource {
    /// `node` tells apart gateways that share a database.
    pub const fn new(node: u8) -> Self {
        IdSource {
            node,
            last: AtomicU64::new(0),
        }
    }

    /// Gives ids above all of the millisecond in which this one was given, by whatever node.
    #[must_use]
    pub fn above(self, id: MessageId) -> Self {
        self.last
            .fetch_max((id.0 >> 20) << 12 | 0xfff, Ordering::Relaxed);
        self
    }

    pub fn next(&self, now: Timestamp) -> MessageId {
        let floor = u64::try_from(now.as_millis()).unwrap_or(0) << 12;
        let step = |last: u64| floor.max(last + 1);
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |l| Some(step(l)))
            .unwrap_or_else(|l| l);
        let given = step(last);
        MessageId(((given >> 12) << 20) | u64::from(self.node) << 12 | (given & 0xfff))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_even_when_the_clock_does_not() {
        let source = IdSource::new(3);
        let now = Timestamp::from_secs(1_795_489_500);
        let mut last = source.next(now);
        for _ in 0..10_000 {
            let id = source.next(now.minus(std::time::Duration::from_secs(1)));
            assert!(id > last);
            last = id;
        }
    }

    #[test]
    fn ids_go_on_above_those_of_an_earlier_source() {
        let now = Timestamp::from_secs(1_795_489_500);
        let before = IdSource::new(3);
        let old: Vec<MessageId> = (0..5).map(|_| before.next(now)).collect();
        let newest = old[4];
        assert!(newest < MessageId::after(now));
        assert!(
            IdSource::new(0).next(now.plus(std::time::Duration::from_millis(1)))
                >= MessageId::after(now)
        );
        // The clock was set back, and each node counts for itself.
        for node in [0, 3, 255] {
            let source = IdSource::new(node).above(newest);
            let id = source.next(now.minus(std::time::Duration::from_secs(60)));
            assert!(id > MessageId::after(now.minus(std::time::Duration::from_millis(1))));
            assert!(!old.contains(&id) && id > newest, "{id}");
        }
        // A clock that runs as it should is not touched.
        let later = now.plus(std::time::Duration::from_secs(1));
        let id = IdSource::new(3).above(newest).next(later);
        assert_eq!(id, IdSource::new(3).next(later));
    }

    #[test]
    fn text_and_back() {
        let id = IdSource::new(1).next(Timestamp::from_secs(1_795_489_500));
        assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
        assert_eq!(id.given_at(), Timestamp::from_secs(1_795_489_500));
        for bad in ["", "i234567890123", "zzzzzzzzzzzzz", "0123456789abcd"] {
            assert!(bad.parse::<MessageId>().is_err(), "{bad}");
        }
    }
}
