//! The server's side of one session: order, parameters, and what the script says.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::wire::{Transport, Wire};
use super::{Behaviour, Delivered, Shared, Stage};

pub(super) fn serve(stream: TcpStream, shared: &Shared) {
    let Ok(peer) = stream.peer_addr() else { return };
    let _ = stream.set_nodelay(true);
    let Ok(twin) = stream.try_clone() else { return };
    let number = {
        let mut state = shared.state();
        state.counts.sessions += 1;
        let number = state.counts.sessions;
        state.open.insert(number, twin);
        number
    };
    let mut session = Session {
        wire: Wire {
            stream: Transport::Clear(stream),
            buffer: Vec::new(),
        },
        shared,
        number,
        peer,
        helo: String::new(),
        tls: false,
        authenticated: false,
        transaction: None,
    };
    // A peer that goes away ends the session; there is nobody to tell.
    let _ = session.run();
    if let Some(twin) = shared.state().open.remove(&number) {
        let _ = twin.shutdown(Shutdown::Both);
    }
}

#[derive(Default)]
struct Transaction {
    from: String,
    from_parameters: String,
    to: Vec<String>,
    to_parameters: Vec<String>,
    chunks: Vec<u8>,
    failed: Option<String>,
}

struct Session<'a> {
    wire: Wire,
    shared: &'a Shared,
    number: u64,
    peer: SocketAddr,
    helo: String,
    tls: bool,
    authenticated: bool,
    transaction: Option<Transaction>,
}

