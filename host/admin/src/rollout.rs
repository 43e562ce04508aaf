//! What the slots run: put in force, on trial, back; rehearsed before. Every change is a step
//! in the history of its slot.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_mail::Timestamp;
use tidegate_queue::rollout::{self, SlotState, Step};
use tidegate_queue::{Activation, Purpose, Revision};

use crate::extract::{Caller, Json, Query};
use crate::policies::{Answer, check_slot, find, world_of};
use crate::{ApiError, Context, Inputs, Rehearse, Shared, validate};

/// A share of messages or lanes in percent, as people say it.
pub(crate) fn permille(field: &str, percent: f64) -> Result<u16, ApiError> {
    if (0.1..=100.0).contains(&percent) {
        Ok((percent * 10.0).round() as u16)
    } else {
        Err(ApiError::invalid(
            field,
            format!("{percent} % is no share of messages or lanes"),
        )
        .remedy("use 0.1 to 100"))
    }
}

/// Makes one step with a revision.
pub(crate) async fn put(
    context: &Context,
    caller: &Caller,
    slot: String,
    step: Step,
    purpose: Option<Purpose>,
    revision: &Revision,
    note: String,
) -> Result<Activation, ApiError> {
    let world = world_of(&slot).unwrap_or_default();
    if revision.world != world {
        return Err(ApiError::invalid(
            "slot",
            format!(
                "the slot {slot} runs policies of the world {world}, the revision is of {}",
                revision.world
            ),
        )
        .remedy("activate it in a slot of its world"));
    }
    if matches!(step, Step::Canary { .. }) && world == "log-exporter" {
        return Err(ApiError::invalid(
            "slot",
            format!("{slot}: of a canary the receiver would get two formats"),
        )
        .remedy("try it as a shadow, which renders the same batches and sends nothing"));
    }
    let digest = revision.digest.clone();
    change(context, caller, slot, step, purpose, digest, note).await
}

async fn change(
    context: &Context,
    caller: &Caller,
    slot: String,
    step: Step,
    purpose: Option<Purpose>,
    digest: String,
    note: String,
) -> Result<Activation, ApiError> {
    let replan = slot == "shaping" && replans(context, step).await?;
    let change = Activation {
        seq: 0,
        slot,
        digest,
        step,
        purpose,
        at: context.clock.now(),
        by: caller.name(),
        note,
        cause: None,
    };
    context.host.change(change.clone()).await?;
    if replan {
        context.engine.replan();
    }
    Ok(change)
}

/// Whether a step makes another revision plan any lane: a shadow that comes or goes does not.
async fn replans(context: &Context, step: Step) -> Result<bool, ApiError> {
    if !matches!(step, Step::Shadow | Step::Withdraw) {
        return Ok(true);
    }
    let slots = rollout::slots(&context.registry.activations().await?);
    let trial = slots.get("shaping").and_then(|state| state.trial.as_ref());
    Ok(trial.is_some_and(|trial| matches!(trial.step, Step::Canary { .. })))
}

/// The states of the slots that the caller may see.
async fn states(context: &Context, caller: &Caller) -> Result<Vec<(String, SlotState)>, ApiError> {
    let slots = rollout::slots(&context.registry.activations().await?);
    Ok(slots
        .into_iter()
        .filter(|(slot, _)| caller.may_use(slot))
        .collect())
}

/// What is in force, by slot.
pub(crate) async fn slots(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
) -> Answer<Vec<Activation>> {
    let states = states(&context, &caller).await?;
    let in_force = states.into_iter().filter_map(|(_, state)| state.in_force);
    Ok(axum::Json(in_force.collect()))
}

#[derive(Serialize)]
pub(crate) struct ShownSlot {
    slot: String,
    #[serde(flatten)]
    state: SlotState,
    /// What the gateway that answers counted; left out where nothing runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<Value>,
}

