//! Golden notices, read back by our parser and by mail-parser, and hostile input.
//!
//! `BLESS=1 cargo test -p tidegate-mail dsn` writes the golden files anew.

use super::*;
use crate::recipient::{Input, Rights, step};
use crate::{
    End, Enhanced, Fault, OriginalRecipient, Outcome, Promise, Reply, Stage, State, TrafficClass,
};
use mail_parser::{MessageParser, MimeHeaders, PartType};

mod hostile;
mod others;
mod shapes;

const ACCEPTED: Timestamp = Timestamp::from_secs(1_795_489_500);

fn at(secs: i64) -> Timestamp {
    Timestamp::from_millis(ACCEPTED.as_millis() + secs * 1000)
}

fn to(address: &str) -> Recipient {
    Recipient {
        address: Address::parse(address).unwrap(),
        notify: Notify::Absent,
        original: None,
    }
}

fn reply(code: u16, enhanced: &str, text: &str) -> Outcome {
    let reply = Reply::new(code, enhanced.parse().unwrap(), text);
    Outcome::from_reply(Stage::Rcpt, reply)
}

/// The state after these attempts (seconds after acceptance, host, outcome), as [`step`] leaves it.
fn after(attempts: &[(i64, &str, Outcome)]) -> RecipientState {
    let promise = Promise {
        class: TrafficClass::Transactional,
        relay: "direct".into(),
        lane: None,
        priority: 0,
        lifetime_secs: 48 * 3600,
        delay_notice_secs: Some(4 * 3600),
        policy: None,
    };
    let rights = Rights {
        notify: Notify::On {
            success: true,
            failure: true,
            delay: true,
        },
        null_sender: false,
        automatic: false,
    };
    let mut state = RecipientState::accepted(&promise, ACCEPTED);
    for (secs, host, outcome) in attempts {
        let input = Input::Attempted {
            outcome: outcome.clone(),
            host: (!host.is_empty()).then(|| host.to_string()),
            next_slot: at(secs + 60),
        };
        state = step(&state, input, &promise, rights, at(*secs)).unwrap();
    }
    state
}

const ORIGINAL: &[u8] = b"Received: from crm.example ([192.0.2.7])\r\n\
\tby gate.example with ESMTPSA id 1m7m9mtcn0000;\r\n\
\tTue, 24 Nov 2026 03:05:00 +0000\r\n\
From: Sales <sales@crm.example>\r\n\
To: ann@example.com\r\n\
Subject: Invoice 42\r\n\
Message-ID: <42.abc@crm.example>\r\n\
\r\n\
Dear Ann,\r\nplease find --=_ here.\r\n";

struct Case {
    kind: Kind,
    sender: Address,
    envid: Option<&'static str>,
    ret: Option<Ret>,
    subject: Option<String>,
    message_id: Option<String>,
    content: Vec<u8>,
    recipients: Vec<(Recipient, RecipientState)>,
    wording: Wording,
}

impl Case {
    fn new(kind: Kind, recipients: Vec<(Recipient, RecipientState)>) -> Self {
        Case {
            kind,
            sender: Address::parse("sales@crm.example").unwrap(),
            envid: None,
            ret: None,
            subject: Some("Invoice 42".into()),
            message_id: Some("42.abc@crm.example".into()),
            content: ORIGINAL.to_vec(),
            recipients,
            wording: Wording::default(),
        }
    }

    fn notice(&self) -> Notice<'_> {
        Notice {
            kind: self.kind,
            reporting_mta: "gate.example",
            id: MessageId::from_i64(1_882_700_000_000_000_000),
            at: at(49 * 3600),
            original: Original {
                id: MessageId::from_i64(1_882_000_000_000_000_000),
                reverse_path: &self.sender,
                envid: self.envid,
                ret: self.ret,
                arrived: ACCEPTED,
                message_id: self.message_id.as_deref(),
                subject: self.subject.as_deref(),
                content: Content::Whole(&self.content),
            },
            recipients: self
                .recipients
                .iter()
                .map(|(recipient, state)| NoticeRecipient { recipient, state })
                .collect(),
            return_limit: 50_000,
            wording: &self.wording,
        }
    }

    fn compose(&self) -> Vec<u8> {
        compose(&self.notice())
    }
}

