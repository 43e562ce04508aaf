//! The schedule: which recipient moves next, in memory, as plain data.
//!
//! Recipients wait in *queues* (relay, domain, tenant, class, sub-queue); queues share
//! *lanes*, which a shaping policy limits, and *sites*, which are backed off when no
//! host answers. Nothing here is durable or asynchronous: time is an argument, the
//! engine acts on what [`Scheduler::take`] and [`Scheduler::wake`] return and reports back.
//!
//! Invariants: an entry is waiting, ready or taken; each waiting or ready entry has one
//! live timer that fires no later than its expiry, so no wait outlives the lifetime;
//! a queue is idle, in the ring, or parked with a reason.

mod automatic;
mod control;
mod lane;
mod list;
mod quota;
mod ring;
mod serve;
#[cfg(test)]
mod tests;
mod ties;
mod timers;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tidegate_mail::{MessageId, Outcome, RecipientId, Timestamp, TrafficClass, Verdict};

use crate::directory::Quota;
use crate::measure::Measure;
use crate::ports::{Contact, Destination};
use crate::shape::{LaneKey, Limits, ReplyRules, WaitReason};
use automatic::Automatic;
use lane::Lane;
use quota::Quotas;
pub use quota::{Piece, QuotaUse};
use ring::Ring;
use ties::SubQueues;

/// Recipients of one message and domain that share a transaction.
const MAX_BATCH: usize = 100;
/// What the name of a site begins with whose only host is a smarthost.
const SMARTHOST_SITE: &str = "relay:";
/// Queues kept for reuse after they became empty.
const IDLE_QUEUES: usize = 4096;
/// Queues woken when a connection becomes free.
const WAKE_PER_SLOT: usize = 8;

/// The limits of the host, which no plan exceeds.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub max_deliveries: usize,
    /// Domains that are resolved at the same time.
    pub max_resolutions: usize,
    pub max_site_connections: u16,
    pub default_limits: Limits,
    pub site_backoff: (Duration, Duration),
}

/// A recipient as the schedule knows it.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry {
    pub id: RecipientId,
    pub due: Timestamp,
    pub expires_at: Timestamp,
    /// When a delay is to be reported; [`Timestamp::FAR_FUTURE`]: never (again).
    pub delay_at: Timestamp,
    pub attempts: u32,
}

/// Where a recipient belongs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueKey {
    pub relay: Arc<str>,
    pub domain: Arc<str>,
    pub tenant: Arc<str>,
    pub class: TrafficClass,
    pub lane: Option<Arc<str>>,
}

/// An entry taken out of the schedule; to be given back by [`Scheduler::settled`].
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    slot: u32,
    pub id: RecipientId,
    pub attempts: u32,
}

/// A taken entry's next place.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    Waiting {
        due: Timestamp,
        delay_at: Timestamp,
        attempts: u32,
    },
    Gone,
}

/// A timer that fired for something else than an attempt.
#[derive(Clone, Copy, Debug)]
pub enum Wake {
    Expired(Ticket),
    DelayLimit(Ticket),
}

/// How a job reaches its peer.
#[derive(Clone, Debug)]
pub enum Exit {
    Mx(Arc<Destination>),
    /// The relay's smarthost.
    Smarthost,
}

/// Recipients of one message for one queue, and a connection's worth of permission.
#[derive(Debug)]
pub struct Work {
    pub queue: u32,
    pub relay: Arc<str>,
    pub tenant: Arc<str>,
    pub site: Arc<str>,
    pub exit: Exit,
    pub message: MessageId,
    pub tickets: Vec<Ticket>,
    pub messages_per_connection: u16,
    /// The plan's intervals in seconds; empty: the host's schedule.
    pub retry_after: Arc<[u32]>,
    /// Of a shaped lane: the replies that are limits in truth.
    pub temporary: Option<Arc<ReplyRules>>,
    /// Under which its recipients count.
    pub quota: Option<Quota>,
    /// Where it was begun: its queue may be tied elsewhere when it ends.
    site_at: u32,
    lane_at: u32,
}

/// What the engine is to do next.
#[derive(Debug)]
pub enum Task {
    /// Resolve the domain and report to [`Scheduler::resolved`].
    Resolve {
        queue: u32,
        domain: Arc<str>,
    },
    Deliver(Work),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Ready,
    /// In flight, or its new state is being committed.
    Taken,
}

#[derive(Debug)]
struct Entry {
    id: RecipientId,
    queue: u32,
    due: Timestamp,
    expires_at: Timestamp,
    delay_at: Timestamp,
    attempts: u32,
    /// Changes whenever older timers and list positions become void.
    stamp: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Idle,
    InRing,
    Parked {
        reason: WaitReason,
        ticket: u32,
        /// `None`: until something else ends.
        until: Option<Timestamp>,
    },
}

