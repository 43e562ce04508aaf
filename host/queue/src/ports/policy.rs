use bytes::Bytes;
use tidegate_mail::{Timestamp, Verdict};

use super::{EventRecord, Fut, Payload};
use crate::route::{Question, Routing};
use crate::shape::{LaneState, Plan};

/// A policy could not answer.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum PolicyFault {
    /// It said so itself, or the concurrency or time budget was used up: ask again later.
    #[error("the policy cannot decide now: {0}")]
    Temporary(String),
    /// Trap, overrun, invalid answer, or misconfigured by its own word.
    #[error("the policy is broken: {0}")]
    Broken(String),
    /// No policy is active in the slot.
    #[error("no policy is active")]
    Inactive,
}

/// The three questions that policy answers. Every answer was checked by the host's own code
/// before it is returned here: indices, grants, reply codes, texts.
pub trait Policy: Send + Sync + 'static {
    /// Decides every recipient of a message. Never fails: the slot's fallback (the last good
    /// revision, then a static route, then 451 4.3.0) is applied within, and the answer
    /// says so.
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing>;

    /// The plans of up to 256 lanes, one for each in order, and the state for the next call.
    fn plan(
        &self,
        now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>>;

    /// Renders a batch for the exporter of that name (slot `export/NAME`).
    fn render<'a>(
        &'a self,
        exporter: &'a str,
        batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>>;

    /// Names of header fields that the tenant's active routing policy reads, lower case.
    fn wanted_headers(&self, tenant: &str) -> std::sync::Arc<[String]>;

    /// How the first attempt at a recipient went that the revision `policy` decided: what
    /// the policy is judged by.
    fn attempted(&self, tenant: &str, policy: &str, verdict: Verdict) {
        let _ = (tenant, policy, verdict);
    }
}
