//! The interpreter for Python: pocketpy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::engines::Engine;
use super::{install, output};

pub(super) const LANGUAGE: &str = "python";

/// The package in `plugins/python/requirements.txt`, as its archive is named.
const CARRIER: &str = "pocket_numpy-0.0.3";

/// No files, no threads; the watchdog is where the glue collects garbage.
const FLAGS: [&str; 5] = [
    "-DPK_ENABLE_OS=0",
    "-DPK_ENABLE_THREADS=0",
    "-DPK_ENABLE_WATCHDOG=1",
    "-DPK_GC_MIN_THRESHOLD=50000",
    // One thread: clang 14 can't link thread-local data of code with bulk memory operations.
    "-D_Thread_local=",
];

pub(super) fn engine(root: &Path) -> Result<Engine> {
    let source = source(root)?;
    let mut sources = Vec::new();
    find(&source.join("src"), &mut sources)?;
    sources.sort();
    let mut flags: Vec<String> = FLAGS.map(str::to_owned).to_vec();
    flags.push("-include".to_owned());
    let memory = root.join("plugins/python/memory.h");
    flags.push(memory.to_string_lossy().into_owned());
    let generated = prelude(root)?;
    flags.push("-I".to_owned());
    flags.push(generated.to_string_lossy().into_owned());
    Ok(Engine {
        language: LANGUAGE,
        sources,
        include: source.join("include"),
        flags,
    })
}

/// Writes `plugins/python/prelude.py` as `engine.c` includes it; returns the directory.
fn prelude(root: &Path) -> Result<PathBuf> {
    let generated = root.join("target/plugins/python-generated");
    let script = root.join("plugins/python/prelude.py");
    let bytes = fs::read(&script).with_context(|| format!("read {}", script.display()))?;
    let mut text = String::with_capacity(bytes.len() * 4);
    for byte in bytes {
        text.push_str(&byte.to_string());
        text.push(',');
    }
    fs::create_dir_all(&generated)
        .and_then(|()| fs::write(generated.join("prelude.inc"), text))
        .with_context(|| format!("write to {}", generated.display()))?;
    Ok(generated)
}

fn find(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "c") {
            files.push(path);
        }
    }
    Ok(())
}

/// The directory of pocketpy's source: pip fetches the package that carries it, and checks its
/// digest.
fn source(root: &Path) -> Result<PathBuf> {
    let place = root.join("target/plugins/python-source");
    let requirements = root.join("plugins/python/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("read {}", requirements.display()))?;
    let stamp = place.join(".stamp");
    let source = place.join(CARRIER).join("pocketpy");
    if source.is_dir() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(source);
    }
    let pip = || output(Command::new("python3").args(["-m", "pip", "--version"]));
    if pip().is_none() {
        install(&["python3-pip"])?;
        pip().context("no pip: install python3-pip")?;
    }
    fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    let fetched = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps"])
        .args(["--no-binary", "pocket-numpy", "--require-hashes"])
        .arg("--requirement")
        .arg(&requirements)
        .arg("--dest")
        .arg(&place)
        .stdin(Stdio::null())
        .status()
        .context("start pip")?;
    if !fetched.success() {
        bail!("pip can't fetch the source of pocketpy; its messages are above");
    }
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(place.join(format!("{CARRIER}.tar.gz")))
        .arg("-C")
        .arg(&place)
        .arg(format!("{CARRIER}/pocketpy"))
        .status()
        .context("start tar")?;
    if !unpacked.success() || !source.is_dir() {
        bail!("the source of pocketpy can't be unpacked");
    }
    fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))?;
    Ok(source)
}
