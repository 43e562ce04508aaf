//! Tenants' tokens for this API. A token is shown once, in the answer to its creation; what is
//! kept is its hash.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tidegate_mail::Timestamp;
use tidegate_queue::directory;

use crate::directory::{Answer, Created, OfTenant, Removed, removed, tenant};
use crate::extract::{Caller, Json, Query, TOKEN_PREFIX};
use crate::{Shared, validate};

/// A token without its hash.
#[derive(Serialize)]
pub(crate) struct ShownToken {
    id: String,
    tenant: String,
    note: String,
    created_at: Timestamp,
    /// Only in the answer to its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

fn shown(token: directory::Token, text: Option<String>) -> ShownToken {
    ShownToken {
        id: token.id,
        tenant: token.tenant,
        note: token.note,
        created_at: token.created_at,
        token: text,
    }
}

pub(crate) async fn list(
    State(context): Shared,
    Query(of): Query<OfTenant>,
) -> Answer<Vec<ShownToken>> {
    let all = context.registry.tokens().await?;
    let of_tenant = all.into_iter().filter(|t| of.covers(&t.tenant));
    Ok(axum::Json(of_tenant.map(|t| shown(t, None)).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewToken {
    tenant: String,
    #[serde(default)]
    note: String,
}

pub(crate) async fn add(State(context): Shared, Json(new): Json<NewToken>) -> Created<ShownToken> {
    validate::note("note", &new.note)?;
    let _one = context.directory.lock().await;
    let tenant = tenant(&context, &new.tenant).await?;
    let text = format!("{TOKEN_PREFIX}{}", context.host.random_token()?);
    let hash = context.host.hash_token(&text);
    let token = directory::Token {
        // Enough to tell tokens apart, and nothing to find one by.
        id: format!("{}-{}", tenant.id, &hash[..8]),
        tenant: tenant.id,
        hash,
        note: new.note,
        created_at: context.clock.now(),
    };
    context.registry.put_token(token.clone()).await?;
    tracing::info!(tenant = token.tenant, id = token.id, "token added");
    Ok((StatusCode::CREATED, axum::Json(shown(token, Some(text)))))
}

pub(crate) async fn remove(State(context): Shared, Path(id): Path<String>) -> Answer<Removed> {
    let was_there = context.registry.remove_token(id.clone()).await?;
    if was_there {
        tracing::info!(id, "token revoked");
    }
    removed("token", &id, was_there)
}

#[derive(Serialize)]
pub(crate) struct Who {
    caller: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
}

/// Whose token it is.
pub(crate) async fn whoami(Extension(caller): Extension<Caller>) -> axum::Json<Who> {
    axum::Json(Who {
        caller: caller.name(),
        tenant: match caller {
            Caller::Operator => None,
            Caller::Tenant(id) => Some(id),
        },
    })
}
