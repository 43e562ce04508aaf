//! `tidegate:policy@1`: from the queue's types to the guest's and back.
//!
//! What goes in is borrowed from the question; what comes back is checked here and in
//! [`crate::answer`] before anything else sees it.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_mail::{Timestamp, TrafficClass};
use tidegate_queue::route::{self, Occasion, Question, Routing};
use tidegate_queue::{EventRecord, Payload};
use wasmtime::component::{Instance, InstancePre};
use wasmtime::{AsContextMut, Store};

use super::{Descriptor, World};
use crate::answer::{self, Grants, tidy};
use crate::engine::{Active, CallState, Failure, PolicyEngine};
use crate::limits;

mod lanes;

#[allow(clippy::all, dead_code)]
mod wit {
    wasmtime::component::bindgen!({
        path: "../../wit/tidegate-policy-1.0.0",
        // All exports at once: which of them a component has decides its world.
        inline: "
            package tidegate:host;
            world all {
                import tidegate:policy/log@1.0.0;
                export tidegate:policy/setup@1.0.0;
                export tidegate:policy/routing@1.0.0;
                export tidegate:policy/shaping@1.0.0;
                export tidegate:policy/replies@1.0.0;
                export tidegate:policy/log-export@1.0.0;
            }
        ",
        world: "tidegate:host/all",
        ownership: Borrowing { duplicate_if_necessary: true },
        exports: { default: async },
    });
}

use wit::exports::tidegate::policy::{log_export, replies, routing, setup, shaping};
use wit::tidegate::policy::log;
use wit::tidegate::policy::types::{PolicyError, ReplyParam, ReplyResult, TrafficClass as Class};

pub(crate) use lanes::{Planned, plan};
pub(crate) use log::Level;
pub(crate) use setup::GuestIndices as SetupIndices;

impl log::Host for CallState {
    fn write(&mut self, level: Level, text: String) {
        self.write_line(level, &text);
    }
}

impl wit::tidegate::policy::types::Host for CallState {}

pub(crate) fn add_to_linker<T, D>(
    linker: &mut wasmtime::component::Linker<T>,
    state: fn(&mut T) -> D::Data<'_>,
) -> wasmtime::Result<()>
where
    D: log::HostWithStore<T> + wit::tidegate::policy::types::HostWithStore<T>,
    for<'a> D::Data<'a>: log::Host + wit::tidegate::policy::types::Host,
    T: Send + 'static,
{
    wit::All::add_to_linker::<T, D>(linker, state)
}

/// Where the function of a revision's world is found.
pub(crate) enum Guest {
    Routing(routing::GuestIndices),
    /// The second where the policy reads replies, too.
    Shaping(shaping::GuestIndices, Option<replies::GuestIndices>),
    Export(log_export::GuestIndices),
}

impl Guest {
    pub fn find(world: World, pre: &InstancePre<CallState>) -> wasmtime::Result<Self> {
        SetupIndices::new(pre)?;
        Ok(match world {
            World::RoutingPolicy => Guest::Routing(routing::GuestIndices::new(pre)?),
            World::ShapingPolicy => Guest::Shaping(
                shaping::GuestIndices::new(pre)?,
                exports_replies(pre)
                    .then(|| replies::GuestIndices::new(pre))
                    .transpose()?,
            ),
            World::LogExporter => Guest::Export(log_export::GuestIndices::new(pre)?),
        })
    }

    pub fn check_types(
        &self,
        store: &mut Store<CallState>,
        instance: &Instance,
    ) -> wasmtime::Result<()> {
        match self {
            Guest::Routing(guest) => guest.load(store.as_context_mut(), instance).map(drop),
            Guest::Shaping(guest, replies) => {
                guest.load(store.as_context_mut(), instance)?;
                match replies {
                    Some(replies) => replies.load(store.as_context_mut(), instance).map(drop),
                    None => Ok(()),
                }
            }
            Guest::Export(guest) => guest.load(store.as_context_mut(), instance).map(drop),
        }
    }
}

