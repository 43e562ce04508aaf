//! Policy revisions and the slots they are active in.
//!
//! A slot is `routing` (the default of all tenants), `routing/TENANT`, `shaping` or
//! `export/NAME`. A revision is named by its digest or a unique beginning of it.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use tidegate_queue::{Activation, Revision};

use crate::extract::{Json, Query};
use crate::{ApiError, Context, OPERATOR, Shared, Upload, validate};

type Answer<T> = Result<axum::Json<T>, ApiError>;

/// The world whose policies a slot runs.
pub(crate) fn world_of(slot: &str) -> Option<&'static str> {
    match slot.split_once('/') {
        None if slot == "routing" => Some("routing-policy"),
        None if slot == "shaping" => Some("shaping-policy"),
        Some(("routing", _)) => Some("routing-policy"),
        Some(("export", _)) => Some("log-exporter"),
        _ => None,
    }
}

async fn check_slot(context: &Context, slot: &str) -> Result<&'static str, ApiError> {
    let world = world_of(slot).ok_or_else(|| {
        ApiError::invalid("slot", format!("there is no slot {slot:?}"))
            .remedy("use routing, routing/TENANT, shaping or export/NAME")
    })?;
    if let Some(tenant) = slot.strip_prefix("routing/")
        && !context
            .registry
            .tenants()
            .await?
            .iter()
            .any(|t| t.id == tenant)
    {
        return Err(
            ApiError::invalid("slot", format!("there is no tenant {tenant:?}"))
                .remedy("see: tidegate tenant list"),
        );
    }
    if let Some(name) = slot.strip_prefix("export/") {
        let known = context.host.exporters();
        if !known.iter().any(|e| e == name) {
            return Err(
                ApiError::invalid("slot", format!("there is no exporter {name:?}")).remedy(
                    if known.is_empty() {
                        format!("add [export.{name}] to the configuration and restart")
                    } else {
                        format!("configured are: {}", known.join(", "))
                    },
                ),
            );
        }
    }
    Ok(world)
}

async fn find(context: &Context, digest: &str) -> Result<Revision, ApiError> {
    let given = digest.to_ascii_lowercase();
    if given.len() < 6 || !given.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(
            ApiError::invalid("digest", format!("{digest:?} is not a digest"))
                .remedy("give at least the first 6 hexadecimal digits"),
        );
    }
    let mut found: Vec<Revision> = context
        .registry
        .revisions()
        .await?
        .into_iter()
        .filter(|r| r.digest.starts_with(&given))
        .collect();
    match (found.pop(), found.len()) {
        (Some(revision), 0) => Ok(revision),
        (Some(_), more) => Err(ApiError::invalid(
            "digest",
            format!("{} revisions begin with {digest:?}", more + 1),
        )
        .remedy("give more digits")),
        (None, _) => {
            Err(ApiError::not_found("revision", digest).remedy("see: tidegate policy list"))
        }
    }
}

#[derive(Serialize)]
pub(crate) struct ShownRevision {
    #[serde(flatten)]
    revision: Revision,
    /// The slots where it is in force.
    active_in: Vec<String>,
}

/// The newest activation of each slot, by slot.
async fn in_force(context: &Context) -> Result<Vec<Activation>, ApiError> {
    let mut newest = std::collections::BTreeMap::new();
    for activation in context.registry.activations().await? {
        newest.insert(activation.slot.clone(), activation);
    }
    Ok(newest.into_values().collect())
}

async fn with_slots(context: &Context, revision: Revision) -> Result<ShownRevision, ApiError> {
    let active_in = in_force(context)
        .await?
        .into_iter()
        .filter(|a| a.digest == revision.digest)
        .map(|a| a.slot)
        .collect();
    Ok(ShownRevision {
        revision,
        active_in,
    })
}

pub(crate) async fn list(State(context): Shared) -> Answer<Vec<ShownRevision>> {
    let slots = in_force(&context).await?;
    let mut all: Vec<ShownRevision> = context
        .registry
        .revisions()
        .await?
        .into_iter()
        .map(|revision| ShownRevision {
            active_in: slots
                .iter()
                .filter(|a| a.digest == revision.digest)
                .map(|a| a.slot.clone())
                .collect(),
            revision,
        })
        .collect();
    all.sort_by_key(|r| std::cmp::Reverse(r.revision.uploaded_at));
    Ok(axum::Json(all))
}

pub(crate) async fn show(
    State(context): Shared,
    Path(digest): Path<String>,
) -> Answer<ShownRevision> {
    let revision = find(&context, &digest).await?;
    Ok(axum::Json(with_slots(&context, revision).await?))
}

