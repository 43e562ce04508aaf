//! The cases of a test, as people write them: JSON with defaults for all that a case is not
//! about, or a message as it is in a mailbox.

mod events;
mod lanes;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tidegate_mail::header::{HeaderBlock, find_end};
use tidegate_mail::{
    Address, Enhanced, Envelope, MessageId, Recipient, Reply, Timestamp, TrafficClass,
};
use tidegate_queue::route::{Occasion, Question};
use tidegate_queue::shape::LaneState;
use tidegate_queue::{EventRecord, Origin};

use self::events::EventsText;
use self::lanes::LanesText;
use super::expect;
use crate::worlds::World;

/// The time of a case that names none: Tuesday, 2026-03-03, 10:00 UTC. Fixed, so that an
/// answer does not depend on when it is asked for.
const NOW: Timestamp = Timestamp::from_secs(1_772_532_000);
const TENANT: &str = "acme";

/// One question, and what the answer is to be.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub(super) input: Input,
    expected: Option<Value>,
}

#[derive(Clone, Debug)]
pub(super) enum Input {
    Message(Box<Question>),
    Lanes {
        now: Timestamp,
        lanes: Vec<LaneState>,
    },
    Events(Vec<EventRecord>),
}

/// What the tenant of the cases may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grants {
    /// Names of relays.
    pub relays: Vec<String>,
    /// Names of its own servers, for passthrough.
    pub servers: Vec<String>,
}

impl Grants {
    /// Reads `{"relays": [...], "servers": [...]}`.
    ///
    /// # Errors
    /// In words, with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }
}

impl Case {
    /// Reads a case, or a list of them, for a policy of that world.
    ///
    /// # Errors
    /// In words that name the field, with line and column.
    pub fn parse(world: World, name: &str, text: &str) -> Result<Vec<Case>, String> {
        let parts: Vec<&serde_json::value::RawValue> = if text.trim_start().starts_with('[') {
            serde_json::from_str(text).map_err(|e| e.to_string())?
        } else {
            vec![serde_json::from_str(text).map_err(|e| e.to_string())?]
        };
        let many = parts.len() > 1;
        parts
            .into_iter()
            .enumerate()
            .map(|(n, part)| {
                let name = if many {
                    format!("{name}#{}", n + 1)
                } else {
                    name.to_owned()
                };
                Case::one(world, &name, part.get())
            })
            .collect()
    }

