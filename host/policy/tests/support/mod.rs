//! What the policy tests share: the built plugins, a directory, questions, WAT fixtures.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use tidegate_mail::{Address, Envelope, MessageId, Recipient, Timestamp, TrafficClass};
use tidegate_policy::{HostOptions, PolicyEngine, PolicyHost, Prepared, Refused, Upload, prepare};
use tidegate_queue::directory::{Relay, Server, Tenant, Way};
use tidegate_queue::route::{Occasion, Question};
use tidegate_queue::{Directory, Origin, TlsMode};

pub static ENGINE: LazyLock<PolicyEngine> = LazyLock::new(|| PolicyEngine::new().unwrap());
static PREPARER: LazyLock<PolicyEngine> = LazyLock::new(|| PolicyEngine::for_preparing().unwrap());

/// A policy as built by `cargo xtask plugins`.
pub fn plugin(name: &str) -> Vec<u8> {
    // In the target directory, wherever that is.
    let program = std::env::current_exe().unwrap();
    let policies = program
        .ancestors()
        .map(|directory| directory.join("policies"))
        .find(|path| path.is_dir())
        .unwrap_or_else(|| PathBuf::from("target/policies"));
    let path = policies.join(format!("{name}.wasm"));
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; run `cargo xtask plugins` first", path.display()))
}

pub fn try_prepare(component: &[u8], config: &str) -> Result<Prepared, Refused> {
    prepare(&PREPARER, &Upload { component, config })
}

pub fn prepared(name: &str, config: &str) -> Prepared {
    try_prepare(&plugin(name), config).unwrap()
}

pub fn directory() -> Directory {
    let tenant = |id: &str, relays: &[&str]| Tenant {
        id: id.to_owned(),
        domains: vec![format!("{id}.example")],
        relays: relays.iter().map(|r| (*r).to_owned()).collect(),
        suspended: false,
        bulk_suspended: false,
        wording: None,
        record_inputs: true,
        bulk_quota: None,
    };
    let server = |tenant: &str, name: &str| Server {
        tenant: tenant.to_owned(),
        name: name.to_owned(),
        host: "mail.example".to_owned(),
        port: 587,
        tls: TlsMode::default(),
        user: None,
        sealed_password: None,
    };
    let relay = |name: &str| Relay {
        name: name.to_owned(),
        way: Way::Mx {
            sources: Vec::new(),
        },
    };
    Directory::new(
        vec![tenant("acme", &["main", "eu"]), tenant("beta", &[])],
        vec![],
        vec![server("acme", "office"), server("beta", "theirs")],
        vec![relay("main"), relay("eu"), relay("secret")],
    )
}

pub fn host() -> PolicyHost {
    PolicyHost::new(
        ENGINE.clone(),
        Arc::new(ArcSwap::from_pointee(directory())),
        HostOptions::default(),
    )
}

pub const NOW: Timestamp = Timestamp::from_secs(1_795_489_500);

/// A message of `tenant` to these recipients.
pub fn question(tenant: &str, recipients: &[&str]) -> Question {
    Question {
        occasion: Occasion::Submitted,
        id: MessageId::from_i64(0x0123_4567_89ab_cdef),
        tenant: tenant.into(),
        envelope: Arc::new(Envelope {
            reverse_path: Some(Address::parse(&format!("crm@{tenant}.example")).unwrap()),
            envid: None,
            ret: None,
            body: Default::default(),
            smtputf8: false,
            requiretls: false,
            tls_optional: false,
            recipients: recipients
                .iter()
                .map(|r| Recipient {
                    address: Address::parse(r).unwrap(),
                    notify: Default::default(),
                    original: None,
                })
                .collect(),
        }),
        headers: Vec::new(),
        size: 5_000,
        received: NOW,
        now: NOW,
        origin: Origin {
            via: "smtps".to_owned(),
            user: Some(format!("{tenant}-crm")),
            peer: Some("192.0.2.7".to_owned()),
            helo: "crm.example".to_owned(),
            tls: true,
        },
        class: TrafficClass::Transactional,
        facts: Vec::new(),
    }
}

