//! Cases of an exporter: events with the names that the interface gives their fields.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tidegate_mail::event::Detail;
use tidegate_mail::{Event, EventKind, Hop, MessageId, Promise, TlsInfo, TrafficClass};
use tidegate_queue::{EventRecord, LogKeys};

use super::{InstantText, NOW, TENANT, enhanced, instant};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsText {
    #[serde(default)]
    pub name: Option<String>,
    pub events: Vec<EventText>,
    #[serde(default)]
    pub expect: Option<Value>,
}

/// An event with the names that the WIT package gives its fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventText {
    kind: EventKind,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    at: Option<InstantText>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    sender: Option<String>,
    #[serde(default)]
    recipient: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    message_id: Option<String>,
    #[serde(default)]
    record_id: Option<String>,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    attempt: Option<u32>,
    #[serde(default)]
    duration_ms: Option<u32>,
    #[serde(default)]
    site: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    peer: Option<String>,
    #[serde(default)]
    tls: Option<String>,
    #[serde(default)]
    code: Option<u16>,
    #[serde(default)]
    enhanced: Option<String>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    facts: BTreeMap<String, String>,
}

impl EventText {
    pub fn record(mut self, seq: u64) -> Result<EventRecord, String> {
        let at = instant("events.at", self.at.as_ref())?.unwrap_or(NOW);
        let message = match &self.message {
            None => MessageId::from_i64(1),
            Some(text) => text
                .parse()
                .map_err(|_| format!("events.message: {text:?} is not a queue id"))?,
        };
        let peer = match &self.peer {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                format!("events.peer: {text:?} is not an address with a port, such as 192.0.2.1:25")
            })?),
        };
        let hop =
            (self.host.is_some() || peer.is_some() || self.duration_ms.is_some()).then(|| {
                let tls = self.tls.as_deref().map(|tls| {
                    let (version, cipher) = tls.split_once(' ').unwrap_or((tls, ""));
                    TlsInfo {
                        version: version.to_owned(),
                        cipher: cipher.to_owned(),
                        verified: "none".to_owned(),
                    }
                });
                let took = self.duration_ms.unwrap_or(0);
                Hop {
                    host: self.host.clone(),
                    peer,
                    source: None,
                    tls_policy: None,
                    tls,
                    started: at.minus(Duration::from_millis(took.into())),
                    duration_ms: took,
                }
            });
        let promise = self.promise()?;
        Ok(EventRecord {
            seq: self.seq.unwrap_or(seq),
            event: Event {
                at,
                kind: self.kind,
                message,
                recipient: self.recipient.as_ref().map(|_| 0),
                detail: Detail {
                    attempt: self.attempt,
                    code: self.code,
                    status: enhanced("events.enhanced", self.enhanced.as_deref())?,
                    text: self.text,
                    hop,
                    site: self.site,
                    promise,
                    facts: self.facts.into_iter().collect(),
                    ..Detail::default()
                },
            },
            tenant: self.tenant.unwrap_or_else(|| TENANT.to_owned()),
            sender: self
                .sender
                .unwrap_or_else(|| format!("crm@{TENANT}.example")),
            recipient_address: self.recipient,
            size: self.size.unwrap_or(5_000),
            keys: LogKeys {
                message_id: self.message_id,
                record: self.record_id,
                subject: self.subject,
            },
        })
    }

    /// The facts that the host takes from the promise.
    fn promise(&mut self) -> Result<Option<Promise>, String> {
        let Some(relay) = self.facts.remove("relay") else {
            return Ok(None);
        };
        let class = match self.facts.remove("class").as_deref() {
            None | Some("transactional") => TrafficClass::Transactional,
            Some("bulk") => TrafficClass::Bulk,
            Some(other) => {
                return Err(format!(
                    "events.facts.class: {other:?} is neither transactional nor bulk"
                ));
            }
        };
        Ok(Some(Promise {
            class,
            relay,
            lane: self.facts.remove("lane"),
            priority: 0,
            lifetime_secs: self
                .facts
                .remove("lifetime")
                .and_then(|secs| secs.parse().ok())
                .unwrap_or(48 * 3600),
            delay_notice_secs: None,
            policy: None,
        }))
    }
}
