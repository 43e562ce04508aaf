//! Properties of the session over hostile and over plausible input.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_mail::{Address, Enhanced, Envelope, Reply};
use tidegate_submit::{Action, Config, Host, MAX_AUTH_LINE, Part, Session};

struct Accepting;

impl Host for Accepting {
    fn mail(&mut self, _: Option<&Address>, _: u64) -> Result<(), Reply> {
        Ok(())
    }
}

/// What a session did, without where the pieces of a content were cut.
#[derive(Debug, PartialEq)]
enum Event {
    Out(Vec<u8>),
    Piece(Part, Vec<u8>),
    Accept(Envelope),
    StartTls,
    Close { abrupt: bool },
}

struct Run {
    session: Session,
    input: BytesMut,
    events: Vec<Event>,
    closed: bool,
    right_password: bool,
}

impl Run {
    fn new(config: &Arc<Config>, tls: bool) -> Self {
        let mut run = Run {
            session: Session::new(config.clone(), tls),
            input: BytesMut::new(),
            events: Vec::new(),
            closed: false,
            right_password: true,
        };
        run.session.greet(false);
        run.feed(b"");
        run
    }

    fn piece(&mut self, part: Part, piece: &Bytes) {
        match self.events.last_mut() {
            Some(Event::Piece(last, bytes)) if *last == part => bytes.extend_from_slice(piece),
            _ => self.events.push(Event::Piece(part, piece.to_vec())),
        }
    }

