//! Where mail goes out: tenants' own servers, and the operator's relays.
//!
//! A password is sealed before it is stored, and never shown again.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tidegate_queue::TlsMode;
use tidegate_queue::directory::{BUILT_IN_RELAY, Relay, Server, Way};

use crate::directory::{Answer, Created, OfTenant, Removed, removed, tenant};
use crate::extract::{Json, Query};
use crate::{ApiError, Context, Shared, validate};

/// A server without its sealed password.
#[derive(Serialize)]
pub(crate) struct ShownServer {
    tenant: String,
    name: String,
    host: String,
    port: u16,
    tls: TlsMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    has_password: bool,
}

impl From<Server> for ShownServer {
    fn from(server: Server) -> Self {
        ShownServer {
            has_password: server.sealed_password.is_some(),
            tenant: server.tenant,
            name: server.name,
            host: server.host,
            port: server.port,
            tls: server.tls,
            user: server.user,
        }
    }
}

pub(crate) async fn list_servers(
    State(context): Shared,
    Query(of): Query<OfTenant>,
) -> Answer<Vec<ShownServer>> {
    let mut all: Vec<ShownServer> = context
        .registry
        .servers()
        .await?
        .into_iter()
        .filter(|s| of.covers(&s.tenant))
        .map(ShownServer::from)
        .collect();
    all.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
    Ok(axum::Json(all))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewServer {
    tenant: String,
    name: String,
    host: String,
    port: u16,
    #[serde(default)]
    tls: Option<TlsMode>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    password: Option<String>,
    /// Replaces a server of the same name.
    #[serde(default)]
    replace: bool,
}

/// Checks user, password and TLS mode of a server that the gateway logs in to, and seals
/// the password.
fn sealed(
    context: &Context,
    tls: TlsMode,
    user: Option<&str>,
    password: Option<&str>,
) -> Result<Option<String>, ApiError> {
    let Some(user) = user else {
        return match password {
            Some(_) => Err(ApiError::invalid("user", "a password without a user")
                .remedy("give the user name for AUTH too")),
            None => Ok(None),
        };
    };
    validate::user("user", user)?;
    let Some(password) = password else {
        return Err(ApiError::invalid("password", "a user without a password")
            .remedy("give the password for AUTH too"));
    };
    validate::password("password", password, 1)?;
    if !matches!(tls, TlsMode::StartTls | TlsMode::Implicit) {
        return Err(
            ApiError::invalid("tls", "a password is only sent over verified TLS")
                .remedy("use start-tls (port 587) or implicit (port 465)"),
        );
    }
    context.host.seal(password).map(Some)
}

pub(crate) async fn add_server(
    State(context): Shared,
    Json(new): Json<NewServer>,
) -> Created<ShownServer> {
    validate::name("name", &new.name)?;
    let _one = context.directory.lock().await;
    let tenant = tenant(&context, &new.tenant).await?;
    let tls = new.tls.unwrap_or(TlsMode::StartTls);
    let server = Server {
        host: validate::host("host", &new.host)?,
        port: validate::port("port", new.port)?,
        tls,
        sealed_password: sealed(&context, tls, new.user.as_deref(), new.password.as_deref())?,
        user: new.user,
        tenant: tenant.id,
        name: new.name,
    };
    if let Some(reason) = context.host.refuses_server(&server.host, server.port) {
        return Err(ApiError::invalid("host", reason)
            .remedy("give a public address of the tenant's own server, or a name that has one"));
    }
    let existing = context.registry.servers().await?;
    if !new.replace
        && existing
            .iter()
            .any(|s| s.tenant == server.tenant && s.name == server.name)
    {
        return Err(ApiError::conflict(format!(
            "the tenant has a server {:?} already",
            server.name
        ))
        .remedy("choose another name, or say that it is to be replaced"));
    }
    context.registry.put_server(server.clone()).await?;
    context.host.directory_changed().await?;
    tracing::info!(tenant = server.tenant, server = server.name, "server set");
    Ok((StatusCode::CREATED, axum::Json(server.into())))
}

pub(crate) async fn remove_server(
    State(context): Shared,
    Path((tenant, name)): Path<(String, String)>,
) -> Answer<Removed> {
    let _one = context.directory.lock().await;
    let was_there = context.registry.remove_server(tenant, name.clone()).await?;
    context.host.directory_changed().await?;
    removed("server", &name, was_there)
}

/// A relay without its sealed password.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(crate) enum ShownRelay {
    Mx {
        name: String,
        sources: Vec<std::net::IpAddr>,
    },
    Smarthost {
        name: String,
        host: String,
        port: u16,
        tls: TlsMode,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        has_password: bool,
    },
}

