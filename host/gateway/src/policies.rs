//! Policies between the registry, which keeps them, and the policy host, which runs them.
//!
//! A revision is compiled in a worker process and its code kept in `data_dir`, so a restart
//! compiles nothing. A change of a slot is durable before it is in force, and is only made
//! durable once the revision is known to load. What the host rolls back by itself is in force
//! at once and written down after; what another gateway on the same database changed is found
//! in its history.

mod changes;
mod defaults;
mod follow;
mod inputs;
mod turns;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use tidegate_admin::{ApiError, PolicyChanges, Upload};
use tidegate_net::clock::OsClock;
use tidegate_policy::{
    CodeCache, Fallback, HostOptions, Incident, Observed, PlannedAside, PolicyEngine, PolicyHost,
    Prepared, Refused, RenderedAside, TrialKind, worker,
};
use tidegate_queue::rollout::{self, SlotState, Step};
use tidegate_queue::{Activation, Clock, Directory, Policy, Registry, Revision, Uploaded};
use tokio::sync::mpsc;

use crate::cli::{Failure, Outcome};
use crate::config::{self, Config};
use crate::secrets::MasterKey;

pub use defaults::{default_dir, install_defaults};
pub use follow::keep;

/// Rehearsals at the same time; each reads recorded decisions by the page.
const REHEARSALS: usize = 8;

/// The running binary, also after its file was replaced by a newer one.
const OWN_BINARY: &str = "/proc/self/exe";

/// Runs as `tidegate policy-worker`.
pub fn worker() -> Outcome {
    match worker::main() {
        0 => Ok(()),
        _ => Err(Failure::Told(crate::cli::Exit::Failure)),
    }
}

/// Compiles uploads, and keeps what it compiled.
struct Workshop {
    cache: CodeCache,
}

impl Workshop {
    fn open(config: &Config, key: &MasterKey, engine: &PolicyEngine) -> Result<Self, Failure> {
        CodeCache::open(&config.data_dir.join("policies"), key.code_key(), engine)
            .map(|cache| Workshop { cache })
            .map_err(|e| {
                Failure::failed(
                    e.to_string(),
                    "make data_dir writable for the user who runs tidegate",
                )
            })
    }

    /// What somebody sent.
    async fn prepare(&self, component: &[u8], config: &str) -> Result<Prepared, Refused> {
        let upload = tidegate_policy::Upload { component, config };
        let prepared = worker::prepare_in_child(Path::new(OWN_BINARY), upload).await?;
        Ok(self.keep(prepared))
    }

    /// What was accepted before, maybe by another gateway.
    async fn prepare_again(&self, component: &[u8], config: &str) -> Result<Prepared, Refused> {
        let upload = tidegate_policy::Upload { component, config };
        let prepared = worker::prepare_again_in_child(Path::new(OWN_BINARY), upload).await?;
        Ok(self.keep(prepared))
    }

    fn keep(&self, prepared: Prepared) -> Prepared {
        if let Err(error) = self.cache.put(&prepared) {
            // It will be compiled again at the next start.
            tracing::warn!(%error, "a compiled policy was not kept");
        }
        // From its file it takes less memory.
        self.cache.get(&prepared.digest).unwrap_or(prepared)
    }

    /// A revision of the registry, from the cache where it is there.
    async fn revision(&self, registry: &dyn Registry, digest: &str) -> Result<Prepared, String> {
        if let Some(prepared) = self.cache.get(digest) {
            return Ok(prepared);
        }
        let component = registry
            .component(digest.to_owned())
            .await
            .map_err(|e| e.to_string())?
            .ok_or("its component is not in the database")?;
        let config = registry
            .revisions()
            .await
            .map_err(|e| e.to_string())?
            .into_iter()
            .find(|r| r.digest == digest)
            .ok_or("it is not in the database")?
            .config;
        tracing::info!(digest, "compiling a policy");
        let prepared = self
            .prepare_again(&component, &config)
            .await
            .map_err(|e| e.to_string())?;
        if prepared.digest == digest {
            Ok(prepared)
        } else {
            Err("its component in the database is damaged".to_owned())
        }
    }
}

