//! The compile worker as a process. This binary is both sides: started as `policy-worker` it
//! is the worker, otherwise it runs the tests below.

mod support;

use std::path::PathBuf;

use support::*;
use tidegate_policy::worker::{SUBCOMMAND, prepare_again_in_child, prepare_in_child};
use tidegate_policy::{Refused, Upload};
use tidegate_queue::Policy;

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(SUBCOMMAND) {
        std::process::exit(tidegate_policy::worker::main());
    }
    if std::env::args().nth(1).as_deref() == Some("confined") {
        return confined();
    }
    // What `cargo test` may ask of a test binary without the standard harness.
    if std::env::args().any(|a| a == "--list") {
        println!("worker: test");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        prepares_what_the_process_itself_would().await;
        refuses_in_the_authors_words().await;
        survives_hostile_uploads().await;
        what_the_gateway_needs_does_not_wait_for_uploads().await;
        can_reach_neither_files_nor_network_nor_programs();
        says_what_is_wrong_with_the_worker_itself().await;
    });
    println!("test worker ... ok");
}

fn exe() -> PathBuf {
    std::env::current_exe().unwrap()
}

async fn child(component: &[u8], config: &str) -> Result<tidegate_policy::Prepared, Refused> {
    prepare_in_child(&exe(), Upload { component, config }).await
}

async fn prepares_what_the_process_itself_would() {
    let config = r#"{"default":{"managed":{"lane":"from-child"}}}"#;
    let theirs = child(&plugin("routing-default"), config).await.unwrap();
    let ours = prepared("routing-default", config);
    assert_eq!(
        (theirs.digest.as_str(), theirs.world, &theirs.descriptor),
        (ours.digest.as_str(), ours.world, &ours.descriptor)
    );
    let host = host();
    host.activate("routing", &theirs).unwrap();
    let routing = host.route(&question("acme", &["a@x.test"])).await;
    assert_eq!(routing.fallback, None);
    assert_eq!(routing.policy.as_deref(), Some(theirs.digest.as_str()));
}

async fn refuses_in_the_authors_words() {
    match child(&plugin("routing-default"), r#"{"rulez":1}"#).await {
        Err(Refused::Config(text)) => assert!(text.contains("rulez"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        child(b"#!/bin/sh", "").await,
        Err(Refused::NotWasm(_))
    ));
    assert!(matches!(
        child(&vec![0; 1024 * 1024 + 1], "").await,
        Err(Refused::TooLarge(_))
    ));
}

async fn survives_hostile_uploads() {
    let spins = wat_policy_with("(i32.const 4096)", "", "(loop $l (br $l))", "");
    match child(&spins, "").await {
        Err(Refused::Init(text)) => assert!(text.contains("2000 ms"), "{text}"),
        other => panic!("{other:?}"),
    }
    // Many functions, each small: the dearest to compile for its size. Either it gets done
    // within the worker's means or the worker is stopped; this process goes on either way.
    let bomb: String = (0..9_500)
        .map(|n| format!("(func (param i32) (result i32) (i32.add (local.get 0) (i32.const {n})))"))
        .collect();
    match child(&wat_policy("(i32.const 4096)", &bomb), "").await {
        Ok(_) | Err(Refused::Compile(_)) => {}
        other => panic!("{other:?}"),
    }
    child(&plugin("export-jsonl"), "").await.unwrap();
}

async fn what_the_gateway_needs_does_not_wait_for_uploads() {
    // Each takes two seconds and is refused; one after the other.
    let spins = wat_policy_with("(i32.const 4096)", "", "(loop $l (br $l))", "");
    let uploads = async { tokio::join!(child(&spins, ""), child(&spins, ""), child(&spins, "")) };
    let small = wat_policy(PLAIN, "");
    let upload = Upload {
        component: &small,
        config: "",
    };
    let exe = exe();
    let own = prepare_again_in_child(&exe, upload);
    tokio::select! {
        biased;
        refused = uploads => panic!("it came after the uploads: {refused:?}"),
        own = own => drop(own.unwrap()),
    }
}

/// What a guest that broke out into the worker would try, in such a process.
fn confined() {
    tidegate_policy::confine::confine().unwrap();
    let denied = |what: &str, error: Option<std::io::Error>| {
        let kind = error.map(|e| e.kind());
        assert_eq!(kind, Some(std::io::ErrorKind::PermissionDenied), "{what}");
    };
    denied("read", std::fs::read("/etc/passwd").err());
    denied("write", std::fs::write("confined.txt", "x").err());
    denied("list", std::fs::read_dir("/").err());
    denied("remove", std::fs::remove_file("/etc/passwd").err());
    denied("connect", std::net::TcpStream::connect("127.0.0.1:9").err());
    denied("listen", std::net::TcpListener::bind("127.0.0.1:0").err());
    denied("datagrams", std::net::UdpSocket::bind("127.0.0.1:0").err());
    denied(
        "unix sockets",
        std::os::unix::net::UnixStream::connect("/run/x").err(),
    );
    denied(
        "programs",
        std::process::Command::new("/bin/true").spawn().err(),
    );
    // Also from a thread, and threads and memory are still to be had.
    std::thread::spawn(move || {
        denied("read in a thread", std::fs::read("/etc/passwd").err());
        vec![1u8; 1 << 20].len()
    })
    .join()
    .unwrap();
    println!("confined");
}

fn can_reach_neither_files_nor_network_nor_programs() {
    let output = std::process::Command::new(exe())
        .arg("confined")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("confined"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn says_what_is_wrong_with_the_worker_itself() {
    let upload = Upload {
        component: &plugin("export-jsonl"),
        config: "",
    };
    match prepare_in_child(&PathBuf::from("/nonexistent/tidegate"), upload).await {
        Err(Refused::Worker(text)) => assert!(text.contains("/nonexistent/tidegate"), "{text}"),
        other => panic!("{other:?}"),
    }
    // A program that answers nothing of sense.
    match prepare_in_child(&PathBuf::from("/bin/echo"), upload).await {
        Err(Refused::Worker(_)) => {}
        other => panic!("{other:?}"),
    }
}
