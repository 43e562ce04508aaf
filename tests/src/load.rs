//! A lean source of mail for benchmarks: parallel sessions that submit as fast as they are
//! answered, and the time each answer took.
//!
//! Sessions do not pipeline unless told to: few real mail programs do.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Messages(u64),
    Elapsed(Duration),
}

/// The work to do.
#[derive(Clone, Debug)]
pub struct Load {
    pub target: SocketAddr,
    pub login: Option<(String, String)>,
    /// Connections begin with STARTTLS; the certificate is for this name. One configuration
    /// resumes the sessions of all its connections.
    pub tls: Option<(Arc<ClientConfig>, String)>,
    pub sessions: usize,
    /// Many messages on a connection; otherwise one.
    pub keep: bool,
    pub pipelining: bool,
    pub sender: String,
    pub recipients: Vec<String>,
    /// Each message goes to addresses of its own: a number, a dot and the recipient as named.
    pub numbered: bool,
    /// Of the message with its header, octets.
    pub size: usize,
    pub until: Until,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Messages answered with 250.
    pub accepted: u64,
    /// Messages answered otherwise, or cut off.
    pub failed: u64,
    pub first_failure: Option<String>,
    pub elapsed: Duration,
    /// Of numbered messages, those answered with 250.
    pub numbers: Vec<u64>,
    /// From the first octet of MAIL to the reply to the data, microseconds, ascending.
    pub latencies: Vec<u32>,
}

impl Outcome {
    /// The latency below which this share (0 to 1) of messages was answered, milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        if self.latencies.is_empty() {
            return f64::NAN;
        }
        let last = self.latencies.len() - 1;
        f64::from(self.latencies[(share * last as f64).round() as usize]) / 1000.0
    }

    pub fn rate(&self) -> f64 {
        self.accepted as f64 / self.elapsed.as_secs_f64()
    }
}

impl Load {
    /// The message, ready for the wire: header, lines of 72, final dot.
    fn content(&self) -> Vec<u8> {
        let mut content = format!(
            "From: <{}>\r\nTo: <{}>\r\nSubject: benchmark\r\nDate: Tue, 24 Nov 2026 03:00:00 +0000\r\n\
             Message-ID: <benchmark@{}>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n",
            self.sender,
            self.recipients[0],
            self.sender.rsplit('@').next().unwrap_or("test"),
        )
        .into_bytes();
        while content.len() + 74 <= self.size {
            content.extend([b'x'; 72]);
            content.extend(b"\r\n");
        }
        content.extend(b".\r\n");
        content
    }

    /// Runs to the end; failures are counted, and end their session.
    pub fn run(&self) -> Outcome {
        let content = self.content();
        let envelope = self.envelope("");
        let tickets = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let started = Instant::now();
        let runs: Vec<Outcome> = std::thread::scope(|scope| {
            let sessions: Vec<_> = (0..self.sessions)
                .map(|_| {
                    std::thread::Builder::new()
                        .stack_size(128 * 1024)
                        .spawn_scoped(scope, || {
                            let mut outcome = Outcome::default();
                            while let Err(error) =
                                self.session(&envelope, &content, &tickets, &stop, &mut outcome)
                            {
                                outcome.failed += 1;
                                outcome.first_failure.get_or_insert(format!("{error:#}"));
                                if outcome.failed >= 10 {
                                    break;
                                }
                            }
                            outcome
                        })
                        .expect("a few threads can be had")
                })
                .collect();
            if let Until::Elapsed(time) = self.until {
                std::thread::sleep(time);
                stop.store(true, Ordering::Relaxed);
            }
            sessions
                .into_iter()
                .map(|session| session.join().expect("sessions do not panic"))
                .collect()
        });
        let mut total = Outcome {
            elapsed: started.elapsed(),
            ..Outcome::default()
        };
        for run in runs {
            total.accepted += run.accepted;
            total.failed += run.failed;
            total.first_failure = total.first_failure.or(run.first_failure);
            total.latencies.extend(run.latencies);
            total.numbers.extend(run.numbers);
        }
        total.latencies.sort_unstable();
        total
    }

    fn envelope(&self, prefix: &str) -> Vec<String> {
        let mut envelope = vec![format!("MAIL FROM:<{}>\r\n", self.sender)];
        let recipients = self.recipients.iter();
        envelope.extend(recipients.map(|to| format!("RCPT TO:<{prefix}{to}>\r\n")));
        envelope
    }

    /// The number of the next message, if there is to be one.
    fn next(&self, tickets: &AtomicU64, stop: &AtomicBool) -> Option<u64> {
        let ticket = tickets.fetch_add(1, Ordering::Relaxed);
        let goes_on = match self.until {
            Until::Messages(number) => ticket < number,
            Until::Elapsed(_) => !stop.load(Ordering::Relaxed),
        };
        goes_on.then_some(ticket)
    }

    fn session(
        &self,
        envelope: &[String],
        content: &[u8],
        tickets: &AtomicU64,
        stop: &AtomicBool,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let pipeline = envelope.concat() + "DATA\r\n";
        let mut kept: Option<Wire> = None;
        let mut own: Vec<String>;
        while let Some(number) = self.next(tickets, stop) {
            let mut envelope = envelope;
            if self.numbered {
                own = self.envelope(&format!("{number}."));
                envelope = &own;
            }
            let mut wire = match kept.take() {
                Some(wire) => wire,
                None => self.open()?,
            };
            let started = Instant::now();
            if self.pipelining {
                wire.stream.write_all(pipeline.as_bytes())?;
                for _ in envelope {
                    wire.expect(b'2')?;
                }
            } else {
                for line in envelope {
                    wire.stream.write_all(line.as_bytes())?;
                    wire.expect(b'2')?;
                }
                wire.stream.write_all(b"DATA\r\n")?;
            }
            wire.expect(b'3')?;
            wire.stream.write_all(content)?;
            wire.expect(b'2')?;
            outcome.accepted += 1;
            if self.numbered {
                outcome.numbers.push(number);
            }
            outcome
                .latencies
                .push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
            if self.keep {
                kept = Some(wire);
            } else {
                wire.stream.write_all(b"QUIT\r\n")?;
                wire.expect(b'2')?;
            }
        }
        Ok(())
    }