impl From<setup::Descriptor> for Descriptor {
    fn from(d: setup::Descriptor) -> Self {
        Descriptor {
            name: d.name,
            version: d.version,
            headers: d.headers,
            facts: d.facts,
        }
    }
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        match error {
            PolicyError::Temporary(text) => Failure::Temporary(tidy(&text, limits::TEXT)),
            PolicyError::Broken(text) => Failure::Broken(tidy(&text, limits::TEXT)),
        }
    }
}

impl From<TrafficClass> for Class {
    fn from(class: TrafficClass) -> Self {
        match class {
            TrafficClass::Transactional => Class::Transactional,
            TrafficClass::Bulk => Class::Bulk,
        }
    }
}

impl From<Class> for TrafficClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Transactional => TrafficClass::Transactional,
            Class::Bulk => TrafficClass::Bulk,
        }
    }
}

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(0)
}

/// An instant the guest named, if it is not further ahead than `secs`.
fn instant(what: &str, at: u64, now: Timestamp, secs: u64) -> Result<Timestamp, String> {
    match i64::try_from(at) {
        Ok(at) if at <= millis(now).saturating_add(secs * 1000) as i64 => {
            Ok(Timestamp::from_millis(at))
        }
        _ => Err(format!("{what}: more than {secs} s ahead")),
    }
}

/// The start of a text, at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

fn wrong_world(active: &Active) -> Failure {
    Failure::Invalid(format!("{} is a {}", active.descriptor.name, active.world))
}

