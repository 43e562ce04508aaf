//! The admin API: JSON over HTTP, for the operator's command line and tools.
//!
//! It serves what the engine shows, and changes tenants, credentials, servers, relays,
//! policies and the queue. Every route under `/api/v1` asks for the operator's token; a few
//! take a tenant's, and then show and change what is the tenant's alone. `/health` and
//! `/metrics` ask for none, and tell nothing about a tenant. The listener belongs on loopback:
//! there is no TLS here.
//!
//! It does not know SQL, wasmtime, or how a password is hashed or sealed: that is behind
//! [`Host`].

mod directory;
mod error;
mod extract;
mod logs;
mod metrics;
mod policies;
mod queue;
mod rollout;
mod tokens;
mod validate;
mod ways;
mod wording;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use serde::Serialize;
use tidegate_mail::Timestamp;
use tidegate_queue::control::{ExportStatus, Stats};
use tidegate_queue::{
    Activation, Clock, Engine, Fut, Registry, Revision, StoreCounts, StoreResult,
};

pub use error::{ApiError, ErrorBody, ErrorDetail};

/// Largest request body except for an upload.
const MAX_BODY: usize = 256 * 1024;

/// What the API needs of the process around it.
pub trait Host: Send + Sync + 'static {
    /// Argon2id in PHC form. Takes tens of milliseconds; runs off the request's thread.
    fn hash_password(&self, password: String) -> Fut<'_, Result<String, ApiError>>;

    /// A password of at least 120 bits, from letters and digits.
    fn random_password(&self) -> Result<String, ApiError>;

    /// Seals a secret with the master key.
    fn seal(&self, secret: &str) -> Result<String, ApiError>;

    /// Takes the registry's changed contents into use, for the next command of every session.
    fn directory_changed(&self) -> Fut<'_, StoreResult<()>>;

    /// Validates, prepares and stores a component; it is not active by that.
    fn upload(&self, upload: Upload) -> Fut<'_, Result<Revision, ApiError>>;

    /// Writes a change of a slot down and puts it in force, for the next message.
    fn change(&self, change: Activation) -> Fut<'_, Result<(), ApiError>>;

    /// What policies in force and on trial do, by slot.
    fn policy_status(&self) -> serde_json::Map<String, serde_json::Value>;

    /// Asks a revision about recorded decisions, for a bounded time.
    fn rehearse(&self, rehearse: Rehearse) -> Fut<'_, Result<serde_json::Value, ApiError>>;

    /// Recorded decisions, oldest first.
    fn inputs(&self, inputs: Inputs) -> Fut<'_, Result<serde_json::Value, ApiError>>;

    /// At least 160 random bits, from letters and digits.
    fn random_token(&self) -> Result<String, ApiError>;

    /// Hex SHA-256.
    fn hash_token(&self, token: &str) -> String;

    /// Why a tenant's server can't be at this address, where it is written as one: it is the
    /// gateway itself, or on its network. What a name stands for is checked at each use.
    fn refuses_server(&self, host: &str, port: u16) -> Option<String>;

    /// Names of the configured exporters, which are the valid `export/NAME` slots.
    fn exporters(&self) -> Vec<String>;

    /// How often what a slot runs was changed since the start.
    fn policy_changes(&self) -> Vec<PolicyChanges>;
}

/// Changes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyChanges {
    /// As [`Activation::word`] says it.
    pub change: &'static str,
    /// `operator`, `tenant` or `gateway`.
    pub by: &'static str,
    pub count: u64,
}

/// Which revision is asked about which decisions.
pub struct Rehearse {
    pub slot: String,
    pub digest: String,
    pub since: Option<Timestamp>,
    /// Where the part before ended; 0 at first.
    pub after: u64,
}

/// Which recorded decisions are wanted.
pub struct Inputs {
    /// `None`: of all tenants.
    pub tenant: Option<String>,
    pub since: Option<Timestamp>,
    pub after: u64,
    pub max: u32,
    /// Addresses hashed.
    pub hash: bool,
}

/// A policy component as it came in.
pub struct Upload {
    pub component: Bytes,
    /// Handed to the component's `init` as it is.
    pub config: String,
    pub note: String,
    pub by: String,
    /// The slot it is for; empty: none in particular.
    pub slot: String,
}

/// What the routes share.
pub struct Context {
    pub engine: Arc<Engine>,
    pub registry: Arc<dyn Registry>,
    pub clock: Arc<dyn Clock>,
    pub host: Arc<dyn Host>,
    /// The operator's token.
    pub token: String,
    pub hostname: String,
    pub version: &'static str,
    pub started_at: Timestamp,
    /// Largest component accepted, bytes.
    pub max_component: usize,
    /// Largest configuration of a policy, bytes.
    pub max_config: usize,
}

/// The context, and what keeps changes apart.
pub(crate) struct Inner {
    context: Context,
    /// Held from reading what a change of the directory depends on until it is written: records are
    /// written whole.
    pub directory: tokio::sync::Mutex<()>,
}

impl std::ops::Deref for Inner {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.context
    }
}

pub(crate) type Shared = State<Arc<Inner>>;

/// Who is recorded as having made a change that only the operator's token allows.
pub(crate) const OPERATOR: &str = "operator";

