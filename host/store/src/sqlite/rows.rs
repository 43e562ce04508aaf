//! Small statements on SQLite connections.

use std::borrow::Cow;

use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqlitePool};
use sqlx::{AssertSqlSafe, Executor, Row as _, Sqlite, query::Query};
use tidegate_queue::{Fut, StoreResult};

use super::read_error;
use crate::gate::{Gate, Op};
use crate::rows::{Kind, Row, Rows, Stmt, Value};

/// A connection's readers and the way to its writer.
pub(crate) struct SqliteRows {
    pub readers: SqlitePool,
    pub gate: Gate,
}

pub(crate) type SqliteQuery<'q> = Query<'q, Sqlite, SqliteArguments>;

pub(crate) fn bind_value(query: SqliteQuery<'_>, value: Value) -> SqliteQuery<'_> {
    match value {
        Value::Null => query.bind(None::<i64>),
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Blob(value) => query.bind(value),
    }
}

/// Runs a text of one or more statements without parameters.
pub(crate) async fn run(
    conn: &mut SqliteConnection,
    sql: impl Into<Cow<'static, str>>,
) -> Result<(), sqlx::Error> {
    match sql.into() {
        Cow::Borrowed(sql) => conn.execute(sqlx::query(sql)).await.map(drop),
        Cow::Owned(sql) => conn
            .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .map(drop),
    }
}

impl Rows for SqliteRows {
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
            let rows = query.fetch_all(&self.readers).await.map_err(read_error)?;
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
        "SELECT value FROM json_each($1)"
    }
}
