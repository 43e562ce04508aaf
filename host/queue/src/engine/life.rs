//! Starts and ends: whether the process before this one ended in order, and what follows for
//! the recipients that it may have been delivering to.
//!
//! An attempt leaves no trace in the store until its outcome is known: a write for each would
//! cost as much as the outcome itself. So a start after a crash remembers the time, and whoever
//! was due by then, and has had no outcome since, is marked in the log when there is one.

use std::sync::atomic::Ordering;

use tidegate_mail::event::Detail;
use tidegate_mail::{Event, EventKind, State, Timestamp};

use super::Engine;
use super::flight::Loaded;
use crate::ports::{Life, Store, StoreError, StoreResult};

/// Notes the start. Gives until when what was due may have been in an attempt that was cut off.
///
/// `newest` is now, or the last acceptance if the clock was set back since.
pub(super) async fn begin(
    store: &dyn Store,
    node: u8,
    newest: Timestamp,
) -> StoreResult<Option<Timestamp>> {
    let before = store.life(node).await?;
    let life = Life {
        running: true,
        crashed: match before.running {
            true => Some(newest),
            false => before.crashed,
        },
    };
    if before.running {
        tracing::warn!(
            "the gateway did not stop in order: attempts that were cut off are made again, and the log names them"
        );
    }
    match store.set_life(node, life).await {
        Ok(()) => {}
        // Delivering what is there matters more than the mark.
        Err(error @ (StoreError::Full(_) | StoreError::Busy(_))) => {
            tracing::warn!(%error, "the start could not be noted");
        }
        Err(error) => return Err(error),
    }
    Ok(life.crashed)
}

impl Engine {
    /// Notes that nothing was cut off, if that is so.
    pub(super) async fn end_life(&self) {
        if self.schedule().in_flight() > 0 || !self.ledger.is_empty() {
            return;
        }
        let life = Life {
            running: false,
            crashed: self.cut_off,
        };
        if let Err(error) = self.parts.store.set_life(self.parts.node, life).await
            && !self.store_failed.load(Ordering::Relaxed)
        {
            tracing::warn!(%error, "the orderly end could not be noted");
        }
    }

    /// Whether the store takes anything, asked only while that is in doubt: what a tenant's
    /// server has taken can't be taken back if the rest of the message can't be kept.
    pub(super) async fn probe_store(&self) -> StoreResult<()> {
        let in_doubt = [&self.doubtful, &self.stuck];
        if !in_doubt.iter().any(|flag| flag.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let life = Life {
            running: true,
            crashed: self.cut_off,
        };
        self.parts.store.set_life(self.parts.node, life).await
    }

    /// The event that says that an earlier attempt may have been cut off by a crash.
    pub(super) fn cut_off_mark(&self, before: &Loaded) -> Option<Event> {
        let crashed = self.cut_off?;
        let State::Waiting { due } = before.state.state else {
            return None;
        };
        // Any outcome since would have moved it to a later time.
        if due > crashed || before.state.accepted_at > crashed {
            return None;
        }
        Some(Event {
            at: crashed,
            kind: EventKind::Recovered,
            message: before.id.message,
            recipient: Some(before.id.index),
            detail: Detail {
                text: Some(
                    "the gateway ended without order; if an attempt was under way, this mail may arrive twice"
                        .to_owned(),
                ),
                ..Detail::default()
            },
        })
    }
}
