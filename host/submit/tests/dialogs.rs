//! Dialogs as text: `tests/dialogs/*.txt` at the top of the workspace, played against a
//! [`Session`], each line by line and byte by byte.
//!
//! ```text
//! # a comment
//! @ tls repair size=1000      settings of this dialog
//! C: a line the client sends, with its CRLF
//! C> a line without it
//! S: a reply line; a final * stands for anything
//! T                           the TLS handshake is made
//! A: <from> <to> <to>         the message is accepted, with this envelope ...
//! B: a line of its content    ... and this content
//! X, X!                       the session ends, X! abruptly
//! ```
//! `<CR>`, `<LF>`, `<NUL>` and `<xHH>` stand for bytes. What stands between two lines of the
//! client must be all that the session does in answer to the first.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use tidegate_mail::{Address, Enhanced, Envelope, Notify, Reply};
use tidegate_submit::{Action, Config, Host, Session};

struct Accepting;

impl Host for Accepting {
    fn mail(&mut self, reverse_path: Option<&Address>, _size: u64) -> Result<(), Reply> {
        match reverse_path {
            Some(path) if path.domain() == "refused.example" => Err(Reply::new(
                550,
                Enhanced::new(5, 7, 1),
                "not a domain of yours",
            )),
            _ => Ok(()),
        }
    }
}

struct Player {
    session: Session,
    input: BytesMut,
    content: Vec<u8>,
    events: Vec<String>,
    closed: bool,
    storage_full: bool,
}

impl Player {
    fn collect_output(&mut self) {
        let out = std::mem::take(self.session.output());
        let text = String::from_utf8(out).expect("replies are ASCII");
        assert!(text.is_empty() || text.ends_with("\r\n"), "{text:?}");
        let lines = text.split_terminator("\r\n");
        self.events.extend(lines.map(|line| format!("S: {line}")));
    }

    fn feed(&mut self, bytes: &[u8]) {
        assert!(!self.closed, "the session has ended");
        self.input.extend_from_slice(bytes);
        loop {
            let action = self.session.advance(&mut self.input, &mut Accepting);
            self.collect_output();
            match action {
                Action::Read => return,
                Action::Flush => {}
                Action::StartTls => {
                    self.events.push("T".into());
                    self.session.tls_started();
                }
                Action::Authenticate(c) => {
                    let right = c.user == "user" && c.password.as_bytes() == b"secret";
                    self.session.auth_result(if right {
                        Ok(())
                    } else {
                        Err(Reply::new(535, Enhanced::new(5, 7, 8), "wrong"))
                    });
                }
                Action::Begin => {
                    self.content.clear();
                    if self.storage_full {
                        self.session.refuse_data(Reply::new(
                            452,
                            Enhanced::new(4, 3, 1),
                            "storage is full",
                        ));
                    }
                }
                Action::Piece(_, piece) => self.content.extend_from_slice(&piece),
                Action::Abort => self.content.clear(),
                Action::Accept(envelope) => {
                    self.events.push(format!("A: {}", envelope_text(&envelope)));
                    let content = String::from_utf8_lossy(&self.content).into_owned();
                    assert!(content.is_empty() || content.ends_with("\r\n"));
                    let lines = content.split_terminator("\r\n");
                    self.events.extend(lines.map(|line| format!("B: {line}")));
                    let reply = Reply::new(250, Enhanced::new(2, 0, 0), "queued");
                    self.session.data_result(&reply);
                }
                Action::Close { abrupt } => {
                    self.events.push(if abrupt { "X!" } else { "X" }.into());
                    self.closed = true;
                    return;
                }
            }
        }
    }
}

