//! What became of one recipient in one attempt.
//!
//! A refusal by the peer is data, not an error: it carries the stage, the whole
//! reply and our reading of it (`docs/semantics.md`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{Enhanced, Reply, Timestamp};

/// Where in the dialogue an outcome was determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Dns,
    Connect,
    Banner,
    Ehlo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// The reply to the final dot or the last BDAT chunk.
    Dot,
    /// Decided by the gateway itself, before or without a dialogue.
    Local,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Dns => "dns",
            Stage::Connect => "connect",
            Stage::Banner => "banner",
            Stage::Ehlo => "ehlo",
            Stage::StartTls => "starttls",
            Stage::Auth => "auth",
            Stage::Mail => "mail",
            Stage::Rcpt => "rcpt",
            Stage::Data => "data",
            Stage::Dot => "dot",
            Stage::Local => "local",
        }
    }
}

/// What the outcome means for the recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// 2xx after the data.
    Delivered,
    /// 5xx, or a permanent fault of our own finding.
    Permanent,
    /// 4xx or no answer: another attempt is due.
    Temporary,
    /// The data was sent but the final reply was lost: retried, and a duplicate is possible.
    Uncertain,
    /// Taken back before any command was sent for it: not an attempt.
    Withdrawn,
}

/// A failure the gateway found itself, without a reply of the peer to show for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// RFC 7505.
    NullMx,
    NoSuchDomain,
    /// Neither MX nor address records.
    NoAddress,
    DnsUnavailable,
    ConnectRefused,
    ConnectTimeout,
    Timeout,
    ConnectionLost,
    /// The peer's bytes were not SMTP.
    GarbledReply,
    TlsFailed,
    TlsRequired,
    TlsUntrusted,
    /// Bytes followed the STARTTLS reply in the clear.
    TlsInjection,
    /// The certificate matches none of the domain's TLSA records (RFC 7672).
    DaneMismatch,
    /// Whether there are TLSA records could not be learnt, so no connection is safe
    /// (RFC 7672 s. 2.1.2).
    DaneUnavailable,
    /// The host is not one of those that the domain's MTA-STS policy names (RFC 8461 s. 4.1).
    StsMismatch,
    AuthFailed,
    TooLarge,
    EightBitUnsupported,
    SmtpUtf8Unsupported,
    RequireTlsUnsupported,
    /// REQUIRETLS was asked for, and no authenticated TLS connection could be had.
    RequireTlsUnprotected,
    /// The best MX is this gateway.
    LoopsToSelf,
    /// A loopback or private address where that is not allowed.
    ForbiddenAddress,
    /// `mail` gave up after its lifetime.
    Expired,
    RelayUnavailable,
    /// It may be read another time.
    ContentUnreadable,
    /// What the store has is not what was accepted.
    ContentDamaged,
}

impl Fault {
    /// Whether the recipient can't be reached by trying again.
    pub fn is_permanent(self) -> bool {
        !matches!(
            self,
            Fault::DnsUnavailable
                | Fault::ConnectRefused
                | Fault::ConnectTimeout
                | Fault::Timeout
                | Fault::ConnectionLost
                | Fault::GarbledReply
                | Fault::TlsFailed
                | Fault::TlsRequired
                | Fault::TlsUntrusted
                | Fault::TlsInjection
                | Fault::DaneMismatch
                | Fault::DaneUnavailable
                | Fault::StsMismatch
                | Fault::AuthFailed
                | Fault::RelayUnavailable
                | Fault::ContentUnreadable
        )
    }

    /// The enhanced status code (RFC 3463, RFC 7505, RFC 6531, RFC 8689) it is reported under.
    pub fn status(self) -> Enhanced {
        let (class, subject, detail) = match self {
            Fault::NullMx => (5, 1, 10),
            Fault::NoSuchDomain => (5, 1, 2),
            Fault::NoAddress => (5, 4, 4),
            Fault::DnsUnavailable => (4, 4, 3),
            Fault::ConnectRefused | Fault::ConnectTimeout => (4, 4, 1),
            Fault::Timeout | Fault::ConnectionLost => (4, 4, 2),
            Fault::GarbledReply => (4, 5, 0),
            Fault::TlsFailed
            | Fault::TlsRequired
            | Fault::TlsUntrusted
            | Fault::TlsInjection
            | Fault::DaneMismatch
            | Fault::DaneUnavailable
            | Fault::StsMismatch => (4, 7, 5),
            Fault::AuthFailed => (4, 7, 8),
            Fault::TooLarge => (5, 3, 4),
            // "Conversion required but not supported": RFC 3463 s. 3.7 names this case.
            Fault::EightBitUnsupported => (5, 6, 3),
            Fault::SmtpUtf8Unsupported => (5, 6, 7),
            Fault::RequireTlsUnsupported => (5, 7, 30),
            Fault::RequireTlsUnprotected => (5, 7, 10),
            Fault::LoopsToSelf => (5, 4, 6),
            Fault::ForbiddenAddress => (5, 4, 6),
            Fault::Expired => (4, 4, 7),
            Fault::RelayUnavailable => (4, 3, 2),
            Fault::ContentUnreadable => (4, 3, 0),
            Fault::ContentDamaged => (5, 3, 0),
        };
        Enhanced::new(class, subject, detail)
    }

