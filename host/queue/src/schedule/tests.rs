mod books;
mod plans;

use super::*;
use crate::control::QueueQuery;
use crate::directory::Directory;
use crate::measure::{Effect, Lifted, Scope};
use crate::ports::MxHost;
use crate::shape::{LanePlan, Rate};
use tidegate_mail::{Fault, Stage};

const T0: Timestamp = Timestamp::from_secs(1_000_000);

fn bounds() -> Bounds {
    Bounds {
        max_deliveries: 100,
        max_resolutions: 3,
        max_site_connections: 2,
        default_limits: Limits::default(),
        site_backoff: (Duration::from_secs(60), Duration::from_secs(900)),
    }
}

fn key(tenant: &str, domain: &str, class: TrafficClass) -> QueueKey {
    QueueKey {
        relay: "mx".into(),
        domain: domain.into(),
        tenant: tenant.into(),
        class,
        lane: None,
    }
}

fn entry(message: i64, index: u32, attempts: u32) -> NewEntry {
    NewEntry {
        id: RecipientId {
            message: MessageId::from_i64(message),
            index,
        },
        due: T0,
        expires_at: T0.plus(Duration::from_secs(3600)),
        delay_at: Timestamp::FAR_FUTURE,
        attempts,
    }
}

fn to(domain: &str) -> Arc<Destination> {
    Arc::new(Destination {
        domain: domain.into(),
        site: domain.into(),
        hosts: vec![MxHost::new(format!("mx.{domain}"), 10, vec![])],
        valid_until: Timestamp::FAR_FUTURE,
    })
}

/// Takes tasks until there is none, answering every resolution.
fn drain(s: &mut Scheduler, now: Timestamp) -> Vec<Work> {
    let directory = Directory::new(vec![], vec![], vec![], vec![]);
    let mut works = Vec::new();
    while let Some(task) = s.take(&directory, now) {
        match task {
            Task::Resolve { queue, domain } => {
                assert!(s.resolved(queue, Ok(to(&domain)), now).is_empty());
            }
            Task::Deliver(work) => works.push(work),
        }
    }
    works
}

fn delivered() -> Outcome {
    Outcome::from_reply(
        Stage::Dot,
        tidegate_mail::Reply::new(250, tidegate_mail::Enhanced::new(2, 0, 0), "ok"),
    )
}

fn finish(s: &mut Scheduler, work: Work, contact: Contact, now: Timestamp) {
    let outcome = match contact {
        Contact::Reached => delivered(),
        Contact::Failed => Outcome::from_fault(Stage::Connect, Fault::ConnectRefused),
        Contact::Untried => Outcome::from_fault(Stage::Local, Fault::StsMismatch),
    };
    s.finished(&work, contact, [&outcome].into_iter(), now);
    for ticket in work.tickets {
        let next = if contact != Contact::Reached {
            Next::Waiting {
                due: now.plus(Duration::from_secs(60)),
                delay_at: Timestamp::FAR_FUTURE,
                attempts: ticket.attempts + 1,
            }
        } else {
            Next::Gone
        };
        s.settled(ticket, next, now);
    }
}

#[test]
fn recipients_of_one_message_and_domain_share_a_transaction() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Transactional);
    for index in 0..3 {
        s.add(&k, entry(1, index, 0), T0);
    }
    s.add(&k, entry(2, 0, 0), T0);
    let works = drain(&mut s, T0);
    let sizes: Vec<usize> = works.iter().map(|w| w.tickets.len()).collect();
    assert_eq!(sizes, [3, 1]);
}

#[test]
fn new_mail_goes_before_what_is_retried() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Transactional);
    s.add(&k, entry(1, 0, 3), T0);
    s.add(&k, entry(2, 0, 0), T0);
    let works = drain(&mut s, T0);
    assert_eq!(works[0].message, MessageId::from_i64(2));
}

