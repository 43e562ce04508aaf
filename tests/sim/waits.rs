//! Waiting, for whatever reason, neither stretches the lifetime nor counts as an attempt.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::{EventKind, Notify};
use tidegate_queue::control::QueueQuery;
use tidegate_queue::directory::{Quota, Relay, Way};
use tidegate_queue::measure::{Effect, Measure, Scope};
use tidegate_queue::route::Managed;
use tidegate_queue::shape::{Limits, Rate, WaitReason};
use tidegate_queue::{Settings, TlsMode};

use crate::scenario::{POOL, START, Scenario};
use crate::steady::{HOUR, Steady, events, mail, notices, on_time, times};
use crate::world::{ByName, Manner, NEVER};
use WaitReason::Suspended;

const TO: &str = "someone@x.test";

/// Why a recipient waits, and how that is brought about.
struct Wait {
    name: &'static str,
    reason: WaitReason,
    manner: Manner,
    policy: Steady,
    measure: Option<Effect>,
    /// Whether there are attempts while it waits.
    attempted: bool,
}

impl Wait {
    fn new(name: &'static str, reason: WaitReason) -> Self {
        Wait {
            name,
            reason,
            manner: Manner::Accept,
            policy: Steady::default(),
            measure: None,
            attempted: false,
        }
    }
}

fn measure(effect: Effect) -> Measure {
    let scope = Scope {
        domain: Some("x.test".into()),
        ..Scope::default()
    };
    Measure::new("measure", scope, effect, "a test", START)
}

fn shaped(limits: Limits) -> Steady {
    Steady {
        managed: Managed {
            class: tidegate_mail::TrafficClass::Bulk,
            ..Managed::default()
        },
        limits: Limits {
            ttl: 24 * 3600,
            ..limits
        },
        temporary: Vec::new(),
    }
}

fn waits() -> Vec<Wait> {
    use WaitReason::{Concurrency, Held, RelayDown, RetrySchedule};
    vec![
        Wait {
            manner: Manner::Greylist(NEVER),
            attempted: true,
            ..Wait::new("deferred", RetrySchedule)
        },
        Wait {
            manner: Manner::Unreachable(NEVER),
            attempted: true,
            ..Wait::new("no host answers", RetrySchedule)
        },
        Wait {
            manner: Manner::BrokenDns(NEVER),
            attempted: true,
            ..Wait::new("no DNS", WaitReason::Dns)
        },
        Wait {
            policy: shaped(Limits {
                rate: Some(Rate {
                    messages: 1,
                    per_ms: u32::MAX,
                }),
                burst: 1,
                ..Limits::default()
            }),
            ..Wait::new("throttled", WaitReason::Rate)
        },
        Wait {
            policy: shaped(Limits::default()),
            ..Wait::new("its tenant's quota is used up", WaitReason::Quota)
        },
        Wait {
            policy: shaped(Limits {
                paused_until: Some(START.plus(HOUR * 24 * 7)),
                ..Limits::default()
            }),
            ..Wait::new("paused by its plan", Suspended)
        },
        Wait {
            policy: shaped(Limits {
                connections: 0,
                ..Limits::default()
            }),
            ..Wait::new("given no connection by its plan", Concurrency)
        },
        Wait {
            measure: Some(Effect::Suspend),
            ..Wait::new("suspended", Suspended)
        },
        Wait {
            measure: Some(Effect::Hold),
            ..Wait::new("held", Held)
        },
        Wait {
            policy: Steady {
                managed: Managed {
                    relay: Some("gone".into()),
                    ..Managed::default()
                },
                ..Steady::default()
            },
            ..Wait::new("its relay is gone", RelayDown)
        },
    ]
}

