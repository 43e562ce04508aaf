//! Sockets, DNS, TLS and the operating system's clock: the adapters of the engine's ports
//! to the network.

pub mod clock;
mod http;
pub mod resolver;
pub mod sink;
pub mod smtp;
pub mod sts;
pub mod submission;
