//! Asking a revision about recorded decisions, without any effect.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::Timestamp;
use tidegate_queue::Directory;

use crate::answer::Grants;
use crate::compare::Report;
use crate::engine::{Active, LoadError, PolicyEngine};
use crate::gate::Gate;
use crate::prepare::Prepared;
use crate::recorded::{Answer, Recorded};
use crate::worlds::v1;

/// How long a rehearsal pauses where its tenant has used up its processor time.
const PAUSE: Duration = Duration::from_millis(10);

/// A revision loaded for being asked about what was recorded.
pub struct Rehearsal {
    engine: PolicyEngine,
    active: Arc<Active>,
    directory: Arc<Directory>,
    gate: Arc<Gate>,
    report: Report,
}

impl Rehearsal {
    /// Rights are those of `directory`: an answer beyond them is an invalid one.
    pub(crate) fn new(
        engine: &PolicyEngine,
        prepared: &Prepared,
        directory: Arc<Directory>,
        gate: Arc<Gate>,
    ) -> Result<Self, LoadError> {
        Ok(Rehearsal {
            engine: engine.clone(),
            active: Arc::new(engine.load(prepared)?),
            directory,
            gate,
            report: Report::default(),
        })
    }

    /// Asks about one record. A record that can't be asked about counts as a failure. Waits for
    /// its turn, and where calls are costly for their tenant's share of processor time: mail
    /// goes before.
    pub async fn ask(&mut self, record: &Recorded, now: Timestamp) {
        let question = match record.question(now) {
            Ok(question) => question,
            Err(bad) => {
                return self
                    .report
                    .failed(record, &format!("damaged record: {bad}"));
            }
        };
        let grants = Grants {
            tenant: &question.tenant,
            directory: &self.directory,
            class: question.class,
            no_passthrough: record.passthrough_failed.is_some(),
        };
        tokio::task::yield_now().await;
        let turn = loop {
            match self.gate.enter(Some(&question.tenant)).await {
                Some(turn) => break turn,
                None => tokio::time::sleep(PAUSE).await,
            }
        };
        let decision = v1::decide(&self.engine, &self.active, &question, &grants);
        let recipients = question.envelope.recipients.len();
        let answer = self
            .gate
            .metered(&question.tenant, recipients, decision)
            .await;
        drop(turn);
        match answer {
            Ok(routing) => self.report.answered(record, &Answer::from(&routing)),
            Err(failure) => self.report.failed(record, &failure.to_string()),
        }
    }

    /// Fields that the revision reads and that no policy in force had asked for, so that
    /// they are in no record.
    pub fn recorded_headers(&mut self, recorded: &[String]) {
        self.report.missing_headers = self
            .active
            .descriptor
            .headers
            .iter()
            .filter(|header| !recorded.contains(header))
            .cloned()
            .collect();
    }

    pub fn report(mut self) -> Report {
        self.report.finish();
        self.report
    }
}
