//! Decisions on their way to the record and to a shadow, off the path of the reply: a bounded
//! queue that loses what does not fit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_queue::route::{Question, Routing};
use tokio::sync::mpsc;

use crate::aside::Aside;
use crate::limits::{INPUTS_OF_TENANT_PER_SEC, INPUTS_PER_SEC, OBSERVED};
use crate::recorded::Recorded;
use crate::trial::Trial;

/// A decision that was made.
pub struct Observed {
    question: Question,
    routing: Routing,
    /// Whether it is to be kept.
    pub keep: bool,
    pub(crate) shadow: Option<Arc<Trial>>,
}

impl Observed {
    pub fn record(&self) -> Recorded {
        Recorded::new(&self.question, Some(&self.routing))
    }

    pub(crate) fn question(&self) -> &Question {
        &self.question
    }
}

pub(crate) struct Observer {
    queue: Aside<Observed>,
    rates: Mutex<Rates>,
}

#[derive(Default)]
struct Rates {
    second: u64,
    all: u32,
    tenants: HashMap<Arc<str>, u32>,
}

impl Default for Observer {
    fn default() -> Self {
        Observer {
            queue: Aside::new(OBSERVED),
            rates: Mutex::default(),
        }
    }
}

impl Observer {
    /// The other end, once.
    pub fn receiver(&self) -> Option<mpsc::Receiver<Observed>> {
        self.queue.receiver()
    }

    /// Whether one more decision of the tenant may be kept in this second.
    pub fn sample(&self, tenant: &Arc<str>, second: u64) -> bool {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.second != second {
            rates.second = second;
            rates.all = 0;
            rates.tenants.clear();
        }
        if rates.all >= INPUTS_PER_SEC {
            return false;
        }
        match rates.tenants.get_mut(tenant) {
            Some(n) if *n >= INPUTS_OF_TENANT_PER_SEC => return false,
            Some(n) => *n += 1,
            None => {
                rates.tenants.insert(tenant.clone(), 1);
            }
        }
        rates.all += 1;
        true
    }

    pub fn observe(
        &self,
        question: &Question,
        routing: &Routing,
        keep: bool,
        shadow: Option<Arc<Trial>>,
    ) {
        let Some(place) = self.queue.place() else {
            if let Some(trial) = shadow {
                trial.skipped();
            }
            return;
        };
        place.send(Observed {
            question: question.clone(),
            routing: routing.clone(),
            keep,
            shadow,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_tenant_is_sampled_and_leaves_room_for_others() {
        let observer = Observer::default();
        let of = |tenant: &str, second| {
            let tenant: Arc<str> = tenant.into();
            (0..1_000)
                .filter(|_| observer.sample(&tenant, second))
                .count() as u32
        };
        assert_eq!(of("busy", 7), INPUTS_OF_TENANT_PER_SEC);
        assert_eq!(of("other", 7), INPUTS_OF_TENANT_PER_SEC);
        assert_eq!(of("busy", 7), 0);
        assert_eq!(of("busy", 8), INPUTS_OF_TENANT_PER_SEC);
        let all: u32 = (0..1_000).map(|n| of(&format!("t{n}"), 9)).sum();
        assert_eq!(all, INPUTS_PER_SEC);
    }
}
