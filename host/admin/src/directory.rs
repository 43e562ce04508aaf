//! Tenants and their credentials.
//!
//! A change is durable before it is taken into use, and in use before it is answered. What it
//! depends on is read under the same lock, so that of two changes at the same time neither is lost.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tidegate_queue::directory::{BUILT_IN_RELAY, Credential, Quota, Tenant};

use crate::extract::{Json, Query};
use crate::{ApiError, Context, Shared, validate};

pub(crate) type Answer<T> = Result<axum::Json<T>, ApiError>;
pub(crate) type Created<T> = Result<(StatusCode, axum::Json<T>), ApiError>;

#[derive(Serialize)]
pub(crate) struct Removed {
    removed: bool,
}

pub(crate) async fn tenant(context: &Context, id: &str) -> Result<Tenant, ApiError> {
    context
        .registry
        .tenants()
        .await?
        .into_iter()
        .find(|t| t.id == id)
        .ok_or_else(|| ApiError::not_found("tenant", id).remedy("see: tidegate tenant list"))
}

pub(crate) fn removed(what: &str, name: &str, was_there: bool) -> Answer<Removed> {
    if was_there {
        Ok(axum::Json(Removed { removed: true }))
    } else {
        Err(ApiError::not_found(what, name))
    }
}

/// A tenant without its wording, which has a route of its own.
fn shown(mut tenant: Tenant) -> Tenant {
    tenant.wording = None;
    tenant
}

pub(crate) async fn list_tenants(State(context): Shared) -> Answer<Vec<Tenant>> {
    let all = context.registry.tenants().await?;
    let mut all: Vec<Tenant> = all.into_iter().map(shown).collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(axum::Json(all))
}

/// A tenant, and how much of its quota is used.
#[derive(Serialize)]
pub(crate) struct ShownTenant {
    #[serde(flatten)]
    tenant: Tenant,
    #[serde(skip_serializing_if = "Option::is_none")]
    bulk_used: Option<u32>,
}

pub(crate) async fn show_tenant(
    State(context): Shared,
    Path(id): Path<String>,
) -> Answer<ShownTenant> {
    let tenant = shown(tenant(&context, &id).await?);
    let bulk_used = tenant.bulk_quota.map(|_| context.engine.quota_used(&id));
    Ok(axum::Json(ShownTenant { tenant, bulk_used }))
}