/// Holds for every notice, whatever its input was.
#[track_caller]
fn is_sound(case: &Case, bytes: &[u8]) {
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let line = line
            .strip_suffix(b"\r\n")
            .expect("CRLF at the end of each line");
        assert!(line.len() <= 998);
        assert!(!line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
    let message = MessageParser::new().parse(bytes).expect("a message");
    let headers: Vec<&str> = message
        .root_part()
        .headers
        .iter()
        .map(|h| h.name.as_str())
        .collect();
    let mut expected = vec!["From", "To", "Subject", "Date", "Message-ID"];
    if headers.contains(&"In-Reply-To") {
        expected.extend(["In-Reply-To", "References"]);
    }
    expected.extend(["Auto-Submitted", "MIME-Version", "Content-Type"]);
    assert_eq!(headers, expected);
    assert_eq!(
        message.header_raw("Auto-Submitted").map(str::trim),
        Some("auto-replied")
    );
    assert_eq!(
        message.from().unwrap().first().unwrap().address().unwrap(),
        "MAILER-DAEMON@gate.example"
    );
    assert_eq!(
        message.header_raw("To").map(str::trim),
        Some(format!("<{}>", case.sender).as_str())
    );
    let kind = message.content_type().unwrap();
    assert_eq!(
        (kind.ctype(), kind.subtype()),
        ("multipart", Some("report"))
    );
    // The multipart and its parts; the returned message's own parts lie inside its part.
    let PartType::Multipart(parts) = &message.root_part().body else {
        panic!("not a multipart");
    };
    assert_eq!(parts.len(), 3);
    let status = message.part(parts[1]).unwrap().content_type().unwrap();
    assert_eq!(kind.attribute("report-type"), status.subtype());
    let global = case.sender.is_international()
        || case
            .recipients
            .iter()
            .any(|(r, _)| r.address.is_international());
    let name = if global {
        "global-delivery-status"
    } else {
        "delivery-status"
    };
    assert_eq!((status.ctype(), status.subtype()), ("message", Some(name)));

    // Our parser reads exactly what was put in.
    let report = parse(bytes).expect("a report");
    assert_eq!(report.reporting_mta.as_deref(), Some("gate.example"));
    assert_eq!(report.envelope_id.as_deref(), case.envid);
    assert_eq!(report.arrival, Some(ACCEPTED));
    assert_eq!(report.recipients.len(), case.recipients.len());
    for (read, (recipient, state)) in report.recipients.iter().zip(&case.recipients) {
        let address = read.address.as_ref().unwrap();
        assert_eq!(address.address, recipient.address.as_str());
        assert_eq!(
            read.original
                .as_ref()
                .map(|o| (o.kind.as_str(), o.address.as_str())),
            recipient
                .original
                .as_ref()
                .map(|o| (o.kind.as_str(), o.address.as_str()))
        );
        let (action, class) = match case.kind {
            Kind::Failure => (Action::Failed, None),
            Kind::Delay => (Action::Delayed, Some(4)),
            Kind::Success => (Action::Relayed, Some(2)),
        };
        assert_eq!(read.action, action);
        let status = read.status.expect("a status");
        assert!(class.is_none_or(|c| c == status.class) && (class.is_some() || status.class != 2));
        assert!(read.diagnostic.is_some());
        let until = (case.kind == Kind::Delay).then_some(state.expires_at);
        assert_eq!(read.will_retry_until, until);
    }
    let envelope = case.notice().envelope(bytes);
    assert_eq!(envelope.reverse_path, None);
    assert_eq!(envelope.recipients[0].address, case.sender);
    assert_eq!(envelope.smtputf8, case.sender.is_international());
    assert_eq!(envelope.body == BodyType::SevenBit, bytes.is_ascii());
}

#[track_caller]
fn golden(name: &str, case: &Case) -> Report {
    let bytes = case.compose();
    is_sound(case, &bytes);
    let path = format!("{}/src/dsn/golden/{name}.eml", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        golden == bytes,
        "{name}.eml differs from:\n{}",
        text(&bytes)
    );
    parse(&bytes).unwrap()
}

fn status(text: &str) -> Option<Enhanced> {
    Some(text.parse().unwrap())
}

#[test]
fn failure() {
    let mut ann = to("ann@example.com");
    ann.original = Some(OriginalRecipient::parse_orcpt("rfc822;Ann+2Bcrm@example.com").unwrap());
    let unknown = reply(
        550,
        "5.1.1",
        "<ann@example.com>: no such user\nask the postmaster",
    );
    let greylisted = reply(450, "4.2.1", "greylisted, come back in 5 minutes");
    let silence = || Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout);
    let refusal = Outcome::from_reply(
        Stage::Local,
        Reply::new(550, Enhanced::new(5, 7, 1), "not by this route"),
    );
    let rights = Rights {
        notify: Notify::Absent,
        null_sender: false,
        automatic: false,
    };
    let mut case = Case::new(
        Kind::Failure,
        vec![
            (ann, after(&[(60, "mx1.example.com", unknown)])),
            (
                to("bob@slow.example"),
                after(&[
                    (0, "mx.slow.example", greylisted),
                    (600, "mx2.slow.example", silence()),
                    (48 * 3600, "mx2.slow.example", silence()),
                ]),
            ),
            (
                to("carl@null.example"),
                after(&[(1, "", Outcome::from_fault(Stage::Dns, Fault::NullMx))]),
            ),
            (
                to("dora@refused.example"),
                RecipientState::refused(refusal, rights, ACCEPTED),
            ),
            (
                to("eve@ascii.example"),
                after(&[(
                    1,
                    "mx.ascii.example",
                    Outcome::from_fault(Stage::Ehlo, Fault::SmtpUtf8Unsupported),
                )]),
            ),
        ],
    );
    case.envid = Some("crm record=42+1");
    case.wording.contact = Some("the CRM's help desk (help@crm.example)".into());
    let report = golden("failure", &case);
    let [ann, bob, carl, dora, eve] = &report.recipients[..] else {
        panic!()
    };
    assert_eq!(report.message_id.as_deref(), Some("42.abc@crm.example"));
    assert_eq!(ann.status, status("5.1.1"));
    assert_eq!(ann.remote_mta.as_deref(), Some("mx1.example.com"));
    assert_eq!(
        ann.diagnostic.as_ref().unwrap().text,
        "550 5.1.1 <ann@example.com>: no such user; ask the postmaster"
    );
    assert_eq!(ann.last_attempt, Some(at(60)));
    // Expired: 4.4.7, with the last words a server said, not our last time-out.
    assert_eq!(bob.status, status("4.4.7"));
    let diagnostic = bob.diagnostic.as_ref().unwrap();
    assert_eq!(diagnostic.kind, "smtp");
    assert_eq!(
        diagnostic.text,
        "450 4.2.1 greylisted, come back in 5 minutes"
    );
    assert_eq!(bob.remote_mta.as_deref(), Some("mx.slow.example"));
    assert_eq!(bob.last_attempt, Some(at(48 * 3600)));
    assert_eq!(carl.status, status("5.1.10"));
    assert_eq!(carl.diagnostic.as_ref().unwrap().kind, "x-tidegate");
    assert_eq!(dora.status, status("5.7.1"));
    assert_eq!(
        dora.diagnostic.as_ref().unwrap().text,
        "550 5.7.1 not by this route"
    );
    assert_eq!(
        (dora.last_attempt, dora.remote_mta.as_deref()),
        (None, None)
    );
    assert_eq!(eve.status, status("5.6.7"));
}

