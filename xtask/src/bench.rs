//! `cargo xtask bench`: what the gateway costs, beside other mail servers on the same machine.
//!
//! Source and sink run in this process, each relay in its own, so a relay's CPU time is its
//! alone. Machines are noisy: rates mean something as ratios within one call only, CPU time per
//! message a little more.

pub mod backlog;
mod crash;
mod disk;
pub mod instructions;
pub mod log;
mod machine;
mod measure;
pub mod policy;
pub mod relay;
mod relays;
pub mod report;
mod sessions;
mod table;
mod workload;

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::{host, plugins};

/// The gateway to measure: this one, or a new release build; for the whole process.
fn choose_gateway(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let binary = match given {
        // The gateway is started in directories of its own.
        Some(binary) => std::fs::canonicalize(binary)
            .with_context(|| format!("the gateway {}", binary.display()))?,
        None => {
            plugins::build(&host::root())?;
            host::build_gateway(true)?
        }
    };
    tidegate_tests::gateway::use_binary(&binary);
    Ok(binary)
}

/// A directory for relays' queues: below the one given, or where temporary files go.
fn place(given: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("tidegate-bench-");
    let made = match given {
        Some(directory) => builder.tempdir_in(directory),
        None => builder.tempdir(),
    };
    let made = made.context("a directory for the queues")?;
    // Daemons of other mail servers run as accounts of their own.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(made.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(made)
}
