use tidegate_mail::Timestamp;

use super::Fut;

/// The time of day, and waiting for it. Only the operating system's clock in `net` and
/// the stepped clock of the simulation implement it.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;

    /// Returns at `at` or later; at once if that has passed.
    fn sleep_until(&self, at: Timestamp) -> Fut<'_, ()>;
}