#[test]
fn transactional_goes_before_bulk_and_tenants_take_turns() {
    let mut s = Scheduler::new(Bounds {
        max_site_connections: 100,
        ..bounds()
    });
    for n in 0..5 {
        s.add(
            &key("big", &format!("d{n}.test"), TrafficClass::Transactional),
            entry(n, 0, 0),
            T0,
        );
    }
    s.add(
        &key("small", "y.test", TrafficClass::Transactional),
        entry(50, 0, 0),
        T0,
    );
    s.add(
        &key("big", "z.test", TrafficClass::Bulk),
        entry(9, 0, 0),
        T0,
    );
    let works = drain(&mut s, T0);
    let at = works
        .iter()
        .position(|w| &*w.tenant == "small")
        .expect("served");
    assert!(at <= 2, "the small tenant waits {at} turns");
    // The bulk lane waits for its plan.
    assert_eq!(works.len(), 6);
    let lanes = s.lanes_to_plan(T0);
    assert_eq!(lanes.len(), 1);
    s.planned(lanes[0].0, None, None, T0);
    assert_eq!(drain(&mut s, T0).len(), 1);
}

#[test]
fn a_site_has_no_more_than_its_connections() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Transactional);
    for message in 0..5 {
        s.add(&k, entry(message, 0, 0), T0);
    }
    let mut works = drain(&mut s, T0);
    assert_eq!(works.len(), 2);
    let list = s.list(&QueueQuery::default());
    assert!(
        list.iter()
            .any(|e| e.reason == Some(WaitReason::Concurrency))
    );
    finish(&mut s, works.remove(0), Contact::Reached, T0);
    assert_eq!(drain(&mut s, T0).len(), 1);
}

#[test]
fn a_site_that_does_not_answer_is_left_alone_then_probed() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Transactional);
    for message in 0..4 {
        s.add(&k, entry(message, 0, 0), T0);
    }
    for work in drain(&mut s, T0) {
        finish(&mut s, work, Contact::Failed, T0);
    }
    assert!(drain(&mut s, T0).is_empty(), "backed off");
    assert!(!s.add(&k, entry(9, 0, 0), T0), "it may not go soon");
    let later = T0.plus(Duration::from_secs(61));
    s.wake(later, 100);
    let mut probe = drain(&mut s, later);
    assert_eq!(probe.len(), 1, "one probe");
    finish(&mut s, probe.remove(0), Contact::Reached, later);
    assert_eq!(drain(&mut s, later).len(), 2, "open again");
    assert!(s.add(&k, entry(10, 0, 0), later), "it waits for its turn");
}

#[test]
fn a_site_that_changes_while_mail_is_out_gets_its_connection_back() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Transactional);
    let directory = Directory::new(vec![], vec![], vec![], vec![]);
    let at = |site: &str, seconds| {
        Arc::new(Destination {
            site: site.into(),
            valid_until: T0.plus(Duration::from_secs(seconds)),
            ..Destination::clone(&to("x.test"))
        })
    };
    let next = |s: &mut Scheduler, site, now| {
        while let Some(Task::Resolve { queue, .. }) = s.take(&directory, now) {
            s.resolved(queue, Ok(at(site, 600)), now);
        }
    };
    s.add(&k, entry(1, 0, 0), T0);
    let Some(Task::Resolve { queue, .. }) = s.take(&directory, T0) else {
        panic!("a resolution comes first");
    };
    s.resolved(queue, Ok(at("old", 10)), T0);
    let Some(Task::Deliver(before)) = s.take(&directory, T0) else {
        panic!("then a delivery");
    };
    assert_eq!(&*before.site, "old");

    // The next message finds another set of mail servers while the first is still out.
    let later = T0.plus(Duration::from_secs(20));
    s.add(&k, entry(2, 0, 0), later);
    next(&mut s, "new", later);
    finish(&mut s, before, Contact::Reached, later);
    for (_, site) in &s.sites {
        let expected = u32::from(&*site.name == "new");
        assert_eq!(site.in_flight, expected, "{}", site.name);
    }
    for (_, lane) in &s.lanes {
        let expected = u32::from(lane.key.site == "new");
        assert_eq!(lane.in_flight, expected, "{:?}", lane.key);
    }
}

