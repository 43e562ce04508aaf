//! A store that fails without dying or that another gateway has, and a clock that was wrong.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::{EventKind, Notify};
use tidegate_queue::control::QueueQuery;
use tidegate_queue::{Intake, Settings, StoreError};

use crate::scenario::{START, Scenario};
use crate::steady::{HOUR, Steady, events, mail, notices, times};
use crate::world::{Manner, NEVER};

const TO: &str = "someone@x.test";

/// Everything is read from the store, nothing kept in memory for the first attempt.
async fn forgetful() -> Scenario {
    let settings = Settings {
        content_budget: 0,
        ..Settings::default()
    };
    Scenario::with(settings, Arc::new(Steady::default())).await
}

#[tokio::test]
async fn a_result_whose_commit_was_in_doubt_holds_up_nothing() {
    let scenario = forgetful().await;
    scenario.crash.doubt("settle");
    let (first, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(Duration::from_secs(5)).await;
    let (second, reply) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    assert_eq!(reply.code, 250, "{reply}");
    scenario.pass(HOUR).await;
    for id in [first, second] {
        let log = events(&scenario, id).await;
        assert_eq!(times(&log, EventKind::Delivered).len(), 1, "{log:?}");
    }
    assert_eq!(scenario.world.attempts_for(TO).len(), 2);
    let counts = scenario.store().counts().await.expect("counts");
    assert_eq!((counts.messages, counts.recipients), (0, 0));
    assert_eq!(scenario.engine().stats().waiting, 0);
}

#[tokio::test]
async fn nothing_is_attempted_while_results_can_t_be_stored() {
    let scenario = forgetful().await;
    scenario.crash.fail(Some("settle"));
    for n in 0..5 {
        let address = format!("r{n}@x.test");
        scenario.submit(mail(&[(&address, Notify::Absent)])).await;
        scenario.pass(Duration::from_secs(5)).await;
    }
    assert_eq!(scenario.world.delivered().len(), 1);
    scenario.crash.fail(None);
    scenario.pass(HOUR).await;
    assert_eq!(scenario.world.delivered().len(), 5);
    assert_eq!(scenario.engine().stats().waiting, 0);
}

#[tokio::test]
async fn who_is_in_the_queue_past_the_lifetime_is_reported() {
    let scenario = forgetful().await;
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(HOUR * 47).await;
    // A database that can't be read keeps a recipient beyond its time; nothing else should.
    scenario.crash.fail(Some("messages"));
    scenario.pass(HOUR).await;
    assert_eq!(scenario.engine().watch(), 0);
    scenario.pass(HOUR).await;
    assert_eq!(scenario.engine().watch(), 1);
    assert_eq!(scenario.engine().stats().overdue, 1);
    scenario.crash.fail(None);
    scenario.pass(Duration::from_secs(120)).await;
    assert_eq!(scenario.engine().watch(), 0);
    assert_eq!(scenario.engine().stats().overdue, 0);
    let log = events(&scenario, id).await;
    assert_eq!(times(&log, EventKind::Expired).len(), 1);
    // One of delay and one of failure.
    assert_eq!(notices(&scenario).len(), 2);
}

#[tokio::test]
async fn a_delay_that_could_not_be_read_at_its_time_is_told_later() {
    let scenario = forgetful().await;
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(HOUR * 3).await;
    scenario.crash.fail(Some("messages"));
    scenario.pass(HOUR + HOUR / 2).await;
    scenario.crash.fail(None);
    scenario.pass(Duration::from_secs(120)).await;
    assert_eq!(notices(&scenario).len(), 1);
}

#[tokio::test]
async fn mail_accepted_under_a_clock_that_was_ahead_goes_at_the_next_start() {
    let mut scenario = forgetful().await;
    scenario.world.set("x.test", Manner::Greylist(1));
    scenario.clock.set(START.plus(HOUR * 24 * 365));
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(Duration::from_secs(1)).await;
    scenario.clock.set(START);
    scenario.restart().await;
    scenario.pass(Duration::from_secs(1)).await;
    let log = events(&scenario, id).await;
    assert_eq!(times(&log, EventKind::Delivered).len(), 1, "{log:?}");
    assert_eq!(scenario.engine().stats().expired, 0);
    // Ids say the time again, and mail is logged under its day.
    let (next, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    assert_eq!(next.given_at().day(), START.day());
}

#[tokio::test]
async fn ids_do_not_come_again_when_the_clock_is_set_back_over_a_restart() {
    let mut scenario = forgetful().await;
    let (first, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(Duration::from_secs(5)).await;
    for back in [Duration::ZERO, HOUR / 2] {
        scenario.clock.set(START.minus(back));
        scenario.restart().await;
        let (second, reply) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
        assert_eq!(reply.code, 250, "{reply}");
        assert!(second > first, "{second} after {first}");
        scenario.pass(Duration::from_secs(5)).await;
        for id in [first, second] {
            let log = events(&scenario, id).await;
            assert_eq!(times(&log, EventKind::Delivered).len(), 1, "{log:?}");
        }
    }
}

#[tokio::test]
async fn a_clock_set_forward_by_days_ends_lifetimes_once_and_nothing_storms() {
    let scenario = forgetful().await;
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(HOUR).await;
    let before = scenario.world.attempts_for(TO).len();
    scenario.clock.set(START.plus(HOUR * 73));
    scenario.pass(HOUR).await;
    let log = events(&scenario, id).await;
    assert_eq!(times(&log, EventKind::Expired).len(), 1, "{log:?}");
    assert!(scenario.world.attempts_for(TO).len() <= before + 1);
    assert_eq!(notices(&scenario).len(), 1, "the failure, and no delay");
    let queue = scenario.engine().queue(QueueQuery::default()).await;
    assert!(queue.expect("a listing").is_empty());
}

#[tokio::test]
async fn a_notice_whose_commit_was_in_doubt_is_sent_once() {
    // Of failure, and of delay, whose debtor stays in the queue.
    for (manner, at) in [
        (Manner::Refuse, Duration::ZERO),
        (Manner::Unreachable(NEVER), HOUR * 3 + HOUR * 9 / 10),
    ] {
        let scenario = forgetful().await;
        scenario.world.set("x.test", manner.clone());
        let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
        if !at.is_zero() {
            scenario.pass(at).await;
        }
        assert!(notices(&scenario).is_empty());
        scenario.crash.doubt("accept");
        scenario.pass(HOUR / 5).await;
        for _ in 0..5 {
            scenario.pass(Duration::from_secs(60)).await;
        }
        assert_eq!(notices(&scenario).len(), 1, "{manner:?}");
        assert_eq!(scenario.engine().stats().notices, 1);
        let log = events(&scenario, id).await;
        let told = |kind| times(&log, kind).len();
        let told = told(EventKind::DsnSent) + told(EventKind::DelayNotified);
        assert_eq!(told, 1, "{log:?}");
        scenario.pass(HOUR * 48).await;
        let counts = scenario.store().counts().await.expect("counts");
        assert_eq!((counts.messages, counts.owing), (0, 0), "{manner:?}");
    }
}

#[tokio::test]
async fn a_gateway_whose_queue_another_has_taken_over_attempts_nothing_more() {
    let scenario = forgetful().await;
    scenario.world.set("x.test", Manner::Greylist(1));
    for n in 0..3 {
        let address = format!("r{n}@x.test");
        scenario.submit(mail(&[(&address, Notify::Absent)])).await;
        scenario.pass(Duration::from_secs(20)).await;
    }
    assert_eq!(scenario.engine().stats().deferred, 3);
    assert!(scenario.engine().refusal().is_none());
    scenario.crash.refuse(Some(StoreError::Fenced(0)));
    scenario.pass(HOUR).await;
    // The one attempt whose result was refused.
    assert_eq!(scenario.world.delivered().len(), 1);
    assert_eq!(scenario.engine().refusal().map(|r| r.code), Some(451));
    let (_, reply) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    assert_eq!(reply.code, 451, "{reply}");
}

#[tokio::test]
async fn a_store_that_was_busy_is_used_again() {
    let scenario = forgetful().await;
    scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    let busy = StoreError::Busy("another program has locked the database".to_owned());
    scenario.crash.refuse(Some(busy));
    let (_, reply) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    assert_eq!(reply.code, 451, "{reply}");
    scenario.pass(Duration::from_secs(5)).await;
    scenario.crash.refuse(None);
    assert!(scenario.engine().refusal().is_none());
    let (_, reply) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    assert_eq!(reply.code, 250, "{reply}");
    scenario.pass(HOUR).await;
    assert_eq!(scenario.world.delivered().len(), 2);
    assert_eq!(scenario.engine().stats().waiting, 0);
}
