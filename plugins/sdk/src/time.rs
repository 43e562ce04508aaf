//! Times as texts. A policy has no clock: every time comes from the host.

const DAY: u64 = 24 * 3600 * 1000;
/// 9999-12-31T23:59:59.999Z.
const LAST: u64 = 253_402_300_799_999;

/// `2026-03-03T10:00:00.000Z` (RFC 3339), of milliseconds since 1970; what lies behind the year
/// 9999 is its last millisecond.
pub fn iso(at: u64) -> String {
    let at = at.min(LAST);
    let (mut days, time) = (at / DAY, at % DAY);
    let mut year = 1970;
    while days >= days_of(year) {
        days -= days_of(year);
        year += 1;
    }
    let february = days_of(year) - 337;
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!(
        "{year}-{month:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        days + 1,
        time / 3_600_000,
        time / 60_000 % 60,
        time / 1000 % 60,
        time % 1000
    )
}

fn days_of(year: u64) -> u64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    365 + u64::from(leap)
}
