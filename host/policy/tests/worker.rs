//! The compile worker as a process. This binary is both sides: started as `policy-worker` it
//! is the worker, otherwise it runs the tests below.

mod support;

use std::path::PathBuf;

use support::*;
use tidegate_policy::worker::{SUBCOMMAND, prepare_in_child};
use tidegate_policy::{Refused, Upload};
use tidegate_queue::Policy;

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(SUBCOMMAND) {
        std::process::exit(tidegate_policy::worker::main());
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
