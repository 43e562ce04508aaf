//! The process dies at every call of the store, by name: before it, and after it was done but
//! before its caller learns of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{MessageId, Notify, Timestamp};
use tidegate_queue::control::QueueQuery;
use tidegate_queue::measure::{Effect, Measure, Scope};
use tidegate_queue::route::{Question, Routing};
use tidegate_queue::shape::{LaneState, Plan};
use tidegate_queue::*;

use crate::check::{Promised, Rules, check};
use crate::scenario::{Mail, START, Scenario};
use crate::steady::{HOUR, mail};
use crate::world::{ByName, Manner, NEVER};

/// Each of them is made by the story, at its start again after a crash, or by a delivery.
const CALLS: [&str; 23] = [
    "accept",
    "settle",
    "log",
    "load",
    "newest_id",
    "messages",
    "recipients",
    "content_writer",
    "content-append",
    "content-finish",
    "content-read",
    "events",
    "sweep",
    "cursor",
    "set_cursor",
    "measures",
    "change_measures",
    "quota_use",
    "set_quota_use",
    "shaping_state",
    "set_shaping_state",
    "life",
    "set_life",
];

/// Routes by name, counts its plans in its state, and exports.
#[derive(Default)]
struct Busy(ByName);

impl Policy for Busy {
    fn route<'a>(&'a self, question: &'a Question) -> Fut<'a, Routing> {
        self.0.route(question)
    }

    fn plan(
        &self,
        now: Timestamp,
        state: Bytes,
        lanes: Vec<LaneState>,
    ) -> Fut<'_, Result<Plan, PolicyFault>> {
        let count: u64 = String::from_utf8_lossy(&state).parse().unwrap_or(0);
        let next = Bytes::from((count + 1).to_string());
        self.0.plan(now, next, lanes)
    }

    fn render<'a>(
        &'a self,
        _exporter: &'a str,
        batch: &'a [EventRecord],
    ) -> Fut<'a, Result<Vec<Payload>, PolicyFault>> {
        let payload = Payload {
            body: Bytes::from(batch.len().to_string()),
            content_type: "text/plain".to_owned(),
        };
        Box::pin(std::future::ready(Ok(vec![payload])))
    }

    fn wanted_headers(&self, tenant: &str) -> Arc<[String]> {
        self.0.wanted_headers(tenant)
    }
}

struct Story {
    scenario: Scenario,
    promised: Vec<Promised>,
}

const SUCCESS: Notify = Notify::On {
    success: true,
    failure: true,
    delay: false,
};

impl Story {
    async fn new() -> Story {
        let settings = Settings {
            exporters: vec!["log".to_owned()],
            // Some first attempts read their content from the store, the streamed one's anyway.
            content_budget: 0,
            ..Settings::default()
        };
        let scenario = Scenario::with(settings, Arc::new(Busy::default())).await;
        for (domain, manner) in [
            ("grey.test", Manner::Greylist(2)),
            ("gone.test", Manner::Refuse),
            ("lost.test", Manner::LosesReplies(1)),
            ("dark.test", Manner::Unreachable(NEVER)),
        ] {
            scenario.world.set(domain, manner);
        }
        // Never used up.
        scenario.put_directory(|tenant, _| {
            tenant.bulk_quota = Some(tidegate_queue::directory::Quota {
                recipients: 1_000,
                window_secs: 3600,
            });
        });
        Story {
            scenario,
            promised: Vec::new(),
        }
    }

    /// The next process takes over where one died.
    async fn go_on(&mut self) {
        if self.scenario.crash.happened() {
            self.scenario.restart().await;
        }
    }

    async fn submit(&mut self, number: u32, streamed: bool) {
        let to = [
            (format!("a{number}@fine.test"), Notify::Absent),
            (format!("b{number}@grey.test"), SUCCESS),
            (format!("c{number}@gone.test"), Notify::Absent),
            (format!("d{number}@lost.test"), Notify::Absent),
            (format!("e{number}@dark.test"), Notify::Absent),
            (format!("f{number}@held.test"), Notify::Absent),
            (format!("g{number}@own-x.test"), Notify::Never),
        ];
        let to: Vec<(&str, Notify)> = to.iter().map(|(a, n)| (a.as_str(), *n)).collect();
        let new = Mail {
            bulk: number % 2 == 1,
            ..mail(&to)
        };
        let answer = match streamed {
            true => self.scenario.submit_streamed(new).await,
            false => Ok(self.scenario.submit(new).await),
        };
        if let Ok((id, reply)) = answer
            && reply.code == 250
        {
            self.promise(id, &to);
        }
        self.go_on().await;
        // A message of passthrough recipients alone leaves nothing but a line in the log.
        let to = [("h@own-x.test", Notify::Never)];
        self.scenario.submit(mail(&to)).await;
        self.go_on().await;
    }

