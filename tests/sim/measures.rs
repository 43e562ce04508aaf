//! What the policy and the host do to part of the traffic by themselves: seen, kept over a
//! restart, and lifted by people.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{Notify, Timestamp, TrafficClass};
use tidegate_queue::control::QueueQuery;
use tidegate_queue::measure::{Effect, Measure, Scope, Setter};
use tidegate_queue::route::{Managed, Question, Routing};
use tidegate_queue::shape::{LaneState, Limits, Plan, Rate, WaitReason};
use tidegate_queue::*;

use crate::scenario::{START, Scenario};
use crate::steady::{HOUR, Steady, mail};
use crate::world::{Manner, NEVER};

const TO: &str = "someone@x.test";
const MINUTE: Duration = Duration::from_secs(60);

/// Everything is bulk; plans as it is told, or has none.
#[derive(Default)]
struct Told(Mutex<Option<Limits>>);

impl Told {
    fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Told(Mutex::new(Some(limits))))
    }

    fn tell(&self, limits: Option<Limits>) {
        *self.0.lock().expect("no test panics while holding it") = limits;
    }

    fn steady(&self) -> Option<Steady> {
        let limits = self.0.lock().expect("no test panics while holding it");
        limits.clone().map(|limits| Steady {
            limits,
            ..Steady::default()
        })
    }
}

impl Policy for Told {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        let bulk = Managed {
            class: TrafficClass::Bulk,
            ..Managed::default()
        };
        let routing = Routing::all(
            route::Action::Managed(bulk),
            question.envelope.recipients.len(),
        );
        Box::pin(std::future::ready(routing))
    }

    fn plan(
        &self,
        now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        let Some(steady) = self.steady() else {
            let fault = PolicyFault::Temporary("asleep".to_owned());
            return Box::pin(std::future::ready(Err(fault)));
        };
        Box::pin(async move { steady.plan(now, state, lanes).await })
    }

    fn render<'a>(
        &'a self,
        _exporter: &'a str,
        _batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>> {
        Box::pin(std::future::ready(Err(PolicyFault::Inactive)))
    }

    fn wanted_headers(&self, _tenant: &str) -> Arc<[String]> {
        Arc::from([])
    }
}

fn paused(until: Timestamp) -> Limits {
    Limits {
        paused_until: Some(until),
        cause: Some("paused for a day: 421 4.7.0 too much of it".to_owned()),
        ttl: 60,
        ..Limits::default()
    }
}

async fn send(scenario: &Scenario, to: &str) {
    let (_, reply) = scenario.submit(mail(&[(to, Notify::Never)])).await;
    assert_eq!(reply.code, 250, "{reply}");
}

fn only(scenario: &Scenario) -> Measure {
    let all = scenario.engine().measures();
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().expect("one")
}

async fn reason(scenario: &Scenario) -> Option<WaitReason> {
    let list = scenario.engine().queue(QueueQuery::default()).await;
    list.expect("a listing").first().and_then(|e| e.reason)
}

async fn lift(scenario: &Scenario, id: &str, until: Option<Timestamp>) {
    let engine = scenario.engine();
    let lifted = engine.lift_measure(id, "operator", "a test", until).await;
    assert!(lifted.expect("lifted").is_some());
}

