//! Instants as whole milliseconds since the Unix epoch.
//!
//! The type carries no clock: whoever needs "now" takes it as an argument.

use std::fmt;
use std::time::Duration;

use jiff::fmt::{rfc2822, temporal};
use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Later than every instant the gateway handles.
    pub const FAR_FUTURE: Timestamp = Timestamp(i64::MAX);

    pub const fn from_millis(millis: i64) -> Self {
        Timestamp(millis)
    }

    pub const fn from_secs(secs: i64) -> Self {
        Timestamp(secs.saturating_mul(1000))
    }

    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This instant moved forward, stopping at [`Timestamp::FAR_FUTURE`].
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Timestamp(
            self.0
                .saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// This instant moved back, stopping at the smallest value.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Timestamp(
            self.0
                .saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// The time passed since `earlier`; zero if `earlier` is later, as after a
    /// clock set back.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// `Tue, 24 Nov 2026 03:05:00 +0000`, the date-time of RFC 5322 s. 3.3, in UTC.
    pub fn rfc5322(self) -> String {
        const PRINTER: rfc2822::DateTimePrinter = rfc2822::DateTimePrinter::new();
        // The date of HTTP is the same but for the name of its zone; years before 0 have none.
        let mut text = PRINTER
            .timestamp_to_rfc9110_string(&self.instant())
            .unwrap_or_else(|_| String::from("Thu, 01 Jan 1970 00:00:00 GMT"));
        text.truncate(text.len() - "GMT".len());
        text.push_str("+0000");
        text
    }

    /// `2026-11-24T03:05:00.123Z`, RFC 3339 in UTC with milliseconds.
    pub fn rfc3339(self) -> String {
        const PRINTER: temporal::DateTimePrinter =
            temporal::DateTimePrinter::new().precision(Some(3));
        PRINTER.timestamp_to_string(&self.instant())
    }

    /// Reads RFC 3339 with any offset; `None` where the text is not of that form.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let instant: jiff::Timestamp = text.parse().ok()?;
        Some(Timestamp(instant.as_millisecond()))
    }

    /// The UTC calendar day as `yyyymmdd`, the unit in which the log is kept and dropped.
    pub fn day(self) -> u32 {
        let date = self.in_utc().date();
        date.year().unsigned_abs() as u32 * 10_000
            + date.month().unsigned_abs() as u32 * 100
            + date.day().unsigned_abs() as u32
    }

    fn in_utc(self) -> jiff::civil::DateTime {
        jiff::tz::Offset::UTC.to_datetime(self.instant())
    }

    fn instant(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_forms_of_the_rfcs() {
        let t = Timestamp::from_secs(1_795_489_500);
        assert_eq!(t.rfc5322(), "Tue, 24 Nov 2026 03:05:00 +0000");
        assert_eq!(t.rfc3339(), "2026-11-24T03:05:00.000Z");
        assert_eq!(t.day(), 20_261_124);
        assert_eq!(
            Timestamp::parse_rfc3339("2026-11-24T04:05:00+01:00"),
            Some(t)
        );
        assert_eq!(Timestamp::parse_rfc3339(&t.rfc3339()), Some(t));
        assert_eq!(Timestamp::parse_rfc3339("24 Nov 2026"), None);
        let t = Timestamp::from_millis(1_798_761_845_070);
        assert_eq!(t.rfc5322(), "Fri, 01 Jan 2027 00:04:05 +0000");
        assert_eq!(t.rfc3339(), "2027-01-01T00:04:05.070Z");
        let never = Timestamp::FAR_FUTURE.rfc5322();
        assert_eq!(never, "Thu, 01 Jan 1970 00:00:00 +0000");
        let before_christ = Timestamp::from_secs(-70_000_000_000);
        assert_eq!(before_christ.rfc5322(), never);
    }

    #[test]
    fn arithmetic_saturates() {
        let t = Timestamp::from_millis(5);
        assert_eq!(t.since(Timestamp::from_millis(9)), Duration::ZERO);
        assert_eq!(
            Timestamp::FAR_FUTURE.plus(Duration::from_secs(1)),
            Timestamp::FAR_FUTURE
        );
    }
}