#[tokio::test]
async fn every_wait_ends_with_the_lifetime() {
    for wait in waits() {
        let name = wait.name;
        let scenario = Scenario::with(Settings::default(), Arc::new(wait.policy)).await;
        scenario.world.set("x.test", wait.manner);
        if let Some(effect) = wait.measure {
            let put = scenario.engine().put_measure(measure(effect)).await;
            put.expect("a measure");
        }
        if wait.reason == WaitReason::Quota {
            scenario.put_directory(|tenant, _| {
                tenant.bulk_quota = Some(Quota {
                    recipients: 1,
                    window_secs: 7 * 24 * 3600,
                });
            });
        }
        if matches!(wait.reason, WaitReason::Rate | WaitReason::Quota) {
            // Takes the only token of the lane, or all of the quota.
            scenario
                .submit(mail(&[("first@x.test", Notify::Never)]))
                .await;
            scenario.pass(Duration::from_secs(1)).await;
            scenario.clock.set(START);
        }
        let (id, reply) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
        assert_eq!(reply.code, 250, "{name}: {reply}");
        scenario.pass(HOUR).await;
        let waiting = scenario.engine().queue(QueueQuery::default()).await;
        let waiting = waiting.expect("a listing");
        assert_eq!(waiting.len(), 1, "{name}");
        assert_eq!(waiting[0].reason, Some(wait.reason), "{name}");
        // When it moves next is known where time decides.
        let timed = !matches!(
            wait.reason,
            WaitReason::Held | WaitReason::Concurrency | WaitReason::Suspended
        ) || (wait.reason == Suspended && wait.measure.is_none());
        let next = waiting[0].next;
        assert_eq!(next.is_some(), timed, "{name}: {next:?}");
        let now = START.plus(HOUR);
        assert!(
            next.is_none_or(|at| at >= now && at <= START.plus(HOUR * 48)),
            "{name}: {next:?}"
        );
        assert_eq!(waiting[0].attempts > 0, wait.attempted, "{name}");
        scenario.pass(HOUR * 49).await;

        let log = events(&scenario, id).await;
        let expired = times(&log, EventKind::Expired);
        assert!(on_time(&expired, HOUR * 48), "{name}: {expired:?}");
        let deferred = times(&log, EventKind::Deferred);
        assert_eq!(!deferred.is_empty(), wait.attempted, "{name}: {deferred:?}");
        let delayed = times(&log, EventKind::DelayNotified);
        let told: Vec<Option<String>> = notices(&scenario)
            .iter()
            .map(|(n, _)| n.recipients[0].status.map(|s| s.to_string()))
            .collect();
        if wait.reason == WaitReason::RelayDown {
            // The notices take the built-in relay, which is there.
            assert_eq!(told.len(), 2, "{name}");
        }
        assert!(on_time(&delayed, HOUR * 4), "{name}: {delayed:?}");
        assert_eq!(told.last(), Some(&Some("4.4.7".to_owned())), "{name}");
        assert_eq!(times(&log, EventKind::DsnSent).len(), 1, "{name}");
        let counts = scenario.store().counts().await.expect("counts");
        assert_eq!(counts.recipients, 0, "{name}: nothing is left behind");
    }
}

#[tokio::test]
async fn a_hold_in_the_middle_does_not_stretch_the_lifetime() {
    let scenario = Scenario::with(Settings::default(), Arc::new(Steady::default())).await;
    scenario.world.set("x.test", Manner::Greylist(NEVER));
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(HOUR).await;
    let before = scenario.world.attempts_for(TO).len();
    let put = scenario.engine().put_measure(measure(Effect::Hold)).await;
    put.expect("a measure");
    scenario.pass(HOUR * 46).await;
    assert_eq!(scenario.world.attempts_for(TO).len(), before, "held");
    let engine = scenario.engine();
    let lifted = engine.lift_measure("measure", "operator", "", None).await;
    assert!(lifted.expect("lifted").is_some());
    scenario.pass(HOUR * 3).await;
    assert!(
        scenario.world.attempts_for(TO).len() > before,
        "tried again"
    );
    let log = events(&scenario, id).await;
    assert!(on_time(&times(&log, EventKind::Expired), HOUR * 48));
    // The attempts are counted on as if there had been no hold.
    let last = log.iter().filter_map(|e| e.detail.attempt).max();
    assert_eq!(last, Some(scenario.world.attempts_for(TO).len() as u32));
}

#[tokio::test]
async fn a_lifetime_that_ended_while_the_gateway_was_down_ends_at_its_start() {
    let mut scenario = Scenario::new().await;
    scenario.world.set("x.test", Manner::Greylist(NEVER));
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(HOUR).await;
    let before = scenario.world.attempts_for(TO).len();
    scenario.clock.set(START.plus(HOUR * 60));
    scenario.restart().await;
    scenario.pass(HOUR).await;
    assert_eq!(scenario.world.attempts_for(TO).len(), before, "no attempt");
    let log = events(&scenario, id).await;
    assert!(on_time(&times(&log, EventKind::Expired), HOUR * 60));
    assert!(times(&log, EventKind::DelayNotified).is_empty(), "too late");
    assert_eq!(notices(&scenario).len(), 1);
}

