//! What people order: it is done to its end though they hang up, and it is stored when they are
//! told that it is done. And the order to stop: results on their way to the store get there.

use std::time::Duration;

use tidegate_mail::Notify;
use tidegate_queue::control::QueueQuery;
use tidegate_queue::measure::{Effect, Measure, Scope};

use crate::scenario::{START, Scenario};
use crate::steady::{HOUR, mail};
use crate::world::{Manner, NEVER};

const TO: [&str; 2] = ["someone@x.test", "other@x.test"];

/// Two messages wait, and nothing of them is in memory but their places in the schedule.
async fn waiting() -> Scenario {
    let mut scenario = Scenario::new().await;
    scenario.world.set("x.test", Manner::Greylist(NEVER));
    for to in TO {
        scenario.submit(mail(&[(to, Notify::Absent)])).await;
    }
    scenario.pass(Duration::from_secs(5)).await;
    scenario.restart().await;
    scenario
}

async fn left(scenario: &Scenario) -> u64 {
    scenario.store().counts().await.expect("counts").recipients
}

/// Polls an order once, and drops it: its client has hung up.
async fn hang_up(order: impl Future) {
    tokio::select! {
        biased;
        _ = order => panic!("it has to read the store first"),
        () = tokio::task::yield_now() => {}
    }
}

/// Waits for what other tasks do.
async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it is not done within a minute");
}

fn hold() -> Measure {
    Measure::new("hold", Scope::default(), Effect::Hold, "a test", START)
}

#[tokio::test]
async fn an_order_is_carried_out_though_who_gave_it_hangs_up() {
    let scenario = waiting().await;
    let engine = scenario.engine().clone();
    hang_up(engine.cancel(QueueQuery::default(), "operator", "a test")).await;
    until(|| engine.stats().cancelled == 2).await;
    assert_eq!(left(&scenario).await, 0);

    hang_up(engine.put_measure(hold())).await;
    until(|| !engine.measures().is_empty()).await;
    hang_up(engine.lift_measure("hold", "operator", "", None)).await;
    until(|| engine.measures().is_empty()).await;
}

#[tokio::test]
async fn an_order_to_retry_is_carried_out_though_who_gave_it_hangs_up() {
    let scenario = waiting().await;
    scenario.world.set("x.test", Manner::Accept);
    hang_up(scenario.engine().retry(QueueQuery::default())).await;
    // Long before their next attempt by the schedule, which is some minute away.
    for _ in 0..20_000 {
        scenario.pass(Duration::from_millis(1)).await;
        if left(&scenario).await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(left(&scenario).await, 0, "both have gone out");
}

#[tokio::test]
async fn who_is_told_that_mail_is_cancelled_can_rely_on_it() {
    let mut scenario = waiting().await;
    let engine = scenario.engine().clone();
    let all = QueueQuery::default;
    scenario.crash.fail(Some("settle"));
    let answer = engine.cancel(all(), "operator", "a test").await;
    assert!(answer.is_err(), "{answer:?}: nothing was stored");
    drop(engine);
    scenario.crash.fail(None);
    scenario.restart().await;
    assert_eq!(left(&scenario).await, 2, "the process forgot it");

    let answer = scenario.engine().cancel(all(), "operator", "a test").await;
    assert_eq!(answer.expect("it can be stored"), 2);
    scenario.world.set("x.test", Manner::Accept);
    scenario.restart().await;
    scenario.pass(HOUR * 50).await;
    assert!(scenario.world.delivered().is_empty());
}

#[tokio::test]
async fn a_result_on_its_way_to_the_store_when_the_gateway_stops_gets_there() {
    let mut scenario = Scenario::new().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let engine = scenario.engine().clone();
    let running = tokio::spawn(engine.run(async {
        let _ = stopped.await;
        START.plus(HOUR)
    }));
    tokio::task::yield_now().await;
    scenario.crash.hold(Some("settle"));
    scenario.submit(mail(&[(TO[0], Notify::Absent)])).await;
    until(|| scenario.crash.calls().contains_key("settle")).await;
    stop.send(()).expect("it runs");
    // Time enough for all that does not wait for the store to end.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    scenario.crash.hold(None);
    running.await.expect("it ends");
    assert_eq!(scenario.world.delivered().len(), 1);
    scenario.restart().await;
    scenario.pass(HOUR).await;
    assert_eq!(scenario.world.delivered().len(), 1, "no second attempt");
    assert_eq!(left(&scenario).await, 0);
}
