//! A destination: an SMTP server whose behaviour a test scripts, and changes as it runs.
//!
//! It is strict about order, and about what it announced: a command out of place or a parameter of
//! an extension not offered gets a 5xx and is counted as a protocol error, so that a test can
//! demand that there were none. It records a message before it answers for it.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::tls::Identity;

/// Where in a session something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Banner,
    Ehlo,
    Mail,
    Rcpt,
    /// The DATA command, or the first BDAT.
    Data,
    /// After the final dot, or the last BDAT.
    EndOfData,
}

/// What a destination does. The default accepts everything in clear.
#[derive(Clone, Default)]
pub struct Behaviour {
    replies: HashMap<Stage, String>,
    reply_to: HashMap<String, String>,
    close_at: BTreeSet<Stage>,
    silent_at: BTreeSet<Stage>,
    greylist: u32,
    lose_replies: u32,
    most_recipients: Option<usize>,
    extensions: Vec<String>,
    delay: Option<Duration>,
    tls: Option<Identity>,
    login: Option<(String, String)>,
}

impl Behaviour {
    /// Takes everything; offers PIPELINING, SIZE, 8BITMIME, SMTPUTF8, DSN, enhanced codes.
    pub fn accept() -> Behaviour {
        Behaviour {
            extensions: [
                "PIPELINING",
                "SIZE 20971520",
                "8BITMIME",
                "SMTPUTF8",
                "ENHANCEDSTATUSCODES",
                "DSN",
            ]
            .map(str::to_owned)
            .into(),
            ..Behaviour::default()
        }
    }

    /// 450 to the first `times` attempts at each recipient.
    pub fn greylist(times: u32) -> Behaviour {
        Behaviour {
            greylist: times,
            ..Behaviour::accept()
        }
    }

    /// Answers a stage with this reply (code and text, lines parted by `\n`) instead of a positive one.
    pub fn reply(mut self, at: Stage, reply: &str) -> Behaviour {
        self.replies.insert(at, reply.to_owned());
        self
    }

    /// Answers RCPT for one address with this reply.
    pub fn reply_to(mut self, address: &str, reply: &str) -> Behaviour {
        self.reply_to
            .insert(address.to_ascii_lowercase(), reply.to_owned());
        self
    }

    /// Closes the connection instead of a reply.
    pub fn close_at(mut self, stage: Stage) -> Behaviour {
        self.close_at.insert(stage);
        self
    }

    /// Neither answers nor closes.
    pub fn silent_at(mut self, stage: Stage) -> Behaviour {
        self.silent_at.insert(stage);
        self
    }

    /// Records the first `times` messages, then closes without the reply to the final dot.
    pub fn lose_replies(mut self, times: u32) -> Behaviour {
        self.lose_replies = times;
        self
    }

    /// 452 for recipients of a transaction beyond this number.
    pub fn most_recipients(mut self, number: usize) -> Behaviour {
        self.most_recipients = Some(number);
        self
    }

    /// Announces one more extension.
    pub fn extension(mut self, line: &str) -> Behaviour {
        self.extensions.push(line.to_owned());
        self
    }

    /// Announces exactly these extensions.
    pub fn extensions(mut self, lines: &[&str]) -> Behaviour {
        self.extensions = lines.iter().map(|line| (*line).to_owned()).collect();
        self
    }

    /// Waits before the reply to the final dot.
    pub fn delay(mut self, by: Duration) -> Behaviour {
        self.delay = Some(by);
        self
    }

    /// Offers STARTTLS with this certificate.
    pub fn starttls(mut self, identity: &Identity) -> Behaviour {
        self.tls = Some(identity.clone());
        self
    }

    /// Wants AUTH (PLAIN or LOGIN) before MAIL.
    pub fn login(mut self, user: &str, password: &str) -> Behaviour {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }
}

/// A message as it came over the wire, dots unstuffed.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub at: Instant,
    /// Connections are numbered from 1.
    pub session: u64,
    pub peer: SocketAddr,
    pub helo: String,
    pub tls: bool,
    pub from: String,
    /// Parameters of MAIL, as sent.
    pub from_parameters: String,
    pub to: Vec<String>,
    /// Parameters of each RCPT, as sent.
    pub to_parameters: Vec<String>,
    pub content: Vec<u8>,
}

