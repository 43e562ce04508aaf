//! The machine the tasks run on: where the tree is, what is installed, and how to get the rest.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a directory of the repository")
        .to_owned()
}

/// The cargo that runs this.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs to the end and demands success.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if !status.success() {
        let words: Vec<&OsStr> = command.get_args().collect();
        bail!(
            "{} {}: {status}",
            command.get_program().display(),
            words.join(OsStr::new(" ")).display()
        );
    }
    Ok(())
}

/// Where in PATH, or in the directories of system programs that PATH may lack, a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Whether PostgreSQL's server programs are here; Debian keeps them out of PATH.
pub fn has_postgres() -> bool {
    find("initdb").is_some()
        || std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.path().join("bin/initdb").is_file())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // What this process owns is owned by its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Makes sure of Debian packages: by apt-get where that is possible, else says what to do.
pub fn install(packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_root() || find("apt-get").is_none() {
        bail!("missing: {list}. On Debian: sudo apt-get install {list}");
    }
    println!("installing {list}");
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // Lists may be old or absent; packages may be there all the same.
    if let Err(error) = run(apt().args(["-qq", "update"])) {
        eprintln!("warning: {error:#}");
    }
    run(apt()
        .args(["-qq", "-y", "--no-install-recommends", "install"])
        .args(packages))
    .with_context(|| format!("install them by hand: apt-get install {list}"))
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |target| root().join(target))
}

/// Builds the gateway and gives its binary.
pub fn build_gateway(release: bool) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", "tidegate-gateway"]);
    if release {
        command.arg("--release");
    }
    run(&mut command)?;
    let binary = target()
        .join(if release { "release" } else { "debug" })
        .join("tidegate");
    anyhow::ensure!(binary.is_file(), "{} was not built", binary.display());
    Ok(binary)
}
