//! Notices as we write them, read by our own reader.

use tidegate_mail::dsn::{
    Action, Content, Kind, Notice, NoticeRecipient, Original, Wording, compose, parse,
};
use tidegate_mail::header::HeaderBlock;
use tidegate_mail::recipient::LastAttempt;
use tidegate_mail::{
    Address, End, Enhanced, Fault, MessageId, Notify, OriginalRecipient, Outcome, Owes, Recipient,
    RecipientState, Reply, Ret, Stage, State, Timestamp, xtext,
};

use crate::input::Input;

const ACCEPTED: Timestamp = Timestamp::from_secs(1_795_489_500);
const EXPIRES: Timestamp = Timestamp::from_secs(1_795_489_500 + 48 * 3600);
const FAULTS: [Fault; 4] = [
    Fault::NoSuchDomain,
    Fault::ConnectTimeout,
    Fault::TooLarge,
    Fault::Expired,
];

/// Input: every text that goes into a notice, from clients, headers, servers and tenants.
///
/// Invariants: whatever they wrote, the notice has the fields we gave it and no other, three parts or
/// fewer, lines of at most 998 octets that end in CR LF, and reads back as what was put in.
pub fn notice(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = match input.byte() % 3 {
        0 => Kind::Failure,
        1 => Kind::Delay,
        _ => Kind::Success,
    };
    let full = input.bit();
    let return_limit = usize::from(input.short());
    let sender = address(&mut input, "sales@crm.example");
    let envid = xtext::parse_envid(&input.text()).ok();
    let message_id = input.text();
    let subject = input.text();
    let mut wording = Wording::default();
    if input.bit() {
        wording.contact = Some(input.text());
        wording.from_name = input.text().into();
        wording.language = input.text().into();
        wording.texts.failure.opening = input.text().into();
        wording.texts.delay.subject = input.text().into();
    }
    let number = usize::from(input.byte() % 4) + 1;
    let recipients: Vec<_> = (0..number).map(|_| recipient(&mut input)).collect();
    let content = input.rest();
    let notice = Notice {
        kind,
        reporting_mta: "gate.example",
        id: MessageId::from_i64(1_882_700_000_000_000_000),
        at: Timestamp::from_secs(1_795_489_500 + 49 * 3600),
        original: Original {
            id: MessageId::from_i64(1_882_000_000_000_000_000),
            reverse_path: &sender,
            envid: envid.as_deref(),
            ret: full.then_some(Ret::Full),
            arrived: ACCEPTED,
            message_id: (!message_id.is_empty()).then_some(message_id.as_str()),
            subject: (!subject.is_empty()).then_some(subject.as_str()),
            content: match content.len() % 3 {
                0 => Content::Head(content),
                1 => Content::Whole(content),
                _ if content.len() < 3 => Content::Unavailable,
                _ => Content::Whole(content),
            },
        },
        recipients: recipients
            .iter()
            .map(|(recipient, state)| NoticeRecipient { recipient, state })
            .collect(),
        return_limit,
        wording: &wording,
    };
    let message = compose(&notice);
    is_sound(&notice, &message);
    reads_back(&notice, &message);
    let envelope = notice.envelope(&message);
    assert_eq!(envelope.reverse_path, None);
    assert_eq!(envelope.recipients.len(), 1);
    assert_eq!(envelope.recipients[0].notify, Notify::Never);
}

fn address(input: &mut Input<'_>, otherwise: &str) -> Address {
    Address::parse(&input.text())
        .or_else(|_| Address::parse(otherwise))
        .expect("a good address")
}

