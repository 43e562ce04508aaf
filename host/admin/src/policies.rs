//! Policy revisions: uploaded, listed, shown.
//!
//! A slot is `routing` (the default of all tenants), `routing/TENANT`, `shaping` or
//! `export/NAME`. A revision is named by its digest or a unique beginning of it. A tenant sees
//! those that were uploaded for its slot or active in it, and no others.

use std::collections::BTreeSet;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use tidegate_queue::rollout::{self, Step};
use tidegate_queue::{Activation, Revision};

use crate::extract::{Caller, Json};
use crate::rollout::{permille, put};
use crate::{ApiError, Context, Shared, Upload, validate};

pub(crate) type Answer<T> = Result<axum::Json<T>, ApiError>;

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

/// The world of a slot that is there and that the caller may use.
pub(crate) async fn check_slot(
    context: &Context,
    caller: &Caller,
    slot: &str,
) -> Result<&'static str, ApiError> {
    if !caller.may_use(slot) {
        return Err(caller.forbidden());
    }
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

/// The revisions that the caller may see.
async fn visible(context: &Context, caller: &Caller) -> Result<Vec<Revision>, ApiError> {
    let all = context.registry.revisions().await?;
    if *caller == Caller::Operator {
        return Ok(all);
    }
    let uploads = context.registry.uploads().await?;
    let history = context.registry.activations().await?;
    let own: BTreeSet<&str> = uploads
        .iter()
        .map(|u| (&u.slot, &u.digest))
        .chain(history.iter().map(|a| (&a.slot, &a.digest)))
        .filter(|(slot, _)| caller.may_use(slot))
        .map(|(_, digest)| digest.as_str())
        .collect();
    Ok(all
        .into_iter()
        .filter(|r| own.contains(r.digest.as_str()))
        .collect())
}

pub(crate) async fn find(
    context: &Context,
    caller: &Caller,
    digest: &str,
) -> Result<Revision, ApiError> {
    let given = digest.to_ascii_lowercase();
    if given.len() < 6 || !given.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(
            ApiError::invalid("digest", format!("{digest:?} is not a digest"))
                .remedy("give at least the first 6 hexadecimal digits"),
        );
    }
    let mut found: Vec<Revision> = visible(context, caller)
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
    /// Where it is a canary or a shadow.
    on_trial_in: Vec<String>,
}

/// Revisions with their slots, as far as the caller may see either.
async fn with_slots(
    context: &Context,
    caller: &Caller,
    revisions: Vec<Revision>,
) -> Result<Vec<ShownRevision>, ApiError> {
    let slots = rollout::slots(&context.registry.activations().await?);
    let of = |digest: &str, which: fn(&rollout::SlotState) -> &Option<Activation>| {
        slots
            .iter()
            .filter(|(slot, _)| caller.may_use(slot))
            .filter(|(_, state)| which(state).as_ref().is_some_and(|a| a.digest == digest))
            .map(|(slot, _)| slot.clone())
            .collect()
    };
    Ok(revisions
        .into_iter()
        .map(|mut revision| {
            if *caller != Caller::Operator && revision.uploaded_by != caller.name() {
                // Another uploaded the same one before: that is none of the tenant's business.
                revision.uploaded_by = String::new();
                revision.note = String::new();
            }
            ShownRevision {
                active_in: of(&revision.digest, |s| &s.in_force),
                on_trial_in: of(&revision.digest, |s| &s.trial),
                revision,
            }
        })
        .collect())
}

pub(crate) async fn list(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
) -> Answer<Vec<ShownRevision>> {
    let revisions = visible(&context, &caller).await?;
    let mut all = with_slots(&context, &caller, revisions).await?;
    all.sort_by_key(|r| std::cmp::Reverse(r.revision.uploaded_at));
    Ok(axum::Json(all))
}

async fn one(
    context: &Context,
    caller: &Caller,
    revision: Revision,
) -> Result<ShownRevision, ApiError> {
    with_slots(context, caller, vec![revision])
        .await?
        .pop()
        .ok_or_else(|| ApiError::internal("the revision is gone"))
}

pub(crate) async fn show(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(digest): Path<String>,
) -> Answer<ShownRevision> {
    let revision = find(&context, &caller, &digest).await?;
    Ok(axum::Json(one(&context, &caller, revision).await?))
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
    /// What it is for. Puts the revision in force there at once, unless one of the next
    /// three says otherwise. A tenant has to name its own.
    #[serde(default)]
    slot: Option<String>,
    /// Keeps it, and puts it nowhere.
    #[serde(default)]
    inactive: bool,
    /// Percent of the messages, or of the lanes of a shaping policy.
    #[serde(default)]
    canary: Option<f64>,
    #[serde(default)]
    shadow: bool,
}

impl NewPolicy {
    fn step(&self) -> Result<Option<Step>, ApiError> {
        let told = [self.inactive, self.canary.is_some(), self.shadow];
        if told.iter().filter(|t| **t).count() > 1 {
            return Err(ApiError::invalid(
                "slot",
                "inactive, canary and shadow exclude each other",
            )
            .remedy("give one of them, or none to put it in force"));
        }
        if self.slot.is_none() && told.contains(&true) {
            return Err(ApiError::invalid("slot", "which slot is it for?")
                .remedy("name it: routing, routing/TENANT or shaping"));
        }
        Ok(match self.canary {
            Some(percent) => Some(Step::Canary {
                permille: permille("canary", percent)?,
            }),
            None if self.shadow => Some(Step::Shadow),
            None if self.inactive || self.slot.is_none() => None,
            None => Some(Step::Activate),
        })
    }
}

pub(crate) async fn upload(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Json(new): Json<NewPolicy>,
) -> Result<(StatusCode, axum::Json<ShownRevision>), ApiError> {
    validate::note("note", &new.note)?;
    let step = new.step()?;
    match (&new.slot, &caller) {
        (Some(slot), _) => {
            check_slot(&context, &caller, slot).await?;
        }
        (None, Caller::Operator) => {}
        (None, Caller::Tenant(id)) => {
            return Err(ApiError::invalid("slot", "the slot is missing")
                .remedy(format!("say that it is for routing/{id}")));
        }
    }
    let component = base64::engine::general_purpose::STANDARD
        .decode(&new.component)
        .map_err(|e| {
            ApiError::invalid("component", format!("not base64: {e}"))
                .remedy("encode the component's bytes (RFC 4648 s. 4, with padding)")
        })?;
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
    if new.config.len() > context.max_config {
        return Err(ApiError::invalid(
            "config",
            format!(
                "the configuration has {} bytes, the limit is {}",
                new.config.len(),
                context.max_config
            ),
        )
        .remedy("make it smaller, or put into the component what does not change"));
    }
    let revision = context
        .host
        .upload(Upload {
            component: component.into(),
            config: new.config,
            note: new.note.clone(),
            by: caller.name(),
            slot: new.slot.clone().unwrap_or_default(),
        })
        .await?;
    tracing::info!(
        digest = revision.digest,
        name = revision.name,
        world = revision.world,
        by = caller.name(),
        "policy uploaded"
    );
    if let (Some(slot), Some(step)) = (new.slot, step) {
        put(&context, &caller, slot, step, None, &revision, new.note).await?;
    }
    Ok((
        StatusCode::CREATED,
        axum::Json(one(&context, &caller, revision).await?),
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
