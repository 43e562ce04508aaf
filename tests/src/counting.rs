//! A sink that only counts, with as little CPU as a blocking server can do it: for benchmarks,
//! where it shares the machine with the relay under test.
//!
//! One thread and one buffer a connection; all commands of one read are answered by one write;
//! content is searched for its end and thrown away.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Totals over all connections.
#[derive(Default)]
struct Totals {
    sessions: AtomicU64,
    messages: AtomicU64,
    recipients: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
    recording: AtomicBool,
    /// How often a numbered recipient has arrived.
    numbers: Mutex<BTreeMap<u64, u32>>,
}

impl Totals {
    fn numbers(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u32>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub sessions: u64,
    pub messages: u64,
    /// Deliveries: recipients of the messages.
    pub recipients: u64,
    /// Octets read, commands included.
    pub bytes: u64,
}

/// Stops when dropped.
pub struct CountingSink {
    addresses: Vec<SocketAddr>,
    totals: Arc<Totals>,
}

impl CountingSink {
    /// Listens on the same free port of all these loopback addresses; with `tls`, offers
    /// STARTTLS.
    pub fn start(
        addresses: &[Ipv4Addr],
        tls: Option<Arc<ServerConfig>>,
    ) -> anyhow::Result<CountingSink> {
        let totals = Arc::new(Totals::default());
        let mut port = 0;
        let mut bound = Vec::new();
        for &ip in addresses {
            anyhow::ensure!(ip.is_loopback(), "{ip} is not a loopback address");
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((ip, port)).into())?;
            // Accepted sockets inherit it.
            socket.set_tcp_nodelay(true)?;
            socket.listen(1024)?;
            let listener = std::net::TcpListener::from(socket);
            let address = listener.local_addr()?;
            port = address.port();
            bound.push(address);
            let totals = totals.clone();
            let tls = tls.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if totals.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Ok(stream) = stream {
                        let totals = totals.clone();
                        let tls = tls.clone();
                        // Without a thread the connection is closed, which the peer sees.
                        let _ = std::thread::Builder::new()
                            .stack_size(128 * 1024)
                            .spawn(move || session(stream, tls, &totals));
                    }
                }
            });
        }
        Ok(CountingSink {
            addresses: bound,
            totals,
        })
    }

    pub fn port(&self) -> u16 {
        self.addresses[0].port()
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn count(&self) -> Count {
        Count {
            sessions: self.totals.sessions.load(Ordering::Relaxed),
            messages: self.totals.messages.load(Ordering::Relaxed),
            recipients: self.totals.recipients.load(Ordering::Relaxed),
            bytes: self.totals.bytes.load(Ordering::Relaxed),
        }
    }

    /// From now on, numbered recipients are told apart.
    pub fn record(&mut self) {
        self.totals.recording.store(true, Ordering::Relaxed);
    }

    /// How often each numbered recipient has arrived since [`CountingSink::record`].
    pub fn recorded(&self) -> BTreeMap<u64, u32> {
        self.totals.numbers().clone()
    }

    /// Waits until so many deliveries were counted, or none came for `patience`.
    pub fn wait_for(&self, recipients: u64, patience: Duration) -> (Count, Instant) {
        let mut last = (self.count(), Instant::now());
        while last.0.recipients < recipients && last.1.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(2));
            let now = self.count();
            if now.recipients != last.0.recipients {
                last = (now, Instant::now());
            }
        }
        last
    }
}

impl Drop for CountingSink {
    fn drop(&mut self) {
        self.totals.stop.store(true, Ordering::Relaxed);
        for address in &self.addresses {
            // Wakes the thread in accept(2).
            let _ = TcpStream::connect_timeout(address, Duration::from_millis(200));
        }
    }
}

const EHLO: &[u8] =
    b"250-sink.test\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n";
const EHLO_TLS: &[u8] = b"250-sink.test\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 8BITMIME\r\n";

fn session(mut stream: TcpStream, tls: Option<Arc<ServerConfig>>, totals: &Totals) -> Option<()> {
    totals.sessions.fetch_add(1, Ordering::Relaxed);
    stream.write_all(b"220 sink.test ESMTP\r\n").ok()?;
    let ehlo = if tls.is_some() { EHLO_TLS } else { EHLO };
    if !serve(&mut stream, ehlo, totals)? {
        return None;
    }
    let session = ServerConnection::new(tls?).ok()?;
    serve(&mut StreamOwned::new(session, stream), EHLO, totals).map(drop)
}