/// Lower-cases the domains, and refuses relays that are not there.
async fn checked(context: &Context, mut tenant: Tenant) -> Result<Tenant, ApiError> {
    validate::name("id", &tenant.id)?;
    if tenant.domains.is_empty() {
        return Err(
            ApiError::invalid("domains", "a tenant needs a domain to send from")
                .remedy("give at least one domain"),
        );
    }
    let mut domains = Vec::with_capacity(tenant.domains.len());
    for text in &tenant.domains {
        let domain = validate::domain("domains", text)?;
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    tenant.domains = domains;
    if let Some(quota) = &tenant.bulk_quota {
        if quota.recipients == 0 {
            return Err(
                ApiError::invalid("bulk_quota.recipients", "a quota of 0 sends nothing")
                    .remedy("give at least 1, or: tidegate tenant suspend --bulk"),
            );
        }
        if !(60..=31 * 24 * 3600).contains(&quota.window_secs) {
            return Err(ApiError::invalid(
                "bulk_quota.window_secs",
                "the time of a quota is too short or too long",
            )
            .remedy("give a minute to 31 days"));
        }
    }
    let known = context.registry.relays().await?;
    for name in &tenant.relays {
        if name != BUILT_IN_RELAY && !known.iter().any(|r| r.name == *name) {
            return Err(
                ApiError::invalid("relays", format!("there is no relay {name:?}"))
                    .remedy("add it first: tidegate relay add"),
            );
        }
    }
    Ok(tenant)
}

pub(crate) async fn add_tenant(
    State(context): Shared,
    Json(tenant): Json<Tenant>,
) -> Created<Tenant> {
    if tenant.wording.is_some() {
        return Err(
            ApiError::invalid("wording", "a wording is not set with the tenant")
                .remedy("add the tenant first, then: tidegate tenant wording set"),
        );
    }
    let _one = context.directory.lock().await;
    let tenant = checked(&context, tenant).await?;
    let existing = context.registry.tenants().await?;
    if existing.iter().any(|t| t.id == tenant.id) {
        return Err(
            ApiError::conflict(format!("there is a tenant {:?} already", tenant.id))
                .remedy("change it with PATCH, or: tidegate tenant set"),
        );
    }
    context.registry.put_tenant(tenant.clone()).await?;
    context.host.directory_changed().await?;
    tracing::info!(tenant = tenant.id, "tenant added");
    Ok((StatusCode::CREATED, axum::Json(tenant)))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TenantChange {
    domains: Option<Vec<String>>,
    relays: Option<Vec<String>>,
    suspended: Option<bool>,
    bulk_suspended: Option<bool>,
    record_inputs: Option<bool>,
    /// `null`: none any more.
    #[serde(deserialize_with = "given")]
    bulk_quota: Option<Option<Quota>>,
}

/// Tells a member that is `null` from one that is not there.
fn given<'de, D: serde::Deserializer<'de>>(member: D) -> Result<Option<Option<Quota>>, D::Error> {
    Option::deserialize(member).map(Some)
}

pub(crate) async fn change_tenant(
    State(context): Shared,
    Path(id): Path<String>,
    Json(change): Json<TenantChange>,
) -> Answer<Tenant> {
    let _one = context.directory.lock().await;
    let mut tenant = tenant(&context, &id).await?;
    if let Some(domains) = change.domains {
        tenant.domains = domains;
    }
    if let Some(relays) = change.relays {
        tenant.relays = relays;
    }
    if let Some(suspended) = change.suspended {
        tenant.suspended = suspended;
    }
    if let Some(suspended) = change.bulk_suspended {
        tenant.bulk_suspended = suspended;
    }
    if let Some(record) = change.record_inputs {
        tenant.record_inputs = record;
    }
    if let Some(quota) = change.bulk_quota {
        tenant.bulk_quota = quota;
    }
    let tenant = checked(&context, tenant).await?;
    context.registry.put_tenant(tenant.clone()).await?;
    context.host.directory_changed().await?;
    tracing::info!(
        tenant = tenant.id,
        suspended = tenant.suspended,
        bulk_suspended = tenant.bulk_suspended,
        "tenant changed"
    );
    Ok(axum::Json(shown(tenant)))
}

pub(crate) async fn remove_tenant(
    State(context): Shared,
    Path(id): Path<String>,
) -> Answer<Removed> {
    let _one = context.directory.lock().await;
    let was_there = context.registry.remove_tenant(id.clone()).await?;
    context.host.directory_changed().await?;
    if was_there {
        tracing::info!(tenant = id, "tenant removed");
    }
    removed("tenant", &id, was_there)
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OfTenant {
    tenant: Option<String>,
}

impl OfTenant {
    pub(crate) fn covers(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|t| t == tenant)
    }
}

/// A credential without its hash: that never leaves the gateway.
#[derive(Serialize)]
pub(crate) struct ShownCredential {
    user: String,
    tenant: String,
    bulk: bool,
    /// Only in the answer to its creation, and only where the gateway made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
}

pub(crate) async fn list_credentials(
    State(context): Shared,
    Query(of): Query<OfTenant>,
) -> Answer<Vec<ShownCredential>> {
    let mut all: Vec<_> = context
        .registry
        .credentials()
        .await?
        .into_iter()
        .filter(|c| of.covers(&c.tenant))
        .map(|c| ShownCredential {
            user: c.user,
            tenant: c.tenant,
            bulk: c.bulk,
            password: None,
        })
        .collect();
    all.sort_by(|a, b| a.user.cmp(&b.user));
    Ok(axum::Json(all))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCredential {
    tenant: String,
    user: String,
    /// Left out: one is made and returned, once.
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    bulk: bool,
    /// Replaces the password of a user of the same tenant.
    #[serde(default)]
    replace: bool,
}

/// Shortest password that may be given instead of a generated one.
const LEAST_PASSWORD: usize = 12;

pub(crate) async fn add_credential(
    State(context): Shared,
    Json(new): Json<NewCredential>,
) -> Created<ShownCredential> {
    validate::user("user", &new.user)?;
    let _one = context.directory.lock().await;
    let tenant = tenant(&context, &new.tenant).await?;
    let existing = context.registry.credentials().await?;
    if let Some(taken) = existing.iter().find(|c| c.user == new.user)
        && (!new.replace || taken.tenant != tenant.id)
    {
        return Err(
            ApiError::conflict(format!("there is a user {:?} already", new.user))
                .remedy("choose another name, or replace the password of the same tenant's user"),
        );
    }
    let (password, shown) = match new.password {
        Some(password) => {
            validate::password("password", &password, LEAST_PASSWORD)?;
            (password, None)
        }
        None => {
            let made = context.host.random_password()?;
            (made.clone(), Some(made))
        }
    };
    let credential = Credential {
        user: new.user,
        tenant: tenant.id,
        hash: context.host.hash_password(password).await?,
        bulk: new.bulk,
    };
    context.registry.put_credential(credential.clone()).await?;
    context.host.directory_changed().await?;
    tracing::info!(
        tenant = credential.tenant,
        user = credential.user,
        "credential set"
    );
    Ok((
        StatusCode::CREATED,
        axum::Json(ShownCredential {
            user: credential.user,
            tenant: credential.tenant,
            bulk: credential.bulk,
            password: shown,
        }),
    ))
}

pub(crate) async fn remove_credential(
    State(context): Shared,
    Path(user): Path<String>,
) -> Answer<Removed> {
    let _one = context.directory.lock().await;
    let was_there = context.registry.remove_credential(user.clone()).await?;
    context.host.directory_changed().await?;
    removed("user", &user, was_there)
}
