//! The default routing policy, as built, through the port that the queue calls.

mod support;

use support::*;
use tidegate_mail::{Reply, TrafficClass};
use tidegate_policy::{Fallback, Refused};
use tidegate_queue::Policy;
use tidegate_queue::route::{Action, AfterFailure, Managed, Occasion};

fn managed(action: &Action) -> &Managed {
    match action {
        Action::Managed(m) => m,
        other => panic!("not managed: {other:?}"),
    }
}

#[tokio::test]
async fn without_any_policy_mail_takes_the_default_relay() {
    let host = host();
    let routing = host
        .route(&question("acme", &["a@x.test", "b@y.test"]))
        .await;
    assert_eq!(routing.of_recipient, [0, 0]);
    assert_eq!(managed(routing.action(1)).relay, None);
    assert_eq!((routing.policy, routing.fallback), (None, None));
    assert!(host.wanted_headers("acme").is_empty());
}

#[tokio::test]
async fn an_empty_configuration_is_managed_and_keeps_the_class() {
    let host = host();
    let revision = prepared("routing-default", "");
    host.activate("routing", &revision).unwrap();
    let mut q = question("acme", &["a@x.test"]);
    q.class = TrafficClass::Bulk;
    let routing = host.route(&q).await;
    assert_eq!(routing.policy.as_deref(), Some(revision.digest.as_str()));
    assert_eq!(routing.fallback, None);
    assert_eq!(managed(routing.action(0)).class, TrafficClass::Bulk);
}

#[tokio::test]
async fn rules_split_a_message_by_recipient() {
    let host = host();
    let config = r#"{
        "rules": [
            { "recipient_domain": ["blocked.test"], "action": { "refuse": { "text": "not there" } } },
            { "sender_domain": ["staff.acme.example", ".deep.example"], "action": { "passthrough": { "server": "office", "after_failure": "managed" } } },
            { "recipient_domain": [".eu.test", "berlin.test"], "action": { "managed": { "relay": "eu", "priority": 3 } } },
            { "header": { "name": "X-Campaign" }, "action": { "managed": { "class": "bulk", "lane": "$header", "expire_after": 86400, "notify": 0 } } },
            { "recipient_domain": ["berlin.test"], "action": { "refuse": {} } }
        ]
    }"#;
    host.activate("routing/acme", &prepared("routing-default", config))
        .unwrap();
    assert_eq!(*host.wanted_headers("acme"), ["x-campaign".to_owned()]);
    assert!(host.wanted_headers("beta").is_empty());

    let mut q = question(
        "acme",
        &[
            "a@x.test",
            "b@blocked.test",
            "c@mail.eu.test",
            "d@eu.test",
            "e@berlin.test",
        ],
    );
    q.headers = vec![
        header("Subject", "ignored"),
        header("X-CAMPAIGN", " spring 2026 "),
    ];
    let routing = host.route(&q).await;
    assert_eq!(routing.fallback, None);
    let general = managed(routing.action(0));
    assert_eq!(general.class, TrafficClass::Bulk);
    assert_eq!(general.lane.as_deref(), Some("spring 2026"));
    assert_eq!(general.expire_after_secs, Some(86_400));
    assert_eq!(general.delay_notice_secs, Some(0));
    match routing.action(1) {
        Action::Refuse(reply) => assert_eq!(reply.to_string(), "550 5.7.1 not there"),
        other => panic!("{other:?}"),
    }
    let eu = managed(routing.action(2));
    assert_eq!((eu.relay.as_deref(), eu.priority), (Some("eu"), 3));
    assert_eq!(
        routing.of_recipient[3], 0,
        "a suffix is not the domain itself"
    );
    assert_eq!(
        routing.of_recipient[4], routing.of_recipient[2],
        "the first rule decides"
    );

    // A condition on the whole message, and what follows a failed passthrough.
    let mut q = question("acme", &["a@x.test", "c@mail.eu.test"]);
    let mut envelope = (*q.envelope).clone();
    envelope.reverse_path = Some("anna@Staff.acme.example".parse_address());
    q.envelope = envelope.into();
    let routing = host.route(&q).await;
    assert_eq!(
        *routing.action(0),
        Action::Passthrough {
            server: "office".to_owned(),
            after_failure: AfterFailure::ManagedRelay
        }
    );
    assert_eq!(
        routing.of_recipient,
        [0, 0],
        "the message's rule comes first"
    );
    q.occasion = Occasion::PassthroughFailed(Reply {
        code: 451,
        enhanced: None,
        text: "busy\nlater".to_owned(),
    });
    let routing = host.route(&q).await;
    assert_eq!(routing.fallback, None);
    managed(routing.action(0));
}

trait ParseAddress {
    fn parse_address(&self) -> tidegate_mail::Address;
}

impl ParseAddress for str {
    fn parse_address(&self) -> tidegate_mail::Address {
        tidegate_mail::Address::parse(self).unwrap()
    }
}