/// All policies of a running gateway.
pub struct Policies {
    host: Arc<PolicyHost>,
    workshop: Workshop,
    registry: Arc<dyn Registry>,
    directory: Arc<ArcSwap<Directory>>,
    clock: OsClock,
    exporters: Vec<String>,
    kept: Kept,
    changes: changes::Changes,
    /// One change at a time, so that registry and host agree on the order.
    changing: tokio::sync::Mutex<()>,
    /// Rehearsals under way, by slot.
    rehearsing: turns::Turns,
    /// Tenants' uploads under way: the worker that prepares them is one for all.
    uploading: turns::Turns,
    /// Taken by the task that keeps up with them.
    news: Mutex<Option<News>>,
    /// Hashes addresses in what is handed out.
    hash_key: [u8; 32],
}

/// What is kept for how long.
struct Kept {
    inputs: std::time::Duration,
    inputs_per_tenant: u32,
    revisions: usize,
    log: std::time::Duration,
}

/// What the host tells of.
struct News {
    incidents: mpsc::UnboundedReceiver<Incident>,
    observed: mpsc::Receiver<Observed>,
    aside: Aside,
}

/// What shadows of the operator's policies are asked.
struct Aside {
    planned: mpsc::Receiver<PlannedAside>,
    rendered: mpsc::Receiver<RenderedAside>,
}

fn engine(made: Result<PolicyEngine, tidegate_policy::LoadError>) -> Result<PolicyEngine, Failure> {
    made.map_err(|e| {
        Failure::failed(
            format!("WebAssembly can't be set up: {e}"),
            "raise the limit on address space (ulimit -v), or lift it",
        )
    })
}

impl Policies {
    /// Sets up the engine and puts in force what was in force last.
    ///
    /// # Errors
    /// A slot whose revision can't be loaded stops the start: without it mail would go another
    /// way than its owner said.
    pub async fn start(
        config: &Config,
        key: &MasterKey,
        registry: Arc<dyn Registry>,
        directory: Arc<ArcSwap<Directory>>,
    ) -> Result<Arc<Self>, Failure> {
        let engine = engine(PolicyEngine::new())?;
        let workshop = Workshop::open(config, key, &engine)?;
        let options = HostOptions {
            fallback: match config.policy.fallback {
                config::Fallback::Defer => Fallback::Defer,
                config::Fallback::Managed => Fallback::Managed,
            },
            record: config.policy.record_inputs,
        };
        let host = Arc::new(PolicyHost::new(engine, directory.clone(), options));
        let aside = host.planned_aside().zip(host.rendered_aside());
        let news = host.incidents().zip(host.observed()).zip(aside);
        let policies = Policies {
            host,
            workshop,
            registry,
            directory,
            clock: OsClock,
            exporters: config.export.keys().cloned().collect(),
            kept: Kept {
                inputs: config.policy.inputs_retention.get(),
                inputs_per_tenant: config.policy.inputs_per_tenant,
                revisions: config.policy.keep_revisions as usize,
                // An event may name what decided a lifetime before.
                log: config.log.retention.get() + config.delivery.lifetime.get(),
            },
            changes: changes::Changes::default(),
            changing: tokio::sync::Mutex::new(()),
            rehearsing: turns::Turns::new(REHEARSALS),
            uploading: turns::Turns::new(usize::MAX),
            news: Mutex::new(
                news.map(|((incidents, observed), (planned, rendered))| News {
                    incidents,
                    observed,
                    aside: Aside { planned, rendered },
                }),
            ),
            hash_key: *key.address_key(),
        };
        policies.restore().await?;
        policies.tidy_up().await;
        Ok(Arc::new(policies))
    }

