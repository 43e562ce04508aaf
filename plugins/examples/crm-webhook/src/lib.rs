//! What became of each mail, for the CRM that wrote it: one request with a JSON array per tenant and
//! batch, of the outcomes only, by the CRM's own record id. A batch may come twice: `id` is the same.

use serde::{Deserialize, Serialize};
use tidegate_guest::export::*;
use tidegate_guest::iso;

const OUTCOMES: [&str; 5] = [
    "delivered",
    "bounced",
    "expired",
    "cancelled",
    "delay-notified",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Which outcomes are told; none: all.
    #[serde(default)]
    kinds: Vec<String>,
}

struct CrmWebhook {
    kinds: Vec<String>,
}

#[derive(Serialize)]
struct Request<'a> {
    tenant: &'a str,
    outcomes: Vec<Outcome<'a>>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    id: u64,
    at: String,
    outcome: &'a str,
    hard: bool,
    record: Option<&'a str>,
    message_id: Option<&'a str>,
    recipient: Option<&'a str>,
    campaign: Option<&'a str>,
    status: Option<&'a str>,
    reply: Option<&'a str>,
}

impl Exporter for CrmWebhook {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config = if config.is_empty() { "{}" } else { config };
        let Config { mut kinds } =
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?;
        if !kinds.iter().all(|kind| OUTCOMES.contains(&kind.as_str())) {
            let text = "kinds: each is delivered, bounced, expired, cancelled or delay-notified";
            return Err(text.to_owned());
        }
        if kinds.is_empty() {
            kinds = OUTCOMES.map(str::to_owned).into();
        }
        let descriptor =
            Descriptor::new("crm-webhook", env!("CARGO_PKG_VERSION")).facts(["tag.campaign"]);
        Ok((CrmWebhook { kinds }, descriptor))
    }

    fn render(&self, batch: Vec<Event>) -> Result<Vec<Payload>, PolicyError> {
        let mut requests: Vec<Request<'_>> = Vec::new();
        for event in batch.iter().filter(|e| self.kinds.contains(&e.kind)) {
            let outcome = outcome(event);
            match requests.iter_mut().find(|r| r.tenant == event.tenant) {
                Some(request) => request.outcomes.push(outcome),
                None => requests.push(Request {
                    tenant: &event.tenant,
                    outcomes: vec![outcome],
                }),
            }
        }
        let body = |request: &Request<'_>| {
            serde_json::to_vec(request)
                .map(|body| Payload::new("application/json", body))
                .map_err(|e| PolicyError::Broken(e.to_string()))
        };
        requests.iter().map(body).collect()
    }
}

fn outcome(event: &Event) -> Outcome<'_> {
    Outcome {
        id: event.seq,
        at: iso(event.at),
        outcome: &event.kind,
        hard: event.kind == "bounced" && event.code >= Some(500),
        record: event.record_id.as_deref(),
        message_id: event.message_id.as_deref(),
        recipient: event.recipient.as_deref(),
        campaign: event.fact("tag.campaign"),
        status: event.enhanced.as_deref(),
        reply: event.text.as_deref(),
    }
}

tidegate_guest::log_exporter!(CrmWebhook);
