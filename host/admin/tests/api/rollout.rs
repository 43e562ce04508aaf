//! A revision's way: shadow, canary, promotion, roll-back.

use serde_json::{Value, json};

use crate::rig::*;

fn component(name: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("routing-policy {name}"))
}

fn state(api: &Api) -> [Option<String>; 3] {
    let (_, list) = api.get("/slots/status?slot=routing/acme");
    ["in_force", "previous", "trial"]
        .map(|part| list[0][part]["digest"].as_str().map(|d| d[..1].to_owned()))
}

fn three(in_force: &str, previous: &str, trial: &str) -> [Option<String>; 3] {
    [in_force, previous, trial].map(|d| Some(d.to_owned()).filter(|d| !d.is_empty()))
}

#[test]
fn a_revision_goes_live_in_steps() {
    let api = Api::start().with_tenant();
    let slot = json!({"slot": "routing/acme"});
    let upload = |name: &str, more: Value| {
        let mut body = json!({"component": component(name), "slot": "routing/acme"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        api.post("/policies", body)
    };
    assert_eq!(upload("a", json!({"inactive": true})).0, 201);
    assert_eq!(state(&api), three("", "", ""));
    let (_, shown) = upload("a", json!({"shadow": true}));
    assert_eq!(shown["on_trial_in"], json!(["routing/acme"]));
    assert_eq!(state(&api), three("", "", "a"));
    assert_eq!(api.post("/slots/promote", slot.clone()).0, 200);
    assert_eq!(state(&api), three("a", "", ""));
    assert_eq!(
        api.refused(api.post("/slots/promote", slot.clone())),
        triple(409, "conflict", "")
    );
    let (_, shown) = upload("b", json!({"canary": 5}));
    assert_eq!(shown["active_in"], json!([]));
    assert_eq!(state(&api), three("a", "", "b"));
    let more = json!({"slot": "routing/acme", "percent": 50});
    let (status, step) = api.post("/slots/canary", more);
    assert_eq!((status, &step["permille"]), (200, &json!(500)));
    assert_eq!(step["by"], json!("operator"));
    // Withdrawn first, then back, then given up.
    for left in [three("a", "", ""), three("", "", "")] {
        assert_eq!(api.post("/slots/rollback", slot.clone()).0, 200);
        assert_eq!(state(&api), left);
    }
    let (_, history) = api.get("/slots/history?slot=routing/acme");
    let steps: Vec<&str> = history
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|a| a["step"].as_str().unwrap())
        .collect();
    assert_eq!(
        steps,
        [
            "shadow", "activate", "canary", "canary", "withdraw", "vacate"
        ]
    );
    let of = |field: &str| -> Vec<String> {
        let list = history.as_array().unwrap().iter().rev();
        list.map(|a| a[field].as_str().map_or("", |d| &d[..1]).to_owned())
            .collect()
    };
    assert_eq!(of("digest"), ["a", "a", "b", "b", "b", "a"]);
    assert_eq!(of("in_force_before"), ["", "", "a", "a", "a", "a"]);
    let words: Vec<&Value> = history
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|a| &a["change"])
        .collect();
    assert_eq!(
        json!(words),
        json!([
            "shadow",
            "promoted",
            "canary",
            "canary",
            "rolled back",
            "rolled back"
        ])
    );
}

#[test]
fn the_history_is_read_by_the_page_and_from_where_one_was() {
    let api = Api::start().with_tenant();
    for name in ["a", "b", "c", "d"] {
        let body = json!({"component": component(name), "slot": "routing/acme"});
        assert_eq!(api.post("/policies", body).0, 201);
    }
    let get = |query: &str| -> (Vec<String>, Vec<u64>) {
        let (status, list) = api.get(&format!("/slots/history?{query}"));
        assert_eq!(status, 200, "{list}");
        let list = list.as_array().unwrap();
        let digest = |a: &Value| a["digest"].as_str().unwrap()[..1].to_owned();
        let seq = |a: &Value| a["seq"].as_u64().unwrap();
        (
            list.iter().map(digest).collect(),
            list.iter().map(seq).collect(),
        )
    };
    let (digests, seqs) = get("slot=routing/acme");
    assert_eq!(digests, ["d", "c", "b", "a"]);
    assert!(seqs.is_sorted_by(|a, b| a > b), "{seqs:?}");
    assert_eq!(get("limit=2").0, ["d", "c"]);
    assert_eq!(get(&format!("limit=2&before={}", seqs[1])).0, ["b", "a"]);
    assert_eq!(get(&format!("limit=2&after={}", seqs[3])).0, ["b", "c"]);
    assert_eq!(get(&format!("after={}", seqs[0])).0, [""; 0]);
    assert_eq!(get("since=32503680000000").0, [""; 0]);
    assert_eq!(
        api.refused(api.get("/slots/history?limit=1001")),
        triple(422, "invalid", "limit")
    );
}

