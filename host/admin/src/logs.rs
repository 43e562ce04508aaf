//! Searching the delivery log.

use axum::Extension;
use axum::extract::{Path, State};
use tidegate_mail::MessageId;
use tidegate_queue::{LogEntry, LogQuery};

use crate::extract::{Caller, Query};
use crate::{ApiError, Shared};

/// Most messages in one answer.
const MAX_FOUND: u32 = 1000;

pub(crate) async fn search(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Query(mut query): Query<LogQuery>,
) -> Result<axum::Json<Vec<LogEntry>>, ApiError> {
    query.tenant = caller.restrict(query.tenant)?;
    if query.limit > MAX_FOUND {
        return Err(ApiError::invalid("limit", "the limit is too high")
            .remedy("use at most 1000, and since or until to narrow the search"));
    }
    if query.limit == 0 {
        query.limit = 50;
    }
    if query
        .subject
        .as_deref()
        .is_some_and(|s| !s.contains(char::is_alphanumeric))
    {
        return Err(ApiError::invalid("subject", "there is no word to look for")
            .remedy("give one or more whole words of the subject"));
    }
    // Stored without angle brackets, pasted with them as often as not.
    query.message_id = query.message_id.map(|id| {
        id.trim()
            .trim_start_matches('<')
            .trim_end_matches('>')
            .to_owned()
    });
    Ok(axum::Json(context.engine.store().search(query).await?))
}

pub(crate) async fn show(
    State(context): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<axum::Json<LogEntry>, ApiError> {
    let message: MessageId = id.parse().map_err(|e: tidegate_mail::id::BadId| {
        ApiError::invalid("id", e.to_string()).remedy("give the id of the reply: queued as ...")
    })?;
    let query = LogQuery {
        message: Some(message),
        // Another tenant's mail is not there for this one.
        tenant: caller.restrict(None)?,
        limit: 1,
        ..LogQuery::default()
    };
    context
        .engine
        .store()
        .search(query)
        .await?
        .pop()
        .map(axum::Json)
        .ok_or_else(|| {
            ApiError::not_found("message", &id)
                .remedy("the log is kept for the configured retention only")
        })
}