#[tokio::test]
async fn rules_by_class_tenant_and_header_value() {
    let host = host();
    let config = r#"{
        "default": { "defer": { "code": 450, "text": "office hours" } },
        "rules": [
            { "tenant": ["beta"], "class": "bulk", "action": { "refuse": { "code": 554, "enhanced": "5.7.0" } } },
            { "header": { "name": "X-Kind", "value": "Invoice" }, "action": { "managed": { "priority": 10 } } },
            { "header": { "name": "x-kind", "prefix": "news" }, "action": { "managed": { "class": "bulk" } } }
        ]
    }"#;
    host.activate("routing", &prepared("routing-default", config))
        .unwrap();
    let mut q = question("beta", &["a@x.test"]);
    let answer = host.route(&q).await;
    assert_eq!(answer.fallback, None);
    assert!(
        matches!(answer.action(0), Action::Defer(r) if r.code == 450),
        "{answer:?}"
    );
    q.class = TrafficClass::Bulk;
    assert!(matches!(host.route(&q).await.action(0), Action::Refuse(r) if r.code == 554));
    q.class = TrafficClass::Transactional;
    q.headers = vec![header("X-Kind", "letter"), header("X-Kind", "invoice")];
    assert_eq!(managed(host.route(&q).await.action(0)).priority, 10);
    q.headers = vec![header("X-Kind", "Newsletter")];
    assert_eq!(
        managed(host.route(&q).await.action(0)).class,
        TrafficClass::Bulk
    );
}

#[tokio::test]
async fn ten_thousand_domains_find_their_rule() {
    let host = host();
    let rules: Vec<String> = (0..10_000)
        .map(|n| {
            format!(
                r#"{{"recipient_domain":["d{n}.test"],"action":{{"managed":{{"lane":"l{n}"}}}}}}"#
            )
        })
        .collect();
    let config = format!(r#"{{"rules":[{}]}}"#, rules.join(","));
    host.activate("routing", &prepared("routing-default", &config))
        .unwrap();
    let routing = host
        .route(&question(
            "acme",
            &["a@d0.test", "b@d9999.test", "c@d77.test", "d@none.test"],
        ))
        .await;
    assert_eq!(routing.fallback, None);
    let lanes: Vec<_> = (0..4)
        .map(|n| managed(routing.action(n)).lane.clone())
        .collect();
    let lane = |n: &str| Some(n.to_owned());
    assert_eq!(lanes, [lane("l0"), lane("l9999"), lane("l77"), None]);
}

#[tokio::test]
async fn a_thousand_recipients_are_decided_in_one_call() {
    let host = host();
    let config =
        r#"{"rules":[{"recipient_domain":["odd.test"],"action":{"managed":{"lane":"odd"}}}]}"#;
    host.activate("routing", &prepared("routing-default", config))
        .unwrap();
    let addresses: Vec<String> = (0..1000)
        .map(|n| format!("r{n}@{}.test", if n % 2 == 1 { "odd" } else { "even" }))
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let routing = host.route(&question("acme", &addresses)).await;
    assert_eq!(routing.fallback, None);
    assert!((0..1000).all(|n| routing.of_recipient[n] == (n % 2) as u32));
}

/// What is not the tenant's to use is an invalid answer, and then the fallback decides.
#[tokio::test]
async fn relays_and_servers_must_be_granted() {
    let other_relay = r#"{"default":{"managed":{"relay":"secret"}}}"#;
    let other_server = r#"{"default":{"passthrough":{"server":"theirs"}}}"#;
    let address = r#"{"default":{"passthrough":{"server":"10.0.0.1:25"}}}"#;
    for (config, word) in [
        (other_relay, "granted"),
        (other_server, "registered"),
        (address, "registered"),
    ] {
        let host = host();
        host.activate("routing/acme", &prepared("routing-default", config))
            .unwrap();
        let routing = host.route(&question("acme", &["a@x.test"])).await;
        assert!(
            routing.fallback.as_ref().unwrap().contains(word),
            "{routing:?}"
        );
        assert_eq!(routing.policy, None);
        match routing.action(0) {
            Action::Defer(reply) => assert!(reply.to_string().starts_with("451 4.3.0 ")),
            other => panic!("{other:?}"),
        }
        host.set_fallback("routing/acme", Fallback::Managed);
        let routing = host.route(&question("acme", &["a@x.test"])).await;
        managed(routing.action(0));
        assert!(routing.fallback.is_some());
    }
}

#[test]
fn a_bad_configuration_names_the_key() {
    for (config, words) in [
        ("{", "configuration"),
        (r#"{"rulez":[]}"#, "rulez"),
        (
            r#"{"rules":[{"action":{"managed":{}},"recipient_domain":["a b"]}]}"#,
            "rules[0].recipient_domain",
        ),
        (
            r#"{"default":{"defer":{"code":550}}}"#,
            "default.defer.code",
        ),
        (
            r#"{"default":{"managed":{"lane":"$header"}}}"#,
            "default.managed.lane",
        ),
        (
            r#"{"rules":[{"action":{"managed":{"priority":11}}}]}"#,
            "rules[0].action.managed.priority",
        ),
    ] {
        match try_prepare(&plugin("routing-default"), config) {
            Err(Refused::Config(text)) => assert!(text.contains(words), "{config}: {text}"),
            other => panic!("{config}: {other:?}"),
        }
    }
}
