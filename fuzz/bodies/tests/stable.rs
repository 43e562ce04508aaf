//! The fuzz bodies under the plain compiler: over the seeds and the inputs that once failed, and
//! over random mixes of pieces of them. Deeper runs are cargo-fuzz's, see `docs/fuzzing.md`.

use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tidegate_fuzz::{Body, TARGETS};

const CASES: u32 = 3_000;

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../seeds")
        .join(target);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no seeds for {target}");
    files
        .into_iter()
        .map(|file| {
            let bytes = std::fs::read(&file).unwrap();
            (file, bytes)
        })
        .collect()
}

/// Pieces of seeds and random bytes, one behind the other.
fn mixes(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let whole = prop::sample::select(seeds.clone());
    let piece =
        (prop::sample::select(seeds), any::<u16>(), 0usize..48).prop_map(|(seed, from, length)| {
            let from = usize::from(from) % (seed.len() + 1);
            seed[from..seed.len().min(from + length)].to_vec()
        });
    let marks = prop::sample::select(vec![
        &b"\r\n"[..],
        b"\r",
        b"\n",
        b".",
        b"\r\n.\r\n",
        b"\0",
        b" ",
        b":",
        b";",
        b"<",
        b">",
        b"\"",
        b"\\",
        b"@",
        b"+",
        b"=",
        b"\xff",
        b"\xc3\xa9",
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        b"\xc2\xa0",
        b"\n ",
        b"\n\xc2\xa0",
    ])
    .prop_map(<[u8]>::to_vec);
    let tail = vec(
        prop_oneof![4 => piece.clone(), 3 => marks, 2 => vec(any::<u8>(), 0..6)],
        0..10,
    );
    (prop_oneof![whole, piece], any::<u16>(), tail).prop_map(|(head, cut, tail)| {
        let cut = usize::from(cut) % (head.len() + 1);
        let mut bytes = head[..cut].to_vec();
        bytes.extend(tail.concat());
        bytes.extend_from_slice(&head[cut..]);
        bytes
    })
}

fn run(name: &str) {
    let (_, body): (&str, Body) = *TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    body(b"");
    let seeds = seeds(name);
    for (file, bytes) in &seeds {
        println!("{}", file.display());
        body(bytes);
    }
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let seeds = seeds.into_iter().map(|(_, bytes)| bytes).collect();
    TestRunner::new(config)
        .run(&mixes(seeds), |bytes| {
            body(&bytes);
            Ok(())
        })
        .unwrap();
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_its_test_and_its_fuzz_target() {
            let tested = [$(stringify!($name)),*];
            let known = TARGETS.map(|(name, _)| name);
            assert_eq!(known, tested);
            let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
            for name in tested {
                assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            }
        }
    };
}

targets!(session data reply dsn notice header address xtext sts);