/// Asks for the route of a message.
pub(crate) async fn decide(
    engine: &PolicyEngine,
    active: &Arc<Active>,
    question: &Question,
    grants: &Grants<'_>,
) -> Result<Routing, Failure> {
    let Guest::Routing(guest) = &active.guest else {
        return Err(wrong_world(active));
    };
    let envelope = &question.envelope;
    let id = question.id.to_string();
    let recipients: Vec<routing::Recipient<'_>> = envelope
        .recipients
        .iter()
        .map(|r| routing::Recipient {
            address: r.address.as_str(),
            domain_at: r.address.domain_at() as u32,
        })
        .collect();
    let declared = &active.descriptor.headers;
    let mut headers: Vec<routing::Header<'_>> = Vec::with_capacity(question.headers.len());
    let mut next = 0; // Fields often come in the order of their declaration.
    for (name, value) in &question.headers {
        let mut fields = (next..declared.len()).chain(0..next);
        if let Some(field) = fields.find(|&f| declared[f].eq_ignore_ascii_case(name)) {
            next = field + 1;
            headers.push(routing::Header {
                field: field as u32,
                value: cut(value, limits::HEADER_VALUE),
            });
            if headers.len() == limits::HEADERS {
                break;
            }
        }
    }
    let mut facts: Vec<(&str, &str)> = Vec::new();
    if !active.descriptor.facts.is_empty() {
        if active.descriptor.wants_fact("tenant") {
            facts.push(("tenant", &question.tenant));
        }
        facts.extend(
            question
                .facts
                .iter()
                .filter(|(name, _)| name != "tenant" && active.descriptor.wants_fact(name))
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
    }
    let failed;
    let why = match &question.occasion {
        Occasion::Submitted | Occasion::Rehearsal => routing::Occasion::Submitted,
        Occasion::PassthroughFailed(reply) => {
            failed = (
                reply.enhanced.map_or(String::new(), |e| e.to_string()),
                tidy(&reply.text, limits::TEXT),
            );
            routing::Occasion::PassthroughFailed(ReplyParam {
                code: reply.code,
                enhanced: &failed.0,
                text: &failed.1,
            })
        }
    };
    let message = routing::Message {
        id: &id,
        sender: envelope.reverse_path.as_ref().map_or("", |a| a.as_str()),
        recipients: &recipients,
        headers: &headers,
        size: question.size,
        class: question.class.into(),
        received: millis(question.received),
        now: millis(question.now),
        origin: routing::Origin {
            via: &question.origin.via,
            user: question.origin.user.as_deref(),
            peer: question.origin.peer.as_deref().unwrap_or(""),
            helo: &question.origin.helo,
            tls: question.origin.tls,
        },
        facts: &facts,
    };
    let (result, cost_micros) = engine
        .call(active, limits::ROUTING_MS, limits::ANSWER, async |store| {
            let instance = active.pre.instantiate_async(&mut *store).await?;
            let guest = guest.load(&mut *store, &instance)?;
            guest.call_decide(&mut *store, why, message).await
        })
        .await;
    let decision = result??;
    routing_of(decision, question, grants)
        .map(|routing| Routing {
            policy: Some(active.digest.clone()),
            cost_micros,
            ..routing
        })
        .map_err(Failure::Invalid)
}

fn routing_of(
    decision: routing::Decision,
    question: &Question,
    grants: &Grants<'_>,
) -> Result<Routing, String> {
    let routing::Decision {
        otherwise,
        splits,
        tags,
    } = decision;
    answer::check_tags(&tags)?;
    let mut actions = Vec::with_capacity(1 + splits.len());
    actions.push(action_of(otherwise, question, grants)?);
    let mut indices = Vec::with_capacity(splits.len());
    for split in splits {
        actions.push(action_of(split.action, question, grants)?);
        indices.push(split.recipients);
    }
    let recipients = question.envelope.recipients.len();
    Ok(Routing {
        of_recipient: answer::assign(recipients, &indices)?,
        actions,
        policy: None,
        fallback: None,
        tags,
        cost_micros: 0,
    })
}

fn action_of(
    action: routing::Action,
    question: &Question,
    grants: &Grants<'_>,
) -> Result<route::Action, String> {
    let reply =
        |what, class, r: ReplyResult| answer::check_reply(what, class, r.code, &r.enhanced, r.text);
    match action {
        routing::Action::ManagedRelay(m) => grants.managed(route::Managed {
            class: m.class.into(),
            relay: m.relay,
            lane: m.lane,
            priority: m.priority,
            not_before: m
                .not_before
                .map(|at| instant("not-before", at, question.now, limits::NOT_BEFORE_SECS))
                .transpose()?,
            expire_after_secs: m.expire_after,
            delay_notice_secs: m.notify_delay_after,
        }),
        routing::Action::Passthrough(p) => grants.passthrough(
            p.server,
            match p.after_failure {
                routing::AfterFailure::GiveUp => route::AfterFailure::GiveUp,
                routing::AfterFailure::GiveUpAndNotify => route::AfterFailure::GiveUpAndNotify,
                routing::AfterFailure::ManagedRelay => route::AfterFailure::ManagedRelay,
            },
        ),
        routing::Action::Defer(r) => reply("defer", 4, r).map(route::Action::Defer),
        routing::Action::Refuse(r) => reply("refuse", 5, r).map(route::Action::Refuse),
    }
}

/// Whether the component has the interface for replies, which is optional.
fn exports_replies(pre: &InstancePre<CallState>) -> bool {
    let component = pre.component();
    component
        .component_type()
        .exports(component.engine())
        .any(|(name, _)| {
            name.strip_prefix("tidegate:policy/replies@")
                .is_some_and(|version| version.starts_with("1."))
        })
}

/// What an event's record borrows from.
#[derive(Default)]
struct EventText {
    message: String,
    peer: Option<String>,
    tls: Option<String>,
    enhanced: Option<String>,
    facts: Vec<(String, String)>,
}

impl EventText {
    fn of(record: &EventRecord, descriptor: &Descriptor) -> Self {
        let detail = &record.event.detail;
        let hop = detail.hop.as_ref();
        let mut facts = Vec::new();
        if !descriptor.facts.is_empty() {
            let mut fact = |name: &str, value: Option<String>| {
                if let Some(value) = value
                    && descriptor.wants_fact(name)
                {
                    facts.push((name.to_owned(), value));
                }
            };
            fact("stage", detail.stage.map(|s| s.as_str().to_owned()));
            fact(
                "verdict",
                detail
                    .verdict
                    .map(|v| format!("{v:?}").to_ascii_lowercase()),
            );
            fact(
                "source",
                hop.and_then(|h| h.source).map(|ip| ip.to_string()),
            );
            fact(
                "tls-verified",
                hop.and_then(|h| h.tls.as_ref()).map(|t| t.verified.clone()),
            );
            fact("next", detail.next.map(|t| millis(t).to_string()));
            fact("policy", detail.policy.clone());
            if let Some(promise) = &detail.promise {
                fact("class", Some(promise.class.as_str().to_owned()));
                fact("relay", Some(promise.relay.clone()));
                fact("lane", promise.lane.clone());
                fact("lifetime", Some(promise.lifetime_secs.to_string()));
            }
            fact("notice", detail.notice.map(|id| id.to_string()));
            for (name, value) in &detail.facts {
                fact(name, Some(value.clone()));
            }
        }
        EventText {
            message: record.event.message.to_string(),
            peer: hop.and_then(|h| h.peer).map(|p| p.to_string()),
            tls: hop
                .and_then(|h| h.tls.as_ref())
                .map(|t| format!("{} {}", t.version, t.cipher)),
            enhanced: detail.status.map(|s| s.to_string()),
            facts,
        }
    }
}

/// Renders a batch of events; with the microseconds that it took.
pub(crate) async fn render(
    engine: &PolicyEngine,
    active: &Arc<Active>,
    batch: &[EventRecord],
) -> Result<(Vec<Payload>, u32), Failure> {
    let Guest::Export(guest) = &active.guest else {
        return Err(wrong_world(active));
    };
    let texts: Vec<EventText> = batch
        .iter()
        .map(|record| EventText::of(record, &active.descriptor))
        .collect();
    let facts: Vec<Vec<(&str, &str)>> = texts
        .iter()
        .map(|text| {
            text.facts
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str()))
                .collect()
        })
        .collect();
    let events: Vec<log_export::Event<'_>> = batch
        .iter()
        .zip(texts.iter().zip(&facts))
        .map(|(record, (text, facts))| {
            let detail = &record.event.detail;
            log_export::Event {
                seq: record.seq,
                at: millis(record.event.at),
                kind: record.event.kind.as_str(),
                message: &text.message,
                tenant: &record.tenant,
                sender: &record.sender,
                recipient: record.recipient_address.as_deref(),
                size: record.size,
                message_id: record.keys.message_id.as_deref(),
                record_id: record.keys.record.as_deref(),
                subject: record.keys.subject.as_deref(),
                attempt: detail.attempt,
                duration_ms: detail.hop.as_ref().map(|h| h.duration_ms),
                site: detail.site.as_deref(),
                host: detail.hop.as_ref().and_then(|h| h.host.as_deref()),
                peer: text.peer.as_deref(),
                tls: text.tls.as_deref(),
                code: detail.code,
                enhanced: text.enhanced.as_deref(),
                text: detail.text.as_deref(),
                facts,
            }
        })
        .collect();
    let (result, cost_micros) = engine
        .call(
            active,
            limits::EXPORT_MS,
            limits::EXPORT_ANSWER,
            async |store| {
                let instance = active.pre.instantiate_async(&mut *store).await?;
                let guest = guest.load(&mut *store, &instance)?;
                guest.call_render(&mut *store, &events).await
            },
        )
        .await;
    let payloads = result??;
    let total: usize = payloads.iter().map(|p| p.body.len()).sum();
    if payloads.len() > limits::PAYLOADS || total > limits::PAYLOAD_BYTES {
        return Err(Failure::Invalid(format!(
            "{} payloads of {total} bytes together; at most {} of {}",
            payloads.len(),
            limits::PAYLOADS,
            limits::PAYLOAD_BYTES
        )));
    }
    payloads
        .into_iter()
        .map(|p| {
            let plausible = p.content_type.len() <= 128
                && p.content_type.contains('/')
                && p.content_type
                    .bytes()
                    .all(|b| b.is_ascii_graphic() || b == b' ');
            if !plausible {
                return Err(Failure::Invalid(format!(
                    "content type {:?}",
                    tidy(&p.content_type, 64)
                )));
            }
            Ok(Payload {
                body: Bytes::from(p.body),
                content_type: p.content_type,
            })
        })
        .collect::<Result<_, _>>()
        .map(|payloads| (payloads, cost_micros))
}