#[test]
fn steps_that_make_no_sense_are_refused() {
    let api = Api::start().with_tenant();
    let upload = |more: Value| {
        let mut body = json!({"component": component("a")});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        api.refused(api.post("/policies", body))
    };
    for more in [
        json!({"slot": "routing/acme", "shadow": true, "canary": 5}),
        json!({"slot": "routing/acme", "inactive": true, "shadow": true}),
        json!({"shadow": true}),
    ] {
        assert_eq!(
            upload(more.clone()),
            triple(422, "invalid", "slot"),
            "{more}"
        );
    }
    for percent in [0.0, 101.0] {
        let more = json!({"slot": "routing/acme", "canary": percent});
        assert_eq!(upload(more), triple(422, "invalid", "canary"));
    }
    let body = json!({"slot": "routing/acme", "percent": 5});
    assert_eq!(
        api.refused(api.post("/slots/canary", body)),
        triple(409, "conflict", "")
    );
    use base64::Engine as _;
    let exporter = base64::engine::general_purpose::STANDARD.encode("log-exporter e");
    let body = json!({"component": exporter, "slot": "export/log", "canary": 5});
    let refused = api.post("/policies", body);
    let remedy = refused.1["error"]["remedy"].as_str().unwrap();
    assert!(remedy.contains("as a shadow"), "{remedy}");
    assert_eq!(api.refused(refused), triple(422, "invalid", "slot"));
    let body = json!({"component": exporter, "slot": "export/log", "shadow": true});
    let (status, shown) = api.post("/policies", body);
    assert_eq!(
        (status, &shown["on_trial_in"]),
        (201, &json!(["export/log"]))
    );
    let shaper = base64::engine::general_purpose::STANDARD.encode("shaping-policy c");
    let body = json!({"component": shaper, "slot": "shaping", "canary": 5});
    let (status, shown) = api.post("/policies", body);
    assert_eq!((status, &shown["on_trial_in"]), (201, &json!(["shaping"])));
    let body = json!({"slot": "shaping", "digest": "cccccc"});
    assert_eq!(
        api.refused(api.post("/slots/rehearse", body)),
        triple(422, "invalid", "slot")
    );
}

#[test]
fn a_share_that_is_none_names_the_field_of_its_request() {
    let api = Api::start().with_tenant();
    let body = json!({"slot": "routing/acme", "digest": "abcdef", "percent": 0});
    assert_eq!(
        api.refused(api.post("/slots/canary", body)),
        triple(422, "invalid", "percent")
    );
}

#[test]
fn the_largest_configuration_goes_in_and_a_larger_one_is_told() {
    use base64::Engine as _;
    let api = Api::start().with_tenant();
    let component = "routing-policy ".to_owned() + &"c".repeat(1024 - 15);
    let component = base64::engine::general_purpose::STANDARD.encode(component);
    // Twice as long in JSON.
    let with = |bytes: usize| json!({"component": component, "config": "\n".repeat(bytes)});
    let (status, made) = api.post("/policies", with(MAX_CONFIG));
    assert_eq!(status, 201, "{}", made["error"]);
    let refused = api.post("/policies", with(MAX_CONFIG + 1));
    assert!(refused.1["error"]["remedy"].is_string());
    assert_eq!(api.refused(refused), triple(422, "invalid", "config"));
}
