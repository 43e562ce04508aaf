//! The state machine: input buffer in, actions out.

mod commands;
mod login;
mod transaction;

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;
use tidegate_mail::{Address, Envelope, Recipient, Reply};

use crate::data::Part;
use crate::sasl::Credentials;
use crate::{Config, MAX_AUTH_LINE, MAX_COMMAND_LINE, command, output};

use transaction::Transaction;

/// Replies waiting to be sent are handed over at the latest when they have this many bytes.
const OUTPUT_MARK: usize = 16 * 1024;

/// What the session wants of its driver. The driver calls [`Session::advance`] again after
/// each, except where an answer is asked for first.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// All input that can be handled has been: send the output, then read more.
    Read,
    /// The output has grown large: send it.
    Flush,
    /// Send the output, make the TLS handshake, answer with [`Session::tls_started`].
    StartTls,
    /// Answer with [`Session::auth_result`].
    Authenticate(Credentials),
    /// The content of a message begins; see [`Session::envelope`].
    Begin,
    /// The next bytes of the content: CRLF line ends, dots unstuffed.
    Piece(Part, Bytes),
    /// The content will not be finished: drop what was collected of it. Its pieces, if more
    /// come over the wire, are not passed on.
    Abort,
    /// The content is complete. Answer with [`Session::data_result`].
    Accept(Envelope),
    /// Send the output and close. `abrupt`: the client does not expect it and may still be
    /// sending; read that off for a while, or the reply is lost to a reset.
    Close { abrupt: bool },
}

/// Whom the session asks about the envelope. The answers are immediate; an error is the
/// reply to the command.
pub trait Host {
    /// Whether this user may send with this reverse-path now; `None` is the null one.
    /// `size` is as declared, 0 if it was not.
    fn mail(&mut self, reverse_path: Option<&Address>, size: u64) -> Result<(), Reply>;

    fn rcpt(&mut self, _recipient: &Recipient) -> Result<(), Reply> {
        Ok(())
    }
}

#[derive(Debug)]
enum Phase {
    /// Waits for a command.
    Command,
    /// Passes over the rest of a line that was too long.
    Skip,
    AuthPlain,
    AuthUser,
    AuthPassword(String),
    Data,
    /// In the octets of a BDAT.
    Chunk {
        size: u64,
        left: u64,
        last: bool,
    },
    /// Passes over the octets of a BDAT that is refused.
    Discard {
        left: u64,
        reply: &'static str,
    },
    /// The driver owes an answer.
    AwaitTls,
    AwaitAuth,
    AwaitResult,
    Closed {
        abrupt: bool,
    },
}

/// One SMTP session.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    phase: Phase,
    out: Vec<u8>,
    tls: bool,
    authenticated: bool,
    greeted: bool,
    extended: bool,
    helo: String,
    transaction: Option<Box<Transaction>>,
    errors: u32,
    idle_commands: u32,
    auth_failures: u32,
}

impl Session {
    /// `tls`: the connection began with a handshake.
    pub fn new(config: Arc<Config>, tls: bool) -> Self {
        Session {
            config,
            phase: Phase::Command,
            out: Vec::new(),
            tls,
            authenticated: false,
            greeted: false,
            extended: true,
            helo: String::new(),
            transaction: None,
            errors: 0,
            idle_commands: 0,
            auth_failures: 0,
        }
    }

    /// Writes the greeting. `early`: the client has sent something before it, as only
    /// programs do that do not listen to the answers (RFC 5321 s. 4.3.1).
    pub fn greet(&mut self, early: bool) {
        if early {
            self.fatal("554 5.5.1 wait for the greeting before sending commands");
        } else {
            let greeting = format!("220 {} ESMTP Tidegate", self.config.hostname);
            output::line(&mut self.out, &greeting);
        }
    }

