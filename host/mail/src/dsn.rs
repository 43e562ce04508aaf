//! Delivery status notifications, RFC 3461, 3464, 6522, 6533, 3834.
//!
//! [`compose`] writes one notice for one message and one occasion; [`parse`] reads ours and
//! other systems'. Both are functions of values. Invariants of what is composed:
//!
//! - It is addressed to the reverse-path, which is an [`Address`] and so never null: a
//!   notice about a notice can't be written down.
//! - Nothing that a client, a header or a remote server wrote adds a field, a line or a MIME
//!   part: it is stripped of control characters, folded by us, and the boundary occurs in no part.
//! - Lines are CRLF-ended and at most 998 octets. It is ASCII unless an address or a returned
//!   original is not; then it needs 8BITMIME, and SMTPUTF8 only if the reverse-path is
//!   international.

mod compose;
mod fields;
mod parse;
mod returned;
mod sample;
mod status;
mod wording;

#[cfg(test)]
mod tests;

pub use compose::compose;
pub use parse::{Action, Diagnostic, Form, Report, ReportRecipient, TypedAddress, parse};
pub use sample::{Sample, sample};
pub use wording::{BadWording, KindText, Reasons, Texts, Wording};

use crate::{
    Address, BodyType, Envelope, MessageId, Notify, Owes, Recipient, RecipientState, Ret, Timestamp,
};

/// The occasion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not delivered, and not tried again.
    Failure,
    /// Not delivered yet.
    Delay,
    /// Relayed to a system that does not report deliveries.
    Success,
}

impl Kind {
    /// The notice that a debt asks for.
    pub fn of(owes: Owes) -> Option<Self> {
        match owes {
            Owes::None => None,
            Owes::Delay => Some(Kind::Delay),
            Owes::Failure => Some(Kind::Failure),
            Owes::Success => Some(Kind::Success),
        }
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

/// Everything a notice says.
#[derive(Clone, Debug)]
pub struct Notice<'a> {
    pub kind: Kind,
    /// Host name of this gateway: Reporting-MTA, and the domain of From and Message-ID.
    pub reporting_mta: &'a str,
    /// Queue id of the notice itself.
    pub id: MessageId,
    pub at: Timestamp,
    pub original: Original<'a>,
    /// Those concerned, in the order of the envelope.
    pub recipients: Vec<NoticeRecipient<'a>>,
    /// Largest original, in octets, that is returned whole; also bounds returned headers.
    pub return_limit: usize,
    pub wording: &'a Wording,
}

/// The message that the notice is about.
#[derive(Clone, Debug)]
pub struct Original<'a> {
    pub id: MessageId,
    pub reverse_path: &'a Address,
    /// Decoded, as in [`Envelope::envid`].
    pub envid: Option<&'a str>,
    pub ret: Option<Ret>,
    /// The time of acceptance.
    pub arrived: Timestamp,
    /// The Message-ID without angle brackets.
    pub message_id: Option<&'a str>,
    /// Decoded, as in [`crate::header::HeaderBlock::log_subject`].
    pub subject: Option<&'a str>,
    pub content: Content<'a>,
}

impl<'a> Original<'a> {
    /// `None` for a null reverse-path: there is nobody to notify.
    pub fn of(id: MessageId, envelope: &'a Envelope, arrived: Timestamp) -> Option<Self> {
        Some(Original {
            id,
            reverse_path: envelope.reverse_path.as_ref()?,
            envid: envelope.envid.as_deref(),
            ret: envelope.ret,
            arrived,
            message_id: None,
            subject: None,
            content: Content::Unavailable,
        })
    }
}

/// What of the original is at hand to be returned.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// The first bytes: at least the header block, as far as it is wanted.
    Head(&'a [u8]),
    /// All of it.
    Whole(&'a [u8]),
    /// It could not be read.
    Unavailable,
}

/// One recipient block.
#[derive(Clone, Copy, Debug)]
pub struct NoticeRecipient<'a> {
    pub recipient: &'a Recipient,
    /// As the transition left it that made the notice due.
    pub state: &'a RecipientState,
}

impl Notice<'_> {
    /// Whether [`compose`] can make use of [`Content::Whole`]: a failure, for
    /// which RET=FULL was asked, of a message within the limit.
    pub fn wants_whole(kind: Kind, ret: Option<Ret>, size: u64, return_limit: usize) -> bool {
        kind == Kind::Failure && ret == Some(Ret::Full) && size <= return_limit as u64
    }

    /// The envelope to send `content`, this notice, in: null reverse-path and
    /// NOTIFY=NEVER (RFC 3461 s. 6.1).
    pub fn envelope(&self, content: &[u8]) -> Envelope {
        let to = self.original.reverse_path;
        Envelope {
            reverse_path: None,
            envid: None,
            ret: None,
            body: if content.is_ascii() {
                BodyType::SevenBit
            } else {
                BodyType::EightBitMime
            },
            smtputf8: to.is_international(),
            requiretls: false,
            tls_optional: false,
            recipients: vec![Recipient {
                address: to.clone(),
                notify: Notify::Never,
                original: None,
            }],
        }
    }
}