#[test]
fn a_relay_that_becomes_a_smarthost_is_one_from_the_next_message_on() {
    let mut s = Scheduler::new(bounds());
    let k = QueueKey {
        relay: "out".into(),
        ..key("a", "x.test", TrafficClass::Transactional)
    };
    let site_by = |s: &mut Scheduler, relay| match s.take(&relay, T0) {
        Some(Task::Resolve { queue, .. }) => {
            s.resolved(queue, Ok(to("x.test")), T0);
            let Some(Task::Deliver(work)) = s.take(&relay, T0) else {
                panic!("a delivery follows");
            };
            let site = work.site.clone();
            finish(s, work, Contact::Reached, T0);
            site
        }
        Some(Task::Deliver(work)) => {
            let site = work.site.clone();
            finish(s, work, Contact::Reached, T0);
            site
        }
        None => panic!("there is something to do"),
    };
    let mut sites = Vec::new();
    for (message, way) in [(1, 0), (2, 1), (3, 0)] {
        s.add(&k, entry(message, 0, 0), T0);
        sites.push(site_by(&mut s, books::relay(way)));
    }
    let sites: Vec<&str> = sites.iter().map(|s| &**s).collect();
    assert_eq!(sites, ["x.test", "relay:out", "x.test"]);
}

#[test]
fn what_says_nothing_of_a_site_neither_backs_it_off_nor_opens_it() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Transactional);
    for message in 0..4 {
        s.add(&k, entry(message, 0, 0), T0);
    }
    let mut works = drain(&mut s, T0);
    finish(&mut s, works.remove(0), Contact::Untried, T0);
    works.extend(drain(&mut s, T0));
    assert_eq!(works.len(), 2, "not backed off");
    for work in works {
        finish(&mut s, work, Contact::Failed, T0);
    }
    let later = T0.plus(Duration::from_secs(61));
    s.wake(later, 100);
    // One probe after the other, until one says something.
    for _ in 0..2 {
        let mut probe = drain(&mut s, later);
        assert_eq!(probe.len(), 1, "still probed");
        finish(&mut s, probe.remove(0), Contact::Untried, later);
    }
    let mut probe = drain(&mut s, later);
    finish(&mut s, probe.remove(0), Contact::Reached, later);
    s.add(&k, entry(5, 0, 0), later);
    s.add(&k, entry(6, 0, 0), later);
    assert_eq!(drain(&mut s, later).len(), 2, "open again");
}

#[test]
fn a_tenant_whose_destinations_stall_leaves_room_for_the_others() {
    let stalling = |s: &mut Scheduler, tenant: &str| {
        for n in 0..200 {
            let k = key(tenant, &format!("d{n}.test"), TrafficClass::Transactional);
            s.add(&k, entry(n, 0, 0), T0);
        }
        drain(s, T0)
    };
    // Alone, it may use all.
    let mut s = Scheduler::new(bounds());
    assert_eq!(stalling(&mut s, "a").len(), 100);
    // Beside others that are idle, three quarters; and so on.
    let mut s = Scheduler::new(bounds());
    let k = key("quiet", "q.test", TrafficClass::Transactional);
    s.add(&k, entry(1, 0, 0), T0);
    for work in drain(&mut s, T0) {
        finish(&mut s, work, Contact::Reached, T0);
    }
    let first = stalling(&mut s, "a");
    assert_eq!(first.len(), 75);
    assert_eq!(stalling(&mut s, "b").len(), 19);
    assert_eq!(stalling(&mut s, "c").len(), 5);
    s.add(&k, entry(2, 0, 0), T0);
    assert_eq!(drain(&mut s, T0).len(), 1);
    assert_eq!(s.in_flight(), 100);
    // As soon as one of theirs ends, there is room again.
    for work in first.into_iter().take(10) {
        finish(&mut s, work, Contact::Reached, T0);
    }
    let more = drain(&mut s, T0);
    assert!(!more.is_empty() && s.in_flight() < 100, "{}", more.len());
    s.add(&k, entry(3, 0, 0), T0);
    assert_eq!(drain(&mut s, T0).len(), 1);
}

