//! The examples of `plugins/examples`: each in Rust, C, JavaScript and Python, with one
//! configuration and one set of cases. All four give the same answers, which are those that the
//! cases expect, and refuse the same configurations.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tidegate_policy::offline::{Budget, Case, Grants, TestError, Tester};
use tidegate_policy::{Refused, Upload};

fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins")
}

fn examples() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(plugins().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    assert_eq!(found.len(), 9);
    found
}

fn name(example: &Path) -> String {
    example.file_name().unwrap().to_string_lossy().into_owned()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Makes a policy of an example, in some language.
type Build = fn(&Path) -> Vec<u8>;

/// By `cargo xtask plugins`.
fn rust(example: &Path) -> Vec<u8> {
    let name = name(example);
    let wasm = format!("../../target/policies/examples/{name}.wasm");
    let wasm = Path::new(env!("CARGO_MANIFEST_DIR")).join(wasm);
    std::fs::read(wasm).unwrap_or_else(|e| panic!("{name}: {e}; run `cargo xtask plugins` first"))
}

/// With the flags of the Makefile that `policy new` writes.
fn c(example: &Path) -> Vec<u8> {
    compile(&example.join("policy.c"))
}

fn compile(source: &Path) -> Vec<u8> {
    let include = plugins().join("templates/c");
    let makefile = text(&include.join("Makefile.in"));
    let flags = |name: &str| {
        makefile
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix("= "))
            .unwrap_or_else(|| panic!("the Makefile sets no {name}"))
            .split(' ')
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let scratch = tempfile::tempdir().unwrap();
    let wasm = scratch.path().join("policy.wasm");
    let made = Command::new("clang")
        .args(flags("CFLAGS"))
        .args(flags("LDFLAGS"))
        .args(["-Werror", "-I"])
        .arg(include)
        .arg("-o")
        .arg(&wasm)
        .arg(source)
        .output()
        .expect("clang is installed by `cargo xtask plugins`");
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{}: {told}", source.display());
    std::fs::read(wasm).unwrap()
}

fn js(example: &Path) -> Vec<u8> {
    script(example, "policy.js")
}

fn python(example: &Path) -> Vec<u8> {
    script(example, "policy.py")
}

fn script(example: &Path, file: &str) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let wasm = scratch.path().join("policy.wasm");
    let made = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["policy", "build", file, "-o"])
        .arg(&wasm)
        .current_dir(example)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{}: {told}", example.display());
    std::fs::read(wasm).unwrap()
}

/// What a policy answered to the cases of its example, all of which it passed.
fn answers(example: &Path, component: &[u8]) -> Vec<(String, Value)> {
    let upload = Upload {
        component,
        config: &text(&example.join("config.json")),
    };
    let tester =
        Tester::new(&upload, false).unwrap_or_else(|e| panic!("{}: {e}", example.display()));
    let (mut cases, mut grants) = (Vec::new(), Grants::default());
    for entry in std::fs::read_dir(example.join("messages")).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("grants.json") {
            grants = Grants::parse(&text(&path)).unwrap();
            continue;
        }
        for line in text(&path).lines() {
            cases.extend(Case::parse(tester.world(), "case", line).unwrap());
        }
    }
    let report = tester.run(&cases, &grants, Budget::default());
    assert!(!report.cases.is_empty());
    let answer = |case: tidegate_policy::offline::CaseReport| {
        assert_eq!(
            case.problems,
            [""; 0],
            "{}: {}: {}",
            example.display(),
            case.name,
            case.answer
        );
        (case.name, normal(case.answer))
    };
    assert_eq!(report.policy, name(example));
    report.cases.into_iter().map(answer).collect()
}

/// A body of JSON is what it means: spaces, the order of fields, escapes and the form of numbers are
/// a language's own.
fn normal(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| match (key.as_str(), value) {
                ("body", Value::String(body)) => (key, meaning(&body)),
                (_, value) => (key, normal(value)),
            })
            .collect(),
        Value::Array(list) => list.into_iter().map(normal).collect(),
        Value::Number(n) => json!(n.as_f64()),
        other => other,
    }
}

fn meaning(body: &str) -> Value {
    serde_json::Deserializer::from_str(body)
        .into_iter::<Value>()
        .map(|part| normal(part.unwrap_or_else(|e| panic!("{e}: {body}"))))
        .collect()
}

