//! Policies between the registry, which keeps them, and the policy host, which runs them.
//!
//! A revision is compiled in a worker process and its code kept in `data_dir`, so a restart
//! compiles nothing. An activation is durable before it is in force, and is only made
//! durable once the revision is known to load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tidegate_admin::{ApiError, Upload};
use tidegate_net::clock::OsClock;
use tidegate_policy::{
    CodeCache, Fallback, HostOptions, PolicyEngine, PolicyHost, Prepared, Refused, World, worker,
};
use tidegate_queue::{Activation, Clock, Directory, Policy, Registry, Revision};

use crate::cli::{Failure, Outcome};
use crate::config::{self, Config};
use crate::secrets::MasterKey;

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

    async fn prepare(&self, component: &[u8], config: &str) -> Result<Prepared, Refused> {
        let upload = tidegate_policy::Upload { component, config };
        let prepared = worker::prepare_in_child(Path::new(OWN_BINARY), upload).await?;
        if let Err(error) = self.cache.put(&prepared) {
            // It will be compiled again at the next start.
            tracing::warn!(%error, "a compiled policy was not kept");
        }
        Ok(prepared)
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
            .prepare(&component, &config)
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
    clock: OsClock,
    /// One change at a time, so that registry and host agree on the order.
    changing: tokio::sync::Mutex<()>,
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
        };
        let host = Arc::new(PolicyHost::new(engine, directory.clone(), options));
        for (slot, digest) in in_force(&*registry).await? {
            if let Some(tenant) = slot.strip_prefix("routing/")
                && directory.load().tenant(tenant).is_none()
            {
                continue;
            }
            if let Some(name) = slot.strip_prefix("export/")
                && !config.export.contains_key(name)
            {
                tracing::info!(slot, "not in the configuration: its policy is not started");
                continue;
            }
            let cannot = |reason: String| {
                Failure::failed(
                    format!(
                        "the policy {digest:.12} of the slot {slot} can't be started: {reason}"
                    ),
                    "free memory, or start the version of tidegate that ran before and roll the slot back",
                )
            };
            let prepared = workshop
                .revision(&*registry, &digest)
                .await
                .map_err(cannot)?;
            host.activate(&slot, &prepared)
                .map_err(|e| cannot(e.to_string()))?;
        }
        Ok(Arc::new(Policies {
            host,
            workshop,
            registry,
            clock: OsClock,
            changing: tokio::sync::Mutex::new(()),
        }))
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
    }

    /// Compiles a component and keeps it as a revision.
    pub async fn upload(&self, upload: Upload) -> Result<Revision, ApiError> {
        let prepared = self
            .workshop
            .prepare(&upload.component, &upload.config)
            .await
            .map_err(refused)?;
        let revision = revision_of(&prepared, &upload, self.clock.now());
        self.registry
            .put_revision(revision.clone(), upload.component)
            .await?;
        // One that is there already stays as it is, so what is there is the answer.
        let stored = self.registry.revisions().await?;
        Ok(stored
            .into_iter()
            .find(|r| r.digest == revision.digest)
            .unwrap_or(revision))
    }

    /// Puts a revision in force for the next call of its slot.
    pub async fn activate(&self, activation: Activation) -> Result<(), ApiError> {
        let prepared = self
            .workshop
            .revision(&*self.registry, &activation.digest)
            .await
            .map_err(|reason| {
                ApiError::internal(format!(
                    "the revision {:.12} can't be loaded: {reason}",
                    activation.digest
                ))
            })?;
        let _one = self.changing.lock().await;
        // Loading is what may fail; afterwards the change can be written down.
        self.host
            .engine()
            .load(&prepared)
            .map_err(|e| ApiError::internal(e.to_string()))?;
        self.registry.activate(activation.clone()).await?;
        self.host
            .activate(&activation.slot, &prepared)
            .map_err(|e| ApiError::invalid("slot", e.to_string()))
    }
}

/// The newest activation of each slot.
async fn in_force(registry: &dyn Registry) -> Result<BTreeMap<String, String>, Failure> {
    let all = registry
        .activations()
        .await
        .map_err(|e| Failure::failed(format!("the policies can't be read: {e}"), ""))?;
    // Oldest first, so the last one of a slot stays.
    Ok(all.into_iter().map(|a| (a.slot, a.digest)).collect())
}