#[tokio::test]
async fn a_pause_of_the_policy_is_a_row_that_outlives_a_restart_and_stays_lifted() {
    let end = START.plus(HOUR * 24);
    let policy = Told::new(paused(end));
    let mut scenario = Scenario::with(Settings::default(), policy.clone()).await;
    send(&scenario, TO).await;
    scenario.pass(HOUR).await;
    let row = only(&scenario);
    assert_eq!((row.effect, row.by), (Effect::Suspend, Setter::Policy));
    assert!(row.cause.contains("421 4.7.0 too much of it"), "{row:?}");
    assert_eq!((row.since, row.until), (START, Some(end)));
    let lane = Scope {
        tenant: Some("acme".into()),
        class: Some(TrafficClass::Bulk),
        relay: Some("mx".into()),
        site: Some("x.test".into()),
        ..Scope::default()
    };
    assert_eq!(row.scope, lane);

    // The policy has nothing to say at the next start: what it did stays done, and seen.
    policy.tell(None);
    scenario.restart().await;
    assert_eq!(only(&scenario).id, row.id);
    scenario.pass(HOUR).await;
    assert_eq!(only(&scenario).until, Some(end));
    assert_eq!(reason(&scenario).await, Some(WaitReason::Suspended));
    assert!(scenario.world.delivered().is_empty());

    // Lifted: mail goes, though the policy plans the same again every minute.
    policy.tell(Some(paused(end)));
    lift(&scenario, &row.id, Some(START.plus(HOUR * 5))).await;
    scenario.pass(MINUTE).await;
    assert_eq!(scenario.world.delivered().len(), 1);
    scenario.pass(HOUR).await;
    send(&scenario, TO).await;
    scenario.restart().await;
    scenario.pass(HOUR).await;
    assert_eq!(scenario.world.delivered().len(), 2, "over a restart too");
    let lifted = only(&scenario).lifted.expect("it says who lifted it");
    assert_eq!(lifted.by, "operator");
    assert_eq!(lifted.why, "a test");
    assert_eq!(lifted.until, Some(START.plus(HOUR * 5)));

    // From then on the policy's word counts again.
    scenario.run_until(START.plus(HOUR * 6)).await;
    send(&scenario, TO).await;
    scenario.pass(HOUR).await;
    assert_eq!(scenario.world.delivered().len(), 2);
    assert_eq!(reason(&scenario).await, Some(WaitReason::Suspended));
    let again = only(&scenario);
    assert_ne!(again.id, row.id);
    assert!(again.lifted.is_none());
    let history = scenario.engine().lifted_measures().await;
    let history = history.expect("the history");
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].id, row.id);
}

#[tokio::test]
async fn without_a_time_a_lifted_measure_is_not_repeated_for_what_was_left_of_it() {
    for (left, kept) in [(HOUR * 24, HOUR * 24), (MINUTE * 10, HOUR)] {
        let policy = Told::new(paused(START.plus(left)));
        let scenario = Scenario::with(Settings::default(), policy.clone()).await;
        send(&scenario, TO).await;
        scenario.pass(Duration::from_secs(1)).await;
        let now = scenario.clock.now();
        lift(&scenario, &only(&scenario).id, None).await;
        // A longer one planned meanwhile changes nothing.
        policy.tell(Some(paused(START.plus(HOUR * 48))));
        scenario.pass(MINUTE * 50).await;
        send(&scenario, TO).await;
        scenario.pass(MINUTE).await;
        assert_eq!(scenario.world.delivered().len(), 2);
        let until = only(&scenario).lifted.and_then(|l| l.until);
        let end = START.plus(left).max(now.plus(kept.min(HOUR)));
        assert_eq!(until, Some(end));
    }
}

