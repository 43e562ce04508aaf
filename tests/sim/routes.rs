//! What the routing answer makes of a message: classes, and passthrough beside managed mail.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{Enhanced, EventKind, Notify, Reply, Timestamp, TrafficClass};
use tidegate_queue::route::{Action, AfterFailure, Managed, Occasion, Question, Routing};
use tidegate_queue::shape::{LaneState, Plan};
use tidegate_queue::*;

use crate::scenario::{Mail, Scenario};
use crate::steady::{HOUR, Steady, events, mail, notices, times};
use crate::world::Manner;

const TO: &str = "someone@x.test";

#[tokio::test]
async fn bulk_that_only_the_policy_calls_so_is_suspended_too() {
    let mail_of = |bulk| Mail {
        bulk,
        ..mail(&[(TO, Notify::Absent)])
    };
    let raising = Steady {
        managed: Managed {
            class: tidegate_mail::TrafficClass::Bulk,
            ..Managed::default()
        },
        ..Steady::default()
    };
    for (policy, bulk, code) in [
        (Steady::default(), false, 250),
        (Steady::default(), true, 550),
        (raising, false, 550),
    ] {
        let policy: Arc<dyn Policy> = Arc::new(policy);
        let scenario = Scenario::with(Settings::default(), policy).await;
        scenario.suspend_bulk();
        let (_, reply) = scenario.submit(mail_of(bulk)).await;
        assert_eq!(reply.code, code, "{reply}");
    }
}

#[tokio::test]
async fn what_makes_a_message_bulk() {
    let many: Vec<String> = (0..101).map(|n| format!("r{n}@x.test")).collect();
    let many: Vec<(&str, Notify)> = many.iter().map(|r| (r.as_str(), Notify::Never)).collect();
    let one = [(TO, Notify::Never)];
    let raising = Managed {
        class: TrafficClass::Bulk,
        ..Managed::default()
    };
    for (to, headers, credential, managed, expected) in [
        (&one[..], "", false, None, TrafficClass::Transactional),
        (&one[..], "", true, None, TrafficClass::Bulk),
        (&one[..], "", false, Some(raising), TrafficClass::Bulk),
        (&many[..100], "", false, None, TrafficClass::Transactional),
        (&many[..], "", false, None, TrafficClass::Bulk),
        (
            &one[..],
            "List-Id: <a.b>\r\n",
            false,
            None,
            TrafficClass::Bulk,
        ),
        (
            &one[..],
            "Precedence: bulk\r\n",
            false,
            None,
            TrafficClass::Bulk,
        ),
        (
            &one[..],
            "X-Campaign: 7\r\n",
            false,
            None,
            TrafficClass::Bulk,
        ),
        // A policy that says "transactional" lowers nothing.
        (
            &one[..],
            "",
            true,
            Some(Managed::default()),
            TrafficClass::Bulk,
        ),
    ] {
        let settings = Settings {
            campaign_header: Some("X-Campaign".into()),
            ..Settings::default()
        };
        let policy = Steady {
            managed: managed.unwrap_or_default(),
            ..Steady::default()
        };
        let scenario = Scenario::with(settings, Arc::new(policy)).await;
        let submitted = Mail {
            headers,
            subject: None,
            bulk: credential,
            ..mail(to)
        };
        let (id, _) = scenario.submit(submitted).await;
        let log = events(&scenario, id).await;
        let promise = log.iter().find_map(|e| e.detail.promise.as_ref());
        let class = promise.expect("the terms").class;
        assert_eq!(class, expected, "{} {headers:?} {credential}", to.len());
    }
}

/// Routes by the recipient's local part.
struct ByRecipient;

