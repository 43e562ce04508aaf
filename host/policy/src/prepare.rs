//! From an upload to a revision that can be loaded: checked, initialised, compiled.
//!
//! This compiles untrusted code, which takes seconds and hundreds of megabytes for the
//! worst uploads within the limits: a gateway does it in [`crate::worker`].

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use wit_component::ComponentEncoder;

use crate::engine::PolicyEngine;
use crate::prune::prune;
use crate::worlds::{Descriptor, World};
use crate::{init, inspect, limits};

/// What somebody sent: a core module or a component, and its configuration text.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    pub component: &'a [u8],
    pub config: &'a str,
}

/// Why an upload is not accepted, in words for its author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "text")]
pub enum Refused {
    #[error("too large: {0}")]
    TooLarge(String),
    #[error("not a WebAssembly module or component: {0}")]
    NotWasm(String),
    #[error("missing export: {0}")]
    MissingExport(String),
    #[error("import not granted: {0}")]
    Import(String),
    #[error("world of another version: {0}")]
    Version(String),
    /// By the guest's own words.
    #[error("the policy refuses its configuration: {0}")]
    Config(String),
    /// It trapped, overran, or its descriptor is out of bounds.
    #[error("init failed: {0}")]
    Init(String),
    #[error("can't be compiled: {0}")]
    Compile(String),
    #[error("the compile worker failed: {0}")]
    Worker(String),
}

/// A revision ready to be loaded. Made by [`prepare`], by the worker process or by the
/// code cache, and by nothing else: its code is native code.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Hex SHA-256 over world, component and configuration.
    pub digest: String,
    pub world: World,
    pub descriptor: Descriptor,
    code: Code,
}

/// What `Engine::precompile_component` returned.
#[derive(Clone, Debug)]
pub(crate) enum Code {
    Held(Arc<[u8]>),
    Kept(Kept),
}

/// The code at the start of an open file of the code cache, after its MAC was checked.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    file: Arc<File>,
    len: usize,
}

impl Kept {
    /// `len` bytes of code come first in the file; what follows is not code.
    pub fn new(file: File, len: usize) -> Self {
        Kept {
            file: Arc::new(file),
            len,
        }
    }

    /// Names this very file as long as `self` lives, whatever became of its directory entry.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

impl Prepared {
    pub(crate) fn new(digest: String, world: World, descriptor: Descriptor, code: Code) -> Self {
        Prepared {
            digest,
            world,
            descriptor,
            code,
        }
    }

    pub(crate) fn code(&self) -> &Code {
        &self.code
    }

    /// The code as bytes, read where it is in a file.
    pub(crate) fn code_bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        match &self.code {
            Code::Held(bytes) => Ok(bytes.as_ref().into()),
            Code::Kept(kept) => {
                let mut bytes = vec![0; kept.len];
                kept.file.read_exact_at(&mut bytes, 0)?;
                Ok(bytes.into())
            }
        }
    }

    /// Bytes of compiled code.
    pub fn code_size(&self) -> usize {
        match &self.code {
            Code::Held(bytes) => bytes.len(),
            Code::Kept(kept) => kept.len,
        }
    }
}

/// The name of a revision: what it was made of decides what it is.
pub fn revision_digest(world: World, upload: &Upload<'_>) -> String {
    let mut sha = Context::new(&SHA256);
    for part in [
        b"tidegate revision 1".as_slice(),
        world.as_str().as_bytes(),
        upload.component,
        upload.config.as_bytes(),
    ] {
        sha.update(&(part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    hex(sha.finish().as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The interface, for modules whose compiler knows nothing of it.
const WIT: &str = include_str!("../../../wit/tidegate-policy-1.0.0/policy.wit");

/// Adds the types of the world to a core module that exports its functions by name.
fn with_types(module: &[u8], world: World) -> Result<Vec<u8>, Refused> {
    let fail = |e: &dyn std::fmt::Display| Refused::Compile(format!("its types: {e}"));
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve
        .push_str("policy.wit", WIT)
        .map_err(|e| fail(&format!("{e:#}")))?;
    let id = resolve
        .select_world(&[package], Some(world.as_str()))
        .map_err(|e| fail(&format!("{e:#}")))?;
    let mut typed = module.to_vec();
    wit_component::embed_component_metadata(
        &mut typed,
        &resolve,
        id,
        wit_component::StringEncoding::UTF8,
    )
    .map_err(|e| fail(&format!("{e:#}")))?;
    Ok(typed)
}

/// Checks, initialises and compiles an upload. Blocks for as long as that takes.
pub fn prepare(engine: &PolicyEngine, upload: &Upload<'_>) -> Result<Prepared, Refused> {
    if upload.component.len() > limits::UPLOAD {
        return Err(Refused::TooLarge(format!(
            "{} bytes; at most {}",
            upload.component.len(),
            limits::UPLOAD
        )));
    }
    if upload.config.len() > limits::CONFIG {
        return Err(Refused::TooLarge(format!(
            "a configuration of {} bytes; at most {}",
            upload.config.len(),
            limits::CONFIG
        )));
    }
    let shape = inspect::inspect(upload.component)?;
    let world = shape.world()?;
    let encoded;
    let component = if shape.is_component {
        upload.component
    } else {
        let typed;
        let module = if shape.has_type_section {
            upload.component
        } else {
            typed = with_types(upload.component, world)?;
            typed.as_slice()
        };
        encoded = ComponentEncoder::default()
            .module(module)
            .and_then(|encoder| encoder.validate(true).encode())
            .map_err(|e| Refused::MissingExport(format!("{e:#}")))?;
        // The wrapped one must be of the same world: its types came with the module.
        if inspect::inspect(&encoded)?.world()? != world {
            return Err(Refused::MissingExport(
                "its exports and its component-type section are of different worlds".to_owned(),
            ));
        }
        encoded.as_slice()
    };
    let draft = engine.draft().map_err(|e| Refused::Worker(e.to_string()))?;
    let (snapshot, descriptor) = init::initialise(draft, component, upload.config)?;
    if snapshot.len() > limits::SNAPSHOT {
        return Err(Refused::TooLarge(format!(
            "{} bytes after init; at most {}",
            snapshot.len(),
            limits::SNAPSHOT
        )));
    }
    let descriptor = descriptor.check().map_err(Refused::Init)?;
    // Of a component made elsewhere the core exports may have any name.
    let snapshot = if shape.is_component {
        snapshot
    } else {
        prune(&snapshot).map_err(|e| Refused::Compile(format!("its snapshot: {e}")))?
    };
    let code = engine
        .wasmtime()
        .precompile_component(&snapshot)
        .map_err(|e| Refused::Compile(format!("{e:#}")))?;
    let prepared = Prepared::new(
        revision_digest(world, upload),
        world,
        descriptor,
        Code::Held(code.into()),
    );
    // Finds what only shows at run time: limits of the pool, types of the exports.
    engine
        .load(&prepared)
        .map_err(|e| Refused::Compile(e.to_string()))?;
    Ok(prepared)
}
