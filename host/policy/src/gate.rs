//! Who may run at the same time: a share for each tenant, and a bound in all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::limits;

pub(crate) struct Gate {
    all: Semaphore,
    tenants: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
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
    /// Waits a little for a turn; `None` when there was none.
    pub async fn enter(&self, tenant: Option<&Arc<str>>) -> Option<Turn<'_>> {
        let share = tenant.map(|t| self.share(t));
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

    fn share(&self, tenant: &Arc<str>) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = tenants.get(tenant) {
            return share.clone();
        }
        let share = Arc::new(Semaphore::new(limits::CONCURRENT_OF_TENANT));
        tenants.insert(tenant.clone(), share.clone());
        share
    }
}
