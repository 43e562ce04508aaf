//! The API over a loopback socket, with a real engine on a real SQLite store.
//!
//! Only what the gateway wires in is replaced: secrets and the compiler of policies, and a
//! network without any destination.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::{Value, json};
use tidegate_admin::{ApiError, Context, Host, Upload, router};
use tidegate_mail::{
    Address, BodyType, Envelope, Fault, Hop, Outcome, Recipient, Stage, Timestamp,
    header::HeaderBlock,
};
use tidegate_queue::route::{Action, Managed, Question, Routing};
use tidegate_queue::shape::{LaneState, Plan};
use tidegate_queue::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(1_795_489_500)
    }

    fn sleep_until(&self, _at: Timestamp) -> Fut<'_, ()> {
        Box::pin(std::future::pending())
    }
}

struct NoNetwork;

impl Resolver for NoNetwork {
    fn resolve<'a>(&'a self, _domain: &'a str) -> Fut<'a, Result<Arc<Destination>, Outcome>> {
        Box::pin(async { Err(Outcome::from_fault(Stage::Dns, Fault::DnsUnavailable)) })
    }
}

impl Transport for NoNetwork {
    fn deliver(&self, job: Job) -> Fut<'_, HandOff> {
        let hop = Arc::new(Hop::nowhere(Still.now()));
        let results = job
            .recipients
            .iter()
            .map(|r| Hand {
                index: r.index,
                hop: hop.clone(),
                outcome: Outcome::from_fault(Stage::Connect, Fault::ConnectRefused),
            })
            .collect();
        Box::pin(async {
            HandOff {
                results,
                host_failure: true,
            }
        })
    }
}

struct AllManaged;

impl Policy for AllManaged {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        let n = question.envelope.recipients.len();
        Box::pin(async move { Routing::all(Action::Managed(Managed::default()), n) })
    }

    fn plan(
        &self,
        _now: Timestamp,
        _state: Bytes,
        _lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        Box::pin(async { Err(PolicyFault::Inactive) })
    }

    fn render<'a>(
        &'a self,
        _exporter: &'a str,
        _batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>> {
        Box::pin(async { Err(PolicyFault::Inactive) })
    }

    fn wanted_headers(&self, _tenant: &str) -> Arc<[String]> {
        Arc::default()
    }
}

/// Counts what it is asked; a component is `world NAME` in clear.
struct TestHost {
    registry: Arc<dyn Registry>,
    reloads: Arc<AtomicUsize>,
}

impl Host for TestHost {
    fn hash_password(&self, password: String) -> Fut<'_, Result<String, ApiError>> {
        Box::pin(async move { Ok(format!("hash of {password}")) })
    }

    fn random_password(&self) -> Result<String, ApiError> {
        Ok("a-random-password".to_owned())
    }

    fn seal(&self, secret: &str) -> Result<String, ApiError> {
        Ok(format!("sealed:{}", secret.len()))
    }

    fn directory_changed(&self) -> Fut<'_, StoreResult<()>> {
        self.reloads.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }

    fn upload(&self, upload: Upload) -> Fut<'_, Result<Revision, ApiError>> {
        Box::pin(async move {
            let text = String::from_utf8_lossy(&upload.component).into_owned();
            let (world, name) = text
                .split_once(' ')
                .ok_or_else(|| ApiError::invalid("component", "not a policy"))?;
            let digest = name.repeat(64)[..64].to_owned();
            let revision = Revision {
                digest,
                world: world.to_owned(),
                name: name.to_owned(),
                version: "1".to_owned(),
                config: upload.config,
                uploaded_at: Still.now(),
                uploaded_by: upload.by,
                note: upload.note,
                size: upload.component.len() as u64,
            };
            self.registry
                .put_revision(revision.clone(), upload.component)
                .await?;
            Ok(revision)
        })
    }

    fn activate(&self, activation: Activation) -> Fut<'_, Result<(), ApiError>> {
        Box::pin(async move { Ok(self.registry.activate(activation).await?) })
    }

    fn exporters(&self) -> Vec<String> {
        vec!["log".to_owned()]
    }
}