    /// Takes the pieces of the content under way back.
    fn forget_content(&mut self) {
        let accepted = self
            .events
            .iter()
            .rposition(|e| matches!(e, Event::Accept(_)))
            .map_or(0, |at| at + 1);
        let mut at = 0;
        self.events.retain(|event| {
            at += 1;
            at <= accepted || !matches!(event, Event::Piece(..))
        });
        // Outputs that were kept apart by them.
        let events = std::mem::take(&mut self.events);
        for event in events {
            match (self.events.last_mut(), event) {
                (Some(Event::Out(last)), Event::Out(more)) => last.extend(more),
                (_, event) => self.events.push(event),
            }
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        if self.closed {
            return;
        }
        self.input.extend_from_slice(bytes);
        loop {
            let action = self.session.advance(&mut self.input, &mut Accepting);
            let out = std::mem::take(self.session.output());
            match (self.events.last_mut(), out.is_empty()) {
                (_, true) => {}
                (Some(Event::Out(last)), _) => last.extend(out),
                _ => self.events.push(Event::Out(out)),
            }
            match action {
                Action::Read => {
                    assert!(self.input.len() <= MAX_AUTH_LINE + 2);
                    return;
                }
                Action::Flush | Action::Begin => {}
                Action::StartTls => {
                    self.events.push(Event::StartTls);
                    self.session.tls_started();
                }
                Action::Authenticate(_) => self.session.auth_result(if self.right_password {
                    Ok(())
                } else {
                    Err(Reply::new(535, Enhanced::new(5, 7, 8), "wrong"))
                }),
                Action::Piece(part, piece) => self.piece(part, &piece),
                Action::Abort => self.forget_content(),
                Action::Accept(envelope) => {
                    self.events.push(Event::Accept(envelope));
                    let reply = Reply::new(250, Enhanced::new(2, 0, 0), "queued");
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
}

fn config(repair: bool) -> Arc<Config> {
    Arc::new(Config {
        max_size: 300,
        max_recipients: 2,
        max_header: 120,
        max_hops: 2,
        text_line_limit: 60,
        max_errors: 6,
        max_idle_commands: 12,
        allow_plain_auth: true,
        repair_line_ends: repair,
        ..Config::default()
    })
}

fn command() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "EHLO client\r\n",
        "HELO client\r\n",
        "AUTH PLAIN AHVzZXIAc2VjcmV0\r\n",
        "AUTH PLAIN\r\nAHVzZXIAc2VjcmV0\r\n",
        "AUTH LOGIN\r\ndXNlcg==\r\nc2VjcmV0\r\n",
        "AUTH LOGIN\r\n*\r\n",
        "MAIL FROM:<a@acme.example>\r\n",
        "MAIL FROM:<a@acme.example> SIZE=301\r\n",
        "MAIL FROM:<> RET=FULL ENVID=x\r\n",
        "RCPT TO:<b@example.org> NOTIFY=NEVER\r\n",
        "RCPT TO:<c@example.org>\r\n",
        "RCPT TO:<\r\n",
        "DATA\r\n",
        "RSET\r\n",
        "NOOP\r\n",
        "VRFY x\r\n",
        "FOO\r\n",
        "QUIT\r\n",
        "NOOP\n",
        "NOOP\rx\r\n",
        "NOOP \0\r\n",
        "BDAT x\r\n",
    ])
    .prop_map(|line| line.as_bytes().to_vec());
    let long = (2040usize..2060).prop_map(|n| [vec![b'x'; n], b"\r\n".to_vec()].concat());
    let chunk = (content(), any::<bool>()).prop_map(|(content, last)| {
        let last = if last { " LAST" } else { "" };
        [
            format!("BDAT {}{last}\r\n", content.len()).into_bytes(),
            content,
        ]
        .concat()
    });
    prop_oneof![6 => known, 1 => long, 2 => chunk]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        8 => prop::sample::select(vec![
            "Subject: a\r\n", "Received: x\r\n", "\r\n", "text", "text\r\n", ".", "..", ".\r\n.",
            "grüße\r\n", " folded\r\n",
        ]),
        1 => prop::sample::select(vec!["\n", "\r", "\0", "\r\n.\n", "\n.\r\n", "\r.\r"]),
        1 => Just("a line that is longer than sixty bytes, which is as much as is allowed\r\n"),
    ];
    vec(token, 0..12).prop_map(|tokens| tokens.concat().into_bytes())
}

fn transaction() -> impl Strategy<Value = Vec<u8>> {
    content().prop_map(|content| {
        [
            &b"EHLO c\r\nAUTH PLAIN AHVzZXIAc2VjcmV0\r\nMAIL FROM:<a@acme.example>\r\n"[..],
            b"RCPT TO:<b@example.org>\r\nDATA\r\n",
            &content,
            b"\r\n.\r\n",
        ]
        .concat()
    })
}

/// What a client sends, without STARTTLS: whether bytes follow that at once is seen only
/// where they come together.
fn client() -> impl Strategy<Value = Vec<u8>> {
    vec(
        prop_oneof![2 => command(), 1 => content(), 2 => transaction()],
        1..12,
    )
    .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_actions(
        input in client(),
        cuts in vec(1usize..40, 1..20),
        repair: bool,
        right_password: bool,
    ) {
        let config = config(repair);
        let mut whole = Run::new(&config, false);
        whole.right_password = right_password;
        whole.feed(&input);
        let mut bytes = Run::new(&config, false);
        bytes.right_password = right_password;
        for byte in &input {
            bytes.feed(&[*byte]);
        }
        let mut pieces = Run::new(&config, false);
        pieces.right_password = right_password;
        let (mut rest, mut cut) = (&input[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let at = (*cut.next().unwrap_or(&1)).min(rest.len());
            pieces.feed(&rest[..at]);
            rest = &rest[at..];
        }
        // A content still under way may have been given up already, or not yet.
        for run in [&mut whole, &mut bytes, &mut pieces] {
            if !run.session.is_between_messages() {
                run.forget_content();
            }
        }
        prop_assert_eq!(&whole.events, &bytes.events);
        prop_assert_eq!(&whole.events, &pieces.events);
    }

    #[test]
    fn an_accepted_content_has_only_true_line_ends(input in client(), repair: bool) {
        let mut run = Run::new(&config(repair), false);
        run.feed(&input);
        let mut content = Vec::new();
        for event in &run.events {
            match event {
                Event::Piece(_, bytes) => content.extend_from_slice(bytes),
                Event::Accept(envelope) => {
                    prop_assert!(!envelope.recipients.is_empty());
                    prop_assert!(content.len() <= 300);
                    prop_assert!(content.is_empty() || content.ends_with(b"\r\n"));
                    let text = String::from_utf8_lossy(&content);
                    prop_assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']));
                    content.clear();
                }
                _ => {}
            }
        }
    }

    #[test]
    fn no_input_panics_and_every_reply_is_well_formed(
        input in vec(any::<u8>(), 0..600),
        commands in vec(command(), 0..6),
        tls: bool,
        repair: bool,
    ) {
        let mut run = Run::new(&config(repair), tls);
        run.feed(&commands.concat());
        run.feed(b"STARTTLS\r\n");
        run.feed(&input);
        run.feed(&commands.concat());
        for event in &run.events {
            let Event::Out(out) = event else { continue };
            let text = str::from_utf8(out).expect("replies are ASCII");
            prop_assert!(text.ends_with("\r\n"));
            for line in text.split_terminator("\r\n") {
                prop_assert!(line.len() <= 510);
                prop_assert!(line.bytes().all(|b| matches!(b, b' '..=b'~')));
                let code: u16 = line[..3].parse().expect("a code");
                prop_assert!((200..600).contains(&code));
                prop_assert!(matches!(line.as_bytes()[3], b' ' | b'-'));
                // Every refusal has an enhanced code of the same class.
                if code >= 400 {
                    prop_assert_eq!(line.as_bytes()[4], line.as_bytes()[0]);
                    prop_assert_eq!(line.as_bytes()[5], b'.');
                }
            }
        }
    }
}

#[test]
fn a_message_in_one_buffer_is_handed_on_without_a_copy() {
    let mut run = Run::new(&config(false), false);
    run.feed(b"EHLO c\r\nAUTH PLAIN AHVzZXIAc2VjcmV0\r\nMAIL FROM:<a@acme.example>\r\n");
    run.feed(b"RCPT TO:<b@example.org>\r\nDATA\r\n");
    let mut input = BytesMut::from(&b"A: b\r\n\r\nline\r\nline\r\n.\r\n"[..]);
    let range = input.as_ptr_range();
    let mut pieces = 0;
    loop {
        match run.session.advance(&mut input, &mut Accepting) {
            Action::Piece(_, piece) => {
                assert!(range.contains(&piece.as_ptr()));
                pieces += 1;
            }
            Action::Accept(_) => break,
            action => panic!("{action:?}"),
        }
    }
    assert_eq!(pieces, 2);
}

#[test]
fn replies_do_not_pile_up() {
    let mut session = Session::new(
        Arc::new(Config {
            max_idle_commands: u32::MAX,
            ..Config::default()
        }),
        true,
    );
    session.greet(false);
    let mut input = BytesMut::from("EHLO c\r\n".repeat(10_000).as_bytes());
    let mut flushes = 0;
    while session.advance(&mut input, &mut Accepting) != Action::Read {
        assert!(session.output().len() < 32 * 1024);
        session.output().clear();
        flushes += 1;
    }
    assert!(flushes > 10, "{flushes}");
}

#[test]
fn a_flood_without_an_end_is_cut_off() {
    let mut run = Run::new(
        &Arc::new(Config {
            max_size: 1_000,
            allow_plain_auth: true,
            ..Config::default()
        }),
        false,
    );
    run.feed(b"EHLO c\r\nAUTH PLAIN AHVzZXIAc2VjcmV0\r\nMAIL FROM:<a@acme.example>\r\n");
    run.feed(b"RCPT TO:<b@example.org>\r\nDATA\r\n");
    let line = [&[b'x'; 998][..], b"\r\n"].concat();
    let mut sent = 0;
    while !run.closed {
        run.feed(&line);
        sent += line.len();
        assert!(sent < 2_000_000, "never cut off");
    }
    assert!(!run.events.iter().any(|e| matches!(e, Event::Accept(_))));
}