#[test]
fn delay() {
    let mut case = Case::new(
        Kind::Delay,
        vec![
            (
                to("ann@example.com"),
                after(&[(4 * 3600, "mx.example.com", reply(451, "4.3.0", "try again"))]),
            ),
            (to("bob@held.example"), after(&[])),
        ],
    );
    // Not asked for in a delay, though asked for in general.
    case.ret = Some(Ret::Full);
    let report = golden("delay", &case);
    assert_eq!(report.recipients[0].will_retry_until, Some(at(48 * 3600)));
    assert_eq!(report.recipients[1].status, status("4.4.0"));
    assert_eq!(report.recipients[1].last_attempt, None);
}

#[test]
fn success() {
    let case = Case::new(
        Kind::Success,
        vec![(
            to("ann@example.com"),
            after(&[(2, "mx.example.com", reply(250, "2.0.0", "queued as 1"))]),
        )],
    );
    let report = golden("success", &case);
    assert_eq!(report.recipients[0].status, status("2.0.0"));
}

#[test]
fn international() {
    let mut rcpt = to("用户@例え.テスト");
    rcpt.original = Some(
        OriginalRecipient::parse_orcpt(
            r"utf-8;\x{7528}\x{6237}+@x"
                .replace('+', r"\x{2B}")
                .as_str(),
        )
        .unwrap(),
    );
    let mut case = Case::new(
        Kind::Failure,
        vec![(
            rcpt,
            after(&[(1, "mx.example", reply(550, "5.1.1", "unbekannt: für 用户"))]),
        )],
    );
    case.sender = Address::parse("jürgen@crm.example").unwrap();
    case.subject =
        Some("Rechnung für Zoë — 100 € und noch viel mehr Text, damit gefaltet wird".into());
    case.content = "From: Jürgen <jürgen@crm.example>\r\nSubject: für Zoë\r\n\r\nText\r\n".into();
    case.wording.texts.failure.opening =
        "Ihre Nachricht konnte nicht zugestellt werden: für die Empfänger unten.".into();
    case.wording.language = "de".into();
    case.wording.from_name = "Zustelldienst Größe".into();
    let report = golden("international", &case);
    let read = &report.recipients[0];
    assert_eq!(read.original.as_ref().unwrap().address, "用户+@x");
    assert_eq!(read.address.as_ref().unwrap().kind, "utf-8");
    assert_eq!(
        read.diagnostic.as_ref().unwrap().text,
        "550 5.1.1 unbekannt: für 用户"
    );
    let bytes = case.compose();
    let message = MessageParser::new().parse(&bytes).unwrap();
    assert!(
        message
            .subject()
            .unwrap()
            .ends_with(case.subject.as_deref().unwrap())
    );
    assert!(
        message
            .body_text(0)
            .unwrap()
            .contains("für die Empfänger unten.")
    );
}

