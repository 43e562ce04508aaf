//! How a tenant's notices read: set, shown, tried and given up.
//!
//! A wording is checked as a whole before anything is stored, and is in use for the next
//! notice once the request is answered.

use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use tidegate_mail::dsn::{self, BadWording, Kind, Wording};

use crate::directory::{Answer, tenant};
use crate::extract::Json;
use crate::{ApiError, Inner, Shared};

/// A tenant's wording as it is in force.
#[derive(Serialize)]
pub(crate) struct Shown {
    tenant: String,
    /// Whether the tenant has words of its own; else these are the gateway's.
    own: bool,
    wording: Wording,
}

fn refused(bad: BadWording) -> ApiError {
    ApiError::invalid(&bad.field, bad.problem).remedy(bad.remedy)
}

/// A body with an unknown or ill-typed field.
fn misread(error: ApiError) -> ApiError {
    error.remedy("see every field with: tidegate tenant wording show TENANT --json")
}

pub(crate) async fn show(State(context): Shared, Path(id): Path<String>) -> Answer<Shown> {
    let own = tenant(&context, &id).await?.wording;
    Ok(axum::Json(Shown {
        own: own.is_some(),
        wording: own.map_or_else(|| context.engine.wording(&id), |w| *w),
        tenant: id,
    }))
}

pub(crate) async fn set(
    State(context): Shared,
    Path(id): Path<String>,
    body: Result<Json<Wording>, ApiError>,
) -> Answer<Shown> {
    let Json(wording) = body.map_err(misread)?;
    wording.check().map_err(refused)?;
    put(&context, &id, Some(wording.clone())).await?;
    tracing::info!(tenant = id, language = %wording.language, "wording set");
    Ok(axum::Json(Shown {
        tenant: id,
        own: true,
        wording,
    }))
}

pub(crate) async fn reset(State(context): Shared, Path(id): Path<String>) -> Answer<Shown> {
    put(&context, &id, None).await?;
    tracing::info!(tenant = id, "wording reset");
    Ok(axum::Json(Shown {
        own: false,
        wording: context.engine.wording(&id),
        tenant: id,
    }))
}

async fn put(context: &Inner, id: &str, wording: Option<Wording>) -> Result<(), ApiError> {
    let _one = context.directory.lock().await;
    let mut tenant = tenant(context, id).await?;
    tenant.wording = wording.map(Box::new);
    context.registry.put_tenant(tenant).await?;
    context.host.directory_changed().await?;
    Ok(())
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Trial {
    /// Left out: the one in force.
    wording: Option<Wording>,
}

/// A notice about a mail that never was.
#[derive(Serialize)]
pub(crate) struct Preview {
    /// `failure`, `delay` or `success`.
    kind: &'static str,
    subject: String,
    /// What people read of it.
    text: String,
    /// The whole message, with CRLF line ends.
    message: String,
}

pub(crate) async fn preview(
    State(context): Shared,
    Path(id): Path<String>,
    body: Result<Json<Trial>, ApiError>,
) -> Answer<Vec<Preview>> {
    let Json(trial) = body.map_err(misread)?;
    let own = tenant(&context, &id).await?.wording;
    let wording = trial
        .wording
        .or_else(|| own.map(|w| *w))
        .unwrap_or_else(|| context.engine.wording(&id));
    wording.check().map_err(refused)?;
    let now = context.clock.now();
    let kinds = [
        ("failure", Kind::Failure),
        ("delay", Kind::Delay),
        ("success", Kind::Success),
    ];
    let previews = kinds.into_iter().map(|(name, kind)| {
        let sample = dsn::sample(kind, &wording, &context.hostname, now)
            .map_err(|e| ApiError::internal(e.to_string()))?;
        Ok(Preview {
            kind: name,
            subject: sample.subject,
            text: sample.text,
            message: String::from_utf8_lossy(&sample.message).into_owned(),
        })
    });
    Ok(axum::Json(previews.collect::<Result<_, ApiError>>()?))
}
