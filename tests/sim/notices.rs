//! Who is told what, when and how often (RFC 3461, 3464, 3834).

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::dsn::Action;
use tidegate_mail::{EventKind, Notify};
use tidegate_queue::Settings;

use crate::scenario::{Mail, START, Scenario};
use crate::steady::{HOUR, SENDER, Steady, events, mail, notices, on_time, times};
use crate::world::{Manner, NEVER};

const TO: &str = "someone@x.test";
pub const NOTIFY: [Notify; 9] = [
    Notify::Absent,
    Notify::Never,
    on(true, false, false),
    on(false, true, false),
    on(false, false, true),
    on(true, true, false),
    on(true, false, true),
    on(false, true, true),
    on(true, true, true),
];

const fn on(success: bool, failure: bool, delay: bool) -> Notify {
    Notify::On {
        success,
        failure,
        delay,
    }
}

async fn steady() -> Scenario {
    Scenario::with(Settings::default(), Arc::new(Steady::default())).await
}

fn actions(scenario: &Scenario) -> Vec<Action> {
    let all = notices(scenario);
    assert!(all.iter().all(|(n, _)| n.recipients.len() == 1));
    all.iter().map(|(n, _)| n.recipients[0].action).collect()
}

#[tokio::test]
async fn notify_decides_what_the_sender_is_told() {
    for notify in NOTIFY {
        let (success, failure, delay) = match notify {
            Notify::Absent => (false, true, true),
            Notify::Never => (false, false, false),
            Notify::On {
                success,
                failure,
                delay,
            } => (success, failure, delay),
        };
        let when = |asked: bool, action| asked.then_some(action);
        for (manner, expected) in [
            (Manner::Accept, vec![when(success, Action::Relayed)]),
            (Manner::PassesDsnOn, vec![]),
            (Manner::Refuse, vec![when(failure, Action::Failed)]),
            (Manner::NoSuchDomain, vec![when(failure, Action::Failed)]),
            (
                Manner::Greylist(NEVER),
                vec![when(delay, Action::Delayed), when(failure, Action::Failed)],
            ),
            // Delivered after more than 4 hours.
            (
                Manner::Greylist(9),
                vec![when(delay, Action::Delayed), when(success, Action::Relayed)],
            ),
        ] {
            let scenario = steady().await;
            scenario.world.set("x.test", manner.clone());
            scenario.submit(mail(&[(TO, notify)])).await;
            scenario.pass(HOUR * 50).await;
            let expected: Vec<Action> = expected.into_iter().flatten().collect();
            assert_eq!(actions(&scenario), expected, "{notify:?} {manner:?}");
        }
    }
}

#[tokio::test]
async fn the_delay_is_told_once_at_four_hours_and_says_until_when() {
    let scenario = steady().await;
    scenario.world.set("x.test", Manner::Greylist(NEVER));
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(HOUR * 47).await;
    let log = events(&scenario, id).await;
    let delayed = times(&log, EventKind::DelayNotified);
    assert!(on_time(&delayed, HOUR * 4), "{delayed:?}");
    let told = notices(&scenario);
    assert_eq!(told.len(), 1);
    let until = told[0].0.recipients[0].will_retry_until;
    assert_eq!(until, Some(START.plus(HOUR * 48)));
    assert_eq!(told[0].0.arrival, Some(START));
}

#[tokio::test]
async fn delays_of_list_bulk_and_automatic_mail_are_told_only_where_asked_for() {
    for (headers, automatic) in [
        ("", false),
        ("Auto-Submitted: no\r\n", false),
        ("Precedence: first-class\r\n", false),
        ("List-Id: <news.acme.test>\r\n", true),
        ("List-Unsubscribe: <https://acme.test/u>\r\n", true),
        ("Precedence: bulk\r\n", true),
        ("Precedence: list\r\n", true),
        ("Precedence: junk\r\n", true),
        ("Auto-Submitted: auto-generated\r\n", true),
        ("Auto-Submitted: auto-replied; x=1\r\n", true),
    ] {
        for (notify, asked) in [
            (Notify::Absent, false),
            (on(false, true, false), false),
            (on(false, true, true), true),
        ] {
            let scenario = steady().await;
            scenario.world.set("x.test", Manner::Greylist(NEVER));
            let to = [(TO, notify)];
            let mail = Mail {
                headers,
                ..mail(&to)
            };
            scenario.submit(mail).await;
            scenario.pass(HOUR * 50).await;
            let mut expected = vec![Action::Failed];
            if asked || (!automatic && notify == Notify::Absent) {
                expected.insert(0, Action::Delayed);
            }
            assert_eq!(actions(&scenario), expected, "{headers:?} {notify:?}");
        }
    }
}

#[tokio::test]
async fn a_null_reverse_path_is_never_written_to() {
    for manner in [
        Manner::Accept,
        Manner::Refuse,
        Manner::NoSuchDomain,
        Manner::Greylist(NEVER),
    ] {
        let scenario = steady().await;
        scenario.world.set("x.test", manner);
        let to = [(TO, on(true, true, true))];
        let (id, reply) = scenario
            .submit(Mail {
                from: "",
                ..mail(&to)
            })
            .await;
        assert_eq!(reply.code, 250);
        scenario.pass(HOUR * 50).await;
        let log = events(&scenario, id).await;
        assert!(times(&log, EventKind::DsnSent).is_empty());
        assert!(times(&log, EventKind::DelayNotified).is_empty());
        assert_eq!(scenario.engine().stats().notices, 0);
    }
}

