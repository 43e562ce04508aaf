//! An HTTPS server with one answer at a time.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A running server.
pub struct Https {
    pub address: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Https {
    pub async fn start(tls: Arc<ServerConfig>) -> Https {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let https = Https {
            address: listener.local_addr().unwrap(),
            answer: Arc::default(),
            requests: Arc::default(),
        };
        let (answer, requests) = (https.answer.clone(), https.requests.clone());
        let acceptor = TlsAcceptor::from(tls);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, requests) = (answer.clone(), requests.clone());
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await?);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    requests.lock().unwrap().push(head);
                    let bytes = answer.lock().unwrap().clone();
                    stream.write_all(&bytes).await?;
                    stream.shutdown().await
                });
            }
        });
        https
    }

    /// What is sent from here on, as it goes over the wire.
    pub fn says(&self, bytes: impl Into<Vec<u8>>) -> &Self {
        *self.answer.lock().unwrap() = bytes.into();
        self
    }

    /// A policy file, in the way of a good server.
    pub fn serves(&self, policy: &str) -> &Self {
        self.says(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{policy}",
            policy.len()
        ))
    }

    /// The heads of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}
