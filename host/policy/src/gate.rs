//! Who may run: a share of the calls and of processor time for each tenant, and a bound in all.
//!
//! A tenant whose calls are costly gets 5 % of a core; what is beyond is not run later but decided
//! by the slot's fallback. Cheap calls are not counted: what they cost is less than the rest of
//! the message's way through the gateway, so that way is their bound. It grows with the
//! recipients, and so does what is cheap.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::limits;

pub(crate) struct Gate {
    all: Semaphore,
    tenants: Mutex<HashMap<Arc<str>, Arc<Share>>>,
}

/// What one tenant may use.
struct Share {
    turns: Arc<Semaphore>,
    time: Mutex<Bucket>,
}

/// Processor time, as a token bucket.
struct Bucket {
    /// Microseconds; below zero after a call that took more than there was.
    left: i64,
    filled: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Bucket {
            left: limits::TENANT_BURST_MICROS,
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let micros = now.saturating_duration_since(self.filled).as_micros();
        let earned = i64::try_from(micros / u128::from(limits::TENANT_SHARE)).unwrap_or(i64::MAX);
        // A fraction of a microsecond is not lost: the clock then stands still.
        if earned > 0 {
            self.left = self
                .left
                .saturating_add(earned)
                .min(limits::TENANT_BURST_MICROS);
            self.filled = now;
        }
    }

    fn has_some(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left > 0
    }

    fn take(&mut self, spent: Duration, now: Instant) {
        let micros = i64::try_from(spent.as_micros()).unwrap_or(i64::MAX);
        self.fill(now);
        self.left = self.left.saturating_sub(micros);
    }
}

/// Whether a decision about so many recipients is not counted.
fn is_cheap(spent: Duration, recipients: usize) -> bool {
    let recipients = u64::try_from(recipients).unwrap_or(u64::MAX);
    let micros = limits::CHEAP_RECIPIENT_MICROS.saturating_mul(recipients);
    spent <= Duration::from_micros(limits::CHEAP_MICROS.saturating_add(micros))
}

/// A turn; given back when dropped.
pub(crate) struct Turn<'a> {
    _tenant: Option<OwnedSemaphorePermit>,
    _all: SemaphorePermit<'a>,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            all: Semaphore::new(limits::CONCURRENT),
            tenants: Mutex::default(),
        }
    }
}

impl Gate {
    /// Waits a little for a turn; `None` when there was none, and at once where the tenant has
    /// used up its processor time.
    pub async fn enter(&self, tenant: Option<&Arc<str>>) -> Option<Turn<'_>> {
        let share = tenant.map(|t| self.share(t));
        if let Some(share) = &share
            && !share.time().has_some(Instant::now())
        {
            return None;
        }
        let share = share.map(|share| share.turns.clone());
        let at_once = match &share {
            None => Some(None),
            Some(share) => share.clone().try_acquire_owned().ok().map(Some),
        };
        if let Some(tenant) = at_once
            && let Ok(all) = self.all.try_acquire()
        {
            return Some(Turn {
                _tenant: tenant,
                _all: all,
            });
        }
        let wait = async {
            let tenant = match share {
                None => None,
                Some(share) => Some(share.acquire_owned().await.ok()?),
            };
            Some(Turn {
                _tenant: tenant,
                _all: self.all.acquire().await.ok()?,
            })
        };
        tokio::time::timeout(Duration::from_millis(limits::TURN_MS), wait)
            .await
            .ok()
            .flatten()
    }

    /// Runs a decision about so many recipients and charges the tenant for the processor time
    /// it took.
    pub async fn metered<T>(
        &self,
        tenant: &Arc<str>,
        recipients: usize,
        decision: impl Future<Output = T>,
    ) -> T {
        let mut decision = pin!(decision);
        let mut spent = Duration::ZERO;
        let done = std::future::poll_fn(|cx| {
            let begun = processor_time();
            let polled = decision.as_mut().poll(cx);
            spent += processor_time().saturating_sub(begun);
            polled
        })
        .await;
        if !is_cheap(spent, recipients) {
            self.share(tenant).time().take(spent, Instant::now());
        }
        done
    }

    fn share(&self, tenant: &Arc<str>) -> Arc<Share> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = tenants.get(tenant) {
            return share.clone();
        }
        let share = Arc::new(Share {
            turns: Arc::new(Semaphore::new(limits::CONCURRENT_OF_TENANT)),
            time: Mutex::new(Bucket::full(Instant::now())),
        });
        tenants.insert(tenant.clone(), share.clone());
        share
    }
}

impl Share {
    fn time(&self) -> std::sync::MutexGuard<'_, Bucket> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of this thread: another's work on the same core is not charged.
fn processor_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one `timespec` to the address it is given, which is that of a
    // live local of this type, and keeps no reference to it.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) } != 0;
    if failed {
        return Duration::ZERO;
    }
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn costly_calls_get_five_percent_of_a_core() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let mut now = start;
        let mut ran = Duration::ZERO;
        // A minute in which the tenant asks without pause for calls of 9 ms.
        while now < start + Duration::from_secs(60) {
            if bucket.has_some(now) {
                now += 9 * MS;
                ran += 9 * MS;
                bucket.take(9 * MS, now);
            } else {
                now += MS;
            }
        }
        let burst = Duration::from_micros(limits::TENANT_BURST_MICROS as u64);
        assert!(ran >= Duration::from_secs(3), "{ran:?}");
        assert!(ran <= Duration::from_secs(3) + burst + 10 * MS, "{ran:?}");
    }

    #[test]
    fn what_is_cheap_grows_with_the_recipients() {
        let micros = Duration::from_micros;
        assert!(is_cheap(micros(500), 1));
        assert!(!is_cheap(micros(600), 1));
        assert!(is_cheap(micros(600), 100));
        assert!(!is_cheap(micros(1600), 1000));
        assert!(is_cheap(micros(1500), usize::MAX));
    }

    #[tokio::test]
    async fn cheap_calls_are_free() {
        let gate = Gate::default();
        let tenant: Arc<str> = "light".into();
        let begun = processor_time();
        while processor_time() - begun < Duration::from_millis(300) {
            // A thousand recipients: a preempted thread must not make it costly.
            gate.metered(&tenant, 1_000, async {
                let begun = processor_time();
                while processor_time() - begun < Duration::from_micros(100) {}
            })
            .await;
        }
        assert!(gate.enter(Some(&tenant)).await.is_some());
        assert_eq!(gate.share(&tenant).time().left, limits::TENANT_BURST_MICROS);
    }

    #[tokio::test]
    async fn a_tenant_that_used_up_its_time_has_no_turn_and_others_have() {
        let gate = Gate::default();
        let (heavy, light): (Arc<str>, Arc<str>) = ("heavy".into(), "light".into());
        assert!(gate.enter(Some(&heavy)).await.is_some());
        gate.metered(&heavy, 1, async {
            let begun = processor_time();
            while processor_time() - begun < Duration::from_millis(400) {}
        })
        .await;
        assert!(gate.enter(Some(&heavy)).await.is_none());
        assert!(gate.enter(Some(&light)).await.is_some());
        assert!(gate.enter(None).await.is_some());
    }
}
