//! A connection to a peer that is ready for MAIL: connected, greeted, protected as asked
//! for, authenticated where asked for.
//!
//! Invariants: plaintext never follows a failed handshake on the same connection; bytes
//! that came in clear behind the reply to STARTTLS are taken for an attack; credentials
//! go out in clear only where the configuration says that there is no TLS, or to loopback.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tidegate_mail::{Fault, Outcome, Stage, TlsInfo};
use tidegate_queue::ports::TlsMode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use super::Timeouts;
use super::capabilities::Capabilities;
use super::command;
use super::tls::{self, Check, TlsClient};
use super::transaction::deferred;
use super::wire::{Lost, Wire};

/// With or without TLS.
#[derive(Debug)]
pub enum Stream {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Whom to talk to, and how.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Our own name for EHLO.
    pub hostname: &'a str,
    /// The peer's name: for the certificate, and for people.
    pub host: &'a str,
    pub peer: SocketAddr,
    /// The address to call from.
    pub source: Option<IpAddr>,
    pub tls: TlsMode,
    /// What is checked of the certificate.
    pub check: &'a Check,
    /// Do without STARTTLS where that is allowed: the peer's TLS is known to be broken.
    pub skip_starttls: bool,
    pub auth: Option<&'a (String, String)>,
    /// A peer that calls itself by our name is ourselves.
    pub detect_self: bool,
    /// Until when the peer has to be ready for MAIL.
    pub until: Instant,
}

/// A host failure: the peer could not be brought to take mail.
#[derive(Debug)]
pub struct Failure {
    pub outcome: Outcome,
    pub source: Option<IpAddr>,
    pub tls: Option<TlsInfo>,
    /// TLS was offered and did not work; without it, delivery might.
    pub broken_tls: bool,
}

impl Failure {
    /// Whether there was no protection to be had, and mail that demands none might go.
    pub fn is_unprotected(&self) -> bool {
        let fault = self.outcome.fault;
        self.broken_tls || matches!(fault, Some(Fault::TlsRequired | Fault::TlsInjection))
    }
}

/// A connection ready for MAIL.
#[derive(Debug)]
pub struct Session {
    pub wire: Wire<Stream>,
    pub caps: Capabilities,
    pub tls: Option<TlsInfo>,
    /// What a trial of the certificate has to object.
    pub objection: Option<String>,
    pub source: Option<IpAddr>,
    /// Transactions made.
    pub messages: u16,
    /// RSET is due before the next one.
    pub dirty: bool,
}

/// Calls the peer.
pub async fn open(call: Call<'_>, tls: &TlsClient, limits: &Timeouts) -> Result<Session, Failure> {
    let mut opening = Opening {
        call,
        tls,
        limits,
        source: None,
        info: None,
        objection: None,
        broken_tls: false,
    };
    opening.run().await.map_err(|outcome| Failure {
        outcome,
        source: opening.source,
        tls: opening.info,
        broken_tls: opening.broken_tls,
    })
}

struct Opening<'a> {
    call: Call<'a>,
    tls: &'a TlsClient,
    limits: &'a Timeouts,
    source: Option<IpAddr>,
    info: Option<TlsInfo>,
    objection: Option<String>,
    broken_tls: bool,
}

