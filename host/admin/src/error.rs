//! Errors as the API answers them: `{"error": {code, message, field, remedy}}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tidegate_queue::StoreError;

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs: `invalid`, `not-found`, `conflict`, `unauthorized`, ...
    pub code: String,
    /// For people: what is wrong.
    pub message: String,
    /// The field of the request that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Why a request was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    pub field: Option<String>,
    pub remedy: Option<String>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            status,
            code,
            message: message.into(),
            field: None,
            remedy: None,
        }
    }

    /// 422: the request is well-formed, but a field of it is not acceptable.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        let mut error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message);
        error.field = Some(field.to_owned());
        error
    }

    pub fn not_found(what: &str, name: &str) -> Self {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "not-found",
            format!("there is no {what} {name:?}"),
        )
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(message) => ApiError::conflict(message),
            StoreError::Full(_) => ApiError::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "storage-full",
                error.to_string(),
            )
            .remedy("free space on the volume of data_dir"),
            StoreError::Busy(_) => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "storage-busy",
                error.to_string(),
            )
            .remedy("try again; end what else has the database open"),
            StoreError::Failed(_) => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "storage-failed",
                error.to_string(),
            )
            .remedy("see the gateway's log; restart it once the cause is removed"),
            StoreError::Fenced(_) | StoreError::Damaged(_) => {
                ApiError::internal(error.to_string()).remedy("see the gateway's log")
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(code = self.code, error = %self.message, "admin request failed");
        }
        let status = self.status;
        let body = ErrorBody {
            error: ErrorDetail {
                code: self.code.to_owned(),
                message: self.message,
                field: self.field,
                remedy: self.remedy,
            },
        };
        (status, Json(body)).into_response()
    }
}

pub(crate) async fn no_such_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not-found", "there is no such route")
        .remedy("the routes are under /api/v1")
}

pub(crate) async fn no_such_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "the route does not have that method",
    )
    .remedy("see the Allow field of the answer")
}
