//! What an answer means for the batch: taken, not now, or never.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tidegate_mail::Timestamp;
use tidegate_queue::ports::Again;

/// Why a request was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Objection {
    pub reason: String,
    pub again: Again,
}

impl Objection {
    pub fn for_now(reason: impl Into<String>) -> Self {
        Objection {
            reason: reason.into(),
            again: Again::After(None),
        }
    }

    pub fn never(reason: impl Into<String>) -> Self {
        Objection {
            reason: reason.into(),
            again: Again::Never,
        }
    }
}

/// The words of an answer that go into a reason.
const QUOTED: usize = 300;

/// Text of a peer, for a line of the log.
fn quoted(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut line = String::new();
    for word in text.split_whitespace() {
        let word: String = word.chars().filter(|c| !c.is_control()).collect();
        if line.chars().count() + word.chars().count() > QUOTED {
            line.push('…');
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    line
}

/// Seconds or a date (RFC 9110 s. 10.2.3).
pub(super) fn retry_after(value: Option<&str>, now: Timestamp) -> Option<Duration> {
    let value = value?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    let at = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Timestamp::from_secs(i64::try_from(at.as_secs()).ok()?).since(now))
}

/// Whether a status is about what is in the request, and not about the way to it: the same request
/// gets it again.
fn is_about_content(status: u16) -> bool {
    matches!(status, 400 | 413 | 422)
}

/// What an answer with this status says; the body is looked at for the items of a bulk request.
pub(super) fn read(
    status: u16,
    location: Option<&str>,
    wait: Option<Duration>,
    body: &[u8],
) -> Result<(), Objection> {
    let said = quoted(body);
    let answered = format!("answered {status} {said}").trim_end().to_owned();
    match status {
        200..300 => items(body),
        300..400 => Err(Objection::for_now(format!(
            "answered {status}, elsewhere ({}): no redirect is followed, put the new address into url",
            quoted(location.unwrap_or("nowhere").as_bytes())
        ))),
        status if is_about_content(status) => Err(Objection::never(answered)),
        408 | 425 | 429 | 500.. => Err(Objection {
            reason: answered,
            again: Again::After(wait),
        }),
        _ => Err(Objection {
            reason: format!("{answered}: check url and secret_file"),
            again: Again::After(wait),
        }),
    }
}

/// The answer of a bulk API: 200, whatever became of the items.
#[derive(Deserialize)]
struct Bulk {
    errors: bool,
    items: Vec<HashMap<String, Item>>,
}

#[derive(Deserialize)]
struct Item {
    status: u16,
    #[serde(default)]
    error: serde_json::Value,
}

/// What became of the items of a bulk request; an answer of another kind has none.
fn items(body: &[u8]) -> Result<(), Objection> {
    let Ok(bulk) = serde_json::from_slice::<Bulk>(body) else {
        return Ok(());
    };
    if !bulk.errors {
        return Ok(());
    }
    let of = bulk.items.len();
    // 409: a document of that id is there already, from the time before.
    let failed: Vec<&Item> = bulk
        .items
        .iter()
        .flat_map(HashMap::values)
        .filter(|item| item.status >= 300 && item.status != 409)
        .collect();
    let told = |item: &Item| {
        let error = quoted(item.error.to_string().as_bytes());
        format!(
            "{} of {of} items failed, one with {} {error}",
            failed.len(),
            item.status
        )
    };
    // What may pass by itself comes first: it may be all that is wrong with the next try.
    if let Some(item) = failed.iter().find(|item| !is_about_content(item.status)) {
        return Err(Objection::for_now(told(item)));
    }
    match failed.first() {
        Some(item) => Err(Objection::never(told(item))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, body: &str) -> &'static str {
        match read(status, None, None, body.as_bytes()) {
            Ok(()) => "taken",
            Err(Objection {
                again: Again::Never,
                ..
            }) => "never",
            Err(_) => "later",
        }
    }

    #[test]
    fn only_what_is_about_the_content_is_for_good() {
        for status in [200, 201, 202, 204] {
            assert_eq!(said(status, ""), "taken");
        }
        for status in [400, 413, 422] {
            assert_eq!(said(status, ""), "never", "{status}");
        }
        for status in [
            301, 307, 401, 403, 404, 405, 408, 409, 410, 415, 429, 500, 502, 503, 504,
        ] {
            assert_eq!(said(status, ""), "later", "{status}");
        }
    }

    #[test]
    fn the_items_of_a_bulk_request_are_read_one_by_one() {
        let bulk = |errors: bool, statuses: &[u16]| {
            let items: Vec<_> = statuses
                .iter()
                .map(|s| serde_json::json!({"create": {"_id": "1", "status": s, "error": {"type": "x"}}}))
                .collect();
            serde_json::json!({"took": 3, "errors": errors, "items": items}).to_string()
        };
        assert_eq!(said(200, &bulk(false, &[201, 201])), "taken");
        assert_eq!(
            said(200, &bulk(true, &[201, 409])),
            "taken",
            "it was there before"
        );
        assert_eq!(said(200, &bulk(true, &[201, 400])), "never");
        assert_eq!(said(200, &bulk(true, &[400, 429])), "later");
        assert_eq!(
            said(200, &bulk(true, &[404, 400])),
            "later",
            "the index is missing"
        );
        assert_eq!(said(200, r#"{"text":"Success","code":0}"#), "taken");
        assert_eq!(said(200, r#"{"errors":true}"#), "taken", "not a bulk API's");
    }

    #[test]
    fn reasons_quote_the_answer_in_one_short_line() {
        let objection =
            read(400, None, None, b"{\n  \"text\":\"Incorrect index\"\x07}").unwrap_err();
        assert_eq!(
            objection.reason,
            r#"answered 400 { "text":"Incorrect index"}"#
        );
        let long = "word ".repeat(500);
        let objection = read(503, None, None, long.as_bytes()).unwrap_err();
        assert!(objection.reason.len() < 400);
        let moved = read(308, Some("https://new.example/"), None, b"").unwrap_err();
        assert!(
            moved.reason.contains("https://new.example/"),
            "{}",
            moved.reason
        );
    }

    #[test]
    fn the_wait_is_seconds_or_a_date() {
        let now = Timestamp::from_secs(1_445_412_450);
        let wait = |text| retry_after(Some(text), now).map(|d| d.as_secs());
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(30));
        assert_eq!(wait("Wed, 21 Oct 2015 07:00:00 GMT"), Some(0), "past");
        assert_eq!(wait("soon"), None);
        assert_eq!(retry_after(None, now), None);
    }
}