    /// Replies to be sent; the driver empties it.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    pub fn is_tls(&self) -> bool {
        self.tls
    }

    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// What EHLO or HELO said, since TLS was started; empty if nothing.
    pub fn helo(&self) -> &str {
        &self.helo
    }

    /// For the `with` clause of a trace field (RFC 3848, RFC 6531 s. 4.3).
    pub fn protocol(&self) -> &'static str {
        let international = self.envelope().is_some_and(|e| e.smtputf8);
        match (international, self.extended, self.tls, self.authenticated) {
            (true, _, true, true) => "UTF8SMTPSA",
            (true, _, true, false) => "UTF8SMTPS",
            (true, _, false, true) => "UTF8SMTPA",
            (true, _, false, false) => "UTF8SMTP",
            (false, true, true, true) => "ESMTPSA",
            (false, true, true, false) => "ESMTPS",
            (false, true, false, true) => "ESMTPA",
            (false, true, false, false) => "ESMTP",
            (false, false, _, _) => "SMTP",
        }
    }

    /// The envelope so far, until [`Action::Accept`] hands it over.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.transaction.as_deref().map(|t| &t.envelope)
    }

    /// The SIZE that MAIL declared, in bytes; 0 if none.
    pub fn declared_size(&self) -> u64 {
        self.transaction.as_deref().map_or(0, |t| t.declared_size)
    }

    /// Whether no content is on its way and no answer is owed, so that the session can be
    /// closed without a loss of work.
    pub fn is_between_messages(&self) -> bool {
        matches!(self.phase, Phase::Command | Phase::Closed { .. })
            && self.transaction.as_deref().is_none_or(|t| !t.has_begun())
    }

    /// Ends the session from the driver's side, with this as its last reply.
    pub fn close_with(&mut self, reply: &Reply) {
        output::reply(&mut self.out, reply);
        self.phase = Phase::Closed { abrupt: true };
    }

    /// Answers [`Action::StartTls`]: everything said in clear is forgotten (RFC 3207 s. 4.2).
    pub fn tls_started(&mut self) {
        self.tls = true;
        self.authenticated = false;
        self.extended = true;
        self.helo.clear();
        self.transaction = None;
        self.phase = Phase::Command;
    }

    /// Handles as much of the input as gives one action, and takes it out of the buffer.
    pub fn advance(&mut self, input: &mut BytesMut, host: &mut dyn Host) -> Action {
        loop {
            if let Phase::Closed { abrupt } = self.phase {
                input.clear();
                return Action::Close { abrupt };
            }
            if self.out.len() > OUTPUT_MARK {
                return Action::Flush;
            }
            let action = match self.phase {
                Phase::Data => self.data(input),
                Phase::Chunk { .. } => self.chunk(input),
                Phase::Discard { .. } => self.discard(input),
                Phase::Skip => self.skip(input),
                Phase::AwaitTls | Phase::AwaitAuth | Phase::AwaitResult => Some(Action::Read),
                _ => self.line(input, host),
            };
            if let Some(action) = action {
                return action;
            }
        }
    }

    /// Takes one line and handles it.
    fn line(&mut self, input: &mut BytesMut, host: &mut dyn Host) -> Option<Action> {
        let in_auth = !matches!(self.phase, Phase::Command);
        if !in_auth && input.first() == Some(&0x16) {
            // The first byte of a TLS ClientHello, and of no command.
            let text = if self.tls {
                "554 5.5.1 TLS is on already"
            } else {
                "554 5.5.1 this port begins in clear: use STARTTLS, or the port for implicit TLS"
            };
            return self.fatal(text);
        }
        let long = in_auth
            || input
                .get(..5)
                .is_some_and(|v| v.eq_ignore_ascii_case(b"AUTH "));
        let limit = 2 + if long {
            MAX_AUTH_LINE
        } else {
            MAX_COMMAND_LINE
        };
        let end = memchr(b'\n', input);
        if end.map_or(input.len(), |at| at + 1) > limit {
            self.phase = Phase::Skip;
            // RFC 4954 s. 6 has a code of its own for an exchange that is too long.
            let detail = if long { 6 } else { 2 };
            return self.error(&format!(
                "500 5.5.{detail} the line is longer than {} bytes",
                limit - 2
            ));
        }
        let Some(end) = end else {
            return Some(Action::Read);
        };
        let line = input.split_to(end + 1);
        let line = match line.strip_suffix(b"\r\n") {
            Some(line) => line,
            None if self.config.repair_line_ends => &line[..end],
            None => return self.fatal("500 5.5.2 a command ends in CR LF, not in LF alone"),
        };
        if memchr(b'\r', line).is_some() {
            return self.fatal("500 5.5.2 a command has no CR but in the CR LF at its end");
        }
        let text = match str::from_utf8(line) {
            Ok(text) if !text.chars().any(char::is_control) => text,
            other => {
                self.phase = Phase::Command;
                return self.error(match other {
                    Ok(_) => "500 5.5.2 the line has a control character",
                    Err(_) => "500 5.5.2 the line is not UTF-8",
                });
            }
        };
        if in_auth {
            return self.auth_line(text);
        }
        self.command(text, input.is_empty(), host)
    }

    fn skip(&mut self, input: &mut BytesMut) -> Option<Action> {
        match memchr(b'\n', input) {
            Some(end) => {
                input.advance(end + 1);
                self.phase = Phase::Command;
                None
            }
            None => {
                input.clear();
                Some(Action::Read)
            }
        }
    }

    /// A reply to something that was in order.
    fn ok(&mut self, line: &str) -> Option<Action> {
        output::line(&mut self.out, line);
        None
    }

    /// A refusal. Too many of them end the session.
    fn error(&mut self, line: &str) -> Option<Action> {
        output::line(&mut self.out, line);
        self.count_error()
    }

    fn refuse(&mut self, reply: &Reply) -> Option<Action> {
        output::reply(&mut self.out, reply);
        if reply.code == 421 {
            self.phase = Phase::Closed { abrupt: true };
            return None;
        }
        self.count_error()
    }

    fn count_error(&mut self) -> Option<Action> {
        self.errors += 1;
        if self.errors >= self.config.max_errors {
            return self.fatal("421 4.7.0 too many errors; closing");
        }
        None
    }

    /// A refusal that ends the session.
    fn fatal(&mut self, line: &str) -> Option<Action> {
        output::line(&mut self.out, line);
        self.phase = Phase::Closed { abrupt: true };
        None
    }

    /// Drops the transaction; the driver is told if it has begun to collect a content.
    fn reset(&mut self) -> Option<Action> {
        let begun = self
            .transaction
            .take()
            .is_some_and(|t| t.is_being_collected());
        begun.then_some(Action::Abort)
    }

    fn command(&mut self, text: &str, last: bool, host: &mut dyn Host) -> Option<Action> {
        use command::Verb;
        let (verb, args) = command::split(text);
        if !matches!(verb, Verb::Rcpt | Verb::Bdat) {
            self.idle_commands += 1;
            if self.idle_commands > self.config.max_idle_commands {
                return self.fatal("421 4.7.0 too many commands without a message; closing");
            }
        }
        if !text.is_ascii() && !matches!(verb, Verb::Mail | Verb::Rcpt) {
            return self.error("500 5.5.2 only addresses may have characters beyond US-ASCII");
        }
        match verb {
            Verb::Ehlo => self.ehlo(args),
            Verb::Helo => self.helo_command(args),
            Verb::StartTls => self.start_tls(args, last),
            Verb::Auth => self.auth(args),
            Verb::Mail => self.mail(args, host),
            Verb::Rcpt => self.rcpt(args, host),
            Verb::Data => self.data_command(args),
            Verb::Bdat => self.bdat(args),
            Verb::Rset => self.rset(args),
            Verb::Noop => self.ok("250 2.0.0 OK"),
            Verb::Vrfy => self.vrfy(args),
            Verb::Expn => self.error("502 5.5.1 EXPN is not offered"),
            Verb::Help => self.ok(
                "214 2.0.0 commands: EHLO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY QUIT",
            ),
            Verb::Quit => self.quit(args),
            Verb::Http => self.fatal("554 5.5.1 this port speaks SMTP, not HTTP"),
            Verb::Unknown => self.error("500 5.5.1 the command is not known; send HELP for a list"),
        }
    }
}