/// A running API; its directory goes with it.
struct Api {
    address: SocketAddr,
    agent: ureq::Agent,
    reloads: Arc<AtomicUsize>,
    engine: Arc<Engine>,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Api {
    fn start() -> Api {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let reloads = Arc::new(AtomicUsize::new(0));
        let (address, engine) = runtime.block_on(async {
            let options = tidegate_store::Options::default();
            let (store, registry) = tidegate_store::open("sqlite", dir.path(), options)
                .await
                .unwrap();
            let engine = Engine::open(Parts {
                settings: Settings::default(),
                store,
                clock: Arc::new(Still),
                resolver: Arc::new(NoNetwork),
                transport: Arc::new(NoNetwork),
                policy: Arc::new(AllManaged),
                sinks: HashMap::new(),
                directory: Arc::new(ArcSwap::from_pointee(Directory::new(
                    Vec::new(),
                    Vec::new(),
                    Vec::new(),
                    Vec::new(),
                ))),
                unseal: Arc::new(|_| None),
                node: 1,
            })
            .await
            .unwrap();
            let app = router(Context {
                engine: engine.clone(),
                registry: registry.clone(),
                clock: Arc::new(Still),
                host: Arc::new(TestHost {
                    registry,
                    reloads: reloads.clone(),
                }),
                token: TOKEN.to_owned(),
                hostname: "gateway.test".to_owned(),
                version: "0",
                started_at: Still.now(),
                max_component: 1024,
            });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(tidegate_admin::serve(listener, app, std::future::pending()));
            (address, engine)
        });
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        Api {
            address,
            agent,
            reloads,
            engine,
            runtime,
            _dir: dir,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn ask(&self, method: &str, path: &str, token: Option<&str>, body: &[u8]) -> (u16, Value) {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(self.url(path));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(body.to_vec()).unwrap();
        let request = self
            .agent
            .configure_request(request)
            .allow_non_standard_methods(true)
            .build();
        let mut answer = self.agent.run(request).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (answer.status().as_u16(), value)
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", &format!("/api/v1{path}"), Some(TOKEN), b"")
    }

    fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let body = body.to_string();
        self.ask(
            "POST",
            &format!("/api/v1{path}"),
            Some(TOKEN),
            body.as_bytes(),
        )
    }

    fn patch(&self, path: &str, body: Value) -> (u16, Value) {
        let body = body.to_string();
        self.ask(
            "PATCH",
            &format!("/api/v1{path}"),
            Some(TOKEN),
            body.as_bytes(),
        )
    }

    fn delete(&self, path: &str) -> (u16, Value) {
        self.ask("DELETE", &format!("/api/v1{path}"), Some(TOKEN), b"")
    }

    /// A refusal in its parts: status, code, field.
    fn refused(&self, answer: (u16, Value)) -> (u16, String, String) {
        let error = &answer.1["error"];
        assert!(error["message"].is_string(), "{answer:?}");
        (
            answer.0,
            error["code"].as_str().unwrap_or_default().to_owned(),
            error["field"].as_str().unwrap_or_default().to_owned(),
        )
    }

    fn with_tenant(self) -> Api {
        let (status, _) = self.post(
            "/tenants",
            json!({"id": "acme", "domains": ["ACME.example"]}),
        );
        assert_eq!(status, 201);
        self
    }
}

fn triple(status: u16, code: &str, field: &str) -> (u16, String, String) {
    (status, code.to_owned(), field.to_owned())
}

#[test]
fn every_route_asks_for_the_token() {
    let api = Api::start();
    let wrong = "1123456789abcdef0123456789abcdef";
    for (method, path) in [
        ("GET", "/stats"),
        ("GET", "/tenants"),
        ("POST", "/tenants"),
        ("DELETE", "/tenants/acme"),
        ("GET", "/queue"),
        ("POST", "/queue/cancel"),
        ("GET", "/log"),
        ("POST", "/policies"),
        ("POST", "/slots/activate"),
        ("DELETE", "/measures/x"),
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
        api.refused(api.post("/slots/rollback", json!({"slot": "routing/acme"}))),
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
    let path = format!("/measures/{}", measure["id"].as_str().unwrap());
    assert_eq!(api.delete(&path).0, 200);
    assert_eq!(api.delete(&path).0, 404);
    assert_eq!(api.get("/measures").1, json!([]));

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
