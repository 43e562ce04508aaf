//! Export: what policy or receiver object to is narrowed down to the event; everything else is
//! handed over, in order and once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tidegate_mail::{Notify, Timestamp};
use tidegate_queue::control::ExportStatus;
use tidegate_queue::route::{Question, Routing};
use tidegate_queue::shape::{LaneState, Plan};
use tidegate_queue::{EventRecord, Fut, Payload, Policy, PolicyFault, Settings};

use crate::scenario::Scenario;
use crate::steady::{HOUR, Steady, mail};

/// Breaks on events of these numbers.
#[derive(Default)]
struct Breaking {
    steady: Steady,
    on: Mutex<BTreeSet<u64>>,
}

impl Policy for Breaking {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        self.steady.route(question)
    }

    fn plan(
        &self,
        now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        self.steady.plan(now, state, lanes)
    }

    fn render<'a>(
        &'a self,
        _exporter: &'a str,
        batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>> {
        let on = self.on.lock().unwrap();
        let rendered = match batch.iter().find(|e| on.contains(&e.seq)) {
            Some(event) => Err(PolicyFault::Broken(format!("{} is bad", event.seq))),
            None => Ok(Vec::new()),
        };
        Box::pin(std::future::ready(rendered))
    }

    fn wanted_headers(&self, tenant: &str) -> Arc<[String]> {
        self.steady.wanted_headers(tenant)
    }
}

struct Exporting {
    scenario: Scenario,
    policy: Arc<Breaking>,
}

impl Exporting {
    async fn new() -> Exporting {
        let settings = Settings {
            exporters: vec!["log".to_owned()],
            ..Settings::default()
        };
        let policy = Arc::new(Breaking::default());
        let scenario = Scenario::with(settings, policy.clone()).await;
        Exporting { scenario, policy }
    }

    /// Three events for each mail: accepted, routed, delivered.
    async fn send(&self, mails: usize) {
        for _ in 0..mails {
            let to = [("b@x.test", Notify::Absent)];
            let (_, reply) = self.scenario.submit(mail(&to)).await;
            assert_eq!(reply.code, 250);
        }
    }

    async fn status(&self) -> ExportStatus {
        self.scenario.engine().exports().await.unwrap().remove(0)
    }

    /// The numbers handed over, in the order of the batches.
    fn taken(&self) -> Vec<u64> {
        let batches = self.scenario.exported.batches();
        batches
            .into_iter()
            .flat_map(|(first, last)| first..=last)
            .collect()
    }
}

/// All numbers to the last but these.
fn all_but(last: u64, left_out: &[u64]) -> Vec<u64> {
    (1..=last).filter(|n| !left_out.contains(n)).collect()
}

#[tokio::test]
async fn single_events_that_are_refused_are_left_out_and_no_others() {
    let run = Exporting::new().await;
    // In the middle, two in a row, one at the end of what the first round has.
    let bad = [7, 300, 301, 599];
    run.scenario.exported.refuse(&[7, 300]);
    run.policy.on.lock().unwrap().extend([301, 599]);
    run.send(200).await;
    run.scenario.pass(HOUR).await;
    assert_eq!(run.taken(), all_but(600, &bad));
    let status = run.status().await;
    assert_eq!((status.left_out, status.last_left_out), (4, Some(599)));
    assert_eq!((status.cursor, status.lag_seconds), (600, 0));
    assert_eq!(status.failing_since, None);
}

#[tokio::test]
async fn a_refused_event_at_the_end_waits_for_another_to_be_compared_with() {
    let run = Exporting::new().await;
    run.scenario.exported.refuse(&[3]);
    run.send(1).await;
    run.scenario.pass(HOUR).await;
    let status = run.status().await;
    assert_eq!((status.cursor, status.left_out), (2, 0));
    assert!(status.failing_since.is_some());
    assert!(status.lag_seconds >= 3000, "{status:?}");
    assert_eq!(run.scenario.engine().exports_failing(), 1);
    run.send(1).await;
    run.scenario.pass(HOUR).await;
    assert_eq!(run.taken(), all_but(6, &[3]));
    assert_eq!(run.status().await.left_out, 1);
    assert_eq!(run.scenario.engine().exports_failing(), 0);
}

#[tokio::test]
async fn where_everything_is_refused_nothing_is_left_out() {
    let run = Exporting::new().await;
    let all: Vec<u64> = (1..=1800).collect();
    run.scenario.exported.refuse(&all);
    run.send(600).await;
    for _ in 0..3 {
        run.scenario.pass(HOUR).await;
    }
    let status = run.status().await;
    assert_eq!((status.cursor, status.left_out, status.events), (0, 0, 0));
    run.scenario.exported.refuse(&[]);
    run.scenario.pass(HOUR).await;
    assert_eq!(run.taken(), all_but(1800, &[]));
    assert_eq!(run.status().await.left_out, 0);
}

#[tokio::test]
async fn a_batch_that_was_not_taken_keeps_its_bounds_though_more_has_come_and_after_a_restart() {
    let mut run = Exporting::new().await;
    run.scenario.exported.busy(true);
    run.send(1).await;
    run.scenario.pass(HOUR).await;
    let tried = run.scenario.exported.tried();
    let bounds = *tried.first().unwrap();
    run.send(5).await;
    run.scenario.pass(HOUR).await;
    run.scenario.restart().await;
    run.scenario.pass(HOUR).await;
    let tried = run.scenario.exported.tried();
    assert!(tried.iter().all(|b| *b == bounds), "{tried:?}");
    run.scenario.exported.busy(false);
    run.scenario.pass(HOUR).await;
    assert_eq!(run.scenario.exported.batches()[0], bounds);
    assert_eq!(run.taken(), all_but(18, &[]));
}