#[tokio::test]
async fn attempts_follow_the_schedule_within_a_tenth() {
    let scenario = Scenario::with(Settings::default(), Arc::new(Steady::default())).await;
    scenario.world.set("x.test", Manner::Later(NEVER));
    for n in 0..20 {
        let address = format!("r{n}@x.test");
        scenario.submit(mail(&[(&address, Notify::Never)])).await;
    }
    scenario.pass(HOUR * 50).await;
    let minutes = [1, 2, 5, 10, 15, 30, 60, 120];
    let mut first_waits = Vec::new();
    for n in 0..20 {
        let at = scenario.world.attempts_for(&format!("r{n}@x.test"));
        assert!((18..=21).contains(&at.len()), "{} attempts", at.len());
        assert_eq!(at[0], START, "the first at once");
        for (k, pair) in at.windows(2).enumerate() {
            let wait = pair[1].since(pair[0]).as_secs_f64();
            let planned = f64::from(*minutes.get(k).unwrap_or(&240)) * 60.0;
            assert!((0.9..1.1001).contains(&(wait / planned)), "{k}: {wait} s");
        }
        first_waits.push(at[1].since(at[0]));
    }
    first_waits.sort();
    first_waits.dedup();
    assert!(first_waits.len() > 15, "they spread: {first_waits:?}");
}

#[tokio::test]
async fn greylisted_mail_comes_back_from_the_same_address() {
    let policy = Steady {
        managed: Managed {
            relay: Some(POOL.into()),
            ..Managed::default()
        },
        ..Steady::default()
    };
    let mut scenario = Scenario::with(Settings::default(), Arc::new(policy)).await;
    let domains: Vec<String> = (0..12).map(|n| format!("d{n}.test")).collect();
    for domain in &domains {
        scenario.world.set(domain, Manner::Greylist(3));
        let address = format!("a@{domain}");
        scenario.submit(mail(&[(&address, Notify::Never)])).await;
    }
    scenario.pass(Duration::from_secs(300)).await;
    // Nor does a restart change it.
    scenario.restart().await;
    scenario.pass(HOUR * 4).await;
    let mut used = Vec::new();
    for domain in &domains {
        let sources = scenario.world.sources_for(&format!("a@{domain}"));
        assert_eq!(sources.len(), 4, "{domain}");
        assert!(sources[0].is_some());
        assert!(sources.iter().all(|s| *s == sources[0]), "{sources:?}");
        used.push(sources[0]);
    }
    used.sort();
    used.dedup();
    assert!(used.len() > 1, "all addresses of the pool serve");
}

#[tokio::test]
async fn a_policy_may_shorten_the_promise_and_never_stretch_it() {
    for (asked, granted) in [(600, 600), (HOUR.as_secs() as u32 * 1000, 48 * 3600)] {
        let policy = Steady {
            managed: Managed {
                expire_after_secs: Some(asked),
                delay_notice_secs: Some(0),
                ..Managed::default()
            },
            ..Steady::default()
        };
        let scenario = Scenario::with(Settings::default(), Arc::new(policy)).await;
        scenario.world.set("x.test", Manner::Greylist(NEVER));
        let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
        scenario.pass(HOUR * 50).await;
        let log = events(&scenario, id).await;
        let expired = times(&log, EventKind::Expired);
        assert!(
            on_time(&expired, Duration::from_secs(granted)),
            "{expired:?}"
        );
        assert!(times(&log, EventKind::DelayNotified).is_empty());
        let promise = log.iter().find_map(|e| e.detail.promise.clone());
        let promise = promise.expect("the terms are in the log");
        assert_eq!(u64::from(promise.lifetime_secs), granted);
        assert_eq!(promise.delay_notice_secs, None);
    }
}