impl Opening<'_> {
    /// The limit of a step, within that of all of them.
    fn step(&self, limit: Duration) -> Duration {
        limit.min(self.call.until.saturating_duration_since(Instant::now()))
    }

    async fn run(&mut self) -> Result<Session, Outcome> {
        let stream = self.connect().await?;
        let mut wire = Wire::new(match self.call.tls {
            TlsMode::Implicit => self.handshake(stream, Stage::Connect).await?,
            _ => Stream::Clear(stream),
        });
        let banner = wire.read(self.step(self.limits.banner)).await;
        self.positive(&wire, banner, Stage::Banner)?;
        let mut caps = self.hello(&mut wire).await?;
        if matches!(self.call.tls, TlsMode::Opportunistic | TlsMode::StartTls) {
            (wire, caps) = self.starttls(wire, caps).await?;
        }
        if let Some((user, password)) = self.call.auth {
            self.authenticate(&mut wire, &caps, user, password).await?;
        }
        Ok(Session {
            wire,
            caps,
            tls: self.info.clone(),
            objection: self.objection.clone(),
            source: self.source,
            messages: 0,
            dirty: false,
        })
    }

    async fn connect(&mut self) -> Result<TcpStream, Outcome> {
        let fail = |fault, error: &io::Error| {
            Outcome::from_fault(Stage::Connect, fault).with_detail(error.to_string())
        };
        let connecting = async {
            let socket = match self.call.peer {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            if let Some(source) = self.call.source {
                // Takes one of some 28,000 local ports for itself, whoever the peer is;
                // far more than there are connections.
                socket.bind(SocketAddr::new(source, 0))?;
            }
            let stream = socket.connect(self.call.peer).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(stream)
        };
        let stream = match timeout(self.step(self.limits.connect), connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(fail(Fault::ConnectTimeout, &error));
            }
            Ok(Err(error)) => return Err(fail(Fault::ConnectRefused, &error)),
            Err(_) => return Err(Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout)),
        };
        self.source = stream.local_addr().ok().map(|a| a.ip().to_canonical());
        Ok(stream)
    }

    async fn handshake(&mut self, stream: TcpStream, stage: Stage) -> Result<Stream, Outcome> {
        let Call { check, host, .. } = self.call;
        let shaking = self.tls.handshake(check, host, self.call.peer.ip(), stream);
        let (fault, detail) = match timeout(self.step(self.limits.tls), shaking).await {
            Ok(Ok((stream, objection))) => {
                self.info = Some(tls::describe(stream.get_ref().1, check));
                self.objection = objection;
                return Ok(Stream::Tls(Box::new(stream)));
            }
            Ok(Err(failed)) => failed,
            Err(_) => (Fault::TlsFailed, "no end of the handshake".to_owned()),
        };
        self.broken_tls = true;
        Err(Outcome::from_fault(stage, fault).with_detail(detail))
    }

    /// A reply before there is a transaction: anything but 2xx is the host's failure.
    fn positive(
        &self,
        wire: &Wire<Stream>,
        reply: Result<u16, Lost>,
        stage: Stage,
    ) -> Result<(), Outcome> {
        match reply {
            Ok(200..=299) => Ok(()),
            Ok(_) => Err(deferred(wire.refusal(stage))),
            Err(lost) => Err(lost.outcome(stage)),
        }
    }

    async fn say(
        &self,
        wire: &mut Wire<Stream>,
        words: [&str; 2],
        stage: Stage,
    ) -> Result<u16, Outcome> {
        for word in words {
            wire.output.extend_from_slice(word.as_bytes());
        }
        wire.output.extend_from_slice(b"\r\n");
        let limit = self.step(self.limits.ehlo);
        let spoken = match wire.flush(limit).await {
            Ok(()) => wire.read(limit).await,
            Err(lost) => Err(lost),
        };
        spoken.map_err(|lost| lost.outcome(stage))
    }

    /// EHLO, and HELO for servers that don't know it.
    async fn hello(&self, wire: &mut Wire<Stream>) -> Result<Capabilities, Outcome> {
        let hostname = self.call.hostname;
        let code = self.say(wire, ["EHLO ", hostname], Stage::Ehlo).await?;
        let caps = match code {
            200..=299 => Capabilities::parse(wire.last_frame()),
            500..=599 => {
                let code = self.say(wire, ["HELO ", hostname], Stage::Ehlo).await?;
                self.positive(wire, Ok(code), Stage::Ehlo)?;
                Capabilities::default()
            }
            _ => return Err(deferred(wire.refusal(Stage::Ehlo))),
        };
        if self.call.detect_self && hostname.contains('.') {
            let reply = wire.reply();
            let name = reply.text.split_ascii_whitespace().next().unwrap_or("");
            if name.eq_ignore_ascii_case(hostname) {
                return Err(Outcome {
                    reply: Some(reply),
                    ..Outcome::from_fault(Stage::Ehlo, Fault::LoopsToSelf)
                });
            }
        }
        Ok(caps)
    }

    async fn starttls(
        &mut self,
        mut wire: Wire<Stream>,
        caps: Capabilities,
    ) -> Result<(Wire<Stream>, Capabilities), Outcome> {
        let must = self.call.tls == TlsMode::StartTls;
        if !must && (self.call.skip_starttls || !caps.starttls) {
            return Ok((wire, caps));
        }
        if !caps.starttls {
            return Err(Outcome::from_fault(Stage::StartTls, Fault::TlsRequired));
        }
        let said = self.say(&mut wire, ["STARTTLS", ""], Stage::StartTls).await;
        let code = match said {
            Ok(code) => code,
            Err(outcome) => {
                self.broken_tls = true;
                return Err(outcome);
            }
        };
        if code == 421 {
            return Err(wire.refusal(Stage::StartTls));
        }
        if !(200..=299).contains(&code) {
            if must {
                let mut outcome = Outcome::from_fault(Stage::StartTls, Fault::TlsRequired);
                outcome.reply = Some(wire.reply());
                return Err(outcome);
            }
            // RFC 3207 s. 4: the client decides whether to go on without.
            return Ok((wire, caps));
        }
        // Nobody speaks before our ClientHello. What is here was put in by somebody who
        // wants it read as if it had come under TLS.
        let quiet = wire.take_in().await;
        if wire.has_unread() {
            return Err(Outcome::from_fault(Stage::StartTls, Fault::TlsInjection));
        }
        quiet.map_err(|lost| lost.outcome(Stage::StartTls))?;
        let Stream::Clear(stream) = wire.into_stream() else {
            // STARTTLS is said on connections in clear only.
            return Err(Outcome::from_fault(Stage::StartTls, Fault::TlsFailed));
        };
        let mut wire = Wire::new(self.handshake(stream, Stage::StartTls).await?);
        match self.hello(&mut wire).await {
            Ok(caps) => Ok((wire, caps)),
            Err(outcome) => {
                // A handshake with nobody behind it is as good as none.
                self.broken_tls = outcome.reply.is_none();
                Err(outcome)
            }
        }
    }

    async fn authenticate(
        &self,
        wire: &mut Wire<Stream>,
        caps: &Capabilities,
        user: &str,
        password: &str,
    ) -> Result<(), Outcome> {
        let protected = self.info.is_some();
        if !may_authenticate(protected, self.call.tls, self.call.peer.ip()) {
            return Err(Outcome::from_fault(Stage::Auth, Fault::TlsRequired)
                .with_detail("credentials are not sent in clear"));
        }
        let failed = |wire: &Wire<Stream>| Outcome {
            reply: Some(wire.reply()),
            ..Outcome::from_fault(Stage::Auth, Fault::AuthFailed)
        };
        let mut code;
        if caps.auth_plain {
            command::auth_plain(&mut wire.output, user, password);
            code = self.say_secret(wire).await?;
        } else if caps.auth_login {
            wire.output.extend_from_slice(b"AUTH LOGIN\r\n");
            code = self.say_secret(wire).await?;
            for secret in [user, password] {
                if code != 334 {
                    break;
                }
                command::base64_line(&mut wire.output, secret);
                code = self.say_secret(wire).await?;
            }
        } else {
            return Err(Outcome::from_fault(Stage::Auth, Fault::AuthFailed)
                .with_detail("the server offers neither AUTH PLAIN nor AUTH LOGIN"));
        }
        if (200..=299).contains(&code) {
            Ok(())
        } else if code == 421 {
            Err(wire.refusal(Stage::Auth))
        } else {
            Err(failed(wire))
        }
    }

    async fn say_secret(&self, wire: &mut Wire<Stream>) -> Result<u16, Outcome> {
        let limit = self.step(self.limits.ehlo);
        let spoken = match wire.flush(limit).await {
            Ok(()) => wire.read(limit).await,
            Err(lost) => Err(lost),
        };
        spoken.map_err(|lost| lost.outcome(Stage::Auth))
    }
}

