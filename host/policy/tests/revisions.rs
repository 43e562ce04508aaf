//! Digests of revisions, and compiled code on disk that only this node may have made.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::*;
use tidegate_policy::{CodeCache, Upload, World, revision_digest};
use tidegate_queue::Policy;

#[test]
fn the_digest_tells_world_component_and_configuration_apart() {
    let digest = |world, component: &[u8], config: &str| {
        revision_digest(world, &Upload { component, config })
    };
    let base = digest(World::RoutingPolicy, b"ab", "c");
    assert_eq!(base.len(), 64);
    assert_eq!(base, digest(World::RoutingPolicy, b"ab", "c"));
    for other in [
        digest(World::ShapingPolicy, b"ab", "c"),
        digest(World::RoutingPolicy, b"a", "bc"),
        digest(World::RoutingPolicy, b"abc", ""),
        digest(World::RoutingPolicy, b"ab", "d"),
    ] {
        assert_ne!(base, other);
    }
    let revision = prepared("export-jsonl", "");
    assert_eq!(
        revision.digest,
        digest(World::LogExporter, &plugin("export-jsonl"), "")
    );
}

#[tokio::test]
async fn compiled_code_comes_back_from_the_cache_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("compiled");
    let cache = CodeCache::open(&path, &[7; 32], &ENGINE).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let revision = prepared(
        "routing-default",
        r#"{"default":{"managed":{"lane":"kept"}}}"#,
    );
    assert!(cache.get(&revision.digest).is_none());
    cache.put(&revision).unwrap();

    // As after a restart.
    let cache = CodeCache::open(&path, &[7; 32], &ENGINE).unwrap();
    let again = cache.get(&revision.digest).unwrap();
    assert_eq!(
        (again.world, &again.descriptor),
        (revision.world, &revision.descriptor)
    );
    let host = host();
    host.activate("routing", &again).unwrap();
    let routing = host.route(&question("acme", &["a@x.test"])).await;
    assert_eq!(routing.policy.as_deref(), Some(revision.digest.as_str()));
    assert_eq!(routing.fallback, None);
}

#[tokio::test]
async fn kept_code_is_mapped_from_the_very_file_that_was_checked() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CodeCache::open(dir.path(), &[7; 32], &ENGINE).unwrap();
    let revision = prepared("routing-default", r#"{"default":{"managed":{"lane":"x"}}}"#);
    cache.put(&revision).unwrap();
    let kept = cache.get(&revision.digest).unwrap();

    // Between the check and the load something else takes its name.
    let path = fs::read_dir(dir.path())
        .unwrap()
        .map(|f| f.unwrap().path())
        .next()
        .unwrap();
    fs::rename(&path, dir.path().join("checked")).unwrap();
    fs::write(&path, "no code at all").unwrap();
    let host = host();
    host.activate("routing", &kept).unwrap();
    drop(kept);
    let routing = host.route(&question("acme", &["a@x.test"])).await;
    assert_eq!(routing.policy.as_deref(), Some(revision.digest.as_str()));
    assert_eq!(routing.fallback, None);

    let mapped = |name: &str, rights: &str| {
        let path = dir.path().join(name);
        fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .any(|line| line.contains(rights) && line.ends_with(path.to_str().unwrap()))
    };
    assert!(
        mapped("checked", " r-xp "),
        "its code is executed from the file"
    );
    assert!(!mapped(path.file_name().unwrap().to_str().unwrap(), " "));
    assert!(cache.get(&revision.digest).is_none());
}

/// KiB of this file that are in the memory of this process.
fn resident(path: &std::path::Path) -> u64 {
    let mut of_file = false;
    let mut kib = 0;
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            if of_file {
                kib += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        } else if line.contains('-') && !line.contains("kB") {
            of_file = line.ends_with(path.to_str().unwrap());
        }
    }
    kib
}

#[tokio::test]
async fn of_a_loaded_revision_only_what_calls_touch_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CodeCache::open(dir.path(), &[7; 32], &ENGINE).unwrap();
    let revision = prepared("routing-default", r#"{"default":{"managed":{"lane":"m"}}}"#);
    cache.put(&revision).unwrap();
    let kept = cache.get(&revision.digest).unwrap();
    let host = host();
    host.activate("routing", &kept).unwrap();
    let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap();
    let loaded = resident(&path.path());
    let routing = host.route(&question("acme", &["a@x.test"])).await;
    assert_eq!(routing.policy.as_deref(), Some(revision.digest.as_str()));
    let called = resident(&path.path());
    // The slot of memory in which its types were checked holds pages of the data still.
    assert!(loaded <= 64, "{loaded} KiB");
    assert!(called > loaded, "{called} KiB, of them {loaded} before");
}

#[test]
fn what_no_revision_needs_any_more_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let cache = CodeCache::open(dir.path(), &[7; 32], &ENGINE).unwrap();
    let (one, two) = (
        prepared("export-jsonl", ""),
        prepared("export-jsonl", r#"{"facts":false}"#),
    );
    cache.put(&one).unwrap();
    let kept = names();
    cache.put(&two).unwrap();
    // Of another build; and of a gateway that was killed while it wrote.
    fs::write(dir.path().join("00ff.cwasm"), "code").unwrap();
    fs::write(dir.path().join("00ff.1-0.tmp"), "half").unwrap();
    fs::write(dir.path().join("README"), "not ours").unwrap();
    let digests = [one.digest.as_str(), "of-another-gateway"];
    assert_eq!(cache.retain(digests).unwrap(), 3);
    let mut left = [kept, vec!["README".to_owned()]].concat();
    left.sort();
    assert_eq!(names(), left);
    assert!(cache.get(&one.digest).is_some());
}

#[test]
fn a_file_that_this_node_did_not_write_is_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let cache = CodeCache::open(dir.path(), &[7; 32], &ENGINE).unwrap();
    let one = prepared("export-jsonl", "");
    let two = prepared("export-jsonl", r#"{"facts":false}"#);
    let file = || {
        let mut files: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1);
        files.pop().unwrap()
    };
    cache.put(&one).unwrap();
    let (path, bytes) = (file(), fs::read(file()).unwrap());
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );

    // Any byte changed, anywhere, or the end missing.
    for at in [0, 31, 32, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        assert!(cache.get(&one.digest).is_none(), "byte {at}");
        assert!(!path.exists(), "removed");
    }
    for len in [0, 10, 33, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(cache.get(&one.digest).is_none(), "cut to {len}");
    }
    fs::write(&path, &bytes).unwrap();
    assert!(cache.get(&one.digest).is_some());

    // Under the name of another revision.
    fs::remove_file(&path).unwrap();
    cache.put(&two).unwrap();
    fs::write(file(), &bytes).unwrap();
    assert!(cache.get(&two.digest).is_none());

    // Of a node with another key.
    cache.put(&one).unwrap();
    let other = CodeCache::open(dir.path(), &[8; 32], &ENGINE).unwrap();
    assert!(other.get(&one.digest).is_none());
    assert!(cache.get(&one.digest).is_some());
}
