//! Instants at which something is to happen, and when the engine has to wake up for them.

use std::cmp::Reverse;

use tidegate_mail::Timestamp;

use super::{Phase, Scheduler, Status, Wake};

impl Scheduler {
    /// Whether the sleep that [`Scheduler::next_event`] promised is to be cut short; asked
    /// once, it is forgotten.
    pub fn alarm(&mut self) -> bool {
        std::mem::take(&mut self.alarm)
    }

    pub(super) fn ring_by(&mut self, at: Timestamp) {
        if at < self.armed {
            self.alarm = true;
        }
    }

    pub(super) fn set_timer(&mut self, at: Timestamp, slot: u32, stamp: u32) {
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
