//! The default shaping policy, as built: time is an argument, so a day takes no time.

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::*;
use tidegate_mail::{Enhanced, Outcome, Reply, Stage, TrafficClass, Verdict};
use tidegate_policy::{PolicyHost, Refused};
use tidegate_queue::shape::{LaneKey, LanePlan, LaneState, Rate, ReplyCount, Window};
use tidegate_queue::{Policy, PolicyFault};

fn lane(site: &str) -> LaneState {
    LaneState {
        key: LaneKey {
            tenant: "acme".to_owned(),
            class: TrafficClass::Bulk,
            relay: "main".to_owned(),
            site: site.to_owned(),
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
            ..Window::default()
        },
        facts: vec![("ignored".to_owned(), "x".to_owned())],
    }
}

/// Plans one lane `secs` after the start; the state goes from call to call.
async fn plan(host: &PolicyHost, state: &mut Bytes, secs: u64, lane: &LaneState) -> LanePlan {
    let now = NOW.plus(Duration::from_secs(secs));
    let plan = host
        .plan(now, state.clone(), vec![lane.clone()])
        .await
        .unwrap();
    assert!(plan.rules.unwrap().policy.is_some());
    *state = plan.state;
    plan.lanes.into_iter().next().flatten().unwrap()
}

const CONFIG: &str = r#"{
    "sites": [
        { "site": "*.big.test", "class": "bulk", "rate": "600/min", "connections": 8, "messages_per_connection": 30, "retry_after": [300, 900] },
        { "site": "new.test", "rate": "864000/day", "warm_up": { "start": "100/day" } }
    ],
    "pause": [ { "text": "Reputation", "minutes": 60 } ]
}"#;

#[tokio::test]
async fn a_site_pattern_sets_the_ceiling() {
    let host = host();
    host.activate("shaping", &prepared("shaping-default", CONFIG))
        .unwrap();
    let mut state = Bytes::new();
    let p = plan(&host, &mut state, 0, &lane("mx.big.test")).await;
    assert_eq!(
        p.limits.rate,
        Some(Rate {
            messages: 10,
            per_ms: 1000
        })
    );
    assert_eq!(
        (p.limits.connections, p.limits.messages_per_connection),
        (8, 30)
    );
    assert_eq!(p.limits.retry_after, [300, 900]);
    assert_eq!((p.limits.cause, p.limits.paused_until), (None, None));
    assert!(p.wake.unwrap().codes.contains(&421));
    let other = plan(&host, &mut state, 0, &lane("big.test.invalid")).await;
    assert_eq!(other.limits.rate, None);
}

#[tokio::test]
async fn deferrals_halve_the_pace_and_quiet_brings_it_back() {
    let host = host();
    host.activate("shaping", &prepared("shaping-default", CONFIG))
        .unwrap();
    let mut state = Bytes::new();
    let mut bad = lane("mx.big.test");
    bad.recent.attempts = 100;
    bad.recent.deferred = 30;
    let good = lane("mx.big.test");
    let messages = |p: &LanePlan| p.limits.rate.unwrap().messages;

    assert_eq!(messages(&plan(&host, &mut state, 0, &good).await), 10);
    let slow = plan(&host, &mut state, 1, &bad).await;
    assert_eq!(messages(&slow), 5);
    assert_eq!(slow.limits.connections, 4);
    assert!(
        slow.limits
            .cause
            .unwrap()
            .contains("30 of 100 attempts deferred")
    );
    assert_eq!(
        messages(&plan(&host, &mut state, 2, &bad).await),
        5,
        "the same window slows once"
    );
    assert_eq!(messages(&plan(&host, &mut state, 62, &bad).await), 2);
    // 25 % of the ceiling, and 5 % more each clean minute.
    let mut pace = Vec::new();
    for minute in 0..16 {
        pace.push(messages(
            &plan(&host, &mut state, 122 + minute * 60, &good).await,
        ));
    }
    assert!(pace.is_sorted(), "{pace:?}");
    assert_eq!((pace[0], pace[14]), (3, 10));
}

#[tokio::test]
async fn a_reputation_reply_pauses_with_its_text_as_the_cause() {
    let host = host();
    host.activate("shaping", &prepared("shaping-default", CONFIG))
        .unwrap();
    let mut state = Bytes::new();
    let mut blocked = lane("mx.big.test");
    blocked.recent.attempts = 1;
    blocked.recent.replies = vec![ReplyCount {
        code: 451,
        enhanced: "4.7.1".to_owned(),
        sample: "low sender reputation\r\nsee https://x.test".to_owned(),
        count: 1,
    }];
    let p = plan(&host, &mut state, 0, &blocked).await;
    assert_eq!(
        p.limits.paused_until,
        Some(NOW.plus(Duration::from_secs(3600)))
    );
    let cause = p.limits.cause.unwrap();
    assert!(
        cause.contains("451 low sender reputation") && !cause.contains('\n'),
        "{cause:?}"
    );
    let quiet = plan(&host, &mut state, 1800, &lane("mx.big.test")).await;
    assert_eq!(quiet.limits.paused_until, p.limits.paused_until);
    let after = plan(&host, &mut state, 3600, &lane("mx.big.test")).await;
    assert_eq!(after.limits.paused_until, None);
}

