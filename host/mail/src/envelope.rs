//! The envelope of RFC 5321 s. 2.3.1 with the parameters of RFC 3461, 6152, 6531, 8689.

use serde::{Deserialize, Serialize};

use crate::Address;

/// What MAIL and RCPT said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// `None` is the null reverse-path `<>`.
    pub reverse_path: Option<Address>,
    /// ENVID, xtext-decoded: printable US-ASCII, at most 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ret: Option<Ret>,
    #[serde(default)]
    pub body: BodyType,
    #[serde(default)]
    pub smtputf8: bool,
    #[serde(default)]
    pub requiretls: bool,
    /// The message says `TLS-Required: No`: the protection that recipients' domains ask for
    /// is not insisted on (RFC 8689 s. 5). Nothing beside `requiretls`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls_optional: bool,
    /// In the order of the RCPT commands; never empty once accepted.
    pub recipients: Vec<Recipient>,
}

impl Envelope {
    /// RET as it is honoured and passed on: a message with REQUIRETLS is never returned whole
    /// (RFC 8689 s. 5).
    pub fn effective_ret(&self) -> Option<Ret> {
        if self.requiretls {
            Some(Ret::Hdrs)
        } else {
            self.ret
        }
    }
}

/// One RCPT command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    pub address: Address,
    #[serde(default)]
    pub notify: Notify,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<OriginalRecipient>,
}

/// ORCPT, RFC 3461 s. 4.2: decoded from xtext; both parts free of control characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalRecipient {
    /// `rfc822` or `utf-8` as a rule.
    pub kind: String,
    pub address: String,
}

/// What a client asked for with the parameters of RFC 3461, as the log keeps it: RET and ENVID of
/// the message, NOTIFY and ORCPT of a recipient.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ret: Option<Ret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<OriginalRecipient>,
}

impl Asked {
    /// `None`: nothing.
    pub fn of_message(envelope: &Envelope) -> Option<Self> {
        (envelope.ret.is_some() || envelope.envid.is_some()).then(|| Asked {
            ret: envelope.ret,
            envid: envelope.envid.clone(),
            ..Asked::default()
        })
    }

    /// `None`: nothing.
    pub fn of_recipient(recipient: &Recipient) -> Option<Self> {
        let notify = (recipient.notify != Notify::Absent).then_some(recipient.notify);
        (notify.is_some() || recipient.original.is_some()).then(|| Asked {
            notify,
            original: recipient.original.clone(),
            ..Asked::default()
        })
    }
}

/// RET, RFC 3461 s. 4.3: how much of the message a failure notice returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ret {
    Full,
    Hdrs,
}

/// BODY, RFC 6152. BINARYMIME is not offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BodyType {
    #[default]
    SevenBit,
    EightBitMime,
}

/// NOTIFY, RFC 3461 s. 4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notify {
    /// The parameter was absent: failures are reported, delays may be.
    #[default]
    Absent,
    Never,
    On {
        success: bool,
        failure: bool,
        delay: bool,
    },
}

impl Notify {
    pub fn wants_failure(self) -> bool {
        match self {
            Notify::Absent => true,
            Notify::Never => false,
            Notify::On { failure, .. } => failure,
        }
    }

    /// Whether a delay may be reported; [`Notify::asks_delay`] tells that it was asked for.
    pub fn allows_delay(self) -> bool {
        match self {
            Notify::Absent => true,
            Notify::Never => false,
            Notify::On { delay, .. } => delay,
        }
    }

    pub fn asks_delay(self) -> bool {
        matches!(self, Notify::On { delay: true, .. })
    }

    pub fn wants_success(self) -> bool {
        matches!(self, Notify::On { success: true, .. })
    }
}
