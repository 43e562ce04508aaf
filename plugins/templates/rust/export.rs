//! NAME: one line of JSON for each bounce, nothing for the rest.

use serde::Serialize;
use tidegate_guest::export::*;

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    kind: &'a str,
    recipient: Option<&'a str>,
    code: Option<u16>,
    text: Option<&'a str>,
}

struct Bounces;

impl Exporter for Bounces {
    fn init(_config: &str) -> Result<(Self, Descriptor), String> {
        Ok((Bounces, Descriptor::new("NAME", env!("CARGO_PKG_VERSION"))))
    }

    fn render(&self, batch: Vec<Event>) -> Result<Vec<Payload>, PolicyError> {
        let mut body = Vec::new();
        for event in batch.iter().filter(|e| e.kind == "bounced") {
            let line = Line {
                seq: event.seq,
                kind: &event.kind,
                recipient: event.recipient.as_deref(),
                code: event.code,
                text: event.text.as_deref(),
            };
            let line = serde_json::to_vec(&line).map_err(|e| PolicyError::Broken(e.to_string()))?;
            body.extend(line);
            body.push(b'\n');
        }
        if body.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Payload::new("application/x-ndjson", body)])
    }
}

tidegate_guest::log_exporter!(Bounces);
