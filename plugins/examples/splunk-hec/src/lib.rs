//! Events for Splunk's HTTP Event Collector (/services/collector/event): one JSON object each, one
//! after the other, for an index or for the token's default.

use serde::{Deserialize, Serialize};
use tidegate_guest::export::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// none: the token's default.
    index: Option<String>,
}

struct SplunkHec {
    index: Option<String>,
}

#[derive(Serialize)]
struct Entry<'a> {
    /// Seconds.
    time: f64,
    source: &'a str,
    sourcetype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<&'a str>,
    event: Told<'a>,
}

#[derive(Serialize)]
struct Told<'a> {
    seq: u64,
    kind: &'a str,
    message: &'a str,
    tenant: &'a str,
    sender: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enhanced: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

impl Exporter for SplunkHec {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config = if config.is_empty() { "{}" } else { config };
        let Config { index } =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        let index = index.filter(|index| !index.is_empty());
        let descriptor = Descriptor::new("splunk-hec", env!("CARGO_PKG_VERSION"));
        Ok((SplunkHec { index }, descriptor))
    }

    fn render(&self, batch: Vec<Event>) -> Result<Vec<Payload>, PolicyError> {
        let mut body = Vec::with_capacity(batch.len() * 512);
        for event in &batch {
            let entry = serde_json::to_vec(&self.entry(event))
                .map_err(|e| PolicyError::Broken(e.to_string()))?;
            body.extend_from_slice(&entry);
        }
        if body.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Payload::new("application/json", body)])
    }
}

impl SplunkHec {
    fn entry<'a>(&'a self, event: &'a Event) -> Entry<'a> {
        Entry {
            time: event.at as f64 / 1000.0,
            source: "tidegate",
            sourcetype: "tidegate:delivery",
            index: self.index.as_deref(),
            event: Told {
                seq: event.seq,
                kind: &event.kind,
                message: &event.message,
                tenant: &event.tenant,
                sender: &event.sender,
                recipient: event.recipient.as_deref(),
                record_id: event.record_id.as_deref(),
                subject: event.subject.as_deref(),
                host: event.host.as_deref(),
                enhanced: event.enhanced.as_deref(),
                text: event.text.as_deref(),
                code: event.code,
            },
        }
    }
}

tidegate_guest::log_exporter!(SplunkHec);