#[test]
fn no_wait_outlives_the_lifetime() {
    let mut s = Scheduler::new(bounds());
    let hold = Measure::new("1", Scope::default(), Effect::Hold, "test", T0);
    s.add_measure(hold);
    s.add(
        &key("a", "x.test", TrafficClass::Transactional),
        entry(1, 0, 0),
        T0,
    );
    assert!(drain(&mut s, T0).is_empty());
    assert_eq!(
        s.list(&QueueQuery::default())[0].reason,
        Some(WaitReason::Held)
    );
    let end = T0.plus(Duration::from_secs(3600));
    assert_eq!(s.next_event(), end);
    assert!(matches!(s.wake(end, 10)[..], [Wake::Expired(_)]));
}

fn lifted(measure: Measure, until: Option<Timestamp>) -> Measure {
    let lifted = Lifted {
        at: T0,
        by: "operator".into(),
        why: "a test".into(),
        until,
    };
    Measure {
        lifted: Some(lifted),
        ..measure
    }
}

#[test]
fn a_lifted_hold_lets_mail_go() {
    let mut s = Scheduler::new(bounds());
    let scope = Scope {
        domain: Some("x.test".into()),
        ..Scope::default()
    };
    let hold = Measure::new("1", scope, Effect::Hold, "test", T0);
    s.add_measure(hold.clone());
    s.add(
        &key("a", "x.test", TrafficClass::Transactional),
        entry(1, 0, 0),
        T0,
    );
    s.add(
        &key("a", "y.test", TrafficClass::Transactional),
        entry(2, 0, 0),
        T0,
    );
    assert_eq!(drain(&mut s, T0).len(), 1);
    s.lift(lifted(hold, None), T0);
    assert_eq!(drain(&mut s, T0).len(), 1);
}

#[test]
fn a_rate_parks_the_queue_until_its_next_token() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Bulk);
    for message in 0..3 {
        s.add(&k, entry(message, 0, 0), T0);
    }
    assert!(drain(&mut s, T0).is_empty());
    let lanes = s.lanes_to_plan(T0);
    let plan = LanePlan {
        limits: Limits {
            rate: Some(Rate {
                messages: 1,
                per_ms: 10_000,
            }),
            burst: 1,
            ttl: 3600,
            ..Limits::default()
        },
        wake: None,
    };
    s.planned(lanes[0].0, Some(plan), Some("abc"), T0);
    assert_eq!(drain(&mut s, T0).len(), 1);
    assert_eq!(s.next_event(), T0.plus(Duration::from_secs(10)));
    let later = T0.plus(Duration::from_secs(10));
    s.wake(later, 10);
    assert_eq!(drain(&mut s, later).len(), 1);
}

#[test]
fn a_failed_resolution_is_an_attempt_for_all_that_is_ready() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Transactional);
    for message in 0..3 {
        s.add(&k, entry(message, 0, 0), T0);
    }
    let directory = Directory::new(vec![], vec![], vec![], vec![]);
    let Some(Task::Resolve { queue, .. }) = s.take(&directory, T0) else {
        panic!("a resolution comes first");
    };
    let outcome = Outcome::from_fault(Stage::Dns, Fault::NoSuchDomain);
    assert_eq!(s.resolved(queue, Err(&outcome), T0).len(), 3);
}

#[test]
fn only_so_many_domains_are_resolved_at_once_and_tenants_take_turns() {
    let mut s = Scheduler::new(bounds());
    let directory = Directory::new(vec![], vec![], vec![], vec![]);
    for n in 0..10 {
        let k = key("big", &format!("d{n}.test"), TrafficClass::Transactional);
        s.add(&k, entry(n, 0, 0), T0);
    }
    let mut asked = Vec::new();
    while let Some(Task::Resolve { queue, .. }) = s.take(&directory, T0) {
        asked.push(queue);
    }
    assert_eq!(asked.len(), 3);
    let waits = s.list(&QueueQuery::default());
    assert!(waits.iter().all(|e| e.reason == Some(WaitReason::Dns)));
    // What needs no resolution goes meanwhile, and who comes next does not wait for all of them.
    let k = key("small", "y.test", TrafficClass::Transactional);
    s.add(&k, entry(50, 0, 0), T0);
    assert!(s.take(&directory, T0).is_none());
    let mut order = Vec::new();
    for queue in asked.drain(..2) {
        s.resolved(queue, Ok(to("d.test")), T0);
        match s.take(&directory, T0) {
            Some(Task::Resolve { domain, .. }) => order.push(domain),
            other => panic!("a place for the next one is free: {other:?}"),
        }
    }
    assert!(
        order.iter().any(|domain| &**domain == "y.test"),
        "{order:?}"
    );
    assert!(matches!(s.take(&directory, T0), Some(Task::Deliver(_))));
}

