//! Status fields (RFC 3464), in the machine-readable part of a report or in a text.

use super::{Action, Diagnostic, Report, ReportRecipient, TypedAddress, text};
use crate::header::{Field, HeaderBlock, find_end};
use crate::{Enhanced, Timestamp, xtext};

const MAX_RECIPIENTS: usize = super::MAX_RECIPIENTS;

/// Whether a text may have status fields in it, as reports without MIME do.
pub(super) fn mentions_recipient(body: &[u8]) -> bool {
    body.split(|b| *b == b'\n').any(|line| {
        line.get(..16)
            .is_some_and(|l| l.eq_ignore_ascii_case(b"Final-Recipient:"))
    })
}

/// Reads blocks of fields: the one about the message, then one for each recipient.
pub(super) fn read_status(body: &[u8]) -> Option<Report> {
    let mut report = Report::default();
    let mut rest = body;
    while !rest.is_empty() && report.recipients.len() < MAX_RECIPIENTS {
        let end = find_end(rest).unwrap_or(rest.len());
        let block = HeaderBlock::parse(&rest[..end]);
        rest = &rest[end..];
        let about_all = Group(block.fields());
        if report.reporting_mta.is_none() {
            report.reporting_mta = about_all
                .text("reporting-mta")
                .map(|v| typed(v).1.to_owned());
        }
        if report.envelope_id.is_none() {
            report.envelope_id = about_all.text("original-envelope-id").map(str::to_owned);
        }
        report.arrival = report.arrival.or_else(|| about_all.date("arrival-date"));
        let room = MAX_RECIPIENTS - report.recipients.len();
        let groups = split(block.fields()).into_iter().take(room);
        report
            .recipients
            .extend(groups.filter_map(|g| g.recipient()));
    }
    (!report.recipients.is_empty()).then_some(report)
}

/// Cuts a block where a field comes again that a recipient has once: some systems leave the
/// empty lines out.
fn split(fields: &[Field]) -> Vec<Group<'_>> {
    const ONCE: [&str; 4] = ["final-recipient", "original-recipient", "action", "status"];
    let mut groups = Vec::new();
    let (mut from, mut seen) = (0, [false; 4]);
    for (at, field) in fields.iter().enumerate() {
        let Some(which) = ONCE.iter().position(|n| field.name.eq_ignore_ascii_case(n)) else {
            continue;
        };
        if std::mem::replace(&mut seen[which], true) {
            groups.push(Group(&fields[from..at]));
            (from, seen) = (at, [false; 4]);
            seen[which] = true;
        }
    }
    groups.push(Group(&fields[from..]));
    groups
}

/// The fields about one recipient, or about the message.
struct Group<'a>(&'a [Field]);

impl<'a> Group<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        let field = self.0.iter().find(|f| f.name.eq_ignore_ascii_case(name));
        field.map(|f| f.value.as_str()).filter(|v| !v.is_empty())
    }

    fn date(&self, name: &str) -> Option<Timestamp> {
        self.text(name).and_then(read_date)
    }

    fn recipient(&self) -> Option<ReportRecipient> {
        let diagnostic = self.text("diagnostic-code").map(|v| {
            let (kind, text) = typed(v);
            Diagnostic {
                kind: kind.to_ascii_lowercase(),
                text: text.to_owned(),
            }
        });
        let original = self.text("original-recipient").map(read_address);
        let address = self.text("final-recipient").map(read_address);
        let status = self.text("status").and_then(read_status_code);
        let said = || diagnostic.as_ref().and_then(|d| text::status_of(&d.text));
        let status = status.or_else(said);
        let action = self.text("action").and_then(read_action);
        let action = action.or_else(|| status.map(implied))?;
        (original.is_some() || address.is_some()).then(|| ReportRecipient {
            original,
            address,
            action,
            status,
            remote_mta: self.text("remote-mta").map(|v| typed(v).1.to_owned()),
            diagnostic,
            last_attempt: self.date("last-attempt-date"),
            will_retry_until: self.date("will-retry-until"),
        })
    }
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
        "delivered" | "deliverable" => Some(Action::Delivered),
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
