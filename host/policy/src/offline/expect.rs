//! Whether an answer is as expected: what the expectation names must be there and equal,
//! what it does not name may be anything.

use serde_json::Value;

const ACTIONS: [&str; 4] = ["managed", "passthrough", "defer", "refuse"];

/// What is not as expected, in words; empty: all is.
pub(super) fn problems(expected: Option<&Value>, answer: &Value) -> Vec<String> {
    let Some(expected) = expected else {
        // Nothing in particular, but an answer.
        return match answer.get("failure") {
            Some(why) => vec![format!("the policy failed: {}", plain(why))],
            None => Vec::new(),
        };
    };
    let mut found = Vec::new();
    if let Some(why) = answer.get("failure")
        && expected.get("failure").is_none()
    {
        return vec![format!("the policy failed: {}", plain(why))];
    }
    if is_action(expected) {
        // The same for every recipient.
        for (recipient, action) in answer["recipients"].as_object().into_iter().flatten() {
            compare(expected, action, recipient, &mut found);
        }
    } else {
        compare(expected, answer, "", &mut found);
    }
    found
}

fn is_action(value: &Value) -> bool {
    match value {
        Value::String(name) => ACTIONS.contains(&name.as_str()),
        Value::Object(map) => map.keys().any(|k| ACTIONS.contains(&k.as_str())),
        _ => false,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn compare(expected: &Value, actual: &Value, at: &str, found: &mut Vec<String>) {
    let place = if at.is_empty() { "answer" } else { at };
    let mut differs = || {
        found.push(format!(
            "{place}: expected {}, got {}",
            plain(expected),
            plain(actual)
        ));
    };
    match (expected, actual) {
        (Value::String(name), Value::Object(map))
            if map.len() == 1 && ACTIONS.contains(&name.as_str()) =>
        {
            if !map.contains_key(name) {
                differs();
            }
        }
        (Value::Object(parts), Value::String(text)) if parts.contains_key("contains") => {
            let texts = match &parts["contains"] {
                Value::Array(all) => all.clone(),
                one => vec![one.clone()],
            };
            for part in texts {
                if !part.as_str().is_some_and(|part| text.contains(part)) {
                    found.push(format!(
                        "{place}: {} is not in {}",
                        plain(&part),
                        tidy(text)
                    ));
                }
            }
        }
        (Value::Object(parts), Value::Object(map)) => {
            for (name, part) in parts {
                let at = if at.is_empty() {
                    name.clone()
                } else {
                    format!("{at}.{name}")
                };
                compare(part, map.get(name).unwrap_or(&Value::Null), &at, found);
            }
        }
        (Value::Array(parts), Value::Array(all)) if parts.len() == all.len() => {
            for (n, (part, one)) in parts.iter().zip(all).enumerate() {
                compare(part, one, &format!("{at}[{n}]"), found);
            }
        }
        // The words of a failure need not be given in full.
        (Value::String(part), Value::String(text)) if at == "failure" => {
            if !text.contains(part) {
                differs();
            }
        }
        _ if expected == actual => {}
        _ => differs(),
    }
}

/// The start of a long body.
fn tidy(text: &str) -> String {
    crate::answer::tidy(text, 300)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer() -> Value {
        json!({
            "recipients": {
                "a@x.test": {"managed": {"class": "bulk", "relay": "eu"}},
                "b@x.test": {"refuse": {"code": 550, "enhanced": "5.7.1", "text": "no"}},
            },
            "tags": {"campaign": "spring"},
        })
    }

    #[test]
    fn what_is_named_must_be_so_and_the_rest_may_be_anything() {
        for good in [
            json!({"recipients": {"a@x.test": "managed", "b@x.test": "refuse"}}),
            json!({"recipients": {"a@x.test": {"managed": {"relay": "eu"}}}}),
            json!({"recipients": {"b@x.test": {"refuse": {"code": 550}}}, "tags": {"campaign": "spring"}}),
            json!({"recipients": {"a@x.test": {"managed": {"lane": null}}}}),
        ] {
            assert_eq!(problems(Some(&good), &answer()), [""; 0], "{good}");
        }
        for (bad, words) in [
            (json!("managed"), "b@x.test: expected managed, got"),
            (
                json!({"recipients": {"a@x.test": {"managed": {"relay": "main"}}}}),
                "recipients.a@x.test.managed.relay: expected main, got eu",
            ),
            (
                json!({"recipients": {"c@x.test": "managed"}}),
                "recipients.c@x.test: expected managed, got null",
            ),
            (
                json!({"tags": {"campaign": {"contains": ["spr", "x"]}}}),
                "tags.campaign: x is not in spring",
            ),
            (
                json!({"failure": "trap"}),
                "failure: expected trap, got null",
            ),
        ] {
            let found = problems(Some(&bad), &answer()).join("\n");
            assert!(found.contains(words), "{found:?} does not say {words:?}");
        }
    }

    #[test]
    fn a_failure_is_a_problem_unless_it_is_expected() {
        let failed = json!({"failure": "stopped after 10 ms"});
        assert_eq!(problems(None, &failed).len(), 1);
        assert_eq!(problems(Some(&json!("managed")), &failed).len(), 1);
        assert!(problems(Some(&json!({"failure": "stopped"})), &failed).is_empty());
        assert!(problems(None, &answer()).is_empty());
    }
}