pub(crate) async fn status(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Query(of): Query<OfSlot>,
) -> Answer<Vec<ShownSlot>> {
    of.check(&caller)?;
    let mut running = context.host.policy_status();
    let shown = states(&context, &caller)
        .await?
        .into_iter()
        .filter(|(slot, _)| of.covers(slot))
        .map(|(slot, state)| ShownSlot {
            running: running.remove(&slot),
            slot,
            state,
        });
    Ok(axum::Json(shown.collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    slot: String,
    digest: String,
    #[serde(default)]
    note: String,
}

async fn make(
    context: &Context,
    caller: &Caller,
    wanted: Wanted,
    step: Step,
    purpose: Option<Purpose>,
) -> Answer<Activation> {
    validate::note("note", &wanted.note)?;
    check_slot(context, caller, &wanted.slot).await?;
    let revision = find(context, caller, &wanted.digest).await?;
    put(
        context,
        caller,
        wanted.slot,
        step,
        purpose,
        &revision,
        wanted.note,
    )
    .await
    .map(axum::Json)
}

pub(crate) async fn activate(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Json(wanted): Json<Wanted>,
) -> Answer<Activation> {
    make(&context, &caller, wanted, Step::Activate, None).await
}

pub(crate) async fn shadow(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Json(wanted): Json<Wanted>,
) -> Answer<Activation> {
    make(&context, &caller, wanted, Step::Shadow, None).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Canary {
    slot: String,
    /// Left out: the one on trial.
    #[serde(default)]
    digest: Option<String>,
    percent: f64,
    #[serde(default)]
    note: String,
}

/// The revision on trial in a slot.
async fn on_trial(context: &Context, slot: &str) -> Result<String, ApiError> {
    rollout::slots(&context.registry.activations().await?)
        .remove(slot)
        .and_then(|state| state.trial)
        .map(|trial| trial.digest)
        .ok_or_else(|| {
            ApiError::conflict(format!("nothing is on trial in {slot}"))
                .remedy("name a revision by its digest: tidegate policy list")
        })
}

pub(crate) async fn canary(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Json(canary): Json<Canary>,
) -> Answer<Activation> {
    let step = Step::Canary {
        permille: permille("percent", canary.percent)?,
    };
    check_slot(&context, &caller, &canary.slot).await?;
    let digest = match canary.digest {
        Some(digest) => digest,
        None => on_trial(&context, &canary.slot).await?,
    };
    let wanted = Wanted {
        slot: canary.slot,
        digest,
        note: canary.note,
    };
    make(&context, &caller, wanted, step, None).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OnSlot {
    slot: String,
    #[serde(default)]
    note: String,
}

/// Puts what is on trial in force for every message.
pub(crate) async fn promote(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Json(request): Json<OnSlot>,
) -> Answer<Activation> {
    check_slot(&context, &caller, &request.slot).await?;
    let wanted = Wanted {
        digest: on_trial(&context, &request.slot).await?,
        slot: request.slot,
        note: request.note,
    };
    make(
        &context,
        &caller,
        wanted,
        Step::Activate,
        Some(Purpose::Promotion),
    )
    .await
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OfSlot {
    slot: Option<String>,
}

impl OfSlot {
    fn covers(&self, slot: &str) -> bool {
        self.slot.as_deref().is_none_or(|s| s == slot)
    }

    fn check(&self, caller: &Caller) -> Result<(), ApiError> {
        match &self.slot {
            Some(slot) if !caller.may_use(slot) => Err(caller.forbidden()),
            _ => Ok(()),
        }
    }
}

/// Which changes are wanted.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OfHistory {
    slot: Option<String>,
    since: Option<Timestamp>,
    /// With numbers above this one, the oldest first: for who keeps up.
    after: Option<u64>,
    /// With numbers below this one: the page before.
    before: Option<u64>,
    limit: u32,
}

/// Most changes in one answer.
const MAX_CHANGES: u32 = 1000;

#[derive(Serialize)]
pub(crate) struct ShownChange {
    /// The change in one word, as the log and the counts have it.
    change: &'static str,
    #[serde(flatten)]
    activation: Activation,
    /// The revision that was in force when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_force_before: Option<String>,
}

/// Every change with what was in force before it, oldest first.
fn changes(history: Vec<Activation>) -> impl DoubleEndedIterator<Item = ShownChange> {
    let mut states: BTreeMap<String, SlotState> = BTreeMap::new();
    let shown: Vec<ShownChange> = history
        .into_iter()
        .map(|activation| {
            let state = states.entry(activation.slot.clone()).or_default();
            let before = state.in_force.as_ref().map(|a| a.digest.clone());
            state.apply(&activation);
            ShownChange {
                change: activation.word(),
                activation,
                in_force_before: before,
            }
        })
        .collect();
    shown.into_iter()
}

/// Newest first, or what came after a change in its order.
pub(crate) async fn history(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Query(of): Query<OfHistory>,
) -> Answer<Vec<ShownChange>> {
    let slot = OfSlot { slot: of.slot };
    slot.check(&caller)?;
    if of.limit > MAX_CHANGES {
        return Err(
            ApiError::invalid("limit", "the limit is too high").remedy(format!(
                "use at most {MAX_CHANGES}, and go on with before or after"
            )),
        );
    }
    let most = if of.limit == 0 { MAX_CHANGES } else { of.limit } as usize;
    let wanted = changes(context.registry.activations().await?).filter(|shown| {
        let a = &shown.activation;
        slot.covers(&a.slot)
            && caller.may_use(&a.slot)
            && of.since.is_none_or(|since| a.at >= since)
            && of.after.is_none_or(|seq| a.seq > seq)
            && of.before.is_none_or(|seq| a.seq < seq)
    });
    Ok(axum::Json(match of.after {
        Some(_) => wanted.take(most).collect(),
        None => wanted.rev().take(most).collect(),
    }))
}

/// One step back: a trial is withdrawn; else what was in force before comes back; a tenant's
/// first revision gives way to the operator's.
pub(crate) async fn rollback(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Json(request): Json<OnSlot>,
) -> Answer<Activation> {
    validate::note("note", &request.note)?;
    check_slot(&context, &caller, &request.slot).await?;
    let history = context.registry.activations().await?;
    let Some((step, digest)) = rollout::roll_back(&request.slot, &history) else {
        return Err(ApiError::conflict(format!(
            "there is nothing to go back to in {}",
            request.slot
        ))
        .remedy("activate a revision by its digest: tidegate policy list"));
    };
    let now = rollout::slots(&history)
        .remove(&request.slot)
        .and_then(|state| state.in_force);
    let note = match (&now, step) {
        _ if !request.note.is_empty() => request.note,
        (Some(now), Step::Activate) => format!("rolled back from {:.12}", now.digest),
        _ => String::new(),
    };
    let purpose = Some(Purpose::RollBack);
    change(&context, &caller, request.slot, step, purpose, digest, note)
        .await
        .map(axum::Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRehearsal {
    slot: String,
    digest: String,
    /// Decisions made since then; left out: all that are kept.
    #[serde(default)]
    since: Option<Timestamp>,
    /// The `next` of the answer before, for what is left.
    #[serde(default)]
    after: u64,
}

/// Asks a revision about what the slot was asked, and tells what it would change. Works for some
/// seconds; what is left then is told by `next`.
pub(crate) async fn rehearse(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Json(wanted): Json<NewRehearsal>,
) -> Answer<Value> {
    let world = check_slot(&context, &caller, &wanted.slot).await?;
    let revision = find(&context, &caller, &wanted.digest).await?;
    if world != "routing-policy" || revision.world != world {
        return Err(ApiError::invalid(
            "slot",
            "routing policies are rehearsed in routing slots, and no others",
        )
        .remedy("name routing or routing/TENANT, and a revision of the routing world"));
    }
    let rehearse = Rehearse {
        slot: wanted.slot,
        digest: revision.digest,
        since: wanted.since,
        after: wanted.after,
    };
    context.host.rehearse(rehearse).await.map(axum::Json)
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OfInputs {
    tenant: Option<String>,
    since: Option<Timestamp>,
    after: u64,
    limit: u32,
    hash: bool,
}

/// Most decisions in one answer.
const MAX_INPUTS: u32 = 1000;

pub(crate) async fn inputs(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Query(of): Query<OfInputs>,
) -> Answer<Value> {
    if of.limit > MAX_INPUTS {
        return Err(ApiError::invalid("limit", "the limit is too high")
            .remedy("use at most 1000, and go on after next"));
    }
    let inputs = Inputs {
        tenant: caller.restrict(of.tenant)?,
        since: of.since,
        after: of.after,
        max: if of.limit == 0 { MAX_INPUTS } else { of.limit },
        hash: of.hash,
    };
    context.host.inputs(inputs).await.map(axum::Json)
}

#[cfg(test)]
mod tests {
    use super::permille;

    #[test]
    fn shares_are_said_in_percent() {
        assert_eq!(permille("percent", 5.0).unwrap(), 50);
        assert_eq!(permille("percent", 0.1).unwrap(), 1);
        assert_eq!(permille("percent", 100.0).unwrap(), 1000);
        for none in [0.0, -1.0, 100.1, f64::NAN] {
            assert!(permille("percent", none).is_err(), "{none}");
        }
    }
}
