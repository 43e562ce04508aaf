//! What every request passes: the token, a bounded body, strict JSON, a strict query.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{ApiError, Inner};

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Operator,
    /// Holds a token of this tenant.
    Tenant(String),
}

impl Caller {
    /// As histories name it.
    pub fn name(&self) -> String {
        match self {
            Caller::Operator => "operator".to_owned(),
            Caller::Tenant(id) => format!("tenant:{id}"),
        }
    }

    /// The tenant that a request is restricted to: an operator's as it asks, a tenant's to
    /// itself.
    pub fn restrict(&self, asked: Option<String>) -> Result<Option<String>, ApiError> {
        match (self, asked) {
            (Caller::Operator, asked) => Ok(asked),
            (Caller::Tenant(id), Some(asked)) if asked != *id => Err(self.forbidden()),
            (Caller::Tenant(id), _) => Ok(Some(id.clone())),
        }
    }

    /// Whether it may see and change this slot.
    pub fn may_use(&self, slot: &str) -> bool {
        match self {
            Caller::Operator => true,
            Caller::Tenant(id) => slot.strip_prefix("routing/") == Some(id),
        }
    }

    pub fn forbidden(&self) -> ApiError {
        let (message, remedy) = match self {
            Caller::Operator => ("that is not allowed".to_owned(), String::new()),
            Caller::Tenant(id) => (
                format!("this token is of the tenant {id:?}, which may not do that"),
                format!(
                    "it may work on the slot routing/{id} and read its own queue and log; ask the operator for the rest"
                ),
            ),
        };
        ApiError::new(StatusCode::FORBIDDEN, "forbidden", message).remedy(remedy)
    }
}

/// The routes that a tenant's token opens too; what they show and do is restricted by their
/// handlers. All others are the operator's.
const OF_TENANTS: &[(&str, &str)] = &[
    ("GET", "/whoami"),
    ("GET", "/policies"),
    ("POST", "/policies"),
    ("GET", "/policies/inputs"),
    ("GET", "/policies/{digest}"),
    ("GET", "/slots"),
    ("GET", "/slots/status"),
    ("GET", "/slots/history"),
    ("POST", "/slots/activate"),
    ("POST", "/slots/canary"),
    ("POST", "/slots/shadow"),
    ("POST", "/slots/promote"),
    ("POST", "/slots/rollback"),
    ("POST", "/slots/rehearse"),
    ("GET", "/queue"),
    ("GET", "/log"),
    ("GET", "/log/{id}"),
];

/// Lets only the holder of a token pass, and a tenant only where tenants may. A token in the
/// query is never read, so it can't end up in an access log as a valid one.
pub(crate) async fn authenticate(
    State(context): State<Arc<Inner>>,
    matched: Option<axum::extract::MatchedPath>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
    let caller = match given {
        Some(token) if same(token.as_bytes(), context.token.as_bytes()) => Some(Caller::Operator),
        // What has not the form of a tenant's token is not looked up.
        Some(token) if token.starts_with(TOKEN_PREFIX) && token.len() <= 128 => context
            .registry
            .token(context.host.hash_token(token))
            .await?
            .map(|token| Caller::Tenant(token.tenant)),
        _ => None,
    };
    let Some(caller) = caller else {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the token is missing, wrong or revoked",
        )
        .remedy("send Authorization: Bearer with the contents of the admin token file, or with a tenant's token"));
    };
    if caller != Caller::Operator {
        let path = matched.as_ref().map_or("", |m| m.as_str());
        let path = path.strip_prefix("/api/v1").unwrap_or(path);
        let method = request.method().as_str();
        if !OF_TENANTS.contains(&(method, path)) {
            return Err(caller.forbidden());
        }
    }
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// How a tenant's token begins.
pub(crate) const TOKEN_PREFIX: &str = "tgt-";

/// Compares in a time that depends on the lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() || a.is_empty() {
        return false;
    }
    let difference = a
        .iter()
        .zip(b)
        .fold(0u8, |sum, (x, y)| std::hint::black_box(sum | (x ^ y)));
    difference == 0
}

/// A JSON body. Unknown fields are refused by the types themselves.
pub(crate) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| {
                if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                    ApiError::new(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "too-large",
                        "the request body is larger than this route accepts",
                    )
                    .remedy("send less at once; a policy's component and configuration have limits of their own: tidegate docs")
                } else {
                    ApiError::new(
                        StatusCode::BAD_REQUEST,
                        "bad-request",
                        rejection.body_text(),
                    )
                    .remedy("send the whole body that Content-Length announces")
                }
            })?;
        let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
        // Serde would read a list into a record field by field, and an empty one as its defaults.
        if body.trim_ascii_start().first() == Some(&b'[') {
            return Err(
                ApiError::new(StatusCode::BAD_REQUEST, "bad-json", "the body is a list")
                    .remedy("send a JSON object: { ... }"),
            );
        }
        serde_json::from_slice(body).map(Json).map_err(|error| {
            let mut answer = ApiError::new(
                StatusCode::BAD_REQUEST,
                "bad-json",
                format!("the body is not what this route takes: {error}"),
            )
            .remedy("send a JSON object with the fields of this route and no others");
            answer.field = quoted(&error.to_string());
            answer
        })
    }
}

/// The query string.
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::try_from_uri(&parts.uri)
            .map(|query| Query(query.0))
            .map_err(|rejection| {
                let text = rejection.body_text();
                let mut answer = ApiError::new(StatusCode::BAD_REQUEST, "bad-query", text.clone())
                    .remedy("use the parameters of this route and no others, each once");
                answer.field = quoted(&text);
                answer
            })
    }
}

/// The name that serde puts between back-ticks: the field at fault.
fn quoted(message: &str) -> Option<String> {
    let (_, rest) = message.split_once('`')?;
    let (name, _) = rest.split_once('`')?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd"));
        assert!(!same(b"abc", b"ab"));
        assert!(!same(b"", b""), "an empty token lets nobody in");
    }

    #[test]
    fn field_at_fault_is_named() {
        assert_eq!(
            quoted("unknown field `colour`, expected `id`").as_deref(),
            Some("colour")
        );
        assert_eq!(quoted("expected value at line 1"), None);
    }
}