/// Whether credentials may go out: under TLS, where the configuration says that there is none,
/// or to this machine.
fn may_authenticate(protected: bool, mode: TlsMode, peer: IpAddr) -> bool {
    protected || mode == TlsMode::None || peer.is_loopback()
}

impl Session {
    /// Takes leave: the peer may count connections, and gets to know that we are done.
    pub async fn quit(mut self) {
        let limit = Duration::from_secs(5);
        self.wire.output.extend_from_slice(b"QUIT\r\n");
        if self.wire.flush(limit).await.is_ok() {
            // The reply changes nothing; waiting for it keeps the close orderly.
            let _ = self.wire.read(limit).await;
        }
        let mut stream = self.wire.into_stream();
        let _ = timeout(limit, tokio::io::AsyncWriteExt::shutdown(&mut stream)).await;
    }
}

macro_rules! both {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Clear($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        both!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        both!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        both!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_sent_in_clear_to_others() {
        use TlsMode::{Implicit, None, Opportunistic, StartTls};
        let may =
            |protected, mode, peer: &str| may_authenticate(protected, mode, peer.parse().unwrap());
        for mode in [None, Opportunistic, StartTls, Implicit] {
            assert!(may(true, mode, "192.0.2.1"), "{mode:?}");
            assert!(may(false, mode, "127.0.0.1"), "{mode:?}");
            assert!(may(false, mode, "::1"), "{mode:?}");
            for other in ["192.0.2.1", "10.0.0.1", "2001:db8::1"] {
                assert_eq!(may(false, mode, other), mode == None, "{mode:?} {other}");
            }
        }
    }
}
