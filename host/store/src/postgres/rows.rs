//! Small statements in PostgreSQL.

use std::borrow::Cow;

use sqlx::postgres::{PgArguments, PgPool};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres, Row as _};
use tidegate_queue::{Fut, StoreResult};

use super::read_error;
use crate::gate::{Gate, Op};
use crate::rows::{Kind, Row, Rows, Stmt, Value};

/// The readers and the way to the writer.
pub(crate) struct PgRows {
    pub pool: PgPool,
    pub gate: Gate,
}

pub(crate) fn bind_value(
    query: Query<'_, Postgres, PgArguments>,
    value: Value,
) -> Query<'_, Postgres, PgArguments> {
    match value {
        Value::Null => query.bind(None::<i64>),
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Blob(value) => query.bind(value),
    }
}

impl Rows for PgRows {
    fn select<'a>(
        &'a self,
        sql: Cow<'static, str>,
        args: Vec<Value>,
        kinds: &'static [Kind],
    ) -> Fut<'a, StoreResult<Vec<Row>>> {
        Box::pin(async move {
            let mut query = match sql {
                Cow::Borrowed(sql) => sqlx::query(sql),
                Cow::Owned(sql) => sqlx::query(AssertSqlSafe(sql)),
            };
            for value in args {
                query = bind_value(query, value);
            }
            let rows = query.fetch_all(&self.pool).await.map_err(read_error)?;
            rows.iter()
                .map(|row| {
                    let cell = |(at, kind): (usize, &Kind)| {
                        Ok(match kind {
                            Kind::Int => row
                                .try_get::<Option<i64>, _>(at)?
                                .map_or(Value::Null, Value::Int),
                            Kind::Text => row
                                .try_get::<Option<String>, _>(at)?
                                .map_or(Value::Null, Value::Text),
                            Kind::Blob => row
                                .try_get::<Option<Vec<u8>>, _>(at)?
                                .map_or(Value::Null, Value::Blob),
                        })
                    };
                    let cells: Result<Vec<Value>, sqlx::Error> =
                        kinds.iter().enumerate().map(cell).collect();
                    cells.map(Row).map_err(read_error)
                })
                .collect()
        })
    }

    fn execute(&self, statements: Vec<Stmt>) -> Fut<'_, StoreResult<Vec<u64>>> {
        Box::pin(self.gate.ask(|answer| Op::Execute(statements, answer)))
    }

    fn numbers(&self) -> &'static str {
        "SELECT value::bigint FROM json_array_elements_text($1::json)"
    }
}
