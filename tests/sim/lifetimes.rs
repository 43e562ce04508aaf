//! The clock of the promise: 48 hours from acceptance, in every state.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::dsn;
use tidegate_mail::{EventKind, Notify, Timestamp};
use tidegate_queue::control::QueueQuery;
use tidegate_queue::measure::{Effect, Measure, Scope};
use tidegate_queue::shape::{Limits, Rate, WaitReason};
use tidegate_queue::{LogEntry, LogQuery, Settings};

use crate::scenario::{Mail, START, Scenario};
use crate::world::{ByName, Manner, NEVER};

const HOUR: Duration = Duration::from_secs(3600);

fn plain<'a>(to: &'a [(&'a str, Notify)]) -> Mail<'a> {
    Mail {
        from: "crm@acme.test",
        to,
        headers: "",
        subject: None,
        bulk: false,
    }
}

async fn entry(scenario: &Scenario, id: tidegate_mail::MessageId) -> LogEntry {
    let query = LogQuery {
        message: Some(id),
        ..LogQuery::default()
    };
    scenario
        .store()
        .search(query)
        .await
        .expect("search")
        .pop()
        .expect("the message is in the log")
}

fn at(entry: &LogEntry, kind: EventKind) -> Vec<Duration> {
    entry
        .events
        .iter()
        .filter(|e| e.kind == kind)
        .map(|e| e.at.since(START))
        .collect()
}

#[tokio::test]
async fn every_attempt_is_found_for_as_long_as_the_log_is_kept() {
    let scenario = Scenario::new().await;
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    let to = [("someone@x.test", Notify::Absent)];
    let (id, _) = scenario.submit(plain(&to)).await;
    scenario.pass(HOUR * 49).await;
    let retention = Settings::default().retention;
    scenario.clock.set(START.plus(HOUR * 48 + retention));
    scenario.engine().sweep().await;
    let query = LogQuery {
        recipient: Some("someone@x.test".to_owned()),
        ..LogQuery::default()
    };
    let find = || async { scenario.store().search(query.clone()).await.expect("found") };
    let found = find().await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].message, id);
    let attempts = at(&found[0], EventKind::Deferred);
    assert!(attempts.iter().any(|at| *at > HOUR * 40), "{attempts:?}");
    assert_eq!(at(&found[0], EventKind::Expired).len(), 1);
    // And not for ever.
    scenario.clock.set(START.plus(HOUR * 73 + retention));
    scenario.engine().sweep().await;
    assert!(find().await.is_empty());
}

#[tokio::test]
async fn an_unreachable_destination_is_retried_for_48_hours_and_reported() {
    let scenario = Scenario::new().await;
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    let to = [("someone@x.test", Notify::Absent)];
    let (id, reply) = scenario.submit(plain(&to)).await;
    assert_eq!(reply.code, 250, "{reply}");
    let steps = scenario.pass(HOUR * 50).await;
    assert!(steps < 60, "{steps} steps for 50 hours");
    let log = entry(&scenario, id).await;
    let attempts = at(&log, EventKind::Deferred).len();
    assert!((18..=21).contains(&attempts), "{attempts} attempts");
    let delayed = at(&log, EventKind::DelayNotified);
    assert_eq!(delayed.len(), 1, "one delay notice");
    assert!(
        (HOUR * 4..HOUR * 4 + Duration::from_secs(1)).contains(&delayed[0]),
        "{:?}",
        delayed[0]
    );
    let expired = at(&log, EventKind::Expired);
    assert_eq!(expired.len(), 1);
    assert!(
        (HOUR * 48..HOUR * 48 + Duration::from_secs(1)).contains(&expired[0]),
        "{:?}",
        expired[0]
    );
    let notices: Vec<_> = scenario
        .world
        .delivered()
        .iter()
        .filter(|d| d.recipient == "crm@acme.test")
        .map(|d| dsn::parse(&d.content).expect("a notice"))
        .collect();
    assert_eq!(notices.len(), 2);
    assert_eq!(notices[0].recipients[0].action, dsn::Action::Delayed);
    let failed = &notices[1].recipients[0];
    assert_eq!(failed.action, dsn::Action::Failed);
    assert_eq!(failed.status.expect("a status").to_string(), "4.4.7");
    assert_eq!(
        failed.address.as_ref().expect("an address").address,
        "someone@x.test"
    );
}

