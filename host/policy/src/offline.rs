//! A policy on its author's machine: the same preparing, engine, limits and checks as in a
//! gateway, fed with cases from files instead of mail.
//!
//! Each case is asked in two engines. One counts instructions, a figure that is the same on
//! every machine and in every run; the other is that of a gateway and is asked repeatedly
//! for the time.

mod case;
mod expect;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Serialize;
use serde_json::{Value, json};
use tidegate_queue::directory::{Relay, Server, Tenant, Way};
use tidegate_queue::route::{Action, AfterFailure, Routing};
use tidegate_queue::{Directory, Payload, Policy, PolicyFault, TlsMode};

use crate::host::{HostOptions, PolicyHost};
use crate::prepare::{Prepared, Upload, prepare};
use crate::worlds::World;
use crate::{LoadError, PolicyEngine, Refused};
use case::Input;
pub use case::{Case, Grants};

/// How often a case is asked for the time, at most.
const REPEATS: u32 = 100;
/// How long it is asked at most.
const PATIENCE: Duration = Duration::from_millis(200);

/// The policy, or this machine, does not allow a test at all.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Engine(#[from] LoadError),
    #[error("{0}")]
    Runtime(String),
}

/// What a case may cost; it fails above.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// Microseconds of the slowest of a hundred calls.
    pub micros: Option<u32>,
    /// Instructions.
    pub fuel: Option<u64>,
}

/// What became of one case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    pub name: String,
    /// What the policy answered after the host's checks, or `failure`.
    pub answer: Value,
    /// Instructions; the same in every run. Absent where counting was turned off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// Median and 99th percentile of the calls, instance and checks included, microseconds.
    pub p50_micros: u32,
    pub p99_micros: u32,
    /// What is not as expected. Empty: passed.
    pub problems: Vec<String>,
}

/// What became of a policy and all cases.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub policy: String,
    pub version: String,
    pub world: World,
    /// What the revision is called once it is uploaded.
    pub digest: String,
    pub headers: Vec<String>,
    pub facts: Vec<String>,
    /// From the file to a revision ready for calls, milliseconds.
    pub prepared_ms: u64,
    /// Bytes of compiled code.
    pub code_bytes: usize,
    pub cases: Vec<CaseReport>,
    pub p50_micros: u32,
    pub p99_micros: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_fuel: Option<u64>,
    pub passed: usize,
    pub failed: usize,
}

/// A policy that is ready to be asked.
pub struct Tester {
    runtime: tokio::runtime::Runtime,
    timed: Rig,
    counted: Option<Rig>,
    prepared_ms: u64,
}

struct Rig {
    host: PolicyHost,
    directory: Arc<ArcSwap<Directory>>,
    prepared: Prepared,
}

impl Tester {
    /// Prepares the policy as an upload does, in this process. With `count`, once more for
    /// the engine that counts instructions.
    pub fn new(upload: &Upload<'_>, count: bool) -> Result<Self, TestError> {
        let begun = Instant::now();
        let timed = Rig::new(PolicyEngine::for_preparing()?, upload)?;
        let prepared_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let counted = if count {
            Some(Rig::new(PolicyEngine::for_counting()?, upload)?)
        } else {
            None
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| TestError::Runtime(e.to_string()))?;
        Ok(Tester {
            runtime,
            timed,
            counted,
            prepared_ms,
        })
    }

    pub fn world(&self) -> World {
        self.timed.prepared.world
    }

