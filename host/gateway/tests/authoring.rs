//! What an author does before there is a gateway: begin a policy, build it, test it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn tidegate(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .env_remove("TIDEGATE_CONFIG")
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn policies() -> PathBuf {
    // In the target directory, wherever that is.
    let program = std::env::current_exe().unwrap();
    program
        .ancestors()
        .map(|directory| directory.join("policies"))
        .find(|path| path.is_dir())
        .expect("run `cargo xtask plugins` first")
}

fn routing() -> String {
    let path = policies().join("routing-default.wasm");
    assert!(path.is_file(), "run `cargo xtask plugins` first");
    path.display().to_string()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_test_prints_each_decision_with_its_cost_and_fails_on_a_surprise() {
    let dir = scratch();
    let config = r#"{"rules":[
        {"recipient_domain":["eu.test"],"action":{"managed":{"relay":"eu"}}},
        {"recipient_domain":["no.test"],"action":{"refuse":{"text":"not there"}}}]}"#;
    std::fs::write(dir.path().join("c.json"), config).unwrap();
    let messages = dir.path().join("m");
    std::fs::create_dir(&messages).unwrap();
    let put = |name: &str, text: &str| std::fs::write(messages.join(name), text).unwrap();
    put("grants.json", r#"{"relays":["eu"]}"#);
    put(
        "split.json",
        r#"{"sender":"a@acme.example","recipients":["b@eu.test","c@no.test"],
            "expect":{"recipients":{"b@eu.test":{"managed":{"relay":"eu"}},"c@no.test":{"refuse":{"code":550}}}}}"#,
    );
    put(
        "letter.eml",
        "From: a@acme.example\r\nTo: d@other.test\r\n\r\nHi\r\n",
    );
    let wasm = routing();
    let args = [
        "policy",
        "test",
        &wasm,
        "--config",
        "c.json",
        "--messages",
        "m",
    ];
    let good = tidegate(dir.path(), &args);
    let text = told(&good);
    assert!(good.status.success(), "{text}");
    assert!(text.contains("2 passed, 0 failed"), "{text}");
    assert!(
        text.contains("managed class=transactional relay=eu"),
        "{text}"
    );
    assert!(text.contains("instructions"), "{text}");

    put(
        "surprise.jsonl",
        "{\"recipients\":[\"x@eu.test\"],\"expect\":\"refuse\"}\n\n",
    );
    let bad = tidegate(dir.path(), &[&args[..], &["--json"]].concat());
    assert_eq!(bad.status.code(), Some(1), "{}", told(&bad));
    let report: serde_json::Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(report["failed"], 1);
    let case = report["cases"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "surprise:1")
        .unwrap();
    assert_eq!(
        case["answer"]["recipients"]["x@eu.test"]["managed"]["relay"],
        "eu"
    );
    assert!(
        case["problems"][0]
            .as_str()
            .unwrap()
            .contains("expected refuse")
    );
    // The count of instructions is the same in every run.
    let again = tidegate(dir.path(), &[&args[..], &["--json"]].concat());
    let again: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert!(report["max_fuel"].as_u64().unwrap() > 100);
    assert_eq!(report["max_fuel"], again["max_fuel"]);
    let low = tidegate(
        dir.path(),
        &[
            "policy",
            "test",
            &wasm,
            "--config",
            "c.json",
            "--messages",
            "m/letter.eml",
            "--max-fuel",
            "10",
        ],
    );
    assert_eq!(low.status.code(), Some(1));
    assert!(told(&low).contains("the budget is 10"), "{}", told(&low));
}