    /// Removes compiled code that belongs to no revision, or to another build of the gateway.
    async fn tidy_up(&self) {
        let Ok(revisions) = self.registry.revisions().await else {
            return;
        };
        let digests = revisions.iter().map(|r| r.digest.as_str());
        match self.workshop.cache.retain(digests) {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "compiled policies of another version were removed"),
            Err(error) => tracing::warn!(%error, "old compiled policies could not be removed"),
        }
    }

    /// Puts in force what was in force last, and on trial what was on trial.
    async fn restore(&self) -> Result<(), Failure> {
        let history = self
            .registry
            .activations()
            .await
            .map_err(|e| Failure::failed(format!("the policies can't be read: {e}"), ""))?;
        let now = self.clock.now();
        for (slot, state) in rollout::slots(&history) {
            if !self.is_served(&slot) {
                tracing::info!(slot, "not configured: its policy is not started");
                continue;
            }
            let cannot = |digest: &str, reason: String| {
                Failure::failed(
                    format!(
                        "the policy {digest:.12} of the slot {slot} can't be started: {reason}"
                    ),
                    "free memory, or start the version of tidegate that ran before and roll the slot back",
                )
            };
            if let Some(in_force) = &state.in_force {
                let digest = &in_force.digest;
                let prepared = self
                    .prepared(digest)
                    .await
                    .map_err(|reason| cannot(digest, reason))?;
                let last_good = match &state.previous {
                    // Without it a failure takes the fallback: no reason not to start.
                    Some(previous) => self.prepared(&previous.digest).await.ok(),
                    None => None,
                };
                self.host
                    .restore(&slot, &prepared, last_good.as_ref(), now.since(in_force.at))
                    .map_err(|e| cannot(digest, e.to_string()))?;
            }
            if let Some((digest, kind)) = trial_of(&state) {
                let prepared = self
                    .prepared(digest)
                    .await
                    .map_err(|reason| cannot(digest, reason))?;
                self.host
                    .try_out(&slot, &prepared, kind)
                    .map_err(|e| cannot(digest, e.to_string()))?;
            }
        }
        Ok(())
    }

    /// Whether the tenant or the exporter of a slot is there.
    fn is_served(&self, slot: &str) -> bool {
        if let Some(tenant) = slot.strip_prefix("routing/") {
            return self.directory.load().tenant(tenant).is_some();
        }
        match slot.strip_prefix("export/") {
            Some(name) => self.exporters.iter().any(|e| e == name),
            None => true,
        }
    }

    async fn prepared(&self, digest: &str) -> Result<Prepared, String> {
        self.workshop.revision(&*self.registry, digest).await
    }

    pub fn port(&self) -> Arc<dyn Policy> {
        self.host.clone()
    }

    /// Empties the slots of tenants that are gone.
    pub fn directory_changed(&self, directory: &Directory) {
        for status in self.host.status() {
            if let Some(tenant) = status.slot.strip_prefix("routing/")
                && directory.tenant(tenant).is_none()
            {
                self.host.deactivate(&status.slot);
            }
        }
        for (slot, _) in self.host.trials() {
            if let Some(tenant) = slot.strip_prefix("routing/")
                && directory.tenant(tenant).is_none()
            {
                self.host.withdraw(&slot);
            }
        }
    }

    /// Compiles a component and keeps it as a revision.
    pub async fn upload(&self, upload: Upload) -> Result<Revision, ApiError> {
        let _turn = match upload.by.starts_with("tenant:") {
            true => Some(self.uploading.take(&upload.by).ok_or_else(|| {
                ApiError::conflict("another upload of this tenant is being prepared")
                    .remedy("upload one after the other: wait until that one is answered")
            })?),
            false => None,
        };
        let prepared = self
            .workshop
            .prepare(&upload.component, &upload.config)
            .await
            .map_err(refused)?;
        let (revision, uploaded) = revision_of(&prepared, &upload, self.clock.now());
        self.registry
            .put_revision(revision.clone(), upload.component, uploaded)
            .await?;
        // At once, so that many uploads do not fill the disk.
        self.sweep_revisions(self.clock.now()).await?;
        // One that is there already stays as it is, so what is there is the answer.
        let stored = self.registry.revisions().await?;
        Ok(stored
            .into_iter()
            .find(|r| r.digest == revision.digest)
            .unwrap_or(revision))
    }

    /// Writes a change of a slot down and puts it in force for its next call.
    pub async fn change(&self, change: Activation) -> Result<(), ApiError> {
        let needs_code = matches!(
            change.step,
            Step::Activate | Step::Canary { .. } | Step::Shadow
        );
        let prepared = if needs_code {
            let prepared = self.prepared(&change.digest).await.map_err(|reason| {
                ApiError::internal(format!(
                    "the revision {:.12} can't be loaded: {reason}",
                    change.digest
                ))
            })?;
            Some(prepared)
        } else {
            None
        };
        let _one = self.changing.lock().await;
        // Loading is what may fail; afterwards the change can be written down.
        if let Some(prepared) = &prepared {
            self.host
                .engine()
                .load(prepared)
                .map_err(|e| ApiError::internal(e.to_string()))?;
        }
        let before = self.host.active(&change.slot);
        self.registry.activate(change.clone()).await?;
        self.apply(&change, prepared.as_ref())
            .map_err(|e| ApiError::invalid("slot", e))?;
        self.changes.tell(&change, before.as_deref());
        Ok(())
    }

    /// How often what a slot runs was changed since the start.
    pub fn changes(&self) -> Vec<PolicyChanges> {
        self.changes.counts()
    }

    /// Puts in force what is written down.
    fn apply(&self, change: &Activation, prepared: Option<&Prepared>) -> Result<(), String> {
        let slot = &change.slot;
        let missing = || "its code is missing".to_owned();
        match change.step {
            Step::Activate => self
                .host
                .activate(slot, prepared.ok_or_else(missing)?)
                .map_err(|e| e.to_string()),
            Step::Canary { .. } | Step::Shadow => {
                let kind = kind_of(change.step).ok_or_else(missing)?;
                self.host
                    .try_out(slot, prepared.ok_or_else(missing)?, kind)
                    .map_err(|e| e.to_string())
            }
            Step::Withdraw => {
                self.host.withdraw(slot);
                Ok(())
            }
            Step::Vacate => {
                self.host.withdraw(slot);
                self.host.deactivate(slot);
                Ok(())
            }
        }
    }

    /// What policies do, by slot.
    pub fn status(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut all: serde_json::Map<_, _> = self
            .host
            .status()
            .into_iter()
            .map(|s| (s.slot.clone(), serde_json::json!(s)))
            .collect();
        for (slot, trial) in self.host.trials() {
            all.entry(slot)
                .or_insert_with(|| serde_json::json!({ "trial": trial }));
        }
        all
    }
}

