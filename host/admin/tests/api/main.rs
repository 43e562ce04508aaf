//! The API over a loopback socket, with a real engine on a real SQLite store.
//!
//! Only what the gateway wires in is replaced: secrets and the compiler of policies, and a
//! network without any destination.

mod rig;
mod rollout;
mod tokens;
mod wording;

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tidegate_mail::{Address, BodyType, Envelope, Recipient, header::HeaderBlock};
use tidegate_queue::*;

use rig::*;

#[test]
fn every_route_asks_for_the_token() {
    let api = Api::start();
    let wrong = "1123456789abcdef0123456789abcdef";
    for (method, path) in [
        ("GET", "/stats"),
        ("GET", "/tenants"),
        ("POST", "/tenants"),
        ("DELETE", "/tenants/acme"),
        ("PUT", "/tenants/acme/wording"),
        ("POST", "/tenants/acme/wording/preview"),
        ("GET", "/queue"),
        ("POST", "/queue/cancel"),
        ("GET", "/log"),
        ("POST", "/policies"),
        ("POST", "/slots/activate"),
        ("POST", "/measures/x/lift"),
    ] {
        let path = format!("/api/v1{path}");
        for token in [None, Some(""), Some(wrong), Some(&TOKEN[..31])] {
            let answer = api.ask(method, &path, token, b"");
            assert_eq!(
                api.refused(answer),
                triple(401, "unauthorized", ""),
                "{method} {path} {token:?}"
            );
        }
        let in_query = format!("{path}?token={TOKEN}");
        assert_eq!(api.ask(method, &in_query, None, b"").0, 401);
    }
    assert_eq!(api.ask("GET", "/health", None, b"").0, 200);
    let (status, text) = api.ask("GET", "/metrics", None, b"");
    assert_eq!(status, 200);
    assert!(
        text.as_str()
            .unwrap()
            .contains("tidegate_delivered_total 0")
    );
}

#[test]
fn tenants_are_added_changed_and_removed() {
    let api = Api::start().with_tenant();
    let (_, list) = api.get("/tenants");
    assert_eq!(list[0]["domains"], json!(["acme.example"]), "lower-cased");
    assert_eq!(
        api.refused(api.post("/tenants", json!({"id": "acme", "domains": ["x.example"]}))),
        triple(409, "conflict", "")
    );
    for (body, code, field) in [
        (
            json!({"id": "A b", "domains": ["x.example"]}),
            "invalid",
            "id",
        ),
        (json!({"id": "b", "domains": []}), "invalid", "domains"),
        (json!({"id": "b", "domains": ["a b"]}), "invalid", "domains"),
        (
            json!({"id": "b", "domains": ["b.example"], "relays": ["none"]}),
            "invalid",
            "relays",
        ),
        (
            json!({"id": "b", "domains": ["b.example"], "role": "admin"}),
            "bad-json",
            "role",
        ),
        (json!({"id": "b"}), "bad-json", "domains"),
    ] {
        let (status, found, at) = api.refused(api.post("/tenants", body.clone()));
        assert!((400..500).contains(&status));
        assert_eq!((found.as_str(), at.as_str()), (code, field), "{body}");
    }
    let (status, changed) = api.patch("/tenants/acme", json!({"suspended": true}));
    assert_eq!((status, &changed["suspended"]), (200, &json!(true)));
    assert_eq!(
        changed["domains"],
        json!(["acme.example"]),
        "the rest stays"
    );
    assert_eq!(
        api.refused(api.patch("/tenants/acme", json!({"id": "other"}))),
        triple(400, "bad-json", "id")
    );
    let before = api.reloads.load(Ordering::Relaxed);
    assert_eq!(api.delete("/tenants/acme").0, 200);
    assert_eq!(api.reloads.load(Ordering::Relaxed), before + 1);
    assert_eq!(
        api.refused(api.delete("/tenants/acme")),
        triple(404, "not-found", "")
    );
    assert_eq!(api.get("/tenants").1, json!([]));
}