pub(crate) async fn slots(State(context): Shared) -> Answer<Vec<Activation>> {
    Ok(axum::Json(in_force(&context).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPolicy {
    /// The component or core module, base64.
    component: String,
    /// Given to `init` as it is.
    #[serde(default)]
    config: String,
    #[serde(default)]
    note: String,
    /// Activates the revision there at once.
    #[serde(default)]
    slot: Option<String>,
}

pub(crate) async fn upload(
    State(context): Shared,
    Json(new): Json<NewPolicy>,
) -> Result<(StatusCode, axum::Json<ShownRevision>), ApiError> {
    validate::note("note", &new.note)?;
    let world = match &new.slot {
        Some(slot) => Some(check_slot(&context, slot).await?),
        None => None,
    };
    let component = base64::engine::general_purpose::STANDARD
        .decode(&new.component)
        .map_err(|e| ApiError::invalid("component", format!("not base64: {e}")))?;
    if component.len() > context.max_component {
        return Err(ApiError::invalid(
            "component",
            format!(
                "the component has {} bytes, the limit is {}",
                component.len(),
                context.max_component
            ),
        )
        .remedy("build it for size (opt-level \"s\", strip)"));
    }
    let revision = context
        .host
        .upload(Upload {
            component: component.into(),
            config: new.config,
            note: new.note.clone(),
            by: OPERATOR.to_owned(),
        })
        .await?;
    tracing::info!(
        digest = revision.digest,
        name = revision.name,
        world = revision.world,
        "policy uploaded"
    );
    if let (Some(slot), Some(world)) = (new.slot, world) {
        put_in_force(&context, slot, world, &revision, new.note).await?;
    }
    Ok((
        StatusCode::CREATED,
        axum::Json(with_slots(&context, revision).await?),
    ))
}

async fn put_in_force(
    context: &Context,
    slot: String,
    world: &str,
    revision: &Revision,
    note: String,
) -> Result<Activation, ApiError> {
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
    let activation = Activation {
        slot,
        digest: revision.digest.clone(),
        at: context.clock.now(),
        by: OPERATOR.to_owned(),
        note,
    };
    context.host.activate(activation.clone()).await?;
    if activation.slot == "shaping" {
        context.engine.replan();
    }
    tracing::info!(
        slot = activation.slot,
        digest = activation.digest,
        "policy activated"
    );
    Ok(activation)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activate {
    slot: String,
    digest: String,
    #[serde(default)]
    note: String,
}

pub(crate) async fn activate(
    State(context): Shared,
    Json(request): Json<Activate>,
) -> Answer<Activation> {
    validate::note("note", &request.note)?;
    let world = check_slot(&context, &request.slot).await?;
    let revision = find(&context, &request.digest).await?;
    Ok(axum::Json(
        put_in_force(&context, request.slot, world, &revision, request.note).await?,
    ))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OfSlot {
    slot: Option<String>,
}

/// Newest first.
pub(crate) async fn history(
    State(context): Shared,
    Query(of): Query<OfSlot>,
) -> Answer<Vec<Activation>> {
    let mut all = context.registry.activations().await?;
    all.retain(|a| of.slot.as_deref().is_none_or(|slot| slot == a.slot));
    all.reverse();
    Ok(axum::Json(all))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollback {
    slot: String,
    #[serde(default)]
    note: String,
}

/// Back to the revision that was in force before the present one, by the history: two
/// roll-backs in a row come back to where they began.
pub(crate) async fn rollback(
    State(context): Shared,
    Json(request): Json<Rollback>,
) -> Answer<Activation> {
    validate::note("note", &request.note)?;
    let world = check_slot(&context, &request.slot).await?;
    let history: Vec<Activation> = context
        .registry
        .activations()
        .await?
        .into_iter()
        .filter(|a| a.slot == request.slot)
        .collect();
    let Some(now) = history.last() else {
        return Err(
            ApiError::conflict(format!("nothing was ever active in {}", request.slot))
                .remedy("activate a revision: tidegate policy activate"),
        );
    };
    let Some(before) = history.iter().rev().find(|a| a.digest != now.digest) else {
        return Err(ApiError::conflict(format!(
            "no other revision was active in {} before",
            request.slot
        ))
        .remedy("activate one by its digest: tidegate policy list"));
    };
    let revision = find(&context, &before.digest).await?;
    let note = if request.note.is_empty() {
        format!("rolled back from {:.12}", now.digest)
    } else {
        request.note
    };
    Ok(axum::Json(
        put_in_force(&context, request.slot, world, &revision, note).await?,
    ))
}

#[cfg(test)]
mod tests {
    use super::world_of;

    #[test]
    fn slots_and_their_worlds() {
        assert_eq!(world_of("routing"), Some("routing-policy"));
        assert_eq!(world_of("routing/acme"), Some("routing-policy"));
        assert_eq!(world_of("shaping"), Some("shaping-policy"));
        assert_eq!(world_of("export/file"), Some("log-exporter"));
        for none in ["", "export", "shaping/x", "Routing", "x/y"] {
            assert_eq!(world_of(none), None, "{none}");
        }
    }
}
