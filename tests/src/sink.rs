//! A destination: an SMTP server whose behaviour a test scripts, and changes as it runs.
//!
//! It is strict about order, and about what it announced: a command out of place or a parameter of
//! an extension not offered gets a 5xx and is counted as a protocol error, so that a test can
//! demand that there were none. It records a message before it answers for it.

mod session;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;

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
        let listener = bind(ip, port).with_context(|| format!("listen on {ip}:{port}"))?;
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
                std::thread::spawn(move || session::serve(stream, &shared));
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

    /// Closes all connections; new ones are served.
    pub fn hang_up(&self) {
        for stream in self.shared.state().open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
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
        self.hang_up();
        // Wakes the thread in accept(2).
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
    }
}

/// A port that was just found free can be held for a moment by a child between fork and exec.
fn bind(ip: IpAddr, port: u16) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match TcpListener::bind((ip, port)) {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
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
