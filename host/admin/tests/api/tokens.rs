//! Who may do what: every route, with every kind of token.

use serde_json::{Value, json};
use tidegate_mail::Timestamp;
use tidegate_queue::DecisionRow;

use crate::rig::*;
use crate::submit;

struct Tenants {
    api: Api,
    acme: String,
    beta: String,
    revoked: String,
}

/// Two tenants with tokens, each with a policy; one token was revoked.
fn tenants() -> Tenants {
    use base64::Engine as _;
    let api = Api::start().with_tenant();
    let beta = json!({"id": "beta", "domains": ["beta.example"]});
    assert_eq!(api.post("/tenants", beta).0, 201);
    let token = |tenant: &str| {
        let (status, made) = api.post("/tokens", json!({"tenant": tenant, "note": "tests"}));
        assert_eq!(status, 201, "{made}");
        let text = |field: &str| made[field].as_str().unwrap().to_owned();
        (text("id"), text("token"))
    };
    let ((_, acme), (_, beta), (id, revoked)) = (token("acme"), token("beta"), token("acme"));
    assert_eq!(api.delete(&format!("/tokens/{id}")).0, 200);
    assert_eq!(
        api.refused(api.delete(&format!("/tokens/{id}"))),
        triple(404, "not-found", "")
    );
    for (name, slot) in [
        ("a", "routing/acme"),
        ("b", "routing/beta"),
        ("c", "routing"),
    ] {
        let component =
            base64::engine::general_purpose::STANDARD.encode(format!("routing-policy {name}"));
        let body = json!({"component": component, "slot": slot});
        assert_eq!(api.post("/policies", body).0, 201);
    }
    Tenants {
        api,
        acme,
        beta,
        revoked,
    }
}

impl Tenants {
    fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let path = format!("/api/v1{path}");
        self.api.ask(method, &path, Some(token), body.as_bytes())
    }
}

/// Every route: method, path, body, and what the tenant acme's own token, another tenant's and
/// the operator's get.
fn routes() -> Vec<(&'static str, &'static str, Value, u16, u16, u16)> {
    let slot = json!({"slot": "routing/acme"});
    let digest = json!({"slot": "routing/acme", "digest": "aaaaaa"});
    let none = Value::Null;
    vec![
        ("GET", "/whoami", none.clone(), 200, 200, 200),
        ("GET", "/policies", none.clone(), 200, 200, 200),
        ("GET", "/policies/aaaaaa", none.clone(), 200, 404, 200),
        ("GET", "/policies/cccccc", none.clone(), 404, 404, 200),
        (
            "POST",
            "/policies",
            json!({"component": "x", "slot": "routing/acme"}),
            422,
            403,
            422,
        ),
        (
            "POST",
            "/policies",
            json!({"component": "x", "slot": "routing"}),
            403,
            403,
            422,
        ),
        ("GET", "/policies/inputs", none.clone(), 200, 200, 200),
        (
            "GET",
            "/policies/inputs?tenant=acme",
            none.clone(),
            200,
            403,
            200,
        ),
        ("GET", "/exports", none.clone(), 403, 403, 200),
        ("GET", "/slots", none.clone(), 200, 200, 200),
        ("GET", "/slots/status", none.clone(), 200, 200, 200),
        (
            "GET",
            "/slots/status?slot=routing/acme",
            none.clone(),
            200,
            403,
            200,
        ),
        (
            "GET",
            "/slots/status?slot=routing",
            none.clone(),
            403,
            403,
            200,
        ),
        ("GET", "/slots/history", none.clone(), 200, 200, 200),
        (
            "GET",
            "/slots/history?slot=routing/acme",
            none.clone(),
            200,
            403,
            200,
        ),
        ("POST", "/slots/activate", digest.clone(), 200, 403, 200),
        (
            "POST",
            "/slots/activate",
            json!({"slot": "routing/acme", "digest": "bbbbbb"}),
            404,
            403,
            200,
        ),
        (
            "POST",
            "/slots/activate",
            json!({"slot": "routing", "digest": "aaaaaa"}),
            403,
            403,
            200,
        ),
        (
            "POST",
            "/slots/activate",
            json!({"slot": "shaping", "digest": "aaaaaa"}),
            403,
            403,
            422,
        ),
        (
            "POST",
            "/slots/activate",
            json!({"slot": "export/log", "digest": "aaaaaa"}),
            403,
            403,
            422,
        ),
        ("POST", "/slots/shadow", digest.clone(), 200, 403, 200),
        (
            "POST",
            "/slots/canary",
            json!({"slot": "routing/acme", "percent": 5}),
            200,
            403,
            200,
        ),
        ("POST", "/slots/promote", slot.clone(), 200, 403, 409),
        ("POST", "/slots/rehearse", digest, 200, 403, 200),
        ("POST", "/slots/rollback", slot, 200, 403, 200),
        ("GET", "/queue", none.clone(), 200, 200, 200),
        ("GET", "/queue?tenant=acme", none.clone(), 200, 403, 200),
        ("GET", "/log", none.clone(), 200, 200, 200),
        ("GET", "/log?tenant=acme", none.clone(), 200, 403, 200),
        ("GET", "/log/MESSAGE", none.clone(), 200, 404, 200),
        // The operator's alone.
        ("GET", "/status", none.clone(), 403, 403, 200),
        ("GET", "/stats", none.clone(), 403, 403, 200),
        ("GET", "/tenants", none.clone(), 403, 403, 200),
        ("POST", "/tenants", json!({}), 403, 403, 400),
        ("GET", "/tenants/acme", none.clone(), 403, 403, 200),
        ("PATCH", "/tenants/acme", json!({}), 403, 403, 200),
        ("GET", "/tenants/acme/wording", none.clone(), 403, 403, 200),
        (
            "PUT",
            "/tenants/acme/wording",
            json!({"no": 1}),
            403,
            403,
            400,
        ),
        (
            "DELETE",
            "/tenants/acme/wording",
            none.clone(),
            403,
            403,
            200,
        ),
        (
            "POST",
            "/tenants/acme/wording/preview",
            json!([]),
            403,
            403,
            400,
        ),
        ("GET", "/credentials", none.clone(), 403, 403, 200),
        ("POST", "/credentials", json!({}), 403, 403, 400),
        ("DELETE", "/credentials/x", none.clone(), 403, 403, 404),
        ("GET", "/servers", none.clone(), 403, 403, 200),
        ("POST", "/servers", json!({}), 403, 403, 400),
        ("DELETE", "/servers/acme/x", none.clone(), 403, 403, 404),
        ("GET", "/relays", none.clone(), 403, 403, 200),
        ("POST", "/relays", json!({}), 403, 403, 400),
        ("DELETE", "/relays/x", none.clone(), 403, 403, 404),
        ("GET", "/tokens", none.clone(), 403, 403, 200),
        ("POST", "/tokens", json!({}), 403, 403, 400),
        ("DELETE", "/tokens/x", none.clone(), 403, 403, 404),
        ("GET", "/queue/lanes", none.clone(), 403, 403, 200),
        ("POST", "/queue/cancel", json!({}), 403, 403, 422),
        ("POST", "/queue/retry", json!({}), 403, 403, 422),
        ("GET", "/measures", none.clone(), 403, 403, 200),
        ("POST", "/measures", json!({}), 403, 403, 422),
        ("POST", "/measures/x/lift", json!({}), 403, 403, 404),
        // Last: it takes the tokens with it.
        ("DELETE", "/tenants/acme", none, 403, 403, 200),
    ]
}

