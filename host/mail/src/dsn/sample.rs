//! Notices about a mail that never was: what a wording looks like before it is taken into use.

use super::compose::{subject, text};
use super::{Content, Kind, Notice, NoticeRecipient, Original, Wording, compose};
use crate::recipient::LastAttempt;
use crate::{
    Address, AddressError, End, Enhanced, Fault, MessageId, Notify, Outcome, Owes, Recipient,
    RecipientState, Reply, Stage, State, Timestamp,
};

const ORIGINAL: &[u8] = b"From: Sales <sales@crm.example>\r\nTo: ann@customer.example\r\n\
Subject: Invoice 4711\r\nMessage-ID: <4711@crm.example>\r\n\r\n";

const HOUR: i64 = 3600 * 1000;

/// A notice as its reader will see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub subject: String,
    /// The text for people, with CRLF line ends.
    pub text: String,
    /// All of it, as it would be sent.
    pub message: Vec<u8>,
}

/// A notice of that kind in this wording, as the gateway would send it: to two recipients, one of
/// them refused by its server and one that could not be reached.
///
/// # Errors
/// Never in truth: the addresses are constants.
pub fn sample(
    kind: Kind,
    wording: &Wording,
    reporting_mta: &str,
    at: Timestamp,
) -> Result<Sample, AddressError> {
    let after = match kind {
        Kind::Failure => 48 * HOUR,
        Kind::Delay => 4 * HOUR,
        Kind::Success => 2000,
    };
    let arrived = Timestamp::from_millis(at.as_millis() - after);
    let (host, refused) = ("mx.customer.example", "no such mailbox");
    let said =
        |code, status, text: &str| Outcome::from_reply(Stage::Rcpt, Reply::new(code, status, text));
    let outcomes = match kind {
        Kind::Failure => [
            (
                State::Done(End::Bounced),
                said(550, Enhanced::new(5, 1, 1), refused),
            ),
            (
                State::Done(End::Expired),
                Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout),
            ),
        ],
        Kind::Delay => [
            (
                State::Waiting { due: at },
                said(452, Enhanced::new(4, 2, 2), "mailbox full, try later"),
            ),
            (
                State::Waiting { due: at },
                Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout),
            ),
        ],
        Kind::Success => [
            (
                State::Done(End::Sent),
                said(250, Enhanced::new(2, 0, 0), "taken"),
            ),
            (
                State::Done(End::Sent),
                said(250, Enhanced::new(2, 0, 0), "taken"),
            ),
        ],
    };
    let mut recipients = Vec::with_capacity(2);
    for ((state, outcome), address) in outcomes
        .into_iter()
        .zip(["ann@customer.example", "bob@partner.example"])
    {
        let recipient = Recipient {
            address: Address::parse(address)?,
            notify: Notify::Absent,
            original: None,
        };
        let answered = outcome.reply.is_some();
        let state = RecipientState {
            state,
            attempts: 3,
            accepted_at: arrived,
            expires_at: Timestamp::from_millis(arrived.as_millis() + 48 * HOUR),
            owes: Owes::None,
            delay_reported: false,
            last: Some(LastAttempt {
                at,
                host: answered.then(|| host.to_owned()),
                outcome,
                heard: None,
            }),
        };
        recipients.push((recipient, state));
    }
    let sender = Address::parse("sales@crm.example")?;
    // Queue ids grow with time.
    let id = |at: Timestamp| crate::IdSource::new(0).next(at);
    let notice = Notice {
        kind,
        reporting_mta,
        id: id(at),
        at,
        original: Original {
            id: MessageId::from_i64(id(arrived).as_i64()),
            reverse_path: &sender,
            envid: None,
            ret: None,
            arrived,
            message_id: Some("4711@crm.example"),
            subject: Some("Invoice 4711"),
            content: Content::Head(ORIGINAL),
        },
        recipients: recipients
            .iter()
            .map(|(recipient, state)| NoticeRecipient { recipient, state })
            .collect(),
        return_limit: ORIGINAL.len(),
        wording,
    };
    Ok(Sample {
        subject: subject(&notice),
        text: text(&notice),
        message: compose(&notice),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Action, parse};
    use super::*;

    #[test]
    fn each_kind_has_a_sample_that_reads_back() {
        let mut wording = Wording {
            contact: Some("help@crm.example".to_owned()),
            ..Wording::default()
        };
        wording.texts.failure.opening = "Nicht zugestellt: {subject}".into();
        for (kind, action) in [
            (Kind::Failure, Action::Failed),
            (Kind::Delay, Action::Delayed),
            (Kind::Success, Action::Relayed),
        ] {
            let at = Timestamp::from_secs(1_795_489_500);
            let sample = sample(kind, &wording, "gate.example", at).unwrap();
            let report = parse(&sample.message).unwrap();
            assert_eq!(report.recipients.len(), 2);
            assert!(report.recipients.iter().all(|r| r.action == action));
            assert!(sample.subject.ends_with(": Invoice 4711"));
            let text = sample.text;
            assert!(text.contains("help@crm.example"), "{text}");
            let german = "Nicht zugestellt: Invoice 4711";
            assert_eq!(text.contains(german), kind == Kind::Failure);
        }
    }
}
