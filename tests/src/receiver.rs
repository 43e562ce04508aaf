//! An HTTP server that takes exported events as a CRM, Splunk or Elasticsearch would, or does not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use rustls::{ServerConnection, StreamOwned};

use crate::eventually;
use crate::tls::Identity;

/// A request as it came in, and what it was answered.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// 0: not answered.
    pub status: u16,
}

impl Received {
    /// A header field, empty where it is not there.
    pub fn field(&self, name: &str) -> &str {
        let found = self
            .fields
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn is_taken(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Status, further header lines (each with its line end), body.
    Answer(u16, String, String),
    /// The connection is closed instead.
    Cut,
    /// Nothing is said until the other side gives up.
    Silence,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply::Answer(status, String::new(), String::new())
    }

    pub fn json(status: u16, body: impl Into<String>) -> Reply {
        let kind = "Content-Type: application/json\r\n".to_owned();
        Reply::Answer(status, kind, body.into())
    }
}

type Rule = Box<dyn FnMut(&Received) -> Reply + Send>;

struct Shared {
    rule: Mutex<Rule>,
    received: Mutex<Vec<Received>>,
    stop: AtomicBool,
}

/// Stops when dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Receiver {
    /// Listens on a free port of a loopback address, with TLS where there is an identity. Takes
    /// everything with 200 until it is told otherwise.
    pub fn start(ip: impl Into<IpAddr>, identity: Option<&Identity>) -> anyhow::Result<Receiver> {
        let listener = TcpListener::bind((ip.into(), 0)).context("receiver of events")?;
        let receiver = Receiver {
            address: listener.local_addr()?,
            shared: Arc::new(Shared {
                rule: Mutex::new(Box::new(|_| Reply::status(200))),
                received: Mutex::default(),
                stop: AtomicBool::new(false),
            }),
        };
        let shared = receiver.shared.clone();
        let tls = identity.map(|identity| identity.server.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (shared, tls) = (shared.clone(), tls.clone());
                std::thread::spawn(move || {
                    stream
                        .set_read_timeout(Some(Duration::from_secs(60)))
                        .ok()?;
                    match tls {
                        Some(tls) => {
                            let tls = ServerConnection::new(tls).ok()?;
                            serve(StreamOwned::new(tls, stream), &shared)
                        }
                        None => serve(stream, &shared),
                    }
                });
            }
        });
        Ok(receiver)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Decides what becomes of every request from here on.
    pub fn answers(&self, rule: impl FnMut(&Received) -> Reply + Send + 'static) -> &Self {
        *self.shared.rule.lock().expect("no rule panics") = Box::new(rule);
        self
    }

    /// Every request so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared
            .received
            .lock()
            .expect("no holder panics")
            .clone()
    }

    /// Waits until the requests so far are what is wanted.
    pub fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&[Received]) -> Option<T>,
    ) -> anyhow::Result<T> {
        eventually(what, within, || wanted(&self.received())).with_context(|| {
            let told: Vec<String> = self
                .received()
                .iter()
                .map(|r| format!("{} {} {}", r.status, r.field("idempotency-key"), r.text()))
                .collect();
            format!("received:\n{}", told.join("\n"))
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread in accept(2).
        drop(TcpStream::connect_timeout(
            &self.address,
            Duration::from_millis(200),
        ));
    }
}

/// Until the other side closes.
fn serve(stream: impl Read + Write, shared: &Shared) -> Option<()> {
    let mut stream = BufReader::new(stream);
    while let Some(mut request) = read(&mut stream) {
        let reply = (shared.rule.lock().expect("no rule panics"))(&request);
        request.status = match &reply {
            Reply::Answer(status, _, _) => *status,
            Reply::Cut | Reply::Silence => 0,
        };
        shared
            .received
            .lock()
            .expect("no holder panics")
            .push(request);
        match reply {
            Reply::Answer(status, fields, body) => {
                let text = format!(
                    "HTTP/1.1 {status} Status\r\n{fields}Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.get_mut().write_all(text.as_bytes()).ok()?;
                stream.get_mut().flush().ok()?;
            }
            Reply::Cut => return None,
            Reply::Silence => {
                // Ends when it is closed.
                let _ = stream.read(&mut [0]);
                return None;
            }
        }
    }
    None
}

fn read(stream: &mut impl BufRead) -> Option<Received> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut fields = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Received {
        path,
        fields,
        body: Vec::new(),
        status: 0,
    };
    let length: usize = request.field("content-length").parse().ok()?;
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body).ok()?;
    Some(request)
}