#[derive(Debug)]
struct Queue {
    key: QueueKey,
    tenant: u32,
    /// Never attempted: goes before what is retried.
    fresh: VecDeque<(u32, u32)>,
    retried: VecDeque<(u32, u32)>,
    entries: u32,
    in_flight: u32,
    status: Status,
    destination: Option<Arc<Destination>>,
    lane: Option<u32>,
    site: Option<u32>,
    retry_after: Arc<[u32]>,
}

#[derive(Debug)]
struct Site {
    relay: Arc<str>,
    name: Arc<str>,
    /// Tied to it.
    queues: u32,
    in_flight: u32,
    failures: u32,
    backoff_until: Timestamp,
    parked: VecDeque<(u32, u32)>,
}

/// Where a parked queue waits for a connection.
#[derive(Clone, Copy)]
enum Bench {
    Lane(u32),
    Site(u32),
    /// Only time, or a change from outside, wakes it.
    Time,
}

#[derive(Debug)]
pub struct Scheduler {
    bounds: Bounds,
    entries: Slab<Entry>,
    timers: BinaryHeap<Reverse<(Timestamp, u32, u32)>>,
    queues: Slab<Queue>,
    queue_of: HashMap<QueueKey, u32>,
    queue_timers: BinaryHeap<Reverse<(Timestamp, u32, u32)>>,
    lanes: Slab<Lane>,
    lane_of: HashMap<LaneKey, u32>,
    sites: Slab<Site>,
    site_of: HashMap<(Arc<str>, Arc<str>), u32>,
    /// Sites and lanes beyond which those that nothing refers to are forgotten.
    most_places: usize,
    /// Numbers of tenants. They stay: there are no more of them than the operator has made.
    tenants: HashMap<Arc<str>, u32>,
    /// By tenant number: its deliveries under way.
    busy: Vec<usize>,
    sub_queues: SubQueues,
    /// Transactional, bulk.
    rings: [Ring; 2],
    /// The same, of queues that wait for their domain to be resolved.
    to_resolve: [Ring; 2],
    resolving: usize,
    /// People's.
    measures: Vec<Measure>,
    automatic: Automatic,
    quotas: Quotas,
    /// The rules of the last plan; none: there are none.
    temporary: Option<Arc<ReplyRules>>,
    in_flight: usize,
    stamp: u32,
    /// The instant the engine sleeps until, and whether something earlier turned up since.
    armed: Timestamp,
    alarm: bool,
}

impl Scheduler {
    pub fn new(bounds: Bounds) -> Self {
        Scheduler {
            bounds,
            entries: Slab::new(),
            timers: BinaryHeap::new(),
            queues: Slab::new(),
            queue_of: HashMap::new(),
            queue_timers: BinaryHeap::new(),
            lanes: Slab::new(),
            lane_of: HashMap::new(),
            sites: Slab::new(),
            site_of: HashMap::new(),
            most_places: 0,
            tenants: HashMap::new(),
            busy: Vec::new(),
            sub_queues: SubQueues::default(),
            rings: Default::default(),
            to_resolve: Default::default(),
            resolving: 0,
            measures: Vec::new(),
            automatic: Automatic::default(),
            quotas: Quotas::default(),
            temporary: None,
            in_flight: 0,
            stamp: 0,
            armed: Timestamp::FAR_FUTURE,
            alarm: false,
        }
    }

    /// Recipients in the schedule, taken ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many have an expiry before `limit`, and at most `max` of them.
    pub fn overdue(&self, limit: Timestamp, max: usize) -> (u64, Vec<RecipientId>) {
        let mut count = 0;
        let mut some = Vec::new();
        for (_, entry) in self.entries.iter() {
            if entry.expires_at < limit {
                count += 1;
                if some.len() < max {
                    some.push(entry.id);
                }
            }
        }
        (count, some)
    }