    fn open(&self) -> anyhow::Result<Wire> {
        let stream = TcpStream::connect_timeout(&self.target, Duration::from_secs(30))
            .with_context(|| format!("connect to {}", self.target))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut wire = Wire {
            stream: Stream::Clear(stream),
            buffer: [0; 2048],
            at: 0,
            filled: 0,
        };
        wire.expect(b'2')?;
        wire.stream.write_all(b"EHLO source.test\r\n")?;
        wire.expect(b'2')?;
        if let Some((config, name)) = &self.tls {
            wire.stream.write_all(b"STARTTLS\r\n")?;
            wire.expect(b'2')?;
            wire = wire.protected(config, name)?;
            wire.stream.write_all(b"EHLO source.test\r\n")?;
            wire.expect(b'2')?;
        }
        if let Some((user, password)) = &self.login {
            let token = BASE64.encode(format!("\0{user}\0{password}"));
            wire.stream
                .write_all(format!("AUTH PLAIN {token}\r\n").as_bytes())?;
            wire.expect(b'2')?;
        }
        Ok(wire)
    }
}

/// With or without TLS.
enum Stream {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Clear(tcp) => tcp.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Clear(tcp) => tcp.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Stream::Clear(tcp) => tcp.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

/// A connection with a small read buffer of its own.
struct Wire {
    stream: Stream,
    buffer: [u8; 2048],
    at: usize,
    filled: usize,
}

impl Wire {
    fn protected(self, config: &Arc<ClientConfig>, name: &str) -> anyhow::Result<Wire> {
        let Stream::Clear(tcp) = self.stream else {
            bail!("TLS is on already");
        };
        let session = ClientConnection::new(config.clone(), name.to_owned().try_into()?)?;
        Ok(Wire {
            stream: Stream::Tls(Box::new(StreamOwned::new(session, tcp))),
            ..self
        })
    }

    /// Reads one reply, of any number of lines, and demands the class of its code.
    fn expect(&mut self, class: u8) -> anyhow::Result<()> {
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.buffer[self.at..self.filled]) {
                let line = &self.buffer[self.at..self.at + end];
                self.at += end + 1;
                if line.get(3) == Some(&b'-') {
                    continue;
                }
                if line.first() != Some(&class) {
                    bail!("reply {}", String::from_utf8_lossy(line).trim_end());
                }
                return Ok(());
            }
            self.buffer.copy_within(self.at..self.filled, 0);
            self.filled -= self.at;
            self.at = 0;
            let length = self.stream.read(&mut self.buffer[self.filled..])?;
            if length == 0 {
                bail!("connection closed");
            }
            self.filled += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::CountingSink;

    #[test]
    fn everything_sent_is_counted_at_the_sink() {
        let identity = crate::tls::Identity::new(&["sink.test"]).unwrap();
        let trust = crate::tls::client_trusting(&identity.certificate_pem).unwrap();
        let here = [std::net::Ipv4Addr::LOCALHOST];
        let clear = CountingSink::start(&here, None).unwrap();
        let protected = CountingSink::start(&here, Some(identity.server)).unwrap();
        for (keep, pipelining, tls) in [
            (true, false, false),
            (false, false, false),
            (true, true, false),
            (true, false, true),
            (false, false, true),
        ] {
            let sink = if tls { &protected } else { &clear };
            let before = sink.count();
            let load = Load {
                target: sink.addresses()[0],
                login: None,
                tls: tls.then(|| (trust.clone(), "sink.test".to_owned())),
                sessions: 3,
                keep,
                pipelining,
                sender: "a@a.test".into(),
                recipients: vec!["b@b.test".into(), "c@c.test".into()],
                numbered: false,
                size: 100_000,
                until: Until::Messages(20),
            };
            let outcome = load.run();
            assert_eq!(outcome.first_failure, None);
            assert_eq!((outcome.accepted, outcome.failed), (20, 0));
            assert_eq!(outcome.latencies.len(), 20);
            assert!(outcome.percentile(0.99) >= outcome.percentile(0.5));
            let after = sink.count();
            assert_eq!(after.messages - before.messages, 20);
            assert_eq!(after.recipients - before.recipients, 40);
            assert!(after.bytes - before.bytes > 20 * 99_000);
            let sessions = after.sessions - before.sessions;
            assert!(if keep { sessions <= 3 } else { sessions == 20 });
        }
    }
    #[test]
    fn numbered_messages_are_told_apart_at_a_sink_that_records() {
        let mut sink = CountingSink::start(&[std::net::Ipv4Addr::LOCALHOST], None).unwrap();
        sink.record();
        let load = Load {
            target: sink.addresses()[0],
            login: None,
            tls: None,
            sessions: 2,
            keep: true,
            pipelining: false,
            sender: "a@a.test".into(),
            recipients: vec!["b@b.test".into()],
            numbered: true,
            size: 1000,
            until: Until::Messages(20),
        };
        let mut numbers = load.run().numbers;
        numbers.sort_unstable();
        assert_eq!(numbers, (0..20).collect::<Vec<u64>>());
        assert_eq!(sink.recorded(), numbers.iter().map(|n| (*n, 1)).collect());
    }
}