#[tokio::test]
async fn greylisted_mail_is_delivered_without_a_notice() {
    let scenario = Scenario::new().await;
    scenario.world.set("x.test", Manner::Greylist(2));
    let to = [("someone@x.test", Notify::Absent)];
    let (id, _) = scenario.submit(plain(&to)).await;
    scenario.pass(HOUR).await;
    let log = entry(&scenario, id).await;
    assert_eq!(at(&log, EventKind::Deferred).len(), 2);
    assert_eq!(at(&log, EventKind::Delivered).len(), 1);
    assert_eq!(scenario.world.delivered().len(), 1);
}

fn hold(scope: Scope) -> Measure {
    Measure::new("hold", scope, Effect::Hold, "a test", START)
}

#[tokio::test]
async fn held_mail_expires_on_time_without_an_attempt() {
    let scenario = Scenario::new().await;
    let scope = Scope {
        domain: Some("x.test".into()),
        ..Scope::default()
    };
    scenario
        .engine()
        .put_measure(hold(scope))
        .await
        .expect("a measure");
    let to = [("someone@x.test", Notify::Absent)];
    let (id, _) = scenario.submit(plain(&to)).await;
    scenario.pass(HOUR).await;
    let waiting = scenario
        .engine()
        .queue(QueueQuery::default())
        .await
        .expect("a listing");
    assert_eq!(waiting[0].reason, Some(WaitReason::Held));
    scenario.pass(HOUR * 49).await;
    let log = entry(&scenario, id).await;
    assert!(at(&log, EventKind::Deferred).is_empty());
    assert_eq!(at(&log, EventKind::DelayNotified).len(), 1);
    let expired = at(&log, EventKind::Expired);
    assert_eq!(expired.len(), 1);
    assert!((HOUR * 48..HOUR * 48 + Duration::from_secs(1)).contains(&expired[0]));
    assert_eq!(at(&log, EventKind::DsnSent).len(), 1);
    assert!(scenario.world.attempts_for("someone@x.test").is_empty());
}

#[tokio::test]
async fn a_hold_survives_a_restart_and_mail_goes_when_it_is_lifted() {
    let mut scenario = Scenario::new().await;
    scenario
        .engine()
        .put_measure(hold(Scope::default()))
        .await
        .expect("a measure");
    let to = [("someone@x.test", Notify::Absent)];
    let (id, _) = scenario.submit(plain(&to)).await;
    scenario.pass(HOUR).await;
    scenario.restart().await;
    scenario.pass(HOUR).await;
    assert!(scenario.world.delivered().is_empty());
    let engine = scenario.engine();
    let lifted = engine.lift_measure("hold", "operator", "", None).await;
    assert!(lifted.expect("lifted").is_some());
    scenario.pass(Duration::from_secs(1)).await;
    let log = entry(&scenario, id).await;
    assert_eq!(at(&log, EventKind::Delivered), [HOUR * 2]);
}

#[tokio::test]
async fn throttled_bulk_expires_on_time_and_no_plan_is_exceeded() {
    let settings = Settings {
        ceilings: tidegate_queue::route::Ceilings {
            lifetime_secs: 600,
            delay_notice_secs: None,
            ..Settings::default().ceilings
        },
        ..Settings::default()
    };
    let limits = Limits {
        rate: Some(Rate {
            messages: 1,
            per_ms: 60_000,
        }),
        burst: 1,
        connections: 5,
        ttl: 3600,
        ..Limits::default()
    };
    let scenario = Scenario::with(settings, Arc::new(ByName { limits })).await;
    for n in 0..30 {
        let address = format!("r{n}@x.test");
        let to = [(address.as_str(), Notify::Absent)];
        let (_, reply) = scenario
            .submit(Mail {
                subject: None,
                bulk: true,
                ..plain(&to)
            })
            .await;
        assert_eq!(reply.code, 250);
    }
    scenario.pass(HOUR).await;
    let mut times: Vec<Timestamp> = scenario
        .world
        .delivered()
        .iter()
        .filter(|d| d.recipient.ends_with("@x.test"))
        .map(|d| d.at)
        .collect();
    times.sort();
    assert!((10..=11).contains(&times.len()), "{} went", times.len());
    for pair in times.windows(2) {
        assert!(pair[1].since(pair[0]) >= Duration::from_secs(60));
    }
    let counts = scenario.store().counts().await.expect("counts");
    assert_eq!(counts.recipients, 0, "the rest has expired");
    assert_eq!(scenario.engine().stats().expired, 30 - times.len() as u64);
}