#[test]
fn hashes_and_sealed_passwords_never_leave() {
    let api = Api::start().with_tenant();
    let (status, made) = api.post(
        "/credentials",
        json!({"tenant": "acme", "user": "crm@acme"}),
    );
    assert_eq!(
        (status, &made["password"]),
        (201, &json!("a-random-password"))
    );
    let given = json!({"tenant": "acme", "user": "other", "password": "given-by-the-operator"});
    let (_, shown) = api.post("/credentials", given);
    assert_eq!(
        shown["password"],
        Value::Null,
        "what was given is not echoed"
    );
    assert_eq!(
        api.refused(api.post(
            "/credentials",
            json!({"tenant": "acme", "user": "crm@acme"})
        )),
        triple(409, "conflict", "")
    );
    let again = json!({"tenant": "acme", "user": "crm@acme", "replace": true});
    assert_eq!(api.post("/credentials", again).0, 201);
    let short = json!({"tenant": "acme", "user": "x", "password": "short"});
    assert_eq!(
        api.refused(api.post("/credentials", short)),
        triple(422, "invalid", "password")
    );

    let server = json!({
        "tenant": "acme", "name": "own", "host": "smtp.acme.example", "port": 587,
        "user": "relay", "password": "secret-of-acme",
    });
    assert_eq!(api.post("/servers", server).0, 201);
    let relay = json!({"name": "partner", "host": "smtp.partner.example", "user": "us", "password": "secret-of-us"});
    assert_eq!(api.post("/relays", relay).0, 201);
    for path in ["/credentials", "/servers", "/relays"] {
        let text = api.get(path).1.to_string();
        for secret in ["hash of", "sealed", "secret-of", "given-by"] {
            assert!(!text.contains(secret), "{path}: {text}");
        }
    }
    assert_eq!(api.get("/servers").1[0]["has_password"], json!(true));
    assert_eq!(api.delete("/credentials/crm%40acme").0, 200);
    assert_eq!(
        api.get("/credentials?tenant=acme")
            .1
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(api.get("/credentials?tenant=none").1, json!([]));
}

#[test]
fn a_password_is_not_sent_without_verified_tls() {
    let api = Api::start().with_tenant();
    for tls in ["none", "opportunistic"] {
        let server = json!({
            "tenant": "acme", "name": "own", "host": "smtp.acme.example", "port": 25,
            "tls": tls, "user": "u", "password": "p",
        });
        assert_eq!(
            api.refused(api.post("/servers", server)),
            triple(422, "invalid", "tls")
        );
    }
    let half = json!({"name": "r", "host": "h.example", "user": "u"});
    assert_eq!(
        api.refused(api.post("/relays", half)),
        triple(422, "invalid", "password")
    );
    let mixed = json!({"name": "r", "host": "h.example", "sources": ["192.0.2.1"]});
    assert_eq!(
        api.refused(api.post("/relays", mixed)),
        triple(422, "invalid", "sources")
    );
    let none = json!({"tenant": "acme", "name": "s", "host": "h.example", "port": 0});
    assert_eq!(
        api.refused(api.post("/servers", none)),
        triple(422, "invalid", "port")
    );
}

#[test]
fn a_relay_in_use_stays() {
    let api = Api::start().with_tenant();
    assert_eq!(
        api.post("/relays", json!({"name": "eu", "sources": ["192.0.2.1"]}))
            .0,
        201
    );
    assert_eq!(api.patch("/tenants/acme", json!({"relays": ["eu"]})).0, 200);
    assert_eq!(
        api.refused(api.delete("/relays/eu")),
        triple(409, "conflict", "")
    );
    assert_eq!(api.patch("/tenants/acme", json!({"relays": []})).0, 200);
    assert_eq!(api.delete("/relays/eu").0, 200);
    assert_eq!(
        api.get("/relays").1[0]["name"],
        json!("mx"),
        "the built-in one is listed"
    );
}

fn component(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn policies_are_activated_and_rolled_back() {
    let api = Api::start().with_tenant();
    let upload = |name: &str, slot: Option<&str>| {
        let mut body =
            json!({"component": component(&format!("routing-policy {name}")), "config": "{}"});
        if let Some(slot) = slot {
            body["slot"] = slot.into();
        }
        api.post("/policies", body)
    };
    let (status, first) = upload("a", Some("routing/acme"));
    assert_eq!(
        (status, &first["active_in"]),
        (201, &json!(["routing/acme"]))
    );
    assert_eq!(
        api.refused(api.post("/slots/rollback", json!({"slot": "shaping"}))),
        triple(409, "conflict", "")
    );
    assert_eq!(upload("b", None).1["active_in"], json!([]));
    let activate = json!({"slot": "routing/acme", "digest": "bbbbbb", "note": "try b"});
    assert_eq!(api.post("/slots/activate", activate).0, 200);
    let digest_in_force = || api.get("/slots").1[0]["digest"].as_str().unwrap()[..1].to_owned();
    assert_eq!(digest_in_force(), "b");
    assert_eq!(
        api.post("/slots/rollback", json!({"slot": "routing/acme"}))
            .0,
        200
    );
    assert_eq!(digest_in_force(), "a");
    assert_eq!(
        api.post("/slots/rollback", json!({"slot": "routing/acme"}))
            .0,
        200
    );
    assert_eq!(digest_in_force(), "b", "back to where it began");
    let (_, history) = api.get("/slots/history?slot=routing/acme");
    assert_eq!(history.as_array().unwrap().len(), 4);
    assert_eq!(history[0]["note"], json!("rolled back from aaaaaaaaaaaa"));

    for (slot, field) in [
        ("shaping", "slot"),
        ("routing/nobody", "slot"),
        ("export/none", "slot"),
        ("nonsense", "slot"),
    ] {
        let body = json!({"slot": slot, "digest": "aaaaaa"});
        assert_eq!(
            api.refused(api.post("/slots/activate", body)),
            triple(422, "invalid", field),
            "{slot}"
        );
    }
    for (digest, status) in [("zzz", 422), ("aa", 422), ("cccccc", 404)] {
        let body = json!({"slot": "routing", "digest": digest});
        assert_eq!(api.post("/slots/activate", body).0, status, "{digest}");
    }
}

#[test]
fn uploads_are_bounded() {
    let api = Api::start();
    let large = json!({"component": component(&"x".repeat(1025))});
    assert_eq!(
        api.refused(api.post("/policies", large)),
        triple(422, "invalid", "component")
    );
    let bad = json!({"component": "!!"});
    assert_eq!(
        api.refused(api.post("/policies", bad)),
        triple(422, "invalid", "component")
    );
    let huge = json!({"id": "a", "domains": ["a".repeat(300 * 1024)]});
    assert_eq!(
        api.refused(api.post("/tenants", huge)),
        triple(413, "too-large", "")
    );
    let deep = "[".repeat(100_000);
    let answer = api.ask("POST", "/api/v1/tenants", Some(TOKEN), deep.as_bytes());
    assert_eq!(api.refused(answer).0, 400);
}

/// Puts a message into the queue as a listener would.
fn submit(api: &Api, recipients: &[&str]) -> String {
    let id = api.engine.new_id();
    let text = "Subject: hello\r\nMessage-ID: <m@acme.example>\r\n\r\nhi\r\n";
    let envelope = Envelope {
        reverse_path: Some(Address::parse("a@acme.example").unwrap()),
        envid: None,
        ret: None,
        body: BodyType::default(),
        smtputf8: false,
        requiretls: false,
        tls_optional: false,
        recipients: recipients
            .iter()
            .map(|r| Recipient {
                address: Address::parse(r).unwrap(),
                notify: Default::default(),
                original: None,
            })
            .collect(),
    };
    let submission = Submission {
        id,
        tenant: "acme".into(),
        origin: Origin::default(),
        bulk: false,
        envelope,
        header: HeaderBlock::parse(text.as_bytes()),
        content: Content::Memory(text.into()),
    };
    let reply = api.runtime.block_on(api.engine.submit(submission));
    assert_eq!(reply.code, 250, "{reply}");
    id.to_string()
}

#[test]
fn the_queue_is_listed_held_and_cancelled() {
    let api = Api::start().with_tenant();
    let id = submit(&api, &["x@one.example", "y@two.example"]);
    let (_, list) = api.get("/queue?tenant=acme");
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    assert_eq!(
        api.get("/queue?domain=one.example")
            .1
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        api.refused(api.get("/queue?limit=10001")),
        triple(422, "invalid", "limit")
    );
    assert_eq!(
        api.refused(api.get("/queue?color=1")),
        triple(400, "bad-query", "color")
    );
    assert_eq!(api.get("/queue?message=nonsense").0, 400);

    assert_eq!(
        api.refused(api.post("/measures", json!({}))),
        triple(422, "invalid", "all")
    );
    let past = json!({"all": true, "until": 1});
    assert_eq!(
        api.refused(api.post("/measures", past)),
        triple(422, "invalid", "until")
    );
    let hold = json!({"scope": {"domain": "one.example"}, "cause": "asked to"});
    let (status, measure) = api.post("/measures", hold);
    assert_eq!((status, &measure["effect"]), (201, &json!("hold")));
    // The other one is tried meanwhile, in vain.
    api.runtime.block_on(api.engine.run_due(Still.now()));
    let (_, other) = api.get("/queue?domain=two.example");
    assert_eq!(other[0]["attempts"], json!(1), "{other}");
    let (_, held) = api.get("/queue?domain=one.example");
    assert_eq!(held[0]["attempts"], json!(0));
    assert_eq!(held[0]["reason"], json!("held"));
    let lift = format!("/measures/{}/lift", measure["id"].as_str().unwrap());
    for (field, bad) in [
        ("why", json!({"why": "two\nlines"})),
        ("until", json!({"until": 1})),
    ] {
        assert_eq!(
            api.refused(api.post(&lift, bad)),
            triple(422, "invalid", field)
        );
    }
    let (status, lifted) = api.post(&lift, json!({"why": "they are ready"}));
    assert_eq!(status, 200);
    assert_eq!(lifted["lifted"]["by"], json!("operator"));
    assert_eq!(api.post(&lift, json!({})).0, 404);
    assert_eq!(api.get("/measures").1, json!([]));
    let (_, history) = api.get("/measures?lifted=true");
    assert_eq!(history.as_array().map(Vec::len), Some(1), "{history}");
    assert_eq!(history[0]["lifted"]["why"], json!("they are ready"));

    assert_eq!(
        api.refused(api.post("/queue/cancel", json!({"why": "x"}))),
        triple(422, "invalid", "all")
    );
    let bad = json!({"message": id, "why": "two\nlines"});
    assert_eq!(
        api.refused(api.post("/queue/cancel", bad)),
        triple(422, "invalid", "why")
    );
    let cancel = json!({"message": id, "why": "sent twice"});
    assert_eq!(
        api.post("/queue/cancel", cancel),
        (200, json!({"recipients": 2}))
    );
    api.runtime.block_on(api.engine.run_due(Still.now()));
    assert_eq!(api.get("/queue").1, json!([]));

    let (_, entry) = api.get(&format!("/log/{id}"));
    let kinds: Vec<&str> = entry["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["kind"].as_str())
        .collect();
    assert_eq!(
        kinds.iter().filter(|k| **k == "cancelled").count(),
        2,
        "{entry}"
    );
    assert_eq!(api.get("/stats").1["engine"]["cancelled"], json!(2));
}

#[test]
fn the_log_is_found_by_what_people_know() {
    let api = Api::start().with_tenant();
    let id = submit(&api, &["x@one.example"]);
    for query in [
        "recipient=X@one.example",
        "sender=a@acme.example",
        "message_id=m@acme.example",
        "message_id=%3Cm@acme.example%3E",
        &format!("message={id}"),
        "since=1&until=9999999999999",
    ] {
        let (status, found) = api.get(&format!("/log?{query}"));
        assert_eq!(status, 200, "{query}: {found}");
        assert_eq!(found[0]["message"], json!(id), "{query}");
        assert_eq!(found[0]["subject"], json!("hello"));
    }
    assert_eq!(api.get("/log?recipient=z@one.example").1, json!([]));
    assert_eq!(
        api.refused(api.get("/log/nonsense")),
        triple(422, "invalid", "id")
    );
    assert_eq!(api.get("/log/0000000000000").0, 404);
    assert_eq!(
        api.refused(api.get("/log?limit=5000")),
        triple(422, "invalid", "limit")
    );
}
