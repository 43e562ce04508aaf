//! The queue as operators see and steer it.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tidegate_mail::{MessageId, Timestamp};
use tidegate_queue::Intake;
use tidegate_queue::control::{LaneEntry, QueueEntry, QueueQuery};
use tidegate_queue::measure::{Effect, Measure, Scope};

use crate::extract::{Caller, Json, Query};
use crate::{ApiError, OPERATOR, Shared, validate};

type Answer<T> = Result<axum::Json<T>, ApiError>;

/// Most recipients in one listing.
const MAX_LISTED: u32 = 10_000;

pub(crate) async fn list(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Query(mut query): Query<QueueQuery>,
) -> Answer<Vec<QueueEntry>> {
    query.tenant = caller.restrict(query.tenant)?;
    if query.limit > MAX_LISTED {
        return Err(ApiError::invalid("limit", "the limit is too high").remedy("use at most 10000"));
    }
    if query.limit == 0 {
        query.limit = 100;
    }
    Ok(axum::Json(context.engine.queue(query).await?))
}

pub(crate) async fn lanes(State(context): Shared) -> Answer<Vec<LaneEntry>> {
    Ok(axum::Json(context.engine.lanes()))
}

/// Which recipients a measure is about.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Selection {
    tenant: Option<String>,
    message: Option<MessageId>,
    domain: Option<String>,
    site: Option<String>,
    relay: Option<String>,
    /// Must be said where nothing else is: everything.
    all: bool,
    why: String,
}

impl Selection {
    fn query(&self) -> Result<QueueQuery, ApiError> {
        validate::note("why", &self.why)?;
        let query = QueueQuery {
            tenant: self.tenant.clone(),
            message: self.message,
            domain: self.domain.as_ref().map(|d| d.to_ascii_lowercase()),
            site: self.site.clone(),
            relay: self.relay.clone(),
            limit: 0,
        };
        if query == QueueQuery::default() && !self.all {
            return Err(ApiError::invalid("all", "that would be the whole queue")
                .remedy("name a message, tenant, domain, site or relay, or say all"));
        }
        Ok(query)
    }
}

#[derive(Serialize)]
pub(crate) struct Affected {
    recipients: u64,
}

pub(crate) async fn cancel(
    State(context): Shared,
    Json(selection): Json<Selection>,
) -> Answer<Affected> {
    let query = selection.query()?;
    let recipients = context
        .engine
        .cancel(query, OPERATOR, &selection.why)
        .await?;
    tracing::info!(recipients, why = selection.why, "recipients cancelled");
    Ok(axum::Json(Affected { recipients }))
}

pub(crate) async fn retry(
    State(context): Shared,
    Json(selection): Json<Selection>,
) -> Answer<Affected> {
    let recipients = context.engine.retry(selection.query()?).await?;
    Ok(axum::Json(Affected { recipients }))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Shown {
    /// What people lifted lately, instead of what is in force.
    lifted: bool,
}

pub(crate) async fn measures(
    State(context): Shared,
    Query(shown): Query<Shown>,
) -> Answer<Vec<Measure>> {
    Ok(axum::Json(match shown.lifted {
        true => context.engine.lifted_measures().await?,
        false => context.engine.measures(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewMeasure {
    #[serde(default)]
    scope: Scope,
    /// Must be said where the scope is empty.
    #[serde(default)]
    all: bool,
    #[serde(default)]
    cause: String,
    /// `None`: until it is released.
    #[serde(default)]
    until: Option<Timestamp>,
}

pub(crate) async fn add_measure(
    State(context): Shared,
    Json(new): Json<NewMeasure>,
) -> Result<(StatusCode, axum::Json<Measure>), ApiError> {
    validate::note("cause", &new.cause)?;
    if new.scope == Scope::default() && !new.all {
        return Err(ApiError::invalid("all", "that would hold all mail")
            .remedy("name a tenant, class, relay, site or domain, or say all"));
    }
    let now = context.clock.now();
    if new.until.is_some_and(|until| until <= now) {
        return Err(ApiError::invalid("until", "that time has passed")
            .remedy("give a later time, or none to hold until released"));
    }
    let cause = if new.cause.is_empty() {
        format!("by {OPERATOR}")
    } else {
        format!("{} (by {OPERATOR})", new.cause)
    };
    let id = format!("h-{}", context.engine.new_id());
    let measure = Measure {
        until: new.until,
        ..Measure::new(id, new.scope, Effect::Hold, &cause, now)
    };
    context.engine.put_measure(measure.clone()).await?;
    tracing::info!(id = measure.id, cause = measure.cause, "mail held");
    Ok((StatusCode::CREATED, axum::Json(measure)))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Lift {
    why: String,
    /// Of a shaping policy's measure: not repeated before. `None`: for what is left of it, and
    /// at least an hour.
    until: Option<Timestamp>,
}

/// Lifts a measure, whoever took it.
pub(crate) async fn lift_measure(
    State(context): Shared,
    Path(id): Path<String>,
    Json(lift): Json<Lift>,
) -> Answer<Measure> {
    validate::note("why", &lift.why)?;
    let now = context.clock.now();
    if lift.until.is_some_and(|until| until <= now) {
        return Err(
            ApiError::invalid("until", "that time has passed").remedy("give a later time, or none")
        );
    }
    let lifted = context
        .engine
        .lift_measure(&id, OPERATOR, &lift.why, lift.until)
        .await?;
    let Some(measure) = lifted else {
        return Err(ApiError::not_found("measure", &id).remedy("see: tidegate queue measures"));
    };
    tracing::info!(
        id,
        cause = measure.cause,
        why = lift.why,
        "measure lifted by the operator"
    );
    Ok(axum::Json(measure))
}
