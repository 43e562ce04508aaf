//! The gateway around the API: an engine on a real store, and a client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::{Value, json};
use tidegate_admin::{ApiError, Context, Host, Inputs, Rehearse, Upload, router};
use tidegate_mail::{Fault, Hop, Outcome, Stage, Timestamp};
use tidegate_queue::route::{Action, Managed, Question, Routing};
use tidegate_queue::shape::{LaneState, Plan};
use tidegate_queue::*;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// As the gateway has it.
pub const MAX_CONFIG: usize = 4 * 1024 * 1024;

pub struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(1_795_489_500)
    }

    fn sleep_until(&self, _at: Timestamp) -> Fut<'_, ()> {
        Box::pin(std::future::pending())
    }
}

pub struct NoNetwork;

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
                contact: Contact::Failed,
            }
        })
    }
}

pub struct AllManaged;

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
pub struct TestHost {
    pub registry: Arc<dyn Registry>,
    pub reloads: Arc<AtomicUsize>,
    pub tokens: AtomicUsize,
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

    fn refuses_server(&self, host: &str, _port: u16) -> Option<String> {
        (host == "10.0.0.1").then(|| "10.0.0.1 is on the gateway's network".to_owned())
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
            let uploaded = Uploaded {
                slot: upload.slot,
                digest: revision.digest.clone(),
                at: Still.now(),
                by: revision.uploaded_by.clone(),
                note: revision.note.clone(),
            };
            self.registry
                .put_revision(revision.clone(), upload.component, uploaded)
                .await?;
            Ok(revision)
        })
    }

    fn change(&self, change: Activation) -> Fut<'_, Result<(), ApiError>> {
        Box::pin(async move { Ok(self.registry.activate(change).await?) })
    }

    fn policy_status(&self) -> serde_json::Map<String, Value> {
        serde_json::Map::new()
    }

    fn rehearse(&self, rehearse: Rehearse) -> Fut<'_, Result<Value, ApiError>> {
        Box::pin(async move { Ok(json!({"slot": rehearse.slot, "digest": rehearse.digest})) })
    }

    fn inputs(&self, inputs: Inputs) -> Fut<'_, Result<Value, ApiError>> {
        Box::pin(async move {
            let query = DecisionQuery {
                tenant: inputs.tenant,
                since: inputs.since,
                after: inputs.after,
                max: inputs.max,
            };
            let rows = self.registry.decisions(query).await?;
            let bodies: Vec<Value> = rows
                .iter()
                .map(|row| serde_json::from_str(&row.body).unwrap())
                .collect();
            Ok(json!({"records": bodies}))
        })
    }

    fn random_token(&self) -> Result<String, ApiError> {
        let n = self.tokens.fetch_add(1, Ordering::Relaxed);
        Ok(format!("a-random-token-{n}"))
    }

    fn hash_token(&self, token: &str) -> String {
        // The end first: by that the tokens differ.
        token.bytes().rev().map(|b| format!("{b:02x}")).collect()
    }

    fn policy_changes(&self) -> Vec<tidegate_admin::PolicyChanges> {
        Vec::new()
    }

    fn exporters(&self) -> Vec<String> {
        vec!["log".to_owned()]
    }
}

/// A running API; its directory goes with it.
pub struct Api {
    pub address: SocketAddr,
    pub agent: ureq::Agent,
    pub reloads: Arc<AtomicUsize>,
    pub engine: Arc<Engine>,
    pub registry: Arc<dyn Registry>,
    pub runtime: tokio::runtime::Runtime,
    pub _dir: tempfile::TempDir,
}

impl Api {
    pub fn start() -> Api {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let reloads = Arc::new(AtomicUsize::new(0));
        let (address, engine, registry) = runtime.block_on(async {
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
                    registry: registry.clone(),
                    reloads: reloads.clone(),
                    tokens: AtomicUsize::new(0),
                }),
                token: TOKEN.to_owned(),
                hostname: "gateway.test".to_owned(),
                version: "0",
                started_at: Still.now(),
                max_component: 1024,
                max_config: MAX_CONFIG,
            });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(tidegate_admin::serve(listener, app, std::future::pending()));
            (address, engine, registry)
        });
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            // A refusal may close the connection before the body was read.
            .max_idle_connections(0)
            .build()
            .into();
        Api {
            address,
            agent,
            reloads,
            engine,
            registry,
            runtime,
            _dir: dir,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn ask(&self, method: &str, path: &str, token: Option<&str>, body: &[u8]) -> (u16, Value) {
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

    pub fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", &format!("/api/v1{path}"), Some(TOKEN), b"")
    }

    pub fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let body = body.to_string();
        self.ask(
            "POST",
            &format!("/api/v1{path}"),
            Some(TOKEN),
            body.as_bytes(),
        )
    }

    pub fn patch(&self, path: &str, body: Value) -> (u16, Value) {
        let body = body.to_string();
        self.ask(
            "PATCH",
            &format!("/api/v1{path}"),
            Some(TOKEN),
            body.as_bytes(),
        )
    }

    pub fn delete(&self, path: &str) -> (u16, Value) {
        self.ask("DELETE", &format!("/api/v1{path}"), Some(TOKEN), b"")
    }

    /// A refusal in its parts: status, code, field.
    pub fn refused(&self, answer: (u16, Value)) -> (u16, String, String) {
        let error = &answer.1["error"];
        assert!(error["message"].is_string(), "{answer:?}");
        (
            answer.0,
            error["code"].as_str().unwrap_or_default().to_owned(),
            error["field"].as_str().unwrap_or_default().to_owned(),
        )
    }

    pub fn with_tenant(self) -> Api {
        let (status, _) = self.post(
            "/tenants",
            json!({"id": "acme", "domains": ["ACME.example"]}),
        );
        assert_eq!(status, 201);
        self
    }
}

pub fn triple(status: u16, code: &str, field: &str) -> (u16, String, String) {
    (status, code.to_owned(), field.to_owned())
}
