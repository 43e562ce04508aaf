//! The schedule's books under whatever comes in any order: sites that change while mail is out,
//! relays that become smarthosts or vanish, plans, failures, holds, expiry. What is counted is
//! what there is, and nothing waits for an end that has been.

use super::*;
use crate::directory::{Relay, Way};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum End {
    Delivered,
    HostFailure,
    Unmet,
    Withdrawn,
}

/// Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Add { queue: usize, recipients: u32 },
    Take(usize),
    Resolved { which: usize, site: Option<u8> },
    Finished { which: usize, end: End },
    Settled { which: usize, again: bool },
    Pass(u64),
    Relay(u8),
    Ask,
    Planned { which: usize, connections: u16 },
    Pick(u8),
    Hold(bool),
    LiftAll,
    Forget,
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        3 => Just(End::Delivered),
        2 => Just(End::HostFailure),
        1 => Just(End::Unmet),
        1 => Just(End::Withdrawn),
    ];
    let step = prop_oneof![
        6 => (0..16usize, 1..4u32).prop_map(|(queue, recipients)| Step::Add { queue, recipients }),
        6 => (1..6usize).prop_map(Step::Take),
        5 => (any::<usize>(), prop::option::weighted(0.9, 0..3u8))
            .prop_map(|(which, site)| Step::Resolved { which, site }),
        5 => (any::<usize>(), end).prop_map(|(which, end)| Step::Finished { which, end }),
        5 => (any::<usize>(), any::<bool>())
            .prop_map(|(which, again)| Step::Settled { which, again }),
        4 => prop_oneof![1..90u64, 600..4000u64].prop_map(Step::Pass),
        1 => (0..3u8).prop_map(Step::Relay),
        2 => Just(Step::Ask),
        2 => (any::<usize>(), 0..3u16)
            .prop_map(|(which, connections)| Step::Planned { which, connections }),
        1 => (0..4u8).prop_map(Step::Pick),
        1 => any::<bool>().prop_map(Step::Hold),
        1 => Just(Step::LiftAll),
        2 => Just(Step::Forget),
        2 => (0..16usize).prop_map(Step::Drop),
    ];
    prop::collection::vec(step, 1..120)
}

struct Books {
    s: Scheduler,
    directory: Directory,
    now: Timestamp,
    messages: i64,
    resolving: Vec<u32>,
    works: Vec<Work>,
    taken: Vec<Ticket>,
    asking: Vec<u32>,
}

pub(super) fn relay(way: u8) -> Directory {
    let way = match way {
        0 => Way::Mx { sources: vec![] },
        1 => Way::Smarthost {
            host: "smart.test".into(),
            port: 25,
            tls: Default::default(),
            user: None,
            sealed_password: None,
        },
        _ => return Directory::new(vec![], vec![], vec![], vec![]),
    };
    let name = "out".into();
    Directory::new(vec![], vec![], vec![], vec![Relay { name, way }])
}

/// Four domains of two tenants, one of them through a relay that changes, in two classes.
fn queue(n: usize) -> QueueKey {
    let (tenant, domain) = (["a", "b"][n % 2], ["x.test", "y.test"][n / 2 % 2]);
    let class = [TrafficClass::Transactional, TrafficClass::Bulk][n / 4 % 2];
    let relay = ["mx", "out"][n / 8 % 2];
    QueueKey {
        relay: relay.into(),
        lane: (n / 4 == 3).then(|| "campaign".into()),
        ..key(tenant, domain, class)
    }
}

