//! One connection: moves bytes between socket and session and does what the session asks.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use tidegate_mail::header::Received;
use tidegate_mail::{Enhanced, Envelope, Reply};
use tidegate_queue::directory::Credential;
use tidegate_queue::{Origin, Submission};
use tidegate_submit::{Action, Session};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::content::Message;
use super::rules::Rules;
use super::slots::Slot;
use super::stream::Stream;
use super::{Listener, ListenerMode, Shared, Stop, SubmissionStats};

/// Bytes of a buffer for replies that is kept over a wait.
const KEPT_OUTPUT: usize = 512;

struct Connection {
    shared: Arc<Shared>,
    listener: Arc<Listener>,
    peer: IpAddr,
    stream: Stream,
    session: Session,
    input: BytesMut,
    login: Option<Arc<Credential>>,
    message: Option<Box<Message>>,
    /// Describes the TLS in use.
    tls: Option<Box<str>>,
    stop: watch::Receiver<Stop>,
    opened: Instant,
    /// A reply to data has not been sent yet.
    owes_result: bool,
}

/// The connection is over; there is nobody to tell.
struct Lost;

impl From<std::io::Error> for Lost {
    fn from(_: std::io::Error) -> Self {
        Lost
    }
}

/// Why a wait for the client ended.
enum Waited {
    Got(usize),
    TimedOut,
    Stopped,
}

/// Serves one connection; its slot is given back at the end.
pub async fn serve(
    stream: TcpStream,
    peer: IpAddr,
    listener: Arc<Listener>,
    shared: Arc<Shared>,
    _slot: Slot,
) {
    let stop = shared.stop.subscribe();
    let session = Session::new(
        listener.session.clone(),
        listener.mode == ListenerMode::Implicit,
    );
    let mut connection = Connection {
        shared,
        listener,
        peer,
        stream: Stream::Plain(stream),
        session,
        input: BytesMut::new(),
        login: None,
        message: None,
        tls: None,
        stop,
        opened: Instant::now(),
        owes_result: false,
    };
    let Ok(abrupt) = connection.run().await else {
        return;
    };
    let Connection {
        shared,
        stream,
        mut stop,
        ..
    } = connection;
    let drain = abrupt.then_some((shared.config.timeouts.drain, shared.config.max_size));
    tokio::select! {
        // Polled first, so that the end of a TLS session is sent in any case.
        biased;
        () = stream.close(drain) => {}
        _ = stop.wait_for(|stop| *stop >= Stop::Draining) => {}
    }
}

impl Connection {
    /// Serves until the session ends; returns whether that was abrupt.
    async fn run(&mut self) -> Result<bool, Lost> {
        if self.listener.mode == ListenerMode::Implicit {
            self.start_tls().await?;
        }
        let early = self.stream.spoke_early();
        self.session.greet(early);
        loop {
            let mut rules = Rules {
                login: self.login.as_ref(),
                directory: &self.shared.directory,
                intake: &*self.shared.intake,
                allow_null_reverse_path: self.shared.config.allow_null_reverse_path,
            };
            match self.session.advance(&mut self.input, &mut rules) {
                Action::Read => {
                    self.flush().await?;
                    self.read().await?;
                }
                Action::Flush => self.flush().await?,
                Action::StartTls => {
                    self.flush().await?;
                    self.start_tls().await?;
                    self.login = None;
                    self.session.tls_started();
                }
                Action::Authenticate(credentials) => {
                    let stats = self.shared.stats.clone();
                    let check = Box::pin(self.shared.auth.check(self.peer, credentials));
                    let result = check.await;
                    let result = match result {
                        Ok(credential) => {
                            SubmissionStats::add(&stats.logins);
                            self.login = Some(credential);
                            Ok(())
                        }
                        Err(reply) => {
                            SubmissionStats::add(&stats.logins_failed);
                            Err(reply)
                        }
                    };
                    self.session.auth_result(result);
                }
                Action::Begin => self.begin(),
                Action::Piece(part, piece) => {
                    let Some(message) = self.message.as_deref_mut() else {
                        continue;
                    };
                    let config = &self.shared.config;
                    let pushed = message
                        .push(part, piece, &*self.shared.intake, &config.hostname)
                        .await;
                    if let Err(reply) = pushed {
                        self.message = None;
                        self.session.refuse_data(reply);
                    }
                }
                Action::Abort => self.message = None,
                Action::Accept(envelope) => {
                    if self.owes_result {
                        // The client may not wait for one result as long as for two.
                        self.flush().await?;
                    }
                    let reply = Box::pin(self.accept(envelope)).await;
                    let stats = &self.shared.stats;
                    SubmissionStats::add(if reply.is_positive() {
                        &stats.messages_accepted
                    } else {
                        &stats.messages_refused
                    });
                    self.session.data_result(&reply);
                    self.owes_result = true;
                }
                Action::Close { abrupt } => {
                    self.flush().await?;
                    return Ok(abrupt);
                }
            }
        }
    }

