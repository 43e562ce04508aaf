//! A routing decision as it is recorded: what the policy was given, and what was answered.
//!
//! One JSON object, and in files one per line: the gateway keeps them for rehearsals and
//! hands them out for tests on an author's machine. There is no content in it, and of the
//! header only the fields that the policy declared. Written by hand, `sender` and
//! `recipients` are enough.

use std::sync::Arc;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use tidegate_mail::{Address, Envelope, MessageId, Recipient, Reply, Timestamp, TrafficClass};
use tidegate_queue::Origin;
use tidegate_queue::route::{self, AfterFailure, Occasion, Question, Routing};

use crate::prepare::hex;

/// What a routing policy was asked about a message, and the answer it gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// The queue id; which side of a canary a message is on follows from it.
    #[serde(default = "no_id")]
    pub id: MessageId,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// The reverse-path; empty: the null one.
    #[serde(default)]
    pub sender: String,
    pub recipients: Vec<String>,
    /// Declared header fields: name as written, value unfolded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Bytes of content.
    #[serde(default)]
    pub size: u64,
    /// Milliseconds since 1970: when the message came in, and what the policy was told of
    /// the time. 0: the time of the test.
    #[serde(default = "no_time")]
    pub received: Timestamp,
    #[serde(default = "no_time")]
    pub now: Timestamp,
    #[serde(default)]
    pub origin: Origin,
    /// The host's view of the traffic class.
    #[serde(default)]
    pub class: TrafficClass,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<(String, String)>,
    /// The reply of the tenant's server after which the policy was asked once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passthrough_failed: Option<Reply>,
    /// What was decided; left out in what is written by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// The answer for a whole message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// Hex digest of the revision that decided; `None`: built in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Set where a fallback decided, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The actions used, and for each recipient its position among them.
    pub actions: Vec<Action>,
    pub of_recipient: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<(String, String)>,
    /// Time of the call, microseconds.
    pub cost_micros: u32,
}

/// What is to be done with a recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Managed(Managed),
    Passthrough {
        server: String,
        after_failure: After,
    },
    Defer(Reply),
    Refuse(Reply),
}

/// What a policy varies of a managed recipient's promise; what is left out is the host's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Managed {
    pub class: TrafficClass,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_after: Option<u32>,
    /// Seconds; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify_delay_after: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum After {
    GiveUp,
    GiveUpAndNotify,
    ManagedRelay,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde asks for"
)]
fn is_zero(n: &i8) -> bool {
    *n == 0
}

fn no_id() -> MessageId {
    MessageId::from_i64(0)
}

fn no_time() -> Timestamp {
    Timestamp::from_millis(0)
}

/// A record that can't be asked about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct BadRecord {
    pub field: &'static str,
    pub reason: String,
}

impl Recorded {
    pub fn new(question: &Question, routing: Option<&Routing>) -> Self {
        let envelope = &question.envelope;
        Recorded {
            id: question.id,
            tenant: question.tenant.to_string(),
            sender: envelope
                .reverse_path
                .as_ref()
                .map_or_else(String::new, |a| a.as_str().to_owned()),
            recipients: envelope
                .recipients
                .iter()
                .map(|r| r.address.as_str().to_owned())
                .collect(),
            headers: question.headers.clone(),
            size: question.size,
            received: question.received,
            now: question.now,
            origin: question.origin.clone(),
            class: question.class,
            facts: question.facts.clone(),
            passthrough_failed: match &question.occasion {
                Occasion::PassthroughFailed(reply) => Some(reply.clone()),
                Occasion::Submitted | Occasion::Rehearsal => None,
            },
            answer: routing.map(Answer::from),
        }
    }

    /// The question again. `now` stands in for times that are not given.
    ///
    /// # Errors
    /// An address that is none, or no recipient.
    pub fn question(&self, now: Timestamp) -> Result<Question, BadRecord> {
        let parse = |field, text: &str| {
            Address::parse(text).map_err(|e| BadRecord {
                field,
                reason: format!("{text:?}: {e}"),
            })
        };
        if self.recipients.is_empty() {
            return Err(BadRecord {
                field: "recipients",
                reason: "none".to_owned(),
            });
        }
        let reverse_path = match self.sender.as_str() {
            "" => None,
            sender => Some(parse("sender", sender)?),
        };
        let recipients = self
            .recipients
            .iter()
            .map(|r| {
                Ok(Recipient {
                    address: parse("recipients", r)?,
                    notify: Default::default(),
                    original: None,
                })
            })
            .collect::<Result<Vec<_>, BadRecord>>()?;
        let or_now = |at: Timestamp| if at.as_millis() == 0 { now } else { at };
        Ok(Question {
            occasion: match &self.passthrough_failed {
                Some(reply) => Occasion::PassthroughFailed(reply.clone()),
                None => Occasion::Rehearsal,
            },
            id: self.id,
            tenant: self.tenant.as_str().into(),
            envelope: Arc::new(Envelope {
                reverse_path,
                envid: None,
                ret: None,
                body: Default::default(),
                smtputf8: false,
                requiretls: false,
                tls_optional: false,
                recipients,
            }),
            headers: self.headers.clone(),
            size: self.size,
            received: or_now(self.received),
            now: or_now(self.now),
            origin: self.origin.clone(),
            class: self.class,
            facts: self.facts.clone(),
        })
    }