#[tokio::test]
async fn a_new_lane_warms_up_and_doubles_each_day() {
    let host = host();
    host.activate("shaping", &prepared("shaping-default", CONFIG))
        .unwrap();
    let mut state = Bytes::new();
    let mut per_day = Vec::new();
    for day in [0, 1, 2, 5, 13, 20] {
        let mut l = lane("new.test");
        l.sending_since = Some(NOW);
        let p = plan(&host, &mut state, day * 86_400, &l).await;
        let rate = p.limits.rate.unwrap();
        per_day.push(86_400_000 / u64::from(rate.per_ms) * u64::from(rate.messages));
        assert_eq!(p.limits.cause.is_some(), day < 14, "day {day}");
    }
    assert_eq!(per_day, [100, 200, 400, 3_200, 777_600, 864_000]);
}

#[tokio::test]
async fn two_hundred_and_fifty_six_lanes_fit_and_more_are_refused() {
    let host = host();
    host.activate("shaping", &prepared("shaping-default", CONFIG))
        .unwrap();
    let lanes: Vec<_> = (0..256).map(|n| lane(&format!("mx{n}.big.test"))).collect();
    let plan = host
        .plan(NOW, Bytes::from_static(b"not json"), lanes.clone())
        .await
        .unwrap();
    assert_eq!(plan.lanes.len(), 256);
    let again = host.plan(NOW, plan.state, lanes.clone()).await.unwrap();
    assert!(again.state.len() <= 64 * 1024);
    let mut many = lanes;
    many.push(lane("one.more"));
    assert!(matches!(
        host.plan(NOW, Bytes::new(), many).await,
        Err(PolicyFault::Broken(_))
    ));
}

#[tokio::test]
async fn no_policy_is_said_so_and_a_wrong_world_is_refused() {
    let host = host();
    assert_eq!(
        host.plan(NOW, Bytes::new(), vec![lane("x")]).await,
        Err(PolicyFault::Inactive)
    );
    let error = host
        .activate("shaping", &prepared("routing-default", ""))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("runs a shaping-policy") && error.contains("is a routing-policy"),
        "{error}"
    );
    assert!(
        host.activate("shapes", &prepared("routing-default", ""))
            .is_err()
    );
}

#[test]
fn a_bad_configuration_names_the_key() {
    for (config, words) in [
        (r#"{"sites":[{"site":"*","rate":"fast"}]}"#, "sites[0].rate"),
        (
            r#"{"sites":[{"site":"*","warm_up":{"start":"5/day"}}]}"#,
            "sites[0].warm_up",
        ),
        (r#"{"back_off":{"factor":2}}"#, "back_off.factor"),
        (r#"{"pause":[{"minutes":5}]}"#, "pause[0]"),
        (r#"{"temporary":[{"code":550}]}"#, "temporary[0]"),
        (
            r#"{"temporary":[{"code":450,"text":"x"}]}"#,
            "temporary[0].code",
        ),
        (r#"{"colour":1}"#, "colour"),
    ] {
        match try_prepare(&plugin("shaping-default"), config) {
            Err(Refused::Config(text)) => assert!(text.contains(words), "{config}: {text}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn replies_that_are_limits_in_truth_come_with_the_plan() {
    let host = host();
    let config = r#"{ "temporary": [
        { "code": 550, "text": "Rate Limit", "site": "*.big.test" },
        { "enhanced": "5.7.28" }
    ] }"#;
    host.activate("shaping", &prepared("shaping-default", config))
        .unwrap();
    let plan = host
        .plan(NOW, Bytes::new(), vec![lane("mx.big.test")])
        .await
        .unwrap();
    let rules = plan.rules.unwrap();
    assert_eq!(rules.rules.len(), 2);
    let read = |site: &str, enhanced: Enhanced, text: &str| {
        let outcome = Outcome::from_reply(Stage::Rcpt, Reply::new(550, enhanced, text));
        rules.read(site, outcome).verdict
    };
    let status = Enhanced::new(5, 7, 1);
    assert_eq!(
        read("mx.big.test", status, "rate limit hit"),
        Verdict::Temporary
    );
    assert_eq!(
        read("mx.test", status, "rate limit hit"),
        Verdict::Permanent
    );
    let status = Enhanced::new(5, 7, 28);
    assert_eq!(read("mx.test", status, "flooding"), Verdict::Temporary);
    let status = Enhanced::new(5, 1, 1);
    assert_eq!(
        read("mx.big.test", status, "rate limit hit"),
        Verdict::Permanent
    );
}