#[tokio::test]
async fn there_is_no_notice_about_a_notice() {
    for manner in [Manner::Refuse, Manner::Greylist(NEVER)] {
        let scenario = steady().await;
        scenario.world.set("x.test", Manner::Refuse);
        scenario.world.set("acme.test", manner);
        scenario.submit(mail(&[(TO, Notify::Absent)])).await;
        scenario.pass(HOUR * 100).await;
        let stats = scenario.engine().stats();
        assert_eq!((stats.notices, stats.bounced + stats.expired), (1, 2));
        let counts = scenario.store().counts().await.expect("counts");
        assert_eq!(counts.recipients, 0);
    }
}

#[tokio::test]
async fn one_notice_for_all_recipients_of_a_message_that_end_together() {
    let scenario = steady().await;
    scenario.world.set("x.test", Manner::Refuse);
    scenario.world.set("y.test", Manner::NoSuchDomain);
    scenario.world.set("slow.test", Manner::Greylist(NEVER));
    let to = [
        ("a@x.test", Notify::Absent),
        ("quiet@x.test", Notify::Never),
        ("b@x.test", on(false, true, false)),
        ("ok@z.test", Notify::Absent),
        ("c@y.test", Notify::Absent),
        ("s1@slow.test", Notify::Absent),
        ("s2@slow.test", Notify::Absent),
    ];
    let (id, _) = scenario.submit(mail(&to)).await;
    scenario.pass(HOUR * 50).await;
    let told: Vec<(Action, Vec<String>)> = notices(&scenario)
        .into_iter()
        .map(|(n, _)| {
            let action = n.recipients[0].action;
            assert!(n.recipients.iter().all(|r| r.action == action));
            let addresses = n.recipients.into_iter().map(|r| r.address);
            let addresses = addresses.map(|a| a.expect("an address").address);
            (action, addresses.collect())
        })
        .collect();
    let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            (Action::Failed, list(&["a@x.test", "b@x.test", "c@y.test"])),
            (Action::Delayed, list(&["s1@slow.test", "s2@slow.test"])),
            (Action::Failed, list(&["s1@slow.test", "s2@slow.test"])),
        ]
    );
    // The log names the notice for each recipient it is about.
    let log = events(&scenario, id).await;
    let named: Vec<_> = log.iter().filter_map(|e| e.detail.notice).collect();
    assert_eq!(named.len(), 7);
}

#[tokio::test]
async fn a_permanent_failure_is_told_at_once_with_the_server_s_words() {
    let scenario = steady().await;
    scenario.world.set("x.test", Manner::Refuse);
    let (id, _) = scenario.submit(mail(&[(TO, Notify::Absent)])).await;
    scenario.pass(Duration::from_secs(1)).await;
    let log = events(&scenario, id).await;
    assert!(on_time(&times(&log, EventKind::DsnSent), Duration::ZERO));
    let (report, text) = notices(&scenario).pop().expect("a notice");
    let r = &report.recipients[0];
    assert_eq!(r.status.expect("a status").to_string(), "5.1.1");
    assert_eq!(r.remote_mta.as_deref(), Some("mx.x.test"));
    let diagnostic = r.diagnostic.as_ref().expect("a diagnostic");
    assert_eq!(diagnostic.kind, "smtp");
    assert_eq!(diagnostic.text, "550 5.1.1 no such user");
    assert_eq!(report.message_id, Some(format!("{id}@crm.test")));
    assert!(text.contains(&format!("\r\nTo: <{SENDER}>\r\n")), "{text}");
    let expected = format!("\r\nIn-Reply-To: <{id}@crm.test>\r\n");
    assert!(text.contains(&expected), "{text}");
}

#[tokio::test]
async fn at_the_end_of_the_lifetime_the_last_real_reply_is_told() {
    let scenario = steady().await;
    scenario.world.set("x.test", Manner::Greylist(NEVER));
    scenario.submit(mail(&[(TO, on(false, true, false))])).await;
    scenario.pass(HOUR * 10).await;
    // From here on there is no reply any more.
    scenario.world.set("x.test", Manner::Unreachable(NEVER));
    scenario.pass(HOUR * 40).await;
    let (report, _) = notices(&scenario).pop().expect("a notice");
    let r = &report.recipients[0];
    assert_eq!(r.status.expect("a status").to_string(), "4.4.7");
    let diagnostic = r.diagnostic.as_ref().expect("a diagnostic");
    assert_eq!(diagnostic.text, "450 4.7.1 greylisted");
    assert_eq!(
        r.last_attempt.map(|at| at > START.plus(HOUR * 40)),
        Some(true)
    );
}

#[tokio::test]
async fn a_notice_owed_is_sent_once_whatever_crashes() {
    // The process dies before or after each of the first writing calls that follow the
    // acceptance, and starts again.
    for n in 0..5 {
        for after in [false, true] {
            let mut scenario = steady().await;
            scenario.world.set("x.test", Manner::Refuse);
            scenario.submit(mail(&[(TO, Notify::Absent)])).await;
            scenario.crash.arm(n, after);
            scenario.pass(Duration::from_secs(10)).await;
            scenario.restart().await;
            scenario.pass(HOUR).await;
            let mut ids: Vec<String> = notices(&scenario)
                .iter()
                .map(|(_, text)| {
                    let id = text.lines().find(|l| l.starts_with("Message-ID:"));
                    id.expect("a Message-ID").to_owned()
                })
                .collect();
            // A notice whose delivery was not settled before the crash is delivered twice, as
            // any mail is; it is still the same notice.
            assert!(ids.len() <= 2, "crash {n} {after}: {ids:?}");
            ids.dedup();
            assert_eq!(ids.len(), 1, "crash {n} {after}: {ids:?}");
        }
    }
}