    /// Replaces the local part of every address, also within header fields and other texts, and the
    /// user by a keyed hash: equal ones stay equal, domains stay as they are.
    pub fn hash_addresses(&mut self, key: &[u8]) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let hashed = |text: &str| hex(&hmac::sign(&key, text.as_bytes()).as_ref()[..8]);
        let hide = |address: &mut String| {
            if let Some((local, domain)) = address.rsplit_once('@') {
                *address = format!("{}@{domain}", hashed(local));
            }
        };
        hide(&mut self.sender);
        self.recipients.iter_mut().for_each(hide);
        let hide_within = |text: &mut String| *text = without_local_parts(text, hashed);
        for (_, value) in self.headers.iter_mut().chain(&mut self.facts) {
            hide_within(value);
        }
        if let Some(reply) = &mut self.passthrough_failed {
            hide_within(&mut reply.text);
        }
        if let Some(answer) = &mut self.answer {
            answer.tags.iter_mut().for_each(|(_, v)| hide_within(v));
            for action in &mut answer.actions {
                if let Action::Defer(reply) | Action::Refuse(reply) = action {
                    hide_within(&mut reply.text);
                }
            }
        }
        if let Some(user) = &mut self.origin.user {
            *user = hashed(user);
        }
    }
}

/// A text in which the local part of each address is replaced.
fn without_local_parts(text: &str, replaced: impl Fn(&str) -> String) -> String {
    let mut hidden = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('@') {
        let (other, local) = before.split_at(local_part(before));
        hidden.push_str(other);
        if !local.is_empty() {
            hidden.push_str(&replaced(local));
        }
        hidden.push('@');
        rest = after;
    }
    hidden.push_str(rest);
    hidden
}

/// Where the local part begins that the text ends with.
fn local_part(text: &str) -> usize {
    if let Some(quoted) = text.strip_suffix('"') {
        return quoted.rfind('"').unwrap_or(text.len());
    }
    // What RFC 5322 section 3.2.3 allows in a dot-atom, and RFC 6532 beside it.
    let outside = |c: char| !c.is_alphanumeric() && !"!#$%&'*+-/=?^_`{|}~.".contains(c);
    match text.char_indices().rev().find(|(_, c)| outside(*c)) {
        Some((at, c)) => at + c.len_utf8(),
        None => 0,
    }
}

impl From<&Routing> for Answer {
    fn from(routing: &Routing) -> Self {
        Answer {
            policy: routing.policy.as_deref().map(str::to_owned),
            fallback: routing.fallback.clone(),
            actions: routing.actions.iter().map(Action::from).collect(),
            of_recipient: routing.of_recipient.clone(),
            tags: routing.tags.clone(),
            cost_micros: routing.cost_micros,
        }
    }
}

impl Answer {
    /// The action of a recipient; `None` where the record is damaged.
    pub fn action(&self, recipient: usize) -> Option<&Action> {
        self.actions
            .get(*self.of_recipient.get(recipient)? as usize)
    }
}

impl From<&route::Action> for Action {
    fn from(action: &route::Action) -> Self {
        match action {
            route::Action::Managed(m) => Action::Managed(Managed {
                class: m.class,
                relay: m.relay.clone(),
                lane: m.lane.clone(),
                priority: m.priority,
                not_before: m.not_before,
                expire_after: m.expire_after_secs,
                notify_delay_after: m.delay_notice_secs,
            }),
            route::Action::Passthrough {
                server,
                after_failure,
            } => Action::Passthrough {
                server: server.clone(),
                after_failure: match after_failure {
                    AfterFailure::GiveUp => After::GiveUp,
                    AfterFailure::GiveUpAndNotify => After::GiveUpAndNotify,
                    AfterFailure::ManagedRelay => After::ManagedRelay,
                },
            },
            route::Action::Defer(reply) => Action::Defer(reply.clone()),
            route::Action::Refuse(reply) => Action::Refuse(reply.clone()),
        }
    }
}

