//! Attempts: from a task of the schedule to new states in the ledger.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_mail::event::Detail;
use tidegate_mail::recipient::{Input, step};
use tidegate_mail::schedule::Schedule;
use tidegate_mail::{
    End, Event, EventKind, Fault, Hop, Outcome, RecipientId, Stage, State, Timestamp, Verdict,
};

use super::flight::{Carried, Loaded};
use super::source::source_for;
use super::{Engine, add};
use crate::directory::Way;
use crate::ports::{Contact, Endpoint, Hand, Job, JobRecipient, Target};
use crate::schedule::{Exit, Next, Task, Ticket, Wake, Work};

/// When to look again at recipients whose rows could not be read.
const READ_AGAIN: Duration = Duration::from_secs(60);

/// Under what terms of its lane an attempt was made.
#[derive(Default)]
struct Attempted<'a> {
    /// The plan's intervals in seconds; empty: the host's schedule.
    retry_after: &'a [u32],
    site: Option<&'a str>,
    /// The shaping revision whose reply rules were applied.
    shaper: Option<&'a str>,
}

impl Engine {
    /// The next task of the schedule, unless the engine is stopping or results can't be stored.
    pub(super) fn take(&self) -> Option<Task> {
        let no_more = [&self.stopping, &self.stuck, &self.store_failed];
        if no_more.iter().any(|flag| flag.load(Ordering::Relaxed)) {
            return None;
        }
        let directory = self.parts.directory.load();
        let now = self.now();
        let (task, alarm) = {
            let mut scheduler = self.schedule();
            (scheduler.take(&directory, now), scheduler.alarm())
        };
        if alarm {
            self.alarm.notify_one();
        }
        task
    }

    /// Starts as many deliveries as the limits allow, each a task of its own that goes on
    /// with the next one when it is through.
    pub(super) fn kick(&self) {
        if !self.running.load(Ordering::Relaxed) {
            return;
        }
        while let Some(task) = self.take() {
            let Some(me) = self.me.upgrade() else { return };
            tokio::spawn(async move {
                let mut task = task;
                loop {
                    me.perform(task).await;
                    match me.take() {
                        Some(next) => task = next,
                        None => break,
                    }
                    // What the end of the last one made possible beyond this.
                    me.kick();
                }
                me.idle.notify_waiters();
            });
        }
    }

    /// Does one task to its end.
    pub(super) async fn perform(&self, task: Task) {
        match task {
            Task::Resolve { queue, domain } => self.resolve(queue, &domain).await,
            Task::Deliver(work) => self.deliver(work).await,
        }
    }

    async fn resolve(&self, queue: u32, domain: &str) {
        let started = self.now();
        let answer = self.parts.resolver.resolve(domain).await;
        let now = self.now();
        let outcome = match answer {
            Ok(mut destination) => {
                // A cached answer at the end of its life would be asked for again at once.
                if destination.valid_until <= now {
                    let mut copy = (*destination).clone();
                    copy.valid_until = now.plus(Duration::from_secs(1));
                    destination = Arc::new(copy);
                }
                self.schedule().resolved(queue, Ok(destination), now);
                return;
            }
            Err(outcome) => outcome,
        };
        let tickets = self.schedule().resolved(queue, Err(&outcome), now);
        let hop = Arc::new(Hop {
            duration_ms: millis(now.since(started)),
            ..Hop::nowhere(started)
        });
        for group in tickets.chunk_by(|a, b| a.id.message == b.id.message) {
            let results: Vec<Hand> = group
                .iter()
                .map(|ticket| Hand {
                    index: ticket.id.index,
                    hop: hop.clone(),
                    outcome: outcome.clone(),
                })
                .collect();
            if let Some((carried, loaded)) = self.loaded(group).await {
                self.record(&carried, group, loaded, &results, Attempted::default());
            }
        }
    }

    /// Loads what an attempt for these tickets of one message needs; on failure they go
    /// back into the schedule.
    async fn loaded(&self, tickets: &[Ticket]) -> Option<(Arc<Carried>, Vec<Loaded>)> {
        let message = tickets.first()?.id.message;
        match self.load(message, tickets).await {
            Ok(Some((carried, loaded))) => {
                let now = self.now();
                for ticket in tickets {
                    if !loaded.iter().any(|l| l.id == ticket.id) {
                        self.schedule().settled(*ticket, Next::Gone, now);
                    }
                }
                Some((carried, loaded))
            }
            Ok(None) => {
                tracing::error!(%message, "a scheduled message is not in the store");
                let now = self.now();
                for ticket in tickets {
                    self.schedule().settled(*ticket, Next::Gone, now);
                }
                None
            }
            Err(error) => {
                tracing::error!(%message, %error, "a queued message could not be read; trying again");
                let now = self.now();
                for ticket in tickets {
                    let next = Next::Waiting {
                        due: now.plus(READ_AGAIN),
                        // Looked at again then, if it has not passed yet.
                        delay_at: now.plus(READ_AGAIN),
                        attempts: ticket.attempts,
                    };
                    self.schedule().settled(*ticket, next, now);
                }
                None
            }
        }
    }