#[test]
fn sub_queues_that_a_policy_names_for_each_message_share_one_beyond_256() {
    let mut s = Scheduler::new(bounds());
    let named = |name: String| QueueKey {
        lane: Some(name.into()),
        ..key("a", "x.test", TrafficClass::Transactional)
    };
    for message in 0..1000 {
        s.add(&named(format!("m{message}")), entry(message, 0, 0), T0);
    }
    assert_eq!(s.queues.len(), ties::MAX_SUB_QUEUES + 1);
    let mut sent = 0;
    loop {
        let works = drain(&mut s, T0);
        if works.is_empty() {
            break;
        }
        for work in works {
            sent += work.tickets.len();
            finish(&mut s, work, Contact::Reached, T0);
        }
    }
    assert_eq!((sent, s.len()), (1000, 0));
    assert!(s.queues.len() <= ties::MAX_SUB_QUEUES / 2 + 1);
    // There is room again for a name of its own.
    s.add(&named("new".into()), entry(2000, 0, 0), T0);
    let names = s.queues.iter().filter_map(|(_, q)| q.key.lane.as_deref());
    assert!(names.into_iter().any(|name| name == "new"));
}

#[test]
fn sites_and_lanes_without_mail_are_forgotten() {
    let mut s = Scheduler::new(bounds());
    for message in 0..30_000 {
        let domain = format!("d{message}.test");
        let k = key("a", &domain, TrafficClass::Transactional);
        s.add(&k, entry(message, 0, 0), T0);
        for work in drain(&mut s, T0) {
            finish(&mut s, work, Contact::Reached, T0);
        }
    }
    let most = 2 * 2 * (IDLE_QUEUES + 1) + 4096 + 2;
    assert!(s.queues.len() <= IDLE_QUEUES);
    assert!(s.sites.len() + s.lanes.len() <= most);
    assert_eq!(s.sites.len(), s.site_of.len());
    assert_eq!(s.lanes.len(), s.lane_of.len());
}

#[test]
fn a_lane_is_not_forgotten_while_its_rate_holds_it_back() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Bulk);
    s.add(&k, entry(1, 0, 0), T0);
    assert!(drain(&mut s, T0).is_empty());
    let lanes = s.lanes_to_plan(T0);
    let rate = Some(Rate {
        messages: 1,
        per_ms: 10_000,
    });
    let limits = Limits {
        rate,
        ..Limits::default()
    };
    s.planned(lanes[0].0, Some(LanePlan { limits, wake: None }), None, T0);
    let work = drain(&mut s, T0).remove(0);
    let queue = work.queue;
    finish(&mut s, work, Contact::Reached, T0);
    s.remove_queue(queue);
    s.forget_idle(T0);
    assert_eq!((s.sites.len(), s.lanes.len()), (0, 1));
    s.forget_idle(T0.plus(Duration::from_secs(10)));
    assert_eq!(s.lanes.len(), 0);
}

#[test]
fn timers_of_delivered_mail_do_not_pile_up() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Transactional);
    for message in 0..50_000 {
        s.add(&k, entry(message, 0, 0), T0);
        for work in drain(&mut s, T0) {
            finish(&mut s, work, Contact::Reached, T0);
        }
    }
    assert_eq!(s.len(), 0);
    assert!(s.timers.len() <= 5000, "{}", s.timers.len());
}