    fn one(world: World, name: &str, text: &str) -> Result<Case, String> {
        fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
            serde_json::from_str(text).map_err(|e| e.to_string())
        }
        let (own_name, expected, input) = match world {
            World::RoutingPolicy => {
                let m: MessageText = read(text)?;
                let expected = m.expect.clone();
                (m.name.clone(), expected, m.question()?)
            }
            World::ShapingPolicy => {
                let l: LanesText = read(text)?;
                let now = instant("now", l.now.as_ref())?.unwrap_or(NOW);
                let lanes = l
                    .lanes
                    .into_iter()
                    .map(|lane| lane.state(now))
                    .collect::<Result<_, _>>()?;
                (l.name, l.expect, Input::Lanes { now, lanes })
            }
            World::LogExporter => {
                let e: EventsText = read(text)?;
                let events = e
                    .events
                    .into_iter()
                    .enumerate()
                    .map(|(n, event)| event.record(n as u64 + 1))
                    .collect::<Result<_, _>>()?;
                (e.name, e.expect, Input::Events(events))
            }
        };
        Ok(Case {
            name: own_name.unwrap_or_else(|| name.to_owned()),
            input,
            expected,
        })
    }

    /// A message as it is in a mailbox; its envelope is taken from Return-Path or From,
    /// and from Delivered-To, X-Original-To or To and Cc.
    ///
    /// # Errors
    /// When there is no usable recipient.
    pub fn of_message(name: &str, bytes: &[u8]) -> Result<Case, String> {
        let end = find_end(bytes).unwrap_or(bytes.len());
        let block = HeaderBlock::parse(&bytes[..end]);
        let first = |names: &[&str]| -> Vec<Address> {
            names
                .iter()
                .map(|name| block.all(name).flat_map(addresses).collect::<Vec<_>>())
                .find(|found| !found.is_empty())
                .unwrap_or_default()
        };
        let mut recipients = first(&["delivered-to", "x-original-to"]);
        if recipients.is_empty() {
            recipients = ["to", "cc"]
                .iter()
                .flat_map(|name| block.all(name).flat_map(addresses))
                .collect();
        }
        if recipients.is_empty() {
            return Err(
                "no recipient: it has no Delivered-To, X-Original-To, To or Cc with an address"
                    .to_owned(),
            );
        }
        let class = if block.is_bulk() {
            TrafficClass::Bulk
        } else {
            TrafficClass::Transactional
        };
        let question = question(Parts {
            tenant: TENANT.to_owned(),
            sender: first(&["return-path", "from"]).into_iter().next(),
            recipients,
            headers: block
                .fields()
                .iter()
                .map(|f| (f.name.clone(), f.value.clone()))
                .collect(),
            size: bytes.len() as u64,
            class,
            received: NOW,
            now: NOW,
            origin: None,
            facts: Vec::new(),
            occasion: Occasion::Submitted,
            id: MessageId::from_i64(1),
        });
        Ok(Case {
            name: name.to_owned(),
            input: Input::Message(Box::new(question)),
            expected: None,
        })
    }

    pub(super) fn tenant(&self) -> &str {
        match &self.input {
            Input::Message(question) => &question.tenant,
            _ => TENANT,
        }
    }

    pub(super) fn problems(&self, answer: &Value) -> Vec<String> {
        expect::problems(self.expected.as_ref(), answer)
    }
}

/// The addresses of an address list: what is between angle brackets, or a word with an at
/// sign. Enough for the fields of real mail; a group's name or a comment is passed over.
fn addresses(value: &str) -> Vec<Address> {
    value
        .split([',', ';'])
        .filter_map(|part| {
            let inner = match (part.rfind('<'), part.rfind('>')) {
                (Some(open), Some(close)) if open < close => &part[open + 1..close],
                _ => part.split_whitespace().find(|word| word.contains('@'))?,
            };
            Address::parse(inner.trim()).ok()
        })
        .collect()
}

/// Milliseconds or RFC 3339.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum InstantText {
    Millis(i64),
    Text(String),
}

fn instant(at: &str, text: Option<&InstantText>) -> Result<Option<Timestamp>, String> {
    match text {
        None => Ok(None),
        // As in a record without a time.
        Some(InstantText::Millis(0)) => Ok(None),
        Some(InstantText::Millis(millis)) => Ok(Some(Timestamp::from_millis(*millis))),
        Some(InstantText::Text(text)) => match Timestamp::parse_rfc3339(text) {
            Some(instant) => Ok(Some(instant)),
            None => Err(format!(
                "{at}: {text:?} is not a time; write 2026-03-03T10:00:00Z, or milliseconds since 1970"
            )),
        },
    }
}

/// Names and values as an object, or as pairs where a name is repeated.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PairsText {
    Map(BTreeMap<String, String>),
    Pairs(Vec<(String, String)>),
}

