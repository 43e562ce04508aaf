//! The engines for policies in JavaScript: QuickJS and the glue of `plugins/js/engine.c`, one module
//! for each world, compiled with clang and a C library for WebAssembly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{install, output};
use crate::host::cargo;

/// Module, and what selects its world in `engine.c`.
const ENGINES: [(&str, &[&str]); 3] = [
    ("js-routing", &["-DTG_ROUTING"]),
    ("js-shaping", &["-DTG_SHAPING", "-DTG_STATE"]),
    ("js-export", &["-DTG_EXPORTER"]),
];

const PACKAGES: [&str; 5] = [
    "clang",
    "lld",
    "make",
    "wasi-libc",
    "libclang-rt-dev-wasm32",
];

const QUICKJS: [&str; 4] = ["quickjs", "libregexp", "libunicode", "dtoa"];

/// Where the C library of wasi-libc is, of which only what needs no system is used.
const LIBRARY: &str = "/usr/lib/wasm32-wasi";

pub(super) fn modules(out: &Path) -> Vec<PathBuf> {
    ENGINES
        .iter()
        .map(|(name, _)| out.join(format!("engines/{name}.wasm")))
        .collect()
}

/// Builds all engines.
pub(super) fn build(root: &Path, out: &Path) -> Result<()> {
    let runtime = match runtime() {
        Some(runtime) => runtime,
        None => {
            install(&PACKAGES)?;
            runtime().with_context(|| {
                format!(
                    "no C compiler for WebAssembly: install {}",
                    PACKAGES.join(" ")
                )
            })?
        }
    };
    let source = source(root)?;
    let objects = root.join("target/plugins/js");
    fs::create_dir_all(&objects).with_context(|| format!("create {}", objects.display()))?;
    eprintln!("plugins: building the engines for JavaScript");
    let mut common = Vec::new();
    for name in QUICKJS {
        let object = objects.join(format!("{name}.o"));
        // Somebody else's code: its warnings are theirs.
        clang(
            Command::new("clang")
                .args([
                    "--target=wasm32-wasi",
                    "-Os",
                    "-DNDEBUG",
                    "-D_GNU_SOURCE",
                    "-w",
                ])
                .args([
                    "-fvisibility=hidden",
                    "-ffunction-sections",
                    "-fdata-sections",
                ])
                .args(["-mbulk-memory", "-c", "-o"])
                .arg(&object)
                .arg(source.join(format!("{name}.c"))),
        )?;
        common.push(object);
    }
    for ((name, world), module) in ENGINES.iter().zip(modules(out)) {
        let object = objects.join(format!("{name}.o"));
        clang(
            Command::new("clang")
                .args(["--target=wasm32-wasi", "-Os", "-std=gnu11", "-mbulk-memory"])
                .args(["-ffunction-sections", "-Wall", "-Wno-unused-function"])
                .args([
                    "-Wno-pointer-to-int-cast",
                    "-Wno-int-to-pointer-cast",
                    "-Werror",
                ])
                .args(*world)
                .arg("-I")
                .arg(&source)
                .arg("-I")
                .arg(root.join("plugins/templates/c"))
                .args(["-c", "-o"])
                .arg(&object)
                .arg(root.join("plugins/js/engine.c")),
        )?;
        let draft = module.with_extension("tmp");
        clang(
            Command::new("clang")
                .args(["--target=wasm32-wasi", "-nostdlib", "-Wl,--no-entry"])
                .args(["-Wl,--gc-sections", "-Wl,--strip-all", "-Wl,--stack-first"])
                // The interpreter's stack, and memory that no call has to grow.
                .args(["-Wl,-z,stack-size=262144", "-Wl,--initial-memory=2097152"])
                .arg("-o")
                .arg(&draft)
                .arg(&object)
                .args(&common)
                .arg("-L")
                .arg(LIBRARY)
                .arg("-lc")
                .arg(&runtime),
        )?;
        fs::rename(&draft, &module)
            .with_context(|| format!("rename {} to {}", draft.display(), module.display()))?;
        let size = fs::metadata(&module)?.len();
        eprintln!("plugins: {} ({size} bytes)", module.display());
    }
    Ok(())
}

fn clang(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("start clang")?;
    if !status.success() {
        bail!("clang failed; its messages are above");
    }
    Ok(())
}

/// The compiler's own support library, where everything is installed.
fn runtime() -> Option<PathBuf> {
    let directory = output(Command::new("clang").arg("-print-resource-dir"))?;
    let runtime = Path::new(&directory).join("lib/wasi/libclang_rt.builtins-wasm32.a");
    let linker = output(Command::new("wasm-ld").arg("--version")).is_some();
    let library = Path::new(LIBRARY).join("libc.a");
    (runtime.is_file() && library.is_file() && linker).then_some(runtime)
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
