//! Builds the policies under `plugins/` to core modules in `target/policies/`: the defaults, the
//! examples in Rust in `examples/`, and in `engines/` what runs policies in JavaScript and Python.
//!
//! A Rust compiler for wasm32-unknown-unknown comes from, in this order: the target of the
//! toolchain in use; rustup, which adds it; Debian's rustc-web with its source package, from
//! which the standard library is built. What is up to date is not built again.

mod engines;
mod js;
mod python;

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Packages of the plugin workspace that end up as `<name>.wasm`.
pub const POLICIES: [&str; 3] = ["routing-default", "shaping-default", "export-jsonl"];

/// For each of them the examples of its world in Rust, below `plugins/examples/`.
const EXAMPLES: [&[&str]; 3] = [
    &[
        "campaign",
        "eu-only",
        "office-hours",
        "own-server",
        "sender-domain",
    ],
    &["warm-up"],
    &["crm-webhook", "elastic-bulk", "splunk-hec"],
];

const TARGET: &str = "wasm32-unknown-unknown";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/Cargo.lock";
/// Minor version of Rust 1 that the plugins need (edition 2024, let chains).
const OLDEST_RUST: u32 = 88;
/// From here on a standard library can be built whose panics are a trap and nothing else.
const IMMEDIATE_ABORT: u32 = 93;

/// A way to compile for wasm32-unknown-unknown.
enum Toolchain {
    /// The one in use, with the target installed.
    Installed,
    /// Debian's, building the standard library with this linker.
    Debian { linker: PathBuf },
}

/// Builds what is not up to date; returns the paths of all policies.
pub fn build(root: &Path) -> Result<Vec<PathBuf>> {
    let out = crate::host::target().join("policies");
    let wasm: Vec<PathBuf> = POLICIES
        .iter()
        .map(|name| out.join(format!("{name}.wasm")))
        .collect();
    let engines = engines::modules(&out);
    let examples: Vec<PathBuf> = EXAMPLES
        .into_iter()
        .flatten()
        .map(|name| out.join(format!("examples/{name}.wasm")))
        .collect();
    let stamp = out.join(".stamp");
    let sources = digest_of(root)?;
    if wasm
        .iter()
        .chain(&engines)
        .chain(&examples)
        .all(|p| p.is_file())
        && fs::read_to_string(&stamp).is_ok_and(|text| text == sources)
    {
        return Ok(wasm);
    }
    // Not beside the defaults, which `tidegate init` installs.
    for dir in [out.join("engines"), out.join("examples")] {
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    }
    engines::build(root, &out)?;
    let toolchain = toolchain(root)?;
    for (policy, examples) in POLICIES.into_iter().zip(EXAMPLES) {
        // The guest library speaks for one world at a time.
        let packages = [&[policy], examples].concat();
        eprintln!("plugins: building {}", packages.join(", "));
        compile(root, &toolchain, &packages)?;
        for name in packages {
            let path = if name == policy {
                out.join(format!("{name}.wasm"))
            } else {
                out.join(format!("examples/{name}.wasm"))
            };
            install_policy(root, name, &path)?;
        }
    }
    fs::write(&stamp, sources).with_context(|| format!("write {}", stamp.display()))?;
    Ok(wasm)
}

/// Puts what was compiled in its place.
fn install_policy(root: &Path, name: &str, path: &Path) -> Result<()> {
    let built = root.join(format!(
        "target/plugins/{TARGET}/release/{}.wasm",
        name.replace('-', "_")
    ));
    // A reader of the old file keeps it whole.
    let draft = path.with_extension("tmp");
    fs::copy(&built, &draft)
        .and_then(|_| fs::rename(&draft, path))
        .with_context(|| format!("copy {} to {}", built.display(), path.display()))?;
    let size = fs::metadata(path)?.len();
    eprintln!("plugins: {} ({size} bytes)", path.display());
    Ok(())
}

/// A digest of everything the policies are made of.
fn digest_of(root: &Path) -> Result<String> {
    fn visit(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
        let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name() != Some(OsStr::new("target")) {
                    visit(&path, files)?;
                }
            } else {
                files.push(path);
            }
        }
        Ok(())
    }
    let mut files = vec![root.join("xtask/src/plugins.rs")];
    visit(&root.join("xtask/src/plugins"), &mut files)?;
    visit(&root.join("plugins"), &mut files)?;
    visit(&root.join("wit"), &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        hasher.write(file.strip_prefix(root)?.as_os_str().as_encoded_bytes());
        hasher.write_usize(bytes.len());
        hasher.write(&bytes);
    }
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `--print sysroot` of the compiler in use in the workspace.
fn sysroot(root: &Path) -> Option<PathBuf> {
    output(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(root),
    )
    .map(PathBuf::from)
}

fn has_target(root: &Path) -> bool {
    sysroot(root).is_some_and(|s| s.join("lib/rustlib").join(TARGET).join("lib").is_dir())
}

