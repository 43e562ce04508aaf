//! Reading delivery reports: ours, and what other systems send.
//!
//! Lenient, because real reports are not all alike: a wrong or missing content type, fields in
//! another order, blocks without an empty line between them, or no fields at all, only a text
//! for people. Status fields are believed first; a text is read by the tables of [`rules`], and
//! only where the header says that the message is a report. Bounded and not recursive,
//! because anyone can send one. What a report says is a claim of its sender, no more.

mod parts;
mod rules;
mod status;
mod text;

use crate::header::HeaderBlock;
use crate::{Enhanced, Timestamp};
use parts::{Part, leaves};
use status::{mentions_recipient, read_status};

/// Octets of a message that are looked at.
const MAX_READ: usize = 4 * 1024 * 1024;
const MAX_RECIPIENTS: usize = 1000;

/// A delivery report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub form: Form,
    /// Name without its type.
    pub reporting_mta: Option<String>,
    pub envelope_id: Option<String>,
    pub arrival: Option<Timestamp>,
    /// Message-ID of the returned original, without angle brackets.
    pub message_id: Option<String>,
    /// At least one.
    pub recipients: Vec<ReportRecipient>,
}

/// What a report was read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Status fields of RFC 3464.
    #[default]
    Fields,
    /// Words for people. Action and status are our reading of them.
    Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRecipient {
    pub original: Option<TypedAddress>,
    /// Final-Recipient.
    pub address: Option<TypedAddress>,
    pub action: Action,
    /// As reported; where the report has no Status, what its words amount to.
    pub status: Option<Enhanced>,
    pub remote_mta: Option<String>,
    pub diagnostic: Option<Diagnostic>,
    pub last_attempt: Option<Timestamp>,
    pub will_retry_until: Option<Timestamp>,
}

impl ReportRecipient {
    /// The most telling status: many systems report `5.0.0` beside a diagnostic that
    /// says which it was.
    pub fn cause(&self) -> Option<Enhanced> {
        let general = |s: Enhanced| s.subject == 0 || s.detail == 0;
        match self.status {
            Some(status) if !general(status) => Some(status),
            reported => self
                .diagnostic
                .as_ref()
                .and_then(|d| text::enhanced_in(&d.text))
                .filter(|s| !general(*s))
                .or(reported),
        }
    }
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
    let header = HeaderBlock::parse(message);
    let parts = leaves(message);
    read(&header, &parts).or_else(|| {
        // A filter on the way may have wrapped the report in a message of its own.
        let wrapped = parts
            .iter()
            .find(|p| p.is_original() && rules::is_report(&header))?;
        let inner = wrapped.decoded();
        read(&HeaderBlock::parse(&inner), &leaves(&inner))
    })
}

fn read(header: &HeaderBlock, parts: &[Part<'_>]) -> Option<Report> {
    let fields = || {
        let mut all = parts
            .iter()
            .filter(|p| p.kind.ends_with("delivery-status"))
            .filter_map(|p| read_status(&p.decoded()));
        let mut report = all.next()?;
        report
            .recipients
            .extend(all.flat_map(|more| more.recipients));
        report.recipients.truncate(MAX_RECIPIENTS);
        Some(report)
    };
    let fields_in_text = || {
        parts
            .iter()
            .filter(|p| !p.is_original())
            .map(Part::decoded)
            .filter(|body| mentions_recipient(body))
            .find_map(|body| read_status(&body))
    };
    let mut report = match fields().or_else(fields_in_text) {
        Some(mut report) => {
            text::explain(parts, &mut report.recipients);
            report
        }
        None => text::read(header, parts)?,
    };
    let returned = parts.iter().filter(|p| p.is_original()).find_map(|p| {
        HeaderBlock::parse(&p.decoded())
            .message_id()
            .map(str::to_owned)
    });
    report.message_id = returned.or(report.message_id);
    Some(report)
}
