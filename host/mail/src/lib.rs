//! The vocabulary of mail and its pure rules.
//!
//! Everything here is a value or a function of values: no I/O, no async, no
//! time of day. The names are those of RFC 5321, 5598, 3461 and 3464.

pub mod address;
pub mod dsn;
pub mod envelope;
pub mod event;
pub mod header;
pub mod id;
pub mod outcome;
pub mod promise;
pub mod recipient;
pub mod reply;
pub mod schedule;
pub mod sts;
pub mod time;
pub mod xtext;

pub use address::{Address, AddressError};
pub use envelope::{Asked, BodyType, Envelope, Notify, OriginalRecipient, Recipient, Ret};
pub use event::{Event, EventKind};
pub use id::{IdSource, MessageId, RecipientId};
pub use outcome::{Fault, Hop, Outcome, Stage, TlsInfo, Verdict};
pub use promise::{Promise, TrafficClass};
pub use recipient::{End, Owes, RecipientState, State};
pub use reply::{Enhanced, Reply};
pub use time::Timestamp;
