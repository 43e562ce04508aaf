//! Hostile policies, written by hand in WAT: each is contained within its bounds, the message
//! gets the slot's fallback, and the next call is served as if nothing had been.

mod support;

use std::time::{Duration, Instant};

use support::*;
use tidegate_mail::{Reply, TrafficClass};
use tidegate_policy::{PolicyHost, Refused};
use tidegate_queue::Policy;
use tidegate_queue::route::{Action, Occasion, Routing};

/// Puts these instructions before the answer of zeroes.
fn answering(stores: &str) -> Vec<u8> {
    wat_policy(&format!("{stores} {PLAIN}"), "")
}

async fn decide(policy: &[u8]) -> (PolicyHost, Routing) {
    let host = host();
    let revision = try_prepare(policy, "").unwrap();
    host.activate("routing/acme", &revision).unwrap();
    let routing = host
        .route(&question("acme", &["a@x.test", "b@y.test"]))
        .await;
    (host, routing)
}

/// The fallback decided, for that reason; another tenant is served by the same host.
async fn contained(policy: &[u8], reason: &str) {
    let (host, routing) = decide(policy).await;
    let why = routing.fallback.as_deref().expect("a fallback");
    assert!(why.contains(reason), "{why:?} does not say {reason:?}");
    assert_eq!(routing.policy, None);
    match routing.action(1) {
        Action::Defer(reply) => assert!(reply.to_string().starts_with("451 4.3.0 "), "{reply}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(host.status()[0].failures, 1);
    host.activate("routing", &prepared("routing-default", ""))
        .unwrap();
    let routing = host.route(&question("beta", &["a@x.test"])).await;
    assert_eq!(routing.fallback, None);
    assert!(matches!(routing.action(0), Action::Managed(_)));
}

#[tokio::test]
async fn the_fixture_itself_is_a_policy() {
    let (_, routing) = decide(&wat_policy(PLAIN, "")).await;
    assert_eq!(routing.fallback, None);
    assert_eq!(routing.of_recipient, [0, 0]);
    assert!(matches!(routing.action(0), Action::Managed(_)));
}

#[tokio::test]
async fn an_endless_loop_is_stopped() {
    let policy = wat_policy(&format!("(loop $l (br $l)) {PLAIN}"), "");
    let begun = Instant::now();
    contained(&policy, "stopped after 10 ms").await;
    // Ten ticks on a machine that may be very busy, preparing two policies included.
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn memory_stops_growing_at_its_limit() {
    // Grows page by page until refused, then traps if more than 16 MiB were granted.
    let policy = wat_policy(
        &format!(
            "(block $done (loop $l
                (br_if $done (i32.eq (memory.grow (i32.const 1)) (i32.const -1)))
                (br $l)))
             (if (i32.gt_u (memory.size) (i32.const 256)) (then unreachable))
             (if (i32.lt_u (memory.size) (i32.const 256)) (then unreachable))
             {PLAIN}"
        ),
        "",
    );
    let (_, routing) = decide(&policy).await;
    assert_eq!(routing.fallback, None);
}

#[tokio::test]
async fn a_memory_bomb_is_stopped() {
    let policy = wat_policy(
        &format!(
            "(local $at i32)
             (loop $l
                (drop (memory.grow (i32.const 16)))
                (i32.store (local.get $at) (i32.const 1))
                (local.set $at (i32.add (local.get $at) (i32.const 4096)))
                (br_if $l (i32.lt_u (local.get $at) (i32.mul (memory.size) (i32.const 65536))))
                (local.set $at (i32.const 0))
                (br $l))
             {PLAIN}"
        ),
        "",
    );
    contained(&policy, "stopped after 10 ms").await;
}

#[tokio::test]
async fn deep_recursion_traps() {
    let policy = wat_policy(
        &format!("(drop (call $deep (i32.const 1))) {PLAIN}"),
        "(func $deep (param i32) (result i32) (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (local.get 0)))",
    );
    contained(&policy, "call stack exhausted").await;
}

#[tokio::test]
async fn a_trap_is_contained() {
    contained(&wat_policy("unreachable", ""), "unreachable").await;
    contained(
        &answering("(drop (i32.load (i32.const 0x7fffffff)))"),
        "out of bounds",
    )
    .await;
    contained(
        &answering("(drop (i32.div_u (i32.const 1) (i32.load (i32.const 60000))))"),
        "divide by zero",
    )
    .await;
}

#[tokio::test]
async fn an_answer_that_does_not_lie_in_memory_is_refused() {
    contained(&wat_policy("(i32.const -8)", ""), "").await;
    contained(&wat_policy("(i32.const 4097)", ""), "aligned").await;
    // An action that does not exist.
    contained(
        &answering("(i32.store8 (i32.const 4104) (i32.const 9))"),
        "",
    )
    .await;
    // A relay's name that is not UTF-8.
    contained(
        &answering(
            "(i32.store8 (i32.const 4116) (i32.const 1)) (i32.store (i32.const 4120) (i32.const 8192))
             (i32.store (i32.const 4124) (i32.const 1)) (i32.store8 (i32.const 8192) (i32.const 255))",
        ),
        "utf-8",
    )
    .await;
}

/// Points the decision's splits at one split of recipients `[index, ...]`.
fn split(indices: &[u32]) -> String {
    let mut wat = format!(
        "(i32.store (i32.const 4176) (i32.const 8192)) (i32.store (i32.const 4180) (i32.const 1))
         (i32.store (i32.const 8192) (i32.const 8448)) (i32.store (i32.const 8196) (i32.const {}))",
        indices.len()
    );
    for (n, index) in indices.iter().enumerate() {
        wat.push_str(&format!(
            "(i32.store (i32.const {}) (i32.const {index}))",
            8448 + 4 * n
        ));
    }
    wat
}

#[tokio::test]
async fn recipients_that_do_not_exist_or_appear_twice_are_invalid() {
    let (_, routing) = decide(&answering(&split(&[1]))).await;
    assert_eq!((routing.fallback, routing.of_recipient), (None, vec![0, 1]));
    contained(&answering(&split(&[2])), "recipient 2 of a message with 2").await;
    contained(&answering(&split(&[4_000_000_000])), "recipient 4000000000").await;
    contained(&answering(&split(&[1, 1])), "appears twice").await;
}

/// Gives the action the tag, and a reply of that code whose text is `len` bytes of `byte`.
fn reply(tag: u32, code: u32, byte: u8, len: u32) -> String {
    format!(
        "(i32.store8 (i32.const 4104) (i32.const {tag})) (i32.store16 (i32.const 4112) (i32.const {code}))
         (i32.store (i32.const 4124) (i32.const 8192)) (i32.store (i32.const 4128) (i32.const {len}))
         (memory.fill (i32.const 8192) (i32.const {byte}) (i32.const {len}))"
    )
}

#[tokio::test]
async fn replies_of_the_wrong_class_or_with_line_ends_are_invalid() {
    let (_, routing) = decide(&answering(&reply(3, 550, b'x', 400))).await;
    assert!(
        matches!(routing.action(0), Action::Refuse(r) if r.code == 550),
        "{routing:?}"
    );
    contained(&answering(&reply(2, 550, b'x', 4)), "reply code 550").await;
    contained(&answering(&reply(3, 451, b'x', 4)), "reply code 451").await;
    contained(&answering(&reply(3, 250, b'x', 4)), "reply code 250").await;
    contained(&answering(&reply(3, 550, b'\n', 4)), "control character").await;
    contained(&answering(&reply(3, 550, b'x', 401)), "401 bytes").await;
}

#[tokio::test]
async fn a_list_of_millions_is_refused_before_it_is_built() {
    // 3,000,000 recipient indices, all within the guest's 16 MiB.
    let policy = answering(
        "(drop (memory.grow (i32.const 200)))
         (i32.store (i32.const 4176) (i32.const 8192)) (i32.store (i32.const 4180) (i32.const 1))
         (i32.store (i32.const 8192) (i32.const 131072)) (i32.store (i32.const 8196) (i32.const 3000000))",
    );
    contained(&policy, "too much data").await;
    // And 100,000 tags.
    let policy = answering(
        "(drop (memory.grow (i32.const 200)))
         (i32.store (i32.const 4184) (i32.const 131072)) (i32.store (i32.const 4188) (i32.const 100000))",
    );
    contained(&policy, "").await;
}

#[tokio::test]
async fn a_policy_can_not_lower_the_class() {
    let host = host();
    host.activate("routing", &try_prepare(&wat_policy(PLAIN, ""), "").unwrap())
        .unwrap();
    let mut q = question("acme", &["a@x.test"]);
    q.class = TrafficClass::Bulk;
    match host.route(&q).await.action(0) {
        Action::Managed(m) => assert_eq!(m.class, TrafficClass::Bulk),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn passthrough_is_no_answer_to_a_failed_passthrough() {
    // server "office" at 8192; after-failure: managed-relay.
    let policy = answering(
        "(i32.store8 (i32.const 4104) (i32.const 1)) (i32.store (i32.const 4112) (i32.const 8192))
         (i32.store (i32.const 4116) (i32.const 6)) (i32.store8 (i32.const 4120) (i32.const 2))
         (i32.store8 (i32.const 8192) (i32.const 111)) (i32.store8 (i32.const 8193) (i32.const 102))
         (i32.store8 (i32.const 8194) (i32.const 102)) (i32.store8 (i32.const 8195) (i32.const 105))
         (i32.store8 (i32.const 8196) (i32.const 99)) (i32.store8 (i32.const 8197) (i32.const 101))",
    );
    let (host, routing) = decide(&policy).await;
    assert!(
        matches!(routing.action(0), Action::Passthrough { server, .. } if server == "office"),
        "{routing:?}"
    );
    let mut q = question("acme", &["a@x.test"]);
    q.occasion = Occasion::PassthroughFailed(Reply {
        code: 451,
        enhanced: None,
        text: String::new(),
    });
    let routing = host.route(&q).await;
    assert!(routing.fallback.unwrap().contains("once more"));
}

const LOG: &str = r#"(import "tidegate:policy/log@1.0.0" "write" (func $log (param i32 i32 i32)))"#;

#[tokio::test]
async fn a_log_flood_is_stopped_and_its_lines_are_few() {
    let policy = wat_policy_with(
        &format!(
            "(loop $l (call $log (i32.const 2) (i32.const 1024) (i32.const 3)) (br $l)) {PLAIN}"
        ),
        "",
        "",
        LOG,
    );
    contained(&policy, "stopped after 10 ms").await;
    // 4 MiB in one line: more than a call may hand to the host.
    let policy = wat_policy_with(
        &format!(
            "(drop (memory.grow (i32.const 100)))
             (call $log (i32.const 2) (i32.const 0) (i32.const 4194304)) {PLAIN}"
        ),
        "",
        "",
        LOG,
    );
    contained(&policy, "too much data").await;
}

#[tokio::test]
async fn long_in_force_the_last_good_revision_decides_and_then_the_breaker_opens() {
    let host = host();
    let good = prepared(
        "routing-default",
        r#"{"default":{"managed":{"lane":"good"}}}"#,
    );
    let bad = try_prepare(&wat_policy("unreachable", ""), "").unwrap();
    // Past its probation: it is not rolled back.
    let long = std::time::Duration::from_secs(3600);
    host.restore("routing/acme", &bad, Some(&good), long)
        .unwrap();
    for n in 1..=8 {
        let routing = host.route(&question("acme", &["a@x.test"])).await;
        assert_eq!(
            routing.policy.as_deref(),
            Some(good.digest.as_str()),
            "call {n}"
        );
        assert!(
            matches!(routing.action(0), Action::Managed(m) if m.lane.as_deref() == Some("good"))
        );
        let why = routing.fallback.unwrap();
        assert!(why.starts_with("last good revision: "), "{why}");
        assert_eq!(why.contains("again and again"), n > 5, "{n}: {why}");
    }
    let status = &host.status()[0];
    assert!(status.breaker_open);
    assert_eq!(
        (status.calls, status.failures),
        (5, 5),
        "an open breaker asks no more"
    );
    // A revision that failed is not a last good one.
    let next = prepared(
        "routing-default",
        r#"{"default":{"managed":{"lane":"next"}}}"#,
    );
    host.activate("routing/acme", &next).unwrap();
    assert_eq!(
        host.status()[0].last_good.as_deref(),
        Some(good.digest.as_str())
    );
    assert!(!host.status()[0].breaker_open);
}

/// On one worker thread, a tenant whose policy never ends does not keep others waiting.
#[tokio::test]
async fn neighbours_go_on_while_a_loop_runs() {
    let host = std::sync::Arc::new(host());
    host.activate(
        "routing/acme",
        &try_prepare(&answering("(loop $l (br $l))"), "").unwrap(),
    )
    .unwrap();
    host.activate("routing", &prepared("routing-default", ""))
        .unwrap();
    let attacker = host.clone();
    let attack =
        tokio::spawn(async move { attacker.route(&question("acme", &["a@x.test"])).await });
    // The attack begins with the first await below, and yields at each tick.
    let mut served = 0;
    while !attack.is_finished() {
        let routing = host.route(&question("beta", &["a@x.test"])).await;
        assert_eq!(routing.fallback, None);
        served += 1;
        tokio::task::yield_now().await;
    }
    assert!(attack.await.unwrap().fallback.unwrap().contains("stopped"));
    assert!(served >= 5, "{served} decisions beside the loop");
}

#[tokio::test]
async fn a_costly_policy_gets_its_share_of_time_and_no_more() {
    let host = host();
    host.activate(
        "routing/acme",
        &try_prepare(&costly(3_000_000), "").unwrap(),
    )
    .unwrap();
    host.activate("routing", &prepared("routing-default", ""))
        .unwrap();
    let mut decided = 0;
    let why = loop {
        let routing = host.route(&question("acme", &["a@x.test"])).await;
        match routing.fallback {
            None => decided += 1,
            // On a busy machine a call may run into its deadline first.
            Some(why) if why.contains("stopped") || why.contains("again") => {}
            Some(why) => break why,
        }
        assert!(decided < 5_000, "never stopped");
    };
    assert!(why.contains("processor time"), "{why}");
    // Its own mail waits at its client; that of others goes on.
    let routing = host.route(&question("beta", &["a@x.test"])).await;
    assert_eq!(routing.fallback, None);
    // It is not a failure of the policy.
    let status = host.status();
    let acme = status.iter().find(|s| s.slot == "routing/acme").unwrap();
    assert!(acme.calls >= acme.failures + decided, "{acme:?}");
}

// What is refused at the upload.

fn refused(policy: &[u8]) -> Refused {
    try_prepare(policy, "").expect_err("must be refused")
}

#[test]
fn an_endless_init_or_start_function_ends_at_the_upload() {
    let spin = wat_policy_with(PLAIN, "", "(loop $l (br $l))", "");
    assert_eq!(
        refused(&spin),
        Refused::Init("stopped after 2000 ms".to_owned())
    );
    let start = wat_policy(PLAIN, "(func $spin (loop $l (br $l))) (start $spin)");
    assert_eq!(
        refused(&start),
        Refused::Init("stopped after 2000 ms".to_owned())
    );
}

#[test]
fn imports_beyond_the_log_are_not_granted() {
    let import = |module: &str, name: &str| {
        wat_policy_with(
            PLAIN,
            "",
            "",
            &format!("(import \"{module}\" \"{name}\" (func))"),
        )
    };
    for (module, name, remedy) in [
        ("wasi_snapshot_preview1", "fd_write", "no WASI"),
        ("wasi:sockets/tcp@0.2.0", "connect", "no WASI"),
        ("env", "getaddrinfo", "undefined symbol"),
        ("tidegate:policy/files@1.0.0", "open", "nothing else"),
    ] {
        match refused(&import(module, name)) {
            Refused::Import(text) => {
                assert!(text.contains(module) && text.contains(remedy), "{text}")
            }
            other => panic!("{module}: {other:?}"),
        }
    }
    assert!(matches!(
        refused(&import("tidegate:policy/log@0.2.0", "write")),
        Refused::Version(text) if text.contains("@0.2.0")
    ));
    let component =
        wat::parse_str(r#"(component (import "wasi:clocks/wall-clock@0.2.0" (instance)))"#)
            .unwrap();
    assert!(matches!(refused(&component), Refused::Import(text) if text.contains("wall-clock")));
}

#[test]
fn what_is_not_a_policy_is_told_what_is_missing() {
    for junk in [&b""[..], b"MZ\x90", b"\0asm", b"\0asm\x01\0\0\0\xff\xff"] {
        assert!(matches!(refused(junk), Refused::NotWasm(_)), "{junk:?}");
    }
    let empty = wat::parse_str("(module)").unwrap();
    assert!(matches!(refused(&empty), Refused::MissingExport(text) if text.contains("routing@1")));
    let empty = wat::parse_str("(component)").unwrap();
    assert!(matches!(refused(&empty), Refused::MissingExport(text) if text.contains("routing@1")));
    assert!(matches!(
        refused(&embed("(module)")),
        Refused::MissingExport(_)
    ));
    let no_init = embed(
        r#"(module (memory (export "memory") 1) (func (export "tidegate:policy/routing@1.0.0#decide") (param i32) (result i32) unreachable))"#,
    );
    assert!(matches!(refused(&no_init), Refused::MissingExport(text) if text.contains("setup@1")));
    let old = embed(
        r#"(module (func (export "tidegate:policy/routing@0.9.0#decide") (param i32) (result i32) unreachable))"#,
    );
    assert!(matches!(refused(&old), Refused::Version(text) if text.contains("@0.9.0")));
    // The right name with another type.
    let typed = embed(
        r#"(module (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "tidegate:policy/setup@1.0.0#init") (param i64) (result i32) unreachable)
            (func (export "tidegate:policy/routing@1.0.0#decide") (param i32) (result i32) unreachable))"#,
    );
    assert!(matches!(refused(&typed), Refused::MissingExport(_)));
}

#[test]
fn size_limits_hold_before_anything_is_compiled() {
    let begun = Instant::now();
    let many = "(func)".repeat(10_001);
    assert!(
        matches!(refused(&wat_policy(PLAIN, &many)), Refused::TooLarge(t) if t.contains("functions"))
    );
    let long = format!("(func {})", "nop ".repeat(140_000));
    assert!(
        matches!(refused(&wat_policy(PLAIN, &long)), Refused::TooLarge(t) if t.contains("function of"))
    );
    let memory = embed(r#"(module (memory (export "memory") 2000))"#);
    assert!(matches!(refused(&memory), Refused::TooLarge(t) if t.contains("memory")));
    let table = wat_policy(PLAIN, "(table 5000000 funcref)");
    assert!(matches!(refused(&table), Refused::TooLarge(t) if t.contains("table")));
    assert!(matches!(refused(&vec![0; 2 << 20]), Refused::TooLarge(_)));
    let modules = format!("(component {})", "(core module)".repeat(200));
    assert!(
        matches!(refused(&wat::parse_str(modules).unwrap()), Refused::TooLarge(t) if t.contains("modules"))
    );
    let config = "x".repeat(5 << 20);
    assert!(matches!(
        try_prepare(&wat_policy(PLAIN, ""), &config),
        Err(Refused::TooLarge(_))
    ));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_init_that_traps_or_grows_is_contained() {
    let traps = wat_policy_with(PLAIN, "", "unreachable", "");
    assert!(matches!(refused(&traps), Refused::Init(text) if text.contains("unreachable")));
    let grows = |pages: u32| {
        let init = format!(
            "(if (i32.ne (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable))"
        );
        wat_policy_with(PLAIN, "", &init, "")
    };
    assert!(
        try_prepare(&grows(4096), "").is_ok(),
        "not granted, and the guest goes on"
    );
    assert!(try_prepare(&grows(100), "").is_err(), "granted");
}
