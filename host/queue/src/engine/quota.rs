//! Quotas: what was used of them, from the schedule to the store.

use std::time::Duration;

use super::Engine;

/// How often what was used is stored: so much of it a crash may forget.
const STORE_EVERY: Duration = Duration::from_secs(5);

impl Engine {
    /// How many recipients count against a tenant's quota now; 0 without one.
    pub fn quota_used(&self, tenant: &str) -> u32 {
        let directory = self.parts.directory.load();
        let now = self.now();
        match directory.tenant(tenant).and_then(|t| t.bulk_quota) {
            Some(quota) => self.schedule().quota_used(tenant, quota, now),
            None => 0,
        }
    }

    pub(super) async fn keep_counting(&self) {
        loop {
            let next = self.now().plus(STORE_EVERY);
            self.parts.clock.sleep_until(next).await;
            self.store_quota_use().await;
        }
    }

    pub(super) async fn store_quota_use(&self) {
        let used = self.schedule().changed_quota_use();
        if used.is_empty() {
            return;
        }
        if let Err(error) = self.parts.store.set_quota_use(used.clone()).await {
            tracing::warn!(%error, "what tenants used of their quotas could not be stored");
            self.note_store_error(&error);
            self.schedule().quota_use_not_stored(&used);
        }
    }
}
