//! What was recorded, asked again or handed out.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_admin::{ApiError, Inputs, Rehearse};
use tidegate_policy::Rehearsal;
use tidegate_policy::recorded::Recorded;
use tidegate_queue::{Clock, DecisionQuery, DecisionRow};

use super::Policies;

/// Decisions read at once.
const PAGE: u32 = 500;
/// How long one part of a rehearsal takes.
const PART: Duration = Duration::from_secs(2);

impl Policies {
    /// Asks a revision about what a slot was asked, for [`PART`] at most.
    pub async fn rehearse(&self, wanted: Rehearse) -> Result<Value, ApiError> {
        let Some(_turn) = self.rehearsing.take(&wanted.slot) else {
            return Err(ApiError::conflict(format!(
                "another rehearsal for {} is under way, or too many for other slots",
                wanted.slot
            ))
            .remedy("try again in some seconds"));
        };
        let prepared = self
            .prepared(&wanted.digest)
            .await
            .map_err(ApiError::internal)?;
        let mut rehearsal = self
            .host
            .rehearsal(&wanted.slot, &prepared)
            .map_err(|e| ApiError::internal(e.to_string()))?;
        let tenant = wanted.slot.strip_prefix("routing/").map(str::to_owned);
        let end = self.clock.now().plus(PART);
        let mut after = wanted.after;
        let next = loop {
            let query = DecisionQuery {
                tenant: tenant.clone(),
                since: wanted.since,
                after,
                max: PAGE,
            };
            let rows = self.registry.decisions(query).await?;
            let last = rows.len() < PAGE as usize;
            for row in rows {
                after = row.id;
                self.ask(&mut rehearsal, tenant.is_none(), &row).await;
                // Within a page: where each call is costly one may take long.
                if self.clock.now() >= end {
                    break;
                }
            }
            if self.clock.now() >= end {
                break Some(after);
            }
            if last {
                break None;
            }
        };
        Ok(json!({
            "slot": wanted.slot,
            "digest": wanted.digest,
            "report": rehearsal.report(),
            "next": next,
        }))
    }

    /// Asks about one decision. The operator's slot is not asked about tenants who have their own.
    async fn ask(&self, rehearsal: &mut Rehearsal, of_operator: bool, row: &DecisionRow) {
        let own = format!("routing/{}", row.tenant);
        if of_operator && self.host.active(&own).is_some() {
            return;
        }
        match serde_json::from_str::<Recorded>(&row.body) {
            Ok(record) => rehearsal.ask(&record, self.clock.now()).await,
            Err(error) => tracing::warn!(%error, id = row.id, "a damaged decision"),
        }
    }

    /// Recorded decisions as they are kept.
    pub async fn inputs(&self, wanted: Inputs) -> Result<Value, ApiError> {
        let query = DecisionQuery {
            tenant: wanted.tenant,
            since: wanted.since,
            after: wanted.after,
            max: wanted.max,
        };
        let rows = self.registry.decisions(query).await?;
        let next = rows
            .last()
            .filter(|_| rows.len() == wanted.max as usize)
            .map(|row| row.id);
        let records: Vec<Recorded> = rows
            .iter()
            .filter_map(|row| serde_json::from_str(&row.body).ok())
            .map(|mut record: Recorded| {
                if wanted.hash {
                    record.hash_addresses(&self.hash_key);
                }
                record
            })
            .collect();
        Ok(json!({ "records": records, "next": next }))
    }
}
