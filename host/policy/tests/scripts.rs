//! Policies in JavaScript and Python: what a script does wrong is told in its author's terms, and
//! a hostile one is contained like any other policy. Each engine runs the same cases.

mod support;

use support::*;
use tidegate_mail::Address;
use tidegate_policy::{Prepared, Refused, script};
use tidegate_queue::Policy;
use tidegate_queue::route::{Action, Routing};

/// Does what the sender's name says.
const JS: &str = r#"
const kept = [];
function deep(n) { return 1 + deep(n + 1); }
export function init() {
  console.log("there is no log yet");
  return { name: "hostile", version: "1" };
}
export function decide({ sender }) {
  switch (sender.split("@")[0]) {
    case "loop": for (;;) {}
    case "bomb": for (;;) kept.push(new Array(1000).fill(sender));
    case "text": { let text = "x"; for (;;) text += text; }
    case "deep": return deep(0);
    case "raise": return missing.thing;
    case "later": throw { temporary: "the table is being rebuilt" };
    case "answer": return { managed: { class: "urgent" } };
    case "nothing": return;
    case "many": { const splits = []; splits.length = 2000000; return { otherwise: "managed", splits }; }
    case "half": {
      const half = "\u{1f331}".slice(0, 1);
      console.log(half);
      return { otherwise: "managed", tags: { seed: `Gr\u00fc\ud7ff${half}` } };
    }
    case "keep": kept.push(1); return { otherwise: "managed", tags: { kept: String(kept.length) } };
  }
}
"#;

/// The same.
const PYTHON: &str = r#"
from tidegate import Temporary

kept = []

def deep(n):
    return 1 + deep(n + 1)

class Deeper:
    def __repr__(self):
        return repr(self)

def init(config):
    # Garbage of more than the memory there is, in few objects, and what must outlive it.
    table = {str(n): [n, "text " + str(n)] for n in range(2000)}
    body = ""
    for n in range(3000):
        body += "0123456789abcdef"
    for n in range(2000):
        assert table[str(n)] == [n, "text " + str(n)]
    return {"name": "hostile", "version": str(len(body))}

def decide(message):
    what = message["sender"].split("@")[0]
    if what == "loop":
        while True:
            pass
    if what == "bomb":
        while True:
            kept.append([what] * 1000)
    if what == "text":
        text = "x"
        while True:
            text += text
    if what == "deep":
        return deep(0)
    if what == "deeper":
        return repr(Deeper())
    if what == "raise":
        return missing.thing
    if what == "later":
        raise Temporary("the table is being rebuilt")
    if what == "answer":
        return {"managed": {"class": "urgent"}}
    if what == "keep":
        kept.append(1)
        return {"otherwise": "managed", "tags": {"kept": str(len(kept))}}
"#;

fn policy(language: &str, text: &str) -> Vec<u8> {
    script::embed(&plugin(&format!("engines/{language}-routing")), text).unwrap()
}

async fn asked(revision: &Prepared, what: &str) -> Routing {
    let host = host();
    host.activate("routing/acme", revision).unwrap();
    let mut question = question("acme", &["a@x.test"]);
    let envelope = std::sync::Arc::make_mut(&mut question.envelope);
    envelope.reverse_path = Some(Address::parse(&format!("{what}@acme.example")).unwrap());
    host.route(&question).await
}

/// Not decided by the script, for one of these reasons.
async fn contained(revision: &Prepared, what: &str, reasons: &[&str]) {
    let routing = asked(revision, what).await;
    let why = routing
        .fallback
        .unwrap_or_else(|| panic!("{what}: no fallback"));
    assert!(
        reasons.iter().any(|reason| why.contains(reason)),
        "{what}: {why:?} says none of {reasons:?}"
    );
}

/// Its author's word for "not now": the client tries again.
async fn later(revision: &Prepared) {
    let routing = asked(revision, "later").await;
    match routing.action(0) {
        Action::Defer(reply) => {
            let reply = reply.to_string();
            assert!(reply.contains("the table is being rebuilt"), "{reply}");
        }
        other => panic!("{other:?}"),
    }
}

/// Calls do not see each other, whatever the engine.
async fn starts_afresh(revision: &Prepared) {
    for _ in 0..2 {
        let routing = asked(revision, "keep").await;
        assert_eq!(routing.fallback, None);
        assert!(matches!(routing.action(0), Action::Managed(_)));
        assert_eq!(routing.tags, [header("kept", "1")]);
    }
}

const STOPPED: &str = "stopped after 10 ms";

