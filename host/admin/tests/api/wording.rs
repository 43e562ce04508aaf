//! A tenant's words for its notices.

use super::*;

fn put(api: &Api, body: Value) -> (u16, Value) {
    let body = body.to_string();
    let path = "/api/v1/tenants/acme/wording";
    api.ask("PUT", path, Some(TOKEN), body.as_bytes())
}

#[test]
fn a_wording_is_set_shown_and_given_up() {
    let api = Api::start().with_tenant();
    let (status, before) = api.get("/tenants/acme/wording");
    assert_eq!((status, &before["own"]), (200, &json!(false)));
    assert_eq!(before["wording"]["language"], "en");
    let reloads = api.reloads.load(Ordering::Relaxed);
    let german = json!({
        "language": "de",
        "contact": "hilfe@acme.example",
        "texts": {"failure": {"subject": "Nicht zugestellt"}},
    });
    let (status, set) = put(&api, german);
    assert_eq!((status, &set["own"]), (200, &json!(true)), "{set}");
    assert_eq!(api.reloads.load(Ordering::Relaxed), reloads + 1);
    let (_, shown) = api.get("/tenants/acme/wording");
    assert_eq!(shown, set);
    assert_eq!(
        shown["wording"]["texts"]["failure"]["subject"],
        "Nicht zugestellt"
    );
    let default = &before["wording"]["texts"]["failure"]["opening"];
    assert_eq!(&shown["wording"]["texts"]["failure"]["opening"], default);
    // A change of the tenant leaves it alone, and a listing leaves it out.
    let (_, changed) = api.patch("/tenants/acme", json!({"bulk_suspended": true}));
    assert_eq!(changed["wording"], Value::Null);
    assert_eq!(api.get("/tenants").1[0]["wording"], Value::Null);
    assert_eq!(api.get("/tenants/acme/wording").1, set);
    let (status, reset) = api.delete("/tenants/acme/wording");
    assert_eq!((status, &reset), (200, &before));
    assert_eq!(api.get("/tenants/acme/wording").1, before);
    assert_eq!(
        api.refused(api.get("/tenants/nobody/wording")),
        triple(404, "not-found", "")
    );
    let with_tenant = json!({"id": "b", "domains": ["b.example"], "wording": {}});
    assert_eq!(
        api.refused(api.post("/tenants", with_tenant)),
        triple(422, "invalid", "wording")
    );
}

#[test]
fn a_bad_wording_names_the_field_and_changes_nothing() {
    let api = Api::start().with_tenant();
    assert_eq!(put(&api, json!({"language": "fr"})).0, 200);
    let (_, good) = api.get("/tenants/acme/wording");
    let reloads = api.reloads.load(Ordering::Relaxed);
    for (body, status, code, field) in [
        (json!({"language": "not a tag"}), 422, "invalid", "language"),
        (
            json!({"contact": "a\r\nBcc: b@c"}),
            422,
            "invalid",
            "contact",
        ),
        (
            json!({"texts": {"delay": {"opening": "{who} knows"}}}),
            422,
            "invalid",
            "texts.delay.opening",
        ),
        (
            json!({"texts": {"reasons": {"rejected": ""}}}),
            422,
            "invalid",
            "texts.reasons.rejected",
        ),
        (
            json!({"texts": {"delay": {"opning": "x"}}}),
            400,
            "bad-json",
            "opning",
        ),
        (json!({"colour": "red"}), 400, "bad-json", "colour"),
    ] {
        let answer = put(&api, body.clone());
        assert!(
            answer.1["error"]["remedy"].is_string(),
            "{body}: {answer:?}"
        );
        assert_eq!(api.refused(answer), triple(status, code, field), "{body}");
        // Nor is it shown as a notice would be.
        let preview = api.post("/tenants/acme/wording/preview", json!({"wording": body}));
        assert_eq!(api.refused(preview).0, status, "{body}");
    }
    assert_eq!(api.get("/tenants/acme/wording").1, good);
    assert_eq!(api.reloads.load(Ordering::Relaxed), reloads);
}

#[test]
fn a_preview_shows_each_kind_without_changing_anything() {
    let api = Api::start().with_tenant();
    let trial = json!({"wording": {
        "language": "de",
        "texts": {
            "failure": {"opening": "Ihre Nachricht \u{201e}{subject}\u{201c} kam nicht an."},
            "retried": "Wir versuchen es bis {until}.",
        },
    }});
    let (status, previews) = api.post("/tenants/acme/wording/preview", trial);
    assert_eq!(status, 200, "{previews}");
    let kinds: Vec<_> = previews
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["kind"])
        .collect();
    assert_eq!(kinds, ["failure", "delay", "success"]);
    let text = |n: usize| previews[n]["text"].as_str().unwrap();
    assert!(
        text(0).contains("\u{201e}Invoice 4711\u{201c} kam nicht an."),
        "{}",
        text(0)
    );
    assert!(text(1).contains("Wir versuchen es bis "), "{}", text(1));
    for preview in previews.as_array().unwrap() {
        let message = preview["message"].as_str().unwrap();
        assert!(
            message.contains("\r\nContent-Language: de\r\n"),
            "{message}"
        );
        assert!(
            message.contains("<MAILER-DAEMON@gateway.test>"),
            "{message}"
        );
        assert!(tidegate_mail::dsn::parse(message.as_bytes()).is_some());
    }
    assert_eq!(api.get("/tenants/acme/wording").1["own"], json!(false));
    // Without a wording it is the one in force.
    let (_, previews) = api.post("/tenants/acme/wording/preview", json!({}));
    assert!(
        previews[0]["text"]
            .as_str()
            .unwrap()
            .starts_with("Your message could not be")
    );
}

#[test]
fn of_two_changes_at_the_same_time_neither_is_lost() {
    let api = Api::start().with_tenant();
    for round in 0..40 {
        let suspended = round % 2 == 0;
        let word = format!("Round {round}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let body = json!({"suspended": suspended});
                assert_eq!(api.patch("/tenants/acme", body).0, 200);
            });
            let answer = put(&api, json!({"from_name": word}));
            assert_eq!(answer.0, 200, "{answer:?}");
        });
        let tenant = api.get("/tenants/acme").1;
        let wording = api.get("/tenants/acme/wording").1;
        assert_eq!(
            (&tenant["suspended"], &wording["wording"]["from_name"]),
            (&json!(suspended), &json!(word)),
            "round {round}"
        );
    }
    for round in 0..20 {
        let id = format!("t{round}");
        let body = json!({"id": id, "domains": ["t.example"]});
        assert_eq!(api.post("/tenants", body).0, 201);
        let path = format!("/tenants/{id}");
        std::thread::scope(|scope| {
            scope.spawn(|| api.patch(&path, json!({"suspended": true})));
            assert_eq!(api.delete(&path).0, 200);
        });
        assert_eq!(api.get(&path).0, 404, "what was removed came back");
    }
}
