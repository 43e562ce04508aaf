//! The words of a notice: the text part that people read, in a tenant's language.
//!
//! Texts have placeholders: `{subject}`, `{arrived}`, `{until}`, `{id}`, `{host}`, `{contact}`;
//! [`Wording::check`] says which text knows which. One that a text does not know stays as it is.
//! What is filled in is never searched for placeholders again.

mod check;

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

pub use check::BadWording;

use crate::{Enhanced, Fault, Outcome};

type Text = Cow<'static, str>;

/// How a tenant's notices read. Every part has an English default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wording {
    /// BCP 47 tag of the texts, for Content-Language.
    pub language: Text,
    /// The name beside the MAILER-DAEMON address.
    pub from_name: Text,
    /// Whom to ask: an address, a number, a page. Left out where not given.
    pub contact: Option<String>,
    pub texts: Texts,
}

impl Default for Wording {
    fn default() -> Self {
        Wording {
            language: "en".into(),
            from_name: "Mail Delivery System".into(),
            contact: None,
            texts: Texts::default(),
        }
    }
}

/// Subject and paragraphs of one kind of notice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindText {
    /// Begins the Subject; the original subject follows after a colon.
    pub subject: Text,
    pub opening: Text,
    pub closing: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Texts {
    #[serde(deserialize_with = "failure")]
    pub failure: KindText,
    #[serde(deserialize_with = "delay")]
    pub delay: KindText,
    #[serde(deserialize_with = "success")]
    pub success: KindText,
    pub subject_label: Text,
    pub arrived_label: Text,
    pub id_label: Text,
    /// Before the last reply of a server: `{host}`.
    pub server_said: Text,
    /// The same where the server's name is not known.
    pub remote_said: Text,
    /// For a recipient given up at the end of its lifetime: `{until}`.
    pub expired: Text,
    /// For a recipient that waits: `{until}`.
    pub retried: Text,
    /// For a recipient whose message was passed on: `{host}`.
    pub relayed: Text,
    pub contact: Text,
    pub reasons: Reasons,
}

impl Default for Texts {
    fn default() -> Self {
        Texts {
            failure: KindText {
                subject: "Undelivered mail".into(),
                opening: "Your message could not be delivered to the recipients below. It will not be tried again for them.".into(),
                closing: "Correct the address or remove the cause, then send the message again.".into(),
            },
            delay: KindText {
                subject: "Delayed mail (still being retried)".into(),
                opening: "Your message has not been delivered yet to the recipients below. You need not send it again: delivery is still being tried.".into(),
                closing: "You will be told if it can't be delivered in the end.".into(),
            },
            success: KindText {
                subject: "Relayed mail".into(),
                opening: "Your message was passed on for the recipients below to a mail system that does not report deliveries. You may get no further notice.".into(),
                closing: "".into(),
            },
            subject_label: "Subject".into(),
            arrived_label: "Sent".into(),
            id_label: "Queue id".into(),
            server_said: "{host} said:".into(),
            remote_said: "The mail system said:".into(),
            expired: "It could not be delivered until {until}. The last problem:".into(),
            retried: "Delivery is tried until {until}.".into(),
            relayed: "Accepted by {host}.".into(),
            contact: "For help ask {contact} and name the queue id.".into(),
            reasons: Reasons::default(),
        }
    }
}

/// Some of the texts of one kind; the others are the default's.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KindPatch {
    subject: Option<Text>,
    opening: Option<Text>,
    closing: Option<Text>,
}

impl KindPatch {
    fn over(self, default: KindText) -> KindText {
        KindText {
            subject: self.subject.unwrap_or(default.subject),
            opening: self.opening.unwrap_or(default.opening),
            closing: self.closing.unwrap_or(default.closing),
        }
    }
}

fn failure<'de, D: Deserializer<'de>>(from: D) -> Result<KindText, D::Error> {
    Ok(KindPatch::deserialize(from)?.over(Texts::default().failure))
}

fn delay<'de, D: Deserializer<'de>>(from: D) -> Result<KindText, D::Error> {
    Ok(KindPatch::deserialize(from)?.over(Texts::default().delay))
}

fn success<'de, D: Deserializer<'de>>(from: D) -> Result<KindText, D::Error> {
    Ok(KindPatch::deserialize(from)?.over(Texts::default().success))
}

/// One sentence for each group of causes (RFC 3463), for someone who does not know SMTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reasons {
    pub mailbox_unknown: Text,
    pub mailbox_full: Text,
    pub mailbox_disabled: Text,
    pub domain_unknown: Text,
    pub domain_without_mail: Text,
    pub unreachable: Text,
    pub system: Text,
    pub routing: Text,
    pub too_large: Text,
    pub content: Text,
    pub international: Text,
    pub encryption: Text,
    pub rejected: Text,
    pub not_tried: Text,
    pub other: Text,
}