#[test]
fn full_return() {
    let mut case = Case::new(
        Kind::Failure,
        vec![(
            to("ann@example.com"),
            after(&[(2, "mx.example.com", reply(554, "5.7.1", "spam"))]),
        )],
    );
    case.ret = Some(Ret::Full);
    case.content = b"Subject: Invoice 42\r\nMessage-ID: <42@crm>\r\nContent-Type: multipart/mixed; boundary=\"=_x\"\r\n\r\n--=_x\r\n\r\ncaf\xe9\r\n--=_x--\r\n".to_vec();
    golden("full-return", &case);
    let bytes = case.compose();
    assert!(memchr::memmem::find(&bytes, &case.content).is_some());
    let message = MessageParser::new().parse(&bytes).unwrap();
    assert!(
        matches!(&message.part(3).unwrap().body, PartType::Message(m) if m.subject() == Some("Invoice 42"))
    );

    // What is too large, or can't be sent as it is, comes back as headers.
    let headers_only = |case: &Case, limit: usize| {
        let mut notice = case.notice();
        notice.return_limit = limit;
        let bytes = compose(&notice);
        is_sound(case, &bytes);
        memchr::memmem::find(&bytes, b"text/rfc822-headers").is_some()
            && memchr::memmem::find(&bytes, b"caf").is_none()
    };
    assert!(!headers_only(&case, case.content.len()));
    assert!(headers_only(&case, case.content.len() - 1));
    for bad in [&b"\n"[..], b"\rx\r\n", b"\0\r\n", &[b'x'; 999]] {
        let mut case = Case {
            content: case.content.clone(),
            ret: case.ret,
            ..Case::new(case.kind, case.recipients.clone())
        };
        case.content.extend_from_slice(bad);
        assert!(headers_only(&case, 50_000), "{bad:?}");
    }
}

#[test]
fn headers_are_cut_at_a_field() {
    let mut case = Case::new(Kind::Failure, vec![(to("a@b"), after(&[]))]);
    case.content = b"A: 1\r\nB: 2\r\n 22222\r\n\r\n".to_vec();
    for (limit, left) in [
        (6, "A: 1\r\n"),
        (18, "A: 1\r\n"),
        (20, "A: 1\r\nB: 2\r\n 22222\r\n"),
        (3, ""),
    ] {
        let mut notice = case.notice();
        notice.return_limit = limit;
        let bytes = String::from_utf8(compose(&notice)).unwrap();
        let part =
            format!("text/rfc822-headers\r\nContent-Transfer-Encoding: 7bit\r\n\r\n{left}\r\n--=_");
        assert!(bytes.contains(&part), "{limit}: {bytes}");
    }
    let mut notice = case.notice();
    notice.original.content = Content::Head(b"A: \xc3\xbc\r\nB: \xc3");
    assert!(
        String::from_utf8(compose(&notice))
            .unwrap()
            .contains("A: ü\r\nB: \r\n")
    );
    notice.original.content = Content::Head(b"A: \xc3\xbc\r\nB: \xff\r\n");
    assert!(
        String::from_utf8(compose(&notice))
            .unwrap()
            .contains("A: ?\r\nB: ?\r\n")
    );
    notice.original.content = Content::Unavailable;
    assert_eq!(parse(&compose(&notice)).unwrap().recipients.len(), 1);
}

