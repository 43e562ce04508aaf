//! Policies as WebAssembly components: prepared once, then called in a fresh instance each time.
//!
//! - [`prepare`] turns an upload (a core module or a component, with its configuration) into a
//!   [`Prepared`] revision: checked, initialised, snapshotted, compiled. [`worker`] does that in
//!   a process of its own, [`CodeCache`] keeps the result.
//! - [`PolicyEngine`] runs revisions under the limits of [`limits`].
//! - [`recorded`] is a decision as it is kept, [`Rehearsal`] asks another revision about
//!   such decisions, [`compare`] tells what changes.
//! - [`PolicyHost`] keeps which revision is active in which slot, checks every answer and
//!   applies the fallbacks: it is the `Policy` port of the queue.
//! - [`offline`] tries a policy on its author's machine.
//!
//! It does not know SQL or sockets, and reads no time of day: calls are given their time; a
//! monotonic clock serves to measure cost and to close breakers.

mod answer;
mod aside;
mod breaker;
mod cache;
pub mod compare;
pub mod confine;
mod engine;
mod gate;
mod harm;
mod host;
mod incident;
mod init;
mod inspect;
mod journal;
pub mod limits;
mod observe;
pub mod offline;
mod prepare;
mod prune;
pub mod recorded;
mod rehearse;
pub mod script;
mod slots;
mod ticker;
mod trial;
pub mod worker;
mod worlds;

pub use cache::{CacheError, CodeCache};
pub use engine::{Active, LoadError, PolicyEngine};
pub use harm::Rates;
pub use host::{ActivateError, Fallback, HostOptions, PlannedAside, PolicyHost, RenderedAside};
pub use incident::Incident;
pub use observe::Observed;
pub use prepare::{Prepared, Refused, Upload, prepare, revision_digest};
pub use rehearse::Rehearsal;
pub use slots::SlotStatus;
pub use trial::{TrialKind, TrialStatus};
pub use worlds::{Descriptor, World};