/// The session is over, by script.
fn over() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl Session<'_> {
    fn run(&mut self) -> io::Result<()> {
        self.say(Stage::Banner, "220 destination.test ESMTP")?;
        loop {
            let line = self.wire.line()?;
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match verb.to_ascii_uppercase().as_str() {
                "EHLO" => self.ehlo(rest)?,
                "HELO" => {
                    self.helo = rest.to_owned();
                    self.transaction = None;
                    self.say(Stage::Ehlo, "250 destination.test")?;
                }
                "STARTTLS" => self.starttls()?,
                "AUTH" => self.auth(rest)?,
                "MAIL" => self.mail(rest)?,
                "RCPT" => self.rcpt(rest)?,
                "DATA" => self.data()?,
                "BDAT" => self.bdat(rest)?,
                "RSET" => {
                    self.transaction = None;
                    self.wire.write(b"250 2.0.0 forgotten\r\n")?;
                }
                "NOOP" => self.wire.write(b"250 2.0.0 ok\r\n")?,
                "QUIT" => {
                    self.wire.write(b"221 2.0.0 bye\r\n")?;
                    return Ok(());
                }
                _ => self.error("500 5.5.1 unknown command", &line)?,
            }
        }
    }

    fn behaviour(&self) -> Behaviour {
        self.shared.state().behaviour.clone()
    }

    /// What the script wants at this stage, or the given reply.
    fn say(&mut self, stage: Stage, otherwise: &str) -> io::Result<bool> {
        let behaviour = self.behaviour();
        if behaviour.close_at.contains(&stage) {
            return Err(over());
        }
        if behaviour.silent_at.contains(&stage) {
            // The peer's patience, or the end of the test, ends this.
            loop {
                self.wire.fill()?;
            }
        }
        let reply = behaviour
            .replies
            .get(&stage)
            .map_or(otherwise, String::as_str);
        self.reply(reply)?;
        if reply.starts_with("421") {
            return Err(over());
        }
        Ok(reply.starts_with(['2', '3']))
    }

    fn reply(&mut self, text: &str) -> io::Result<()> {
        let lines: Vec<&str> = text.split('\n').collect();
        let code = text.get(..3).unwrap_or("");
        let mut wire = String::new();
        for (at, line) in lines.iter().enumerate() {
            let rest = line.strip_prefix(code).unwrap_or(line);
            let rest = rest.strip_prefix([' ', '-']).unwrap_or(rest);
            let mark = if at + 1 == lines.len() { ' ' } else { '-' };
            wire.push_str(&format!("{code}{mark}{rest}\r\n"));
        }
        self.wire.write(wire.as_bytes())
    }

    fn error(&mut self, reply: &str, line: &str) -> io::Result<()> {
        {
            let mut state = self.shared.state();
            state.counts.protocol_errors += 1;
            state.errors.push(format!("{reply}: {line}"));
        }
        self.reply(reply)
    }

    fn ehlo(&mut self, name: &str) -> io::Result<()> {
        self.helo = name.to_owned();
        self.transaction = None;
        let behaviour = self.behaviour();
        let mut lines = vec!["250 destination.test".to_owned()];
        lines.extend(behaviour.extensions.iter().cloned());
        if behaviour.tls.is_some() && !self.tls {
            lines.push("STARTTLS".into());
        }
        if behaviour.login.is_some() {
            lines.push("AUTH PLAIN LOGIN".into());
        }
        self.say(Stage::Ehlo, &lines.join("\n"))?;
        Ok(())
    }

    fn starttls(&mut self) -> io::Result<()> {
        let Some(identity) = self.behaviour().tls.filter(|_| !self.tls) else {
            return self.error("502 5.5.1 not offered", "STARTTLS");
        };
        self.wire.write(b"220 2.0.0 go ahead\r\n")?;
        if !self.wire.buffer.is_empty() {
            // Commands sent along in clear must not survive the handshake (RFC 3207 s. 4.2).
            self.shared
                .state()
                .errors
                .push("data after STARTTLS".into());
            return Err(over());
        }
        let Transport::Clear(stream) = &self.wire.stream else {
            return Err(over());
        };
        let connection =
            rustls::ServerConnection::new(identity.server).map_err(io::Error::other)?;
        let stream = rustls::StreamOwned::new(connection, stream.try_clone()?);
        self.wire.stream = Transport::Tls(Box::new(stream));
        self.tls = true;
        self.helo.clear();
        self.transaction = None;
        Ok(())
    }

    fn auth(&mut self, rest: &str) -> io::Result<()> {
        let Some((user, password)) = self.behaviour().login else {
            return self.error("502 5.5.1 not offered", "AUTH");
        };
        let decode = |text: &str| {
            String::from_utf8_lossy(&BASE64.decode(text.trim()).unwrap_or_default()).into_owned()
        };
        let (mechanism, initial) = rest.split_once(' ').unwrap_or((rest, ""));
        let given = if mechanism.eq_ignore_ascii_case("PLAIN") {
            let text = if initial.is_empty() {
                self.wire.write(b"334 \r\n")?;
                self.wire.line()?
            } else {
                initial.to_owned()
            };
            let text = decode(&text);
            let mut parts = text.split('\0').skip(1);
            (
                parts.next().unwrap_or_default().to_owned(),
                parts.next().unwrap_or_default().to_owned(),
            )
        } else {
            let name = if initial.is_empty() {
                self.wire.write(b"334 VXNlcm5hbWU6\r\n")?;
                self.wire.line()?
            } else {
                initial.to_owned()
            };
            self.wire.write(b"334 UGFzc3dvcmQ6\r\n")?;
            (decode(&name), decode(&self.wire.line()?))
        };
        if given == (user, password) {
            self.authenticated = true;
            self.reply("235 2.7.0 welcome")
        } else {
            self.reply("535 5.7.8 authentication credentials invalid")
        }
    }

    fn mail(&mut self, rest: &str) -> io::Result<()> {
        if self.helo.is_empty() || self.transaction.is_some() {
            return self.error("503 5.5.1 out of order", &format!("MAIL {rest}"));
        }
        if self.behaviour().login.is_some() && !self.authenticated {
            return self.reply("530 5.7.0 authentication required");
        }
        let Some((from, parameters)) = path(rest, "FROM:") else {
            return self.error("501 5.5.4 syntax", &format!("MAIL {rest}"));
        };
        if let Some(unknown) = self.not_offered(parameters) {
            return self.error(
                "555 5.5.4 parameter of an extension not offered",
                &format!("MAIL {rest} ({unknown})"),
            );
        }
        if self.say(Stage::Mail, "250 2.1.0 sender ok")? {
            self.transaction = Some(Transaction {
                from: from.to_owned(),
                from_parameters: parameters.to_owned(),
                ..Transaction::default()
            });
        }
        Ok(())
    }

    fn not_offered(&self, parameters: &str) -> Option<String> {
        let offered = self.behaviour().extensions;
        let has = |wanted: &str| {
            offered.iter().any(|line| {
                line.split(' ')
                    .next()
                    .is_some_and(|word| word.eq_ignore_ascii_case(wanted))
            })
        };
        parameters.split_whitespace().find_map(|parameter| {
            let keyword = parameter.split('=').next().unwrap_or("");
            let extension = match keyword.to_ascii_uppercase().as_str() {
                "SIZE" => "SIZE",
                "BODY" => "8BITMIME",
                "SMTPUTF8" => "SMTPUTF8",
                "RET" | "ENVID" | "NOTIFY" | "ORCPT" => "DSN",
                "REQUIRETLS" => "REQUIRETLS",
                "AUTH" => "AUTH",
                _ => return Some(keyword.to_owned()),
            };
            (!has(extension)).then(|| keyword.to_owned())
        })
    }

    fn rcpt(&mut self, rest: &str) -> io::Result<()> {
        if self.transaction.is_none() {
            // A pipelined RCPT after a refused MAIL is no fault of the peer's.
            return self.reply("503 5.5.1 no transaction");
        }
        let Some((to, parameters)) = path(rest, "TO:") else {
            return self.error("501 5.5.4 syntax", &format!("RCPT {rest}"));
        };
        if let Some(unknown) = self.not_offered(parameters) {
            return self.error(
                "555 5.5.4 parameter of an extension not offered",
                &format!("RCPT {rest} ({unknown})"),
            );
        }
        let behaviour = self.behaviour();
        let taken = self.transaction.as_ref().map_or(0, |t| t.to.len());
        let grey = {
            let mut state = self.shared.state();
            let seen = state.seen.entry(to.to_ascii_lowercase()).or_default();
            *seen += 1;
            *seen <= behaviour.greylist
        };
        let answer = if let Some(reply) = behaviour.reply_to.get(&to.to_ascii_lowercase()) {
            reply.clone()
        } else if grey {
            "450 4.7.1 greylisted, come back later".to_owned()
        } else if behaviour.most_recipients.is_some_and(|most| taken >= most) {
            "452 4.5.3 too many recipients".to_owned()
        } else {
            "250 2.1.5 recipient ok".to_owned()
        };
        if self.say(Stage::Rcpt, &answer)? && answer.starts_with('2') {
            if let Some(transaction) = &mut self.transaction {
                transaction.to.push(to.to_owned());
                transaction.to_parameters.push(parameters.to_owned());
            }
        } else {
            self.shared.state().counts.refused_recipients += 1;
        }
        Ok(())
    }

    fn data(&mut self) -> io::Result<()> {
        if self
            .transaction
            .as_ref()
            .is_none_or(|transaction| transaction.to.is_empty())
        {
            return self.reply("554 5.5.1 no valid recipients");
        }
        if !self.say(Stage::Data, "354 go ahead")? {
            self.transaction = None;
            return Ok(());
        }
        let content = self.wire.content()?;
        self.finish(content)
    }

    fn bdat(&mut self, rest: &str) -> io::Result<()> {
        let mut words = rest.split_whitespace();
        let length = words.next().and_then(|word| word.parse().ok());
        let last = words.next().is_some_and(|w| w.eq_ignore_ascii_case("LAST"));
        let Some(length) = length else {
            return self.error("501 5.5.4 syntax", &format!("BDAT {rest}"));
        };
        let chunk = self.wire.exactly(length)?;
        let first = match &mut self.transaction {
            Some(transaction) if !transaction.to.is_empty() => {
                let first = transaction.chunks.is_empty();
                transaction.chunks.extend(chunk);
                first
            }
            _ => return self.reply("554 5.5.1 no valid recipients"),
        };
        let behaviour = self.behaviour();
        if first
            && let Some(reply) = behaviour.replies.get(&Stage::Data)
            && let Some(transaction) = &mut self.transaction
        {
            transaction.failed = Some(reply.clone());
        }
        let failed = self.transaction.as_ref().and_then(|t| t.failed.clone());
        match failed {
            Some(reply) => {
                self.transaction = None;
                self.reply(&reply)
            }
            None if last => {
                let content = self
                    .transaction
                    .as_mut()
                    .map(|t| std::mem::take(&mut t.chunks))
                    .unwrap_or_default();
                self.finish(content)
            }
            None => self.reply("250 2.0.0 more"),
        }
    }

    fn finish(&mut self, content: Vec<u8>) -> io::Result<()> {
        let Some(transaction) = self.transaction.take() else {
            return Err(over());
        };
        let behaviour = self.behaviour();
        if let Some(delay) = behaviour.delay {
            std::thread::sleep(delay);
        }
        let refused = behaviour
            .replies
            .get(&Stage::EndOfData)
            .is_some_and(|reply| !reply.starts_with('2'));
        let lost = !refused && {
            let mut state = self.shared.state();
            let left = state.behaviour.lose_replies;
            state.behaviour.lose_replies = left.saturating_sub(1);
            left > 0
        };
        let dropped = behaviour.close_at.contains(&Stage::EndOfData)
            || behaviour.silent_at.contains(&Stage::EndOfData);
        if !refused && !dropped {
            self.record(transaction, content)?;
        }
        if lost {
            return Err(over());
        }
        self.say(Stage::EndOfData, "250 2.0.0 taken")?;
        Ok(())
    }

    fn record(&self, transaction: Transaction, content: Vec<u8>) -> io::Result<()> {
        let mut state = self.shared.state();
        state.counts.messages += 1;
        state.counts.recipients += transaction.to.len() as u64;
        if let Some(directory) = &state.mailbox {
            let mut text = format!("Return-Path: <{}>\r\n", transaction.from).into_bytes();
            for to in &transaction.to {
                text.extend(format!("Delivered-To: {to}\r\n").bytes());
            }
            text.extend(&content);
            let name = format!("{:04}.eml", state.counts.messages);
            std::fs::write(directory.join(name), text)?;
        }
        state.mail.push(Delivered {
            at: Instant::now(),
            session: self.number,
            peer: self.peer,
            helo: self.helo.clone(),
            tls: self.tls,
            from: transaction.from,
            from_parameters: transaction.from_parameters,
            to: transaction.to,
            to_parameters: transaction.to_parameters,
            content,
        });
        drop(state);
        self.shared.arrived.notify_all();
        Ok(())
    }
}

/// `FROM:<path> parameters` taken apart.
fn path<'a>(rest: &'a str, keyword: &str) -> Option<(&'a str, &'a str)> {
    let head = rest.get(..keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let (path, parameters) = rest[keyword.len()..].strip_prefix('<')?.split_once('>')?;
    Some((path, parameters.trim()))
}
