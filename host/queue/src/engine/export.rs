//! Export: events after a durable cursor, rendered by policy, handed to a sink.
//!
//! It shares nothing with delivery but the event table. The cursor moves after the sink
//! has the batch, so a crash hands a batch over again and never leaves one out.

use std::time::Duration;

use super::Engine;
use crate::ports::{EventRecord, ExportBatch, PolicyFault, Sink};

/// Events in one batch.
const BATCH: u32 = 512;
/// Failures of a batch after which it is rendered event by event, so that one bad event
/// does not hold up the rest.
const TRIES_BEFORE_SPLIT: u32 = 5;

/// What an exporter did.
pub(super) enum Exported {
    Nothing,
    Some,
    /// The policy or the sink failed; the cursor stays.
    Failed,
}

impl Engine {
    /// Exports one batch. `tries` counts earlier failures at the same place.
    pub(super) async fn export_batch(&self, name: &str, sink: &dyn Sink, tries: u32) -> Exported {
        let store = &self.parts.store;
        let batch = match store.cursor(name.to_owned()).await {
            Ok(after) => store.events(after, BATCH).await,
            Err(error) => Err(error),
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                tracing::warn!(exporter = name, %error, "events could not be read");
                return Exported::Failed;
            }
        };
        let Some(last) = batch.last().map(|e| e.seq) else {
            return Exported::Nothing;
        };
        let mut through = last;
        match self.hand_over(name, sink, &batch).await {
            Ok(()) => {}
            Err(Trouble::Policy(fault)) if tries >= TRIES_BEFORE_SPLIT => {
                match self.hand_over_singly(name, sink, &batch).await {
                    Some(seq) => through = seq,
                    None => {
                        tracing::warn!(exporter = name, %fault, "the batch was not exported");
                        return Exported::Failed;
                    }
                }
            }
            Err(Trouble::Policy(PolicyFault::Inactive)) => return Exported::Nothing,
            Err(Trouble::Policy(fault)) => {
                tracing::warn!(exporter = name, %fault, "the export policy did not render a batch");
                return Exported::Failed;
            }
            Err(Trouble::Sink) => return Exported::Failed,
        }
        if let Err(error) = store.set_cursor(name.to_owned(), through).await {
            tracing::warn!(exporter = name, %error, "the export cursor could not be moved; the batch will be exported again");
            return Exported::Failed;
        }
        Exported::Some
    }

    async fn hand_over(
        &self,
        name: &str,
        sink: &dyn Sink,
        batch: &[EventRecord],
    ) -> Result<(), Trouble> {
        let payloads = self
            .parts
            .policy
            .render(name, batch)
            .await
            .map_err(Trouble::Policy)?;
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
            return Ok(());
        };
        sink.deliver(ExportBatch {
            exporter: name.to_owned(),
            first: first.seq,
            last: last.seq,
            payloads,
        })
        .await
        .map_err(|error| {
            tracing::warn!(exporter = name, %error, "the sink did not take a batch");
            Trouble::Sink
        })
    }

    /// Renders each event alone and leaves out, loudly, those that can't be. Returns the
    /// last one dealt with.
    async fn hand_over_singly(
        &self,
        name: &str,
        sink: &dyn Sink,
        batch: &[EventRecord],
    ) -> Option<u64> {
        let mut through = None;
        for event in batch {
            match self
                .hand_over(name, sink, std::slice::from_ref(event))
                .await
            {
                Ok(()) => {}
                Err(Trouble::Policy(fault)) => {
                    tracing::error!(exporter = name, seq = event.seq, %fault, "event left out of the export: its policy can't render it");
                }
                Err(Trouble::Sink) => break,
            }
            through = Some(event.seq);
        }
        through
    }

    /// Serves one exporter for ever: at once while there is something, each second otherwise,
    /// more slowly after failures.
    pub(super) async fn keep_exporting(&self, name: &str, sink: &dyn Sink) {
        let mut tries = 0;
        loop {
            let wait = match self.export_batch(name, sink, tries).await {
                Exported::Some => {
                    tries = 0;
                    Duration::from_millis(100)
                }
                Exported::Nothing => Duration::from_secs(1),
                Exported::Failed => {
                    tries += 1;
                    Duration::from_secs(u64::from(tries.min(60)))
                }
            };
            let at = self.now().plus(wait);
            self.parts.clock.sleep_until(at).await;
        }
    }
}

enum Trouble {
    Policy(PolicyFault),
    Sink,
}
