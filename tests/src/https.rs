//! An HTTPS server of one text file, such as publishes an MTA-STS policy.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use rustls::{ServerConnection, StreamOwned};

use crate::tls::Identity;

#[derive(Default)]
struct Shared {
    /// By host.
    files: Mutex<Vec<(String, String)>>,
    requests: AtomicU64,
    stop: AtomicBool,
}

/// Stops when dropped.
pub struct Https {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Https {
    /// Listens on a free port of a loopback address.
    pub fn start(ip: impl Into<IpAddr>, identity: &Identity) -> anyhow::Result<Https> {
        let listener = TcpListener::bind((ip.into(), 0)).context("HTTPS server")?;
        let https = Https {
            address: listener.local_addr()?,
            shared: Arc::default(),
        };
        let (shared, tls) = (https.shared.clone(), identity.server.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (shared, tls) = (shared.clone(), tls.clone());
                std::thread::spawn(move || {
                    serve(stream.ok()?, ServerConnection::new(tls).ok()?, &shared)
                });
            }
        });
        Ok(https)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a host answers to every GET from here on.
    pub fn serve(&self, host: &str, text: &str) -> &Self {
        let mut files = self.shared.files.lock().expect("no holder panics");
        files.retain(|(known, _)| known != host);
        files.push((host.to_owned(), text.to_owned()));
        drop(files);
        self
    }

    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread in accept(2).
        drop(TcpStream::connect_timeout(
            &self.address,
            Duration::from_millis(200),
        ));
    }
}

fn serve(stream: TcpStream, tls: ServerConnection, shared: &Shared) -> Option<()> {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    let mut reader = BufReader::new(StreamOwned::new(tls, stream));
    let mut host = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("host")
        {
            value.trim().clone_into(&mut host);
        }
    }
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let files = shared.files.lock().expect("no holder panics").clone();
    let answer = match files.into_iter().find(|(known, _)| *known == host) {
        Some((_, text)) => format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        ),
        None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
    };
    let mut stream = reader.into_inner();
    stream.write_all(answer.as_bytes()).ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}
