//! Export: events after a durable cursor, rendered by policy, handed to a sink.
//!
//! It shares nothing with delivery but the event table. The cursor moves after the sink
//! has the batch, so a crash hands a batch over again and never leaves one out.
//!
//! What policy or receiver object to for good is narrowed down to single events. Such an event is
//! left out, loudly, once one after it was taken: where none is taken the fault is the
//! policy's, the receiver's or the configuration's, and the cursor stays.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Engine;
use crate::control::ExportStatus;
use crate::ports::{Again, EventRecord, ExportBatch, PolicyFault, Sink, SinkError, StoreResult};

/// Events in one batch.
const BATCH: usize = 512;
/// Refused events in a row after which it is not the events.
const MAX_SUSPECTS: usize = 512;
/// Of these so many are tried without a wait.
const QUICK_SUSPECTS: usize = 32;
/// The longest wait that a receiver is granted.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Between two batches.
const PAUSE: Duration = Duration::from_millis(100);

/// What an exporter did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Exported {
    Nothing,
    Some,
    /// Part of the way to what is refused; the events refused one by one so far.
    Narrowed(usize),
    /// The policy or the sink failed; the cursor stays. With what the receiver asked for.
    Failed(Option<Duration>),
}

/// Where an exporter stands beyond its cursor. A crash forgets it, and it is found out again.
#[derive(Debug, Default)]
struct Narrowing {
    /// So many events after the last suspect are not taken together.
    bad: Option<usize>,
    /// Events refused alone, right after the cursor, with the reasons.
    suspects: Vec<(u64, String)>,
}

impl Narrowing {
    /// How many events are handed over next.
    fn size(&self) -> usize {
        match self.bad {
            _ if !self.suspects.is_empty() => 1,
            Some(bad) => (bad / 2).max(1),
            None => BATCH,
        }
    }

    fn taken(&mut self, events: usize) {
        self.bad = self
            .bad
            .and_then(|bad| bad.checked_sub(events))
            .filter(|n| *n > 0);
    }

    /// Notes that these were refused. `false`: so many in a row that it is not the events.
    fn refused(&mut self, batch: &[EventRecord], reason: String) -> bool {
        self.bad = None;
        match batch {
            [one] => self.suspects.push((one.seq, reason)),
            more => self.bad = Some(more.len()),
        }
        self.suspects.len() < MAX_SUSPECTS
    }
}

#[derive(Default)]
struct Exporter {
    status: ExportStatus,
    narrowing: Narrowing,
}

/// How the exporters do, by name.
#[derive(Default)]
pub(super) struct Exports(Mutex<BTreeMap<String, Exporter>>);

impl Exports {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Exporter>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, name: &str, note: impl FnOnce(&mut ExportStatus)) {
        note(&mut self.lock().entry(name.to_owned()).or_default().status);
    }
}

/// The name under which the bounds of the batch under way are kept; no exporter is called so.
fn bounds_of(name: &str) -> String {
    format!("{name}/batch")
}

impl Engine {
    /// Exports one batch.
    pub(super) async fn export_batch(&self, name: &str, sink: &dyn Sink) -> Exported {
        let known = self
            .exports
            .lock()
            .get_mut(name)
            .map(|e| std::mem::take(&mut e.narrowing));
        let mut narrowing = known.unwrap_or_default();
        let done = self.try_batch(name, sink, &mut narrowing).await;
        self.exports
            .lock()
            .entry(name.to_owned())
            .or_default()
            .narrowing = narrowing;
        done
    }

    async fn try_batch(&self, name: &str, sink: &dyn Sink, narrowing: &mut Narrowing) -> Exported {
        if self.store_failed.load(Ordering::Relaxed) {
            // The cursor would not move, and every batch go out again and again.
            self.failed(name, "storage failed; nothing is exported until a restart");
            return Exported::Failed(None);
        }
        let batch = match self.next_batch(name, sink, narrowing).await {
            Ok(batch) => batch,
            Err(error) => {
                tracing::warn!(exporter = name, %error, "events could not be read");
                self.note_store_error(&error);
                self.failed(name, &format!("events could not be read: {error}"));
                return Exported::Failed(None);
            }
        };
        let Some(last) = batch.last().map(|e| e.seq) else {
            // What is refused at the end of the log waits for an event to compare it with.
            return Exported::Nothing;
        };
        match self.hand_over(name, sink, &batch).await {
            Ok(()) => {}
            Err(Trouble::Inactive) => {
                self.exports.note(name, |status| status.inactive = true);
                return Exported::Nothing;
            }
            Err(Trouble::ForNow(reason, wait)) => {
                tracing::warn!(exporter = name, reason, "a batch was not exported");
                self.failed(name, &reason);
                return Exported::Failed(wait);
            }
            Err(Trouble::Refused(reason)) => {
                self.failed(name, &reason);
                if narrowing.refused(&batch, reason.clone()) {
                    tracing::warn!(
                        exporter = name,
                        events = batch.len(),
                        reason,
                        "a batch was refused; looking for the event"
                    );
                    return Exported::Narrowed(narrowing.suspects.len());
                }
                narrowing.suspects.clear();
                tracing::error!(
                    exporter = name,
                    reason,
                    "each of {MAX_SUSPECTS} events was refused, so it is not the events: check policy, receiver and \
                     configuration; nothing is left out"
                );
                return Exported::Failed(None);
            }
        }
        if let Err(error) = self.parts.store.set_cursor(name.to_owned(), last).await {
            tracing::warn!(exporter = name, %error, "the export cursor could not be moved; the batch will be exported again");
            self.failed(name, &format!("the cursor could not be moved: {error}"));
            self.note_store_error(&error);
            return Exported::Failed(None);
        }
        narrowing.taken(batch.len());
        let left_out = std::mem::take(&mut narrowing.suspects);
        for (seq, reason) in &left_out {
            tracing::error!(
                exporter = name,
                seq,
                reason,
                "event left out of the export: it is refused, and others are not"
            );
        }
        let now = self.now();
        self.exports.note(name, |status| {
            status.events += batch.len() as u64;
            status.batches += 1;
            status.left_out += left_out.len() as u64;
            status.last_left_out = left_out
                .last()
                .map(|(seq, _)| *seq)
                .or(status.last_left_out);
            status.last_success = Some(now);
            status.inactive = false;
            if narrowing.bad.is_none() {
                status.failing_since = None;
                status.reason = None;
            }
        });
        Exported::Some
    }

