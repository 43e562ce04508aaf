//! Compiled revisions on disk, so that a restart compiles nothing.
//!
//! Compiled code is native code and is run as it is. A file is used only if this node wrote
//! it: its name and its content are authenticated with a key that only this node has. What
//! does not check out is treated as absent and compiled again.
//!
//! A file is the code, what is known of the revision, the length of that, and the MAC. Code comes
//! first because it is mapped, not read: the memory of a revision that is loaded is then the
//! page cache's, which the kernel shares and takes back.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::{constant_time, hmac};
use serde::{Deserialize, Serialize};

use crate::engine::PolicyEngine;
use crate::prepare::{Code, Kept, Prepared, hex};
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
/// Bytes read at a time to check a file.
const CHUNK: usize = 64 * 1024;

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

    /// Authenticates for which revision and engine a file is, and then every byte of it.
    fn mac(&self, digest: &str) -> hmac::Context {
        let mut mac = hmac::Context::with_key(&self.key);
        mac.update(b"code first");
        mac.update(&self.compatibility);
        mac.update(&(digest.len() as u64).to_be_bytes());
        mac.update(digest.as_bytes());
        mac
    }

    /// A revision compiled earlier by this node for this engine. A damaged or foreign
    /// file is removed.
    pub fn get(&self, digest: &str) -> Option<Prepared> {
        let path = self.path(digest);
        let file = File::open(&path).ok()?;
        let prepared = self.check(digest, file);
        if prepared.is_none() {
            tracing::warn!(digest, path = %path.display(), "compiled policy is damaged or not of this node; removed");
            // If it can't be removed it will be overwritten.
            let _ = fs::remove_file(&path);
        }
        prepared
    }

    fn check(&self, digest: &str, file: File) -> Option<Prepared> {
        let mut end = [0; 4 + MAC];
        let at = file.metadata().ok()?.len().checked_sub(end.len() as u64)?;
        file.read_exact_at(&mut end, at).ok()?;
        let (meta_len, tag) = end.split_first_chunk::<4>()?;
        let code_len = at.checked_sub(u32::from_be_bytes(*meta_len).into())?;
        let mut mac = self.mac(digest);
        let mut chunk = vec![0; CHUNK];
        for start in (0..code_len).step_by(CHUNK) {
            // At most CHUNK.
            let part = &mut chunk[..(code_len - start).min(CHUNK as u64) as usize];
            file.read_exact_at(part, start).ok()?;
            mac.update(part);
        }
        let mut meta = vec![0; u32::from_be_bytes(*meta_len) as usize];
        file.read_exact_at(&mut meta, code_len).ok()?;
        mac.update(&meta);
        mac.update(meta_len);
        constant_time::verify_slices_are_equal(mac.sign().as_ref(), tag).ok()?;
        let meta: Meta = serde_json::from_slice(&meta).ok()?;
        Some(Prepared::new(
            digest.to_owned(),
            meta.world,
            meta.descriptor,
            Code::Kept(Kept::new(file, usize::try_from(code_len).ok()?)),
        ))
    }

    /// Forgets a revision.
    pub fn remove(&self, digest: &str) {
        // One that is not there is as good.
        let _ = fs::remove_file(self.path(digest));
    }

    /// Removes every file but those of these revisions, and tells how many: what another build of the
    /// gateway compiled, and what was left half written. For a start, when nobody else uses it.
    pub fn retain<'a>(
        &self,
        digests: impl IntoIterator<Item = &'a str>,
    ) -> Result<usize, CacheError> {
        let fail = |source| CacheError {
            path: self.dir.clone(),
            source,
        };
        let kept: HashSet<PathBuf> = digests.into_iter().map(|d| self.path(d)).collect();
        let mut removed = 0;
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let ours = path.extension().is_some_and(|e| e == "cwasm" || e == "tmp");
            if ours && !kept.contains(&path) {
                fs::remove_file(&path).map_err(fail)?;
                removed += 1;
            }
        }
        Ok(removed)
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
        let code = prepared.code_bytes().map_err(fail)?;
        let meta_len = (meta.len() as u32).to_be_bytes();
        let mut mac = self.mac(&prepared.digest);
        for part in [code.as_ref(), &meta, &meta_len] {
            mac.update(part);
        }
        let mac = mac.sign();
        // A file of its own for each call: one that has its name already is never written to.
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let draft = path.with_extension(format!("{}-{call}.tmp", std::process::id()));
        let write = || {
            // Left by a process of the same number, or not there.
            let _ = fs::remove_file(&draft);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            for part in [code.as_ref(), &meta, &meta_len, mac.as_ref()] {
                file.write_all(part)?;
            }
            fs::rename(&draft, &path)
        };
        write().map_err(fail)
    }
}
