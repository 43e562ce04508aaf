//! Every mixture of routes in one message, with a tenant's server that takes all, some, none,
//! or none for now: what the client is told, and what becomes of each recipient.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{Enhanced, EventKind, Notify, Reply, Timestamp, TrafficClass};
use tidegate_queue::route::{Action, AfterFailure, Managed, Occasion, Question, Routing};
use tidegate_queue::shape::{LaneState, Plan};
use tidegate_queue::*;

use crate::scenario::Scenario;
use crate::steady::{HOUR, events, mail, notices};
use crate::world::{Manner, NEVER};

/// Local parts, each with a route of its own. "good" is the one that a server which takes
/// some takes.
const KINDS: [&str; 8] = [
    "managed", "refused", "own", "good", "notify", "relay", "harder", "later",
];

/// Routes by the recipient's local part; asked again after a failed passthrough, "relay"
/// becomes managed, "bulk" too as bulk mail, "harder" is refused and "later" deferred.
struct ByKind;

impl ByKind {
    fn action(kind: &str, again: bool) -> Action {
        let own = |after_failure| Action::Passthrough {
            server: "own".into(),
            after_failure,
        };
        let reply =
            |code: u16, text: &str| Reply::new(code, Enhanced::new((code / 100) as u8, 7, 1), text);
        match (kind, again) {
            ("refused", _) => Action::Refuse(reply(550, "refused by the policy")),
            ("own" | "good", _) => own(AfterFailure::GiveUp),
            ("notify", _) => own(AfterFailure::GiveUpAndNotify),
            ("relay" | "harder" | "later" | "bulk", false) => own(AfterFailure::ManagedRelay),
            ("harder", true) => Action::Refuse(reply(554, "refused after all")),
            ("bulk", true) => Action::Managed(Managed {
                class: TrafficClass::Bulk,
                ..Managed::default()
            }),
            ("later", true) => Action::Defer(reply(451, "later after all")),
            _ => Action::Managed(Managed::default()),
        }
    }
}

impl Policy for ByKind {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        let again =
            matches!(&question.occasion, Occasion::PassthroughFailed(told) if told.code >= 400);
        let recipients = &question.envelope.recipients;
        let mut routing = Routing::all(Action::Managed(Managed::default()), recipients.len());
        for (at, r) in recipients.iter().enumerate() {
            let kind = r.address.as_str().split('@').next().unwrap_or_default();
            routing.of_recipient[at] = routing.actions.len() as u32;
            routing.actions.push(ByKind::action(kind, again));
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

/// What the contract says of a message to these kinds of recipient: the reply's code or class,
/// who gets the mail, and about whom a failure notice goes out.
struct Expected<'a> {
    code: u16,
    arrives: Vec<&'a str>,
    fails: Vec<&'a str>,
}

fn contract<'a>(kinds: &[&'a str], manner: &Manner) -> Expected<'a> {
    let has = |kind: &str| kinds.contains(&kind);
    let nothing = |code| Expected {
        code,
        arrives: Vec::new(),
        fails: Vec::new(),
    };
    let tried: Vec<&str> = kinds
        .iter()
        .copied()
        .filter(|k| !["managed", "refused"].contains(k))
        .collect();
    let takes = |kind: &str| match manner {
        Manner::Accept => true,
        Manner::TakesOnly(who) => *who == kind,
        _ => false,
    };
    let (taken, failed): (Vec<&str>, Vec<&str>) = tried.iter().partition(|k| takes(k));
    if tried.is_empty() && !has("managed") {
        return nothing(550);
    }
    if failed.contains(&"later") && taken.is_empty() {
        return nothing(451);
    }
    let ours = has("managed") || failed.iter().any(|k| ["relay", "notify"].contains(k));
    if !ours && taken.is_empty() {
        // Refusals only; a passing one among them brings the client back.
        let passing = matches!(manner, Manner::Greylist(_));
        let by_server = failed.iter().any(|k| *k != "harder");
        return nothing(match (passing && by_server, failed.first()) {
            (true, _) => 450,
            (false, Some(&"harder")) => 554,
            (false, _) => 550,
        });
    }
    let arrives = kinds
        .iter()
        .copied()
        .filter(|k| taken.contains(k) || *k == "managed" || *k == "relay");
    let fails = kinds
        .iter()
        .copied()
        .filter(|k| *k == "refused" || failed.contains(k) && *k != "relay");
    Expected {
        code: 250,
        arrives: arrives.collect(),
        fails: fails.collect(),
    }
}

