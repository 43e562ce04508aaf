//! A policy that has one answer for everything, and short ways to look at what came of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{Event, EventKind, MessageId, Notify, Timestamp, dsn};
use tidegate_queue::route::{Action, Managed, Question, Routing};
use tidegate_queue::shape::{LanePlan, LaneState, Limits, Plan, ReplyRule, ReplyRules};
use tidegate_queue::*;

use crate::scenario::{Mail, START, Scenario};

pub const HOUR: Duration = Duration::from_secs(3600);
pub const SENDER: &str = "crm@acme.test";

/// Everything is managed on these terms; every lane has these limits.
#[derive(Default)]
pub struct Steady {
    pub managed: Managed,
    pub limits: Limits,
    /// Replies that are limits in truth.
    pub temporary: Vec<ReplyRule>,
}

impl Policy for Steady {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        let routing = Routing::all(
            Action::Managed(self.managed.clone()),
            question.envelope.recipients.len(),
        );
        Box::pin(std::future::ready(routing))
    }

    fn plan(
        &self,
        _now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        let plan = LanePlan {
            limits: self.limits.clone(),
            wake: None,
        };
        Box::pin(std::future::ready(Ok(Plan {
            lanes: vec![Some(plan); lanes.len()],
            state,
            rules: Some(ReplyRules {
                rules: self.temporary.clone(),
                policy: None,
            }),
            canary: None,
        })))
    }

    fn render<'a>(
        &'a self,
        _exporter: &'a str,
        _batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>> {
        Box::pin(std::future::ready(Err(PolicyFault::Inactive)))
    }

    fn wanted_headers(&self, _tenant: &str) -> Arc<[String]> {
        Arc::from([])
    }
}

pub fn mail<'a>(to: &'a [(&'a str, Notify)]) -> Mail<'a> {
    Mail {
        from: SENDER,
        to,
        headers: "",
        subject: None,
        bulk: false,
    }
}

/// The message's events, in order.
pub async fn events(scenario: &Scenario, id: MessageId) -> Vec<Event> {
    let query = LogQuery {
        message: Some(id),
        ..LogQuery::default()
    };
    let found = scenario.store().search(query).await.expect("a search");
    found.into_iter().next().expect("it is in the log").events
}

/// How long after the start events of this kind happened.
pub fn times(events: &[Event], kind: EventKind) -> Vec<Duration> {
    let of_kind = events.iter().filter(|e| e.kind == kind);
    of_kind.map(|e| e.at.since(START)).collect()
}

/// The notices that reached the sender, oldest first, with their text.
pub fn notices(scenario: &Scenario) -> Vec<(dsn::Report, String)> {
    scenario
        .world
        .delivered()
        .iter()
        .filter(|d| d.recipient == SENDER)
        .map(|d| {
            let report = dsn::parse(&d.content).expect("only notices go to the sender");
            (report, String::from_utf8_lossy(&d.content).into_owned())
        })
        .collect()
}

/// At `time`, or less than a second after it.
pub fn on_time(at: &[Duration], time: Duration) -> bool {
    matches!(at, [at] if *at >= time && *at < time + Duration::from_secs(1))
}