    /// One line for people.
    pub fn text(self) -> &'static str {
        match self {
            Fault::NullMx => "the domain does not accept mail (null MX)",
            Fault::NoSuchDomain => "the domain does not exist",
            Fault::NoAddress => "the domain has neither MX nor address records",
            Fault::DnsUnavailable => "the domain's DNS servers did not answer",
            Fault::ConnectRefused => "the server refused the connection",
            Fault::ConnectTimeout => "the server did not answer the connection",
            Fault::Timeout => "the server did not reply in time",
            Fault::ConnectionLost => "the server closed the connection",
            Fault::GarbledReply => "the server's reply was not SMTP",
            Fault::TlsFailed => "TLS could not be negotiated",
            Fault::TlsRequired => "TLS is required and the server does not offer it",
            Fault::TlsUntrusted => "the server's certificate could not be verified",
            Fault::TlsInjection => "unencrypted bytes followed the reply to STARTTLS",
            Fault::DaneMismatch => {
                "the server's certificate matches none of the domain's TLSA records (DANE)"
            }
            Fault::DaneUnavailable => {
                "whether the domain has TLSA records (DANE) could not be learnt"
            }
            Fault::StsMismatch => "the server is not one that the domain's MTA-STS policy names",
            Fault::AuthFailed => "the server refused the gateway's credentials",
            Fault::TooLarge => "the message is larger than the server accepts",
            Fault::EightBitUnsupported => "the server does not accept 8-bit content",
            Fault::SmtpUtf8Unsupported => "the server does not support internationalised addresses",
            Fault::RequireTlsUnsupported => {
                "the sender requires TLS along the way and the server does not support REQUIRETLS"
            }
            Fault::RequireTlsUnprotected => {
                "the sender requires TLS along the way and no authenticated TLS connection was possible"
            }
            Fault::LoopsToSelf => "the destination's mail server is this gateway",
            Fault::ForbiddenAddress => {
                "the destination's mail server has an address that is not allowed"
            }
            Fault::Expired => "delivery time expired",
            Fault::RelayUnavailable => "the relay is not available",
            Fault::ContentUnreadable => "the stored message could not be read",
            Fault::ContentDamaged => "the stored message was damaged on the gateway's disk",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// The result for one recipient of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub verdict: Verdict,
    pub stage: Stage,
    /// The peer's reply, sanitised and bounded; none where it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// What a DSN reports in `Status` (RFC 3464 s. 2.3.4).
    pub status: Enhanced,
    /// Detail for the operator: the TLS library's words, the errno.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Delivered to a hop that announced DSN, so the duty to report success went with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dsn_passed_on: bool,
}

impl Outcome {
    /// Reads a peer's reply at `stage`: the class of the basic code decides
    /// (RFC 5321 s. 4.2.1); an enhanced code of another class is not believed.
    pub fn from_reply(stage: Stage, reply: Reply) -> Self {
        let verdict = match reply.code {
            200..=299 => Verdict::Delivered,
            500..=599 => Verdict::Permanent,
            _ => Verdict::Temporary,
        };
        let status = reply.status();
        Outcome {
            verdict,
            stage,
            reply: Some(reply),
            fault: None,
            status,
            detail: None,
            dsn_passed_on: false,
        }
    }

    /// A failure of our own finding.
    pub fn from_fault(stage: Stage, fault: Fault) -> Self {
        Outcome {
            verdict: if fault.is_permanent() {
                Verdict::Permanent
            } else {
                Verdict::Temporary
            },
            stage,
            reply: None,
            fault: Some(fault),
            status: fault.status(),
            detail: None,
            dsn_passed_on: false,
        }
    }

    /// The final reply was lost after the data had been sent.
    pub fn uncertain(fault: Fault) -> Self {
        Outcome {
            verdict: Verdict::Uncertain,
            ..Outcome::from_fault(Stage::Dot, fault)
        }
    }

    /// A permanent reply taken as temporary, because a shaping policy knows it to be a limit in
    /// truth. The reply stays as it was given; `status` is of class 4, as a delay is reported.
    #[must_use]
    pub fn as_temporary(mut self) -> Self {
        self.verdict = Verdict::Temporary;
        self.status = Enhanced::new(4, self.status.subject, self.status.detail);
        self
    }

    /// Whether the verdict is another than the one that the reply's basic code has.
    pub fn is_reclassified(&self) -> bool {
        self.verdict == Verdict::Temporary
            && self
                .reply
                .as_ref()
                .is_some_and(|r| (500..600).contains(&r.code))
    }

