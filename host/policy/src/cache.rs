//! Compiled revisions on disk, so that a restart compiles nothing.
//!
//! Compiled code is native code and is run as it is. A file is used only if this node wrote
//! it: its name and its content are authenticated with a key that only this node has. What
//! does not check out is treated as absent and compiled again.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use crate::engine::PolicyEngine;
use crate::prepare::{Prepared, hex};
use crate::worlds::{Descriptor, World};

#[derive(Debug, thiserror::Error)]
#[error("compiled policies in {}: {source}", path.display())]
pub struct CacheError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// A directory (mode 0700) of compiled revisions.
pub struct CodeCache {
    dir: PathBuf,
    key: hmac::Key,
    /// Of the engine that made and will run the code.
    compatibility: [u8; 32],
}

const MAC: usize = 32;

#[derive(Serialize, Deserialize)]
struct Meta {
    world: World,
    descriptor: Descriptor,
}

impl CodeCache {
    /// Creates the directory where it is missing. `key` is secret and belongs to this node.
    pub fn open(dir: &Path, key: &[u8; 32], engine: &PolicyEngine) -> Result<Self, CacheError> {
        let fail = |source| CacheError {
            path: dir.to_owned(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(fail)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(fail)?;
        Ok(CodeCache {
            dir: dir.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            compatibility: engine.compatibility(),
        })
    }

    fn path(&self, digest: &str) -> PathBuf {
        let mut mac = hmac::Context::with_key(&self.key);
        mac.update(b"name");
        mac.update(&self.compatibility);
        mac.update(digest.as_bytes());
        self.dir.join(format!("{}.cwasm", hex(mac.sign().as_ref())))
    }

    /// What is authenticated: for which revision and engine, and every byte of it.
    fn signed(&self, digest: &str, body: &[u8]) -> Vec<u8> {
        let mut signed = Vec::with_capacity(body.len() + 128);
        signed.extend_from_slice(b"body");
        signed.extend_from_slice(&self.compatibility);
        signed.extend_from_slice(&(digest.len() as u64).to_be_bytes());
        signed.extend_from_slice(digest.as_bytes());
        signed.extend_from_slice(body);
        signed
    }

    /// A revision compiled earlier by this node for this engine. A damaged or foreign
    /// file is removed.
    pub fn get(&self, digest: &str) -> Option<Prepared> {
        let path = self.path(digest);
        let bytes = fs::read(&path).ok()?;
        let prepared = self.read(digest, &bytes);
        if prepared.is_none() {
            tracing::warn!(digest, path = %path.display(), "compiled policy is damaged or not of this node; removed");
            // If it can't be removed it will be overwritten.
            let _ = fs::remove_file(&path);
        }
        prepared
    }

    fn read(&self, digest: &str, bytes: &[u8]) -> Option<Prepared> {
        let (mac, body) = bytes.split_at_checked(MAC)?;
        hmac::verify(&self.key, &self.signed(digest, body), mac).ok()?;
        let (len, rest) = body.split_first_chunk::<4>()?;
        let (meta, code) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        let meta: Meta = serde_json::from_slice(meta).ok()?;
        Some(Prepared::new(
            digest.to_owned(),
            meta.world,
            meta.descriptor,
            code.to_vec(),
        ))
    }

    /// Forgets a revision.
    pub fn remove(&self, digest: &str) {
        // One that is not there is as good.
        let _ = fs::remove_file(self.path(digest));
    }

    /// Keeps a revision. A reader sees the whole file or none.
    pub fn put(&self, prepared: &Prepared) -> Result<(), CacheError> {
        let path = self.path(&prepared.digest);
        let fail = |source| CacheError {
            path: path.clone(),
            source,
        };
        let meta = serde_json::to_vec(&Meta {
            world: prepared.world,
            descriptor: prepared.descriptor.clone(),
        })
        .map_err(|e| fail(e.into()))?;
        let mut body = Vec::with_capacity(4 + meta.len() + prepared.code_size());
        body.extend_from_slice(&(meta.len() as u32).to_be_bytes());
        body.extend_from_slice(&meta);
        body.extend_from_slice(prepared.code());
        let mac = hmac::sign(&self.key, &self.signed(&prepared.digest, &body));
        let draft = path.with_extension(format!("{}.tmp", std::process::id()));
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(mac.as_ref())?;
            file.write_all(&body)?;
            fs::rename(&draft, &path)
        };
        write().map_err(fail)
    }
}
