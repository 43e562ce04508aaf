//! The engine: wires intake, schedule, delivery, notices and export together.
//!
//! The durable record is the store's; the schedule is in memory and is rebuilt from it
//! at [`Engine::open`]. A recipient taken for an attempt comes back to the schedule only
//! after its new state is committed, so that no attempt starts from an older one.
//!
//! What a crash leaves: attempts under way are made again, and the log says for whom that may
//! be so; notices owed are found on the rows and sent once.

mod accept;
mod attempt;
mod compose;
mod control;
mod export;
mod flight;
mod hand_off;
mod life;
mod measures;
mod notify;
mod plan;
mod quota;
mod run;
mod settle;
mod source;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tidegate_mail::{IdSource, Promise, RecipientState, State, Timestamp};
use tokio::sync::Notify;

use crate::control::Stats;
use crate::directory::Directory;
use crate::ports::*;
use crate::schedule::{Bounds, NewEntry, Next, QueueKey, Scheduler};
use crate::settings::Settings;
use export::Exports;
use flight::Flights;
use notify::Debts;
use settle::Ledger;

/// Recipients loaded per page at a start.
const LOAD_PAGE: u32 = 20_000;

/// Domains resolved at the same time: more would only wait within the resolver, and those whose
/// time runs out there count as attempts.
const MAX_RESOLUTIONS: usize = 256;

/// How far ids may run ahead of the clock: so far a search of the log looks beyond its end.
const IDS_AHEAD: Duration = Duration::from_secs(3600);

/// Opens a sealed secret.
pub type Unseal = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What an engine is made of.
pub struct Parts {
    pub settings: Settings,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub resolver: Arc<dyn Resolver>,
    pub transport: Arc<dyn Transport>,
    pub policy: Arc<dyn Policy>,
    /// By exporter name.
    pub sinks: HashMap<String, Arc<dyn Sink>>,
    pub directory: Arc<ArcSwap<Directory>>,
    /// Opens a sealed password; `None` if it can't be opened with the master key.
    pub unseal: Unseal,
    /// Number of this gateway, 0 to 255, for its queue ids.
    pub node: u8,
}

pub struct Engine {
    /// For the tasks that it spawns.
    me: Weak<Engine>,
    parts: Parts,
    ids: IdSource,
    scheduler: Mutex<Scheduler>,
    flights: Flights,
    ledger: Ledger,
    debts: Debts,
    counters: Counters,
    exports: Exports,
    /// Deliveries are spawned as limits allow; without it only `run_due` makes progress.
    running: AtomicBool,
    /// Set while stopping: nothing new is accepted or attempted.
    stopping: AtomicBool,
    /// The store said that it failed, or that another gateway has it: no new mail and no attempts
    /// until a restart.
    store_failed: AtomicBool,
    /// The last message could not be stored.
    doubtful: AtomicBool,
    /// Results could not be stored: nothing is attempted before they are.
    stuck: AtomicBool,
    /// Recipients found past their lifetime at the last look.
    overdue: AtomicU64,
    /// What was due by then may have been in an attempt when the process before this died.
    cut_off: Option<Timestamp>,
    /// Held while measures are written, so that an older one overwrites none.
    measures: tokio::sync::Mutex<()>,
    /// Cuts the housekeeper's sleep short.
    alarm: Notify,
    /// Told whenever a delivery ends while stopping.
    idle: Notify,
}