    /// Asks every case, in order: the state of a shaping policy goes from one to the next.
    pub fn run(&self, cases: &[Case], grants: &Grants, budget: Budget) -> Report {
        let mut all_times = Vec::new();
        let mut state = Default::default();
        let mut reports = Vec::new();
        for case in cases {
            let (report, times) = self.ask(case, grants, budget, &mut state);
            all_times.extend(times);
            reports.push(report);
        }
        all_times.sort_unstable();
        let prepared = &self.timed.prepared;
        let failed = reports.iter().filter(|r| !r.problems.is_empty()).count();
        Report {
            policy: prepared.descriptor.name.clone(),
            version: prepared.descriptor.version.clone(),
            world: prepared.world,
            digest: prepared.digest.clone(),
            headers: prepared.descriptor.headers.clone(),
            facts: prepared.descriptor.facts.clone(),
            prepared_ms: self.prepared_ms,
            code_bytes: prepared.code_size(),
            p50_micros: percentile(&all_times, 50),
            p99_micros: percentile(&all_times, 99),
            max_fuel: reports.iter().filter_map(|r| r.fuel).max(),
            passed: reports.len() - failed,
            failed,
            cases: reports,
        }
    }

    fn ask(
        &self,
        case: &Case,
        grants: &Grants,
        budget: Budget,
        state: &mut bytes::Bytes,
    ) -> (CaseReport, Vec<u32>) {
        let before = state.clone();
        let fuel = self.counted.as_ref().map(|rig| {
            rig.begin(case, grants);
            let fuel = rig.fuel();
            self.runtime.block_on(rig.once(case, &mut before.clone()));
            rig.fuel().saturating_sub(fuel)
        });
        self.timed.begin(case, grants);
        let answer = self.runtime.block_on(self.timed.once(case, state));
        let mut times = Vec::new();
        let begun = Instant::now();
        // What failed is not asked again: an endless loop would be endless a hundred times.
        while answer.get("failure").is_none()
            && times.len() < REPEATS as usize
            && begun.elapsed() < PATIENCE
        {
            let call = Instant::now();
            self.runtime
                .block_on(self.timed.once(case, &mut before.clone()));
            times.push(u32::try_from(call.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        times.sort_unstable();
        let p99_micros = percentile(&times, 99);
        let mut problems = case.problems(&answer);
        if let (Some(most), Some(fuel)) = (budget.fuel, fuel)
            && fuel > most
        {
            problems.push(format!("{fuel} instructions; the budget is {most}"));
        }
        if let Some(most) = budget.micros
            && p99_micros > most
        {
            problems.push(format!("{p99_micros} us (p99); the budget is {most}"));
        }
        let report = CaseReport {
            name: case.name.clone(),
            answer,
            fuel,
            p50_micros: percentile(&times, 50),
            p99_micros,
            problems,
        };
        (report, times)
    }
}

/// Of sorted values; 0 of none.
fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let at = (sorted.len() * percent).div_ceil(100);
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0)
}

/// The exporter's name in the tester.
const EXPORTER: &str = "test";

impl Rig {
    fn new(engine: PolicyEngine, upload: &Upload<'_>) -> Result<Self, TestError> {
        let prepared = prepare(&engine, upload)?;
        let directory = Arc::new(ArcSwap::from_pointee(Directory::default()));
        let host = PolicyHost::new(engine, directory.clone(), HostOptions::default());
        Ok(Rig {
            host,
            directory,
            prepared,
        })
    }

    fn slot(&self) -> String {
        match self.prepared.world {
            World::RoutingPolicy => "routing".to_owned(),
            World::ShapingPolicy => "shaping".to_owned(),
            World::LogExporter => format!("export/{EXPORTER}"),
        }
    }

    /// Puts the policy in its slot anew, so that no case suffers from the failures of others.
    fn begin(&self, case: &Case, grants: &Grants) {
        self.directory
            .store(Arc::new(directory(case.tenant(), grants)));
        self.host.deactivate(&self.slot());
        // It was loaded when it was prepared.
        let _ = self.host.activate(&self.slot(), &self.prepared);
    }

    fn fuel(&self) -> u64 {
        self.host.fuel(&self.slot())
    }