impl Books {
    fn new() -> Self {
        Books {
            s: Scheduler::new(bounds()),
            directory: relay(0),
            now: T0,
            messages: 0,
            resolving: Vec::new(),
            works: Vec::new(),
            taken: Vec::new(),
            asking: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Add {
                queue: at,
                recipients,
            } => {
                self.messages += 1;
                for index in 0..recipients {
                    let new = NewEntry {
                        due: now,
                        expires_at: now.plus(Duration::from_secs(10 * 24 * 3600)),
                        ..entry(self.messages, index, 0)
                    };
                    self.s.add(&queue(at), new, now);
                }
            }
            Step::Take(most) => {
                for _ in 0..most {
                    match self.s.take(&self.directory, now) {
                        Some(Task::Resolve { queue, .. }) => self.resolving.push(queue),
                        Some(Task::Deliver(work)) => self.works.push(work),
                        None => break,
                    }
                }
            }
            Step::Resolved { which, site } if !self.resolving.is_empty() => {
                let queue = self.resolving.swap_remove(which % self.resolving.len());
                let outcome = Outcome::from_fault(Stage::Dns, Fault::DnsUnavailable);
                let answer = site.map(|site| {
                    Arc::new(Destination {
                        site: format!("site-{site}").into(),
                        valid_until: now.plus(Duration::from_secs(60)),
                        ..Destination::clone(&to("any.test"))
                    })
                });
                let answer = answer.ok_or(&outcome);
                self.taken.extend(self.s.resolved(queue, answer, now));
            }
            Step::Finished { which, end } if !self.works.is_empty() => {
                let work = self.works.swap_remove(which % self.works.len());
                let failure = |stage, fault| Outcome::from_fault(stage, fault);
                let (outcome, contact) = match end {
                    End::Delivered => (delivered(), Contact::Reached),
                    End::HostFailure => (
                        failure(Stage::Connect, Fault::ConnectRefused),
                        Contact::Failed,
                    ),
                    End::Unmet => (failure(Stage::Local, Fault::StsMismatch), Contact::Untried),
                    End::Withdrawn => (Outcome::withdrawn(), Contact::Untried),
                };
                self.s.finished(&work, contact, [&outcome].into_iter(), now);
                self.taken.extend(&work.tickets);
            }
            Step::Settled { which, again } if !self.taken.is_empty() => {
                let ticket = self.taken.swap_remove(which % self.taken.len());
                let next = match again {
                    true => Next::Waiting {
                        due: now.plus(Duration::from_secs(120)),
                        delay_at: Timestamp::FAR_FUTURE,
                        attempts: ticket.attempts + 1,
                    },
                    false => Next::Gone,
                };
                self.s.settled(ticket, next, now);
            }
            Step::Pass(seconds) => {
                self.now = now.plus(Duration::from_secs(seconds));
                for wake in self.s.wake(self.now, 1000) {
                    let (Wake::Expired(ticket) | Wake::DelayLimit(ticket)) = wake;
                    self.taken.push(ticket);
                }
            }
            Step::Relay(way) => {
                self.directory = relay(way);
                self.s.directory_changed();
            }
            Step::Ask => {
                let lanes = self.s.lanes_to_plan(now);
                self.asking.extend(lanes.iter().map(|(lane, _)| *lane));
            }
            Step::Planned { which, connections } if !self.asking.is_empty() => {
                let lane = self.asking.swap_remove(which % self.asking.len());
                let limits = Limits {
                    connections,
                    ttl: 600,
                    ..Limits::default()
                };
                let plan = LanePlan { limits, wake: None };
                self.s.planned(lane, Some(plan), Some("abc"), now);
            }
            Step::Pick(domain) => {
                let query = QueueQuery {
                    domain: Some(["x.test", "y.test"][usize::from(domain % 2)].into()),
                    ..QueueQuery::default()
                };
                self.taken.extend(self.s.pick(&query));
            }
            Step::Hold(site) => {
                let scope = Scope {
                    site: site.then(|| "site-1".into()),
                    domain: (!site).then(|| "y.test".into()),
                    ..Scope::default()
                };
                let hold = Measure::new("hold", scope, Effect::Hold, "test", now);
                self.s.add_measure(hold);
            }
            Step::LiftAll => {
                for measure in self.s.measures(now) {
                    self.s.lift(lifted(measure, None), now);
                }
            }
            Step::Forget => self.s.forget_idle(now),
            // As where there are many others.
            Step::Drop(at) => {
                if let Some(at) = self.s.queue_of.get(&queue(at)).copied() {
                    let q = &self.s.queues[at as usize];
                    if q.entries == 0 && q.in_flight == 0 && q.status == Status::Idle {
                        self.s.remove_queue(at);
                    }
                }
            }
            Step::Resolved { .. }
            | Step::Finished { .. }
            | Step::Settled { .. }
            | Step::Planned { .. } => {}
        }
    }