#[tokio::test]
async fn every_mixture_of_routes_is_answered_as_the_contract_says() {
    let scenario = Scenario::with(Settings::default(), Arc::new(ByKind)).await;
    let mut arrives: BTreeMap<String, usize> = BTreeMap::new();
    let mut fails: BTreeSet<String> = BTreeSet::new();
    let mut case = 0;
    for manner in [
        Manner::Accept,
        Manner::Refuse,
        Manner::Greylist(NEVER),
        Manner::TakesOnly("good"),
    ] {
        scenario.world.set("own-server.test", manner.clone());
        for subset in 1u32..1 << KINDS.len() {
            case += 1;
            let kinds: Vec<&str> = (0..KINDS.len())
                .filter(|n| subset & 1 << n != 0)
                .map(|n| KINDS[n])
                .collect();
            let address = |kind: &str| format!("{kind}@case-{case}.test");
            let to: Vec<String> = kinds.iter().map(|kind| address(kind)).collect();
            let to: Vec<(&str, Notify)> = to.iter().map(|a| (a.as_str(), Notify::Absent)).collect();
            let expected = contract(&kinds, &manner);
            let (_, reply) = scenario.submit(mail(&to)).await;
            assert_eq!(reply.code, expected.code, "{kinds:?} {manner:?}: {reply}");
            arrives.extend(expected.arrives.iter().map(|k| (address(k), 1)));
            fails.extend(expected.fails.iter().map(|k| address(k)));
        }
    }
    scenario.pass(HOUR).await;
    let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
    for delivery in scenario.world.delivered() {
        if !delivery.recipient.ends_with("@acme.test") {
            *arrived.entry(delivery.recipient).or_default() += 1;
        }
    }
    assert!(
        arrived == arrives,
        "{:?}",
        first_difference(&arrived, &arrives)
    );
    let told: Vec<String> = notices(&scenario)
        .into_iter()
        .flat_map(|(report, _)| report.recipients)
        .map(|r| r.address.expect("an address").address)
        .collect();
    let once: BTreeSet<String> = told.iter().cloned().collect();
    assert_eq!(once.len(), told.len(), "each is told once");
    assert_eq!(once.symmetric_difference(&fails).next(), None);
    let counts = scenario.store().counts().await.expect("counts");
    assert_eq!(counts.recipients, 0, "nothing waits");
}

fn first_difference(
    a: &BTreeMap<String, usize>,
    b: &BTreeMap<String, usize>,
) -> Option<(String, Option<usize>, Option<usize>)> {
    a.keys()
        .chain(b.keys())
        .find(|key| a.get(*key) != b.get(*key))
        .map(|key| (key.clone(), a.get(key).copied(), b.get(key).copied()))
}

#[tokio::test]
async fn after_a_failed_passthrough_the_policy_is_asked_again_and_nothing_of_it_is_logged() {
    let scenario = Scenario::with(Settings::default(), Arc::new(ByKind)).await;
    scenario.world.set("own-server.test", Manner::Refuse);
    let to = ["relay@x.test", "harder@y.test"].map(|a| (a, Notify::Absent));
    let (id, reply) = scenario.submit(mail(&to)).await;
    assert_eq!(reply.code, 250);
    scenario.pass(HOUR).await;
    let log = events(&scenario, id).await;
    let of = |kind| log.iter().filter(move |e| e.kind == kind).count();
    assert_eq!(of(EventKind::PassthroughTried), 2);
    assert_eq!((of(EventKind::Delivered), of(EventKind::Refused)), (1, 1));
    let words = format!("{log:?}");
    assert!(!words.contains("no such user"), "{words}");
    assert!(
        words.contains("refused after all"),
        "the policy's answer is ours"
    );
}