#[derive(Default)]
struct Counters {
    accepted_messages: AtomicU64,
    accepted_recipients: AtomicU64,
    delivered: AtomicU64,
    deferred: AtomicU64,
    bounced: AtomicU64,
    expired: AtomicU64,
    cancelled: AtomicU64,
    notices: AtomicU64,
    passthrough_tried: AtomicU64,
    refused_messages: AtomicU64,
    policy_fallbacks: AtomicU64,
    illegal_transitions: AtomicU64,
    damaged: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Engine {
    /// Reloads the queue from the store; nothing is attempted before [`Engine::run`].
    pub async fn open(parts: Parts) -> StoreResult<Arc<Engine>> {
        let now = parts.clock.now();
        let settings = &parts.settings;
        let mut scheduler = Scheduler::new(Bounds {
            max_deliveries: settings.max_deliveries,
            max_resolutions: MAX_RESOLUTIONS,
            max_site_connections: settings.max_site_connections,
            default_limits: settings.default_limits.clone(),
            site_backoff: settings.site_backoff,
        });
        scheduler.load_measures(parts.store.measures().await?, now);
        scheduler.load_quota_use(parts.store.quota_use().await?);
        let debts = Debts::default();
        let mut newest = now;
        let mut after = None;
        loop {
            let page = parts.store.load(after, LOAD_PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for recipient in page {
                newest = newest.max(recipient.state.accepted_at);
                let owes = recipient.state.owes != tidegate_mail::Owes::None;
                let message = recipient.id.message;
                if recipient.state.is_done() {
                    if owes {
                        debts.push(message, None);
                    }
                    continue;
                }
                let key = queue_key(&recipient.tenant, &recipient.domain, &recipient.promise);
                let mut entry = new_entry(recipient.id, &recipient.state, &recipient.promise);
                if recipient.state.accepted_at > now {
                    // The clock was set back, by who knows how much: its slots mean nothing.
                    entry.due = now;
                }
                if owes {
                    let next = Next::Waiting {
                        due: entry.due,
                        delay_at: entry.delay_at,
                        attempts: entry.attempts,
                    };
                    debts.push(message, Some((scheduler.add_taken(&key, entry), next)));
                } else {
                    scheduler.add(&key, entry, now);
                }
            }
        }
        // After a clock that was set back ids go on above those that were given. Not above those of
        // a clock that was wrong by more: their day is the one under which mail is logged.
        let mut ids = IdSource::new(parts.node);
        if let Some(newest) = parts.store.newest_id(now.plus(IDS_AHEAD)).await? {
            ids = ids.above(newest);
        }
        let cut_off = life::begin(&*parts.store, parts.node, newest).await?;
        Ok(Arc::new_cyclic(|me| Engine {
            me: me.clone(),
            ids,
            scheduler: Mutex::new(scheduler),
            flights: Flights::new(parts.settings.content_budget),
            ledger: Ledger::default(),
            debts,
            counters: Counters::default(),
            exports: Exports::default(),
            running: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            store_failed: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            overdue: AtomicU64::new(0),
            cut_off,
            measures: tokio::sync::Mutex::new(()),
            alarm: Notify::new(),
            idle: Notify::new(),
            parts,
        }))
    }

    pub fn stats(&self) -> Stats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let c = &self.counters;
        let (all, in_flight) = {
            let scheduler = self.schedule();
            (scheduler.len() as u64, scheduler.in_flight() as u64)
        };
        Stats {
            accepted_messages: get(&c.accepted_messages),
            accepted_recipients: get(&c.accepted_recipients),
            delivered: get(&c.delivered),
            deferred: get(&c.deferred),
            bounced: get(&c.bounced),
            expired: get(&c.expired),
            cancelled: get(&c.cancelled),
            notices: get(&c.notices),
            passthrough_tried: get(&c.passthrough_tried),
            refused_messages: get(&c.refused_messages),
            policy_fallbacks: get(&c.policy_fallbacks),
            waiting: all,
            in_flight,
            illegal_transitions: get(&c.illegal_transitions),
            damaged: get(&c.damaged),
            overdue: get(&self.overdue),
        }
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.parts.store
    }

    fn schedule(&self) -> MutexGuard<'_, Scheduler> {
        // A panic while the lock was held can only have come from a defect in the
        // schedule itself; the data is plain and stays usable.
        self.scheduler
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }
}

fn queue_key(tenant: &Arc<str>, domain: &Arc<str>, promise: &Promise) -> QueueKey {
    QueueKey {
        relay: promise.relay.as_str().into(),
        domain: domain.clone(),
        tenant: tenant.clone(),
        class: promise.class,
        lane: promise.lane.as_deref().map(Into::into),
    }
}

fn new_entry(
    id: tidegate_mail::RecipientId,
    state: &RecipientState,
    promise: &Promise,
) -> NewEntry {
    let due = match state.state {
        State::Waiting { due } => due,
        State::Done(_) => Timestamp::FAR_FUTURE,
    };
    NewEntry {
        id,
        due,
        expires_at: state.expires_at,
        delay_at: delay_at(state, promise),
        attempts: state.attempts,
    }
}

/// When a delay falls due that was not reported yet.
fn delay_at(state: &RecipientState, promise: &Promise) -> Timestamp {
    match promise.delay_notice() {
        Some(after) if !state.delay_reported => state.accepted_at.plus(after),
        _ => Timestamp::FAR_FUTURE,
    }
}

/// Which of the 256 shards a recipient belongs to: FNV-1a over tenant and domain, so that
/// a lane has one owner.
fn shard_of(tenant: &str, domain: &str) -> u16 {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in tenant.bytes().chain([b'/']).chain(domain.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    ((hash >> 16) ^ hash) as u16 & 0xff
}
