//! The way in: route once, hand passthrough off, make the rest durable, answer.
//!
//! The 250 is given after `Store::accept` returned and for no other reason, or, for
//! passthrough alone, because the tenant's server gave one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidegate_mail::event::Detail;
use tidegate_mail::recipient::Rights;
use tidegate_mail::{
    Asked, Enhanced, Event, EventKind, MessageId, Outcome, Promise, RecipientId, RecipientState,
    Reply, Stage, State, Timestamp, TrafficClass,
};

use super::flight::{Carried, Loaded};
use super::hand_off::Handed;
use super::{Engine, add, new_entry, queue_key, shard_of};
use crate::intake::{Intake, Submission};
use crate::ports::*;
use crate::route::{Action, Managed, Occasion, Question, Routing};

/// Bytes of one header field's value that a policy sees.
const MAX_FIELD: usize = 998;

/// What is to become of each recipient, gathered from the routing answer.
#[derive(Default)]
pub(super) struct Sorted {
    pub managed: Vec<(u32, Managed)>,
    pub refused: Vec<(u32, Reply)>,
    /// Server, what to do after a failure, recipients.
    pub passthrough: Vec<(String, crate::route::AfterFailure, Vec<u32>)>,
}

impl Intake for Engine {
    fn new_id(&self) -> MessageId {
        self.ids.next(self.now())
    }

    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>> {
        self.parts.store.content_writer()
    }

    fn submit(&self, submission: Submission) -> Fut<'_, Reply> {
        Box::pin(async move {
            let streamed = match &submission.content {
                spooled @ Content::Spooled { .. } => Some(spooled.clone()),
                Content::Memory(_) => None,
            };
            let (reply, stored) = self.take_in(submission).await;
            if let Some(content) = streamed
                && !stored
            {
                self.parts.store.discard(content);
            }
            reply
        })
    }

    fn refusal(&self) -> Option<Reply> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some(Reply::new(
                421,
                Enhanced::new(4, 3, 2),
                "the gateway is stopping, try again later",
            ));
        }
        if self.store_failed.load(Ordering::Relaxed) {
            return Some(Reply::new(
                451,
                Enhanced::new(4, 3, 0),
                "storage failed, try again later",
            ));
        }
        None
    }
}

impl Engine {
    /// The reply, and whether the store has taken the content.
    async fn take_in(&self, submission: Submission) -> (Reply, bool) {
        if let Some(reply) = self.refusal() {
            return (reply, false);
        }
        let now = self.now();
        let class = self.class_of(&submission);
        let bulk_suspended = self.bulk_is_suspended(&submission.tenant);
        if class == TrafficClass::Bulk && bulk_suspended {
            return (self.bulk_suspended(), false);
        }
        let mut envelope = submission.envelope.clone();
        envelope.tls_optional = submission.header.tls_optional();
        let envelope = Arc::new(envelope);
        let question = self.question(&submission, envelope.clone(), class, now);
        let routing = self.parts.policy.route(&question).await;
        if routing.fallback.is_some() {
            add(&self.counters.policy_fallbacks, 1);
        }
        let mut sorted = match sort(&routing, envelope.recipients.len()) {
            Ok(sorted) => sorted,
            Err(reply) => {
                add(&self.counters.refused_messages, 1);
                return (reply, false);
            }
        };
        if sorted.managed.is_empty()
            && sorted.passthrough.is_empty()
            && let Some((_, reply)) = sorted.refused.first()
        {
            add(&self.counters.refused_messages, 1);
            return (reply.clone(), false);
        }
        // What only its policy calls bulk is bulk all the same.
        if bulk_suspended
            && sorted
                .managed
                .iter()
                .any(|(_, m)| m.class == TrafficClass::Bulk)
        {
            return (self.bulk_suspended(), false);
        }
        let mut draft = Draft {
            envelope,
            class,
            routing,
            now,
            recipients: Vec::new(),
            events: Vec::new(),
        };
        if !sorted.passthrough.is_empty() {
            let alone = sorted.managed.is_empty() && sorted.refused.is_empty();
            if !alone && let Err(error) = self.probe_store().await {
                return (refusal_for(&error), false);
            }
            match self.hand_off(&submission, &mut draft, &mut sorted).await {
                Handed::Answered(reply) => return (reply, false),
                Handed::GoesOn => {}
            }
        }
        // What the store refuses it gives back by itself.
        (self.make_durable(submission, draft, sorted).await, true)
    }

