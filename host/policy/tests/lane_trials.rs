//! Canaries and shadows of the shaping policy, through the port, with real components.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use support::{NOW, host, prepared, try_prepare, wat_shaper};
use tidegate_mail::TrafficClass;
use tidegate_policy::compare::{Compared, lanes::Report};
use tidegate_policy::{Incident, PolicyHost, Prepared, TrialKind, TrialStatus};
use tidegate_queue::shape::{LaneKey, LaneState, Plan, Window};
use tidegate_queue::{Policy, PolicyFault, Step};

const SLOT: &str = "shaping";

/// The default policy with one pace for all sites, per second.
fn paced(messages: u32) -> Prepared {
    prepared(
        "shaping-default",
        &format!(
            r#"{{"sites":[{{"site":"*","rate":"{messages}/s"}}],
                "temporary":[{{"code":550,"text":"limit of {messages}"}}]}}"#
        ),
    )
}

fn trapping() -> Prepared {
    try_prepare(&wat_shaper("unreachable"), "").unwrap()
}

fn lane(site: usize) -> LaneState {
    LaneState {
        key: LaneKey {
            tenant: "acme".to_owned(),
            class: TrafficClass::Bulk,
            relay: "mx".to_owned(),
            site: format!("s{site}.test"),
            lane: None,
        },
        backlog: 1_000,
        oldest_seconds: 60,
        open_connections: 2,
        sending_since: None,
        sent_total: 0,
        current: None,
        planned_by: None,
        recent: Window {
            seconds: 60,
            attempts: 100,
            delivered: 100,
            ..Window::default()
        },
        facts: Vec::new(),
    }
}

fn lanes(number: usize) -> Vec<LaneState> {
    (0..number).map(lane).collect()
}

/// Of which a third is put off: the default policy halves its pace.
fn deferred(number: usize) -> Vec<LaneState> {
    let mut lanes = lanes(number);
    for lane in &mut lanes {
        lane.recent.deferred = 33;
        lane.recent.delivered = 67;
    }
    lanes
}

fn canary(permille: u16) -> TrialKind {
    TrialKind::Canary { permille }
}

async fn plan(host: &PolicyHost, state: &Bytes, secs: u64, lanes: Vec<LaneState>) -> Plan {
    let now = NOW.plus(Duration::from_secs(secs));
    host.plan(now, state.clone(), lanes).await.unwrap()
}

/// Messages a second of each lane.
fn rates(plan: &Plan) -> Vec<Option<u32>> {
    let rate = |lane: &Option<tidegate_queue::shape::LanePlan>| {
        let rate = lane.as_ref()?.limits.rate?;
        Some(rate.messages * 1000 / rate.per_ms)
    };
    plan.lanes.iter().map(rate).collect()
}

fn places(plan: &Plan) -> BTreeSet<usize> {
    let canary = plan.canary.as_ref();
    canary.map_or_else(BTreeSet::new, |c| c.places.clone())
}

fn trial(host: &PolicyHost) -> TrialStatus {
    host.trials().remove(0).1
}

fn told(host: &PolicyHost) -> Vec<Incident> {
    let mut incidents = host.incidents().expect("taken once");
    std::iter::from_fn(|| incidents.try_recv().ok()).collect()
}