#[tokio::test]
async fn a_clock_set_back_neither_expires_nor_storms() {
    let scenario = Scenario::new().await;
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    let to = [("someone@x.test", Notify::Never)];
    let (id, _) = scenario.submit(plain(&to)).await;
    scenario.pass(HOUR).await;
    let before = at(&entry(&scenario, id).await, EventKind::Deferred).len();
    scenario.clock.set(START);
    scenario.pass(HOUR / 2).await;
    let after = at(&entry(&scenario, id).await, EventKind::Deferred).len();
    assert!(after - before <= 1, "{} attempts", after - before);
    assert_eq!(scenario.engine().stats().expired, 0);
}

#[tokio::test]
async fn cancelled_mail_is_gone_and_retried_mail_goes_now() {
    let scenario = Scenario::new().await;
    scenario.world.set("x.test", Manner::Greylist(1));
    scenario.world.set("y.test", Manner::Unreachable(NEVER));
    let to = [("a@x.test", Notify::Absent), ("b@y.test", Notify::Absent)];
    let (id, _) = scenario.submit(plain(&to)).await;
    scenario.pass(Duration::from_secs(1)).await;
    let of = |domain: &str| QueueQuery {
        domain: Some(domain.into()),
        ..QueueQuery::default()
    };
    let engine = scenario.engine();
    assert_eq!(engine.retry(of("x.test")).await.expect("retry"), 1);
    assert_eq!(
        engine
            .cancel(of("y.test"), "operator", "a test")
            .await
            .expect("cancel"),
        1
    );
    scenario.pass(Duration::from_secs(1)).await;
    let log = entry(&scenario, id).await;
    assert_eq!(at(&log, EventKind::Delivered).len(), 1);
    let cancelled = log
        .events
        .iter()
        .find(|e| e.kind == EventKind::Cancelled)
        .expect("logged");
    assert!(
        cancelled
            .detail
            .facts
            .contains(&("by".to_owned(), "operator".to_owned()))
    );
    assert_eq!(
        scenario.store().counts().await.expect("counts").recipients,
        0
    );
}

#[tokio::test]
async fn mixed_routes_are_answered_as_the_contract_says() {
    let scenario = Scenario::new().await;
    let own = ("s@own-x.test", Notify::Absent);
    let managed = ("m@x.test", Notify::Absent);
    let no = ("n@no-x.test", Notify::Absent);

    let (_, reply) = scenario.submit(plain(&[no])).await;
    assert_eq!(reply.code, 550, "all refused: the 5xx");

    let (id, reply) = scenario.submit(plain(&[own])).await;
    assert_eq!((reply.code, reply.text), (250, format!("taken ({id})")));
    let log = entry(&scenario, id).await;
    let kinds: Vec<EventKind> = log.events.iter().map(|e| e.kind).collect();
    assert_eq!(
        kinds,
        [EventKind::PassthroughTried],
        "no outcome is recorded"
    );
    assert!(log.events[0].detail.code.is_none());

    scenario.world.set("own-server.test", Manner::Refuse);
    let (_, reply) = scenario.submit(plain(&[own])).await;
    assert_eq!((reply.code, reply.text.as_str()), (550, "no such user"));
    scenario
        .world
        .set("own-server.test", Manner::Unreachable(NEVER));
    let (_, reply) = scenario.submit(plain(&[own])).await;
    assert_eq!(reply.code, 451, "{reply}");
    assert_eq!(
        scenario.store().counts().await.expect("counts").messages,
        0,
        "nothing is queued"
    );

    // Beside managed mail a 250 is given, and the refused one is owed a notice.
    scenario.world.set("own-server.test", Manner::Refuse);
    let (_, reply) = scenario.submit(plain(&[own, managed, no])).await;
    assert_eq!(reply.code, 250);
    scenario.pass(HOUR).await;
    let mut failed: Vec<String> = scenario
        .world
        .delivered()
        .iter()
        .filter_map(|d| dsn::parse(&d.content))
        .flat_map(|report| report.recipients)
        .map(|r| r.address.expect("an address").address)
        .collect();
    failed.sort();
    assert_eq!(failed, ["n@no-x.test", "s@own-x.test"]);
}
