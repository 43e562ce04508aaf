use std::time::Duration;

use bytes::Bytes;

use super::Fut;

/// One body as the export policy rendered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    pub body: Bytes,
    pub content_type: String,
}

/// A rendered batch of events `first..=last`.
#[derive(Clone, Debug)]
pub struct ExportBatch {
    /// Name of the exporter.
    pub exporter: String,
    pub first: u64,
    pub last: u64,
    pub payloads: Vec<Payload>,
}

/// The sink did not take the batch.
#[derive(Debug, thiserror::Error)]
#[error("export to {sink}: {reason}")]
pub struct SinkError {
    pub sink: String,
    pub reason: String,
    pub again: Again,
}

/// Whether the same batch may be taken another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It is handed over again, after this time at the earliest where the receiver named one.
    After(Option<Duration>),
    /// The receiver objects to what is in it: smaller batches are tried, down to the event.
    Never,
}

impl SinkError {
    /// One that may be gone the next time.
    pub fn for_now(sink: impl Into<String>, reason: impl Into<String>) -> Self {
        SinkError {
            sink: sink.into(),
            reason: reason.into(),
            again: Again::After(None),
        }
    }
}

/// Where exported events go: a rotated file, an HTTP endpoint.
pub trait Sink: Send + Sync + 'static {
    /// Returns once the batch is safe with the receiver (a file: synced). At least once:
    /// after a crash the same batch may come again.
    fn deliver(&self, batch: ExportBatch) -> Fut<'_, Result<(), SinkError>>;

    /// Where that is, for people; without what is secret.
    fn place(&self) -> String;

    /// Whether the receiver knows a batch that comes again, so that it has to have the same
    /// bounds as before, also after a crash.
    fn knows_batches(&self) -> bool {
        false
    }
}