/// In words, for comparisons: `managed bulk, relay eu, lane news`.
impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Action::Managed(m) => {
                write!(f, "managed {}", m.class.as_str())?;
                if let Some(relay) = &m.relay {
                    write!(f, ", relay {relay}")?;
                }
                if let Some(lane) = &m.lane {
                    write!(f, ", lane {lane}")?;
                }
                if m.priority != 0 {
                    write!(f, ", priority {}", m.priority)?;
                }
                if let Some(at) = m.not_before {
                    write!(f, ", not before {}", at.rfc3339())?;
                }
                if let Some(secs) = m.expire_after {
                    write!(f, ", retried for {secs} s")?;
                }
                match m.notify_delay_after {
                    Some(0) => f.write_str(", no delay notice"),
                    Some(secs) => write!(f, ", delay notice after {secs} s"),
                    None => Ok(()),
                }
            }
            Action::Passthrough {
                server,
                after_failure,
            } => {
                write!(f, "passthrough to {server}")?;
                f.write_str(match after_failure {
                    After::GiveUp => "",
                    After::GiveUpAndNotify => ", else give up and notify",
                    After::ManagedRelay => ", else managed",
                })
            }
            Action::Defer(reply) => write!(f, "defer {reply}"),
            Action::Refuse(reply) => write!(f, "refuse {reply}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_fields_are_enough_by_hand() {
        let line = r#"{"sender":"a@acme.example","recipients":["b@x.example"]}"#;
        let record: Recorded = serde_json::from_str(line).unwrap();
        let now = Timestamp::from_secs(1_795_489_500);
        let question = record.question(now).unwrap();
        assert_eq!(question.now, now);
        assert_eq!(question.envelope.recipients.len(), 1);
        for (line, field) in [
            (r#"{"recipients":[]}"#, "recipients"),
            (r#"{"recipients":["x y"]}"#, "recipients"),
            (
                r#"{"sender":"nobody@","recipients":["b@x.example"]}"#,
                "sender",
            ),
        ] {
            let record: Recorded = serde_json::from_str(line).unwrap();
            assert_eq!(record.question(now).unwrap_err().field, field);
        }
        assert!(serde_json::from_str::<Recorded>(r#"{"recipients":[],"color":1}"#).is_err());
    }

    #[test]
    fn what_was_asked_and_answered_comes_back_whole() {
        let line = r#"{"id":"0000000000000","tenant":"acme","sender":"a@acme.example",
            "recipients":["b@x.example","c@y.example"],"headers":[["X-Kind","invoice"]],"size":12,
            "received":5,"now":6,"origin":{"via":"smtps","helo":"crm","tls":true},"class":"bulk",
            "facts":[["class","bulk"]],
            "answer":{"policy":"ab","actions":[{"managed":{"class":"bulk","lane":"news"}},
            {"refuse":{"code":550,"enhanced":"5.7.1","text":"no"}}],"of_recipient":[0,1],"cost_micros":9}}"#;
        let record: Recorded = serde_json::from_str(line).unwrap();
        let again: Recorded =
            serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(record, again);
        let question = record.question(Timestamp::from_secs(1)).unwrap();
        let asked = Recorded {
            answer: None,
            ..record.clone()
        };
        assert_eq!(Recorded::new(&question, None), asked);
        let answer = record.answer.unwrap();
        assert_eq!(
            answer.action(0).unwrap().to_string(),
            "managed bulk, lane news"
        );
        assert_eq!(answer.action(1).unwrap().to_string(), "refuse 550 5.7.1 no");
        assert_eq!(answer.action(2), None);
    }

    #[test]
    fn hashed_addresses_stay_apart_and_keep_their_domains() {
        let line = r#"{"sender":"a@acme.example","recipients":["b@x.example","b@y.example","c@x.example"]}"#;
        let mut record: Recorded = serde_json::from_str(line).unwrap();
        record.hash_addresses(b"key");
        let local = |n: usize| record.recipients[n].split('@').next().unwrap();
        assert_eq!(local(0), local(1));
        assert_ne!(local(0), local(2));
        assert!(record.recipients[1].ends_with("@y.example"));
        assert!(!record.sender.starts_with("a@"));

        let line = r#"{"sender":"jane.doe@acme.example","recipients":["b@x.example"],
            "headers":[["From","Jane <jane.doe@acme.example>, \"jane doe\"@acme.example"],["X-Kind","news @ten"]],
            "passthrough_failed":{"code":550,"text":"<b@x.example>: unknown"},
            "answer":{"actions":[{"refuse":{"code":550,"text":"b@x.example is not"}}],"tags":[["to","b@x.example"]]}}"#;
        let mut letter: Recorded = serde_json::from_str(line).unwrap();
        letter.hash_addresses(b"key");
        let text = serde_json::to_string(&letter).unwrap();
        assert!(
            !text.contains("jane.doe") && !text.contains("jane doe"),
            "{text}"
        );
        assert!(!text.contains("b@x.example"), "{text}");
        // The same in the field as in the envelope.
        let from = format!("Jane <{}>, ", letter.sender);
        assert!(letter.headers[0].1.starts_with(&from), "{text}");
        assert_eq!(letter.headers[1].1, "news @ten");
        assert!(record.question(Timestamp::from_secs(1)).is_ok());
    }
}
