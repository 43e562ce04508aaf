//! Writing a notice.

use std::fmt::Write;

use super::fields::{
    Charset, clean, encoded_words, exact, field, host_name, paragraph, quoted_printable,
};
use super::returned::returned_part;
use super::status::{Diagnosis, Facts, is_expired, status_part};
use super::wording::{KindText, fill};
use super::{Kind, Notice, NoticeRecipient};

/// The notice as a message with CRLF line ends, ready to be stored and sent in
/// [`Notice::envelope`].
pub fn compose(notice: &Notice<'_>) -> Vec<u8> {
    let charset = if is_global(notice) {
        Charset::Utf8
    } else {
        Charset::Ascii
    };
    let text = text_part(notice);
    let status = status_part(notice, charset);
    let returned = returned_part(notice);
    let boundary = boundary(notice, &[text.as_bytes(), status.as_bytes(), &returned]);

    let mut out = header(notice, charset, &boundary).into_bytes();
    for part in [text.as_bytes(), status.as_bytes(), &returned] {
        if part.is_empty() {
            continue;
        }
        out.extend_from_slice(b"--");
        out.extend_from_slice(boundary.as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"--");
    out.extend_from_slice(boundary.as_bytes());
    out.extend_from_slice(b"--\r\n");
    out
}

/// Whether an address of the envelope is international, so that RFC 6533's types are needed.
/// Such a sender or recipient came with SMTPUTF8, so its return path can take them.
/// An ORCPT alone is not enough: it may come from a system without SMTPUTF8, and has
/// an ASCII form.
fn is_global(notice: &Notice<'_>) -> bool {
    notice.original.reverse_path.is_international()
        || notice
            .recipients
            .iter()
            .any(|r| r.recipient.address.is_international())
}

fn kind_text<'a>(notice: &Notice<'a>) -> &'a KindText {
    let texts = &notice.wording.texts;
    match notice.kind {
        Kind::Failure => &texts.failure,
        Kind::Delay => &texts.delay,
        Kind::Success => &texts.success,
    }
}

fn header(notice: &Notice<'_>, charset: Charset, boundary: &str) -> String {
    let host = host_name(notice.reporting_mta);
    let original = &notice.original;
    let mut out = String::with_capacity(1024);
    let name = phrase(&notice.wording.from_name);
    field(
        &mut out,
        "From",
        &format!("{name} <MAILER-DAEMON@{host}>"),
        Charset::Ascii,
    );
    exact(
        &mut out,
        "To",
        &format!("<{}>", original.reverse_path),
        Charset::Utf8,
    );
    field(
        &mut out,
        "Subject",
        &encoded_words(&subject(notice)),
        Charset::Ascii,
    );
    exact(&mut out, "Date", &notice.at.rfc5322(), Charset::Ascii);
    exact(
        &mut out,
        "Message-ID",
        &format!("<{}@{host}>", notice.id),
        Charset::Ascii,
    );
    if let Some(id) = original.message_id.filter(|id| is_message_id(id)) {
        exact(&mut out, "In-Reply-To", &format!("<{id}>"), Charset::Ascii);
        exact(&mut out, "References", &format!("<{id}>"), Charset::Ascii);
    }
    out.push_str("Auto-Submitted: auto-replied\r\n");
    out.push_str("MIME-Version: 1.0\r\n");
    // RFC 6522 s. 3: the report type is the subtype of the second part.
    let report_type = match charset {
        Charset::Ascii => "delivery-status",
        Charset::Utf8 => "global-delivery-status",
    };
    let _ = write!(
        out,
        "Content-Type: multipart/report; report-type={report_type};\r\n\tboundary=\"{boundary}\"\r\n\r\n"
    );
    out
}

/// Subject of the notice, not encoded yet.
pub(super) fn subject(notice: &Notice<'_>) -> String {
    match notice.original.subject {
        Some(subject) => format!("{}: {}", kind_text(notice).subject, cut(subject, 200)),
        None => kind_text(notice).subject.to_string(),
    }
}

/// The first part.
fn text_part(notice: &Notice<'_>) -> String {
    let text = text(notice);
    let mut part = String::with_capacity(text.len() + 200);
    part.push_str("Content-Description: Notification\r\n");
    exact(
        &mut part,
        "Content-Language",
        &notice.wording.language,
        Charset::Ascii,
    );
    part.push_str("Content-Type: text/plain; charset=utf-8\r\n");
    if text.is_ascii() {
        part.push_str("Content-Transfer-Encoding: 7bit\r\n\r\n");
        part.push_str(&text);
    } else {
        part.push_str("Content-Transfer-Encoding: quoted-printable\r\n\r\n");
        part.push_str(&quoted_printable(&text));
    }
    part
}