fn envelope_text(envelope: &Envelope) -> String {
    let mut text = match &envelope.reverse_path {
        Some(path) => format!("<{path}>"),
        None => "<>".to_owned(),
    };
    for recipient in &envelope.recipients {
        text += &format!(" <{}>", recipient.address);
        if recipient.notify != Notify::Absent {
            text += &format!(" {:?}", recipient.notify);
        }
        if let Some(original) = &recipient.original {
            text += &format!(" orcpt={};{}", original.kind, original.address);
        }
    }
    if let Some(envid) = &envelope.envid {
        text += &format!(" envid={envid}");
    }
    if let Some(ret) = envelope.ret {
        text += &format!(" ret={ret:?}");
    }
    if envelope.body != tidegate_mail::BodyType::SevenBit {
        text += " 8bit";
    }
    for (is, name) in [
        (envelope.smtputf8, " smtputf8"),
        (envelope.requiretls, " requiretls"),
    ] {
        if is {
            text += name;
        }
    }
    text
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let named = [("<CR>", b'\r'), ("<LF>", b'\n'), ("<NUL>", 0)]
            .into_iter()
            .find(|(name, _)| rest.starts_with(name));
        if let Some((name, byte)) = named {
            out.push(byte);
            rest = &rest[name.len()..];
        } else if let Some(hex) = rest.strip_prefix("<x").filter(|h| h.get(2..3) == Some(">")) {
            out.push(u8::from_str_radix(&hex[..2], 16).expect("two hex digits"));
            rest = &hex[3..];
        } else {
            let mut bytes = [0; 4];
            out.extend_from_slice(c.encode_utf8(&mut bytes).as_bytes());
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn start(settings: &str) -> Player {
    let mut config = Config {
        hostname: "mx.example".into(),
        max_size: 100_000,
        max_recipients: 3,
        max_errors: 10,
        ..Config::default()
    };
    let (mut tls, mut early, mut storage_full) = (false, false, false);
    for word in settings.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse::<usize>().expect("a number");
        match name {
            "tls" => tls = true,
            "early" => early = true,
            "together" => {}
            "full" => storage_full = true,
            "no-starttls" => config.starttls = false,
            "plain-auth" => config.allow_plain_auth = true,
            "repair" => config.repair_line_ends = true,
            "requiretls" => config.requiretls = true,
            "size" => config.max_size = number() as u64,
            "header" => config.max_header = number(),
            "hops" => config.max_hops = number(),
            "line" => config.text_line_limit = number(),
            "errors" => config.max_errors = number() as u32,
            "idle" => config.max_idle_commands = number() as u32,
            _ => panic!("unknown setting {word}"),
        }
    }
    let mut player = Player {
        session: Session::new(Arc::new(config), tls),
        input: BytesMut::new(),
        content: Vec::new(),
        events: Vec::new(),
        closed: false,
        storage_full,
    };
    player.session.greet(early);
    player.feed(b"");
    player
}

/// Plays a dialog, sending pieces of at most so many bytes.
fn play(name: &str, text: &str, piece: usize) {
    let settings: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("@ ")).collect();
    let mut player = start(&settings.join(" "));
    for (number, line) in text.lines().enumerate() {
        let place = format!("{name}:{} (pieces of {piece})", number + 1);
        if line.trim().is_empty() || line.starts_with(['#', '@']) {
            continue;
        }
        let sent = match (line.strip_prefix("C: "), line.strip_prefix("C> ")) {
            (Some(text), _) => [unescape(text), b"\r\n".to_vec()].concat(),
            (_, Some(text)) => unescape(text),
            _ if line == "C:" => b"\r\n".to_vec(),
            _ => {
                assert!(!player.events.is_empty(), "{place}: nothing for {line:?}");
                let got = player.events.remove(0);
                let same = match line.strip_suffix('*') {
                    Some(start) => got.starts_with(start),
                    None => got == line || got == format!("{line} "),
                };
                assert!(same, "{place}: wanted {line:?}, got {got:?}");
                continue;
            }
        };
        assert!(player.events.is_empty(), "{place}: {:?}", player.events);
        for bytes in sent.chunks(piece) {
            if !player.closed {
                player.feed(bytes);
            }
        }
    }
    assert!(player.events.is_empty(), "{name}: {:?}", player.events);
}

#[test]
fn dialogs() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/dialogs");
    let mut played = 0;
    for entry in fs::read_dir(&dir).expect("the dialogs are there") {
        let path = entry.expect("readable").path();
        if path.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(&path).expect("readable");
        for dialog in text.split("\n----\n") {
            play(&name, dialog, usize::MAX);
            // Whether bytes follow STARTTLS is seen only when they come together.
            if !dialog.contains("@ together") {
                play(&name, dialog, 1);
            }
            played += 1;
        }
    }
    assert!(played > 20, "only {played} dialogs in {}", dir.display());
}
