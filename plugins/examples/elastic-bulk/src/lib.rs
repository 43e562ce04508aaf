//! Events for the bulk API of Elasticsearch and OpenSearch: an action line and a document for
//! each. The document's id is the event's number, so a batch that is sent twice is stored once.

use serde::{Deserialize, Serialize};
use tidegate_guest::export::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Index or data stream.
    #[serde(default)]
    index: String,
}

struct ElasticBulk {
    index: String,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "@timestamp")]
    at: u64,
    #[serde(rename = "event.action")]
    kind: &'a str,
    #[serde(rename = "event.sequence")]
    seq: u64,
    #[serde(rename = "organization.id")]
    tenant: &'a str,
    #[serde(rename = "email.local_id")]
    message: &'a str,
    #[serde(rename = "email.message_id", skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a str>,
    #[serde(rename = "email.from.address")]
    sender: &'a str,
    #[serde(rename = "email.to.address", skip_serializing_if = "Option::is_none")]
    recipient: Option<&'a str>,
    #[serde(rename = "email.subject", skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(rename = "destination.domain", skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(rename = "smtp.code", skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    #[serde(rename = "smtp.enhanced", skip_serializing_if = "Option::is_none")]
    enhanced: Option<&'a str>,
    #[serde(rename = "message", skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

impl Exporter for ElasticBulk {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if config.index.is_empty() || !config.index.chars().all(plain) {
            return Err(
                "index: write the name of an index: lower-case letters, digits, '-', '_' and '.'"
                    .to_owned(),
            );
        }
        let exporter = ElasticBulk {
            index: config.index,
        };
        Ok((
            exporter,
            Descriptor::new("elastic-bulk", env!("CARGO_PKG_VERSION")),
        ))
    }

    fn render(&self, batch: Vec<Event>) -> Result<Vec<Payload>, PolicyError> {
        let mut body = Vec::with_capacity(batch.len() * 512);
        for event in &batch {
            let action = format!(
                "{{\"create\":{{\"_index\":\"{}\",\"_id\":\"{}\"}}}}\n",
                self.index, event.seq
            );
            body.extend_from_slice(action.as_bytes());
            let document = Document {
                at: event.at,
                kind: &event.kind,
                seq: event.seq,
                tenant: &event.tenant,
                message: &event.message,
                message_id: event.message_id.as_deref(),
                sender: &event.sender,
                recipient: event.recipient.as_deref(),
                subject: event.subject.as_deref(),
                host: event.host.as_deref(),
                code: event.code,
                enhanced: event.enhanced.as_deref(),
                text: event.text.as_deref(),
            };
            let line =
                serde_json::to_vec(&document).map_err(|e| PolicyError::Broken(e.to_string()))?;
            body.extend_from_slice(&line);
            body.push(b'\n');
        }
        Ok(vec![Payload::new("application/x-ndjson", body)])
    }
}

tidegate_guest::log_exporter!(ElasticBulk);