    async fn start_tls(&mut self) -> Result<(), Lost> {
        let Some(acceptor) = &self.shared.tls else {
            return Err(Lost);
        };
        let within = self.shared.config.timeouts.handshake;
        match self.stream.start_tls(acceptor, within).await {
            Ok(text) => {
                self.tls = Some(text.into());
                Ok(())
            }
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "submission: TLS handshake failed");
                Err(Lost)
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Lost> {
        self.owes_result = false;
        let out = self.session.output();
        if out.is_empty() {
            return Ok(());
        }
        let within = self.shared.config.timeouts.command;
        match tokio::time::timeout(within, self.stream.write(out)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(Lost),
        }
        out.clear();
        if out.capacity() > KEPT_OUTPUT {
            *out = Vec::new();
        }
        Ok(())
    }

    /// Waits for input. The end of time or of the service is said to the client through
    /// the session.
    async fn read(&mut self) -> Result<(), Lost> {
        let waited = self.wait().await?;
        match waited {
            Waited::Got(0) => Err(Lost),
            Waited::Got(_) => Ok(()),
            Waited::TimedOut => {
                self.end(Reply::new(
                    421,
                    Enhanced::new(4, 4, 2),
                    "nothing came for too long; closing",
                ));
                Ok(())
            }
            Waited::Stopped => {
                self.end(Reply::new(
                    421,
                    Enhanced::new(4, 3, 2),
                    "the gateway is stopping, try again later",
                ));
                Ok(())
            }
        }
    }

    fn end(&mut self, reply: Reply) {
        self.message = None;
        self.session.close_with(&reply);
    }

    async fn wait(&mut self) -> Result<Waited, Lost> {
        let idle = self.session.is_between_messages();
        let timeouts = &self.shared.config.timeouts;
        let mut deadline = (Instant::now()
            + if idle {
                timeouts.command
            } else {
                timeouts.data
            })
        .min(self.opened + timeouts.session);
        if !self.session.is_authenticated() {
            deadline = deadline.min(self.opened + timeouts.login);
        }
        if self.input.is_empty() {
            // What was read is handed on; whoever holds it keeps it.
            self.input = BytesMut::new();
        }
        if self.message.is_some() {
            self.stream.acknowledge_now();
        }
        let stop_at = if idle { Stop::Draining } else { Stop::Now };
        tokio::select! {
            biased;
            stopped = self.stop.wait_for(|stop| *stop >= stop_at) => {
                drop(stopped);
                Ok(Waited::Stopped)
            }
            read = self.stream.read(&mut self.input) => Ok(Waited::Got(read?)),
            () = tokio::time::sleep_until(deadline) => Ok(Waited::TimedOut),
        }
    }

    fn begin(&mut self) {
        let at = self.shared.clock.now();
        let id = self.shared.intake.new_id();
        let trace = Received {
            helo: self.session.helo(),
            peer: self.peer,
            protocol: self.session.protocol(),
            by: &self.shared.config.hostname,
            id,
            at,
            tls: self.tls.as_deref(),
        };
        self.message = Some(Box::new(Message::begin(
            id,
            &trace.render(),
            self.session.declared_size(),
            self.shared.config.spool_above,
            self.shared.memory.hold(),
            at,
        )));
    }

    /// Hands the message over; the reply is that to the data.
    async fn accept(&mut self, envelope: Envelope) -> Reply {
        let (Some(message), Some(login)) = (self.message.take(), self.login.clone()) else {
            // Accept follows Begin and a login.
            return Reply::new(451, Enhanced::new(4, 3, 0), "internal error, try again");
        };
        let id = message.id;
        // The memory counts as held until the message is answered for.
        let (header, content, _held) = match message.finish(&self.shared.config.hostname).await {
            Ok(parts) => parts,
            Err(reply) => return reply,
        };
        let via = match self.listener.mode {
            ListenerMode::Implicit => "smtps",
            ListenerMode::StartTls | ListenerMode::Plain => "smtp",
        };
        let submission = Submission {
            id,
            tenant: login.tenant.as_str().into(),
            origin: Origin {
                via: via.to_owned(),
                user: Some(login.user.clone()),
                peer: Some(self.peer.to_string()),
                helo: self.session.helo().to_owned(),
                tls: self.tls.is_some(),
            },
            bulk: login.bulk,
            envelope,
            header,
            content,
        };
        self.shared.intake.submit(submission).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, D, E, F>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// Ten thousand clients may sit idle: what each costs is this, the socket's own and,
    /// under TLS, rustls' state.
    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of_future(serve);
        assert!(size <= 1536, "{size} bytes");
    }
}