fn recipient(input: &mut Input<'_>) -> (Recipient, RecipientState) {
    let recipient = Recipient {
        address: address(input, "ann@example.com"),
        notify: Notify::Absent,
        original: OriginalRecipient::parse_orcpt(&input.text()).ok(),
    };
    let choice = input.byte();
    let outcome = if choice & 1 == 0 {
        let code = 200 + input.short() % 400;
        let class = match code / 100 {
            2 => 2,
            5 => 5,
            _ => 4,
        };
        let enhanced = Enhanced::new(class, input.short() % 1000, input.short() % 1000);
        let stage = if choice & 2 == 0 {
            Stage::Rcpt
        } else {
            Stage::Local
        };
        Outcome::from_reply(stage, Reply::new(code, enhanced, input.text()))
    } else {
        let fault = FAULTS[usize::from(choice >> 1) % FAULTS.len()];
        Outcome::from_fault(Stage::Connect, fault)
    };
    let last = LastAttempt {
        at: ACCEPTED,
        host: (choice & 8 == 0).then(|| input.text()),
        outcome,
        heard: None,
    };
    let state = RecipientState {
        state: match choice >> 4 & 3 {
            0 => State::Done(End::Expired),
            1 => State::Waiting { due: EXPIRES },
            _ => State::Done(End::Bounced),
        },
        attempts: u32::from(choice >> 6),
        accepted_at: ACCEPTED,
        expires_at: EXPIRES,
        owes: Owes::None,
        delay_reported: false,
        last: (choice != 0xff).then_some(last),
    };
    (recipient, state)
}

fn is_sound(notice: &Notice<'_>, message: &[u8]) {
    for line in message.split_inclusive(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r\n").expect("each line ends in CR LF");
        assert!(line.len() <= 998);
        assert!(!line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
    let block = HeaderBlock::parse(message);
    assert_eq!(block.bad_lines(), 0);
    let names: Vec<&str> = block.fields().iter().map(|f| f.name.as_str()).collect();
    let mut expected = vec!["From", "To", "Subject", "Date", "Message-ID"];
    if names.contains(&"In-Reply-To") {
        expected.extend(["In-Reply-To", "References"]);
    }
    expected.extend(["Auto-Submitted", "MIME-Version", "Content-Type"]);
    assert_eq!(names, expected);
    assert!(block.is_automatic());
    let to = format!("<{}>", notice.original.reverse_path);
    assert_eq!(block.get("to"), Some(to.as_str()));
    let from = block.get("from").expect("a From");
    assert!(from.ends_with("<MAILER-DAEMON@gate.example>"), "{from}");
    // Delimiter lines: of each part, and the closing one.
    let kind = block.get("content-type").expect("a type");
    let (_, boundary) = kind.split_once("boundary=\"").expect("a boundary");
    let delimiter = format!("--{}", boundary.trim_end_matches('"'));
    let delimiters = message
        .split(|b| *b == b'\n')
        .filter(|line| line.starts_with(delimiter.as_bytes()))
        .count();
    assert!((3..=4).contains(&delimiters), "{delimiters}");
}

fn reads_back(notice: &Notice<'_>, message: &[u8]) {
    let report = parse(message).expect("a report");
    assert_eq!(report.reporting_mta.as_deref(), Some("gate.example"));
    assert_eq!(report.arrival, Some(ACCEPTED));
    // White space around it is no part of a field's value.
    let envid = notice
        .original
        .envid
        .map(str::trim)
        .filter(|e| !e.is_empty());
    assert_eq!(report.envelope_id.as_deref(), envid);
    assert_eq!(report.recipients.len(), notice.recipients.len());
    for (read, NoticeRecipient { recipient, state }) in
        report.recipients.iter().zip(&notice.recipients)
    {
        let address = read.address.as_ref().expect("a final recipient");
        assert_eq!(address.address, recipient.address.as_str());
        assert_eq!(read.original.is_some(), recipient.original.is_some());
        if let (Some(read), Some(written)) = (&read.original, &recipient.original) {
            assert_eq!(read.kind, written.kind);
            // What a field can't carry unchanged: spaces at its ends, brackets, the unprintable.
            let carried = written.address.bytes().all(|b| b.is_ascii_graphic())
                && !written.address.starts_with('<');
            if carried {
                assert_eq!(read.address, written.address);
            }
        }
        let status = read.status.expect("a status");
        match notice.kind {
            Kind::Failure => {
                assert_eq!(read.action, Action::Failed);
                assert_ne!(status.class, 2);
            }
            Kind::Delay => assert_eq!((read.action, status.class), (Action::Delayed, 4)),
            Kind::Success => assert_eq!((read.action, status.class), (Action::Relayed, 2)),
        }
        assert!(read.diagnostic.is_some());
        let until = (notice.kind == Kind::Delay).then_some(state.expires_at);
        assert_eq!(read.will_retry_until, until);
    }
}
