//! The default policies, put into the slots that have none when a gateway is made.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidegate_admin::Upload;
use tidegate_net::clock::OsClock;
use tidegate_policy::{PolicyEngine, World};
use tidegate_queue::{Activation, Clock, Registry, Step};

use super::{Workshop, engine, in_force, revision_of};
use crate::cli::Failure;
use crate::config::Config;
use crate::secrets::MasterKey;

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
    let (store, registry) = crate::parts::open_store(config).await?;
    let installed = install(config, files, &*registry).await;
    // Whoever comes next finds a database that was closed in order.
    store.close().await;
    installed
}

async fn install(
    config: &Config,
    files: Vec<PathBuf>,
    registry: &dyn Registry,
) -> Result<Vec<Installed>, Failure> {
    let stored = |e: tidegate_queue::StoreError| Failure::failed(e.to_string(), "");
    let known = registry.revisions().await.map_err(stored)?;
    let active = in_force(registry).await?;
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
            slot: String::new(),
        };
        let (revision, uploaded) = revision_of(&prepared, &upload, now);
        registry
            .put_revision(revision, component, uploaded)
            .await
            .map_err(stored)?;
        for slot in taken {
            registry
                .activate(Activation {
                    seq: 0,
                    slot: slot.clone(),
                    digest: prepared.digest.clone(),
                    step: Step::Activate,
                    purpose: None,
                    at: now,
                    by: "init".to_owned(),
                    note: "default policy".to_owned(),
                    cause: None,
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
}
