//! A driver of a submission session that keeps what the session did, in a form that does not depend
//! on how the input was cut, and holds every action to what the session promises.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_mail::{Address, Enhanced, Envelope, Recipient, Reply};
use tidegate_submit::{Action, Config, Host, MAX_AUTH_LINE, Part, Session};

/// Limits small enough for an input to reach them.
pub const MAX_SIZE: u64 = 400;
pub const MAX_HEADER: usize = 200;
pub const MAX_HOPS: usize = 2;
pub const MAX_LINE: usize = 80;
const MAX_RECIPIENTS: usize = 3;

pub fn config(starttls: bool, repair: bool) -> Arc<Config> {
    Arc::new(Config {
        hostname: "gate.example".into(),
        max_size: MAX_SIZE,
        max_recipients: MAX_RECIPIENTS,
        max_header: MAX_HEADER,
        max_hops: MAX_HOPS,
        text_line_limit: MAX_LINE,
        max_errors: 6,
        max_idle_commands: 16,
        max_auth_failures: 2,
        starttls,
        allow_plain_auth: true,
        repair_line_ends: repair,
        requiretls: true,
    })
}

/// What the driver answers.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    pub right_password: bool,
    /// The content can't be kept.
    pub refuse_content: bool,
    /// The reply to the data.
    pub code: u16,
}

impl Default for Answers {
    fn default() -> Self {
        Answers {
            right_password: true,
            refuse_content: false,
            code: 250,
        }
    }
}

/// What a session did, without where the pieces of a content were cut.
#[derive(Debug, PartialEq)]
pub enum Event {
    Out(Vec<u8>),
    Piece(Part, Vec<u8>),
    Accept(Envelope),
    StartTls,
    Close { abrupt: bool },
}

/// Refuses by address, so that the answer is the same at any cut.
struct Judge;

impl Host for Judge {
    fn mail(&mut self, reverse_path: Option<&Address>, _: u64) -> Result<(), Reply> {
        match reverse_path.map(Address::local_part) {
            Some("refused") => Err(status(553, "not your address")),
            Some("busy") => Err(status(421, "later\r\n250 2.0.0 injected")),
            _ => Ok(()),
        }
    }

    fn rcpt(&mut self, recipient: &Recipient) -> Result<(), Reply> {
        match recipient.address.local_part() {
            "refused" => Err(status(550, "suppressed\nfor a reason\u{1b}")),
            "busy" => Err(status(421, "")),
            _ => Ok(()),
        }
    }
}

fn status(code: u16, text: &str) -> Reply {
    let class = u8::try_from(code / 100).expect("one digit");
    Reply::new(code, Enhanced::new(class, 7, 1), text)
}

pub struct Driver {
    pub session: Session,
    pub events: Vec<Event>,
    pub closed: bool,
    input: BytesMut,
    answers: Answers,
    /// Line feeds fed, each of which may end a command.
    lines: usize,
    written: usize,
    content: Vec<(Part, Vec<u8>)>,
}

impl Driver {
    pub fn new(config: &Arc<Config>, tls: bool, answers: Answers) -> Self {
        let mut driver = Driver {
            session: Session::new(config.clone(), tls),
            events: Vec::new(),
            closed: false,
            input: BytesMut::new(),
            answers,
            lines: 0,
            written: 0,
            content: Vec::new(),
        };
        driver.session.greet(false);
        driver.feed(b"");
        driver
    }