    pub(super) fn bulk_is_suspended(&self, tenant: &str) -> bool {
        let directory = self.parts.directory.load();
        directory.tenant(tenant).is_some_and(|t| t.bulk_suspended)
    }

    fn bulk_suspended(&self) -> Reply {
        add(&self.counters.refused_messages, 1);
        bulk_refusal()
    }

    fn class_of(&self, submission: &Submission) -> TrafficClass {
        let bulk = submission.bulk
            || submission.envelope.recipients.len() > self.parts.settings.bulk_recipients
            || submission.header.is_bulk()
            || self
                .parts
                .settings
                .campaign_header
                .as_deref()
                .is_some_and(|name| submission.header.get(name).is_some());
        if bulk {
            TrafficClass::Bulk
        } else {
            TrafficClass::Transactional
        }
    }

    pub(super) fn question(
        &self,
        submission: &Submission,
        envelope: Arc<tidegate_mail::Envelope>,
        class: TrafficClass,
        now: Timestamp,
    ) -> Question {
        let wanted = self.parts.policy.wanted_headers(&submission.tenant);
        let headers = if wanted.is_empty() {
            Vec::new()
        } else {
            submission
                .header
                .fields()
                .iter()
                .filter(|f| wanted.iter().any(|w| w.eq_ignore_ascii_case(&f.name)))
                .map(|f| (f.name.clone(), cut(&f.value, MAX_FIELD).to_owned()))
                .collect()
        };
        Question {
            occasion: Occasion::Submitted,
            id: submission.id,
            tenant: submission.tenant.clone(),
            envelope,
            headers,
            size: submission.content.size(),
            received: now,
            now,
            origin: submission.origin.clone(),
            class,
            facts: vec![
                ("tenant".to_owned(), submission.tenant.to_string()),
                ("class".to_owned(), class.as_str().to_owned()),
            ],
        }
    }

    /// Stores what the gateway answers for; the reply tells the client so.
    async fn make_durable(
        &self,
        submission: Submission,
        mut draft: Draft,
        sorted: Sorted,
    ) -> Reply {
        let id = submission.id;
        let now = draft.now;
        let directory = self.parts.directory.load();
        let default_relay = directory.default_relay(&submission.tenant).to_owned();
        let settings = &self.parts.settings;
        let automatic = submission.header.is_automatic();
        let policy = draft.routing.policy.clone();
        draft.events.insert(
            0,
            Event {
                at: now,
                kind: EventKind::Accepted,
                message: id,
                recipient: None,
                detail: Detail {
                    asked: Asked::of_message(&draft.envelope),
                    ..Detail::default()
                },
            },
        );
        let mut promises: Vec<(&Managed, Arc<Promise>)> = Vec::new();
        for (index, managed) in &sorted.managed {
            let promise = match promises.iter().find(|(m, _)| *m == managed) {
                Some((_, promise)) => promise.clone(),
                None => {
                    let promise = Arc::new(settings.ceilings.promise(
                        managed,
                        draft.class,
                        &default_relay,
                        policy.as_deref(),
                    ));
                    promises.push((managed, promise.clone()));
                    promise
                }
            };
            let mut state = RecipientState::accepted(&promise, now);
            if let Some(not_before) = managed.not_before
                && not_before > now
            {
                state.state = State::Waiting {
                    due: not_before.min(state.expires_at),
                };
            }
            draft.routed(id, *index, Some(&promise));
            draft.push(&submission.tenant, *index, state, promise);
        }
        for (index, reply) in sorted.refused {
            let outcome = Outcome::from_reply(Stage::Local, reply);
            self.bounce_at_birth(&submission, &mut draft, index, outcome, None);
        }
        let tried = |e: &&Event| e.kind == EventKind::PassthroughTried;
        let passed = draft.events.iter().filter(tried).count();
        let keys = self.keys(&submission);
        let content = submission.content.clone();
        let count = draft.recipients.len() as u64;
        let message = NewMessage {
            id,
            tenant: submission.tenant.clone(),
            envelope: draft.envelope.clone(),
            content: content.clone(),
            accepted_at: now,
            origin: submission.origin,
            keys: keys.clone(),
            automatic,
            recipients: draft.recipients.clone(),
            events: draft.events,
            pays: Vec::new(),
        };
        if let Err(error) = self.parts.store.accept(message).await {
            tracing::error!(%id, %error, "a message could not be stored; the client was told to try again");
            if passed > 0 {
                tracing::error!(%id, passed, "recipients of that message whose mail a tenant's server may have taken: what comes again for them is a second copy");
            }
            self.doubtful.store(true, Ordering::Relaxed);
            self.note_store_error(&error);
            return refusal_for(&error);
        }
        self.doubtful.store(false, Ordering::Relaxed);
        add(&self.counters.accepted_messages, 1);
        add(&self.counters.accepted_recipients, count);
        let carried = Carried {
            id,
            tenant: submission.tenant,
            envelope: draft.envelope,
            content: match &content {
                Content::Memory(bytes) => Arc::new(bytes.clone()),
                // Never used: what is spooled is read back through the store.
                Content::Spooled { .. } => Arc::new(bytes::Bytes::new()),
            },
            accepted_at: now,
            keys,
            automatic,
        };
        self.enqueue(carried, draft.recipients, &content);
        Reply::new(250, Enhanced::new(2, 0, 0), format!("queued as {id}"))
    }

