//! The second part of a notice, which programs read (RFC 3464, RFC 6533), and what it
//! reports about each recipient.

use super::fields::{Charset, encoding_of, exact, field, host_name};
use super::{Kind, Notice, NoticeRecipient};
use crate::{Address, End, Enhanced, Fault, Recipient, Reply, Stage, State, xtext};

/// The second part: what programs read (RFC 3464, RFC 6533).
pub(super) fn status_part(notice: &Notice<'_>, charset: Charset) -> String {
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
            // As it is, a reader would take its backslash for the begin of an escape.
            ("utf-8", Charset::Utf8) if original.address.contains('\\') => {
                xtext::encode_unitext(&original.address)
            }
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
pub(super) enum Diagnosis<'a> {
    /// The peer's own words.
    Smtp(&'a Reply),
    /// The words of a policy of this gateway.
    Refusal(&'a Reply),
    /// What the gateway found itself.
    Finding(&'static str),
}

/// What there is to report about a recipient.
pub(super) struct Facts<'a> {
    pub status: Enhanced,
    /// The server the diagnosis is about.
    pub host: Option<&'a str>,
    pub diagnosis: Diagnosis<'a>,
}

impl<'a> Facts<'a> {
    pub fn of(kind: Kind, recipient: &NoticeRecipient<'a>) -> Self {
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
            Some((reply, _)) if outcome.stage == Stage::Local && outcome.reply.is_some() => {
                (None, Diagnosis::Refusal(reply))
            }
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

pub(super) fn is_expired(recipient: &NoticeRecipient<'_>) -> bool {
    recipient.state.state == State::Done(End::Expired)
}

fn typed_address(address: &Address) -> String {
    let kind = if address.is_international() {
        "utf-8"
    } else {
        "rfc822"
    };
    format!("{kind}; {address}")
}
