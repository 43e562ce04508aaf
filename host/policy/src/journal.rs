//! `log.write`: a policy's lines in the gateway's own log, bounded per call and per second.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits;

/// What a revision may still write in this second.
#[derive(Debug, Default)]
pub(crate) struct LineRate {
    /// Second in the upper half, lines in the lower.
    window: AtomicU64,
}

impl LineRate {
    /// Takes a line; `false` when the second's lines are used up.
    pub fn take(&self, second: u32) -> bool {
        let next = |window: u64| {
            let lines = if (window >> 32) as u32 == second {
                (window as u32).saturating_add(1)
            } else {
                1
            };
            (u64::from(second) << 32) | u64::from(lines)
        };
        let before = self
            .window
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |w| Some(next(w)))
            .unwrap_or_else(|w| w);
        next(before) as u32 <= limits::LOG_LINES_PER_SEC
    }
}

/// What a call may still write.
#[derive(Debug)]
pub(crate) struct CallBudget {
    lines: u32,
    bytes: usize,
}

impl Default for CallBudget {
    fn default() -> Self {
        CallBudget {
            lines: limits::LOG_LINES,
            bytes: limits::LOG_BYTES,
        }
    }
}

impl CallBudget {
    /// The part of the text that may be written, without control characters.
    pub fn take(&mut self, text: &str) -> Option<String> {
        if self.lines == 0 || self.bytes == 0 {
            return None;
        }
        self.lines -= 1;
        let text = crate::answer::tidy(text, self.bytes);
        self.bytes -= text.len();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_writes_fifty_lines_a_second() {
        let rate = LineRate::default();
        assert_eq!((0..200).filter(|_| rate.take(7)).count(), 50);
        assert!(rate.take(8));
    }

    #[test]
    fn a_call_writes_sixteen_lines_and_four_kib() {
        let mut call = CallBudget::default();
        assert_eq!((0..100).filter(|_| call.take("x").is_some()).count(), 16);
        let mut call = CallBudget::default();
        assert_eq!(call.take(&"a\n".repeat(5000)).map(|t| t.len()), Some(4096));
        assert_eq!(call.take("more"), None);
    }
}