impl Policy for ByRecipient {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        let own = |after_failure| Action::Passthrough {
            server: "own".into(),
            after_failure,
        };
        let mut routing = Routing::all(
            Action::Managed(Managed::default()),
            question.envelope.recipients.len(),
        );
        routing.actions.extend([
            own(AfterFailure::GiveUp),
            own(AfterFailure::GiveUpAndNotify),
            own(AfterFailure::ManagedRelay),
            Action::Defer(Reply::new(451, Enhanced::new(4, 7, 1), "not now")),
        ]);
        for (at, r) in question.envelope.recipients.iter().enumerate() {
            let local = r.address.as_str().split('@').next().unwrap_or_default();
            let kinds = ["managed", "own", "notify", "relay", "later"];
            let action = match question.occasion {
                Occasion::PassthroughFailed(_) => 0,
                _ => kinds.iter().position(|k| *k == local).unwrap_or(0),
            };
            routing.of_recipient[at] = action as u32;
        }
        Box::pin(std::future::ready(routing))
    }

    fn plan(
        &self,
        _now: Timestamp,
        _state: Bytes,
        _lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        Box::pin(std::future::ready(Err(PolicyFault::Inactive)))
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

#[tokio::test]
async fn any_defer_defers_the_whole_message() {
    let scenario = Scenario::with(Settings::default(), Arc::new(ByRecipient)).await;
    let to = ["managed@x.test", "own@y.test", "later@z.test"];
    let (_, reply) = scenario
        .submit(mail(&to.map(|a| (a, Notify::Absent))))
        .await;
    assert_eq!((reply.code, reply.text.as_str()), (451, "not now"));
    scenario.pass(HOUR).await;
    assert!(scenario.world.delivered().is_empty());
    assert!(scenario.world.attempts_for("own@y.test").is_empty());
    let counts = scenario.store().counts().await.expect("counts");
    assert_eq!((counts.messages, counts.recipients), (0, 0));
}

#[tokio::test]
async fn what_is_done_when_the_tenant_s_server_does_not_take_it() {
    for (manner, code) in [(Manner::Refuse, 550), (Manner::Greylist(9), 450)] {
        for (to, replied, failed, arrived) in [
            (&["own@y.test"][..], code, 0, 0),
            (&["notify@y.test"], 250, 1, 0),
            (&["relay@y.test"], 250, 0, 1),
            (&["own@y.test", "managed@x.test"], 250, 1, 1),
            (&["own@y.test", "relay@y.test"], 250, 1, 1),
        ] {
            let scenario = Scenario::with(Settings::default(), Arc::new(ByRecipient)).await;
            scenario.world.set("own-server.test", manner.clone());
            let to: Vec<(&str, Notify)> = to.iter().map(|a| (*a, Notify::Absent)).collect();
            let (id, reply) = scenario.submit(mail(&to)).await;
            assert_eq!(reply.code, replied, "{to:?} {manner:?}: {reply}");
            scenario.pass(HOUR).await;
            assert_eq!(notices(&scenario).len(), failed, "{to:?} {manner:?}");
            let delivered = scenario.world.delivered();
            let mails = delivered
                .iter()
                .filter(|d| to.iter().any(|t| t.0 == d.recipient));
            assert_eq!(mails.count(), arrived, "{to:?} {manner:?}");
            // The gateway records that it tried, and not what came of it.
            let log = events(&scenario, id).await;
            let tried: Vec<_> = log
                .iter()
                .filter(|e| e.kind == EventKind::PassthroughTried)
                .collect();
            assert!(!tried.is_empty());
            assert!(
                tried
                    .iter()
                    .all(|e| e.detail.code.is_none() && e.detail.text.is_none())
            );
        }
    }
}

#[tokio::test]
async fn nobody_is_told_who_asked_not_to_be() {
    let scenario = Scenario::with(Settings::default(), Arc::new(ByRecipient)).await;
    scenario.world.set("own-server.test", Manner::Refuse);
    let (id, reply) = scenario
        .submit(mail(&[("notify@y.test", Notify::Never)]))
        .await;
    assert_eq!(reply.code, 250);
    scenario.pass(Duration::from_secs(60)).await;
    assert!(notices(&scenario).is_empty());
    let log = events(&scenario, id).await;
    assert_eq!(times(&log, EventKind::PassthroughTried).len(), 1);
    let counts = scenario.store().counts().await.expect("counts");
    assert_eq!(counts.recipients, 0);
}