#[tokio::test]
async fn a_policy_may_have_a_delay_told_earlier_and_never_later() {
    let two = 2 * 3600;
    for (operator, asked, granted) in [
        (Some(4 * 3600), two, Some(two)),
        (Some(4 * 3600), 10 * 3600, Some(4 * 3600)),
        (None, two, None),
    ] {
        let policy = Steady {
            managed: Managed {
                delay_notice_secs: Some(asked),
                ..Managed::default()
            },
            ..Steady::default()
        };
        let mut settings = Settings::default();
        settings.ceilings.delay_notice_secs = operator;
        let scenario = Scenario::with(settings, Arc::new(policy)).await;
        scenario.world.set("x.test", Manner::Greylist(NEVER));
        let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
        scenario.pass(HOUR * 12).await;
        let log = events(&scenario, id).await;
        let told = times(&log, EventKind::DelayNotified);
        match granted {
            Some(secs) => assert!(on_time(&told, Duration::from_secs(secs.into())), "{told:?}"),
            None => assert!(told.is_empty(), "{told:?}"),
        }
        let promise = log.iter().find_map(|e| e.detail.promise.clone());
        assert_eq!(promise.and_then(|p| p.delay_notice_secs), granted);
    }
}

#[tokio::test]
async fn a_plan_may_give_another_schedule() {
    let policy = shaped(Limits {
        retry_after: vec![30, 90],
        ..Limits::default()
    });
    let scenario = Scenario::with(Settings::default(), Arc::new(policy)).await;
    scenario.world.set("x.test", Manner::Later(NEVER));
    scenario.submit(mail(&[(TO, Notify::Never)])).await;
    scenario.pass(HOUR).await;
    let at = scenario.world.attempts_for(TO);
    for (k, pair) in at.windows(2).enumerate() {
        let wait = pair[1].since(pair[0]).as_secs_f64();
        let planned = if k == 0 { 30.0 } else { 90.0 };
        assert!((0.9..1.1001).contains(&(wait / planned)), "{k}: {wait} s");
    }
    assert!(at.len() > 35, "{} attempts", at.len());
}

#[tokio::test]
async fn a_refusal_that_a_policy_knows_for_a_limit_is_retried_and_the_log_has_both() {
    let mut policy = shaped(Limits::default());
    policy.temporary = vec![tidegate_queue::shape::ReplyRule {
        text: Some("rate limit".to_owned()),
        ..Default::default()
    }];
    let scenario = Scenario::with(Settings::default(), Arc::new(policy)).await;
    scenario.world.set("x.test", Manner::Limits(2));
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    // A refusal of the address itself stays one.
    scenario.world.set("y.test", Manner::Refuse);
    let (refused, _) = scenario.submit(mail(&[("b@y.test", Notify::Never)])).await;
    scenario.pass(HOUR).await;
    assert_eq!(scenario.world.delivered().len(), 1);
    assert!(notices(&scenario).is_empty());
    let log = events(&scenario, id).await;
    let steps: Vec<_> = log.iter().filter(|e| e.detail.verdict.is_some()).collect();
    assert_eq!(steps.len(), 3);
    for step in &steps[..2] {
        assert_eq!(step.kind, EventKind::Deferred);
        assert_eq!(step.detail.code, Some(550), "the reply as it was");
        let text = step.detail.text.as_deref().expect("a text");
        assert!(text.contains("550 5.7.1 Rate limit exceeded"), "{text}");
        assert_eq!(step.detail.verdict, Some(tidegate_mail::Verdict::Temporary));
        let taken = ("taken as".to_owned(), "temporary".to_owned());
        assert!(step.detail.facts.contains(&taken));
    }
    assert_eq!(steps[2].kind, EventKind::Delivered);
    let log = events(&scenario, refused).await;
    assert!(log.iter().any(|e| e.kind == EventKind::Bounced));
}

#[tokio::test]
async fn a_lost_final_reply_is_retried_and_logged_as_uncertain() {
    let scenario = Scenario::with(Settings::default(), Arc::new(ByName::default())).await;
    scenario.world.set("x.test", Manner::LosesReplies(1));
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(HOUR).await;
    let copies = scenario.world.delivered();
    assert_eq!(copies.len(), 2, "a duplicate is possible, a loss is not");
    let log = events(&scenario, id).await;
    let tries: Vec<_> = log
        .iter()
        .filter(|e| matches!(e.kind, EventKind::Deferred | EventKind::Delivered))
        .map(|e| (e.kind, e.detail.verdict.expect("a verdict")))
        .collect();
    use tidegate_mail::Verdict;
    assert_eq!(
        tries,
        [
            (EventKind::Deferred, Verdict::Uncertain),
            (EventKind::Delivered, Verdict::Delivered)
        ]
    );
    assert!(notices(&scenario).is_empty());
}

