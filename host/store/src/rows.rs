//! Small statements in either database: the registry, the log's readers, and whatever
//! else is not worth a form of its own. SQL texts use `$1`, which both understand.

use std::borrow::Cow;

use tidegate_queue::{Fut, StoreError, StoreResult};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(value)
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(value)
    }
}

/// The type that a column is read as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Int,
    Text,
    Blob,
}

/// A statement that changes something.
#[derive(Clone, Debug)]
pub(crate) struct Stmt {
    pub sql: Cow<'static, str>,
    pub args: Vec<Value>,
}

impl Stmt {
    pub fn new(sql: &'static str, args: Vec<Value>) -> Self {
        Stmt {
            sql: Cow::Borrowed(sql),
            args,
        }
    }
}

/// A row as it was read.
#[derive(Debug)]
pub(crate) struct Row(pub Vec<Value>);

impl Row {
    pub fn int(&self, at: usize) -> StoreResult<i64> {
        match self.0.get(at) {
            Some(Value::Int(value)) => Ok(*value),
            other => Err(wrong(at, other)),
        }
    }

    pub fn opt_int(&self, at: usize) -> StoreResult<Option<i64>> {
        match self.0.get(at) {
            Some(Value::Null) => Ok(None),
            _ => self.int(at).map(Some),
        }
    }

    pub fn text(&self, at: usize) -> StoreResult<&str> {
        match self.0.get(at) {
            Some(Value::Text(value)) => Ok(value),
            other => Err(wrong(at, other)),
        }
    }

    pub fn opt_text(&self, at: usize) -> StoreResult<Option<&str>> {
        match self.0.get(at) {
            Some(Value::Null) => Ok(None),
            _ => self.text(at).map(Some),
        }
    }

    pub fn blob(&mut self, at: usize) -> StoreResult<Vec<u8>> {
        match self.0.get_mut(at) {
            Some(Value::Blob(value)) => Ok(std::mem::take(value)),
            other => Err(wrong(at, other.as_deref())),
        }
    }
}

fn wrong(at: usize, value: Option<&Value>) -> StoreError {
    StoreError::Damaged(format!("column {at} holds {value:?}"))
}

/// A database as the parts common to both see it.
pub(crate) trait Rows: Send + Sync {
    fn select<'a>(
        &'a self,
        sql: Cow<'static, str>,
        args: Vec<Value>,
        kinds: &'static [Kind],
    ) -> Fut<'a, StoreResult<Vec<Row>>>;

    /// All statements in one synced transaction; the rows that each changed.
    fn execute(&self, statements: Vec<Stmt>) -> Fut<'_, StoreResult<Vec<u64>>>;

    /// A sub-query over the numbers of a JSON array bound as `$1`.
    fn numbers(&self) -> &'static str;
}