    async fn deliver(&self, work: Work) {
        tracing::trace!(message = %work.message, tenant = %work.tenant, site = %work.site, "attempt");
        let Some((carried, loaded)) = self.loaded(&work.tickets).await else {
            let now = self.now();
            self.schedule()
                .finished(&work, Contact::Untried, std::iter::empty(), now);
            return;
        };
        let (mut results, contact) = match self.job(&work, &carried, &loaded) {
            Ok(job) => {
                let mut hand_off = self.parts.transport.deliver(job).await;
                self.look_into(&carried, &mut hand_off.results).await;
                (hand_off.results, hand_off.contact)
            }
            Err(fault) => {
                let hop = Arc::new(Hop::nowhere(self.now()));
                let results = loaded
                    .iter()
                    .map(|l| Hand {
                        index: l.id.index,
                        hop: hop.clone(),
                        outcome: Outcome::from_fault(Stage::Local, fault),
                    })
                    .collect();
                (results, Contact::Untried)
            }
        };
        if let Some(rules) = &work.temporary {
            for hand in &mut results {
                hand.outcome = rules.read(&work.site, hand.outcome.clone());
            }
        }
        // Before it counts as ended: at the end of the process what is under way is waited for.
        self.record(
            &carried,
            &work.tickets,
            loaded,
            &results,
            Attempted {
                retry_after: &work.retry_after,
                site: Some(&work.site),
                shaper: work.temporary.as_ref().and_then(|t| t.policy.as_deref()),
            },
        );
        let now = self.now();
        let alarm = {
            let mut scheduler = self.schedule();
            scheduler.finished(&work, contact, results.iter().map(|r| &r.outcome), now);
            scheduler.alarm()
        };
        if alarm {
            self.alarm.notify_one();
        }
    }

    fn job(&self, work: &Work, carried: &Carried, loaded: &[Loaded]) -> Result<Job, Fault> {
        let directory = self.parts.directory.load();
        let relay = directory
            .relay(&work.relay)
            .ok_or(Fault::RelayUnavailable)?;
        let (target, source) = match (&work.exit, &relay.way) {
            (Exit::Mx(destination), Way::Mx { sources }) => (
                Target::Mx(destination.clone()),
                source_for(sources, destination),
            ),
            (
                Exit::Smarthost,
                Way::Smarthost {
                    host,
                    port,
                    tls,
                    user,
                    sealed_password,
                },
            ) => {
                let auth = match (user, sealed_password) {
                    (Some(user), Some(sealed)) => Some((
                        user.clone(),
                        (self.parts.unseal)(sealed).ok_or(Fault::RelayUnavailable)?,
                    )),
                    _ => None,
                };
                let endpoint = Endpoint {
                    host: host.clone(),
                    port: *port,
                    tls: *tls,
                    auth,
                    // The operator named it; a smarthost on the own network is usual.
                    allow_private: true,
                    of_tenant: false,
                };
                (Target::Endpoint(Arc::new(endpoint)), None)
            }
            // The relay was changed after the schedule looked at it.
            _ => return Err(Fault::RelayUnavailable),
        };
        let envelope = &carried.envelope;
        Ok(Job {
            target,
            reverse_path: envelope.reverse_path.clone(),
            envid: envelope.envid.clone(),
            ret: envelope.effective_ret(),
            body: envelope.body,
            smtputf8: envelope.smtputf8,
            requiretls: envelope.requiretls,
            tls_optional: envelope.tls_optional,
            content: carried.content.clone(),
            recipients: loaded
                .iter()
                .filter_map(|l| {
                    Some(JobRecipient {
                        index: l.id.index,
                        recipient: envelope.recipients.get(l.id.index as usize)?.clone(),
                    })
                })
                .collect(),
            source,
            messages_per_connection: work.messages_per_connection,
        })
    }