    /// Puts accepted recipients into the schedule and starts what can be started.
    pub(super) fn enqueue(
        &self,
        carried: Carried,
        recipients: Vec<NewRecipient>,
        content: &Content,
    ) {
        let message = carried.id;
        let carried = Arc::new(carried);
        let mut owes = false;
        let mut fresh = Vec::with_capacity(recipients.len());
        let mut placed = Vec::with_capacity(recipients.len());
        for r in recipients {
            owes |= r.state.owes != tidegate_mail::Owes::None;
            if r.state.is_done() {
                continue;
            }
            let Some(envelope) = carried.envelope.recipients.get(r.index as usize) else {
                continue;
            };
            let id = RecipientId {
                message,
                index: r.index,
            };
            let domain: Arc<str> = envelope.address.domain().into();
            let key = queue_key(&carried.tenant, &domain, &r.promise);
            placed.push((key, new_entry(id, &r.state, &r.promise)));
            fresh.push(Loaded {
                id,
                state: r.state,
                promise: r.promise,
                shard: r.shard,
            });
        }
        let now = self.now();
        let alarm = {
            let mut scheduler = self.schedule();
            let mut soon = false;
            for (key, entry) in placed {
                soon |= scheduler.add(&key, entry, now);
            }
            // Before the schedule can be asked for work.
            if soon && let Content::Memory(bytes) = content {
                self.flights.keep(carried, fresh, bytes);
            }
            scheduler.alarm()
        };
        if alarm {
            self.alarm.notify_one();
        }
        if owes {
            self.debts.push(message, None);
        }
        self.kick();
    }

    /// A recipient that is refused although the message is accepted: it owes its notice.
    /// `host` is the tenant's server where that refused it; `None`: the route did.
    pub(super) fn bounce_at_birth(
        &self,
        submission: &Submission,
        draft: &mut Draft,
        index: u32,
        outcome: Outcome,
        host: Option<String>,
    ) {
        let kind = match host {
            Some(_) => EventKind::PassthroughTried,
            None => EventKind::Refused,
        };
        let envelope = draft.envelope.clone();
        let rights = Rights {
            notify: envelope.recipients[index as usize].notify,
            null_sender: envelope.reverse_path.is_none(),
            automatic: false,
        };
        let promise = Arc::new(self.parts.settings.ceilings.promise(
            &Managed::default(),
            draft.class,
            crate::directory::BUILT_IN_RELAY,
            draft.routing.policy.as_deref(),
        ));
        let detail = if kind == EventKind::PassthroughTried {
            // The outcome of a passthrough attempt is not recorded.
            draft.detail(None)
        } else {
            Detail {
                code: outcome.reply.as_ref().map(|r| r.code),
                status: Some(outcome.status),
                text: Some(outcome.text()),
                ..draft.detail(None)
            }
        };
        draft.events.push(Event {
            at: draft.now,
            kind,
            message: submission.id,
            recipient: Some(index),
            detail,
        });
        let mut state = RecipientState::refused(outcome, rights, draft.now);
        if let Some(host) = host {
            state.attempts = 1;
            if let Some(last) = &mut state.last {
                last.host = Some(host);
            }
        }
        if state.owes != tidegate_mail::Owes::None {
            draft.push(&submission.tenant, index, state, promise);
        }
    }

