//! Whose turn it is, whether the limits allow it, and what goes into one transaction.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::{Outcome, Timestamp};

use super::{
    Bench, Exit, MAX_BATCH, Phase, Queue, SMARTHOST_SITE, Scheduler, Status, Task, Ticket, Work,
};
use crate::directory::{Directory, Way};
use crate::measure::Effect;
use crate::ports::Destination;
use crate::shape::{ReplyRules, WaitReason};

impl Scheduler {
    /// The next thing to do, if limits allow anything.
    pub fn take(&mut self, directory: &Directory, now: Timestamp) -> Option<Task> {
        while self.in_flight < self.bounds.max_deliveries {
            if let Some(task) = self.next_to_resolve() {
                return Some(task);
            }
            let (busy, share) = (&self.busy, self.share());
            let may = |tenant: u32| busy[tenant as usize] < share;
            let queue = self.rings.iter_mut().find_map(|ring| ring.pop(may))?;
            if let Some(task) = self.serve(queue, directory, now) {
                return Some(task);
            }
        }
        None
    }

    /// How many deliveries a tenant may have under way and begin another: three times what is
    /// free. So one whose destinations stall gets three quarters of all, the next three quarters
    /// of what is left, and there is always something for the others. A tenant without others
    /// gets all.
    fn share(&self) -> usize {
        if self.busy.len() < 2 {
            return usize::MAX;
        }
        3 * (self.bounds.max_deliveries - self.in_flight)
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
        let (most, quota) = self.within_quota(queue, directory, now)?;
        let q = &self.queues[queue as usize];
        let exit = match directory.relay(&q.key.relay).map(|r| &r.way) {
            None => {
                let again = now.plus(Duration::from_secs(30));
                self.park(queue, WaitReason::RelayDown, Some(again), Bench::Time);
                return None;
            }
            Some(Way::Smarthost { .. }) => {
                if self
                    .site_name(q)
                    .and_then(|s| s.strip_prefix(SMARTHOST_SITE))
                    != Some(&*q.key.relay)
                {
                    let site: Arc<str> = format!("{SMARTHOST_SITE}{}", q.key.relay).into();
                    self.move_to(queue, site, now);
                    return None;
                }
                Exit::Smarthost
            }
            Some(Way::Mx { .. }) => match &q.destination {
                Some(destination) if destination.valid_until > now => {
                    let destination = destination.clone();
                    if self.site_name(q) != Some(&destination.site) {
                        self.move_to(queue, destination.site.clone(), now);
                        return None;
                    }
                    Exit::Mx(destination)
                }
                _ => {
                    let (tenant, class) = (q.tenant, q.key.class);
                    self.park(queue, WaitReason::Dns, None, Bench::Time);
                    self.to_resolve[class as usize].push(tenant, queue);
                    return self.next_to_resolve();
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
        let tickets = self.batch(queue, most);
        let first = tickets.first()?.id.message;
        if quota.is_some() {
            let tenant = self.queues[queue as usize].key.tenant.clone();
            self.reserve(&tenant, tickets.len() as u32);
        }
        self.lanes[lane as usize].spend(now);
        self.lanes[lane as usize].in_flight += 1;
        self.sites[site as usize].in_flight += 1;
        self.in_flight += 1;
        let q = &mut self.queues[queue as usize];
        q.in_flight += 1;
        self.busy[q.tenant as usize] += 1;
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
            temporary: self.rules_of(lane),
            quota,
            site_at: site,
            lane_at: lane,
        };
        if self.has_ready(queue) {
            self.enter_ring(queue);
        }
        Some(Task::Deliver(work))
    }

    /// The replies that are limits in truth in a lane.
    fn rules_of(&self, lane: u32) -> Option<Arc<ReplyRules>> {
        let lane = &self.lanes[lane as usize];
        let rules = lane.temporary.as_ref().or(self.temporary.as_ref());
        rules
            .filter(|rules| lane.shaped && !rules.rules.is_empty())
            .cloned()
    }

    /// The next domain to be resolved, if fewer are than may be. The others wait, and tenants
    /// take turns: name servers that do not answer hold up nothing else.
    fn next_to_resolve(&mut self) -> Option<Task> {
        while self.resolving < self.bounds.max_resolutions {
            let queue = self
                .to_resolve
                .iter_mut()
                .find_map(|ring| ring.pop(|_| true))?;
            if self.has_ready(queue) {
                self.resolving += 1;
                let domain = self.queues[queue as usize].key.domain.clone();
                return Some(Task::Resolve { queue, domain });
            }
            // Its mail has expired, or a person took it.
            self.queues[queue as usize].status = Status::Idle;
            self.drop_if_idle(queue);
        }
        None
    }

    fn site_name(&self, q: &Queue) -> Option<&str> {
        q.site.map(|at| &*self.sites[at as usize].name)
    }

    /// Ties a queue to a site; then its turn comes again, under what holds for that site.
    fn move_to(&mut self, queue: u32, site: Arc<str>, now: Timestamp) {
        self.assign(queue, site, now);
        self.enter_ring(queue);
    }

    /// Drops void positions at the front and says whether anything is left.
    pub(super) fn has_ready(&mut self, queue: u32) -> bool {
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

    /// The first ready entry and up to `most` in all of those right behind it that belong to
    /// the same message.
    pub(super) fn batch(&mut self, queue: u32, most: usize) -> Vec<Ticket> {
        let mut tickets: Vec<Ticket> = Vec::with_capacity(1);
        while tickets.len() < most {
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
                    .lane
                    .as_deref()
                    .is_none_or(|l| q.key.lane.as_deref() == Some(l))
                && m.scope
                    .site
                    .as_deref()
                    .is_none_or(|s| site.is_some_and(|site| s == &**site))
        })?;
        let reason = match measure.effect {
            Effect::Suspend | Effect::Slow => WaitReason::Suspended,
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
        if l.in_flight >= u32::from(l.limits.connections) {
            return Some((WaitReason::Concurrency, None, Bench::Lane(lane)));
        }
        let at = l.ready_at(now);
        if at > now {
            return Some((WaitReason::Rate, Some(at), Bench::Time));
        }
        None
    }

    /// The answer to [`Task::Resolve`]. On a failure the queue's ready entries are
    /// returned, taken: this was an attempt for each of them.
    pub fn resolved(
        &mut self,
        queue: u32,
        answer: Result<Arc<Destination>, &Outcome>,
        now: Timestamp,
    ) -> Vec<Ticket> {
        self.resolving -= 1;
        match answer {
            Ok(destination) => {
                let site = destination.site.clone();
                self.queues[queue as usize].destination = Some(destination);
                self.move_to(queue, site, now);
                Vec::new()
            }
            Err(_) => {
                let mut tickets = Vec::new();
                while self.has_ready(queue) {
                    tickets.extend(self.batch(queue, MAX_BATCH));
                }
                self.queues[queue as usize].status = Status::Idle;
                self.drop_if_idle(queue);
                tickets
            }
        }
    }
}
