//! What a tenant's hostile policy costs the mail of others: their rate of decisions while each
//! attack runs, against the same pace of mail with an honest policy. The last attack is an
//! upload, again and again, that takes a compiler long.
//!
//! `cargo xtask bench policy --attacks`

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{host, plugin, prepared, question, try_prepare, wat_policy, wat_policy_with};
use tidegate_policy::{PolicyHost, Prepared, Upload, worker};
use tidegate_queue::Policy;

/// Interleaved rounds of honest and hostile.
const ROUNDS: usize = 5;
const RUN: Duration = Duration::from_millis(1500);
/// The attacker's clients and the pause of each between two messages: 2,000 messages a second.
const ATTACKERS: usize = 16;
const PACE: Duration = Duration::from_millis(8);
const NEIGHBOURS: usize = 16;

const PLAIN: &str = "(i32.const 4096)";
const LOG: &str = r#"(import "tidegate:policy/log@1.0.0" "write" (func $log (param i32 i32 i32)))"#;

fn attacks() -> Vec<(&'static str, Vec<u8>)> {
    let loops = |body: &str| wat_policy(&format!("{body} {PLAIN}"), "");
    vec![
        ("endless loop", loops("(loop $l (br $l))")),
        (
            "memory bomb",
            wat_policy(
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
            ),
        ),
        (
            "deep recursion",
            wat_policy(
                &format!("(drop (call $deep (i32.const 1))) {PLAIN}"),
                "(func $deep (param i32) (result i32) (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (local.get 0)))",
            ),
        ),
        ("trap", wat_policy("unreachable", "")),
        (
            "huge result",
            loops(
                "(drop (memory.grow (i32.const 200)))
                 (i32.store (i32.const 4176) (i32.const 8192)) (i32.store (i32.const 4180) (i32.const 1))
                 (i32.store (i32.const 8192) (i32.const 131072)) (i32.store (i32.const 8196) (i32.const 3000000))",
            ),
        ),
        (
            "invalid index",
            loops(
                "(i32.store (i32.const 4176) (i32.const 8192)) (i32.store (i32.const 4180) (i32.const 1))
                 (i32.store (i32.const 8192) (i32.const 8448)) (i32.store (i32.const 8196) (i32.const 1))
                 (i32.store (i32.const 8448) (i32.const -1))",
            ),
        ),
        (
            "log flood",
            wat_policy_with(
                &format!("(loop $l (call $log (i32.const 2) (i32.const 1024) (i32.const 3)) (br $l)) {PLAIN}"),
                "",
                "",
                LOG,
            ),
        ),
        (
            "costly, within its time",
            wat_policy(
                &format!(
                    "(local $n i32)
                     (loop $l
                        (local.set $n (i32.add (local.get $n) (i32.const 1)))
                        (br_if $l (i32.lt_u (local.get $n) (i32.const 6000000))))
                     {PLAIN}"
                ),
                "",
            ),
        ),
    ]
}

/// As many functions as an upload may have, each as long as then fits.
fn compile_bomb() -> Vec<u8> {
    let work = "(local.set 0 (i32.mul (local.get 0) (i32.load (local.get 0))))".repeat(8);
    let function = format!("(func (param i32) (result i32) {work} (local.get 0))");
    wat_policy(PLAIN, &function.repeat(9_900))
}

/// Decisions a second of the neighbours, and how many the attacker was given. `bomb` is what it
/// uploads all the time.
async fn run(host: Arc<PolicyHost>, bomb: Option<Arc<Vec<u8>>>) -> (f64, u64) {
    let over = Arc::new(AtomicBool::new(false));
    let decided = Arc::new(AtomicU64::new(0));
    let attacked = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    let uploads = bomb.map(|bomb| {
        tokio::spawn(async move {
            let exe = std::env::current_exe().expect("this program");
            loop {
                let upload = Upload {
                    component: &bomb,
                    config: "",
                };
                // Whether it is refused or compiled in the end is the same to the neighbours.
                let _ = worker::prepare_in_child(&exe, upload).await;
            }
        })
    });
    for _ in 0..ATTACKERS {
        let (host, over, attacked) = (host.clone(), over.clone(), attacked.clone());
        tasks.push(tokio::spawn(async move {
            let question = question("acme", &["a@x.test"]);
            while !over.load(Ordering::Relaxed) {
                host.route(&question).await;
                attacked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PACE).await;
            }
        }));
    }
    for n in 0..NEIGHBOURS {
        let (host, over, decided) = (host.clone(), over.clone(), decided.clone());
        tasks.push(tokio::spawn(async move {
            let question = question(&format!("tenant{n}"), &["a@x.test"]);
            while !over.load(Ordering::Relaxed) {
                let routing = host.route(&question).await;
                assert!(routing.fallback.is_none(), "{:?}", routing.fallback);
                decided.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }));
    }
    let begun = Instant::now();
    tokio::time::sleep(RUN).await;
    let rate = decided.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    if let Some(uploads) = uploads {
        // Kills the worker.
        uploads.abort();
    }
    for task in tasks {
        task.await.expect("no task panics");
    }
    (rate, attacked.load(Ordering::Relaxed))
}

fn fresh(attack: &Prepared, default: &Prepared) -> Arc<PolicyHost> {
    let host = host();
    // As one that is long in force: another would be rolled back after five failures.
    host.restore("routing/acme", attack, None, Duration::from_secs(3600))
        .expect("an attack that loads");
    host.activate("routing", default)
        .expect("the default loads");
    Arc::new(host)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some(worker::SUBCOMMAND) {
        std::process::exit(worker::main());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let default = prepared("routing-default", "");
    let honest = try_prepare(&plugin("routing-default"), "{}").expect("the default is a policy");
    println!(
        "neighbours' decisions a second while a tenant's policy attacks, median of {ROUNDS} interleaved runs"
    );
    println!(
        "{:<26} {:>10} {:>10} {:>8} {:>18}",
        "attack", "honest", "attacked", "ratio", "attacker's calls"
    );
    let mut worst = f64::MAX;
    let load =
        |name: &str, wasm: &[u8]| try_prepare(wasm, "").unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut cases: Vec<_> = attacks()
        .iter()
        .map(|(name, wasm)| (*name, load(name, wasm), None))
        .collect();
    cases.push((
        "compile bomb, uploaded",
        honest.clone(),
        Some(Arc::new(compile_bomb())),
    ));
    for (name, attack, bomb) in cases {
        let (mut before, mut during, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut calls = 0;
        for _ in 0..ROUNDS {
            let (calm, _) = runtime.block_on(run(fresh(&honest, &default), None));
            let (rate, attacked) = runtime.block_on(run(fresh(&attack, &default), bomb.clone()));
            before.push(calm);
            during.push(rate);
            ratios.push(rate / calm);
            calls += attacked;
        }
        let ratio = median(&mut ratios);
        worst = worst.min(ratio);
        println!(
            "{name:<26} {:>10.0} {:>10.0} {ratio:>8.2} {:>18}",
            median(&mut before),
            median(&mut during),
            calls / ROUNDS as u64
        );
    }
    println!("the worst ratio is {worst:.2}; at least 0.90 is required");
    if worst < 0.9 {
        std::process::exit(1);
    }
}
