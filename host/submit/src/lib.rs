//! The SMTP server's side of a submission session (RFC 5321, 6409) without I/O.
//!
//! [`Session`] is fed bytes and answers with [`Action`]s: send what is in
//! [`Session::output`], start TLS, check these credentials, take this piece of a message,
//! accept that message. It never waits. Invariants:
//! - any split of the input gives the same actions, but for where the pieces of a message
//!   are cut;
//! - only CRLF.CRLF ends a DATA; a bare CR or LF ends the connection, unless the listener
//!   repairs line ends, and then never ends a message;
//! - no more than [`MAX_AUTH_LINE`] bytes of input wait here for their end.
//!
//! It does not know sockets, TLS, tenants or storage: whether a reverse-path may be used is
//! asked of a [`Host`].

mod command;
mod config;
mod data;
mod output;
mod params;
mod sasl;
mod session;

pub use config::Config;
pub use data::Part;
pub use sasl::{Credentials, Mechanism, Secret};
pub use session::{Action, Host, Session};

/// Longest command line, in bytes without its line end: the 512 of RFC 5321 s. 4.5.3.1.4
/// and what the extensions offered add to it (RFC 3461 s. 4 alone adds 500 to RCPT).
pub const MAX_COMMAND_LINE: usize = 2_048;

/// Longest line of an AUTH exchange, in bytes without its line end (RFC 4954 s. 4).
pub const MAX_AUTH_LINE: usize = 12_288;