#[tokio::test]
async fn a_hostile_script_in_javascript_is_contained() {
    let revision = try_prepare(&policy("js", JS), "").unwrap();
    contained(&revision, "loop", &[STOPPED]).await;
    contained(&revision, "bomb", &[STOPPED, "out of memory"]).await;
    contained(
        &revision,
        "text",
        &[
            STOPPED,
            "out of memory",
            "string too long",
            "invalid string length",
        ],
    )
    .await;
    contained(
        &revision,
        "deep",
        &["call stack exhausted", "out of bounds", STOPPED],
    )
    .await;
    contained(
        &revision,
        "raise",
        &["missing is not defined", "'missing' is not defined"],
    )
    .await;
    later(&revision).await;
    contained(
        &revision,
        "answer",
        &["class: transactional or bulk is needed"],
    )
    .await;
    contained(
        &revision,
        "nothing",
        &["an action is \"managed\" or an object"],
    )
    .await;
    contained(&revision, "many", &["splits: too long a list"]).await;
    let routing = asked(&revision, "half").await;
    assert_eq!(routing.fallback, None, "half an emoji is no failure");
    assert_eq!(routing.tags, [header("seed", "Gr\u{fc}\u{d7ff}\u{fffd}")]);
    starts_afresh(&revision).await;
}

#[tokio::test]
async fn a_hostile_script_in_python_is_contained() {
    let revision = try_prepare(&policy("python", PYTHON), "").unwrap();
    contained(&revision, "loop", &[STOPPED]).await;
    contained(&revision, "bomb", &[STOPPED, "unreachable"]).await;
    contained(
        &revision,
        "text",
        &[STOPPED, "unreachable", "out of bounds"],
    )
    .await;
    contained(
        &revision,
        "deep",
        &["RecursionError: maximum recursion depth exceeded (policy.py, line 6, in deep; policy.py, line 7, in deep"],
    )
    .await;
    contained(
        &revision,
        "deeper",
        &[
            "call stack exhausted",
            "out of bounds",
            "RecursionError",
            STOPPED,
        ],
    )
    .await;
    let line = PYTHON.lines().position(|l| l.contains("missing.thing"));
    let told = format!(
        "NameError: name 'missing' is not defined (policy.py, line {}, in decide)",
        line.unwrap() + 1
    );
    contained(&revision, "raise", &[&told]).await;
    later(&revision).await;
    contained(
        &revision,
        "answer",
        &["class: transactional or bulk is needed"],
    )
    .await;
    contained(
        &revision,
        "nothing",
        &["an action is \"managed\" or a dict"],
    )
    .await;
    starts_afresh(&revision).await;
    assert_eq!(revision.descriptor.version, "48000", "garbage is collected");
}

/// The words that refuse this script at its upload.
fn refused(language: &str, text: &str) -> String {
    match try_prepare(&policy(language, text), "{}") {
        Err(Refused::Config(words) | Refused::Init(words)) => words,
        other => panic!("{:?}", other.map(|_| "taken")),
    }
}

#[test]
fn what_is_wrong_with_a_script_in_python_is_told_at_its_upload_with_file_and_line() {
    for (text, words) in [
        ("def init(config):\n    return {\n", "SyntaxError: "),
        (
            "import socket\n\ndef init(config):\n    pass\n",
            "ImportError: No module named 'socket' (policy.py, line 1)",
        ),
        (
            "def table(text):\n    return text[9]\n\ndef init(config):\n    return table(config)\n",
            "(policy.py, line 2, in table; policy.py, line 5, in init)",
        ),
        (
            "def init(config):\n    raise ValueError('relay: name a relay')\n",
            "ValueError: relay: name a relay (policy.py, line 2, in init)",
        ),
        (
            "def decide(message):\n    return 'managed'\n",
            "def init is missing",
        ),
        (
            "def init(config):\n    return {'name': 'a', 'version': 1}\n",
            "version: a text is needed",
        ),
        ("", "no script"),
    ] {
        let told = refused("python", text);
        assert!(told.contains(words), "{text:?}: {told:?}");
    }
}

#[test]
fn a_script_that_never_ends_or_takes_all_memory_is_refused_at_its_upload() {
    for (language, endless, bomb) in [
        (
            "js",
            "for (;;) {}",
            "const a = []; for (;;) a.push(new Array(10000).fill(1));",
        ),
        (
            "python",
            "while True:\n    pass\n",
            "a = []\nwhile True:\n    a.append([1] * 10000)\n",
        ),
    ] {
        assert_eq!(refused(language, endless), "stopped after 2000 ms");
        let told = refused(language, bomb);
        assert!(
            ["unreachable", "out of memory", "stopped"]
                .iter()
                .any(|w| told.contains(w)),
            "{told}"
        );
    }
}
