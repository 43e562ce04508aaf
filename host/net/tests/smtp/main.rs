//! The SMTP client against real servers on loopback, most of which misbehave.

#[path = "../common/mod.rs"]
mod common;

mod content;
mod dane;
mod hosts;
mod pool;
mod replies;
mod stages;
mod sts;
mod tls;