#[tokio::test]
async fn a_site_that_does_not_answer_is_not_asked_for_each_message() {
    let scenario = Scenario::with(Settings::default(), Arc::new(Steady::default())).await;
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    for n in 0..40 {
        let address = format!("r{n}@x.test");
        scenario.submit(mail(&[(&address, Notify::Never)])).await;
    }
    scenario.pass(Duration::from_secs(30)).await;
    let asked = |n: usize| scenario.world.attempts_for(&format!("r{n}@x.test")).len();
    let tried = (0..40).filter(|n| asked(*n) > 0).count();
    assert!(
        tried < 40,
        "{tried} of 40 were tried in the first half minute"
    );
    let waiting = scenario.engine().queue(QueueQuery::default()).await;
    let backed_off = waiting
        .expect("a listing")
        .iter()
        .filter(|e| e.reason == Some(WaitReason::SiteBackoff))
        .count();
    assert_eq!(backed_off, 40 - tried);
    // Others are not concerned.
    scenario.submit(mail(&[("a@y.test", Notify::Never)])).await;
    scenario.pass(Duration::from_secs(1)).await;
    assert_eq!(scenario.world.delivered().len(), 1);
    scenario.pass(HOUR * 50).await;
    assert_eq!(scenario.engine().stats().expired, 40);
}

#[tokio::test]
async fn what_waits_for_a_smarthost_that_is_down_says_so() {
    let policy = Steady {
        managed: Managed {
            relay: Some("partner".into()),
            ..Managed::default()
        },
        ..Steady::default()
    };
    let scenario = Scenario::with(Settings::default(), Arc::new(policy)).await;
    scenario.put_directory(|tenant, relays| {
        tenant.relays = vec!["partner".into()];
        relays.push(Relay {
            name: "partner".into(),
            way: Way::Smarthost {
                host: "smarthost.test".into(),
                port: 25,
                tls: TlsMode::None,
                user: None,
                sealed_password: None,
            },
        });
    });
    scenario
        .world
        .set("smarthost.test", Manner::Unreachable(NEVER));
    for n in 0..5 {
        let address = format!("r{n}@d{n}.test");
        scenario.submit(mail(&[(&address, Notify::Never)])).await;
    }
    scenario.pass(Duration::from_secs(20)).await;
    let waiting = scenario.engine().queue(QueueQuery::default()).await;
    let waiting = waiting.expect("a listing");
    assert_eq!(waiting.len(), 5);
    let tried = waiting.iter().filter(|e| e.attempts > 0).count();
    assert!(
        (1..5).contains(&tried),
        "{tried} were tried, the others wait for the relay"
    );
    for entry in &waiting {
        assert_eq!(entry.reason, Some(WaitReason::RelayDown), "{entry:?}");
    }
    // The destination's refusal is none of the relay's doing.
    scenario
        .world
        .set("smarthost.test", Manner::Greylist(NEVER));
    scenario.pass(HOUR).await;
    let waiting = scenario.engine().queue(QueueQuery::default()).await;
    for entry in waiting.expect("a listing") {
        assert_eq!(entry.reason, Some(WaitReason::RetrySchedule), "{entry:?}");
    }
}

#[tokio::test]
async fn mail_beside_a_long_queue_is_delivered_from_memory() {
    let settings = Settings {
        content_budget: 20_000,
        ..Settings::default()
    };
    let scenario = Scenario::with(settings, Arc::new(ByName::default())).await;
    scenario.world.set("dark.test", Manner::Unreachable(NEVER));
    let dark = [("someone@dark.test", Notify::Absent)];
    let fine = [("someone@fine.test", Notify::Absent)];
    let second = Duration::from_secs(1);
    let read = |scenario: &Scenario| {
        let calls = scenario.crash.calls();
        calls.get("messages").copied().unwrap_or(0)
    };
    let submit = async |to: &[(&str, Notify)]| {
        let (_, reply) = scenario.submit(mail(to)).await;
        assert_eq!(reply.code, 250, "{reply:?}");
    };
    // More than there is memory for, before it is known that nobody answers.
    for _ in 0..100 {
        submit(&dark).await;
    }
    scenario.pass(second * 10).await;
    let before = read(&scenario);
    for _ in 0..20 {
        // And more, now that it is known.
        for _ in 0..5 {
            submit(&dark).await;
        }
        submit(&fine).await;
        scenario.pass(second).await;
    }
    assert_eq!(read(&scenario), before, "messages read back");
    let left = scenario.store().counts().await.expect("counts").recipients;
    assert_eq!(left, 200, "only mail that nobody takes is left");
}
