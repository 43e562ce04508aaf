//! Reading delivery reports: ours, and what other systems send.
//!
//! Lenient, because real reports are not all alike: a wrong or missing content type, fields in
//! another order, blocks without an empty line between them. Bounded and not recursive,
//! because anyone can send one. What a report says is a claim of its sender, no more.

use mail_parser::decoders::base64::base64_decode;
use mail_parser::decoders::quoted_printable::quoted_printable_decode;

use crate::header::{HeaderBlock, find_end};
use crate::{Enhanced, Timestamp, xtext};

/// Octets of a message that are looked at.
const MAX_READ: usize = 4 * 1024 * 1024;
const MAX_PARTS: usize = 100;
const MAX_DEPTH: usize = 4;
const MAX_RECIPIENTS: usize = 1000;

/// A delivery report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Name without its type.
    pub reporting_mta: Option<String>,
    pub envelope_id: Option<String>,
    pub arrival: Option<Timestamp>,
    /// Message-ID of the returned original, without angle brackets.
    pub message_id: Option<String>,
    /// At least one.
    pub recipients: Vec<ReportRecipient>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRecipient {
    pub original: Option<TypedAddress>,
    /// Final-Recipient.
    pub address: Option<TypedAddress>,
    pub action: Action,
    pub status: Option<Enhanced>,
    pub remote_mta: Option<String>,
    pub diagnostic: Option<Diagnostic>,
    pub last_attempt: Option<Timestamp>,
    pub will_retry_until: Option<Timestamp>,
}

/// `rfc822; a@b`, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedAddress {
    /// In lower case.
    pub kind: String,
    pub address: String,
}

/// `smtp; 550 5.1.1 ...`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// In lower case; empty where the report gave none.
    pub kind: String,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Failed,
    Delayed,
    Delivered,
    Relayed,
    Expanded,
}

/// Reads a message; `None` if it is no delivery report.
pub fn parse(message: &[u8]) -> Option<Report> {
    let message = &message[..message.len().min(MAX_READ)];
    let parts = leaves(message);
    let mut report = parts
        .iter()
        .filter(|p| p.kind.ends_with("delivery-status"))
        .find_map(|p| read_status(&p.decoded()))
        .or_else(|| {
            parts
                .iter()
                .filter(|p| !p.is_original() && mentions_recipient(p.body))
                .find_map(|p| read_status(&p.decoded()))
        })?;
    report.message_id = parts.iter().filter(|p| p.is_original()).find_map(|p| {
        HeaderBlock::parse(&p.decoded())
            .message_id()
            .map(str::to_owned)
    });
    Some(report)
}

struct Part<'a> {
    /// `type/subtype` in lower case.
    kind: String,
    encoding: String,
    body: &'a [u8],
}

impl Part<'_> {
    fn is_original(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "message/rfc822" | "message/global" | "text/rfc822-headers" | "message/global-headers"
        )
    }

    fn decoded(&self) -> std::borrow::Cow<'_, [u8]> {
        let decoded = match self.encoding.as_str() {
            "base64" => base64_decode(self.body),
            "quoted-printable" => quoted_printable_decode(self.body),
            _ => None,
        };
        match decoded {
            Some(bytes) => bytes.into(),
            None => self.body.into(),
        }
    }
}

/// The parts that are not multiparts, in order. A returned message is a leaf.
fn leaves(message: &[u8]) -> Vec<Part<'_>> {
    let mut leaves = Vec::new();
    let mut pending = vec![(message, 0)];
    while let Some((entity, depth)) = pending.pop() {
        if leaves.len() + pending.len() > MAX_PARTS {
            break;
        }
        let body_at = find_end(entity).unwrap_or(entity.len());
        let header = HeaderBlock::parse(&entity[..body_at]);
        let body = &entity[body_at..];
        let content_type = header.get("content-type").unwrap_or("text/plain");
        let kind = content_type.split(';').next().unwrap_or("").trim();
        let kind = kind.to_ascii_lowercase();
        let boundary =
            parameter(content_type, "boundary").filter(|_| kind.starts_with("multipart/"));
        match boundary {
            Some(boundary) if depth < MAX_DEPTH => {
                let children = split(body, &boundary);
                pending.extend(children.into_iter().rev().map(|child| (child, depth + 1)));
            }
            _ => leaves.push(Part {
                kind,
                encoding: header
                    .get("content-transfer-encoding")
                    .unwrap_or("")
                    .trim()
                    .to_ascii_lowercase(),
                body,
            }),
        }
    }
    leaves
}

/// The entities between the delimiter lines of a multipart body.
fn split<'a>(body: &'a [u8], boundary: &str) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut open: Option<usize> = None;
    let mut line_at = 0;
    for line in body.split_inclusive(|b| *b == b'\n') {
        let at = line_at;
        line_at += line.len();
        let delimiter = line
            .strip_prefix(b"--")
            .and_then(|l| l.strip_prefix(boundary.as_bytes()));
        let Some(rest) = delimiter else { continue };
        let closing = rest.starts_with(b"--");
        if !closing && !rest.trim_ascii().is_empty() {
            continue;
        }
        if let Some(from) = open.take() {
            // The line end before a delimiter belongs to it.
            let part = &body[from..at];
            let part = part.strip_suffix(b"\n").unwrap_or(part);
            parts.push(part.strip_suffix(b"\r").unwrap_or(part));
        }
        if closing || parts.len() >= MAX_PARTS {
            return parts;
        }
        open = Some(line_at);
    }
    // Cut off: the last part is what there is.
    parts.extend(open.map(|from| &body[from..]));
    parts
}