/// All routes.
pub fn router(context: Context) -> Router {
    // Base64, and the configuration as a JSON string: twice as long where every byte is escaped
    // by another.
    let upload_limit = context.max_component.div_ceil(3) * 4 + 2 * context.max_config + 64 * 1024;
    let context = Arc::new(Inner {
        context,
        directory: tokio::sync::Mutex::default(),
    });
    let api = Router::new()
        .route("/status", get(status))
        .route("/stats", get(stats))
        .route(
            "/tenants",
            get(directory::list_tenants).post(directory::add_tenant),
        )
        .route(
            "/tenants/{id}",
            get(directory::show_tenant)
                .patch(directory::change_tenant)
                .delete(directory::remove_tenant),
        )
        .route(
            "/tenants/{id}/wording",
            get(wording::show).put(wording::set).delete(wording::reset),
        )
        .route("/tenants/{id}/wording/preview", post(wording::preview))
        .route(
            "/credentials",
            get(directory::list_credentials).post(directory::add_credential),
        )
        .route("/credentials/{user}", delete(directory::remove_credential))
        .route("/servers", get(ways::list_servers).post(ways::add_server))
        .route("/servers/{tenant}/{name}", delete(ways::remove_server))
        .route("/relays", get(ways::list_relays).post(ways::add_relay))
        .route("/relays/{name}", delete(ways::remove_relay))
        .route(
            "/policies",
            get(policies::list)
                .post(policies::upload)
                .layer(DefaultBodyLimit::max(upload_limit)),
        )
        .route("/policies/{digest}", get(policies::show))
        .route("/policies/inputs", get(rollout::inputs))
        .route("/slots", get(rollout::slots))
        .route("/slots/status", get(rollout::status))
        .route("/slots/history", get(rollout::history))
        .route("/slots/activate", post(rollout::activate))
        .route("/slots/canary", post(rollout::canary))
        .route("/slots/shadow", post(rollout::shadow))
        .route("/slots/promote", post(rollout::promote))
        .route("/slots/rollback", post(rollout::rollback))
        .route("/slots/rehearse", post(rollout::rehearse))
        .route("/tokens", get(tokens::list).post(tokens::add))
        .route("/tokens/{id}", delete(tokens::remove))
        .route("/whoami", get(tokens::whoami))
        .route("/queue", get(queue::list))
        .route("/queue/lanes", get(queue::lanes))
        .route("/queue/cancel", post(queue::cancel))
        .route("/queue/retry", post(queue::retry))
        .route("/measures", get(queue::measures).post(queue::add_measure))
        .route("/measures/{id}/lift", post(queue::lift_measure))
        .route("/exports", get(exports))
        .route("/log", get(logs::search))
        .route("/log/{id}", get(logs::show))
        // Within the router, so that the matched route is known.
        .route_layer(axum::middleware::from_fn_with_state(
            context.clone(),
            extract::authenticate,
        ));
    Router::new()
        .nest("/api/v1", api)
        .route("/health", get(health))
        .route("/metrics", get(metrics::metrics))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(context)
}

/// Answers requests until `stop` ends; those under way are finished.
///
/// # Errors
/// Of the listener.
pub async fn serve(
    listener: tokio::net::TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    /// Why new mail is not taken, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Recipients in the queue past their lifetime.
    #[serde(skip_serializing_if = "is_zero")]
    overdue: u64,
    /// Exporters with nothing but failures for a minute.
    #[serde(skip_serializing_if = "is_zero")]
    exports_failing: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// 200 while mail is taken, 503 while it is answered with 4xx.
async fn health(State(context): Shared) -> (axum::http::StatusCode, axum::Json<Health>) {
    use tidegate_queue::Intake;
    let overdue = context.engine.stats().overdue;
    let exports_failing = context.engine.exports_failing();
    match context.engine.refusal() {
        None => (
            axum::http::StatusCode::OK,
            axum::Json(Health {
                status: "ok",
                reason: None,
                overdue,
                exports_failing,
            }),
        ),
        Some(reply) => (
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            axum::Json(Health {
                status: "refusing",
                reason: Some(reply.to_string()),
                overdue,
                exports_failing,
            }),
        ),
    }
}

#[derive(Serialize)]
struct Status {
    hostname: String,
    version: &'static str,
    started_at: Timestamp,
    uptime_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusing: Option<String>,
}

async fn status(State(context): Shared) -> axum::Json<Status> {
    use tidegate_queue::Intake;
    axum::Json(Status {
        hostname: context.hostname.clone(),
        version: context.version,
        started_at: context.started_at,
        uptime_seconds: context.clock.now().since(context.started_at).as_secs(),
        refusing: context.engine.refusal().map(|reply| reply.to_string()),
    })
}

/// How each exporter does.
async fn exports(State(context): Shared) -> Result<axum::Json<Vec<ExportStatus>>, ApiError> {
    Ok(axum::Json(context.engine.exports().await?))
}

#[derive(Serialize)]
struct AllStats {
    uptime_seconds: u64,
    engine: Stats,
    store: StoreCounts,
}

async fn stats(State(context): Shared) -> Result<axum::Json<AllStats>, ApiError> {
    Ok(axum::Json(AllStats {
        uptime_seconds: context.clock.now().since(context.started_at).as_secs(),
        engine: context.engine.stats(),
        store: context.engine.store().counts().await?,
    }))
}