#[test]
fn what_a_test_can_not_do_is_told_with_its_remedy() {
    let dir = scratch();
    let wasm = routing();
    std::fs::write(dir.path().join("bad.json"), r#"{"sendr":"x"}"#).unwrap();
    std::fs::write(dir.path().join("ok.json"), r#"{"recipients":["a@b.test"]}"#).unwrap();
    std::fs::write(dir.path().join("c.json"), r#"{"rulez":[]}"#).unwrap();
    std::fs::write(
        dir.path().join("eu.json"),
        r#"{"default":{"managed":{"relay":"eu"}}}"#,
    )
    .unwrap();
    std::fs::write(dir.path().join("junk.wasm"), "MZ").unwrap();
    let run = |args: &[&str]| {
        let output = tidegate(dir.path(), &[&["policy", "test"], args].concat());
        (output.status.code(), told(&output))
    };
    for (args, code, words) in [
        (
            vec![&*wasm, "--messages", "bad.json"],
            2,
            "unknown field `sendr`",
        ),
        (
            vec![&wasm, "--messages", "none.json"],
            2,
            "none.json can't be read",
        ),
        (
            vec![&wasm, "--config", "c.json", "--messages", "ok.json"],
            1,
            "the policy refuses its configuration",
        ),
        (
            vec!["junk.wasm", "--messages", "ok.json"],
            1,
            "not a WebAssembly",
        ),
        (
            vec![&wasm, "--config", "eu.json", "--messages", "ok.json"],
            1,
            "relay \"eu\" is not granted",
        ),
    ] {
        let (found, text) = run(&args);
        assert_eq!(found, Some(code), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
    }
    let (code, text) = run(&[
        &wasm,
        "--config",
        "eu.json",
        "--messages",
        "ok.json",
        "--relay",
        "eu",
    ]);
    assert_eq!(code, Some(0), "{text}");
}

/// Begins a policy of that language and world; returns its directory.
fn begin(dir: &Path, lang: &str, world: &str) -> PathBuf {
    let project = begin_with(dir, lang, "--world", world);
    if world == "routing" {
        // What an author may forget, and the project does not.
        let case = |name: &str, campaign: &str, class: &str| {
            let case = serde_json::json!({
                "name": name,
                "recipients": ["jane@customer.example"],
                "headers": {"X-Campaign": campaign},
                "expect": {"managed": {"class": class}},
            });
            let path = project.join(format!("messages/{name}.json"));
            std::fs::write(path, case.to_string()).unwrap();
        };
        case("empty", "", "transactional");
        case("long", &format!("Frühling {}", "🌱".repeat(80)), "bulk");
    }
    project
}

fn begin_with(dir: &Path, lang: &str, option: &str, value: &str) -> PathBuf {
    let name = format!("my-{value}");
    let made = tidegate(
        dir,
        &["policy", "new", &name, "--lang", lang, option, value],
    );
    assert!(made.status.success(), "{}", told(&made));
    dir.join(name)
}

/// The report of a test in which nothing failed.
fn passes(project: &Path, wasm: &str) -> String {
    let tested = tidegate(
        project,
        &[
            "policy",
            "test",
            wasm,
            "--config",
            "config.json",
            "--messages",
            "messages",
        ],
    );
    let text = told(&tested);
    assert!(tested.status.success(), "{}: {text}", project.display());
    assert!(text.contains(" passed, 0 failed"), "{text}");
    text
}

const WORLDS: [&str; 3] = ["routing", "shaping", "export"];

#[test]
fn a_new_policy_in_c_builds_and_passes_its_test() {
    for world in WORLDS {
        let dir = scratch();
        let project = begin(dir.path(), "c", world);
        make(&project);
        passes(&project, &format!("my-{world}.wasm"));
    }
}

fn make(project: &Path) {
    let made = Command::new("make").arg("-s").current_dir(project).output();
    let made = made.expect("make, clang and lld are installed by `cargo xtask test`");
    assert!(made.status.success(), "{}", told(&made));
    assert_eq!(told(&made), "", "without a warning");
}

#[test]
fn a_policy_begun_with_an_example_builds_and_passes_its_test() {
    for entry in std::fs::read_dir(plugins().join("examples")).unwrap() {
        let example = entry.unwrap().file_name().into_string().unwrap();
        let dir = scratch();
        let project = begin_with(dir.path(), "c", "--example", &example);
        make(&project);
        let text = passes(&project, &format!("my-{example}.wasm"));
        assert!(text.starts_with(&format!("my-{example} ")), "{text}");
        let readme = std::fs::read_to_string(project.join("README.md")).unwrap();
        assert!(readme.contains("| key | default |"), "{readme}");
    }
    // The other languages have the sources whose answers are compared elsewhere.
    let example = plugins().join("examples/office-hours");
    for (language, source) in [
        ("rust", "src/lib.rs"),
        ("js", "policy.js"),
        ("python", "policy.py"),
    ] {
        let dir = scratch();
        let project = begin_with(dir.path(), language, "--example", "office-hours");
        let theirs = std::fs::read_to_string(example.join(source)).unwrap();
        let ours = std::fs::read_to_string(project.join(source)).unwrap();
        assert_eq!(
            ours,
            theirs.replace("\"office-hours\"", "\"my-office-hours\"")
        );
        for file in ["config.json", "messages/cases.jsonl"] {
            let theirs = std::fs::read(example.join(file)).unwrap();
            assert_eq!(std::fs::read(project.join(file)).unwrap(), theirs);
        }
    }
    let dir = scratch();
    let wrong = tidegate(
        dir.path(),
        &["policy", "new", "mine", "--lang", "c", "--example", "lunch"],
    );
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        told(&wrong).contains("own-server, eu-only"),
        "{}",
        told(&wrong)
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins")
}

/// A policy of each world in a language of scripts, begun, built and tested.
fn a_new_script_passes(language: &str, script: &str) {
    for world in WORLDS {
        let dir = scratch();
        let project = begin(dir.path(), language, world);
        let wasm = format!("my-{world}.wasm");
        let made = tidegate(
            &project,
            &[
                "policy",
                "build",
                script,
                "-o",
                &wasm,
                "--engine",
                &policies()
                    .join(format!("engines/{language}-{world}.wasm"))
                    .display()
                    .to_string(),
            ],
        );
        assert!(made.status.success(), "{}", told(&made));
        passes(&project, &wasm);
    }
}

#[test]
fn a_new_policy_in_javascript_builds_and_passes_its_test() {
    a_new_script_passes("js", "policy.js");
}

#[test]
fn a_new_policy_in_python_builds_and_passes_its_test() {
    a_new_script_passes("python", "policy.py");
}

/// The cargo in use where its compiler has the target, as an author's has by `rustup target add`;
/// else Debian's, with the standard library from its source, as `cargo xtask plugins` does it.
fn cargo_for_wasm() -> Command {
    let sysroot = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .unwrap();
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    let targets = sysroot.join("lib/rustlib");
    if targets.join("wasm32-unknown-unknown/lib").is_dir() {
        return Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    }
    let linker = std::fs::read_dir(&targets)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("bin/rust-lld"))
        .find(|linker| linker.is_file())
        .unwrap_or_else(|| "wasm-ld".into());
    let mut cargo = Command::new("/usr/bin/cargo");
    cargo
        .args(["-Z", "build-std=std,panic_abort"])
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
        .env_remove("RUSTUP_TOOLCHAIN");
    cargo
}

#[test]
fn a_new_policy_in_rust_builds_and_passes_its_test() {
    let dir = scratch();
    // One for all and kept, so that dependencies are built once.
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/authoring");
    for world in WORLDS {
        let project = begin(dir.path(), "rust", world);
        let mut cargo = cargo_for_wasm();
        for (name, _) in std::env::vars() {
            // Of the cargo that runs this test.
            let ours = name.starts_with("CARGO_") || name.starts_with("RUST");
            let kept = ["CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"].contains(&name.as_str());
            let set = cargo.get_envs().any(|(set, _)| *set == *name);
            if ours && !kept && !set {
                cargo.env_remove(name);
            }
        }
        let built = cargo
            .args(["build", "--release", "--quiet"])
            .env("CARGO_TARGET_DIR", &target)
            .current_dir(&project)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", told(&built));
        let wasm = target.join(format!("wasm32-unknown-unknown/release/my_{world}.wasm"));
        passes(&project, &wasm.display().to_string());
    }
}

#[test]
fn a_name_or_place_that_will_not_do_changes_nothing() {
    let dir = scratch();
    for name in ["Upper", "a_b", "../x", "", "9lives"] {
        let output = tidegate(dir.path(), &["policy", "new", name, "--lang", "c"]);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", told(&output));
    }
    std::fs::create_dir(dir.path().join("there")).unwrap();
    let output = tidegate(dir.path(), &["policy", "new", "there", "--lang", "c"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("there already"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