    fn failed(&self, name: &str, reason: &str) {
        let now = self.now();
        self.exports.note(name, |status| {
            status.failures += 1;
            status.inactive = false;
            status.failing_since.get_or_insert(now);
            status.reason = Some(reason.to_owned());
        });
    }

    /// The events after the cursor and the suspects; those of the batch before, where it was not
    /// taken and the sink knows its batches.
    async fn next_batch(
        &self,
        name: &str,
        sink: &dyn Sink,
        narrowing: &mut Narrowing,
    ) -> StoreResult<Vec<EventRecord>> {
        let store = &self.parts.store;
        let cursor = store.cursor(name.to_owned()).await?;
        let after = match narrowing.suspects.last() {
            Some((seq, _)) => cursor.max(*seq),
            None => cursor,
        };
        let most = u32::try_from(narrowing.size()).unwrap_or(u32::MAX);
        let mut batch = store.events(after, most).await?;
        let Some(last) = batch.last().map(|e| e.seq) else {
            return Ok(batch);
        };
        if sink.knows_batches() {
            let bounds = store.cursor(bounds_of(name)).await?;
            let begun = batch.iter().take_while(|e| e.seq <= bounds).count();
            if begun > 0 {
                batch.truncate(begun);
            }
            let last = batch.last().map_or(last, |e| e.seq);
            if last != bounds {
                store.set_cursor(bounds_of(name), last).await?;
            }
        }
        Ok(batch)
    }

    async fn hand_over(
        &self,
        name: &str,
        sink: &dyn Sink,
        batch: &[EventRecord],
    ) -> Result<(), Trouble> {
        let payloads = self.parts.policy.render(name, batch).await?;
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
            return Ok(());
        };
        sink.deliver(ExportBatch {
            exporter: name.to_owned(),
            first: first.seq,
            last: last.seq,
            payloads,
        })
        .await?;
        Ok(())
    }

    /// Serves one exporter for ever: at once while there is something, each second otherwise,
    /// more slowly after failures.
    pub(super) async fn keep_exporting(&self, name: &str, sink: &dyn Sink) {
        let mut tries: u64 = 0;
        loop {
            let wait = match self.export_batch(name, sink).await {
                Exported::Some => {
                    tries = 0;
                    PAUSE
                }
                Exported::Narrowed(suspects) if suspects <= QUICK_SUSPECTS => PAUSE,
                Exported::Narrowed(_) | Exported::Nothing => Duration::from_secs(1),
                Exported::Failed(wait) => {
                    tries += 1;
                    let wait = wait.unwrap_or_default().min(LONGEST_WAIT);
                    wait.max(Duration::from_secs(tries.min(60)))
                }
            };
            let at = self.now().plus(wait);
            self.parts.clock.sleep_until(at).await;
        }
    }

    /// How each exporter does, by name.
    ///
    /// # Errors
    /// Of the store, which knows how far each is.
    pub async fn exports(&self) -> StoreResult<Vec<ExportStatus>> {
        let mut all = Vec::new();
        let mut names: Vec<&String> = self.parts.sinks.keys().collect();
        names.sort_unstable();
        for name in names {
            let cursor = self.parts.store.cursor(name.clone()).await?;
            let next = self.parts.store.events(cursor, 1).await?;
            let known = self.exports.lock().get(name).map(|e| e.status.clone());
            all.push(ExportStatus {
                name: name.clone(),
                to: self.parts.sinks[name].place(),
                cursor,
                lag_seconds: next
                    .first()
                    .map_or(0, |e| self.now().since(e.event.at).as_secs()),
                ..known.unwrap_or_default()
            });
        }
        Ok(all)
    }

    /// How many exporters have had nothing but failures for a minute or more.
    pub fn exports_failing(&self) -> u64 {
        let limit = self.now().minus(Duration::from_secs(60));
        let exports = self.exports.lock();
        let failing = exports
            .values()
            .filter(|e| e.status.failing_since.is_some_and(|since| since <= limit));
        failing.count() as u64
    }
}

enum Trouble {
    Inactive,
    ForNow(String, Option<Duration>),
    /// The same events will not be rendered or taken another time.
    Refused(String),
}

impl From<PolicyFault> for Trouble {
    fn from(fault: PolicyFault) -> Self {
        match fault {
            PolicyFault::Inactive => Trouble::Inactive,
            PolicyFault::Temporary(_) => Trouble::ForNow(fault.to_string(), None),
            PolicyFault::Broken(_) => Trouble::Refused(fault.to_string()),
        }
    }
}

impl From<SinkError> for Trouble {
    fn from(error: SinkError) -> Self {
        match error.again {
            Again::After(wait) => Trouble::ForNow(error.to_string(), wait),
            Again::Never => Trouble::Refused(error.to_string()),
        }
    }
}