/// Each configuration of `refused.json` is refused with the words that it asks for.
fn refuses(example: &Path, component: &[u8]) {
    let cases: Value = serde_json::from_str(&text(&example.join("refused.json"))).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let config = case["config"].to_string();
        let upload = Upload {
            component,
            config: &config,
        };
        let words = match Tester::new(&upload, false) {
            Err(TestError::Refused(Refused::Config(words))) => words,
            Err(other) => panic!("{}: {config}: {other}", example.display()),
            Ok(_) => panic!("{}: {config} was taken", example.display()),
        };
        let wanted = case["error"].as_str().unwrap();
        assert!(words.contains(wanted), "{}: {words}", example.display());
    }
}

/// The answers in C, which is the quickest to build.
fn expected() -> &'static [Vec<(String, Value)>] {
    static ANSWERS: OnceLock<Vec<Vec<(String, Value)>>> = OnceLock::new();
    ANSWERS.get_or_init(|| {
        let of = |example: &PathBuf| answers(example, &c(example));
        examples().iter().map(of).collect()
    })
}

fn every_example(build: Build) {
    for (example, expected) in examples().iter().zip(expected()) {
        let component = build(example);
        let answers = answers(example, &component);
        assert_eq!(&answers, expected, "{}", example.display());
        refuses(example, &component);
    }
}

#[test]
fn every_example_in_rust_answers_and_refuses_as_expected() {
    every_example(rust);
}

#[test]
fn every_example_in_c_answers_and_refuses_as_expected() {
    every_example(c);
}

#[test]
fn every_example_in_javascript_answers_and_refuses_as_expected() {
    every_example(js);
}

#[test]
fn every_example_in_python_answers_and_refuses_as_expected() {
    every_example(python);
}

#[test]
fn the_policy_in_c_that_the_guide_shows_builds_and_decides() {
    let guide = text(&plugins().join("../docs/policies.md"));
    let (_, rest) = guide.split_once("```c\n").unwrap();
    let (source, _) = rest.split_once("```").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("policy.c");
    std::fs::write(&path, source).unwrap();
    let upload = Upload {
        component: &compile(&path),
        config: r#"{"staff_domain":"staff.example"}"#,
    };
    let tester = Tester::new(&upload, false).unwrap();
    let case = r#"[
        {"sender": "a@Staff.example", "recipients": ["b@c.example"], "expect": "passthrough"},
        {"sender": "crm@acme.example", "recipients": ["b@c.example"], "expect": "managed"}]"#;
    let grants = Grants {
        servers: vec!["office".to_owned()],
        ..Grants::default()
    };
    let cases = Case::parse(tester.world(), "guide", case).unwrap();
    let report = tester.run(&cases, &grants, Budget::default());
    assert_eq!(report.failed, 0, "{:?}", report.cases);
}

/// Tells what `tidegate-json.h` makes of the text of each event: the same JSON again, or why not.
const ECHO: &str = r#"
#define TG_EXPORTER
#include "tidegate.h"
#include "tidegate-json.h"

static tg_setup policy_init(tg_text text) {
    tg_config config = tg_config_read(text);
    return tg_config_end(&config, (tg_descriptor){ TG("echo"), TG("1"), { 0, 0 }, { 0, 0 } });
}

/* Numbers in units of 1/1000. */
static void echo(tg_buffer *b, const tg_json *v) {
    int list = v->kind == TG_JSON_LIST;
    double n = v->number * 1000;
    switch (v->kind) {
        case TG_JSON_NULL: tg_put(b, TG("null")); return;
        case TG_JSON_FALSE: tg_put(b, TG("false")); return;
        case TG_JSON_TRUE: tg_put(b, TG("true")); return;
        case TG_JSON_TEXT: tg_put_json(b, v->text); return;
        case TG_JSON_NUMBER:
            if (!(n > -9e15 && n < 9e15)) { tg_put(b, TG("\"far\"")); return; }
            if (n < 0) tg_put(b, TG("-"));
            tg_put_number(b, (tg_u64)((n < 0 ? -n : n) + 0.5));
            return;
    }
    tg_put(b, list ? TG("[") : TG("{"));
    for (const tg_json *item = v->first; item; item = item->next) {
        if (item != v->first) tg_put(b, TG(","));
        if (!list) tg_put_json(b, item->name), tg_put(b, TG(":"));
        echo(b, item);
    }
    tg_put(b, list ? TG("]") : TG("}"));
}