fn toolchain(root: &Path) -> Result<Toolchain> {
    if has_target(root) {
        return Ok(Toolchain::Installed);
    }
    let rustup = Command::new("rustup")
        .args(["target", "add", TARGET])
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if rustup.is_ok_and(|status| status.success()) && has_target(root) {
        eprintln!("plugins: rustup added the target {TARGET}");
        return Ok(Toolchain::Installed);
    }
    if !debian_is_ready() {
        install(&DEBIAN_PACKAGES)?;
        if !debian_is_ready() {
            bail!(
                "no compiler for {TARGET}: `rustup target add {TARGET}` failed, and {} of {} \
                 is missing or older than 1.{OLDEST_RUST}",
                DEBIAN_RUSTC,
                DEBIAN_PACKAGES.join(", ")
            );
        }
    }
    let linker = match find_linker(root) {
        Some(linker) => linker,
        None => {
            install(&["lld"])?;
            find_linker(root).context("no linker for WebAssembly: install the package lld")?
        }
    };
    eprintln!(
        "plugins: using Debian's compiler and its standard library source; linker {}",
        linker.display()
    );
    Ok(Toolchain::Debian { linker })
}

/// The minor version of Debian's Rust.
fn debian_minor() -> Option<u32> {
    let version = output(Command::new(DEBIAN_RUSTC).arg("--version"))?;
    let rest = version.strip_prefix("rustc 1.")?;
    rest.split('.').next()?.parse().ok()
}

fn debian_is_ready() -> bool {
    debian_minor().is_some_and(|minor| minor >= OLDEST_RUST)
        && Path::new(DEBIAN_CARGO).exists()
        && Path::new(DEBIAN_SOURCE).exists()
}

/// The linker of some Rust toolchain, or LLVM's own.
fn find_linker(root: &Path) -> Option<PathBuf> {
    let debian = output(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]));
    for sysroot in sysroot(root).into_iter().chain(debian.map(PathBuf::from)) {
        let host = fs::read_dir(sysroot.join("lib/rustlib"))
            .into_iter()
            .flatten();
        for entry in host.flatten() {
            let linker = entry.path().join("bin/rust-lld");
            if linker.is_file() {
                return Some(linker);
            }
        }
    }
    let names = std::iter::once("wasm-ld".to_owned())
        .chain((14..=23).rev().map(|version| format!("wasm-ld-{version}")));
    let dirs: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    names
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(&name)))
        .find(|path| path.is_file())
}

/// Installs Debian packages, as root; else says what to install.
fn install(packages: &[&str]) -> Result<()> {
    let command = format!(
        "apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    let root = output(Command::new("id").arg("-u")).is_some_and(|id| id == "0");
    if !root || !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "the policies need what is not installed here. On Debian, as root:\n  {command}\n\
             and try again (for the Rust compiler, `rustup target add {TARGET}` will do too)"
        );
    }
    eprintln!("plugins: {command}");
    let run = |args: &[&str]| -> Result<bool> {
        let status = Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("apt-get")?;
        Ok(status.success())
    };
    let mut args = vec!["install", "-y", "--no-install-recommends"];
    args.extend(packages);
    // The lists of a fresh machine are empty, so a failure is tried again after an update.
    let installed = run(&args)? || (run(&["update"])? && run(&args)?);
    if !installed {
        bail!("`{command}` failed; its messages are above");
    }
    Ok(())
}

fn compile(root: &Path, toolchain: &Toolchain, packages: &[&str]) -> Result<()> {
    let target_dir = root.join("target/plugins");
    let mut cargo = match toolchain {
        Toolchain::Installed => Command::new("cargo"),
        Toolchain::Debian { linker } => {
            let mut cargo = Command::new(DEBIAN_CARGO);
            cargo
                .env("RUSTC", DEBIAN_RUSTC)
                // Lets a release compiler build the standard library from source.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
                .env_remove("RUSTUP_TOOLCHAIN")
                .env_remove("RUSTDOC");
            cargo
        }
    };
    cargo
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--target",
            TARGET,
        ])
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .arg("--target-dir")
        .arg(&target_dir)
        // In place, so that plugins/.cargo/config.toml applies.
        .current_dir(root.join("plugins"))
        .env_remove("CARGO")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .stdin(Stdio::null());
    if matches!(toolchain, Toolchain::Debian { .. }) {
        cargo.args(["-Z", "build-std=std,panic_abort"]);
        // Each tenant's revision is compiled code of its own, so its size counts.
        cargo.args(["-Z", "build-std-features=optimize_for_size"]);
        if debian_minor().is_some_and(|minor| minor >= IMMEDIATE_ABORT) {
            // There is nowhere that a policy's panic could write its message to.
            cargo
                .args(["-Z", "panic-immediate-abort"])
                .env("CARGO_PROFILE_RELEASE_PANIC", "immediate-abort");
        }
    } else {
        cargo.env_remove("RUSTC");
    }
    let status = cargo
        .status()
        .with_context(|| format!("start cargo for {}", packages.join(", ")))?;
    if !status.success() {
        bail!("a policy does not build; the compiler's messages are above");
    }
    Ok(())
}
