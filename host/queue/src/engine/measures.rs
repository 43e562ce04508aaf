//! Measures: people's, and those that the policy and the host took, from the schedule to the
//! store and back.
//!
//! A person's change is stored before it is put in force. An automatic measure is in force at
//! once and stored soon after: what a crash forgets of it is planned, or found out, anew.

use tidegate_mail::Timestamp;

use super::Engine;
use crate::measure::{LEAST_OVERRIDE, Lifted, Measure, Setter};
use crate::ports::StoreResult;

impl Engine {
    /// Measures in force, and those of the policy that were lifted and that it may not repeat
    /// yet.
    pub fn measures(&self) -> Vec<Measure> {
        let now = self.now();
        self.schedule().measures(now)
    }

    /// What people lifted within the retention of the log, the newest first.
    pub async fn lifted_measures(&self) -> StoreResult<Vec<Measure>> {
        let mut all = self.parts.store.measures().await?;
        all.retain(|m| m.lifted.is_some());
        all.sort_by_key(|m| std::cmp::Reverse(m.lifted.as_ref().map(|l| l.at)));
        Ok(all)
    }

    /// Puts a person's measure in force; it survives a restart.
    pub async fn put_measure(&self, measure: Measure) -> StoreResult<()> {
        self.see_through(|engine| async move {
            let _one_at_a_time = engine.measures.lock().await;
            let store = &engine.parts.store;
            store
                .change_measures(vec![measure.clone()], Vec::new())
                .await?;
            engine.schedule().add_measure(measure);
            engine.look_again();
            Ok(())
        })
        .await
    }

    /// Lifts a measure, whoever took it; `None` if there is none of that id in force. One of
    /// the shaping policy is not repeated before `until`: without it, for what was left of the
    /// measure and at least an hour. One that is lifted already gets the new end.
    pub async fn lift_measure(
        &self,
        id: &str,
        by: &str,
        why: &str,
        until: Option<Timestamp>,
    ) -> StoreResult<Option<Measure>> {
        let (id, by, why) = (id.to_owned(), by.to_owned(), why.to_owned());
        self.see_through(|engine| async move { engine.lift_now(&id, by, why, until).await })
            .await
    }

    async fn lift_now(
        &self,
        id: &str,
        by: String,
        why: String,
        until: Option<Timestamp>,
    ) -> StoreResult<Option<Measure>> {
        let _one_at_a_time = self.measures.lock().await;
        let now = self.now();
        let found = self.schedule().measure(id).cloned();
        let Some(mut measure) = found.filter(|m| m.in_force(now) || m.overrides(now)) else {
            return Ok(None);
        };
        let left = measure.until.unwrap_or(now).max(now.plus(LEAST_OVERRIDE));
        measure.lifted = Some(Lifted {
            at: now,
            by,
            why,
            until: (measure.by == Setter::Policy).then(|| until.unwrap_or(left)),
        });
        let store = &self.parts.store;
        store
            .change_measures(vec![measure.clone()], Vec::new())
            .await?;
        self.schedule().lift(measure.clone(), now);
        self.look_again();
        Ok(Some(measure))
    }

    fn look_again(&self) {
        self.alarm.notify_one();
        self.kick();
    }

    /// Stores what changed of the automatic measures. What could not be stored is offered again
    /// the next time.
    pub(super) async fn store_measures(&self) {
        let _one_at_a_time = self.measures.lock().await;
        self.store_changed().await;
    }

    async fn store_changed(&self) {
        let (put, gone) = self.schedule().changed_measures();
        if put.is_empty() && gone.is_empty() {
            return;
        }
        let store = &self.parts.store;
        if let Err(error) = store.change_measures(put.clone(), gone.clone()).await {
            tracing::warn!(%error, "automatic measures could not be stored");
            self.note_store_error(&error);
            self.schedule().not_stored(put, gone);
        }
    }

    /// Drops measures that are over, and the memory of those lifted before `keep_from`.
    pub(super) async fn sweep_measures(&self, keep_from: Timestamp) {
        let _one_at_a_time = self.measures.lock().await;
        let now = self.now();
        self.schedule().prune_measures(now);
        self.store_changed().await;
        let swept = async {
            let all = self.parts.store.measures().await?;
            let gone = self.swept(all, keep_from, now);
            if gone.is_empty() {
                return Ok(());
            }
            self.parts.store.change_measures(Vec::new(), gone).await
        };
        let swept: StoreResult<()> = swept.await;
        if let Err(error) = swept {
            tracing::warn!(%error, "measures could not be swept");
        }
    }

    /// Which of the stored measures nobody needs any more.
    fn swept(&self, all: Vec<Measure>, keep_from: Timestamp, now: Timestamp) -> Vec<String> {
        let scheduler = self.schedule();
        let over = |m: &Measure| match &m.lifted {
            Some(lifted) => lifted.at < keep_from && !m.overrides(now),
            None => scheduler.measure(&m.id).is_none(),
        };
        all.into_iter().filter(over).map(|m| m.id).collect()
    }
}