    /// Feeds in pieces of this many bytes.
    pub fn feed_by(&mut self, size: usize, bytes: &[u8]) {
        for piece in bytes.chunks(size.max(1)) {
            self.feed(piece);
        }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        if self.closed {
            return;
        }
        self.lines += bytes.iter().filter(|b| **b == b'\n').count();
        self.input.extend_from_slice(bytes);
        loop {
            let action = self.session.advance(&mut self.input, &mut Judge);
            self.take_output();
            match action {
                Action::Read => {
                    assert!(self.input.len() <= MAX_AUTH_LINE + 2, "input piles up");
                    return;
                }
                Action::Flush => {}
                Action::Begin => {
                    self.content.clear();
                    if self.answers.refuse_content {
                        self.session.refuse_data(status(452, "no room"));
                    }
                }
                Action::StartTls => {
                    assert!(self.input.is_empty(), "bytes sent in clear would be kept");
                    self.events.push(Event::StartTls);
                    self.session.tls_started();
                    assert!(!self.session.is_authenticated());
                    assert!(self.session.helo().is_empty() && self.session.envelope().is_none());
                }
                Action::Authenticate(credentials) => {
                    assert!((1..=255).contains(&credentials.user.len()));
                    assert!(!credentials.user.contains(char::is_control));
                    assert!((1..=1024).contains(&credentials.password.as_bytes().len()));
                    self.session.auth_result(if self.answers.right_password {
                        Ok(())
                    } else {
                        Err(status(535, "wrong"))
                    });
                }
                Action::Piece(part, piece) => self.piece(part, &piece),
                Action::Abort => {
                    self.content.clear();
                    self.forget_content();
                }
                Action::Accept(envelope) => {
                    self.check_accepted(&envelope);
                    self.events.push(Event::Accept(envelope));
                    let reply = status(self.answers.code, "done");
                    self.session.data_result(&reply);
                }
                Action::Close { abrupt } => {
                    self.forget_content();
                    self.events.push(Event::Close { abrupt });
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn take_output(&mut self) {
        let out = std::mem::take(self.session.output());
        assert!(out.len() <= 32 * 1024, "replies pile up");
        self.written += out.len();
        // One reply for each command, the greeting, and what ends the session.
        assert!(
            self.written <= 512 * (self.lines + 3),
            "{} octets of replies to {} lines",
            self.written,
            self.lines
        );
        check_replies(&out);
        match (self.events.last_mut(), out.is_empty()) {
            (_, true) => {}
            (Some(Event::Out(last)), _) => last.extend(out),
            _ => self.events.push(Event::Out(out)),
        }
    }

    fn piece(&mut self, part: Part, piece: &Bytes) {
        assert!(!piece.is_empty());
        match self.content.last_mut() {
            Some((last, bytes)) if *last == part => bytes.extend_from_slice(piece),
            _ => self.content.push((part, piece.to_vec())),
        }
        match self.events.last_mut() {
            Some(Event::Piece(last, bytes)) if *last == part => bytes.extend_from_slice(piece),
            _ => self.events.push(Event::Piece(part, piece.to_vec())),
        }
    }

    /// Takes the pieces of a content that does not count back, and joins the outputs that they
    /// kept apart.
    pub fn forget_content(&mut self) {
        let accepted = self
            .events
            .iter()
            .rposition(|e| matches!(e, Event::Accept(_)))
            .map_or(0, |at| at + 1);
        let later = self.events.split_off(accepted);
        for event in later {
            match (self.events.last_mut(), event) {
                (_, Event::Piece(..)) => {}
                (Some(Event::Out(last)), Event::Out(more)) => last.extend(more),
                (_, event) => self.events.push(event),
            }
        }
    }

    /// The replies so far, as text.
    pub fn replies(&self) -> String {
        let out = self.events.iter().filter_map(|event| match event {
            Event::Out(out) => Some(out.as_slice()),
            _ => None,
        });
        String::from_utf8_lossy(&out.collect::<Vec<_>>().concat()).into_owned()
    }

    /// The header block and the body of the content since the last [`Action::Begin`].
    pub fn content(&self) -> (Vec<u8>, Vec<u8>) {
        let of = |wanted: Part| {
            let pieces = self.content.iter().filter(|(part, _)| *part == wanted);
            pieces.flat_map(|(_, bytes)| bytes.clone()).collect()
        };
        (of(Part::Header), of(Part::Body))
    }

    fn check_accepted(&self, envelope: &Envelope) {
        assert!(self.session.is_authenticated());
        assert!((1..=MAX_RECIPIENTS).contains(&envelope.recipients.len()));
        let addresses = envelope
            .reverse_path
            .iter()
            .chain(envelope.recipients.iter().map(|r| &r.address));
        for address in addresses {
            assert_eq!(Address::parse(address.as_str()).as_ref(), Ok(address));
            assert!(envelope.smtputf8 || !address.is_international());
        }
        assert!(!envelope.requiretls || self.session.is_tls());
        if let Some(envid) = &envelope.envid {
            assert!((1..=100).contains(&envid.len()));
            assert!(envid.bytes().all(|b| matches!(b, b' '..=b'~')));
        }
        for original in envelope
            .recipients
            .iter()
            .filter_map(|r| r.original.as_ref())
        {
            assert!(!crate::has_control(&original.address) && !original.address.is_empty());
        }
        // Header block first, then the body, each at most once.
        assert!(
            self.content
                .is_sorted_by_key(|(part, _)| *part == Part::Body)
        );
        let (header, body) = self.content();
        let content = [header.as_slice(), &body].concat();
        assert!(content.len() as u64 <= MAX_SIZE && header.len() <= MAX_HEADER);
        assert!(body.is_empty() || header == b"\r\n" || header.ends_with(b"\r\n\r\n"));
        assert!(content.is_ascii() || envelope.body == tidegate_mail::BodyType::EightBitMime);
        assert!(content.is_empty() || content.ends_with(b"\r\n"));
        for line in content.split_inclusive(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\r\n").expect("a line end is CR LF");
            assert!(line.len() <= MAX_LINE);
            assert!(!line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
        }
    }
}

/// Whole replies: printable ASCII, lines within their limit, one code through the lines of each, an
/// enhanced code of its class with each refusal.
fn check_replies(out: &[u8]) {
    let text = str::from_utf8(out).expect("replies are ASCII");
    assert!(text.is_empty() || text.ends_with("\r\n"));
    let mut open: Option<&str> = None;
    for line in text.split_terminator("\r\n") {
        assert!(line.len() <= 510, "{line:?}");
        assert!(line.bytes().all(|b| matches!(b, b' '..=b'~')), "{line:?}");
        let code: u16 = line[..3].parse().expect("a code");
        assert!((200..600).contains(&code));
        assert!(open.is_none_or(|open| open == &line[..3]), "{text:?}");
        open = match line.as_bytes()[3] {
            b'-' => Some(&line[..3]),
            b' ' => None,
            _ => panic!("{line:?}"),
        };
        if code >= 400 {
            assert_eq!(line.as_bytes()[4], line.as_bytes()[0], "{line:?}");
            assert_eq!(line.as_bytes()[5], b'.', "{line:?}");
        }
    }
    assert_eq!(open, None, "{text:?}");
}