pub fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A component of the routing world written by hand. `decide` is the body of a function with
/// the parameters `$a $r` (where the flattened arguments lie, where a result may be
/// written) that returns the address of the result; `extra` goes into the core module.
pub fn wat_policy(decide: &str, extra: &str) -> Vec<u8> {
    wat_policy_with(decide, extra, "", "")
}

pub fn wat_policy_with(decide: &str, extra: &str, init: &str, imports: &str) -> Vec<u8> {
    let decide = format!(
        r#"(func $decide (export "tidegate:policy/routing@1.0.0#decide") (param $a i32) (result i32)
            {decide})
        {extra}"#
    );
    embed(&wat_module(&decide, init, imports))
}

/// A component of the shaping world written by hand. `plan` is the body of a function that returns
/// the address of its result.
pub fn wat_shaper(plan: &str) -> Vec<u8> {
    let plan = format!(
        r#"(func (export "tidegate:policy/shaping@1.0.0#plan-lanes")
            (param i64 i32 i32 i32 i32) (result i32)
            {plan})"#
    );
    embed_in("shaping-policy", &wat_module(&plan, "", ""))
}

/// A component of the export world written by hand, whose `render` traps.
pub fn trapping_exporter() -> Vec<u8> {
    let render = r#"(func (export "tidegate:policy/log-export@1.0.0#render")
        (param i32 i32) (result i32) unreachable)"#;
    embed_in("log-exporter", &wat_module(render, "", ""))
}

fn wat_module(functions: &str, init: &str, imports: &str) -> String {
    format!(
        r#"(module
            {imports}
            (memory (export "memory") 2)
            (global $free (mut i32) (i32.const 65536))
            (func (export "cabi_realloc") (param $old i32) (param $os i32) (param $align i32) (param $size i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
                (global.set $free (i32.add (local.get $at) (local.get $size)))
                (block $ok
                    (br_if $ok (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
                    (br_if $ok (i32.ne (memory.grow (i32.add (i32.div_u (local.get $size) (i32.const 65536)) (i32.const 1))) (i32.const -1)))
                    unreachable)
                (local.get $at))
            ;; init: result<descriptor, string>: tag, then name, version, headers, facts.
            (data (i32.const 1024) "wat1.0")
            (func (export "tidegate:policy/setup@1.0.0#init") (param i32 i32) (result i32)
                {init}
                (i32.store8 (i32.const 2048) (i32.const 0))
                (i32.store (i32.const 2052) (i32.const 1024)) (i32.store (i32.const 2056) (i32.const 3))
                (i32.store (i32.const 2060) (i32.const 1027)) (i32.store (i32.const 2064) (i32.const 3))
                (i32.store (i32.const 2068) (i32.const 1024)) (i32.store (i32.const 2072) (i32.const 0))
                (i32.store (i32.const 2076) (i32.const 1024)) (i32.store (i32.const 2080) (i32.const 0))
                (i32.const 2048))
            {functions}
        )"#
    )
}

/// `decide` answers with zeroes: managed, transactional, nothing else.
pub const PLAIN: &str = "(i32.const 4096)";

/// Answers rightly, in time, and at a cost that would starve others: so many steps of a loop.
pub fn costly(steps: u32) -> Vec<u8> {
    wat_policy(
        &format!(
            "(local $n i32)
             (loop $l
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $l (i32.lt_u (local.get $n) (i32.const {steps}))))
             {PLAIN}"
        ),
        "",
    )
}

/// Adds the component-type section of the routing world to a core module in WAT.
pub fn embed(module: &str) -> Vec<u8> {
    embed_in("routing-policy", module)
}

fn embed_in(world: &str, module: &str) -> Vec<u8> {
    let mut bytes = wat::parse_str(module).unwrap_or_else(|e| panic!("{e}"));
    let mut resolve = wit_parser::Resolve::default();
    let wit = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../wit/tidegate-policy-1.0.0");
    let (package, _) = resolve.push_dir(&wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    wit_component::embed_component_metadata(
        &mut bytes,
        &resolve,
        world,
        wit_component::StringEncoding::UTF8,
    )
    .unwrap();
    bytes
}
