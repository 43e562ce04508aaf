//! A tenant's quota of bulk mail: what is beyond it waits, and says so.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::{Notify, Timestamp};
use tidegate_queue::Settings;
use tidegate_queue::control::QueueQuery;
use tidegate_queue::directory::Quota;
use tidegate_queue::shape::WaitReason;

use crate::scenario::{Mail, START, Scenario};
use crate::steady::{HOUR, SENDER, Steady, mail};
use crate::world::Manner;

const MINUTE: Duration = Duration::from_secs(60);

/// Ten recipients in any hour.
async fn scenario() -> Scenario {
    let scenario = Scenario::with(Settings::default(), Arc::new(Steady::default())).await;
    scenario.put_directory(|tenant, _| {
        tenant.bulk_quota = Some(Quota {
            recipients: 10,
            window_secs: 3600,
        });
    });
    scenario
}

async fn bulk(scenario: &Scenario, to: &[String]) {
    let to: Vec<(&str, Notify)> = to.iter().map(|t| (t.as_str(), Notify::Never)).collect();
    let mail = Mail {
        bulk: true,
        ..mail(&to)
    };
    let (_, reply) = scenario.submit(mail).await;
    assert_eq!(reply.code, 250, "{reply}");
}

fn many(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("r{n}@x.test")).collect()
}

fn arrived(scenario: &Scenario) -> Vec<Timestamp> {
    let all = scenario.world.delivered();
    let bulk = all.iter().filter(|d| d.recipient.starts_with('r'));
    bulk.map(|d| d.at).collect()
}

#[tokio::test]
async fn bulk_beyond_the_quota_waits_for_room_and_everything_else_goes() {
    let mut scenario = scenario().await;
    for to in many(0..8) {
        bulk(&scenario, &[to]).await;
    }
    scenario.pass(MINUTE * 10).await;
    // Recipients of one message too are taken one by one.
    bulk(&scenario, &many(8..25)).await;
    scenario.world.set("gone.test", Manner::Refuse);
    scenario
        .submit(mail(&[
            ("a@y.test", Notify::Absent),
            ("b@gone.test", Notify::Absent),
        ]))
        .await;
    scenario.pass(MINUTE).await;
    assert_eq!(arrived(&scenario).len(), 10);
    assert_eq!(scenario.engine().quota_used("acme"), 10);
    let others = scenario.world.delivered();
    let others: Vec<&str> = others.iter().map(|d| d.recipient.as_str()).collect();
    assert!(others.contains(&"a@y.test"), "transactional mail");
    assert!(others.contains(&SENDER), "the notice of a failure");
    let waiting = scenario.engine().queue(QueueQuery::default()).await;
    let waiting = waiting.expect("a listing");
    assert_eq!(waiting.len(), 15);
    for entry in &waiting {
        assert_eq!(entry.reason, Some(WaitReason::Quota));
        let next = entry.next.expect("it is known when").since(START);
        assert!((HOUR..HOUR + MINUTE).contains(&next), "{next:?}");
        assert_eq!(entry.attempts, 0);
    }

    // A restart forgets nothing of it.
    scenario.restart().await;
    scenario.pass(MINUTE * 45).await;
    assert_eq!(arrived(&scenario).len(), 10);
    assert_eq!(scenario.engine().quota_used("acme"), 10);
    scenario.pass(HOUR * 3).await;
    let at = arrived(&scenario);
    assert_eq!(at.len(), 25);
    for (n, first) in at.iter().enumerate().skip(10) {
        let before = at[n - 10];
        assert!(first.since(before) >= HOUR, "more than ten within an hour");
    }
    let last = at[24].since(START);
    assert!(
        last < HOUR * 2 + MINUTE * 15,
        "no later than needed: {last:?}"
    );
}

#[tokio::test]
async fn what_is_to_be_tried_again_is_counted_once_and_refusals_count() {
    let scenario = scenario().await;
    scenario.world.set("x.test", Manner::Greylist(2));
    scenario.world.set("gone.test", Manner::Refuse);
    for to in many(0..9) {
        bulk(&scenario, &[to]).await;
    }
    bulk(&scenario, &["b@gone.test".to_owned()]).await;
    scenario.pass(Duration::from_secs(30)).await;
    assert_eq!(
        scenario.engine().quota_used("acme"),
        1,
        "nothing went out yet"
    );
    scenario.pass(MINUTE * 10).await;
    assert_eq!(arrived(&scenario).len(), 9);
    assert_eq!(scenario.engine().quota_used("acme"), 10);
    bulk(&scenario, &["late@y.test".to_owned()]).await;
    scenario.pass(MINUTE).await;
    let waiting = scenario.engine().queue(QueueQuery::default()).await;
    let waiting = waiting.expect("a listing");
    assert_eq!(waiting[0].reason, Some(WaitReason::Quota));
    scenario.pass(HOUR + MINUTE).await;
    let delivered = scenario.world.delivered();
    assert!(delivered.iter().any(|d| d.recipient == "late@y.test"));
}

#[tokio::test]
async fn a_quota_that_is_raised_or_taken_away_lets_mail_go_at_once() {
    let scenario = scenario().await;
    bulk(&scenario, &many(0..30)).await;
    scenario.pass(MINUTE).await;
    assert_eq!(arrived(&scenario).len(), 10);
    scenario.put_directory(|tenant, _| {
        tenant.bulk_quota = Some(Quota {
            recipients: 15,
            window_secs: 3600,
        });
    });
    scenario.pass(MINUTE).await;
    assert_eq!(arrived(&scenario).len(), 15);
    scenario.put_directory(|_, _| {});
    scenario.pass(MINUTE).await;
    assert_eq!(arrived(&scenario).len(), 30);
}