    async fn once(&self, case: &Case, state: &mut bytes::Bytes) -> Value {
        match &case.input {
            Input::Message(question) => answer_of(question, &self.host.route(question).await),
            Input::Lanes { now, lanes } => {
                match self.host.plan(*now, state.clone(), lanes.clone()).await {
                    Ok(plan) => {
                        *state = plan.state;
                        json!({ "lanes": plan.lanes, "state_bytes": state.len() })
                    }
                    Err(fault) => failure(&fault),
                }
            }
            Input::Events(batch) => match self.host.render(EXPORTER, batch).await {
                Ok(payloads) => {
                    let shown: Vec<Value> = payloads.iter().map(payload).collect();
                    json!({ "payloads": shown })
                }
                Err(fault) => failure(&fault),
            },
        }
    }
}

fn failure(fault: &PolicyFault) -> Value {
    json!({ "failure": fault.to_string() })
}

fn payload(payload: &Payload) -> Value {
    json!({
        "content_type": payload.content_type,
        "body": String::from_utf8_lossy(&payload.body),
    })
}

/// A tenant with these rights and nothing else.
fn directory(tenant: &str, grants: &Grants) -> Directory {
    let relay = |name: &String| Relay {
        name: name.clone(),
        way: Way::Mx {
            sources: Vec::new(),
        },
    };
    let server = |name: &String| Server {
        tenant: tenant.to_owned(),
        name: name.clone(),
        host: "mail.example".to_owned(),
        port: 587,
        tls: TlsMode::default(),
        user: None,
        sealed_password: None,
    };
    let tenant = Tenant {
        id: tenant.to_owned(),
        domains: Vec::new(),
        relays: grants.relays.clone(),
        suspended: false,
        bulk_suspended: false,
        record_inputs: false,
        bulk_quota: None,
        wording: Default::default(),
    };
    Directory::new(
        vec![tenant],
        Vec::new(),
        grants.servers.iter().map(server).collect(),
        grants.relays.iter().map(relay).collect(),
    )
}

fn answer_of(question: &tidegate_queue::route::Question, routing: &Routing) -> Value {
    if let Some(why) = &routing.fallback {
        return json!({ "failure": why });
    }
    let recipients: serde_json::Map<String, Value> = question
        .envelope
        .recipients
        .iter()
        .enumerate()
        .map(|(n, r)| (r.address.as_str().to_owned(), action(routing.action(n))))
        .collect();
    let tags: serde_json::Map<String, Value> = routing
        .tags
        .iter()
        .map(|(name, value)| (name.clone(), value.as_str().into()))
        .collect();
    json!({ "recipients": recipients, "tags": tags })
}

fn action(action: &Action) -> Value {
    let reply = |r: &tidegate_mail::Reply| {
        json!({
            "code": r.code,
            "enhanced": r.enhanced.map(|e| e.to_string()),
            "text": r.text,
        })
    };
    match action {
        Action::Managed(m) => {
            let mut terms = json!({ "class": m.class });
            let mut put = |name: &str, value: Option<Value>| {
                if let Some(value) = value {
                    terms[name] = value;
                }
            };
            put("relay", m.relay.as_deref().map(Value::from));
            put("lane", m.lane.as_deref().map(Value::from));
            put("priority", (m.priority != 0).then(|| m.priority.into()));
            put("not_before", m.not_before.map(|t| t.rfc3339().into()));
            put("expire_after", m.expire_after_secs.map(Value::from));
            put("notify_delay_after", m.delay_notice_secs.map(Value::from));
            json!({ "managed": terms })
        }
        Action::Passthrough {
            server,
            after_failure,
        } => {
            let after = match after_failure {
                AfterFailure::GiveUp => "give-up",
                AfterFailure::GiveUpAndNotify => "give-up-and-notify",
                AfterFailure::ManagedRelay => "managed-relay",
            };
            json!({ "passthrough": { "server": server, "after_failure": after } })
        }
        Action::Defer(r) => json!({ "defer": reply(r) }),
        Action::Refuse(r) => json!({ "refuse": reply(r) }),
    }
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        assert_eq!(percentile(&[], 99), 0);
        assert_eq!(percentile(&[7], 50), 7);
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 50), 50);
        assert_eq!(percentile(&hundred, 99), 99);
    }
}