/// A parameter of a Content-Type value.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut rest = value;
    while let Some(at) = rest.find(';') {
        rest = rest[at + 1..].trim_start();
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let found = key.trim().eq_ignore_ascii_case(name);
        let text = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find('"').unwrap_or(quoted.len());
                rest = &quoted[end..];
                &quoted[..end]
            }
            None => {
                let end = after
                    .find(|c: char| c == ';' || c.is_whitespace())
                    .unwrap_or(after.len());
                rest = &after[end..];
                &after[..end]
            }
        };
        if found {
            return (!text.is_empty()).then(|| text.to_owned());
        }
    }
    None
}

/// Whether a text may have status fields in it, as reports without MIME do.
fn mentions_recipient(body: &[u8]) -> bool {
    body.split(|b| *b == b'\n').any(|line| {
        line.get(..16)
            .is_some_and(|l| l.eq_ignore_ascii_case(b"Final-Recipient:"))
    })
}

/// Reads blocks of fields: the one about the message, then one for each recipient.
fn read_status(body: &[u8]) -> Option<Report> {
    let mut report = Report::default();
    let mut rest = body;
    while !rest.is_empty() && report.recipients.len() < MAX_RECIPIENTS {
        let end = find_end(rest).unwrap_or(rest.len());
        let block = HeaderBlock::parse(&rest[..end]);
        rest = &rest[end..];
        let text = |name| block.get(name).filter(|v| !v.is_empty());
        let date = |name| text(name).and_then(read_date);
        if report.reporting_mta.is_none() {
            report.reporting_mta = text("reporting-mta").map(|v| typed(v).1.to_owned());
        }
        if report.envelope_id.is_none() {
            report.envelope_id = text("original-envelope-id").map(str::to_owned);
        }
        report.arrival = report.arrival.or_else(|| date("arrival-date"));
        let status = text("status").and_then(read_status_code);
        let action = text("action")
            .and_then(read_action)
            .or_else(|| status.map(implied));
        let (original, address) = (
            text("original-recipient").map(read_address),
            text("final-recipient").map(read_address),
        );
        let (Some(action), true) = (action, original.is_some() || address.is_some()) else {
            continue;
        };
        report.recipients.push(ReportRecipient {
            original,
            address,
            action,
            status,
            remote_mta: text("remote-mta").map(|v| typed(v).1.to_owned()),
            diagnostic: text("diagnostic-code").map(|v| {
                let (kind, text) = typed(v);
                Diagnostic {
                    kind: kind.to_ascii_lowercase(),
                    text: text.to_owned(),
                }
            }),
            last_attempt: date("last-attempt-date"),
            will_retry_until: date("will-retry-until"),
        });
    }
    (!report.recipients.is_empty()).then_some(report)
}

/// `type; text`; the type is an atom, so a semicolon within a text without type is left alone.
fn typed(value: &str) -> (&str, &str) {
    match value.split_once(';') {
        Some((kind, text))
            if !kind.trim().is_empty()
                && kind
                    .trim()
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
        {
            (kind.trim(), text.trim())
        }
        _ => ("", value.trim()),
    }
}

fn read_address(value: &str) -> TypedAddress {
    let (kind, address) = typed(value);
    let kind = if kind.is_empty() { "rfc822" } else { kind }.to_ascii_lowercase();
    let address = address
        .strip_prefix('<')
        .and_then(|a| a.strip_suffix('>'))
        .unwrap_or(address);
    let address = match kind.as_str() {
        // The form as it is has no escapes, and may have what they forbid.
        "utf-8" => xtext::decode_utf8(address).unwrap_or_else(|_| address.to_owned()),
        _ => address.to_owned(),
    };
    TypedAddress { kind, address }
}

fn read_status_code(value: &str) -> Option<Enhanced> {
    value
        .split(|c: char| c.is_whitespace() || c == '(')
        .next()?
        .parse()
        .ok()
}

fn read_action(value: &str) -> Option<Action> {
    let word = value.split(|c: char| !c.is_ascii_alphabetic()).next()?;
    match word.to_ascii_lowercase().as_str() {
        "failed" | "failure" => Some(Action::Failed),
        "delayed" => Some(Action::Delayed),
        "delivered" => Some(Action::Delivered),
        "relayed" => Some(Action::Relayed),
        "expanded" => Some(Action::Expanded),
        _ => None,
    }
}

/// What a status without an action amounts to.
fn implied(status: Enhanced) -> Action {
    match status.class {
        2 => Action::Delivered,
        4 => Action::Delayed,
        _ => Action::Failed,
    }
}

fn read_date(value: &str) -> Option<Timestamp> {
    let value = value.split('(').next().unwrap_or(value).trim();
    jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(value)
        .ok()
        .map(|t| Timestamp::from_millis(t.as_millisecond()))
}