    /// Turns results into new states and events, and enters them.
    fn record(
        &self,
        carried: &Carried,
        tickets: &[Ticket],
        loaded: Vec<Loaded>,
        results: &[Hand],
        how: Attempted<'_>,
    ) {
        let now = self.now();
        let plan = lane_schedule(how.retry_after);
        let schedule = plan.as_ref().unwrap_or(&self.parts.settings.schedule);
        for (at, before) in loaded.into_iter().enumerate() {
            let Some(ticket) = tickets.iter().find(|t| t.id == before.id) else {
                continue;
            };
            // The results come in the order of the job's recipients.
            let result = results
                .get(at)
                .filter(|r| r.index == before.id.index)
                .or_else(|| results.iter().find(|r| r.index == before.id.index));
            let (outcome, hop) = match result {
                Some(result) => (result.outcome.clone(), Hop::clone(&result.hop)),
                None => (Outcome::withdrawn(), Hop::nowhere(now)),
            };
            let attempt = before.state.attempts + 1;
            let next_slot = match outcome.verdict {
                Verdict::Withdrawn => now.plus(Duration::from_secs(1)),
                _ => schedule.next(before.id, attempt, now),
            };
            let mut detail =
                Detail::of_attempt(attempt, hop, &outcome, how.site.map(str::to_owned));
            if outcome.is_reclassified() {
                detail
                    .facts
                    .push(("taken as".to_owned(), "temporary".to_owned()));
                detail.policy = how.shaper.map(str::to_owned);
            }
            let withdrawn = outcome.verdict == Verdict::Withdrawn;
            if attempt == 1
                && !withdrawn
                && let Some(policy) = &before.promise.policy
            {
                self.parts
                    .policy
                    .attempted(&carried.tenant, policy, outcome.verdict);
            }
            let input = Input::Attempted {
                host: detail.hop.as_ref().and_then(|h| h.host.clone()),
                outcome,
                next_slot,
            };
            let rights = carried.rights(before.id.index);
            let state = match step(&before.state, input, &before.promise, rights, now) {
                Ok(state) => state,
                Err(illegal) => {
                    self.refuse_transition(*ticket, &before, &illegal, now);
                    continue;
                }
            };
            let events = if withdrawn {
                Vec::new()
            } else {
                self.attempt_events(before.id, &state, detail, now)
            };
            self.enter(*ticket, &before, state, events);
        }
    }

    fn attempt_events(
        &self,
        id: RecipientId,
        state: &tidegate_mail::RecipientState,
        mut detail: Detail,
        now: Timestamp,
    ) -> Vec<Event> {
        let event = |kind, detail| Event {
            at: now,
            kind,
            message: id.message,
            recipient: Some(id.index),
            detail,
        };
        let c = &self.counters;
        match state.state {
            State::Done(End::Sent) => {
                add(&c.delivered, 1);
                vec![event(EventKind::Delivered, detail)]
            }
            State::Done(End::Bounced) => {
                add(&c.bounced, 1);
                vec![event(EventKind::Bounced, detail)]
            }
            State::Done(End::Expired | End::Cancelled) => {
                add(&c.deferred, 1);
                add(&c.expired, 1);
                vec![
                    event(EventKind::Deferred, detail),
                    event(EventKind::Expired, Detail::default()),
                ]
            }
            State::Waiting { due } => {
                add(&c.deferred, 1);
                detail.next = Some(due);
                vec![event(EventKind::Deferred, detail)]
            }
        }
    }

    /// A transition that the state machine does not have: loud, counted, and the
    /// recipient stays as it is stored.
    pub(super) fn refuse_transition(
        &self,
        ticket: Ticket,
        before: &Loaded,
        illegal: &tidegate_mail::recipient::Illegal,
        now: Timestamp,
    ) {
        tracing::error!(recipient = %before.id, %illegal, "illegal transition refused");
        add(&self.counters.illegal_transitions, 1);
        let next = match before.state.state {
            State::Waiting { due } => Next::Waiting {
                due: due.max(now.plus(READ_AGAIN)),
                delay_at: now.plus(READ_AGAIN),
                attempts: before.state.attempts,
            },
            State::Done(_) => Next::Gone,
        };
        self.schedule().settled(ticket, next, now);
    }

    /// Handles timers that fired for something else than an attempt: expiry while held
    /// or throttled, and delays to be reported. Returns how many.
    pub(super) async fn handle_wakes(&self, wakes: Vec<Wake>) -> usize {
        let count = wakes.len();
        for wake in wakes {
            let (ticket, input, expired) = match wake {
                Wake::Expired(ticket) => (ticket, Input::Expired, true),
                Wake::DelayLimit(ticket) => (ticket, Input::DelayLimit, false),
            };
            let Some((carried, mut loaded)) = self.loaded(&[ticket]).await else {
                continue;
            };
            let Some(before) = loaded.pop() else { continue };
            let now = self.now();
            let rights = carried.rights(before.id.index);
            match step(&before.state, input, &before.promise, rights, now) {
                Ok(state) => {
                    let mut events = Vec::new();
                    if expired {
                        add(&self.counters.expired, 1);
                        let mut detail = Detail::default();
                        if let Some(last) = &state.last {
                            detail.text = Some(last.outcome.text());
                            detail.status = Some(last.outcome.status);
                        }
                        events.push(Event {
                            at: now,
                            kind: EventKind::Expired,
                            message: before.id.message,
                            recipient: Some(before.id.index),
                            detail,
                        });
                    }
                    self.enter(ticket, &before, state, events);
                }
                Err(illegal) => self.refuse_transition(ticket, &before, &illegal, now),
            }
        }
        count
    }
}

/// A plan's retry intervals as a schedule; `None`: the host's own.
fn lane_schedule(retry_after: &[u32]) -> Option<Schedule> {
    if retry_after.is_empty() {
        return None;
    }
    let intervals = retry_after
        .iter()
        .map(|s| Duration::from_secs(u64::from((*s).max(1))))
        .collect();
    Schedule::new(intervals, 100).ok()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
