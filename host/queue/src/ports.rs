//! What the engine needs of the world, as traits.
//!
//! Adapters implement these in `store`, `policy` and `net`; the simulation implements
//! them again. All futures are boxed so that the engine is one type whatever is behind it.

mod clock;
mod policy;
mod registry;
mod resolver;
mod sink;
mod store;
mod transport;

use std::future::Future;
use std::pin::Pin;

pub use clock::Clock;
pub use policy::{Policy, PolicyFault};
pub use registry::{DecisionQuery, DecisionRow, Registry, Revision, Uploaded};
pub use resolver::{Dane, Destination, MxHost, Protection, Resolver, Tlsa};
pub use sink::{Again, ExportBatch, Payload, Sink, SinkError};
pub use store::*;
pub use transport::{
    Contact, ContentReader, Endpoint, Hand, HandOff, Job, JobRecipient, Target, TlsMode, Transport,
};

/// A boxed future that borrows from its port.
pub type Fut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