#[test]
fn at_the_end_of_the_lifetime_a_server_s_words_are_the_server_s() {
    let greylisted = reply(450, "4.2.1", "greylisted, come back in 5 minutes");
    let ours = Outcome::from_fault(Stage::Local, Fault::RelayUnavailable);
    let state = after(&[(0, "mx.slow.example", greylisted), (48 * 3600, "", ours)]);
    let case = Case::new(Kind::Failure, vec![(to("bob@slow.example"), state)]);
    let report = parse(&case.compose()).unwrap();
    let bob = &report.recipients[0];
    let diagnostic = bob.diagnostic.as_ref().unwrap();
    assert_eq!(diagnostic.kind, "smtp");
    assert_eq!(
        diagnostic.text,
        "450 4.2.1 greylisted, come back in 5 minutes"
    );
    assert_eq!(bob.remote_mta.as_deref(), Some("mx.slow.example"));
    assert_eq!(bob.status, Some(Enhanced::new(4, 4, 7)));
}

#[test]
fn an_international_recipient_gets_a_global_report_whoever_wrote_to_it() {
    let recipient = (
        to("用户@example.com"),
        after(&[(1, "mx", reply(550, "5.1.1", "no such user"))]),
    );
    let case = Case::new(Kind::Failure, vec![recipient]);
    assert!(!case.sender.is_international());
    let text = String::from_utf8(case.compose()).unwrap();
    assert!(text.contains("message/global-delivery-status"));
    assert!(text.contains("Final-Recipient: utf-8; 用户@example.com\r\n"));
}

#[test]
fn an_ascii_return_path_gets_ascii_forms() {
    let mut rcpt = to("ann@example.com");
    rcpt.original = Some(OriginalRecipient::parse_orcpt(r"utf-8;\x{FC}nn@example.com").unwrap());
    let case = Case::new(
        Kind::Failure,
        vec![(rcpt, after(&[(1, "mx", reply(550, "5.1.1", "für"))]))],
    );
    let bytes = case.compose();
    is_sound(&case, &bytes);
    assert!(bytes.is_ascii());
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("Original-Recipient: utf-8; \\x{FC}nn@example.com\r\n"));
}

#[test]
fn a_boundary_in_the_original_is_avoided() {
    let mut case = Case::new(Kind::Failure, vec![(to("a@b"), after(&[]))]);
    case.ret = Some(Ret::Full);
    let id = case.notice().id;
    case.content = format!("Subject: x\r\n\r\n--=_{id}.0\r\nContent-Type: message/delivery-status\r\n\r\n--=_{id}.1--\r\n").into();
    let bytes = case.compose();
    is_sound(&case, &bytes);
    assert!(
        String::from_utf8(bytes)
            .unwrap()
            .contains(&format!("boundary=\"=_{id}.2\""))
    );
}

#[test]
fn debts_and_kinds() {
    for kind in [Kind::Failure, Kind::Delay, Kind::Success] {
        assert_eq!(Kind::of(kind.into()), Some(kind));
    }
    assert_eq!(Kind::of(Owes::None), None);
    assert!(Notice::wants_whole(Kind::Failure, Some(Ret::Full), 10, 10));
    assert!(!Notice::wants_whole(Kind::Failure, Some(Ret::Full), 11, 10));
    assert!(!Notice::wants_whole(Kind::Failure, Some(Ret::Hdrs), 1, 10));
    assert!(!Notice::wants_whole(Kind::Delay, Some(Ret::Full), 1, 10));
    let mut envelope = Envelope {
        reverse_path: None,
        envid: None,
        ret: None,
        body: BodyType::SevenBit,
        smtputf8: false,
        requiretls: false,
        tls_optional: false,
        recipients: vec![to("a@b")],
    };
    let id = MessageId::from_i64(1);
    assert!(Original::of(id, &envelope, ACCEPTED).is_none());
    envelope.reverse_path = Some(Address::parse("c@d").unwrap());
    assert_eq!(
        Original::of(id, &envelope, ACCEPTED)
            .unwrap()
            .reverse_path
            .as_str(),
        "c@d"
    );
}