fn revision_of(prepared: &Prepared, upload: &Upload, now: tidegate_mail::Timestamp) -> Revision {
    Revision {
        digest: prepared.digest.clone(),
        world: prepared.world.as_str().to_owned(),
        name: prepared.descriptor.name.clone(),
        version: prepared.descriptor.version.clone(),
        config: upload.config.clone(),
        uploaded_at: now,
        uploaded_by: upload.by.clone(),
        note: upload.note.clone(),
        size: upload.component.len() as u64,
    }
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

/// A default policy, as `tidegate init` tells of it.
pub struct Installed {
    pub name: String,
    pub version: String,
    pub slot: String,
    pub digest: String,
    /// The slot had a policy already and was left alone.
    pub kept: bool,
}

/// Where the default policies lie: as told, or beside the binary as packages and the build
/// put them.
pub fn default_dir(told: Option<&Path>) -> Option<PathBuf> {
    if let Some(dir) = told {
        return Some(dir.to_owned());
    }
    let binary = std::env::current_exe().ok()?;
    let beside = binary.parent()?;
    [
        beside.join("../share/tidegate/policies"),
        beside.join("policies"),
        beside.join("../policies"),
    ]
    .into_iter()
    .find(|dir| !components(dir).unwrap_or_default().is_empty())
}

/// The component files of a directory, those named as defaults first.
fn components(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "wasm"))
        .collect();
    files.sort_by_key(|path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        (!name.contains("default"), name)
    });
    Ok(files)
}

/// Puts the first policy of each world into the slots that have none. The data directory must
/// be held by the caller.
pub async fn install_defaults(config: &Config, dir: &Path) -> Result<Vec<Installed>, Failure> {
    let files = components(dir).map_err(|e| {
        Failure::usage(
            format!("{} can't be read: {e}", dir.display()),
            "name the directory of the *.wasm files with --policies",
        )
    })?;
    if files.is_empty() {
        return Err(Failure::usage(
            format!("there is no *.wasm file in {}", dir.display()),
            "build the default policies with: cargo xtask plugins",
        ));
    }
    let (_store, registry) = crate::parts::open_store(config).await?;
    let stored = |e: tidegate_queue::StoreError| Failure::failed(e.to_string(), "");
    let known = registry.revisions().await.map_err(stored)?;
    let active = in_force(&*registry).await?;
    let mut slots: Vec<(String, World)> = vec![
        ("routing".to_owned(), World::RoutingPolicy),
        ("shaping".to_owned(), World::ShapingPolicy),
    ];
    slots.extend(
        config
            .export
            .keys()
            .map(|name| (format!("export/{name}"), World::LogExporter)),
    );
    let mut report = Vec::new();
    let mut open = Vec::new();
    for (slot, world) in slots {
        match active.get(&slot) {
            Some(digest) => {
                let revision = known.iter().find(|r| r.digest == *digest);
                report.push(Installed {
                    name: revision.map_or_else(String::new, |r| r.name.clone()),
                    version: revision.map_or_else(String::new, |r| r.version.clone()),
                    slot,
                    digest: digest.clone(),
                    kept: true,
                });
            }
            None => open.push((slot, world)),
        }
    }
    if open.is_empty() {
        return Ok(report);
    }
    let key = MasterKey::read(&config.master_key_file)
        .map_err(|e| Failure::failed(format!("the master key: {e}"), "see tidegate check"))?;
    let engine = engine(PolicyEngine::for_preparing())?;
    let workshop = Workshop::open(config, &key, &engine)?;
    for path in files {
        if open.is_empty() {
            break;
        }
        let component = read(&path)?;
        let settings = path.with_extension("json");
        let policy_config = if settings.exists() {
            String::from_utf8_lossy(&read(&settings)?).into_owned()
        } else {
            String::new()
        };
        let prepared = workshop
            .prepare(&component, &policy_config)
            .await
            .map_err(|e| {
                Failure::failed(
                    format!("{}: {e}", path.display()),
                    "replace or remove the file",
                )
            })?;
        let taken: Vec<String> = open
            .extract_if(.., |(_, world)| *world == prepared.world)
            .map(|(slot, _)| slot)
            .collect();
        if taken.is_empty() {
            continue;
        }
        let now = OsClock.now();
        let upload = Upload {
            component: component.clone(),
            config: policy_config,
            note: "default policy".to_owned(),
            by: "init".to_owned(),
        };
        registry
            .put_revision(revision_of(&prepared, &upload, now), component)
            .await
            .map_err(stored)?;
        for slot in taken {
            registry
                .activate(Activation {
                    slot: slot.clone(),
                    digest: prepared.digest.clone(),
                    at: now,
                    by: "init".to_owned(),
                    note: "default policy".to_owned(),
                })
                .await
                .map_err(stored)?;
            report.push(Installed {
                name: prepared.descriptor.name.clone(),
                version: prepared.descriptor.version.clone(),
                slot,
                digest: prepared.digest.clone(),
                kept: false,
            });
        }
    }
    Ok(report)
}

fn read(path: &Path) -> Result<Bytes, Failure> {
    std::fs::read(path).map(Bytes::from).map_err(|e| {
        Failure::failed(
            format!("{} can't be read: {e}", path.display()),
            "check its mode",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_come_first_and_only_components_count() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.wasm", "routing-default.wasm", "b.json", "c.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> = components(dir.path())
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["routing-default.wasm", "a.wasm"]);
    }

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