#[tokio::test]
async fn a_slowed_lane_is_a_row_and_goes_as_before_when_it_is_lifted() {
    let pace = |messages, cause: Option<&str>| Limits {
        rate: Some(Rate {
            messages,
            per_ms: 60_000,
        }),
        burst: 1,
        ttl: 60,
        cause: cause.map(str::to_owned),
        ..Limits::default()
    };
    let policy = Told::new(pace(60, None));
    let scenario = Scenario::with(Settings::default(), policy.clone()).await;
    send(&scenario, TO).await;
    scenario.pass(MINUTE).await;
    assert_eq!(
        scenario.engine().measures(),
        [],
        "nothing out of the ordinary"
    );

    policy.tell(Some(pace(1, Some("slowed: 30 of 100 deferred"))));
    for n in 0..200 {
        send(&scenario, &format!("r{n}@x.test")).await;
    }
    // Not to the moment at which it plans again.
    scenario.pass(MINUTE * 10 + MINUTE / 2).await;
    let slow = scenario.world.delivered().len();
    assert!((8..=14).contains(&slow), "{slow} at one a minute");
    let row = only(&scenario);
    assert_eq!((row.effect, row.by), (Effect::Slow, Setter::Policy));
    assert_eq!(row.cause, "slowed: 30 of 100 deferred");
    let planned = row.plan.as_ref().expect("what was planned");
    assert_eq!(planned.plan.limits.rate.map(|r| r.messages), Some(1));
    assert!(row.until.is_some(), "until it is planned anew");

    lift(&scenario, &row.id, None).await;
    scenario.pass(MINUTE * 2).await;
    let fast = scenario.world.delivered().len() - slow;
    assert!((115..=125).contains(&fast), "{fast} at one a second");
    // The policy itself may find that all is well: then there is nothing left to see.
    policy.tell(Some(pace(60, None)));
    scenario.pass(HOUR * 2).await;
    assert_eq!(scenario.engine().measures(), []);
}

#[tokio::test]
async fn a_site_that_is_backed_off_is_a_row_that_outlives_a_restart_and_may_be_lifted() {
    let mut scenario = Scenario::new().await;
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    send(&scenario, TO).await;
    scenario.pass(Duration::from_secs(1)).await;
    let row = only(&scenario);
    assert_eq!((row.effect, row.by), (Effect::Suspend, Setter::Host));
    assert_eq!(row.cause, "the server did not answer the connection");
    assert_eq!(row.scope.site.as_deref(), Some("x.test"));
    let until = row.until.expect("the back-off ends");

    // After a restart the site is left alone as before.
    scenario.restart().await;
    assert_eq!(only(&scenario).id, row.id);
    send(&scenario, "other@x.test").await;
    scenario.pass(Duration::from_secs(1)).await;
    assert!(scenario.clock.now() < until);
    assert!(scenario.world.attempts_for("other@x.test").is_empty());
    assert_eq!(reason(&scenario).await, Some(WaitReason::SiteBackoff));

    lift(&scenario, &row.id, None).await;
    scenario.pass(Duration::from_secs(1)).await;
    assert_eq!(scenario.world.attempts_for("other@x.test").len(), 1);
    // It failed again, which is another measure; the first one is history.
    let again = only(&scenario);
    assert_ne!(again.id, row.id);
    let history = scenario.engine().lifted_measures().await;
    assert_eq!(history.expect("the history")[0].id, row.id);

    scenario.world.set("x.test", Manner::Accept);
    scenario.pass(HOUR).await;
    assert_eq!(scenario.engine().measures(), [], "it answers");
    let stored = scenario.store().measures().await.expect("the rows");
    assert_eq!(stored.len(), 1, "but for the history: {stored:?}");
}

#[tokio::test]
async fn what_is_over_and_what_was_lifted_long_ago_is_swept() {
    let scenario = Scenario::new().await;
    let engine = scenario.engine();
    let hold = |id: &str| {
        let until = Some(START.plus(HOUR));
        Measure {
            until,
            ..Measure::new(id, Scope::default(), Effect::Hold, "a test", START)
        }
    };
    engine.put_measure(hold("lifted")).await.expect("stored");
    engine.put_measure(hold("over")).await.expect("stored");
    lift(&scenario, "lifted", None).await;
    let ids = async || {
        let mut all = scenario.store().measures().await.expect("the rows");
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all.into_iter().map(|m| m.id).collect::<Vec<_>>()
    };
    engine.sweep().await;
    assert_eq!(ids().await, ["lifted", "over"]);
    scenario.pass(HOUR * 2).await;
    assert_eq!(engine.measures(), []);
    engine.sweep().await;
    assert_eq!(ids().await, ["lifted"]);
    scenario.pass(Settings::default().retention).await;
    engine.sweep().await;
    assert!(ids().await.is_empty());
}
