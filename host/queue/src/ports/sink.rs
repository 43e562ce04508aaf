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

/// The sink did not take the batch; it is handed over again.
#[derive(Debug, thiserror::Error)]
#[error("export to {sink}: {reason}")]
pub struct SinkError {
    pub sink: String,
    pub reason: String,
}

/// Where exported events go: a rotated file, an HTTP endpoint.
pub trait Sink: Send + Sync + 'static {
    /// Returns once the batch is safe with the receiver (a file: synced). At least once:
    /// after a crash the same batch may come again.
    fn deliver(&self, batch: ExportBatch) -> Fut<'_, Result<(), SinkError>>;
}
