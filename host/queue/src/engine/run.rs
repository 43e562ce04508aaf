//! Making progress: in real time, or step by step for the simulation.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_mail::Timestamp;

use super::Engine;
use super::export::Exported;

/// Timers handled between two looks at the rest.
const WAKES: usize = 1000;
/// How often the log and the content are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Rounds of one simulated instant; more is a defect.
const MAX_ROUNDS: usize = 100_000;

impl Engine {
    /// Serves until `stop` ends, then finishes the attempts under way, no longer than until the
    /// time that `stop` gave, and settles them.
    pub async fn run(self: Arc<Self>, stop: impl Future<Output = Timestamp> + Send) {
        self.running.store(true, Ordering::Relaxed);
        let mut background = tokio::task::JoinSet::new();
        let me = self.clone();
        let ledger = tokio::spawn(async move { me.keep_ledger().await });
        let me = self.clone();
        background.spawn(async move { me.keep_notifying().await });
        let me = self.clone();
        background.spawn(async move { me.keep_house().await });
        let me = self.clone();
        background.spawn(async move { me.keep_sweeping().await });
        let me = self.clone();
        background.spawn(async move { me.keep_watch().await });
        let me = self.clone();
        background.spawn(async move { me.keep_counting().await });
        for (name, sink) in &self.parts.sinks {
            let (me, name, sink) = (self.clone(), name.clone(), sink.clone());
            background.spawn(async move { me.keep_exporting(&name, &*sink).await });
        }
        self.kick();
        let limit = stop.await;
        self.stopping.store(true, Ordering::Relaxed);
        while self.schedule().in_flight() > 0 && self.now() < limit {
            let look_again = self.now().plus(Duration::from_millis(100)).min(limit);
            tokio::select! {
                () = self.idle.notified() => {}
                () = self.parts.clock.sleep_until(look_again) => {}
            }
        }
        background.shutdown().await;
        self.ledger.close();
        let _ = ledger.await;
        // What ended after its time, and what the task that is gone can't take any more.
        while !self.ledger.is_empty() && self.settle_pending().await {}
        // What can't be paid now is on its row and is found at the next start.
        let _ = self.pay_debts().await;
        self.store_measures().await;
        self.store_quota_use().await;
        self.end_life().await;
        self.running.store(false, Ordering::Relaxed);
    }

    /// Fires timers and asks for plans as they fall due.
    async fn keep_house(&self) {
        loop {
            let now = self.now();
            let wakes = self.schedule().wake(now, WAKES);
            let more = wakes.len() == WAKES;
            self.handle_wakes(wakes).await;
            self.plan_lanes().await;
            self.store_measures().await;
            self.kick();
            if more {
                continue;
            }
            let next = self.schedule().next_event();
            tokio::select! {
                () = self.parts.clock.sleep_until(next) => {}
                () = self.alarm.notified() => {}
            }
        }
    }

    async fn keep_sweeping(&self) {
        loop {
            self.sweep().await;
            let next = self.now().plus(SWEEP_EVERY);
            self.parts.clock.sleep_until(next).await;
        }
    }

    /// Drops log days past their retention and content without recipients.
    pub async fn sweep(&self) {
        let settings = &self.parts.settings;
        let retained = self.now().minus(settings.retention);
        // An attempt is found by what its message says, which lies under the day of acceptance.
        let lifetime = Duration::from_secs(settings.ceilings.lifetime_secs.into());
        let keep_from = retained.minus(lifetime);
        match self.parts.store.sweep(keep_from).await {
            Ok(report) if report.log_days_dropped > 0 => {
                tracing::info!(days = report.log_days_dropped, "log days dropped");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the sweep failed");
                self.note_store_error(&error);
            }
        }
        self.sweep_measures(retained).await;
        let now = self.now();
        self.schedule().forget_places(now);
    }

    /// Does what is due at `now`, to the end, and returns the next instant of interest.
    /// The simulation's way to drive the engine instead of [`Engine::run`]; its clock says
    /// `now` as well.
    pub async fn run_due(&self, now: Timestamp) -> Timestamp {
        for _ in 0..MAX_ROUNDS {
            let wakes = self.schedule().wake(now, WAKES);
            let mut progress = self.handle_wakes(wakes).await > 0;
            progress |= self.plan_lanes().await > 0;
            while let Some(task) = self.take() {
                self.perform(task).await;
                progress = true;
            }
            if !self.ledger.is_empty() {
                progress |= self.settle_pending().await;
            }
            progress |= self.pay_debts().await.is_ok_and(|n| n > 0);
            for (name, sink) in &self.parts.sinks {
                let done = self.export_batch(name, &**sink).await;
                progress |= matches!(done, Exported::Some | Exported::Narrowed(_));
            }
            if !progress {
                break;
            }
        }
        self.store_measures().await;
        self.store_quota_use().await;
        self.schedule().next_event()
    }
}