impl PairsText {
    fn pairs(self) -> Vec<(String, String)> {
        match self {
            PairsText::Map(map) => map.into_iter().collect(),
            PairsText::Pairs(pairs) => pairs,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyText {
    code: u16,
    #[serde(default)]
    enhanced: Option<String>,
    #[serde(default)]
    text: String,
}

/// A message as people write it; what a gateway records of a decision is of this form too.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageText {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    id: Option<MessageId>,
    #[serde(default)]
    tenant: Option<String>,
    /// Empty or left out: the null reverse-path.
    #[serde(default)]
    sender: String,
    recipients: Vec<String>,
    #[serde(default)]
    headers: Option<PairsText>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    class: TrafficClass,
    #[serde(default)]
    received: Option<InstantText>,
    #[serde(default)]
    now: Option<InstantText>,
    #[serde(default)]
    origin: Option<Origin>,
    #[serde(default)]
    facts: Option<PairsText>,
    /// The reply of the tenant's server, for the second question.
    #[serde(default)]
    passthrough_failed: Option<ReplyText>,
    #[serde(default)]
    expect: Option<Value>,
    /// What was decided then.
    #[serde(default, rename = "answer")]
    _answer: Option<serde::de::IgnoredAny>,
}

fn address(at: &str, text: &str) -> Result<Address, String> {
    Address::parse(text).map_err(|e| format!("{at}: {text:?} is not an address: {e}"))
}

fn enhanced(at: &str, text: Option<&str>) -> Result<Option<Enhanced>, String> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => match text.parse() {
            Ok(enhanced) => Ok(Some(enhanced)),
            Err(_) => Err(format!(
                "{at}: {text:?} is not an enhanced status code such as 4.7.1"
            )),
        },
    }
}

impl MessageText {
    fn question(self) -> Result<Input, String> {
        if self.recipients.is_empty() {
            return Err("recipients: at least one is needed".to_owned());
        }
        let received = instant("received", self.received.as_ref())?;
        let now = instant("now", self.now.as_ref())?
            .or(received)
            .unwrap_or(NOW);
        let occasion = match self.passthrough_failed {
            None => Occasion::Submitted,
            Some(r) => Occasion::PassthroughFailed(Reply {
                code: r.code,
                enhanced: enhanced("passthrough_failed.enhanced", r.enhanced.as_deref())?,
                text: r.text,
            }),
        };
        let sender = match self.sender.as_str() {
            "" | "<>" => None,
            text => Some(address("sender", text)?),
        };
        Ok(Input::Message(Box::new(question(Parts {
            tenant: self.tenant.unwrap_or_else(|| TENANT.to_owned()),
            sender,
            recipients: self
                .recipients
                .iter()
                .map(|text| address("recipients", text))
                .collect::<Result<_, _>>()?,
            headers: self.headers.map_or_else(Vec::new, PairsText::pairs),
            size: self.size.unwrap_or(5_000),
            class: self.class,
            received: received.unwrap_or(now),
            now,
            origin: self.origin,
            facts: self.facts.map_or_else(Vec::new, PairsText::pairs),
            occasion,
            id: self.id.unwrap_or(MessageId::from_i64(1)),
        }))))
    }
}

struct Parts {
    tenant: String,
    sender: Option<Address>,
    recipients: Vec<Address>,
    headers: Vec<(String, String)>,
    size: u64,
    class: TrafficClass,
    received: Timestamp,
    now: Timestamp,
    origin: Option<Origin>,
    facts: Vec<(String, String)>,
    occasion: Occasion,
    id: MessageId,
}

