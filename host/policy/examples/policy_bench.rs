//! What the default routing policy costs, as built: CPU time per decision with a fresh instance
//! each, the time from an upload to a live revision, and the memory of a thousand tenants' policies.
//!
//! `cargo xtask bench policy`, or
//! `cargo xtask plugins && cargo run --release -p tidegate-policy --example policy_bench`

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tidegate_mail::{Address, Envelope, MessageId, Recipient, Timestamp, TrafficClass};
use tidegate_policy::{
    CodeCache, HostOptions, PolicyEngine, PolicyHost, Upload, World, prepare, revision_digest,
    worker,
};
use tidegate_queue::route::{Occasion, Question};
use tidegate_queue::{Directory, Origin, Policy};

const ROUNDS: usize = 7;
const CALLS: usize = 4_000;

/// Processor time of this process, from /proc: its threads but the one that calls are idle.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    Duration::from_nanos(nanos)
}

fn question(recipients: usize, headers: usize) -> Question {
    Question {
        occasion: Occasion::Submitted,
        id: MessageId::from_i64(0x0123_4567_89ab_cdef),
        tenant: "acme".into(),
        envelope: Arc::new(Envelope {
            reverse_path: Address::parse("crm@acme.example").ok(),
            envid: None,
            ret: None,
            body: Default::default(),
            smtputf8: false,
            requiretls: false,
            tls_optional: false,
            recipients: (0..recipients)
                .filter_map(|n| Address::parse(&format!("person{n}@d{n}.test")).ok())
                .map(|address| Recipient {
                    address,
                    notify: Default::default(),
                    original: None,
                })
                .collect(),
        }),
        headers: (0..headers)
            .map(|n| {
                (
                    format!("X-Field-{n}"),
                    "a value of ordinary length".to_owned(),
                )
            })
            .collect(),
        size: 5_000,
        received: Timestamp::from_secs(1_795_489_500),
        now: Timestamp::from_secs(1_795_489_500),
        origin: Origin {
            via: "smtps".to_owned(),
            user: Some("acme-crm".to_owned()),
            peer: Some("192.0.2.7".to_owned()),
            helo: "crm.acme.example".to_owned(),
            tls: true,
        },
        class: TrafficClass::Transactional,
        facts: Vec::new(),
    }
}