fn kind_of(step: Step) -> Option<TrialKind> {
    match step {
        Step::Canary { permille } => Some(TrialKind::Canary { permille }),
        Step::Shadow => Some(TrialKind::Shadow),
        Step::Activate | Step::Withdraw | Step::Vacate => None,
    }
}

/// What is on trial in a slot, and how.
fn trial_of(state: &SlotState) -> Option<(&str, TrialKind)> {
    let trial = state.trial.as_ref()?;
    Some((&trial.digest, kind_of(trial.step)?))
}

/// The digest in force in each slot.
async fn in_force(registry: &dyn Registry) -> Result<BTreeMap<String, String>, Failure> {
    let history = registry
        .activations()
        .await
        .map_err(|e| Failure::failed(format!("the policies can't be read: {e}"), ""))?;
    Ok(rollout::slots(&history)
        .into_iter()
        .filter_map(|(slot, state)| Some((slot, state.in_force?.digest)))
        .collect())
}

fn revision_of(
    prepared: &Prepared,
    upload: &Upload,
    now: tidegate_mail::Timestamp,
) -> (Revision, Uploaded) {
    let revision = Revision {
        digest: prepared.digest.clone(),
        world: prepared.world.as_str().to_owned(),
        name: prepared.descriptor.name.clone(),
        version: prepared.descriptor.version.clone(),
        config: upload.config.clone(),
        uploaded_at: now,
        uploaded_by: upload.by.clone(),
        note: upload.note.clone(),
        size: upload.component.len() as u64,
    };
    let uploaded = Uploaded {
        slot: upload.slot.clone(),
        digest: prepared.digest.clone(),
        at: now,
        by: upload.by.clone(),
        note: upload.note.clone(),
    };
    (revision, uploaded)
}

/// A refusal in the author's terms.
fn refused(refused: Refused) -> ApiError {
    let (field, remedy) = match &refused {
        Refused::TooLarge(_) => (
            "component",
            "build it for size (opt-level = \"s\", strip = true, panic = \"abort\")",
        ),
        Refused::NotWasm(_) => (
            "component",
            "upload the .wasm file: a component, or a core module built with wit-bindgen",
        ),
        Refused::MissingExport(_) => (
            "component",
            "export setup and one of routing, shaping, log-export, as wit/ describes",
        ),
        Refused::Import(_) => (
            "component",
            "a policy may import tidegate:policy/log only: build it without WASI",
        ),
        Refused::Version(_) => ("component", "build it against tidegate:policy@1"),
        Refused::Config(_) => ("config", "correct the policy's configuration"),
        Refused::Init(_) => (
            "component",
            "see what its init does with this configuration",
        ),
        Refused::Compile(_) => ("component", "make it smaller or simpler"),
        Refused::Worker(_) => {
            return ApiError::internal(refused.to_string())
                .remedy("see the gateway's log; try again");
        }
    };
    // The compiler's messages run over several lines.
    let message: Vec<String> = refused
        .to_string()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    ApiError::invalid(field, message.join(" ")).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_field_and_the_remedy() {
        let error = refused(Refused::Config("rules: expected a list".to_owned()));
        assert_eq!(error.field.as_deref(), Some("config"));
        assert!(error.message.contains("expected a list"));
        assert!(error.remedy.is_some());
        assert!(
            refused(Refused::Worker("gone".to_owned()))
                .status
                .is_server_error()
        );
    }
}
