//! The reader of header blocks, and the trace field written before one.

use tidegate_mail::header::{HeaderBlock, MAX_FIELDS, MAX_LOG_SUBJECT, Received, find_end};
use tidegate_mail::{MessageId, Timestamp};

/// Input: a message, or the begin of one.
///
/// Invariants: nothing behind the empty line is read; names are printable and without a colon,
/// values free of controls but tab; what was read, written out again, reads the same; subject
/// and Message-ID are within their limits; a HELO argument adds no field, line or comment to the trace field.
pub fn header(bytes: &[u8]) {
    let block = HeaderBlock::parse(bytes);
    if let Some(end) = find_end(bytes) {
        assert!(end <= bytes.len() && bytes[end - 1] == b'\n');
        assert_eq!(HeaderBlock::parse(&bytes[..end]), block);
    }
    assert!(block.fields().len() <= MAX_FIELDS);
    assert!(block.fields().len() + block.bad_lines() <= bytes.len());
    let mut text = String::new();
    for field in block.fields() {
        assert!((1..=200).contains(&field.name.len()));
        assert!(
            field
                .name
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b':')
        );
        assert!(!crate::has_control(&field.value), "{field:?}");
        assert_eq!(field.value.trim_ascii(), field.value);
        text.push_str(&format!("{}: {}\r\n", field.name, field.value));
    }
    let again = HeaderBlock::parse(text.as_bytes());
    assert_eq!(again.fields(), block.fields());
    assert_eq!(again.bad_lines(), 0);

    assert_eq!(block.hops(), block.all("RECEIVED").count());
    assert!(block.is_automatic() || !block.is_bulk());
    if let Some(id) = block.message_id() {
        assert!((1..=500).contains(&id.len()) && !crate::has_control(id));
    }
    if let Some(subject) = block.log_subject() {
        assert!(!subject.contains(char::is_control), "{subject:?}");
        assert!((1..=MAX_LOG_SUBJECT).contains(&subject.chars().count()));
        assert_eq!(subject.trim(), subject);
    }
    trace(&String::from_utf8_lossy(bytes));
}

fn trace(helo: &str) {
    let id = MessageId::from_i64(1_882_000_000_000_000_000);
    let at = Timestamp::from_secs(1_795_489_500);
    let field = Received {
        helo,
        peer: [192, 0, 2, 7].into(),
        protocol: "ESMTPSA",
        by: "gate.example",
        id,
        at,
        tls: Some(helo),
    }
    .render();
    let block = HeaderBlock::parse(field.as_bytes());
    assert_eq!((block.fields().len(), block.bad_lines()), (1, 0));
    assert!(field.is_ascii() && field.ends_with(&format!("{}\r\n", at.rfc5322())));
    assert_eq!(field.matches("\r\n").count(), 4);
    assert_eq!(field.matches(['\r', '\n']).count(), 8);
    assert_eq!(field.matches('(').count(), 2);
    for line in field.split_terminator("\r\n") {
        assert!(line.len() <= 998);
    }
}
