//! Writing a notice.

use std::fmt::Write;

use super::fields::{
    Charset, MAX_LINE, clean, encoded_words, exact, field, paragraph, quoted_printable,
};
use super::wording::{KindText, fill};
use super::{Content, Kind, Notice, NoticeRecipient};
use crate::header::find_end;
use crate::{Address, End, Enhanced, Fault, Owes, Recipient, Reply, Ret, Stage, State, xtext};

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
    let subject = match original.subject {
        Some(subject) => format!("{}: {}", kind_text(notice).subject, cut(subject, 200)),
        None => kind_text(notice).subject.to_string(),
    };
    field(
        &mut out,
        "Subject",
        &encoded_words(&subject),
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

/// The first part: what people read.
fn text_part(notice: &Notice<'_>) -> String {
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
    let mut part = String::with_capacity(text.len() + 200);
    part.push_str("Content-Description: Notification\r\n");
    exact(
        &mut part,
        "Content-Language",
        &wording.language,
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

/// The second part: what programs read (RFC 3464, RFC 6533).
fn status_part(notice: &Notice<'_>, charset: Charset) -> String {
    let original = &notice.original;
    let mut body = String::with_capacity(512 + 512 * notice.recipients.len());
    let mta = host_name(notice.reporting_mta);
    if let Some(envid) = original.envid {
        exact(&mut body, "Original-Envelope-Id", envid, Charset::Ascii);
    }
    exact(
        &mut body,
        "Reporting-MTA",
        &format!("dns; {mta}"),
        Charset::Ascii,
    );
    exact(
        &mut body,
        "Arrival-Date",
        &original.arrived.rfc5322(),
        Charset::Ascii,
    );
    exact(
        &mut body,
        "X-Tidegate-Queue-ID",
        &original.id.to_string(),
        Charset::Ascii,
    );
    exact(
        &mut body,
        "X-Tidegate-Sender",
        &typed_address(original.reverse_path),
        charset,
    );
    for recipient in &notice.recipients {
        body.push_str("\r\n");
        recipient_block(&mut body, notice.kind, recipient, charset);
    }
    let mut part = String::with_capacity(body.len() + 120);
    part.push_str("Content-Description: Delivery report\r\nContent-Type: message/");
    part.push_str(match charset {
        Charset::Ascii => "delivery-status\r\n",
        Charset::Utf8 => "global-delivery-status\r\n",
    });
    part.push_str(encoding_of(body.as_bytes()));
    part.push_str("\r\n");
    part.push_str(&body);
    part
}

fn recipient_block(
    out: &mut String,
    kind: Kind,
    recipient: &NoticeRecipient<'_>,
    charset: Charset,
) {
    let facts = Facts::of(kind, recipient);
    let Recipient {
        address, original, ..
    } = recipient.recipient;
    if let Some(original) = original {
        let address = match (original.kind.as_str(), charset) {
            ("utf-8", Charset::Ascii) => xtext::encode_utf8_xtext(&original.address),
            _ => original.address.clone(),
        };
        let value = format!("{}; {address}", original.kind);
        exact(out, "Original-Recipient", &value, charset);
    }
    exact(out, "Final-Recipient", &typed_address(address), charset);
    let action = match kind {
        Kind::Failure => "failed",
        Kind::Delay => "delayed",
        Kind::Success => "relayed",
    };
    exact(out, "Action", action, Charset::Ascii);
    exact(out, "Status", &facts.status.to_string(), Charset::Ascii);
    if let Some(host) = facts.host {
        exact(
            out,
            "Remote-MTA",
            &format!("dns; {}", host_name(host)),
            Charset::Ascii,
        );
    }
    let diagnostic = match facts.diagnosis {
        Diagnosis::Smtp(reply) => format!("smtp; {reply}"),
        Diagnosis::Refusal(reply) => format!("x-tidegate; {reply}"),
        Diagnosis::Finding(text) => format!("x-tidegate; {text}"),
    };
    field(out, "Diagnostic-Code", &diagnostic, charset);
    let attempted = recipient
        .state
        .last
        .as_ref()
        .filter(|_| recipient.state.attempts > 0);
    if let Some(last) = attempted {
        exact(out, "Last-Attempt-Date", &last.at.rfc5322(), Charset::Ascii);
    }
    if kind == Kind::Delay {
        let until = recipient.state.expires_at.rfc5322();
        exact(out, "Will-Retry-Until", &until, Charset::Ascii);
    }
}

#[derive(Clone, Copy)]
enum Diagnosis<'a> {
    /// The peer's own words.
    Smtp(&'a Reply),
    /// The words of a policy of this gateway.
    Refusal(&'a Reply),
    /// What the gateway found itself.
    Finding(&'static str),
}

/// What there is to report about a recipient.
struct Facts<'a> {
    status: Enhanced,
    /// The server the diagnosis is about.
    host: Option<&'a str>,
    diagnosis: Diagnosis<'a>,
}

impl<'a> Facts<'a> {
    fn of(kind: Kind, recipient: &NoticeRecipient<'a>) -> Self {
        let expired = is_expired(recipient);
        let Some(last) = &recipient.state.last else {
            let (status, text) = match kind {
                Kind::Failure if expired => (Fault::Expired.status(), Fault::Expired.text()),
                Kind::Failure => (Enhanced::new(5, 0, 0), "delivery was not attempted"),
                Kind::Delay => (Enhanced::new(4, 4, 0), "delivery was not attempted yet"),
                Kind::Success => (Enhanced::new(2, 0, 0), "passed on"),
            };
            return Facts {
                status,
                host: None,
                diagnosis: Diagnosis::Finding(text),
            };
        };
        let outcome = &last.outcome;
        let Enhanced {
            class,
            subject,
            detail,
        } = outcome.status;
        let status = match kind {
            Kind::Failure if expired => Fault::Expired.status(),
            Kind::Failure if class != 2 => outcome.status,
            // A shaping policy may have called a 5xx temporary; a delay is class 4.
            Kind::Delay => Enhanced::new(4, subject, detail),
            Kind::Success if class == 2 => outcome.status,
            Kind::Failure => Enhanced::new(5, 0, 0),
            Kind::Success => Enhanced::new(2, 0, 0),
        };
        // At the end of the lifetime the destination's last words tell more than our last time-out.
        let said = if expired {
            last.last_reply()
        } else {
            outcome.reply.as_ref().map(|r| (r, last.host.as_deref()))
        };
        let (host, diagnosis) = match said {
            // A routing policy's refusal is no server's reply.
            Some((reply, _)) if outcome.stage == Stage::Local => (None, Diagnosis::Refusal(reply)),
            Some((reply, host)) => (host, Diagnosis::Smtp(reply)),
            None => {
                let fault = outcome.fault.unwrap_or(Fault::Expired);
                (last.host.as_deref(), Diagnosis::Finding(fault.text()))
            }
        };
        Facts {
            status,
            host,
            diagnosis,
        }
    }
}

fn is_expired(recipient: &NoticeRecipient<'_>) -> bool {
    recipient.state.state == State::Done(End::Expired)
}

/// The third part: the original, or its header block; empty where there is nothing to return.
fn returned_part(notice: &Notice<'_>) -> Vec<u8> {
    let original = &notice.original;
    let whole_wanted = notice.kind == Kind::Failure && original.ret == Some(Ret::Full);
    let bytes = match original.content {
        Content::Unavailable => return Vec::new(),
        Content::Whole(bytes)
            if whole_wanted && bytes.len() <= notice.return_limit && is_sendable(bytes) =>
        {
            return whole(bytes);
        }
        Content::Whole(bytes) | Content::Head(bytes) => bytes,
    };
    let headers = header_lines(bytes, notice.return_limit);
    let kind = if headers.is_ascii() {
        "text/rfc822-headers"
    } else {
        "message/global-headers"
    };
    let mut part = format!(
        "Content-Description: Message headers\r\nContent-Type: {kind}\r\n{}\r\n",
        encoding_of(headers.as_bytes())
    );
    part.push_str(&headers);
    part.into_bytes()
}

fn whole(bytes: &[u8]) -> Vec<u8> {
    let head = &bytes[..find_end(bytes).unwrap_or(bytes.len())];
    // RFC 6532 headers make it message/global; other 8-bit bytes in a header have no type.
    let kind = if !head.is_ascii() && str::from_utf8(head).is_ok() {
        "message/global"
    } else {
        "message/rfc822"
    };
    let mut part = format!(
        "Content-Description: Undelivered message\r\nContent-Type: {kind}\r\n{}\r\n",
        encoding_of(bytes)
    )
    .into_bytes();
    part.extend_from_slice(bytes);
    part
}

/// Whether the original may be sent as it is: CRLF line ends, no NUL, lines within the limit.
fn is_sendable(bytes: &[u8]) -> bool {
    bytes.split_inclusive(|b| *b == b'\n').all(|line| {
        let (content, ended) = match line.strip_suffix(b"\r\n") {
            Some(content) => (content, true),
            None => (line, false),
        };
        content.len() <= MAX_LINE
            && !content.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))
            // Only the last line may be without its end.
            && (ended || !line.ends_with(b"\n"))
    })
}

/// The header block with CRLF line ends, no control characters, lines within the limit, and
/// whole fields up to `limit` octets. Not UTF-8 throughout: the odd octets become `?`.
fn header_lines(bytes: &[u8], limit: usize) -> String {
    let end = find_end(bytes).unwrap_or(bytes.len());
    let head = &bytes[..end];
    let charset = if str::from_utf8(head).is_ok() {
        Charset::Utf8
    } else {
        Charset::Ascii
    };
    let mut out = String::with_capacity(head.len().min(limit));
    let mut field_start = 0;
    for line in head.split(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        if !matches!(line[0], b' ' | b'\t') {
            field_start = out.len();
        }
        if out.len() + line.len() + 2 > limit {
            out.truncate(field_start);
            break;
        }
        let line = String::from_utf8_lossy(line);
        let indent = if line.starts_with('\t') { "\t" } else { "" };
        let line = clean(&line[indent.len()..], charset);
        out.push_str(indent);
        out.push_str(&line[..line.floor_char_boundary(MAX_LINE - 1)]);
        out.push_str("\r\n");
    }
    out
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

fn encoding_of(bytes: &[u8]) -> &'static str {
    if bytes.is_ascii() {
        "Content-Transfer-Encoding: 7bit\r\n"
    } else {
        "Content-Transfer-Encoding: 8bit\r\n"
    }
}

fn typed_address(address: &Address) -> String {
    let kind = if address.is_international() {
        "utf-8"
    } else {
        "rfc822"
    };
    format!("{kind}; {address}")
}

/// A host name as it may stand in a field or an address.
fn host_name(host: &str) -> String {
    let name: String = host
        .chars()
        .take(255)
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' | ':' | '[' | ']' => c,
            _ => '?',
        })
        .collect();
    if name.is_empty() {
        "localhost".into()
    } else {
        name
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

impl From<Kind> for Owes {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Failure => Owes::Failure,
            Kind::Delay => Owes::Delay,
            Kind::Success => Owes::Success,
        }
    }
}