    fn promise(&mut self, message: MessageId, to: &[(&str, Notify)]) {
        for (index, (address, notify)) in to.iter().enumerate() {
            if address.contains("@own-") {
                continue;
            }
            self.promised.push(Promised {
                message,
                index: index as u32,
                address: (*address).to_owned(),
                notify: *notify,
                null_sender: false,
            });
        }
    }

    async fn pass(&mut self, time: Duration) {
        self.scenario.pass(time).await;
        self.go_on().await;
    }

    async fn hold(&mut self) {
        let scope = Scope {
            domain: Some("held.test".into()),
            ..Scope::default()
        };
        let measure = Measure::new("hold", scope, Effect::Hold, "a test", START);
        let _ = self.scenario.engine().put_measure(measure).await;
        self.go_on().await;
    }

    /// With at most one crash on the way, as it was armed, and a kill between two calls.
    async fn tell(&mut self) {
        self.hold().await;
        self.submit(0, false).await;
        self.pass(Duration::from_secs(300)).await;
        self.submit(1, true).await;
        self.scenario.restart_armed().await;
        self.pass(HOUR).await;
        let all = QueueQuery::default();
        let _ = self.scenario.engine().retry(all).await;
        self.go_on().await;
        self.pass(HOUR * 5).await;
        self.scenario.engine().sweep().await;
        self.go_on().await;
        let engine = self.scenario.engine();
        let _ = engine.lift_measure("hold", "operator", "", None).await;
        self.go_on().await;
        self.submit(2, false).await;
        self.pass(HOUR).await;
    }

    async fn end(&mut self) {
        self.scenario.crash.disarm();
        // Lifted for certain, whatever the crash was at.
        let engine = self.scenario.engine();
        let _ = engine.lift_measure("hold", "operator", "", None).await;
        self.pass(HOUR * 60).await;
        let rules = Rules {
            promised: &self.promised,
            crashed: true,
        };
        check(&self.scenario, rules).await;
        self.check_export().await;
    }

    /// Every event was handed over, and in order but for what a crash repeated.
    async fn check_export(&self) {
        let events = self.scenario.store().events(0, 100_000).await;
        let events = events.expect("the events");
        let (mut through, mut before) = (0, Vec::new());
        for (first, last) in self.scenario.exported.batches() {
            assert!(
                first > through || before.contains(&(first, last)),
                "{first} to {last} comes again with other bounds: {before:?}"
            );
            before.push((first, last));
            let missed = events.iter().find(|e| e.seq > through && e.seq < first);
            assert!(missed.is_none(), "left out of the export: {missed:?}");
            through = through.max(last);
        }
        assert_eq!(events.last().map(|e| e.seq), Some(through));
    }
}

#[tokio::test]
async fn a_crash_at_any_named_call_loses_nothing_and_doubles_only_what_the_log_says() {
    let mut dry = Story::new().await;
    let opening = dry.scenario.crash.calls();
    dry.tell().await;
    let mut made: BTreeMap<&str, u32> = dry.scenario.crash.calls();
    for (call, times) in &mut made {
        *times -= opening.get(call).copied().unwrap_or(0);
    }
    dry.end().await;
    let (mut stories, mut recipients) = (0, 0);
    for call in CALLS {
        let times = made.get(call).copied().unwrap_or(0);
        assert!(times > 0, "the story never calls {call}: {made:?}");
        // The first one, and one in the middle of things.
        let mut places = vec![0, times / 2];
        places.dedup();
        for n in places {
            for after in [false, true] {
                eprintln!("call {n} of {times} of {call}, after: {after}");
                let mut story = Story::new().await;
                story.scenario.crash.arm_at(call, n, after);
                story.tell().await;
                assert!(story.scenario.crash.spent(), "{call} {n} never came");
                story.end().await;
                stories += 1;
                recipients += story.promised.len();
            }
        }
    }
    println!(
        "{stories} crashes at {} calls: {recipients} recipients promised",
        CALLS.len()
    );
}
