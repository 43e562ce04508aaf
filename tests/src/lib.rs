//! Real parts around a gateway under test: name servers, destination servers, mail clients,
//! databases, and the gateway's own binary as a child process.
//!
//! Everything here meets the gateway from outside, by socket and command line, and imports
//! nothing of the host; the demonstration and the benchmark are built from the same parts.
//! All parts are blocking and own their threads, so a test is plain sequential code.
//! Everything listens on loopback addresses only.

pub mod client;
pub mod counting;
pub mod dns;
pub mod gateway;
pub mod https;
pub mod internet;
pub mod load;
pub mod mail;
pub mod postgres;
pub mod proc;
pub mod raw;
pub mod receiver;
pub mod sink;
pub mod tls;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Polls until `done` gives a value or the time is over.
pub fn eventually<T>(
    what: &str,
    within: Duration,
    mut done: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            anyhow::bail!("after {within:?} still not: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A block 127.A.B.0/24 that no other test process, and nothing else in this one, listens on.
///
/// All destinations of one local internet must share a port, which is only safe to pick where
/// nobody else binds.
pub fn loopback_block() -> [u8; 3] {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let pid = std::process::id();
    [
        127,
        // Process ids run on, so neighbours in time differ.
        16 + (pid % 199) as u8,
        NEXT.fetch_add(1, Ordering::Relaxed)
            .wrapping_add((pid / 199 * 16) as u8),
    ]
}

/// The n-th address of a block.
pub fn address(block: [u8; 3], n: u8) -> Ipv4Addr {
    Ipv4Addr::new(block[0], block[1], block[2], n)
}