#[tokio::test]
async fn what_a_failed_passthrough_makes_bulk_is_suspended_too() {
    let scenario = Scenario::with(Settings::default(), Arc::new(ByKind)).await;
    scenario.suspend_bulk();
    scenario
        .world
        .set("own-server.test", Manner::TakesOnly("good"));
    let refusal = (550, Some(Enhanced::new(5, 7, 1)));
    let bulk = ("bulk@x.test", Notify::Absent);
    let (_, reply) = scenario.submit(mail(&[bulk])).await;
    assert_eq!((reply.code, reply.enhanced), refusal, "{reply}");
    assert!(reply.text.contains("bulk mail"), "{reply}");

    // Beside what was taken it is a notice.
    let (_, reply) = scenario
        .submit(mail(&[bulk, ("good@y.test", Notify::Absent)]))
        .await;
    assert_eq!(reply.code, 250, "{reply}");
    scenario.pass(HOUR).await;
    assert_eq!(copies(&scenario, "good@y.test"), 1);
    assert_eq!(copies(&scenario, "bulk@x.test"), 0);
    let told = notices(&scenario);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0.recipients[0].status, Some(Enhanced::new(5, 7, 1)));
}

#[tokio::test]
async fn a_server_that_hangs_is_waited_for_no_longer_than_configured() {
    let settings = Settings {
        passthrough_timeout: Duration::from_secs(60),
        ..Settings::default()
    };
    let scenario = Scenario::with(settings, Arc::new(ByKind)).await;
    scenario.world.set("own-server.test", Manner::Hangs);
    let begun = scenario.clock.now();
    let to = [
        ("own@x.test", Notify::Absent),
        ("good@x.test", Notify::Absent),
    ];
    let submitting = scenario.submit(mail(&to));
    tokio::pin!(submitting);
    let (_, reply) = loop {
        tokio::select! {
            biased;
            done = &mut submitting => break done,
            () = tokio::task::yield_now() => {
                // After that the store takes its own time, and the clock stands still.
                if scenario.clock.now().since(begun) <= Duration::from_secs(60) {
                    scenario.clock.set(scenario.clock.now().plus(Duration::from_secs(1)));
                } else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    };
    assert_eq!(reply.code, 451, "{reply}");
    let counts = scenario.store().counts().await.expect("counts");
    assert_eq!(counts.messages, 0, "nothing is queued");
}

fn copies(scenario: &Scenario, recipient: &str) -> usize {
    let all = scenario.world.delivered();
    all.iter().filter(|d| d.recipient == recipient).count()
}

#[tokio::test]
async fn what_the_tenant_s_server_took_comes_twice_if_the_rest_could_not_be_stored() {
    let scenario = Scenario::with(Settings::default(), Arc::new(ByKind)).await;
    let (own, managed) = ("own@x.test", "managed@x.test");
    let to = [(own, Notify::Absent), (managed, Notify::Absent)];
    scenario.crash.fail(Some("accept"));
    let (first, reply) = scenario.submit(mail(&to)).await;
    // No 250 without the store: the client comes again with all of them.
    assert_eq!(
        (reply.code, reply.enhanced),
        (451, Some(Enhanced::new(4, 3, 0)))
    );
    assert_eq!(copies(&scenario, own), 1, "it was taken");
    scenario.pass(HOUR).await;
    assert_eq!(copies(&scenario, managed), 0);
    let query = LogQuery {
        message: Some(first),
        ..LogQuery::default()
    };
    let found = scenario.store().search(query).await.expect("a search");
    assert!(found.is_empty(), "nothing of it was kept");

    // While the store is known not to take anything, nothing is handed off either.
    scenario.crash.fail(Some("set_life"));
    for _ in 0..3 {
        let (_, reply) = scenario.submit(mail(&to)).await;
        assert_eq!(reply.code, 451, "{reply}");
        assert_eq!(copies(&scenario, own), 1);
    }

    scenario.crash.fail(None);
    let (_, reply) = scenario.submit(mail(&to)).await;
    assert_eq!(reply.code, 250, "{reply}");
    scenario.pass(HOUR).await;
    assert_eq!(copies(&scenario, own), 2, "the price");
    assert_eq!(copies(&scenario, managed), 1);
    assert!(notices(&scenario).is_empty());
}

#[tokio::test]
async fn of_a_passthrough_alone_the_server_s_answer_stands_though_it_can_t_be_logged() {
    let scenario = Scenario::with(Settings::default(), Arc::new(ByKind)).await;
    scenario.crash.fail(Some("log"));
    let to = [("own@x.test", Notify::Absent)];
    let (_, reply) = scenario.submit(mail(&to)).await;
    assert_eq!(reply.code, 250, "{reply}");
    scenario.world.set("own-server.test", Manner::Refuse);
    let (_, reply) = scenario.submit(mail(&to)).await;
    assert_eq!(reply.code, 550, "{reply}");
    assert_eq!(copies(&scenario, "own@x.test"), 1);
}