/// Rules on 20 header fields, and as many rules on domains.
fn config(domains: usize) -> String {
    let mut rules: Vec<String> = (0..20)
        .map(|n| {
            format!(
                r#"{{"header":{{"name":"X-Field-{n}","value":"never"}},"action":{{"managed":{{"class":"bulk"}}}}}}"#
            )
        })
        .collect();
    rules.extend((0..domains).map(|n| {
        format!(r#"{{"recipient_domain":["d{n}.test"],"action":{{"managed":{{"lane":"l{n}"}}}}}}"#)
    }));
    format!(r#"{{"rules":[{}]}}"#, rules.join(","))
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Tenants with a policy of their own.
const TENANTS: usize = 1000;
const KEY: [u8; 32] = [7; 32];
const WORLD: World = World::RoutingPolicy;

fn config_of(tenant: usize) -> String {
    format!(r#"{{"default":{{"managed":{{"lane":"lane-{tenant}"}}}}}}"#)
}

fn directory() -> Arc<ArcSwap<Directory>> {
    Arc::new(ArcSwap::from_pointee(Directory::default()))
}

/// One line of /proc/self/status, KiB.
fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

/// Compiles a thousand tenants' policies into a directory, then has another process load
/// them all, as a gateway does at its start.
fn tenants(component: &[u8]) -> Outcome {
    let dir = tempfile::tempdir()?;
    let preparing = PolicyEngine::for_preparing()?;
    let cache = CodeCache::open(dir.path(), &KEY, &preparing)?;
    let next = AtomicUsize::new(0);
    let compile = || -> Result<(), String> {
        loop {
            let tenant = next.fetch_add(1, Ordering::Relaxed);
            if tenant >= TENANTS {
                return Ok(());
            }
            let config = config_of(tenant);
            let upload = Upload {
                component,
                config: &config,
            };
            let prepared = prepare(&preparing, &upload).map_err(|e| e.to_string())?;
            cache.put(&prepared).map_err(|e| e.to_string())?;
        }
    };
    std::thread::scope(|threads| {
        let other = threads.spawn(compile);
        compile()?;
        other.join().map_err(|_| "a panic".to_owned())?
    })?;
    let status = std::process::Command::new(std::env::current_exe()?)
        .arg("tenants")
        .arg(dir.path())
        .status()?;
    if !status.success() {
        return Err("loading the tenants' policies failed".into());
    }
    Ok(())
}

fn load_tenants(dir: &std::path::Path, component: &[u8]) -> Outcome {
    let engine = PolicyEngine::new()?;
    let cache = CodeCache::open(dir, &KEY, &engine)?;
    let host = PolicyHost::new(engine, directory(), HostOptions::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let empty = status_kib("VmRSS:");
    let begun = Instant::now();
    for tenant in 0..TENANTS {
        let config = config_of(tenant);
        let upload = Upload {
            component,
            config: &config,
        };
        let prepared = cache
            .get(&revision_digest(WORLD, &upload))
            .ok_or("a revision is not in the cache")?;
        host.activate(&format!("routing/t{tenant}"), &prepared)?;
    }
    let loaded = begun.elapsed();
    let mut all = question(1, 0);
    let (cpu_begun, rounds) = (cpu(), 4);
    for _ in 0..rounds {
        for tenant in 0..TENANTS {
            all.tenant = format!("t{tenant}").into();
            let routing = runtime.block_on(host.route(&all));
            assert!(routing.fallback.is_none(), "{routing:?}");
        }
    }
    let micros = (cpu() - cpu_begun).as_secs_f64() * 1e6 / (rounds * TENANTS) as f64;
    let full = status_kib("VmRSS:");
    println!(
        "{TENANTS} tenants' policies: loaded in {:.2} s, {} MiB resident with all of them called \
         ({} MiB of it mapped files; {} MiB in all before), {micros:.1} us of CPU a decision in turn",
        loaded.as_secs_f64(),
        full / 1024,
        status_kib("RssFile:") / 1024,
        empty / 1024,
    );
    Ok(())
}

/// From the bytes of an upload to a revision in force, worker process included.
fn upload(component: &[u8]) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let exe = std::env::current_exe()?;
    let host = PolicyHost::new(PolicyEngine::new()?, directory(), HostOptions::default());
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let config = config_of(round);
        let upload = Upload {
            component,
            config: &config,
        };
        let begun = Instant::now();
        let prepared = runtime.block_on(worker::prepare_in_child(&exe, upload))?;
        host.activate("routing", &prepared)?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    println!(
        "from upload to live, worker process included: {:.2} s (median), {:.2} s (longest)",
        times[ROUNDS / 2].as_secs_f64(),
        times[ROUNDS - 1].as_secs_f64()
    );
    Ok(())
}

/// What `cargo xtask plugins` built, in the target directory that this program is in.
fn plugin(name: &str) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let program = std::env::current_exe()?;
    let policies = program
        .ancestors()
        .map(|directory| directory.join("policies"))
        .find(|path| path.is_dir())
        .ok_or("no policies are built: run `cargo xtask plugins` first")?;
    let path = policies.join(name);
    std::fs::read(&path)
        .map_err(|e| format!("{}: {e}; run `cargo xtask plugins` first", path.display()).into())
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == worker::SUBCOMMAND) {
        std::process::exit(worker::main());
    }
    let component = plugin("routing-default.wasm")?;
    if let [mode, dir] = &arguments[..]
        && mode == "tenants"
    {
        return load_tenants(dir.as_ref(), &component);
    }
    match arguments.first().map(String::as_str) {
        Some("profile") => return profile(&component),
        Some("upload") => return upload(&component),
        Some("memory") => return tenants(&component),
        _ => {}
    }
    if arguments.first().is_some_and(|a| a == "scripts") {
        return scripts();
    }
    decisions(&component)?;
    scripts()?;
    println!();
    upload(&component)?;
    tenants(&component)
}

fn decisions(component: &[u8]) -> Outcome {
    let preparing = PolicyEngine::for_preparing()?;
    let host = PolicyHost::new(PolicyEngine::new()?, directory(), HostOptions::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut cases = Vec::new();
    for domains in [0, 10_000] {
        let config = config(domains);
        let begun = Instant::now();
        let revision = prepare(
            &preparing,
            &Upload {
                component,
                config: &config,
            },
        )?;
        println!(
            "{domains:>6} rules on domains: prepared in {:.2} s, {} KiB of code",
            begun.elapsed().as_secs_f64(),
            revision.code_size() / 1024
        );
        for (recipients, headers) in [(1, 0), (1, 20), (10, 20), (100, 20), (1000, 2)] {
            cases.push((domains, recipients, headers, revision.clone()));
        }
    }
    println!("\n rules  recipients  headers   CPU us, median (min)   wall us, median");
    for (domains, recipients, headers, revision) in cases {
        host.activate("routing", &revision)?;
        let question = question(recipients, headers);
        let mut samples = Vec::new();
        for _ in 0..ROUNDS {
            let calls = CALLS / (1 + recipients / 20);
            let (cpu_begun, begun) = (cpu(), Instant::now());
            runtime.block_on(async {
                for _ in 0..calls {
                    let routing = host.route(&question).await;
                    assert!(routing.fallback.is_none(), "{routing:?}");
                }
            });
            let per = |d: Duration| d.as_secs_f64() * 1e6 / calls as f64;
            samples.push((per(cpu() - cpu_begun), per(begun.elapsed())));
        }
        samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        let cpu = samples[ROUNDS / 2].0;
        let least = samples[0].0;
        samples.sort_by(|a, b| a.1.total_cmp(&b.1));
        let wall = samples[ROUNDS / 2].1;
        println!(
            "{domains:>6} {recipients:>11} {headers:>8} {cpu:>12.1} ({least:.1}) {wall:>18.1}"
        );
    }
    Ok(())
}

/// What `tidegate policy new` begins in the languages of scripts: a message with a campaign field.
fn scripts() -> Outcome {
    let preparing = PolicyEngine::for_preparing()?;
    let host = PolicyHost::new(PolicyEngine::new()?, directory(), HostOptions::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut question = question(1, 0);
    question.headers = vec![("X-Campaign".to_owned(), "spring".to_owned())];
    println!("\nscript      bytes   prepared in   KiB of code   CPU us, median (min)");
    for (language, script) in [
        (
            "js",
            include_str!("../../../plugins/templates/js/routing.js"),
        ),
        (
            "python",
            include_str!("../../../plugins/templates/python/routing.py"),
        ),
    ] {
        let engine = plugin(&format!("engines/{language}-routing.wasm"))?;
        let script = script.replace("NAME", "campaigns");
        let component = tidegate_policy::script::embed(&engine, &script)?;
        let begun = Instant::now();
        let revision = prepare(
            &preparing,
            &Upload {
                component: &component,
                config: r#"{"campaign_header":"X-Campaign"}"#,
            },
        )?;
        let prepared = begun.elapsed().as_secs_f64();
        host.activate("routing", &revision)?;
        let mut samples = Vec::new();
        for _ in 0..ROUNDS {
            let (calls, begun) = (CALLS / 10, cpu());
            runtime.block_on(async {
                for _ in 0..calls {
                    let routing = host.route(&question).await;
                    assert!(routing.fallback.is_none(), "{routing:?}");
                }
            });
            samples.push((cpu() - begun).as_secs_f64() * 1e6 / calls as f64);
        }
        samples.sort_by(f64::total_cmp);
        println!(
            "{language:<8} {:>8} {prepared:>11.2} s {:>13} {:>12.1} ({:.1})",
            component.len(),
            revision.code_size() / 1024,
            samples[ROUNDS / 2],
            samples[0],
        );
    }
    Ok(())
}

/// Nothing but decisions with 20 header fields, for a profiler.
fn profile(component: &[u8]) -> Outcome {
    let preparing = PolicyEngine::for_preparing()?;
    let host = PolicyHost::new(PolicyEngine::new()?, directory(), HostOptions::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let config = config(0);
    let revision = prepare(
        &preparing,
        &Upload {
            component,
            config: &config,
        },
    )?;
    host.activate("routing", &revision)?;
    let question = question(1, 20);
    runtime.block_on(async {
        for _ in 0..50 * CALLS {
            let routing = host.route(&question).await;
            assert!(routing.fallback.is_none(), "{routing:?}");
        }
    });
    Ok(())
}
