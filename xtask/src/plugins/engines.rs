//! The engines for policies written as scripts: an interpreter's source from a package, and the
//! glue of `plugins/script` and of its language, one module for each world, compiled with clang
//! and a C library for WebAssembly, of which only what needs no system is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

use super::{install, js, output, python};

/// World, and what selects it in `worlds.h`.
const WORLDS: [(&str, &[&str]); 3] = [
    ("routing", &["-DTG_ROUTING"]),
    ("shaping", &["-DTG_SHAPING", "-DTG_STATE"]),
    ("export", &["-DTG_EXPORTER"]),
];

const PACKAGES: [&str; 5] = [
    "clang",
    "lld",
    "make",
    "wasi-libc",
    "libclang-rt-dev-wasm32",
];

/// Where the C library of wasi-libc is.
const LIBRARY: &str = "/usr/lib/wasm32-wasi";

/// An interpreter, ready to be compiled.
pub(super) struct Engine {
    /// As in `<language>-<world>.wasm` and `plugins/<language>/engine.c`.
    pub language: &'static str,
    pub sources: Vec<PathBuf>,
    /// Directory of its headers.
    pub include: PathBuf,
    /// For its files and for the glue.
    pub flags: Vec<String>,
}

/// All modules of all engines.
pub(super) fn modules(out: &Path) -> Vec<PathBuf> {
    [js::LANGUAGE, python::LANGUAGE]
        .into_iter()
        .flat_map(|language| WORLDS.map(|(world, _)| module(out, language, world)))
        .collect()
}

fn module(out: &Path, language: &str, world: &str) -> PathBuf {
    out.join(format!("engines/{language}-{world}.wasm"))
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
    for engine in [js::engine(root)?, python::engine(root)?] {
        eprintln!("plugins: building the engines for {}", engine.language);
        let objects = root.join("target/plugins").join(engine.language);
        fs::create_dir_all(&objects).with_context(|| format!("create {}", objects.display()))?;
        let common = interpreter(&engine, &objects)?;
        for (world, select) in WORLDS {
            let object = objects.join(format!("engine-{world}.o"));
            clang(
                compiler(&engine)
                    .args(["-Wall", "-Wno-unused-function", "-Wno-pointer-to-int-cast"])
                    .args(["-Wno-int-to-pointer-cast", "-Werror"])
                    .args(select)
                    .arg("-I")
                    .arg(root.join("plugins/templates/c"))
                    .arg("-I")
                    .arg(root.join("plugins/script"))
                    .arg("-o")
                    .arg(&object)
                    .arg(root.join("plugins").join(engine.language).join("engine.c")),
            )?;
            let module = module(out, engine.language, world);
            link(&module, &object, &common, &runtime)?;
            let size = fs::metadata(&module)?.len();
            eprintln!("plugins: {} ({size} bytes)", module.display());
        }
    }
    Ok(())
}

fn compiler(engine: &Engine) -> Command {
    let mut command = Command::new("clang");
    command
        .args(["--target=wasm32-wasi", "-Os", "-std=gnu11", "-DNDEBUG"])
        .args(["-mbulk-memory", "-fvisibility=hidden"])
        .args(["-ffunction-sections", "-fdata-sections"])
        .args(&engine.flags)
        .arg("-isystem")
        .arg(&engine.include)
        .arg("-c");
    command
}

/// The object files of the interpreter, compiled on all processors.
fn interpreter(engine: &Engine, objects: &Path) -> Result<Vec<PathBuf>> {
    let named: Vec<PathBuf> = engine
        .sources
        .iter()
        .enumerate()
        .map(|(n, source)| {
            let stem = source.file_stem().unwrap_or_default().to_string_lossy();
            objects.join(format!("{n}-{stem}.o"))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let (Some(source), Some(object)) = (engine.sources.get(n), named.get(n)) else {
                return Ok(());
            };
            // Somebody else's code: its warnings are theirs.
            clang(compiler(engine).arg("-w").arg("-o").arg(object).arg(source))?;
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        all.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| bail!("a compile thread panicked"))
        })
    })?;
    Ok(named)
}

fn link(module: &Path, object: &Path, common: &[PathBuf], runtime: &Path) -> Result<()> {
    let draft = module.with_extension("tmp");
    clang(
        Command::new("clang")
            .args(["--target=wasm32-wasi", "-nostdlib", "-Wl,--no-entry"])
            .args(["-Wl,--gc-sections", "-Wl,--strip-all", "-Wl,--stack-first"])
            // The interpreter's stack, and memory that no call has to grow.
            .args(["-Wl,-z,stack-size=262144", "-Wl,--initial-memory=2097152"])
            .arg("-o")
            .arg(&draft)
            .arg(object)
            .args(common)
            .arg("-L")
            .arg(LIBRARY)
            .arg("-lc")
            .arg(runtime),
    )?;
    fs::rename(&draft, module)
        .with_context(|| format!("rename {} to {}", draft.display(), module.display()))
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
