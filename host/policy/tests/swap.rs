//! A policy is exchanged under load: every answer is wholly by one revision, none is lost, and
//! what comes after the exchange is by the new one.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::*;
use tidegate_queue::Policy;
use tidegate_queue::route::{Action, Routing};

/// Says the same name in the default action, in a split and in the lane of a header rule.
fn config(name: &str) -> String {
    format!(
        r#"{{"default":{{"managed":{{"lane":"{name}"}}}},
            "rules":[{{"recipient_domain":["y.test"],"action":{{"refuse":{{"text":"{name}"}}}}}}]}}"#
    )
}

/// The one name that an answer says everywhere.
fn named(routing: &Routing) -> String {
    assert_eq!(routing.fallback, None, "nothing failed");
    let lane = match routing.action(0) {
        Action::Managed(m) => m.lane.clone().unwrap(),
        other => panic!("{other:?}"),
    };
    match routing.action(1) {
        Action::Refuse(reply) => assert_eq!(reply.text, lane),
        other => panic!("{other:?}"),
    }
    lane
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_wholly_by_one_revision() {
    let host = Arc::new(host());
    let revisions: Vec<_> = (0..4)
        .map(|n| prepared("routing-default", &config(&format!("r{n}"))))
        .collect();
    let digests: Vec<String> = revisions.iter().map(|r| r.digest.clone()).collect();
    host.activate("routing/acme", &revisions[0]).unwrap();

    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let workers: Vec<_> = (0..6)
        .map(|_| {
            let (host, stop, done, digests) =
                (host.clone(), stop.clone(), done.clone(), digests.clone());
            tokio::spawn(async move {
                let q = question("acme", &["a@x.test", "b@y.test"]);
                let mut seen = HashSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let routing = host.route(&q).await;
                    let name = named(&routing);
                    let n: usize = name[1..].parse().unwrap();
                    assert_eq!(routing.policy.as_deref(), Some(digests[n].as_str()));
                    seen.insert(name);
                    done.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
                seen
            })
        })
        .collect();
    for n in 0..40 {
        let revision = &revisions[n % 4];
        host.activate("routing/acme", revision).unwrap();
        assert_eq!(
            host.active("routing/acme").as_deref(),
            Some(revision.digest.as_str())
        );
        // What begins after the exchange is by the new revision.
        let routing = host
            .route(&question("acme", &["a@x.test", "b@y.test"]))
            .await;
        assert_eq!(named(&routing), format!("r{}", n % 4));
        let goal = done.load(Ordering::Relaxed) + 20;
        while done.load(Ordering::Relaxed) < goal && !workers.iter().any(|w| w.is_finished()) {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = HashSet::new();
    for worker in workers {
        seen.extend(worker.await.unwrap());
    }
    assert_eq!(seen.len(), 4, "each revision decided something: {seen:?}");
}

#[tokio::test]
async fn a_tenants_slot_goes_before_the_operators_and_comes_back() {
    let host = host();
    let own = prepared("routing-default", &config("own"));
    let common = prepared("routing-default", &config("common"));
    let q = question("acme", &["a@x.test", "b@y.test"]);
    host.activate("routing", &common).unwrap();
    assert_eq!(named(&host.route(&q).await), "common");
    host.activate("routing/acme", &own).unwrap();
    assert_eq!(named(&host.route(&q).await), "own");
    assert!(host.deactivate("routing/acme"));
    assert!(!host.deactivate("routing/acme"));
    assert_eq!(named(&host.route(&q).await), "common");
    assert_eq!(host.active("routing/acme"), None);
}

/// The engine asks for the headers, then for the route; it can tell that a policy was
/// exchanged in between, since the list is another one then.
#[tokio::test]
async fn an_exchange_is_seen_in_the_list_of_headers() {
    let host = host();
    let with = |field: &str| {
        let config = format!(
            r#"{{"rules":[{{"header":{{"name":"{field}"}},"action":{{"managed":{{}}}}}}]}}"#
        );
        prepared("routing-default", &config)
    };
    host.activate("routing", &with("X-A")).unwrap();
    let first = host.wanted_headers("acme");
    assert!(Arc::ptr_eq(&first, &host.wanted_headers("acme")));
    host.activate("routing", &with("X-B")).unwrap();
    let second = host.wanted_headers("acme");
    assert!(!Arc::ptr_eq(&first, &second));
    // The last good revision may yet have to decide, so its fields are wanted too.
    assert_eq!(*second, ["x-b".to_owned(), "x-a".to_owned()]);
}
