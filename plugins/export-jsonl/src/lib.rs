//! The exporter that a gateway starts with: JSON lines, one event each.
//!
//! ```json
//! { "fields": ["seq", "at", "kind", "message", "recipient", "code", "text"], "kinds": ["delivered", "bounced"],
//!   "tenants": ["acme"], "facts": true, "rename": { "record_id": "crm_id" } }
//! ```
//!
//! `fields` selects and orders (default: all that have a value), `kinds` and `tenants` filter,
//! `facts` adds the remaining facts as an object. `at` is milliseconds since 1970.

use serde::Deserialize;
use std::collections::BTreeMap;
use tidegate_guest::export::*;

/// In the order of output.
const FIELDS: [&str; 20] = [
    "seq",
    "at",
    "kind",
    "message",
    "tenant",
    "sender",
    "recipient",
    "size",
    "message_id",
    "record_id",
    "subject",
    "attempt",
    "duration_ms",
    "site",
    "host",
    "peer",
    "tls",
    "code",
    "enhanced",
    "text",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    fields: Option<Vec<String>>,
    kinds: Vec<String>,
    tenants: Vec<String>,
    facts: bool,
    rename: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            fields: None,
            kinds: Vec::new(),
            tenants: Vec::new(),
            facts: true,
            rename: BTreeMap::new(),
        }
    }
}

struct JsonLines {
    /// Position in `FIELDS`, and the key with quotes and colon.
    fields: Vec<(usize, String)>,
    kinds: Vec<String>,
    tenants: Vec<String>,
    facts: bool,
}

fn field(at: &str, name: &str) -> Result<usize, String> {
    FIELDS
        .iter()
        .position(|f| *f == name)
        .ok_or_else(|| format!("{at}: no field {name:?}; there are {}", FIELDS.join(", ")))
}

impl Exporter for JsonLines {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config = if config.trim().is_empty() {
            Config::default()
        } else {
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?
        };
        let selected: Vec<usize> = match &config.fields {
            None => (0..FIELDS.len()).collect(),
            Some(names) => names
                .iter()
                .map(|name| field("fields", name))
                .collect::<Result<_, _>>()?,
        };
        for name in config.rename.keys() {
            field("rename", name)?;
        }
        let fields = selected
            .into_iter()
            .map(|at| {
                let name = config
                    .rename
                    .get(FIELDS[at])
                    .map_or(FIELDS[at], String::as_str);
                let mut key = Vec::new();
                string(&mut key, name);
                key.push(b':');
                (at, String::from_utf8_lossy(&key).into_owned())
            })
            .collect();
        let descriptor = Descriptor::new("export-jsonl", env!("CARGO_PKG_VERSION"))
            .facts(config.facts.then_some("*"));
        Ok((
            JsonLines {
                fields,
                kinds: config.kinds,
                tenants: config.tenants,
                facts: config.facts,
            },
            descriptor,
        ))
    }

    fn render(&self, batch: Vec<Event>) -> Result<Vec<Payload>, PolicyError> {
        let mut body = Vec::with_capacity(batch.len() * 384);
        for event in &batch {
            if self.wants(event) {
                self.line(&mut body, event);
            }
        }
        if body.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Payload {
            body,
            content_type: "application/x-ndjson".to_owned(),
        }])
    }
}

impl JsonLines {
    fn wants(&self, event: &Event) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.tenants.is_empty() || self.tenants.contains(&event.tenant))
    }

    fn line(&self, out: &mut Vec<u8>, e: &Event) {
        out.push(b'{');
        let begun = out.len();
        for (at, key) in &self.fields {
            let mut text = |value: Option<&str>| {
                if let Some(value) = value {
                    separate(out, begun);
                    out.extend_from_slice(key.as_bytes());
                    string(out, value);
                }
            };
            let number = match FIELDS[*at] {
                "seq" => Some(e.seq),
                "at" => Some(e.at),
                "size" => Some(e.size),
                "attempt" => e.attempt.map(u64::from),
                "duration_ms" => e.duration_ms.map(u64::from),
                "code" => e.code.map(u64::from),
                "kind" => {
                    text(Some(&e.kind));
                    None
                }
                "message" => {
                    text(Some(&e.message));
                    None
                }
                "tenant" => {
                    text(Some(&e.tenant));
                    None
                }
                "sender" => {
                    text(Some(&e.sender));
                    None
                }
                other => {
                    text(
                        match other {
                            "recipient" => &e.recipient,
                            "message_id" => &e.message_id,
                            "record_id" => &e.record_id,
                            "subject" => &e.subject,
                            "site" => &e.site,
                            "host" => &e.host,
                            "peer" => &e.peer,
                            "tls" => &e.tls,
                            "enhanced" => &e.enhanced,
                            _ => &e.text,
                        }
                        .as_deref(),
                    );
                    None
                }
            };
            if let Some(number) = number {
                separate(out, begun);
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(number.to_string().as_bytes());
            }
        }
        if self.facts && !e.facts.is_empty() {
            separate(out, begun);
            out.extend_from_slice(b"\"facts\":{");
            let inner = out.len();
            for (name, value) in &e.facts {
                separate(out, inner);
                string(out, name);
                out.push(b':');
                string(out, value);
            }
            out.push(b'}');
        }
        out.extend_from_slice(b"}\n");
    }
}

fn separate(out: &mut Vec<u8>, begun: usize) {
    if out.len() > begun {
        out.push(b',');
    }
}

/// A JSON string, RFC 8259 section 7.
fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

tidegate_guest::log_exporter!(JsonLines);
