//! What systems write in reports that are meant for people. Tables of phrases in lower case;
//! each is compared with the beginning of a line's words unless it says otherwise.

use crate::Enhanced;
use crate::header::{HeaderBlock, decode_words};

/// Names that reports come from.
const SENDERS: &[&str] = &[
    "mailer-daemon",
    "mailer daemon",
    "postmaster",
    "post_master",
    "post.master",
    "mail deliver",
    "mail.delivery",
    "mailerdaemon",
    "mdaemon",
    "mail-daemon",
    "system administrator",
];

/// Words somewhere in their subjects.
const SUBJECTS: &[&str] = &[
    "undeliver",
    "undelivered",
    "not be delivered",
    "not delivered",
    "non remis",
    "unzustellbar",
    "failure notice",
    "delivery status notification",
    "delivery notification",
    "delivery status",
    "delivery fail",
    "delivery has failed",
    "delivery problem",
    "failed to deliver",
    "mail fail",
    "mail delivery",
    "mail system error",
    "returned mail",
    "returned to sender",
    "returning message to sender",
    "delayed mail",
    "delayed 24 hours",
    "could not send message",
    "warning: message",
    "error sending your mail",
    "\u{30a8}\u{30e9}\u{30fc}\u{901a}\u{77e5}",
];

/// Whether the header is that of a report: what it is, who it is from, or what it is called. A
/// null return path alone is no sign: holiday notices have it too.
pub(super) fn is_report(header: &HeaderBlock) -> bool {
    let has = |name: &str, words: &[&str]| {
        header.all(name).any(|value| {
            let value = decode_words(value).to_lowercase();
            words.iter().any(|w| value.contains(w))
        })
    };
    header.get("x-failed-recipients").is_some()
        || header.get("content-type").is_some_and(|t| {
            let t = t.to_ascii_lowercase();
            t.starts_with("multipart/report") && !t.contains("feedback-report")
        })
        || has("from", SENDERS)
        || (has("subject", SUBJECTS) && !is_passed_on(header))
}

/// Whether someone answered or forwarded it: then the words are not a system's.
fn is_passed_on(header: &HeaderBlock) -> bool {
    let subject = header.get("subject").unwrap_or("").trim_start();
    ["re:", "fw:", "fwd:", "aw:", "wg:"].iter().any(|p| {
        subject
            .get(..p.len())
            .is_some_and(|s| s.eq_ignore_ascii_case(p))
    })
}

/// Lines after which the returned original stands.
const ENDS: &[&str] = &[
    "below this line is a copy of",
    "below is a copy of",
    "this is a copy of",
    "here is a copy of",
    "included is a copy of",
    "a copy of the message",
    "the header of the original message",
    "the original message headers",
    "the original message follows",
    "the message headers of",
    "original message",
    "original mail as follows",
    "original mail follows",
    "message header follows",
    "message headers follow",
    "message text follows",
    "returned message",
    "returned mail follows",
    "return message",
    "undelivered message follows",
    "unsent message",
    "message contents",
    "start of the returned message",
    "begin message",
    "received:",
    "return-path:",
    "x-envelope-from:",
    "x-originating-ip:",
];

pub(super) fn ends(words: &str) -> bool {
    ENDS.iter().any(|e| words.starts_with(e))
}

/// Fields that a returned header begins with.
pub(super) const ORIGINAL_FIELDS: &[&str] = &[
    "received:",
    "return-path:",
    "from:",
    "to:",
    "subject:",
    "message-id:",
    "date:",
    "x-",
    "dkim-signature:",
    "mime-version:",
];

/// Where the returned original says who it went to, the most certain first.
pub(super) const ORIGINAL_RECIPIENT: &[&str] = &["x-envelope-to", "delivered-to", "to"];

/// Anywhere in a line: those concerned are named behind it or in the lines below.
const OPENINGS: &[&str] = &[
    "following address",
    "following recipient",
    "following mail address",
    "following email address",
    "following list of recipients",
    "addresses had permanent",
    "addresses had delivery",
    "addresses had transient",
    "addresses failed",
    "was not delivered to",
    "be delivered to:",
    "did not reach the following",
    "could not deliver the message to",
    "unable to deliver message to",
    "unable to deliver your message to",
    "unable to deliver mail to",
    "delivery failed for",
    "delivery to these recipients",
    "failed to these recipients",
    "returned permanent errors",
    "failure reasons",
    "an error occurred while trying to deliver",
    "could not be sent to",
    "destinataires suivants",
    "folgende empf\u{e4}nger",
    "folgenden empf\u{e4}nger",
];

/// The number of bytes up to the end of an opening in a line.
pub(super) fn opens(words: &str) -> Option<usize> {
    OPENINGS
        .iter()
        .find_map(|o| words.find(o).map(|at| at + o.len()))
}

/// What stands before an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A label of the report's own.
    Label,
    /// A command in a transcript.
    Command,
}

