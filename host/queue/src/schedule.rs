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

mod lane;
mod list;
mod ring;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tidegate_mail::{MessageId, Outcome, RecipientId, Timestamp, TrafficClass, Verdict};

use crate::directory::{Directory, Way};
use crate::ports::Destination;
use crate::shape::{Effect, LaneKey, LanePlan, LaneState, Limits, Measure, WaitReason};
use lane::Lane;
use ring::Ring;

/// Recipients of one message and domain that share a transaction.
const MAX_BATCH: usize = 100;
/// Queues kept for reuse after they became empty.
const IDLE_QUEUES: usize = 4096;
/// Queues woken when a connection becomes free.
const WAKE_PER_SLOT: usize = 8;

/// The limits of the host, which no plan exceeds.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub max_deliveries: usize,
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
    Parked { reason: WaitReason, ticket: u32 },
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
    name: Arc<str>,
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
    tenants: HashMap<Arc<str>, u32>,
    /// Transactional, bulk.
    rings: [Ring; 2],
    measures: Vec<Measure>,
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
            tenants: HashMap::new(),
            rings: [Ring::default(), Ring::default()],
            measures: Vec::new(),
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

    /// Deliveries under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn next_stamp(&mut self) -> u32 {
        self.stamp = self.stamp.wrapping_add(1);
        self.stamp
    }

    /// Whether the sleep that [`Scheduler::next_event`] promised is to be cut short; asked
    /// once, it is forgotten.
    pub fn alarm(&mut self) -> bool {
        std::mem::take(&mut self.alarm)
    }

    fn ring_by(&mut self, at: Timestamp) {
        if at < self.armed {
            self.alarm = true;
        }
    }

    fn set_timer(&mut self, at: Timestamp, slot: u32, stamp: u32) {
        self.timers.push(Reverse((at, slot, stamp)));
        self.ring_by(at);
        // What was delivered leaves its timer behind, hours away; they go in bulk.
        if self.timers.len() > 4 * self.entries.len() + 4096 {
            let entries = &self.entries;
            self.timers.retain(|Reverse((_, slot, stamp))| {
                entries
                    .get(*slot as usize)
                    .is_some_and(|e| e.stamp == *stamp && e.phase != Phase::Taken)
            });
        }
    }

    /// Adds a recipient; it is ready at once if it is due.
    pub fn add(&mut self, key: &QueueKey, new: NewEntry, now: Timestamp) {
        let slot = self.insert(key, new);
        self.place(slot, now);
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
        let next_tenant = self.tenants.len() as u32;
        let tenant = *self
            .tenants
            .entry(key.tenant.clone())
            .or_insert(next_tenant);
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
            let at = entry.due.min(entry.expires_at).min(entry.delay_at);
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

    /// Fires the timers that are due: entries become ready, parked queues come back; what
    /// expired or is to be reported as delayed is returned, taken.
    pub fn wake(&mut self, now: Timestamp, max: usize) -> Vec<Wake> {
        while let Some(Reverse((at, queue, ticket))) = self.queue_timers.peek().copied() {
            if at > now {
                break;
            }
            self.queue_timers.pop();
            self.unpark(queue, ticket);
        }
        let mut woken = Vec::new();
        while woken.len() < max {
            let Some(Reverse((at, slot, stamp))) = self.timers.peek().copied() else {
                break;
            };
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(entry) = self.entries.get(slot as usize) else {
                continue;
            };
            if entry.stamp != stamp || entry.phase == Phase::Taken {
                continue;
            }
            if entry.expires_at <= now {
                woken.push(Wake::Expired(self.ticket(slot)));
            } else if entry.delay_at <= now {
                woken.push(Wake::DelayLimit(self.ticket(slot)));
            } else if entry.phase == Phase::Waiting {
                self.place(slot, now);
            }
        }
        woken
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

    fn park(&mut self, queue: u32, reason: WaitReason, until: Option<Timestamp>, bench: Bench) {
        let ticket = self.next_stamp();
        self.queues[queue as usize].status = Status::Parked { reason, ticket };
        if let Some(until) = until {
            self.queue_timers.push(Reverse((until, queue, ticket)));
            self.ring_by(until);
        }
        match bench {
            Bench::Lane(lane) => self.lanes[lane as usize].parked.push_back((queue, ticket)),
            Bench::Site(site) => self.sites[site as usize].parked.push_back((queue, ticket)),
            Bench::Time => {}
        }
    }

    /// The next thing to do, if limits allow anything.
    pub fn take(&mut self, directory: &Directory, now: Timestamp) -> Option<Task> {
        while self.in_flight < self.bounds.max_deliveries {
            let ring = self.rings.iter_mut().find(|r| !r.is_empty())?;
            let Some(queue) = ring.pop() else { continue };
            if let Some(task) = self.serve(queue, directory, now) {
                return Some(task);
            }
        }
        None
    }

    fn serve(&mut self, queue: u32, directory: &Directory, now: Timestamp) -> Option<Task> {
        self.queues[queue as usize].status = Status::Idle;
        if !self.has_ready(queue) {
            self.drop_if_idle(queue);
            return None;
        }
        if let Some((reason, until)) = self.measured(queue, now) {
            self.park(queue, reason, until, Bench::Time);
            return None;
        }
        let q = &self.queues[queue as usize];
        let exit = match directory.relay(&q.key.relay).map(|r| &r.way) {
            None => {
                let again = now.plus(Duration::from_secs(30));
                self.park(queue, WaitReason::RelayDown, Some(again), Bench::Time);
                return None;
            }
            Some(Way::Smarthost { .. }) => {
                if q.site.is_none() {
                    let site: Arc<str> = format!("relay:{}", q.key.relay).into();
                    self.assign(queue, site, now);
                }
                Exit::Smarthost
            }
            Some(Way::Mx { .. }) => match &q.destination {
                Some(destination) if destination.valid_until > now => Exit::Mx(destination.clone()),
                _ => {
                    let domain = q.key.domain.clone();
                    self.park(queue, WaitReason::Dns, None, Bench::Time);
                    return Some(Task::Resolve { queue, domain });
                }
            },
        };
        let q = &self.queues[queue as usize];
        let (Some(site), Some(lane)) = (q.site, q.lane) else {
            return None;
        };
        if let Some((reason, until, bench)) = self.blocked(site, lane, now) {
            self.park(queue, reason, until, bench);
            return None;
        }
        let tickets = self.batch(queue);
        let first = tickets.first()?.id.message;
        self.lanes[lane as usize].spend(now);
        self.lanes[lane as usize].in_flight += 1;
        self.sites[site as usize].in_flight += 1;
        self.in_flight += 1;
        let q = &mut self.queues[queue as usize];
        q.in_flight += 1;
        let work = Work {
            queue,
            relay: q.key.relay.clone(),
            tenant: q.key.tenant.clone(),
            site: self.sites[site as usize].name.clone(),
            exit,
            message: first,
            tickets,
            messages_per_connection: self.lanes[lane as usize].limits.messages_per_connection,
            retry_after: q.retry_after.clone(),
        };
        if self.has_ready(queue) {
            self.enter_ring(queue);
        }
        Some(Task::Deliver(work))
    }

    /// Drops void positions at the front and says whether anything is left.
    fn has_ready(&mut self, queue: u32) -> bool {
        let entries = &self.entries;
        let q = &mut self.queues[queue as usize];
        let live = |&(slot, stamp): &(u32, u32)| {
            entries
                .get(slot as usize)
                .is_some_and(|e| e.stamp == stamp && e.phase == Phase::Ready)
        };
        while q.fresh.front().is_some_and(|p| !live(p)) {
            q.fresh.pop_front();
        }
        while q.retried.front().is_some_and(|p| !live(p)) {
            q.retried.pop_front();
        }
        !q.fresh.is_empty() || !q.retried.is_empty()
    }

    /// The first ready entry and those right behind it that belong to the same message.
    fn batch(&mut self, queue: u32) -> Vec<Ticket> {
        let mut tickets: Vec<Ticket> = Vec::with_capacity(1);
        while tickets.len() < MAX_BATCH {
            if !self.has_ready(queue) {
                break;
            }
            let q = &mut self.queues[queue as usize];
            // A batch stays in the list in which it began.
            let from_retried = match tickets.first() {
                Some(first) => first.attempts > 0,
                None => q.fresh.is_empty(),
            };
            let list = if from_retried {
                &mut q.retried
            } else {
                &mut q.fresh
            };
            let Some(&(slot, _)) = list.front() else {
                break;
            };
            let message = self.entries[slot as usize].id.message;
            if tickets.first().is_some_and(|t| t.id.message != message) {
                break;
            }
            list.pop_front();
            let ticket = self.ticket(slot);
            tickets.push(ticket);
        }
        tickets
    }

    fn measured(&self, queue: u32, now: Timestamp) -> Option<(WaitReason, Option<Timestamp>)> {
        if self.measures.is_empty() {
            return None;
        }
        let q = &self.queues[queue as usize];
        let site = q.site.map(|s| &self.sites[s as usize].name);
        let measure = self.measures.iter().find(|m| {
            m.until.is_none_or(|u| u > now)
                && m.scope
                    .tenant
                    .as_deref()
                    .is_none_or(|t| t == &*q.key.tenant)
                && m.scope.class.is_none_or(|c| c == q.key.class)
                && m.scope.relay.as_deref().is_none_or(|r| r == &*q.key.relay)
                && m.scope
                    .domain
                    .as_deref()
                    .is_none_or(|d| d == &*q.key.domain)
                && m.scope
                    .site
                    .as_deref()
                    .is_none_or(|s| site.is_some_and(|site| s == &**site))
        })?;
        let reason = match measure.effect {
            Effect::Suspend => WaitReason::Suspended,
            Effect::Hold => WaitReason::Held,
        };
        Some((reason, measure.until))
    }

    fn blocked(
        &mut self,
        site: u32,
        lane: u32,
        now: Timestamp,
    ) -> Option<(WaitReason, Option<Timestamp>, Bench)> {
        let s = &self.sites[site as usize];
        if s.backoff_until > now {
            return Some((WaitReason::SiteBackoff, Some(s.backoff_until), Bench::Time));
        }
        // After a failure one connection probes; the others wait for its result.
        let most = if s.failures > 0 {
            1
        } else {
            u32::from(self.bounds.max_site_connections)
        };
        if s.in_flight >= most {
            let reason = if s.failures > 0 {
                WaitReason::SiteBackoff
            } else {
                WaitReason::Concurrency
            };
            return Some((reason, None, Bench::Site(site)));
        }
        let l = &mut self.lanes[lane as usize];
        if !l.planned {
            return Some((WaitReason::Rate, None, Bench::Lane(lane)));
        }
        if let Some(until) = l.limits.paused_until
            && until > now
        {
            return Some((WaitReason::Suspended, Some(until), Bench::Lane(lane)));
        }
        if l.in_flight >= u32::from(l.limits.connections.max(1)) {
            return Some((WaitReason::Concurrency, None, Bench::Lane(lane)));
        }
        let at = l.ready_at(now);
        if at > now {
            return Some((WaitReason::Rate, Some(at), Bench::Time));
        }
        None
    }

    /// Ties a queue to its site and lane.
    fn assign(&mut self, queue: u32, site: Arc<str>, now: Timestamp) {
        let key = self.queues[queue as usize].key.clone();
        let site_key = (key.relay.clone(), site.clone());
        let site_at = match self.site_of.get(&site_key) {
            Some(at) => *at,
            None => {
                let at = self.sites.insert(Site {
                    name: site.clone(),
                    in_flight: 0,
                    failures: 0,
                    backoff_until: Timestamp(i64::MIN),
                    parked: VecDeque::new(),
                }) as u32;
                self.site_of.insert(site_key, at);
                at
            }
        };
        let lane_key = LaneKey {
            tenant: key.tenant.to_string(),
            class: key.class,
            relay: key.relay.to_string(),
            site: site.to_string(),
            lane: key.lane.as_deref().map(str::to_owned),
        };
        let lane_at = match self.lane_of.get(&lane_key) {
            Some(at) => *at,
            None => {
                let shaped = key.class == TrafficClass::Bulk;
                let limits = self.bounds.default_limits.clone();
                let at = self
                    .lanes
                    .insert(Lane::new(lane_key.clone(), shaped, limits, now))
                    as u32;
                self.lane_of.insert(lane_key, at);
                if shaped {
                    self.ring_by(now);
                }
                at
            }
        };
        let q = &mut self.queues[queue as usize];
        let entries = q.entries;
        let before = q.lane.replace(lane_at);
        q.site = Some(site_at);
        if before != Some(lane_at) {
            q.retry_after = self.lanes[lane_at as usize]
                .limits
                .retry_after
                .clone()
                .into();
            self.lanes[lane_at as usize].backlog += entries;
            if let Some(before) = before {
                self.lanes[before as usize].backlog -= entries;
            }
        }
    }

    /// The answer to [`Task::Resolve`]. On a failure the queue's ready entries are
    /// returned, taken: this was an attempt for each of them.
    pub fn resolved(
        &mut self,
        queue: u32,
        answer: Result<Arc<Destination>, &Outcome>,
        now: Timestamp,
    ) -> Vec<Ticket> {
        match answer {
            Ok(destination) => {
                let site = destination.site.clone();
                self.queues[queue as usize].destination = Some(destination);
                self.assign(queue, site, now);
                self.enter_ring(queue);
                Vec::new()
            }
            Err(_) => {
                let mut tickets = Vec::new();
                while self.has_ready(queue) {
                    tickets.extend(self.batch(queue));
                }
                self.queues[queue as usize].status = Status::Idle;
                tickets
            }
        }
    }

    /// A delivery has ended: frees its connection and counts. The tickets stay taken
    /// until [`Scheduler::settled`].
    pub fn finished<'a>(
        &mut self,
        queue: u32,
        host_failure: bool,
        outcomes: impl Iterator<Item = &'a Outcome>,
        now: Timestamp,
    ) {
        self.in_flight -= 1;
        let q = &mut self.queues[queue as usize];
        q.in_flight -= 1;
        let (Some(site), Some(lane)) = (q.site, q.lane) else {
            return;
        };
        let l = &mut self.lanes[lane as usize];
        l.in_flight = l.in_flight.saturating_sub(1);
        let mut sent = false;
        for outcome in outcomes {
            sent |= outcome.verdict != Verdict::Withdrawn;
            l.count(outcome);
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
        s.in_flight = s.in_flight.saturating_sub(1);
        if host_failure {
            // Attempts that were under way together count as one failure.
            if s.backoff_until <= now {
                s.failures = s.failures.saturating_add(1);
                let factor = 1u32 << (s.failures - 1).min(16);
                s.backoff_until = now.plus(first.saturating_mul(factor).min(longest));
            }
        } else {
            s.failures = 0;
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
        let q = &self.queues[queue as usize];
        if q.entries > 0
            || q.in_flight > 0
            || q.status != Status::Idle
            || self.queues.len() <= IDLE_QUEUES
        {
            return;
        }
        let q = self.queues.remove(queue as usize);
        self.queue_of.remove(&q.key);
    }

    /// Replaces the measures in force; everything they parked is looked at anew.
    pub fn set_measures(&mut self, measures: Vec<Measure>) {
        self.measures = measures;
        let parked: Vec<(u32, u32)> = self
            .queues
            .iter()
            .filter_map(|(at, q)| match q.status {
                Status::Parked {
                    reason: WaitReason::Held | WaitReason::Suspended,
                    ticket,
                } => Some((at as u32, ticket)),
                _ => None,
            })
            .collect();
        for (queue, ticket) in parked {
            self.unpark(queue, ticket);
        }
    }

    /// Looks again at queues whose relay was not there.
    pub fn recheck_relays(&mut self) {
        let parked: Vec<(u32, u32)> = self
            .queues
            .iter()
            .filter_map(|(at, q)| match q.status {
                Status::Parked {
                    reason: WaitReason::RelayDown,
                    ticket,
                } => Some((at as u32, ticket)),
                _ => None,
            })
            .collect();
        for (queue, ticket) in parked {
            self.unpark(queue, ticket);
        }
    }

    pub fn measures(&self) -> &[Measure] {
        &self.measures
    }

    /// Makes every shaped lane ask its policy again.
    pub fn replan(&mut self, now: Timestamp) {
        for (_, lane) in self.lanes.iter_mut() {
            if lane.shaped {
                lane.next_plan = now;
            }
        }
        self.ring_by(now);
    }

    /// Up to 256 lanes whose plan is due, with what the policy may know of them.
    pub fn lanes_to_plan(&mut self, now: Timestamp) -> Vec<(u32, LaneState)> {
        let mut due: Vec<u32> = self
            .lanes
            .iter()
            .filter(|(_, l)| {
                l.shaped && !l.asking && l.next_plan <= now && (l.backlog > 0 || l.in_flight > 0)
            })
            .map(|(at, _)| at as u32)
            .collect();
        due.truncate(256);
        let mut oldest: HashMap<u32, Timestamp> = HashMap::new();
        for (_, q) in &self.queues {
            let Some(lane) = q.lane.filter(|l| due.contains(l)) else {
                continue;
            };
            for (slot, _) in q.fresh.front().into_iter().chain(q.retried.front()) {
                if let Some(entry) = self.entries.get(*slot as usize) {
                    let at = entry.id.message.given_at();
                    oldest
                        .entry(lane)
                        .and_modify(|o| *o = (*o).min(at))
                        .or_insert(at);
                }
            }
        }
        due.into_iter()
            .map(|at| {
                let lane = &mut self.lanes[at as usize];
                lane.asking = true;
                let age = oldest.get(&at).map_or(0, |o| now.since(*o).as_secs());
                (at, lane.state(u32::try_from(age).unwrap_or(u32::MAX), now))
            })
            .collect()
    }

    /// Puts a plan in force, or, without one, leaves the lane as it is for now.
    pub fn planned(
        &mut self,
        lane: u32,
        plan: Option<LanePlan>,
        policy: Option<&str>,
        now: Timestamp,
    ) {
        let most = self.bounds.max_site_connections;
        let l = &mut self.lanes[lane as usize];
        match plan {
            Some(mut plan) => {
                plan.limits.connections = plan.limits.connections.clamp(1, most);
                plan.limits.messages_per_connection = plan.limits.messages_per_connection.max(1);
                l.apply(plan, policy.map(str::to_owned), now);
            }
            None => l.plan_failed(now),
        }
        let retry_after: Arc<[u32]> = l.limits.retry_after.clone().into();
        let mut parked = Vec::new();
        for (at, q) in self.queues.iter_mut().filter(|(_, q)| q.lane == Some(lane)) {
            q.retry_after = retry_after.clone();
            if let Status::Parked {
                reason: WaitReason::Rate | WaitReason::Concurrency | WaitReason::Suspended,
                ticket,
            } = q.status
            {
                parked.push((at as u32, ticket));
            }
        }
        self.lanes[lane as usize].parked.clear();
        for (queue, ticket) in parked {
            self.unpark(queue, ticket);
        }
    }

    /// The next instant at which [`Scheduler::wake`] or a plan has something to do.
    pub fn next_event(&mut self) -> Timestamp {
        while let Some(Reverse((_, slot, stamp))) = self.timers.peek().copied() {
            let live = self
                .entries
                .get(slot as usize)
                .is_some_and(|e| e.stamp == stamp && e.phase != Phase::Taken);
            if live {
                break;
            }
            self.timers.pop();
        }
        while let Some(Reverse((_, queue, ticket))) = self.queue_timers.peek().copied() {
            let live = self.queues.get(queue as usize).is_some_and(
                |q| matches!(q.status, Status::Parked { ticket: t, .. } if t == ticket),
            );
            if live {
                break;
            }
            self.queue_timers.pop();
        }
        let entry = self.timers.peek().map(|Reverse(t)| t.0);
        let queue = self.queue_timers.peek().map(|Reverse(t)| t.0);
        let plan = self
            .lanes
            .iter()
            .filter(|(_, l)| l.shaped && !l.asking && (l.backlog > 0 || l.in_flight > 0))
            .map(|(_, l)| l.next_plan)
            .min();
        self.armed = [entry, queue, plan]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Timestamp::FAR_FUTURE);
        self.alarm = false;
        self.armed
    }
}