#[tokio::test]
async fn a_canary_plans_its_share_of_the_lanes_and_the_same_ones_again() {
    let host = host();
    let (old, new) = (paced(10), paced(4));
    host.activate(SLOT, &old).unwrap();
    host.try_out(SLOT, &new, canary(200)).unwrap();
    let state = Bytes::new();
    let first = plan(&host, &state, 0, lanes(200)).await;
    let own = places(&first);
    assert!((20..60).contains(&own.len()), "{} of 200", own.len());
    for (at, rate) in rates(&first).into_iter().enumerate() {
        assert_eq!(rate, Some(if own.contains(&at) { 4 } else { 10 }), "{at}");
    }
    // Each with the rules and under the name of who planned it.
    let (in_force, trials) = (first.rules.unwrap(), first.canary.unwrap().rules);
    assert_eq!(in_force.policy, Some(old.digest.clone()));
    assert_eq!(trials.policy, Some(new.digest.clone()));
    assert_eq!(in_force.rules[0].text.as_deref(), Some("limit of 10"));
    assert_eq!(trials.rules[0].text.as_deref(), Some("limit of 4"));
    // In another order, a minute later.
    let mut turned = lanes(200);
    for (at, lane) in turned.iter_mut().enumerate() {
        lane.planned_by = Some(match at {
            // One that was planned by neither of them.
            0 => "another".to_owned(),
            _ if own.contains(&at) => new.digest.clone(),
            _ => old.digest.clone(),
        });
    }
    turned.reverse();
    let again = plan(&host, &first.state, 60, turned).await;
    let same: BTreeSet<usize> = places(&again).into_iter().map(|at| 199 - at).collect();
    assert_eq!(same, own);
    let figures = trial(&host);
    assert_eq!((figures.own.calls, figures.base.calls), (2, 2));
    // What was counted under the limits of others is not their doing.
    let lanes_of = |of_trial: bool| (1..200).filter(|at| own.contains(at) == of_trial).count();
    assert_eq!(figures.own.attempted, 100 * lanes_of(true) as u64);
    assert_eq!(figures.base.attempted, 100 * lanes_of(false) as u64);

    host.try_out(SLOT, &new, canary(600)).unwrap();
    let raised = plan(&host, &again.state, 120, lanes(200)).await;
    assert!(places(&raised).is_superset(&own));
    assert!((90..150).contains(&places(&raised).len()));
    host.activate(SLOT, &new).unwrap();
    let all = plan(&host, &raised.state, 180, lanes(200)).await;
    assert!(all.canary.is_none() && host.trials().is_empty());
    assert_eq!(all.rules.clone().unwrap().policy, Some(new.digest.clone()));
    assert!(told(&host).is_empty());
}

#[tokio::test]
async fn a_canary_begins_with_the_state_in_force_and_goes_on_with_its_own() {
    let host = host();
    let (old, new) = (paced(100), paced(40));
    host.activate(SLOT, &old).unwrap();
    let slowed = plan(&host, &Bytes::new(), 0, deferred(1)).await;
    assert_eq!(rates(&slowed), [Some(50)]);
    let state = slowed.state;
    host.try_out(SLOT, &new, canary(1000)).unwrap();
    // Halved in the state that it was given, and halved again by itself.
    let first = plan(&host, &state, 10, lanes(1)).await;
    assert_eq!(rates(&first), [Some(20)]);
    assert_eq!(first.state, state, "what is in force was not asked");
    assert!(first.rules.is_none());
    let second = plan(&host, &state, 70, deferred(1)).await;
    assert_eq!(rates(&second), [Some(10)]);
    // The share alone changes nothing of that, another revision does.
    host.try_out(SLOT, &new, canary(999)).unwrap();
    let third = plan(&host, &state, 75, lanes(1)).await;
    assert_eq!(rates(&third), [Some(10)]);
    host.try_out(SLOT, &paced(80), canary(1000)).unwrap();
    let other = plan(&host, &state, 50, lanes(1)).await;
    assert_eq!(rates(&other), [Some(40)]);
}

#[tokio::test]
async fn a_promoted_canary_goes_on_with_its_state_where_it_planned_most_lanes() {
    for (permille, rate) in [(1000, 20), (500, 40)] {
        let host = host();
        let (old, new) = (paced(100), paced(40));
        host.activate(SLOT, &old).unwrap();
        let mut state = plan(&host, &Bytes::new(), 0, lanes(1)).await.state;
        host.try_out(SLOT, &new, canary(1000)).unwrap();
        plan(&host, &state, 60, deferred(1)).await;
        host.try_out(SLOT, &new, canary(permille)).unwrap();
        host.activate(SLOT, &new).unwrap();
        for secs in [65, 70] {
            let promoted = plan(&host, &state, secs, lanes(1)).await;
            assert_eq!(rates(&promoted), [Some(rate)], "{permille}");
            state = promoted.state;
        }
    }
}

#[tokio::test]
async fn lanes_of_a_canary_that_fails_are_planned_by_what_is_in_force_in_the_same_call() {
    // Traps, overruns, and fewer plans than lanes.
    for (body, words) in [
        ("unreachable", "trap"),
        ("(loop $l (br $l)) unreachable", "stopped after 50 ms"),
        ("(i32.const 4096)", "0 plans for"),
    ] {
        let host = host();
        let old = paced(10);
        let bad = try_prepare(&wat_shaper(body), "").unwrap();
        host.activate(SLOT, &old).unwrap();
        host.try_out(SLOT, &bad, canary(500)).unwrap();
        let mut state = Bytes::new();
        for call in 0..8 {
            let plan = plan(&host, &state, call, lanes(40)).await;
            assert_eq!(rates(&plan), vec![Some(10); 40], "{words}");
            assert!(plan.canary.is_none());
            state = plan.state;
        }
        assert!(host.trials().is_empty(), "{words}");
        assert_eq!(host.active(SLOT), Some(old.digest.clone()));
        let incidents = told(&host);
        let [incident] = &incidents[..] else {
            panic!("{incidents:?}");
        };
        assert_eq!(
            (incident.step, &incident.failed),
            (Step::Withdraw, &bad.digest)
        );
        assert_eq!(incident.slot, SLOT);
        assert!(incident.cause.contains(words), "{incident:?}");
    }
}