impl From<Relay> for ShownRelay {
    fn from(relay: Relay) -> Self {
        let name = relay.name;
        match relay.way {
            Way::Mx { sources } => ShownRelay::Mx { name, sources },
            Way::Smarthost {
                host,
                port,
                tls,
                user,
                sealed_password,
            } => ShownRelay::Smarthost {
                name,
                host,
                port,
                tls,
                user,
                has_password: sealed_password.is_some(),
            },
        }
    }
}

pub(crate) async fn list_relays(State(context): Shared) -> Answer<Vec<ShownRelay>> {
    let mut all = context.registry.relays().await?;
    if !all.iter().any(|r| r.name == BUILT_IN_RELAY) {
        all.push(Relay {
            name: BUILT_IN_RELAY.to_owned(),
            way: Way::Mx {
                sources: Vec::new(),
            },
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(axum::Json(all.into_iter().map(ShownRelay::from).collect()))
}

/// `host` makes it a smarthost; without, mail goes to the MX from one of `sources`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRelay {
    name: String,
    #[serde(default)]
    sources: Vec<std::net::IpAddr>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    tls: Option<TlsMode>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    replace: bool,
}

pub(crate) async fn add_relay(
    State(context): Shared,
    Json(new): Json<NewRelay>,
) -> Created<ShownRelay> {
    validate::name("name", &new.name)?;
    let way = match new.host {
        None => {
            for (field, given) in [
                ("port", new.port.is_some()),
                ("tls", new.tls.is_some()),
                ("user", new.user.is_some()),
                ("password", new.password.is_some()),
            ] {
                if given {
                    return Err(
                        ApiError::invalid(field, format!("{field} is for a smarthost"))
                            .remedy("give its host too, or leave this out for delivery by MX"),
                    );
                }
            }
            Way::Mx {
                sources: new.sources,
            }
        }
        Some(host) => {
            if !new.sources.is_empty() {
                return Err(ApiError::invalid(
                    "sources",
                    "source addresses are for delivery by MX",
                )
                .remedy("leave them out for a smarthost"));
            }
            let tls = new.tls.unwrap_or(TlsMode::StartTls);
            Way::Smarthost {
                host: validate::host("host", &host)?,
                port: validate::port("port", new.port.unwrap_or(587))?,
                tls,
                sealed_password: sealed(
                    &context,
                    tls,
                    new.user.as_deref(),
                    new.password.as_deref(),
                )?,
                user: new.user,
            }
        }
    };
    let relay = Relay {
        name: new.name,
        way,
    };
    let _one = context.directory.lock().await;
    let existing = context.registry.relays().await?;
    if !new.replace && existing.iter().any(|r| r.name == relay.name) {
        return Err(
            ApiError::conflict(format!("there is a relay {:?} already", relay.name))
                .remedy("choose another name, or say that it is to be replaced"),
        );
    }
    context.registry.put_relay(relay.clone()).await?;
    context.host.directory_changed().await?;
    tracing::info!(relay = relay.name, "relay set");
    Ok((StatusCode::CREATED, axum::Json(relay.into())))
}

pub(crate) async fn remove_relay(
    State(context): Shared,
    Path(name): Path<String>,
) -> Answer<Removed> {
    let _one = context.directory.lock().await;
    if let Some(user) = context
        .registry
        .tenants()
        .await?
        .iter()
        .find(|t| t.relays.contains(&name))
    {
        return Err(
            ApiError::conflict(format!("tenant {:?} uses the relay {name:?}", user.id))
                .remedy("give the tenant another relay first: tidegate tenant set"),
        );
    }
    let was_there = context.registry.remove_relay(name.clone()).await?;
    context.host.directory_changed().await?;
    removed("relay", &name, was_there)
}
