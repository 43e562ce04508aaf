//! The interpreter for JavaScript: QuickJS.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::engines::Engine;
use crate::host::cargo;

pub(super) const LANGUAGE: &str = "js";

const FILES: [&str; 4] = ["quickjs", "libregexp", "libunicode", "dtoa"];

pub(super) fn engine(root: &Path) -> Result<Engine> {
    let source = source(root)?;
    Ok(Engine {
        language: LANGUAGE,
        sources: FILES.map(|name| source.join(format!("{name}.c"))).to_vec(),
        include: source,
        flags: vec!["-D_GNU_SOURCE".to_owned()],
    })
}

/// The directory of QuickJS's source: cargo fetches the crate that carries it.
fn source(root: &Path) -> Result<PathBuf> {
    let told = cargo()
        .args(["metadata", "--locked", "--format-version", "1"])
        .arg("--manifest-path")
        .arg(root.join("plugins/js/Cargo.toml"))
        .stderr(Stdio::inherit())
        .output()
        .context("cargo metadata")?;
    if !told.status.success() {
        bail!("cargo can't fetch the source of QuickJS; its messages are above");
    }
    let metadata: serde_json::Value = serde_json::from_slice(&told.stdout)?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "rquickjs-sys")
        .and_then(|package| Path::new(package["manifest_path"].as_str()?).parent())
        .map(|dir| dir.join("quickjs"))
        .context("the crate with the source of QuickJS is not in plugins/js/Cargo.lock")
}