    pub(super) fn keys(&self, submission: &Submission) -> LogKeys {
        let header = &submission.header;
        LogKeys {
            message_id: header.message_id().map(str::to_owned),
            record: self
                .parts
                .settings
                .record_header
                .as_deref()
                .and_then(|name| header.get(name))
                .map(|v| cut(v.trim(), 200).to_owned()),
            subject: header.log_subject(),
        }
    }
}

/// A message between its route and the store.
pub(super) struct Draft {
    pub envelope: Arc<tidegate_mail::Envelope>,
    pub class: TrafficClass,
    pub routing: Routing,
    pub now: Timestamp,
    pub recipients: Vec<NewRecipient>,
    pub events: Vec<Event>,
}

impl Draft {
    fn push(&mut self, tenant: &str, index: u32, state: RecipientState, promise: Arc<Promise>) {
        let domain = self.envelope.recipients[index as usize].address.domain();
        let shard = shard_of(tenant, domain);
        self.recipients.push(NewRecipient {
            index,
            state,
            promise,
            shard,
        });
    }

    /// Which policy decided, with its tags and a fallback's reason.
    pub fn detail(&self, promise: Option<&Promise>) -> Detail {
        let mut facts = self.routing.tags.clone();
        if let Some(fallback) = &self.routing.fallback {
            facts.push(("fallback".to_owned(), fallback.clone()));
        }
        Detail {
            policy: self.routing.policy.as_deref().map(str::to_owned),
            promise: promise.cloned(),
            facts,
            ..Detail::default()
        }
    }

    fn routed(&mut self, id: MessageId, index: u32, promise: Option<&Promise>) {
        let recipient = self.envelope.recipients.get(index as usize);
        let detail = Detail {
            asked: recipient.and_then(Asked::of_recipient),
            ..self.detail(promise)
        };
        self.events.push(Event {
            at: self.now,
            kind: EventKind::Routed,
            message: id,
            recipient: Some(index),
            detail,
        });
    }
}

/// Sorts the answer by what is to be done. Any `defer` is the answer for the whole message.
fn sort(routing: &Routing, recipients: usize) -> Result<Sorted, Reply> {
    let mut sorted = Sorted::default();
    for index in 0..recipients {
        match routing.action(index) {
            Action::Defer(reply) => return Err(reply.clone()),
            Action::Managed(managed) => sorted.managed.push((index as u32, managed.clone())),
            Action::Refuse(reply) => sorted.refused.push((index as u32, reply.clone())),
            Action::Passthrough {
                server,
                after_failure,
            } => match sorted
                .passthrough
                .iter_mut()
                .find(|(s, a, _)| s == server && a == after_failure)
            {
                Some((_, _, list)) => list.push(index as u32),
                None => {
                    sorted
                        .passthrough
                        .push((server.clone(), *after_failure, vec![index as u32]))
                }
            },
        }
    }
    Ok(sorted)
}

pub(super) fn bulk_refusal() -> Reply {
    Reply::new(
        550,
        Enhanced::new(5, 7, 1),
        "bulk mail of this tenant is suspended; other mail is not concerned",
    )
}

/// The 4xx for a message that could not be stored.
fn refusal_for(error: &StoreError) -> Reply {
    match error {
        StoreError::Full(_) => Reply::new(
            452,
            Enhanced::new(4, 3, 1),
            "insufficient storage, try again later",
        ),
        _ => Reply::new(
            451,
            Enhanced::new(4, 3, 0),
            "storage failed, try again later",
        ),
    }
}

/// At most `max` bytes of a text, cut at a character.
pub(super) fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
