//! Export: batches rendered by the revision in force, and aside by a shadow.

use std::sync::Arc;

use tidegate_queue::{EventRecord, Payload, PolicyFault};
use tokio::sync::mpsc;

use super::PolicyHost;
use crate::limits;
use crate::trial::{Trial, TrialKind};
use crate::worlds::v1;

/// A batch that was rendered, for the shadow.
pub struct RenderedAside {
    trial: Arc<Trial>,
    batch: Vec<EventRecord>,
    payloads: Vec<Payload>,
}

impl PolicyHost {
    /// Batches that are to be shown to a shadow. Can be taken once.
    pub fn rendered_aside(&self) -> Option<mpsc::Receiver<RenderedAside>> {
        self.batches_aside.receiver()
    }

    pub(super) async fn render_batch(
        &self,
        exporter: &str,
        batch: &[EventRecord],
    ) -> Result<Vec<Payload>, PolicyFault> {
        if batch.len() > limits::EVENTS {
            return Err(PolicyFault::Broken(format!(
                "{} events in one call; at most {}",
                batch.len(),
                limits::EVENTS
            )));
        }
        let (slot, shadow) = {
            let slots = self.slots.load();
            (
                slots.export(exporter).cloned(),
                slots.trial_of_export(exporter).cloned(),
            )
        };
        let (payloads, _) = self
            .ask(slot, async |active| {
                v1::render(&self.engine, active, batch).await
            })
            .await?;
        if let Some(trial) = shadow
            && trial.kind == TrialKind::Shadow
            && let (Some(first), Some(last)) = (batch.first(), batch.last())
            && trial.shows(first.seq, last.seq)
        {
            match self.batches_aside.place() {
                Some(place) => place.send(RenderedAside {
                    trial,
                    batch: batch.to_vec(),
                    payloads: payloads.clone(),
                }),
                None => trial.skipped_many(batch.len()),
            }
        }
        Ok(payloads)
    }

    /// Has a shadow render a batch too, and compares.
    pub async fn render_aside(&self, rendered: RenderedAside) {
        let RenderedAside {
            trial,
            batch,
            payloads,
        } = rendered;
        let Some(_turn) = self.aside.enter(None).await else {
            return trial.skipped_many(batch.len());
        };
        if !trial.breaker().allows(self.engine.uptime_ms()) {
            return trial.skipped_many(batch.len());
        }
        match v1::render(&self.engine, &trial.active, &batch).await {
            Ok((own, cost_micros)) => {
                trial.breaker().succeeded();
                trial.own.answered();
                trial
                    .batches()
                    .answered(&batch, &payloads, &own, cost_micros);
            }
            Err(failure) => {
                self.shadow_failed(&trial);
                trial.batches().failed(&batch, &failure.to_string());
            }
        }
    }
}