#[test]
fn every_route_with_every_token() {
    let t = tenants();
    let message = submit(&t.api, &["x@one.example"]);
    for (method, path, body, own, other, operator) in routes() {
        let path = path.replace("MESSAGE", &message);
        let wrong = format!("{}x", t.acme);
        for nobody in [t.revoked.as_str(), &wrong, "tgt-", ""] {
            let (status, answer) = t.ask(nobody, method, &path, &body);
            assert_eq!(status, 401, "{method} {path} {nobody:?}: {answer}");
        }
        // The one that changes least first.
        for (who, token, wanted) in [
            ("other", t.beta.as_str(), other),
            ("own", &t.acme, own),
            ("operator", TOKEN, operator),
        ] {
            let (status, answer) = t.ask(token, method, &path, &body);
            assert_eq!(status, wanted, "{method} {path} by {who}: {answer}");
            if status == 403 {
                assert_eq!(answer["error"]["code"], json!("forbidden"));
                let remedy = answer["error"]["remedy"].as_str().unwrap();
                assert!(remedy.contains("routing/"), "{answer}");
            }
        }
    }
    let (status, _) = t.ask(&t.acme, "GET", "/whoami", &Value::Null);
    assert_eq!(status, 401, "gone with its tenant");
}

#[test]
fn a_route_without_a_row_in_the_table_is_noticed() {
    let rows: Vec<(&str, Vec<&str>)> = routes()
        .into_iter()
        .map(|(method, path, ..)| {
            let path = path.split('?').next().unwrap();
            (method, path.split('/').collect())
        })
        .collect();
    let source = include_str!("../../src/lib.rs");
    let mut missing = Vec::new();
    let mut seen = 0;
    for route in source.split(".route(").skip(1) {
        let path = route.split('"').nth(1).unwrap();
        if ["/health", "/metrics"].contains(&path) {
            continue;
        }
        let words: Vec<&str> = path.split('/').collect();
        for method in ["get", "post", "put", "patch", "delete"] {
            if !route.contains(&format!("{method}(")) {
                continue;
            }
            seen += 1;
            let covered = rows.iter().any(|(of, row)| {
                of.eq_ignore_ascii_case(method)
                    && row.len() == words.len()
                    && row
                        .iter()
                        .zip(&words)
                        .all(|(part, word)| part == word || word.starts_with('{'))
            });
            if !covered {
                missing.push((method, path));
            }
        }
    }
    assert!(seen > 40, "{seen} routes in the source");
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn no_step_is_a_tenants_in_another_slot_or_with_a_revision_it_does_not_see() {
    let t = tenants();
    let paths = [
        "/slots/activate",
        "/slots/canary",
        "/slots/shadow",
        "/slots/promote",
        "/slots/rollback",
        "/slots/rehearse",
    ];
    let body = |path: &str, slot: &str, digest: &str| {
        let mut body = json!({ "slot": slot });
        if !["/slots/promote", "/slots/rollback"].contains(&path) {
            body["digest"] = digest.into();
        }
        if path == "/slots/canary" {
            body["percent"] = 5.into();
        }
        body
    };
    let history = || t.api.get("/slots/history").1;
    let before = history();
    for path in paths {
        for slot in [
            "routing",
            "routing/beta",
            "routing/",
            "routing/acme/",
            "Routing/acme",
            "shaping",
            "export/log",
            "",
        ] {
            let (status, answer) = t.ask(&t.acme, "POST", path, &body(path, slot, "aaaaaa"));
            assert_eq!(status, 403, "{path} {slot:?}: {answer}");
        }
    }
    for path in [
        "/slots/activate",
        "/slots/canary",
        "/slots/shadow",
        "/slots/rehearse",
    ] {
        for digest in ["bbbbbb", "cccccc"] {
            let wanted = body(path, "routing/acme", digest);
            let (status, answer) = t.ask(&t.acme, "POST", path, &wanted);
            assert_eq!(status, 404, "{path} {digest}: {answer}");
        }
    }
    assert_eq!(history(), before);
}

#[test]
fn a_tenant_sees_what_is_its_own_and_no_more() {
    let t = tenants();
    let id = submit(&t.api, &["x@one.example"]);
    let row = |tenant: &str| DecisionRow {
        id: 0,
        tenant: tenant.to_owned(),
        at: Timestamp(5),
        body: json!({ "tenant": tenant }).to_string(),
    };
    let rows = vec![row("acme"), row("beta")];
    t.api
        .runtime
        .block_on(t.api.registry.keep_decisions(rows))
        .unwrap();
    for (token, tenant, mails) in [(&t.acme, "acme", 1), (&t.beta, "beta", 0)] {
        let get = |path: &str| {
            let (status, answer) = t.ask(token, "GET", path, &Value::Null);
            assert_eq!(status, 200, "{path}: {answer}");
            answer
        };
        let count = |path: &str| get(path).as_array().unwrap().len();
        assert_eq!(get("/whoami")["tenant"], json!(tenant));
        assert_eq!(count("/queue"), mails);
        assert_eq!(count("/log"), mails);
        assert_eq!(count("/policies"), 1);
        assert_eq!(count("/slots"), 1);
        assert_eq!(count("/slots/history"), 1);
        let slot = format!("routing/{tenant}");
        assert_eq!(get("/slots/status")[0]["slot"], json!(slot));
        assert_eq!(get("/policies")[0]["active_in"], json!([slot]));
        assert_eq!(
            get("/policies/inputs")["records"],
            json!([{ "tenant": tenant }])
        );
    }
    let (status, _) = t.ask(&t.beta, "GET", &format!("/log/{id}"), &Value::Null);
    assert_eq!(status, 404);
    let (_, step) = t.ask(
        &t.acme,
        "POST",
        "/slots/shadow",
        &json!({"slot": "routing/acme", "digest": "aaaaaa"}),
    );
    assert_eq!(step["by"], json!("tenant:acme"));
    let listed = t.api.get("/tokens").1;
    assert_eq!(listed.as_array().unwrap().len(), 2);
    for secret in [&t.acme, &t.beta] {
        assert!(!listed.to_string().contains(secret.as_str()));
    }
    assert!(!listed.to_string().contains("hash"));
}

#[test]
fn two_tenants_with_the_same_policy_do_not_learn_of_each_other() {
    use base64::Engine as _;
    let t = tenants();
    let component = base64::engine::general_purpose::STANDARD.encode("routing-policy d");
    for (token, slot) in [(&t.acme, "routing/acme"), (&t.beta, "routing/beta")] {
        let body = json!({"component": component, "slot": slot, "note": slot, "inactive": true});
        assert_eq!(t.ask(token, "POST", "/policies", &body).0, 201);
    }
    let (status, shown) = t.ask(&t.beta, "GET", "/policies/dddddd", &Value::Null);
    assert_eq!(status, 200);
    assert!(!shown.to_string().contains("acme"), "{shown}");
}