fn question(parts: Parts) -> Question {
    let origin = parts.origin.unwrap_or_else(|| Origin {
        via: "smtps".to_owned(),
        user: Some(format!("crm@{}", parts.tenant)),
        peer: Some("192.0.2.1".to_owned()),
        helo: "crm.example".to_owned(),
        tls: true,
    });
    let mut facts = vec![("class".to_owned(), parts.class.as_str().to_owned())];
    let given = ["class", "tenant"];
    facts.extend(
        parts
            .facts
            .into_iter()
            .filter(|(name, _)| !given.contains(&name.as_str())),
    );
    Question {
        occasion: parts.occasion,
        id: parts.id,
        tenant: parts.tenant.into(),
        envelope: Arc::new(Envelope {
            reverse_path: parts.sender,
            envid: None,
            ret: None,
            body: Default::default(),
            smtputf8: false,
            requiretls: false,
            tls_optional: false,
            recipients: parts
                .recipients
                .into_iter()
                .map(|address| Recipient {
                    address,
                    notify: Default::default(),
                    original: None,
                })
                .collect(),
        }),
        headers: parts.headers,
        size: parts.size,
        received: parts.received,
        now: parts.now,
        origin,
        class: parts.class,
        facts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let parse = |world, text: &str| Case::parse(world, "x", text).unwrap_err();
        let r = World::RoutingPolicy;
        assert!(parse(r, "{").contains("line 1"));
        assert!(parse(r, r#"{"recipients":["a@b.test"],"sendr":"x"}"#).contains("`sendr`"));
        assert!(parse(r, r#"{"recipients":[]}"#).contains("at least one"));
        assert!(parse(r, r#"{"recipients":["nobody"]}"#).contains("recipients: \"nobody\""));
        assert!(parse(r, r#"{"recipients":["a@b.test"],"now":"noon"}"#).contains("now: \"noon\""));
        assert!(parse(World::ShapingPolicy, "{}").contains("`lanes`"));
        let e = World::LogExporter;
        assert!(parse(e, r#"{"events":[{"kind":"eaten"}]}"#).contains("eaten"));
        assert!(parse(e, r#"{"events":[{"kind":"bounced","peer":"x"}]}"#).contains("events.peer"));
        assert!(
            Grants::parse(r#"{"relay":["eu"]}"#)
                .unwrap_err()
                .contains("`relay`")
        );
    }

    #[test]
    fn a_message_of_a_mailbox_has_an_envelope() {
        let case = Case::of_message(
            "m",
            b"Return-Path: <crm@acme.example>\r\nTo: Jane <jane@a.test>,\r\n bob@b.test (Bob)\r\nList-Id: x\r\nSubject: Hi\r\n\r\nbody",
        )
        .unwrap();
        let Input::Message(question) = &case.input else {
            panic!("{case:?}")
        };
        let all: Vec<&str> = question
            .envelope
            .recipients
            .iter()
            .map(|r| r.address.as_str())
            .collect();
        assert_eq!(all, ["jane@a.test", "bob@b.test"]);
        assert_eq!(question.class, TrafficClass::Bulk);
        assert!(Case::of_message("m", b"Subject: x\r\n\r\n").is_err());
    }

    #[test]
    fn a_recorded_decision_is_a_case() {
        let text = r#"{"id":"01jd3k5x0e0g0","tenant":"beta","sender":"","recipients":["a@b.test"],
            "headers":[["X-Campaign","spring"]],"size":7,"received":1772532000000,"now":1772532000001,
            "origin":{"via":"smtp"},"class":"bulk","facts":[["class","bulk"],["plan","gold"]],
            "passthrough_failed":{"code":451,"enhanced":"4.3.0","text":"busy"},
            "answer":{"actions":[],"of_recipient":[0],"cost_micros":9}}"#;
        let id = MessageId::from_i64(0x0123_4567_89ab_cdef).to_string();
        let text = text.replace("01jd3k5x0e0g0", &id);
        let case = Case::parse(World::RoutingPolicy, "r", &text)
            .unwrap()
            .remove(0);
        let Input::Message(question) = &case.input else {
            panic!("{case:?}")
        };
        assert_eq!(question.id.to_string(), id);
        assert_eq!(question.now, Timestamp::from_millis(1_772_532_000_001));
        assert!(matches!(&question.occasion, Occasion::PassthroughFailed(r) if r.code == 451));
        assert_eq!(question.facts.len(), 2, "{:?}", question.facts);
    }

    #[test]
    fn a_file_may_hold_a_list() {
        let cases = Case::parse(
            World::RoutingPolicy,
            "f",
            r#"[{"recipients":["a@b.test"]},{"name":"mine","recipients":["a@b.test"]}]"#,
        )
        .unwrap();
        assert_eq!(
            cases.iter().map(|c| &*c.name).collect::<Vec<_>>(),
            ["f#1", "mine"]
        );
    }
}
