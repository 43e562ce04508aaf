//! An SMTP server whose every reply a test may choose.
//!
//! It reads commands line by line and answers each before the next, as simple servers do.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A moment at which the server may say something.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Which connection, from 0.
    pub connection: usize,
    /// `connect`, the command line, `.` after the content, or `body` before it is read.
    pub said: String,
    /// MAIL commands so far on this connection, this one included.
    pub mails: usize,
    pub tls: bool,
}

impl Turn {
    pub fn is(&self, verb: &str) -> bool {
        self.said
            .get(..verb.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(verb))
    }
}

/// What the server does.
#[derive(Clone, Debug)]
pub enum Do {
    /// Lines without CRLF.
    Say(&'static str),
    Bytes(Vec<u8>),
    /// Says it and closes.
    SayAndClose(&'static str),
    Close,
    /// Says nothing and waits for the client to go.
    Silence,
    /// A byte now and then.
    Drip(&'static str, Duration),
    /// 220 and the handshake.
    StartTls,
    /// 220, and bytes in clear behind it.
    Inject,
    /// 220, and no handshake.
    BreakTls,
    /// Takes the content (the usual thing at `body`).
    ReadBody,
    /// Says it in the middle of the content, and reads no more until the client goes.
    SayEarly(&'static str),
    /// Reads a little of the content and no more.
    Stall,
}

type Behaviour = dyn Fn(&Turn) -> Option<Do> + Send + Sync;

#[derive(Default)]
pub struct Seen {
    /// `connection verb...`
    pub commands: Vec<String>,
    /// As sent, dots and all, without the end of data.
    pub messages: Vec<Vec<u8>>,
    pub connections: usize,
}

/// A running server.
pub struct Peer {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

pub const EHLO: &str = "250-peer.example\n250-PIPELINING\n250-8BITMIME\n250 SIZE 20000000";

/// A server that takes everything.
pub fn polite(turn: &Turn) -> Do {
    if turn.said == "connect" {
        Do::Say("220 peer.example ESMTP")
    } else if turn.said == "body" {
        Do::ReadBody
    } else if turn.is("EHLO") {
        Do::Say(EHLO)
    } else if turn.is("DATA") {
        Do::Say("354 go on")
    } else if turn.is("QUIT") {
        Do::SayAndClose("221 bye")
    } else if turn.is("STARTTLS") {
        Do::StartTls
    } else if turn.said == "." {
        Do::Say("250 2.0.0 taken")
    } else {
        Do::Say("250 2.1.0 ok")
    }
}

impl Peer {
    /// `behaviour` says what differs from [`polite`].
    pub async fn start(behaviour: impl Fn(&Turn) -> Option<Do> + Send + Sync + 'static) -> Peer {
        Peer::at("127.0.0.1:0".parse().unwrap(), None, behaviour).await
    }

    pub async fn with_tls(
        tls: Arc<rustls::ServerConfig>,
        behaviour: impl Fn(&Turn) -> Option<Do> + Send + Sync + 'static,
    ) -> Peer {
        Peer::at("127.0.0.1:0".parse().unwrap(), Some(tls), behaviour).await
    }

    pub async fn at(
        address: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        behaviour: impl Fn(&Turn) -> Option<Do> + Send + Sync + 'static,
    ) -> Peer {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = {
                    let mut seen = shared.lock().unwrap();
                    seen.connections += 1;
                    seen.connections - 1
                };
                let serving = Serving {
                    connection,
                    mails: 0,
                    seen: shared.clone(),
                    behaviour: behaviour.clone(),
                    tls: tls.clone(),
                };
                tokio::spawn(serving.clear(stream));
            }
        });
        Peer { address, seen }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }

    /// The commands of all connections: `0 EHLO gate.example`.
    pub fn commands(&self) -> Vec<String> {
        self.seen.lock().unwrap().commands.clone()
    }

    pub fn count(&self, verb: &str) -> usize {
        let starts = |c: &&String| c.split_once(' ').is_some_and(|(_, c)| c.starts_with(verb));
        self.commands().iter().filter(starts).count()
    }

    pub fn messages(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().messages.clone()
    }
}

struct Serving {
    connection: usize,
    mails: usize,
    seen: Arc<Mutex<Seen>>,
    behaviour: Arc<Behaviour>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

enum After {
    Go,
    Stop,
    Tls,
}

impl Serving {
    async fn clear(mut self, stream: TcpStream) {
        // A client that has gone is no failure of the server.
        let mut stream = BufReader::new(stream);
        if let Ok(After::Tls) = self.serve(&mut stream, false, true).await {
            let acceptor = TlsAcceptor::from(self.tls.clone().unwrap());
            if let Ok(stream) = acceptor.accept(stream.into_inner()).await {
                if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
                    let entry = format!("{}s resumed", self.connection);
                    self.seen.lock().unwrap().commands.push(entry);
                }
                let mut stream = BufReader::new(stream);
                let _ = self.serve(&mut stream, true, false).await;
                let _ = stream.shutdown().await;
            }
        }
    }

    fn decide(&self, said: &str, tls: bool) -> Do {
        let turn = Turn {
            connection: self.connection,
            said: said.to_owned(),
            mails: self.mails,
            tls,
        };
        (self.behaviour)(&turn).unwrap_or_else(|| polite(&turn))
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut BufReader<S>,
        tls: bool,
        greet: bool,
    ) -> std::io::Result<After> {
        if greet {
            match self.act(stream, self.decide("connect", tls)).await? {
                After::Go => {}
                end => return Ok(end),
            }
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            if stream.read_until(b'\n', &mut line).await? == 0 {
                return Ok(After::Stop);
            }
            let said = String::from_utf8_lossy(&line).trim_end().to_owned();
            if said.starts_with("MAIL") {
                self.mails += 1;
            }
            let mark = if tls { "s" } else { "" };
            let entry = format!("{}{mark} {said}", self.connection);
            self.seen.lock().unwrap().commands.push(entry);
            let does = self.decide(&said, tls);
            let goes_on = matches!(&does, Do::Say(text) if text.starts_with("354"));
            match self.act(stream, does).await? {
                After::Go => {}
                end => return Ok(end),
            }
            if goes_on {
                match self.act(stream, self.decide("body", tls)).await? {
                    After::Go => {}
                    end => return Ok(end),
                }
                match self.act(stream, self.decide(".", tls)).await? {
                    After::Go => {}
                    end => return Ok(end),
                }
            }
        }
    }

    async fn act<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut BufReader<S>,
        does: Do,
    ) -> std::io::Result<After> {
        let crlf = |text: &str| format!("{}\r\n", text.replace('\n', "\r\n"));
        match does {
            Do::Say(text) => stream.write_all(crlf(text).as_bytes()).await?,
            Do::Bytes(bytes) => stream.write_all(&bytes).await?,
            Do::SayAndClose(text) => {
                stream.write_all(crlf(text).as_bytes()).await?;
                stream.shutdown().await?;
                return Ok(After::Stop);
            }
            Do::Close => return Ok(After::Stop),
            Do::Silence => return Self::drain(stream).await,
            Do::Drip(text, pause) => {
                for byte in crlf(text).bytes() {
                    stream.write_all(&[byte]).await?;
                    stream.flush().await?;
                    tokio::time::sleep(pause).await;
                }
            }
            Do::StartTls => {
                stream.write_all(b"220 go\r\n").await?;
                return Ok(After::Tls);
            }
            Do::Inject => {
                stream.write_all(b"220 go\r\n250 injected\r\n").await?;
                return Self::drain(stream).await;
            }
            Do::BreakTls => {
                stream.write_all(b"220 go\r\n").await?;
                let mut hello = [0u8; 1];
                stream.read_exact(&mut hello).await?;
                stream
                    .write_all(b"nonsense instead of a handshake\r\n")
                    .await?;
                return Ok(After::Stop);
            }
            Do::ReadBody => {
                let mut body = Vec::new();
                loop {
                    let start = body.len();
                    if stream.read_until(b'\n', &mut body).await? == 0 {
                        return Ok(After::Stop);
                    }
                    if &body[start..] == b".\r\n" {
                        body.truncate(start);
                        break;
                    }
                }
                self.seen.lock().unwrap().messages.push(body);
            }
            Do::Stall => {
                let mut some = [0u8; 100];
                stream.read_exact(&mut some).await?;
                std::future::pending::<()>().await;
            }
            Do::SayEarly(text) => {
                let mut some = [0u8; 100];
                stream.read_exact(&mut some).await?;
                stream.write_all(crlf(text).as_bytes()).await?;
                stream.flush().await?;
                // Reads no more: the client sees its writes stand still.
                std::future::pending::<()>().await;
            }
        }
        stream.flush().await?;
        Ok(After::Go)
    }

    async fn drain<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<After> {
        let mut sink = [0u8; 4096];
        while stream.read(&mut sink).await? > 0 {}
        Ok(After::Stop)
    }
}