/// What people read, with CRLF line ends.
pub(super) fn text(notice: &Notice<'_>) -> String {
    let Notice {
        original, wording, ..
    } = notice;
    let (texts, kind) = (&wording.texts, kind_text(notice));
    let until = notice
        .recipients
        .iter()
        .map(|r| r.state.expires_at)
        .max()
        .unwrap_or(notice.at)
        .rfc5322();
    let (id, arrived) = (original.id.to_string(), original.arrived.rfc5322());
    let contact = wording.contact.as_deref().unwrap_or("");
    let values = [
        ("subject", original.subject.unwrap_or("")),
        ("arrived", &arrived),
        ("until", &until),
        ("id", &id),
        ("contact", contact),
    ];
    let mut text = String::with_capacity(1024);
    paragraph(&mut text, &fill(&kind.opening, &values), 0);
    text.push_str("\r\n");
    if let Some(subject) = original.subject {
        paragraph(
            &mut text,
            &format!("{}: {}", texts.subject_label, cut(subject, 200)),
            4,
        );
    }
    paragraph(&mut text, &format!("{}: {arrived}", texts.arrived_label), 4);
    paragraph(&mut text, &format!("{}: {id}", texts.id_label), 4);
    for recipient in &notice.recipients {
        text.push_str("\r\n");
        let _ = write!(
            text,
            "<{}>\r\n",
            clean(recipient.recipient.address.as_str(), Charset::Utf8)
        );
        recipient_text(&mut text, notice, recipient);
    }
    if !kind.closing.is_empty() {
        text.push_str("\r\n");
        paragraph(&mut text, &fill(&kind.closing, &values), 0);
    }
    if !contact.is_empty() {
        text.push_str("\r\n");
        paragraph(&mut text, &fill(&texts.contact, &values), 0);
    }
    text
}

fn recipient_text(text: &mut String, notice: &Notice<'_>, recipient: &NoticeRecipient<'_>) {
    let texts = &notice.wording.texts;
    let facts = Facts::of(notice.kind, recipient);
    let until = recipient.state.expires_at.rfc5322();
    let values = [
        ("until", until.as_str()),
        ("host", facts.host.unwrap_or("?")),
    ];
    if notice.kind == Kind::Success {
        if facts.host.is_some() {
            paragraph(text, &fill(&texts.relayed, &values), 4);
        }
        return;
    }
    if is_expired(recipient) {
        paragraph(text, &fill(&texts.expired, &values), 4);
    }
    let reason = match &recipient.state.last {
        Some(last) => texts.reasons.of(&last.outcome),
        None => &texts.reasons.not_tried,
    };
    paragraph(text, reason, 4);
    match facts.diagnosis {
        Diagnosis::Smtp(reply) => {
            let said = if facts.host.is_some() {
                &texts.server_said
            } else {
                &texts.remote_said
            };
            paragraph(text, &fill(said, &values), 4);
            paragraph(text, &reply.to_string(), 8);
        }
        Diagnosis::Refusal(reply) => paragraph(text, &reply.to_string(), 8),
        Diagnosis::Finding(_) => {}
    }
    if notice.kind == Kind::Delay {
        paragraph(text, &fill(&texts.retried, &values), 4);
    }
}

/// A boundary that begins no line of any part.
fn boundary(notice: &Notice<'_>, parts: &[&[u8]]) -> String {
    let mut n = 0u32;
    loop {
        let boundary = format!("=_{}.{n}", notice.id);
        let used = parts
            .iter()
            .any(|part| memchr::memmem::find(part, boundary.as_bytes()).is_some());
        if !used {
            return boundary;
        }
        n += 1;
    }
}

/// A display name: encoded or quoted where it must be.
fn phrase(name: &str) -> String {
    let words = encoded_words(cut(name, 100));
    let plain = |c: char| c.is_ascii_alphanumeric() || " !#$%&'*+-/=?^_`{|}~".contains(c);
    if words.chars().all(plain) {
        return words;
    }
    let quoted: String = words.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
    format!("\"{quoted}\"")
}

fn is_message_id(id: &str) -> bool {
    (1..=500).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'<' && b != b'>')
}

fn cut(text: &str, chars: usize) -> &str {
    match text.char_indices().nth(chars) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}