const LABELS: &[(Place, &str)] = &[
    (Place::Label, "recipient:"),
    (Place::Label, "recipients:"),
    (Place::Label, "recipient address:"),
    (Place::Label, "recipient's address:"),
    (Place::Label, "original recipient:"),
    (Place::Label, "final recipient:"),
    (Place::Label, "failed recipient:"),
    (Place::Label, "intended recipient:"),
    (Place::Label, "addressed to:"),
    (Place::Label, "could not be delivered to:"),
    (Place::Label, "could not deliver message to:"),
    (Place::Label, "delivery failed:"),
    (Place::Label, "delivery to"),
    (Place::Label, "unknown user:"),
    (Place::Label, "user mailbox exceeds allowed size:"),
    (Place::Label, "unknown local user:"),
    (Place::Label, "invalid final delivery userid:"),
    (Place::Label, "undeliverable to"),
    (Place::Label, "undeliverable message to"),
    (Place::Label, "your message to"),
    (Place::Label, "your mail to"),
    (Place::Label, "message to"),
    (Place::Label, "mail to"),
    (Place::Label, "failed to deliver to"),
    (Place::Label, "envelope-to:"),
    (Place::Command, "rcpt to:"),
    (Place::Command, "rcpt to "),
    (Place::Command, "sent <<< rcpt to:"),
];

/// The number of bytes of a label that the line begins with.
pub(super) fn label(words: &str, place: Place) -> Option<usize> {
    LABELS
        .iter()
        .filter(|(p, _)| *p == place)
        .find(|(_, l)| words.starts_with(l))
        .map(|(_, l)| l.len())
}

/// Whether a label is about who wrote, not who was written to.
pub(super) fn names_sender(label: &str) -> bool {
    [
        "from",
        "sender",
        "reply-to",
        "contact",
        "subject",
        "message-id",
    ]
    .iter()
    .any(|s| label.trim_end().ends_with(s))
}

/// Anywhere in a line: it is still being tried.
const DELAYS: &[&str] = &[
    "will be retried",
    "will retry",
    "will keep trying",
    "will continue to be",
    "continue trying",
    "continue to try",
    "not yet been delivered",
    "not been delivered yet",
    "has not been delivered to the intended",
    "delivery attempts will continue",
    "temporarily delayed",
    "has been delayed",
    "was delayed",
    "delivery delayed",
    "delayed mail",
    "(delay)",
    "warning message only",
    "do not need to resend",
];

pub(super) fn is_delay(words: &str) -> bool {
    DELAYS.iter().any(|d| words.contains(d))
}

/// HTML elements that end a line.
pub(super) const BLOCK_TAGS: &[&str] =
    &["br", "p", "div", "tr", "td", "li", "h1", "h2", "h3", "pre"];

/// Phrases for a cause, where neither an enhanced code nor anything better is said. The first
/// that occurs counts.
const CAUSES: &[(&str, u8, u16, u16)] = &[
    ("mailbox full", 5, 2, 2),
    ("mailbox is full", 5, 2, 2),
    ("mailfolder is full", 5, 2, 2),
    ("over quota", 5, 2, 2),
    ("quota exceeded", 5, 2, 2),
    ("exceeded storage", 5, 2, 2),
    ("exceeds allowed size", 5, 2, 2),
    ("exceeded the local limit", 5, 2, 2),
    ("mail size limit exceeded", 5, 3, 4),
    ("message too large", 5, 3, 4),
    ("message size exceeds", 5, 3, 4),
    ("message is too big", 5, 3, 4),
    ("user unknown", 5, 1, 1),
    ("unknown user", 5, 1, 1),
    ("no such user", 5, 1, 1),
    ("no mailbox here by that name", 5, 1, 1),
    ("unknown recipient", 5, 1, 1),
    ("recipient unknown", 5, 1, 1),
    ("recipient not found", 5, 1, 1),
    ("invalid recipient", 5, 1, 1),
    ("recipient name is not recognized", 5, 1, 1),
    ("not listed in", 5, 1, 1),
    ("does not exist", 5, 1, 1),
    ("doesn't have a", 5, 1, 1),
    ("address rejected", 5, 1, 1),
    ("unrouteable address", 5, 1, 2),
    ("unrouteable mail domain", 5, 1, 2),
    ("host unknown", 5, 1, 2),
    ("couldn't find any host", 5, 1, 2),
    ("domain not found", 5, 1, 2),
    ("disabled", 5, 2, 1),
    ("suspended", 5, 2, 1),
    ("too many hops", 5, 4, 6),
    ("mail loop", 5, 4, 6),
    ("retry timeout exceeded", 4, 4, 7),
    ("retry time not reached", 4, 4, 7),
    ("message expired", 4, 4, 7),
    ("queue too long", 4, 4, 7),
    ("maximum time", 4, 4, 7),
    ("timed out", 4, 4, 1),
    ("timeout", 4, 4, 1),
    ("connection refused", 4, 4, 1),
    ("couldn't establish an smtp connection", 4, 4, 1),
    ("wasn't able to establish", 4, 4, 1),
    ("spam", 5, 7, 1),
    ("blocked", 5, 7, 1),
    ("relaying denied", 5, 7, 1),
    ("not permitted", 5, 7, 1),
    ("rejected", 5, 7, 1),
];

pub(super) fn cause(text: &str) -> Option<Enhanced> {
    CAUSES
        .iter()
        .find(|(phrase, ..)| text.contains(phrase))
        .map(|(_, class, subject, detail)| Enhanced::new(*class, *subject, *detail))
}