    pub fn withdrawn() -> Self {
        Outcome {
            verdict: Verdict::Withdrawn,
            stage: Stage::Local,
            reply: None,
            fault: None,
            status: Enhanced::new(4, 0, 0),
            detail: None,
            dsn_passed_on: false,
        }
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// What a person reads: the peer's words, else ours.
    pub fn text(&self) -> String {
        match (&self.reply, self.fault) {
            (Some(reply), _) => reply.to_string(),
            (None, Some(fault)) => fault.text().to_owned(),
            (None, None) => "withdrawn".to_owned(),
        }
    }
}

/// With whom an attempt was made, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Name of the MX host or smarthost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsInfo>,
    /// What was demanded of the connection: `dane`, `mta-sts`, `mta-sts testing` or
    /// `requiretls`, with what there is to say about it; none: nothing (RFC 7435).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_policy: Option<String>,
    pub started: Timestamp,
    pub duration_ms: u32,
}

impl Hop {
    /// An attempt that ended before a peer was chosen.
    pub fn nowhere(started: Timestamp) -> Self {
        Hop {
            host: None,
            peer: None,
            source: None,
            tls: None,
            tls_policy: None,
            started,
            duration_ms: 0,
        }
    }
}

/// The protection of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsInfo {
    /// `TLSv1.3`
    pub version: String,
    pub cipher: String,
    /// What the certificate was checked against: `none`, `webpki`, `mta-sts`, `dane`.
    pub verified: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULTS: [(Fault, &str); 28] = [
        (Fault::NullMx, "5.1.10"),
        (Fault::NoSuchDomain, "5.1.2"),
        (Fault::NoAddress, "5.4.4"),
        (Fault::DnsUnavailable, "4.4.3"),
        (Fault::ConnectRefused, "4.4.1"),
        (Fault::ConnectTimeout, "4.4.1"),
        (Fault::Timeout, "4.4.2"),
        (Fault::ConnectionLost, "4.4.2"),
        (Fault::GarbledReply, "4.5.0"),
        (Fault::TlsFailed, "4.7.5"),
        (Fault::TlsRequired, "4.7.5"),
        (Fault::TlsUntrusted, "4.7.5"),
        (Fault::TlsInjection, "4.7.5"),
        (Fault::DaneMismatch, "4.7.5"),
        (Fault::DaneUnavailable, "4.7.5"),
        (Fault::StsMismatch, "4.7.5"),
        (Fault::AuthFailed, "4.7.8"),
        (Fault::TooLarge, "5.3.4"),
        (Fault::EightBitUnsupported, "5.6.3"),
        (Fault::SmtpUtf8Unsupported, "5.6.7"),
        (Fault::RequireTlsUnsupported, "5.7.30"),
        (Fault::RequireTlsUnprotected, "5.7.10"),
        (Fault::LoopsToSelf, "5.4.6"),
        (Fault::ForbiddenAddress, "5.4.6"),
        (Fault::Expired, "4.4.7"),
        (Fault::RelayUnavailable, "4.3.2"),
        (Fault::ContentUnreadable, "4.3.0"),
        (Fault::ContentDamaged, "5.3.0"),
    ];

    #[test]
    fn every_fault_has_its_status_and_verdict() {
        for (fault, status) in FAULTS {
            let outcome = Outcome::from_fault(Stage::Connect, fault);
            assert_eq!(outcome.status.to_string(), status, "{fault:?}");
            // Expiry alone ends a recipient under a transient status (RFC 3463 s. 3.5, X.4.7).
            let permanent = status.starts_with('5') || fault == Fault::Expired;
            let verdict = if permanent {
                Verdict::Permanent
            } else {
                Verdict::Temporary
            };
            assert_eq!(outcome.verdict, verdict, "{fault:?}");
            assert_eq!(outcome.text(), fault.text());
        }
    }

    #[test]
    fn the_basic_code_decides() {
        for (code, enhanced, verdict, status) in [
            (250, (2, 1, 5), Verdict::Delivered, "2.1.5"),
            (250, (5, 1, 1), Verdict::Delivered, "2.0.0"),
            (354, (2, 0, 0), Verdict::Temporary, "4.0.0"),
            (421, (4, 3, 2), Verdict::Temporary, "4.3.2"),
            (450, (5, 7, 1), Verdict::Temporary, "4.0.0"),
            (550, (5, 1, 1), Verdict::Permanent, "5.1.1"),
            (550, (4, 2, 2), Verdict::Permanent, "5.0.0"),
        ] {
            let (class, subject, detail) = enhanced;
            let reply = Reply::new(code, Enhanced::new(class, subject, detail), "text");
            let outcome = Outcome::from_reply(Stage::Rcpt, reply);
            assert_eq!(outcome.verdict, verdict, "{code}");
            assert_eq!(outcome.status.to_string(), status, "{code}");
        }
    }

    #[test]
    fn a_lost_final_reply_is_uncertain() {
        let outcome = Outcome::uncertain(Fault::Timeout);
        assert_eq!(
            (outcome.verdict, outcome.stage),
            (Verdict::Uncertain, Stage::Dot)
        );
        assert_eq!(outcome.status.to_string(), "4.4.2");
    }
}