#[tokio::test]
async fn a_canary_plans_its_lanes_where_nothing_is_in_force_or_that_fails() {
    let host = host();
    host.try_out(SLOT, &paced(4), canary(500)).unwrap();
    let check = async |host: &PolicyHost| {
        let plan = plan(host, &Bytes::new(), 0, lanes(40)).await;
        let own = places(&plan);
        assert!((10..30).contains(&own.len()));
        assert!(plan.rules.is_none());
        for (at, rate) in rates(&plan).into_iter().enumerate() {
            // The others stay as they are.
            assert_eq!(rate, own.contains(&at).then_some(4));
        }
    };
    check(&host).await;
    let long = Duration::from_secs(3600);
    host.restore(SLOT, &trapping(), None, long).unwrap();
    check(&host).await;
    // Without a lane of the canary's it is as ever.
    host.withdraw(SLOT);
    let fault = host.plan(NOW, Bytes::new(), lanes(40)).await.unwrap_err();
    assert!(matches!(fault, PolicyFault::Broken(_)), "{fault}");
}

fn compared(host: &PolicyHost) -> Report {
    match trial(host).compared {
        Some(Compared::Lanes(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_shadow_plans_aside_and_what_differs_is_told() {
    let host = host();
    let (old, new) = (paced(10), paced(4));
    host.activate(SLOT, &old).unwrap();
    host.try_out(SLOT, &new, TrialKind::Shadow).unwrap();
    let mut aside = host.planned_aside().unwrap();
    let mut state = Bytes::new();
    for minute in 0..3 {
        let lanes = if minute == 0 { deferred(2) } else { lanes(2) };
        let plan = plan(&host, &state, minute * 60, lanes).await;
        assert!(plan.canary.is_none());
        assert_eq!(
            plan.rules.as_ref().unwrap().policy,
            Some(old.digest.clone())
        );
        state = plan.state;
        assert_eq!(
            compared(&host).calls,
            minute,
            "not before the answer is given"
        );
        host.plan_aside(aside.recv().await.unwrap()).await;
    }
    let report = compared(&host);
    assert_eq!(
        (report.calls, report.plans, report.changed_plans),
        (3, 6, 6)
    );
    assert_eq!((report.lanes, report.changed_lanes), (2, 2));
    assert!(report.cost.p50 > 0);
    let first = report.changes.iter().find(|c| c.from.contains("rate 5/1s"));
    let first = first.unwrap_or_else(|| panic!("{report:?}"));
    // By a state of its own it goes on with half its pace, as the one in force does.
    assert!(first.to.contains("rate 2/1s"), "{report:?}");
    assert!(first.examples.contains(&lane(0).key));

    // One that is not looked at loses what does not fit, and one that traps is left alone.
    host.try_out(SLOT, &trapping(), TrialKind::Shadow).unwrap();
    for _ in 0..20 {
        let plan = plan(&host, &state, 200, lanes(2)).await;
        assert!(rates(&plan).iter().all(Option::is_some));
    }
    while let Ok(asked) = aside.try_recv() {
        host.plan_aside(asked).await;
    }
    let status = trial(&host);
    assert_eq!((status.own.failures, status.skipped), (5, 15));
    let report = compared(&host);
    assert_eq!((report.calls, report.plans), (5, 0));
    let failed = report.failures.iter().next().unwrap();
    assert!(failed.what.contains("trap"), "{report:?}");
    assert!(told(&host).is_empty());
}

#[tokio::test]
async fn a_shadow_beside_nothing_is_compared_with_the_limits_of_the_host() {
    let host = host();
    host.try_out(SLOT, &paced(4), TrialKind::Shadow).unwrap();
    let mut aside = host.planned_aside().unwrap();
    let answer = host.plan(NOW, Bytes::new(), lanes(3)).await;
    assert_eq!(answer, Err(PolicyFault::Inactive));
    host.plan_aside(aside.try_recv().unwrap()).await;
    let report = compared(&host);
    assert_eq!(report.changed_lanes, 3);
    assert!(report.changes[0].from.contains("no rate"), "{report:?}");
    assert!(report.changes[0].to.contains("rate 4/1s"), "{report:?}");
}