impl Delivered {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }

    /// The unfolded value of the first header field of that name.
    pub fn field(&self, name: &str) -> Option<String> {
        let text = self.text();
        let (header, _) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let unfolded = header.replace("\r\n ", " ").replace("\r\n\t", " ");
        unfolded.split("\r\n").find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field
                .eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub sessions: u64,
    pub messages: u64,
    /// Recipients of recorded messages.
    pub recipients: u64,
    pub refused_recipients: u64,
    pub protocol_errors: u64,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    mail: Vec<Delivered>,
    counts: Counts,
    errors: Vec<String>,
    seen: HashMap<String, u32>,
    mailbox: Option<PathBuf>,
    open: HashMap<u64, TcpStream>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

/// A listening destination. Stops when dropped.
pub struct Destination {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Destination {
    /// Listens on a loopback address; port 0 picks a free one.
    pub fn start(ip: impl Into<IpAddr>, port: u16, behaviour: Behaviour) -> anyhow::Result<Self> {
        let ip = ip.into();
        anyhow::ensure!(ip.is_loopback(), "{ip} is not a loopback address");
        let listener =
            TcpListener::bind((ip, port)).with_context(|| format!("listen on {ip}:{port}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        shared.state().behaviour = behaviour;
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = serving.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Ok(Destination { address, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From the next command on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.state().behaviour = behaviour;
    }

    /// Also writes every message to this directory, as a mailbox of `.eml` files.
    pub fn keep_files(&self, directory: PathBuf) -> anyhow::Result<()> {
        std::fs::create_dir_all(&directory)?;
        self.shared.state().mailbox = Some(directory);
        Ok(())
    }

    pub fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// What peers did against the protocol.
    pub fn protocol_errors(&self) -> Vec<String> {
        self.shared.state().errors.clone()
    }

    /// Everything received so far.
    pub fn mail(&self) -> Vec<Delivered> {
        self.shared.state().mail.clone()
    }

    /// Waits until at least `number` messages are there.
    pub fn wait_for(&self, number: usize, within: Duration) -> anyhow::Result<Vec<Delivered>> {
        let (state, _) = self
            .shared
            .arrived
            .wait_timeout_while(self.shared.state(), within, |state| {
                state.mail.len() < number
            })
            .expect("no holder panics");
        anyhow::ensure!(
            state.mail.len() >= number,
            "{} of {number} messages arrived at {} within {within:?}",
            state.mail.len(),
            self.address
        );
        Ok(state.mail.clone())
    }

    /// Waits for the first message that fits.
    pub fn wait_until(
        &self,
        what: &str,
        within: Duration,
        mut fits: impl FnMut(&Delivered) -> bool,
    ) -> anyhow::Result<Delivered> {
        let deadline = Instant::now() + within;
        let mut looked_at = 0;
        let mut state = self.shared.state();
        loop {
            if let Some(found) = state.mail[looked_at..].iter().find(|mail| fits(mail)) {
                return Ok(found.clone());
            }
            looked_at = state.mail.len();
            let left = deadline.saturating_duration_since(Instant::now());
            anyhow::ensure!(
                !left.is_zero(),
                "{what} did not arrive at {} within {within:?}",
                self.address
            );
            state = self
                .shared
                .arrived
                .wait_timeout(state, left)
                .expect("no holder panics")
                .0;
        }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for stream in self.shared.state().open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the thread in accept(2).
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
    }
}

/// Either kind of connection, with one read buffer.
struct Wire {
    stream: Transport,
    buffer: Vec<u8>,
}

enum Transport {
    Clear(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>),
}

impl Wire {
    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let length = match &mut self.stream {
            Transport::Clear(stream) => stream.read(&mut chunk)?,
            Transport::Tls(stream) => stream.read(&mut chunk)?,
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..length]);
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let end = self.find(b"\r\n", 0)?;
        let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 2);
        Ok(line)
    }

    fn find(&mut self, needle: &[u8], mut from: usize) -> io::Result<usize> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer[from..], needle) {
                return Ok(from + at);
            }
            from = self.buffer.len().saturating_sub(needle.len() - 1).max(from);
            self.fill()?;
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.fill()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Content up to the lone dot, dots unstuffed.
    fn content(&mut self) -> io::Result<Vec<u8>> {
        while self.buffer.len() < 3 {
            self.fill()?;
        }
        if self.buffer.starts_with(b".\r\n") {
            self.buffer.drain(..3);
            return Ok(Vec::new());
        }
        let end = self.find(b"\r\n.\r\n", 0)?;
        let raw: Vec<u8> = self.buffer.drain(..end + 5).collect();
        let mut content = Vec::with_capacity(end + 2);
        for line in raw[..end + 2].split_inclusive(|&byte| byte == b'\n') {
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        }
        Ok(content)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Transport::Clear(stream) => stream.write_all(bytes),
            Transport::Tls(stream) => {
                stream.write_all(bytes)?;
                stream.flush()
            }
        }
    }
}

fn serve(stream: TcpStream, shared: &Shared) {
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
        if first && let Some(reply) = behaviour.replies.get(&Stage::Data) {
            if let Some(transaction) = &mut self.transaction {
                transaction.failed = Some(reply.clone());
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Raw;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn records_what_it_accepts() {
        let destination =
            Destination::start([127, 0, 0, 1], 0, Behaviour::accept().extension("CHUNKING"))
                .unwrap();
        let mut raw = Raw::connect(destination.address()).unwrap();
        raw.expect(220).unwrap();
        raw.say("EHLO client.test", 250).unwrap();
        raw.say("MAIL FROM:<a@a.test> SIZE=10", 250).unwrap();
        raw.say("RCPT TO:<b@b.test> NOTIFY=NEVER", 250).unwrap();
        raw.say("DATA", 354).unwrap();
        raw.write(b"Subject: x\r\n\r\n..dot\r\nend\r\n.\r\n")
            .unwrap();
        raw.expect(250).unwrap();
        raw.say("MAIL FROM:<>", 250).unwrap();
        raw.say("RCPT TO:<b@b.test>", 250).unwrap();
        raw.write(b"BDAT 3\r\nabcBDAT 2 LAST\r\nde").unwrap();
        raw.expect(250).unwrap();
        raw.expect(250).unwrap();
        let mail = destination.wait_for(2, SOON).unwrap();
        assert_eq!(mail[0].text(), "Subject: x\r\n\r\n.dot\r\nend\r\n");
        assert_eq!(mail[0].field("subject").as_deref(), Some("x"));
        assert_eq!(mail[0].to_parameters, ["NOTIFY=NEVER"]);
        assert_eq!(mail[1].content, b"abcde");
        assert_eq!(destination.counts().protocol_errors, 0);
        raw.say("MAIL FROM:<a@a.test> REQUIRETLS", 555).unwrap();
        assert_eq!(destination.counts().protocol_errors, 1);
    }

    #[test]
    fn greylists_refuses_and_loses_replies() {
        let destination = Destination::start(
            [127, 0, 0, 1],
            0,
            Behaviour::greylist(1)
                .reply_to("gone@b.test", "550 5.1.1 no such user")
                .lose_replies(1),
        )
        .unwrap();
        let mut raw = Raw::connect(destination.address()).unwrap();
        raw.expect(220).unwrap();
        raw.say("EHLO client.test", 250).unwrap();
        raw.say("MAIL FROM:<a@a.test>", 250).unwrap();
        raw.say("RCPT TO:<b@b.test>", 450).unwrap();
        raw.say("RCPT TO:<gone@b.test>", 550).unwrap();
        raw.say("DATA", 554).unwrap();
        raw.say("RCPT TO:<b@b.test>", 250).unwrap();
        raw.say("DATA", 354).unwrap();
        raw.write(b"x\r\n.\r\n").unwrap();
        assert!(raw.at_end(SOON));
        assert_eq!(destination.mail().len(), 1);
        assert_eq!(destination.counts().refused_recipients, 2);
    }
}
