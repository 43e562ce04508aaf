//! Canaries, shadows, roll-backs by the host itself, rehearsals: through the port, with real
//! components.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use support::{ENGINE, NOW, directory, host, question, try_prepare, wat_policy};
use tidegate_mail::{MessageId, Verdict};
use tidegate_policy::compare::{Compared, Report};
use tidegate_policy::recorded::Recorded;
use tidegate_policy::{HostOptions, Incident, PolicyHost, Prepared, TrialKind, TrialStatus};
use tidegate_queue::route::{Action, Question, Routing};
use tidegate_queue::{Policy, Step};

/// The default policy with a configuration; each is compiled once.
fn prepared(config: &str) -> Prepared {
    static MADE: Mutex<BTreeMap<String, Prepared>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap();
    made.entry(config.to_owned())
        .or_insert_with(|| support::prepared("routing-default", config))
        .clone()
}

fn by_lane(lane: &str) -> Prepared {
    prepared(&format!(
        r#"{{"default":{{"managed":{{"lane":"{lane}"}}}}}}"#
    ))
}

fn refusing() -> Prepared {
    prepared(r#"{"default":{"refuse":{"text":"not today"}}}"#)
}

fn trapping() -> Prepared {
    try_prepare(&wat_policy("unreachable", ""), "").unwrap()
}

/// One of many messages.
fn message(n: i64) -> Question {
    Question {
        id: MessageId::from_i64(n << 12),
        ..question("acme", &["a@x.test", "b@y.test"])
    }
}

fn lane(routing: &Routing) -> String {
    match routing.action(0) {
        Action::Managed(m) => m.lane.clone().unwrap_or_default(),
        other => format!("{other:?}"),
    }
}

async fn route(host: &PolicyHost, ids: std::ops::Range<i64>) -> Vec<Routing> {
    let mut all = Vec::new();
    for n in ids {
        all.push(host.route(&message(n)).await);
    }
    all
}

fn told(host: &PolicyHost) -> Vec<Incident> {
    let mut incidents = host.incidents().expect("taken once");
    std::iter::from_fn(|| incidents.try_recv().ok()).collect()
}

#[tokio::test]
async fn a_canary_decides_its_share_and_the_same_messages_again() {
    let host = host();
    let (old, new) = (by_lane("old"), by_lane("new"));
    host.activate("routing/acme", &old).unwrap();
    let canary = |permille| TrialKind::Canary { permille };
    host.try_out("routing/acme", &new, canary(200)).unwrap();
    let first = route(&host, 0..500).await;
    let by_new = first.iter().filter(|r| lane(r) == "new").count();
    assert!((60..140).contains(&by_new), "{by_new} of 500");
    for routing in &first {
        let digest = if lane(routing) == "new" { &new } else { &old }
            .digest
            .as_str();
        assert_eq!(routing.policy.as_deref(), Some(digest));
        assert_eq!(routing.fallback, None);
    }
    let again = route(&host, 0..500).await;
    assert!(first.iter().zip(&again).all(|(a, b)| lane(a) == lane(b)));
    // Raised: what it decided before it decides still.
    host.try_out("routing/acme", &new, canary(600)).unwrap();
    let raised = route(&host, 0..500).await;
    assert!(
        first
            .iter()
            .zip(&raised)
            .all(|(a, b)| lane(a) == "old" || lane(b) == "new")
    );
    let (_, trial) = host.trials().remove(0);
    let decided = raised.iter().filter(|r| lane(r) == "new").count() as u64;
    assert_eq!(
        (trial.own.calls, trial.base.calls),
        (decided, 500 - decided)
    );
    // Promoted: it decides all, and the trial is over.
    host.activate("routing/acme", &new).unwrap();
    assert!(host.trials().is_empty());
    assert!(route(&host, 0..50).await.iter().all(|r| lane(r) == "new"));
    assert!(told(&host).is_empty());
}

#[tokio::test]
async fn a_trapping_canary_is_taken_out_and_no_message_notices() {
    let host = host();
    let (old, bad) = (by_lane("old"), trapping());
    host.activate("routing", &old).unwrap();
    // In the tenant's own slot, which is empty: the operator's revision decides the rest.
    host.try_out("routing/acme", &bad, TrialKind::Canary { permille: 500 })
        .unwrap();
    let all = route(&host, 0..100).await;
    assert!(all.iter().all(|r| lane(r) == "old"));
    let failed: Vec<_> = all.iter().filter_map(|r| r.fallback.as_deref()).collect();
    assert_eq!(failed.len(), 5, "then it was taken out");
    assert!(
        failed[0].contains("canary") && failed[0].contains("trap"),
        "{failed:?}"
    );
    assert!(host.trials().is_empty());
    let incidents = told(&host);
    assert_eq!(incidents.len(), 1);
    assert_eq!(incidents[0].step, Step::Withdraw);
    assert_eq!(incidents[0].slot, "routing/acme");
    assert_eq!(incidents[0].failed, bad.digest);
    assert!(incidents[0].cause.contains("trap"), "{incidents:?}");
}

#[tokio::test]
async fn a_canary_that_refuses_what_was_taken_is_taken_out() {
    let host = host();
    host.activate("routing/acme", &by_lane("old")).unwrap();
    host.try_out(
        "routing/acme",
        &refusing(),
        TrialKind::Canary { permille: 500 },
    )
    .unwrap();
    let all = route(&host, 0..200).await;
    let refused = all
        .iter()
        .filter(|r| matches!(r.action(0), Action::Refuse(_)))
        .count();
    assert!(
        (10..=30).contains(&refused),
        "{refused} before it was noticed"
    );
    let incidents = told(&host);
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    assert!(incidents[0].cause.contains("refused"), "{incidents:?}");
    assert!(host.trials().is_empty());
}

#[tokio::test]
async fn a_canary_whose_mail_bounces_is_taken_out() {
    let host = host();
    let (old, new) = (by_lane("old"), by_lane("new"));
    host.activate("routing/acme", &old).unwrap();
    host.try_out("routing/acme", &new, TrialKind::Canary { permille: 100 })
        .unwrap();
    for n in 0..200 {
        // A tenth bounces in any case.
        let verdict = if n % 10 == 0 {
            Verdict::Permanent
        } else {
            Verdict::Delivered
        };
        host.attempted("acme", &old.digest, verdict);
        host.attempted("acme", &new.digest, verdict);
    }
    assert_eq!(host.trials().len(), 1, "no worse than before");
    for _ in 0..100 {
        host.attempted("acme", &new.digest, Verdict::Permanent);
    }
    assert!(host.trials().is_empty());
    let incidents = told(&host);
    assert_eq!(incidents.len(), 1);
    assert!(incidents[0].cause.contains("bounced"), "{incidents:?}");
}

#[tokio::test]
async fn an_activation_that_fails_goes_back_to_what_was_before() {
    let host = host();
    let (old, bad) = (by_lane("old"), trapping());
    host.activate("routing/acme", &old).unwrap();
    host.activate("routing/acme", &bad).unwrap();
    assert!(route(&host, 0..20).await.iter().all(|r| lane(r) == "old"));
    assert_eq!(host.active("routing/acme"), Some(old.digest.clone()));
    let status = host.status().remove(0);
    assert_eq!(status.last_good, None, "what failed is not fallen back to");
    let incidents = told(&host);
    assert_eq!(incidents.len(), 1);
    assert_eq!(incidents[0].step, Step::Activate);
    assert_eq!(incidents[0].digest, old.digest);
    assert_eq!(incidents[0].failed, bad.digest);
}

#[tokio::test]
async fn a_tenants_first_revision_that_fails_gives_way_to_the_operators() {
    let host = host();
    let (common, bad) = (by_lane("common"), trapping());
    host.activate("routing", &common).unwrap();
    host.activate("routing/acme", &bad).unwrap();
    let all = route(&host, 0..20).await;
    assert!(all.iter().all(|r| lane(r) == "common"));
    assert!(all[0].fallback.is_some() && all[19].fallback.is_none());
    assert_eq!(host.active("routing/acme"), None);
    let incidents = told(&host);
    assert_eq!(incidents.len(), 1);
    assert_eq!(
        (incidents[0].step, &incidents[0].digest),
        (Step::Vacate, &bad.digest)
    );
}

#[tokio::test]
async fn an_activation_whose_mail_is_deferred_goes_back() {
    let host = host();
    let (old, new) = (by_lane("old"), by_lane("new"));
    host.activate("routing/acme", &old).unwrap();
    for _ in 0..100 {
        host.attempted("acme", &old.digest, Verdict::Delivered);
    }
    host.activate("routing/acme", &new).unwrap();
    for _ in 0..60 {
        host.attempted("acme", &new.digest, Verdict::Temporary);
        // What waits from before goes on being counted for the one that decided it.
        host.attempted("acme", &old.digest, Verdict::Delivered);
    }
    assert_eq!(host.active("routing/acme"), Some(old.digest.clone()));
    assert!(told(&host)[0].cause.contains("deferred"));
}

#[tokio::test]
async fn after_its_probation_a_revision_stays() {
    let host = host();
    let (old, bad) = (by_lane("old"), trapping());
    let long = Duration::from_secs(16 * 60);
    host.restore("routing/acme", &bad, Some(&old), long)
        .unwrap();
    let all = route(&host, 0..20).await;
    assert!(
        all.iter().all(|r| lane(r) == "old"),
        "the last good one decides"
    );
    assert_eq!(host.active("routing/acme"), Some(bad.digest.clone()));
    assert!(told(&host).is_empty());
    // A restart does not end a probation.
    host.restore("routing/acme", &bad, Some(&old), Duration::from_secs(60))
        .unwrap();
    route(&host, 0..20).await;
    assert_eq!(host.active("routing/acme"), Some(old.digest.clone()));
}

fn recording_host() -> PolicyHost {
    PolicyHost::new(
        ENGINE.clone(),
        Arc::new(ArcSwap::from_pointee(directory())),
        HostOptions {
            record: true,
            ..HostOptions::default()
        },
    )
}

fn compared(trial: &TrialStatus) -> &Report {
    match &trial.compared {
        Some(Compared::Messages(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_shadow_is_compared_and_has_no_effect() {
    let host = host();
    let old = by_lane("old");
    host.activate("routing/acme", &old).unwrap();
    let split = r#"{"rules":[{"recipient_domain":["y.test"],"action":{"managed":{"lane":"new"}}}],
        "default":{"managed":{"lane":"old"}}}"#;
    let shadow = prepared(split);
    host.try_out("routing/acme", &shadow, TrialKind::Shadow)
        .unwrap();
    let mut observed = host.observed().unwrap();
    let all = route(&host, 0..50).await;
    assert!(
        all.iter()
            .all(|r| r.policy.as_deref() == Some(old.digest.as_str()))
    );
    while let Ok(decision) = observed.try_recv() {
        assert!(!decision.keep, "recording is off");
        host.shadow(&decision).await;
    }
    let (_, trial) = host.trials().remove(0);
    let report = compared(&trial);
    assert_eq!((report.messages, report.recipients), (50, 100));
    assert_eq!(
        (report.changed_messages, report.changed_recipients),
        (50, 50)
    );
    assert!(report.changes[0].to.contains("lane new"), "{report:?}");
    assert_eq!(report.changes[0].examples[0].recipient, "b@y.test");
    assert!(report.cost.p50 > 0);
    // One that traps is paused by its breaker and disturbs nobody.
    host.try_out("routing/acme", &trapping(), TrialKind::Shadow)
        .unwrap();
    route(&host, 0..50).await;
    while let Ok(decision) = observed.try_recv() {
        host.shadow(&decision).await;
    }
    let (_, trial) = host.trials().remove(0);
    assert_eq!((trial.own.failures, trial.skipped), (5, 45));
    assert_eq!(compared(&trial).failures[0].calls, 5);
    assert!(host.status()[0].trial.is_some());
}

#[tokio::test]
async fn a_costly_shadow_and_rehearsal_get_their_share_of_time_and_take_none_from_decisions() {
    let host = recording_host();
    let slot = "routing/acme";
    host.activate(slot, &by_lane("old")).unwrap();
    let costly = try_prepare(&support::costly(3_000_000), "").unwrap();
    host.try_out(slot, &costly, TrialKind::Shadow).unwrap();
    let mut observed = host.observed().unwrap();
    let mut records = Vec::new();
    for n in 0..1000 {
        let routing = host.route(&message(n)).await;
        assert_eq!(routing.fallback, None);
        let decision = observed.try_recv().unwrap();
        host.shadow(&decision).await;
        records.push(decision.record());
    }
    let (_, trial) = host.trials().remove(0);
    assert!(trial.own.calls < 500, "{trial:?}");
    assert_eq!(trial.own.calls + trial.skipped, 1000);
    // What was used up is not the decisions'.
    assert_eq!(host.route(&message(1)).await.fallback, None);

    let mut rehearsal = host.rehearsal(slot, &costly).unwrap();
    let begun = std::time::Instant::now();
    for record in &records[..5] {
        rehearsal.ask(record, NOW).await;
    }
    // Of half a millisecond and more each, in a twentieth of the time; the last one's is owed.
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(40), "{took:?}");
    assert_eq!(rehearsal.report().messages, 5);
}

#[tokio::test]
async fn what_was_recorded_can_be_rehearsed() {
    let host = recording_host();
    host.activate("routing/acme", &by_lane("old")).unwrap();
    let mut observed = host.observed().unwrap();
    route(&host, 0..10).await;
    let records: Vec<Recorded> = std::iter::from_fn(|| observed.try_recv().ok())
        .map(|decision| {
            assert!(decision.keep);
            let line = serde_json::to_string(&decision.record()).unwrap();
            serde_json::from_str(&line).unwrap()
        })
        .collect();
    assert_eq!(records.len(), 10);
    let report = async |prepared: &Prepared| {
        let mut rehearsal = host.rehearsal("routing/acme", prepared).unwrap();
        for record in &records {
            rehearsal.ask(record, NOW).await;
        }
        rehearsal.report()
    };
    let same = report(&by_lane("old")).await;
    assert_eq!((same.messages, same.changed_recipients), (10, 0));
    let new = report(&by_lane("new")).await;
    assert_eq!((new.changed_messages, new.changed_recipients), (10, 20));
    assert_eq!(new.changes.len(), 1);
    assert!(new.changes[0].from.contains("lane old"));
    let bad = report(&trapping()).await;
    assert_eq!(bad.failures[0].calls, 10);
    assert!(bad.failures[0].what.contains("trap"), "{bad:?}");
    let reads = prepared(r#"{"rules":[{"header":{"name":"X-Kind"},"action":{"managed":{}}}]}"#);
    assert_eq!(report(&reads).await.missing_headers, ["x-kind"]);
    // A right that is not the tenant's is a failure, as it would be in force.
    let beyond = prepared(r#"{"default":{"managed":{"relay":"secret"}}}"#);
    let beyond = report(&beyond).await;
    assert!(
        beyond.failures[0].what.contains("not granted"),
        "{beyond:?}"
    );
}

#[tokio::test]
async fn a_tenant_that_objects_is_not_recorded() {
    let mut tenants: Vec<_> = directory().tenants().map(|t| (**t).clone()).collect();
    for tenant in &mut tenants {
        tenant.record_inputs = tenant.id != "acme";
    }
    let directory = tidegate_queue::Directory::new(tenants, vec![], vec![], vec![]);
    let host = PolicyHost::new(
        ENGINE.clone(),
        Arc::new(ArcSwap::from_pointee(directory)),
        HostOptions {
            record: true,
            ..HostOptions::default()
        },
    );
    host.activate("routing", &by_lane("all")).unwrap();
    let mut observed = host.observed().unwrap();
    // More than are kept in a second of all together.
    for _ in 0..500 {
        host.route(&question("acme", &["a@x.test"])).await;
    }
    assert!(observed.try_recv().is_err());
    host.route(&question("beta", &["a@x.test"])).await;
    assert_eq!(observed.try_recv().unwrap().record().tenant, "beta");
}