    /// Deliveries under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn next_stamp(&mut self) -> u32 {
        self.stamp = self.stamp.wrapping_add(1);
        self.stamp
    }

    /// Adds a recipient; it is ready at once if it is due. Says whether it may go soon: it is due,
    /// and its queue waits for nothing but its turn.
    pub fn add(&mut self, key: &QueueKey, new: NewEntry, now: Timestamp) -> bool {
        let slot = self.insert(key, new);
        self.place(slot, now);
        let entry = &self.entries[slot as usize];
        let soon = match self.queues[entry.queue as usize].status {
            Status::Idle | Status::InRing => true,
            Status::Parked { reason, .. } => matches!(
                reason,
                WaitReason::Dns | WaitReason::Concurrency | WaitReason::Rate
            ),
        };
        soon && entry.phase == Phase::Ready
    }

    /// Adds a recipient as taken: it takes part once it is settled.
    pub fn add_taken(&mut self, key: &QueueKey, new: NewEntry) -> Ticket {
        let slot = self.insert(key, new);
        self.ticket(slot)
    }

    fn insert(&mut self, key: &QueueKey, new: NewEntry) -> u32 {
        let queue = self.queue(key);
        let slot = self.entries.insert(Entry {
            id: new.id,
            queue,
            due: new.due,
            expires_at: new.expires_at,
            delay_at: new.delay_at,
            attempts: new.attempts,
            stamp: 0,
            phase: Phase::Waiting,
        }) as u32;
        let q = &mut self.queues[queue as usize];
        q.entries += 1;
        if let Some(lane) = q.lane {
            self.lanes[lane as usize].backlog += 1;
        }
        slot
    }

    fn queue(&mut self, key: &QueueKey) -> u32 {
        if let Some(queue) = self.queue_of.get(key) {
            return *queue;
        }
        let tenant = *self.tenants.entry(key.tenant.clone()).or_insert_with(|| {
            self.busy.push(0);
            (self.busy.len() - 1) as u32
        });
        if let Some(name) = &key.lane
            && !self.sub_queues.admit(tenant, name)
        {
            return self.queue(&QueueKey {
                lane: None,
                ..key.clone()
            });
        }
        let queue = self.queues.insert(Queue {
            key: key.clone(),
            tenant,
            fresh: VecDeque::new(),
            retried: VecDeque::new(),
            entries: 0,
            in_flight: 0,
            status: Status::Idle,
            destination: None,
            lane: None,
            site: None,
            retry_after: Arc::from([]),
        }) as u32;
        self.queue_of.insert(key.clone(), queue);
        queue
    }

    /// Makes an entry wait for its time, or ready.
    fn place(&mut self, slot: u32, now: Timestamp) {
        let stamp = self.next_stamp();
        let entry = &mut self.entries[slot as usize];
        entry.stamp = stamp;
        if entry.due > now {
            entry.phase = Phase::Waiting;
            let at = if entry.expires_at <= now {
                // Its end could not be written down: a pause before that is tried again.
                entry.due
            } else {
                entry.due.min(entry.expires_at).min(entry.delay_at)
            };
            self.set_timer(at, slot, stamp);
            return;
        }
        entry.phase = Phase::Ready;
        let at = entry.expires_at.min(entry.delay_at);
        let (queue, fresh) = (entry.queue, entry.attempts == 0);
        self.set_timer(at, slot, stamp);
        let q = &mut self.queues[queue as usize];
        if fresh {
            q.fresh.push_back((slot, stamp));
        } else {
            q.retried.push_back((slot, stamp));
        }
        if q.status == Status::Idle {
            self.enter_ring(queue);
        }
    }

    fn enter_ring(&mut self, queue: u32) {
        let q = &mut self.queues[queue as usize];
        q.status = Status::InRing;
        let (tenant, class) = (q.tenant, q.key.class);
        self.rings[class as usize].push(tenant, queue);
    }

    fn ticket(&mut self, slot: u32) -> Ticket {
        let stamp = self.next_stamp();
        let entry = &mut self.entries[slot as usize];
        entry.phase = Phase::Taken;
        entry.stamp = stamp;
        Ticket {
            slot,
            id: entry.id,
            attempts: entry.attempts,
        }
    }

    fn unpark(&mut self, queue: u32, ticket: u32) -> bool {
        match self.queues.get(queue as usize) {
            Some(q) if matches!(q.status, Status::Parked { ticket: t, .. } if t == ticket) => {
                self.enter_ring(queue);
                true
            }
            _ => false,
        }
    }

    /// The ticket by which it comes back.
    fn park(
        &mut self,
        queue: u32,
        reason: WaitReason,
        until: Option<Timestamp>,
        bench: Bench,
    ) -> u32 {
        let ticket = self.next_stamp();
        self.queues[queue as usize].status = Status::Parked {
            reason,
            ticket,
            until,
        };
        if let Some(until) = until {
            self.queue_timers.push(Reverse((until, queue, ticket)));
            self.ring_by(until);
        }
        match bench {
            Bench::Lane(lane) => self.lanes[lane as usize].parked.push_back((queue, ticket)),
            Bench::Site(site) => self.sites[site as usize].parked.push_back((queue, ticket)),
            Bench::Time => {}
        }
        ticket
    }

    /// A delivery has ended: frees its connection and counts. The tickets stay taken
    /// until [`Scheduler::settled`].
    pub fn finished<'a>(
        &mut self,
        work: &Work,
        contact: Contact,
        outcomes: impl Iterator<Item = &'a Outcome>,
        now: Timestamp,
    ) {
        let &Work {
            queue,
            site_at: site,
            lane_at: lane,
            ..
        } = work;
        self.in_flight -= 1;
        let q = &mut self.queues[queue as usize];
        q.in_flight -= 1;
        self.busy[q.tenant as usize] -= 1;
        let l = &mut self.lanes[lane as usize];
        l.in_flight -= 1;
        let mut sent = false;
        let mut over = 0;
        let mut cause = None;
        for outcome in outcomes {
            sent |= outcome.verdict != Verdict::Withdrawn;
            over += u32::from(matches!(
                outcome.verdict,
                Verdict::Delivered | Verdict::Permanent
            ));
            l.count(outcome);
            if contact == Contact::Failed && cause.is_none() {
                cause = Some(outcome.text());
            }
        }
        if !sent {
            l.refund();
        }
        if l.shaped && !l.asking && l.triggered() {
            l.next_plan = now;
            self.alarm = true;
        }
        let (first, longest) = self.bounds.site_backoff;
        let s = &mut self.sites[site as usize];
        s.in_flight -= 1;
        match contact {
            // Attempts that were under way together count as one failure.
            Contact::Failed if s.backoff_until <= now => {
                s.failures = s.failures.saturating_add(1);
                let factor = 1u32 << (s.failures - 1).min(16);
                s.backoff_until = now.plus(first.saturating_mul(factor).min(longest));
                self.note_site(site, cause, now);
            }
            Contact::Reached if s.failures > 0 => {
                s.failures = 0;
                self.note_site(site, None, now);
            }
            Contact::Failed | Contact::Reached | Contact::Untried => {}
        }
        if let Some(quota) = work.quota {
            let reserved = work.tickets.len() as u32;
            self.count_used(&work.tenant, quota, reserved, over, now);
        }
        self.wake_bench(site, lane);
        self.drop_if_idle(queue);
    }

    fn wake_bench(&mut self, site: u32, lane: u32) {
        let most = if self.sites[site as usize].in_flight == 0 {
            usize::MAX
        } else {
            WAKE_PER_SLOT
        };
        let mut woken = 0;
        while woken < most {
            let Some((queue, ticket)) = self.sites[site as usize].parked.pop_front() else {
                break;
            };
            woken += usize::from(self.unpark(queue, ticket));
        }
        let most = if self.lanes[lane as usize].in_flight == 0 {
            usize::MAX
        } else {
            WAKE_PER_SLOT
        };
        let mut woken = 0;
        while woken < most && self.lanes[lane as usize].planned {
            let Some((queue, ticket)) = self.lanes[lane as usize].parked.pop_front() else {
                break;
            };
            woken += usize::from(self.unpark(queue, ticket));
        }
    }

    /// The new state of a taken entry is committed.
    pub fn settled(&mut self, ticket: Ticket, next: Next, now: Timestamp) {
        match next {
            Next::Waiting {
                due,
                delay_at,
                attempts,
            } => {
                let entry = &mut self.entries[ticket.slot as usize];
                entry.due = due;
                entry.delay_at = delay_at;
                entry.attempts = attempts;
                self.place(ticket.slot, now);
            }
            Next::Gone => {
                let entry = self.entries.remove(ticket.slot as usize);
                let q = &mut self.queues[entry.queue as usize];
                q.entries -= 1;
                if let Some(lane) = q.lane {
                    self.lanes[lane as usize].backlog -= 1;
                }
                self.drop_if_idle(entry.queue);
            }
        }
    }

    fn drop_if_idle(&mut self, queue: u32) {
        let q = &mut self.queues[queue as usize];
        if q.entries > 0 || q.in_flight > 0 {
            return;
        }
        match q.status {
            Status::Idle => {}
            // A resolution under way, or a ring, has its number; what it waits for otherwise no
            // longer matters.
            Status::Parked { reason, .. } if reason != WaitReason::Dns => q.status = Status::Idle,
            Status::Parked { .. } | Status::InRing => return,
        }
        let crowded = q.key.lane.is_some() && self.sub_queues.crowded(q.tenant);
        if crowded || self.queues.len() > IDLE_QUEUES {
            self.remove_queue(queue);
        }
    }
}