static tg_export policy_render(const tg_event *events, tg_u32 len) {
    static tg_payload payload;
    tg_buffer body = { 0 };
    for (tg_u32 n = 0; n < len; n++) {
        tg_json read;
        tg_text fault;
        if (tg_json_read(events[n].text.value, &read, &fault)) echo(&body, &read);
        else tg_put_json(&body, fault);
        tg_put(&body, TG("\n"));
    }
    payload = (tg_payload){ { body.at, body.len }, TG("application/x-ndjson") };
    return (tg_export){ 0, .ok = { &payload, 1 } };
}
"#;

/// What the echo makes of a value that another reader read.
fn echoed(value: Value) -> Value {
    match value {
        Value::Number(n) => {
            let n = n.as_f64().unwrap() * 1000.0;
            if n.abs() < 9e15 {
                json!(n.signum() * (n.abs() + 0.5).floor())
            } else {
                json!("far")
            }
        }
        Value::Array(list) => list.into_iter().map(echoed).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, echoed(v))).collect(),
        other => other,
    }
}

#[test]
fn what_the_json_reader_for_c_takes_and_makes_of_it_is_what_serde_does() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("echo.c");
    std::fs::write(&source, ECHO).unwrap();
    let upload = Upload {
        component: &compile(&source),
        config: "",
    };
    let tester = Tester::new(&upload, false).unwrap();
    let mut texts: Vec<String> = [
        r#" {"a": [1, -2.5, 1e2, 0.001, 12E-1, 1e400], "b": {"c": null}, "d": [true, false, []], "e": {} } "#,
        r#"["\"\\\/\b\f\n\r\t", "\u00e9\u20ac\ud83c\udf31\u0000", "Größe 🌱"]"#,
        r#"{"a": 1, "a": 2}"#,
        "-0", "0", "01", "-", "+1", "1.", ".5", "1e", "1e+", "1e+2", "9007199254740993", "123456789.123456789",
        "", " ", "nul", "nulll", "True", "[", "]", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}", "{a:1}", "{\"a\":1,}",
        "\"", "\"\\", "\"\\\"", "\"\\u12\"", "\"\\u12", "\"\\ud83c\"", "\"\\ud83c\\u0041\"", "\"\\udf31\"", "\"\\x\"",
        "\"\\u00", "\"\\ud83c\\u\"", "\"\\ud83c\\udf3\"", "1 1", "\u{feff}1", "\"\\u+123\"",
    ]
    .map(str::to_owned)
    .into();
    texts.push("[".repeat(32) + &"]".repeat(32));
    // Random changes of those that are good, from a fixed seed.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let pieces: Vec<char> = "{}[]\",:\\u0123456789dDeE+-. \tntf/é🌱".chars().collect();
    for n in 0..4000 {
        let mut text: Vec<char> = texts[n % 3].chars().collect();
        for _ in 0..1 + random(2) {
            let at = random(text.len());
            match random(3) {
                0 => drop(text.remove(at)),
                1 => text.insert(at, pieces[random(pieces.len())]),
                _ => text[at] = pieces[random(pieces.len())],
            }
        }
        texts.push(text.into_iter().collect());
    }
    let batches: Vec<Case> = texts
        .chunks(500)
        .flat_map(|texts| {
            let event = |text: &String| json!({"kind": "bounced", "text": text});
            let events: Vec<Value> = texts.iter().map(event).collect();
            let case = json!({ "events": events }).to_string();
            Case::parse(tester.world(), "batch", &case).unwrap()
        })
        .collect();
    let report = tester.run(&batches, &Grants::default(), Budget::default());
    let mut told = Vec::new();
    for case in &report.cases {
        let body = case.answer["payloads"][0]["body"].as_str();
        let body = body.unwrap_or_else(|| panic!("{}", case.answer));
        told.extend(body.lines().map(str::to_owned));
    }
    assert_eq!(told.len(), texts.len());
    let mut good = 0;
    for (text, told) in texts.iter().zip(told) {
        let told: Value = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{text}: {e}"));
        let refused = told
            .as_str()
            .is_some_and(|t| t.starts_with("no JSON at line "));
        match serde_json::from_str::<Value>(text) {
            // The other reader knows no such number; this one has an infinity, which no bound takes.
            Err(e) if e.to_string().starts_with("number out of range") => {}
            Err(e) => assert!(refused, "{text:?} is {told}, and not {e}"),
            Ok(value) => {
                good += 1;
                assert_eq!(normal(told), normal(echoed(value)), "{text:?}");
            }
        }
    }
    assert!(good > 500, "{good} of {} were good", texts.len());
}
