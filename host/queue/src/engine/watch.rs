//! Watching for what must not be: recipients past their lifetime, contents that are damaged.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_mail::{Fault, Outcome, Stage};

use super::flight::Carried;
use super::{Engine, add};
use crate::ports::Hand;

/// Longer than an attempt that was under way at the expiry takes to end.
const GRACE: Duration = Duration::from_secs(1800);
const WATCH_EVERY: Duration = Duration::from_secs(60);
/// Recipients named in one line of the log.
const NAMED: usize = 5;

impl Engine {
    pub(super) async fn keep_watch(&self) {
        loop {
            self.watch();
            let next = self.now().plus(WATCH_EVERY);
            self.parts.clock.sleep_until(next).await;
        }
    }

    /// Counts recipients that are in the queue though their lifetime ended half an hour ago or
    /// more, and reports them.
    pub fn watch(&self) -> u64 {
        let limit = self.now().minus(GRACE);
        let (count, some) = self.schedule().overdue(limit, NAMED);
        self.overdue.store(count, Ordering::Relaxed);
        if count > 0 {
            let some: Vec<String> = some.iter().map(ToString::to_string).collect();
            tracing::error!(
                count,
                recipients = some.join(" "),
                "recipients are in the queue past their lifetime: can the database be read?"
            );
        }
        count
    }

    /// Finds out why a content could not be read: what is damaged will not get better, and the
    /// sender is to know now; for anything else there is another attempt.
    pub(super) async fn look_into(&self, carried: &Carried, results: &mut [Hand]) {
        let unreadable = |hand: &Hand| hand.outcome.fault == Some(Fault::ContentUnreadable);
        if !results.iter().any(unreadable) {
            return;
        }
        let Some(error) = self.read_through(carried).await else {
            return;
        };
        tracing::error!(message = %carried.id, %error, "a stored content can't be read");
        if error.kind() != std::io::ErrorKind::InvalidData {
            return;
        }
        for hand in results.iter_mut().filter(|hand| unreadable(hand)) {
            add(&self.counters.damaged, 1);
            hand.outcome = Outcome::from_fault(Stage::Local, Fault::ContentDamaged)
                .with_detail(error.to_string());
        }
    }

    async fn read_through(&self, carried: &Carried) -> Option<std::io::Error> {
        const PIECE: usize = 256 * 1024;
        let mut at = 0;
        loop {
            match carried.content.read(at, PIECE).await {
                Ok(piece) if piece.is_empty() => return None,
                Ok(piece) => at += piece.len() as u64,
                Err(error) => return Some(error),
            }
        }
    }
}