    fn check(&self) {
        let s = &self.s;
        assert_eq!(s.in_flight, self.works.len());
        for (tenant, at) in &s.tenants {
            let out = self.works.iter().filter(|w| w.tenant == *tenant).count();
            assert_eq!(s.busy[*at as usize], out, "tenant {tenant}");
        }
        assert_eq!(s.resolving, self.resolving.len());
        assert_eq!(s.sites.len(), s.site_of.len());
        assert_eq!(s.lanes.len(), s.lane_of.len());
        for (at, site) in &s.sites {
            let key = (site.relay.clone(), site.name.clone());
            assert_eq!(s.site_of.get(&key), Some(&(at as u32)));
            let tied = s.queues.iter().filter(|(_, q)| q.site == Some(at as u32));
            assert_eq!(site.queues as usize, tied.count(), "tied to {}", site.name);
            let out = self.works.iter().filter(|w| w.site_at as usize == at);
            assert_eq!(site.in_flight as usize, out.count(), "site {}", site.name);
        }
        for (at, lane) in &s.lanes {
            assert_eq!(s.lane_of.get(&lane.key), Some(&(at as u32)));
            let out = self.works.iter().filter(|w| w.lane_at as usize == at);
            assert_eq!(lane.in_flight as usize, out.count(), "lane {:?}", lane.key);
            let tied = s.queues.iter().filter(|(_, q)| q.lane == Some(at as u32));
            let queues = tied.clone().count();
            assert_eq!(lane.queues as usize, queues, "tied to {:?}", lane.key);
            let entries: u32 = tied.map(|(_, q)| q.entries).sum();
            assert_eq!(lane.backlog, entries, "backlog of {:?}", lane.key);
        }
        for (at, q) in &s.queues {
            let of = |e: &&Entry| e.queue as usize == at;
            let out = self.works.iter().filter(|w| w.queue as usize == at);
            assert_eq!(q.in_flight as usize, out.count(), "{:?}", q.key);
            let entries = s.entries.iter().map(|(_, e)| e).filter(of);
            assert_eq!(q.entries as usize, entries.clone().count(), "{:?}", q.key);
            let ready = entries.filter(|e| e.phase == Phase::Ready).count();
            match q.status {
                Status::Idle => assert_eq!(ready, 0, "{:?} is ready and in no ring", q.key),
                Status::Parked {
                    until: None,
                    reason,
                    ..
                } => {
                    let site = q.site.map(|at| &s.sites[at as usize]);
                    let lane = q.lane.map(|at| &s.lanes[at as usize]);
                    let ends = match reason {
                        WaitReason::SiteBackoff => site.is_some_and(|s| s.in_flight > 0),
                        WaitReason::Concurrency => {
                            site.is_some_and(|s| s.in_flight > 0)
                                || lane
                                    .is_some_and(|l| l.in_flight > 0 || l.limits.connections == 0)
                        }
                        WaitReason::Rate => lane.is_some_and(|l| !l.planned),
                        WaitReason::Dns => {
                            self.resolving.contains(&(at as u32))
                                || s.to_resolve.iter().any(|ring| ring.contains(at as u32))
                        }
                        WaitReason::Held => !s.measures.is_empty(),
                        _ => false,
                    };
                    assert!(ends, "{:?} waits for ever: {reason:?}", q.key);
                }
                _ => {}
            }
        }
    }

    /// All is well from now on: what is left goes out within an hour.
    fn settle(&mut self) {
        self.step(Step::Relay(0));
        self.step(Step::LiftAll);
        let end = self.now.plus(Duration::from_secs(3600));
        while self.now < end {
            while !self.taken.is_empty() {
                self.step(Step::Settled {
                    which: 0,
                    again: false,
                });
            }
            self.step(Step::Take(100));
            self.step(Step::Ask);
            while !self.resolving.is_empty() {
                self.step(Step::Resolved {
                    which: 0,
                    site: Some(0),
                });
            }
            while !self.asking.is_empty() {
                self.step(Step::Planned {
                    which: 0,
                    connections: 2,
                });
            }
            while !self.works.is_empty() {
                self.step(Step::Finished {
                    which: 0,
                    end: End::Delivered,
                });
            }
            self.check();
            self.step(Step::Pass(30));
        }
        assert_eq!(self.s.len(), 0, "{:?}", self.s.list(&QueueQuery::default()));
    }
}

proptest! {
    #[test]
    fn what_is_counted_is_what_there_is_and_nothing_waits_for_ever(steps in steps()) {
        let mut books = Books::new();
        for step in steps {
            books.step(step);
            books.check();
        }
        books.settle();
    }
}