/// Serves until the end, or until TLS is to be started: then `true`.
fn serve(stream: &mut (impl Read + Write), ehlo: &[u8], totals: &Totals) -> Option<bool> {
    let end_of_data = Finder::new(b"\r\n.\r\n");
    let mut buffer = vec![0u8; 64 * 1024];
    let (mut at, mut filled) = (0, 0);
    let mut in_data = false;
    let mut recipients = 0;
    let recording = totals.recording.load(Ordering::Relaxed);
    let mut numbers: Vec<u64> = Vec::new();
    let mut out: Vec<u8> = Vec::with_capacity(1024);
    loop {
        // Answer what is complete.
        loop {
            let pending = &buffer[at..filled];
            if in_data {
                let Some(end) = end_of_data.find(pending) else {
                    // The end may straddle two reads.
                    at = filled.saturating_sub(4).max(at);
                    break;
                };
                at += end + 5;
                in_data = false;
                totals.messages.fetch_add(1, Ordering::Relaxed);
                totals.recipients.fetch_add(recipients, Ordering::Relaxed);
                recipients = 0;
                for number in numbers.drain(..) {
                    *totals.numbers().entry(number).or_default() += 1;
                }
                out.extend_from_slice(b"250 2.0.0 ok\r\n");
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', pending) else {
                break;
            };
            let verb = [
                pending[0].to_ascii_uppercase(),
                pending.get(1).map_or(0, u8::to_ascii_uppercase),
            ];
            at += end + 1;
            match &verb {
                b"EH" => out.extend_from_slice(ehlo),
                b"ST" => {
                    stream.write_all(b"220 2.0.0 go\r\n").ok()?;
                    return Some(true);
                }
                b"RC" => {
                    recipients += 1;
                    if recording {
                        numbers.extend(number_of(&pending[..end]));
                    }
                    out.extend_from_slice(b"250 2.1.5 ok\r\n");
                }
                b"DA" => {
                    out.extend_from_slice(b"354 go\r\n");
                    in_data = true;
                    // The line end before the content is part of what ends an empty one.
                    at -= 2;
                }
                b"QU" => {
                    out.extend_from_slice(b"221 2.0.0 bye\r\n");
                    stream.write_all(&out).ok()?;
                    return Some(false);
                }
                b"RS" => {
                    recipients = 0;
                    numbers.clear();
                    out.extend_from_slice(b"250 2.0.0 ok\r\n");
                }
                b"HE" | b"MA" | b"NO" => out.extend_from_slice(b"250 2.0.0 ok\r\n"),
                _ => out.extend_from_slice(b"500 5.5.1 what?\r\n"),
            }
        }
        if !out.is_empty() {
            stream.write_all(&out).ok()?;
            out.clear();
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        at = 0;
        if filled == buffer.len() {
            return None;
        }
        let length = stream.read(&mut buffer[filled..]).ok()?;
        if length == 0 {
            return None;
        }
        totals.bytes.fetch_add(length as u64, Ordering::Relaxed);
        filled += length;
    }
}

/// The number before the first dot of a RCPT command's address.
fn number_of(line: &[u8]) -> Option<u64> {
    let address = line.split(|b| *b == b'<').nth(1)?;
    let digits = address.split(|b| *b == b'.').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;

    #[test]
    fn counts_however_the_bytes_are_cut() {
        let sink = CountingSink::start(&[Ipv4Addr::LOCALHOST], None).unwrap();
        let mut raw = Raw::connect(sink.addresses()[0]).unwrap();
        raw.expect(220).unwrap();
        let dialog = b"EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nRCPT TO:<b@b>\r\nDATA\r\n\
            x\r\n..\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n.\r\nQUIT\r\n";
        for byte in dialog {
            raw.write(&[*byte]).unwrap();
        }
        for code in [250, 250, 250, 250, 354, 250, 250, 250, 354, 250, 221] {
            raw.expect(code).unwrap();
        }
        let mut raw = Raw::connect(sink.addresses()[0]).unwrap();
        raw.expect(220).unwrap();
        raw.write(dialog).unwrap();
        for code in [250, 250, 250, 250, 354, 250, 250, 250, 354, 250, 221] {
            raw.expect(code).unwrap();
        }
        let count = sink.count();
        assert_eq!(
            (count.sessions, count.messages, count.recipients),
            (2, 4, 6)
        );
    }
}
