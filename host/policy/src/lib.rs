//! Policies as WebAssembly components: prepared once, then called in a fresh instance each time.
//!
//! - [`prepare`] turns an upload (a core module or a component, with its configuration) into a
//!   [`Prepared`] revision: checked, initialised, snapshotted, compiled. [`worker`] does that in
//!   a process of its own, [`CodeCache`] keeps the result.
//! - [`PolicyEngine`] runs revisions under the limits of [`limits`].
//! - [`PolicyHost`] keeps which revision is active in which slot, checks every answer and
//!   applies the fallbacks: it is the `Policy` port of the queue.
//! - [`offline`] tries a policy on its author's machine.
//!
//! It does not know SQL or sockets, and reads no time of day: calls are given their time; a
//! monotonic clock serves to measure cost and to close breakers.

mod answer;
mod breaker;
mod cache;
mod engine;
mod gate;
mod host;
mod init;
mod inspect;
mod journal;
pub mod limits;
pub mod offline;
mod prepare;
pub mod script;
mod slots;
mod ticker;
pub mod worker;
mod worlds;

pub use cache::{CacheError, CodeCache};
pub use engine::{Active, LoadError, PolicyEngine};
pub use host::{ActivateError, Fallback, HostOptions, PolicyHost};
pub use prepare::{Prepared, Refused, Upload, prepare, revision_digest};
pub use slots::SlotStatus;
pub use worlds::{Descriptor, World};