impl Default for Reasons {
    fn default() -> Self {
        Reasons {
            mailbox_unknown: "The recipient's mail system does not know this address. Check it for typing errors.".into(),
            mailbox_full: "The recipient's mailbox is full.".into(),
            mailbox_disabled: "The recipient's mailbox does not accept mail at present.".into(),
            domain_unknown: "The part after the @ is not the name of a mail domain that exists. Check it for typing errors.".into(),
            domain_without_mail: "The recipient's domain accepts no mail at all.".into(),
            unreachable: "The recipient's mail system can't be reached.".into(),
            system: "The recipient's mail system has a problem of its own.".into(),
            routing: "The recipient's domain is set up so that mail can't be delivered to it.".into(),
            too_large: "The message is larger than the recipient's mail system accepts.".into(),
            content: "The recipient's mail system can't process this kind of message.".into(),
            international: "The recipient's mail system does not support addresses with international characters.".into(),
            encryption: "No protected connection to the recipient's mail system was possible.".into(),
            rejected: "The recipient's mail system refused the message under its rules.".into(),
            not_tried: "The message has been waiting in the mail gateway and delivery was not attempted.".into(),
            other: "The recipient's mail system did not accept the message.".into(),
        }
    }
}

impl Reasons {
    /// The sentence for an outcome.
    pub fn of(&self, outcome: &Outcome) -> &str {
        let Enhanced {
            subject, detail, ..
        } = outcome.status;
        if let Some(fault) = outcome.fault {
            match fault {
                Fault::NoAddress => return &self.domain_unknown,
                Fault::LoopsToSelf | Fault::ForbiddenAddress => return &self.routing,
                Fault::TlsFailed
                | Fault::TlsRequired
                | Fault::TlsUntrusted
                | Fault::TlsInjection
                | Fault::DaneMismatch
                | Fault::DaneUnavailable
                | Fault::StsMismatch
                | Fault::RequireTlsUnsupported
                | Fault::RequireTlsUnprotected => return &self.encryption,
                _ => {}
            }
        }
        match (subject, detail) {
            (1, 10) => &self.domain_without_mail,
            (1, 2) => &self.domain_unknown,
            (1, 7 | 8) | (7, _) => &self.rejected,
            (1, _) => &self.mailbox_unknown,
            (2, 2) => &self.mailbox_full,
            (2, 3) | (3, 4) => &self.too_large,
            (2, _) => &self.mailbox_disabled,
            (3, _) | (4, 5) => &self.system,
            (4, 6) => &self.routing,
            (4, 1..=4) => &self.unreachable,
            (6, 7) => &self.international,
            (6, _) => &self.content,
            _ => &self.other,
        }
    }
}

/// `text` with each `{name}` replaced by its value.
pub(super) fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len() + 32);
    let mut rest = text;
    'next: while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        for (name, value) in values {
            let found = rest[1..]
                .strip_prefix(name)
                .and_then(|after| after.strip_prefix('}'));
            if let Some(after) = found {
                out.push_str(value);
                rest = after;
                continue 'next;
            }
        }
        out.push('{');
        rest = &rest[1..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reply, Stage};

    #[test]
    fn fills_placeholders_once() {
        let values = [("a", "{b}"), ("b", "x")];
        assert_eq!(fill("{a} {b} {c} {", &values), "{b} x {c} {");
        assert_eq!(fill("", &values), "");
    }

    #[test]
    fn a_tenant_may_give_some_texts_only() {
        let wording: Wording = serde_json::from_str(
            r#"{"language":"de","texts":{"contact":"Hilfe: {contact}","reasons":{"mailbox_full":"Das Postfach ist voll."}}}"#,
        )
        .unwrap();
        assert_eq!(wording.texts.contact, "Hilfe: {contact}");
        assert_eq!(wording.texts.reasons.mailbox_full, "Das Postfach ist voll.");
        assert_eq!(wording.texts.failure, Texts::default().failure);
        assert!(serde_json::from_str::<Wording>(r#"{"langauge":"de"}"#).is_err());
        let wording: Wording =
            serde_json::from_str(r#"{"texts":{"delay":{"opening":"Noch nicht."}}}"#).unwrap();
        assert_eq!(wording.texts.delay.opening, "Noch nicht.");
        assert_eq!(wording.texts.delay.subject, Texts::default().delay.subject);
        let wrong = r#"{"texts":{"delay":{"opning":"x"}}}"#;
        let error = serde_json::from_str::<Wording>(wrong).unwrap_err();
        assert!(error.to_string().contains("opning"), "{error}");
    }

    #[test]
    fn each_cause_has_its_sentence() {
        let reasons = Reasons::default();
        let said = |s, d| {
            let reply = Reply::new(550, Enhanced::new(5, s, d), "");
            reasons
                .of(&Outcome::from_reply(Stage::Rcpt, reply))
                .to_owned()
        };
        assert_eq!(said(1, 1), reasons.mailbox_unknown);
        assert_eq!(said(2, 2), reasons.mailbox_full);
        assert_eq!(said(7, 1), reasons.rejected);
        assert_eq!(said(0, 0), reasons.other);
        let found = |fault| {
            reasons
                .of(&Outcome::from_fault(Stage::Connect, fault))
                .to_owned()
        };
        assert_eq!(found(Fault::NullMx), reasons.domain_without_mail);
        assert_eq!(found(Fault::NoSuchDomain), reasons.domain_unknown);
        assert_eq!(found(Fault::NoAddress), reasons.domain_unknown);
        assert_eq!(found(Fault::ConnectTimeout), reasons.unreachable);
        assert_eq!(found(Fault::DnsUnavailable), reasons.unreachable);
        assert_eq!(found(Fault::TlsUntrusted), reasons.encryption);
        assert_eq!(found(Fault::TooLarge), reasons.too_large);
        assert_eq!(found(Fault::SmtpUtf8Unsupported), reasons.international);
        assert_eq!(found(Fault::LoopsToSelf), reasons.routing);
    }
}
