//! A batch in PostgreSQL: one transaction, one statement per table over `UNNEST`ed
//! arrays.
//!
//! A connection that breaks before the commit was asked for has changed nothing. One that
//! breaks at the commit leaves a doubt: the transaction's fate is then asked of the
//! server over a new connection, and nobody is told "accepted" before it is known. Where it
//! can't be learnt in time the callers are refused, and their messages go if they turn out to
//! stand, before anything else is written. A notice stays: the debts that it paid can't be
//! put back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgSeverity};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row as _};
use tidegate_mail::{Promise, Timestamp};
use tidegate_queue::{Content, StoreError, SweepReport};

use super::content::{Uploads, body_id};
use super::open::load_promises;
use super::refuse;
use super::rows::bind_value;
use super::statements::{
    Done, apply_changes, create_day, fence, insert_log, insert_messages, insert_recipients, run,
    run_text,
};
use crate::codec::{Item, merge_changes};
use crate::gate::Tally;
use crate::log::Days;
use crate::rows::Stmt;
use crate::writer::{Backend, Refusal};

/// How long a new connection is waited for, and the fate of a broken commit.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct PgWriter {
    pub connect: PgConnectOptions,
    pub conn: Option<PgConnection>,
    pub epochs: Arc<[u64]>,
    pub uploads: Arc<Uploads>,
    pub tally: Arc<Tally>,
    pub days: Arc<Days>,
    pub promises: HashMap<Arc<Promise>, i64>,
    pub next_promise: i64,
    pub next_seq: u64,
    /// A commit whose fate could not be learnt, with the messages that were refused for it.
    pub doubt: Option<Doubt>,
    pub freed_bytes: u64,
}

pub(crate) struct Doubt {
    transaction: String,
    /// Ids and log days of those that were refused.
    messages: Vec<(i64, u32)>,
}

enum Broken {
    /// By the server or by us; the connection may be good still.
    Refused(Refusal),
    /// At the commit: its fate is unknown.
    AtCommit(Box<Done>),
}

impl From<Refusal> for Broken {
    fn from(refusal: Refusal) -> Self {
        Broken::Refused(refusal)
    }
}

impl PgWriter {
    /// The connection, made anew if it broke; doubts are settled first.
    async fn connection(&mut self) -> Result<&mut PgConnection, Refusal> {
        if self.conn.is_none() {
            let made = tokio::time::timeout(PATIENCE, self.connect.connect()).await;
            let mut conn = match made {
                Ok(Ok(conn)) => conn,
                Ok(Err(error)) => return Err(refuse(&error)),
                Err(_) => {
                    return Err(Refusal::Batch(StoreError::Failed(
                        "PostgreSQL can't be reached: no answer in time".into(),
                    )));
                }
            };
            if let Some(doubt) = &self.doubt {
                settle_doubt(&mut conn, &self.epochs, doubt).await?;
                self.doubt = None;
            }
            self.conn = Some(conn);
        }
        // Filled just above where it was empty.
        self.conn
            .as_mut()
            .ok_or_else(|| Refusal::Batch(StoreError::Failed("no connection to PostgreSQL".into())))
    }

    /// Makes the connection fit for the next transaction, or drops it.
    async fn roll_back(&mut self) {
        if let Some(mut conn) = self.conn.take()
            && conn.execute("ROLLBACK").await.is_ok()
        {
            self.conn = Some(conn);
        }
    }

    async fn make_days(&mut self, items: &[Item]) -> Result<(), Refusal> {
        let mut missing: Vec<u32> = items
            .iter()
            .flat_map(|item| {
                let mail = item.mail.as_ref().map(|mail| mail.day);
                mail.into_iter().chain(item.events.iter().map(|e| e.day))
            })
            .filter(|day| !self.days.contains(*day))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for day in missing {
            let conn = self.connection().await?;
            if let Err(refusal) = run_text(conn, create_day(day)).await {
                self.roll_back().await;
                return Err(refusal);
            }
            self.days.put(day, Default::default());
        }
        Ok(())
    }

    /// Contents that were streamed in; each can be claimed once.
    fn claim(&self, items: &[Item]) -> Result<Vec<i64>, Refusal> {
        let mut claimed = Vec::new();
        for message in items.iter().filter_map(|item| item.message.as_ref()) {
            if let Content::Spooled { at, .. } = &message.content {
                let id = body_id(at).map_err(Refusal::Blame);
                match id {
                    Ok(id) if self.uploads.claim(id) => claimed.push(id),
                    refused => {
                        self.unclaim(&claimed);
                        let taken = StoreError::Conflict(
                            "the content was accepted already, or given up".into(),
                        );
                        return Err(refused.err().unwrap_or(Refusal::Blame(taken)));
                    }
                }
            }
        }
        Ok(claimed)
    }

    fn unclaim(&self, claimed: &[i64]) {
        for id in claimed {
            self.uploads.put(*id);
        }
    }

    async fn transaction(&mut self, items: &[Item]) -> Result<Done, Broken> {
        let Ok(changes) = merge_changes(items.iter()) else {
            return Err(Broken::Refused(Refusal::Blame(StoreError::Conflict(
                "a recipient that has left the queue is settled again".into(),
            ))));
        };
        let (epochs, promises) = (self.epochs.clone(), std::mem::take(&mut self.promises));
        let (next_promise, next_seq) = (self.next_promise, self.next_seq);
        let result = async {
            let conn = self.connection().await?;
            run_text(conn, "BEGIN").await?;
            let mut done = Done {
                transaction: fence(conn, &epochs, items).await?,
                ..Done::default()
            };
            insert_messages(conn, items, &mut done).await?;
            insert_recipients(conn, items, &promises, next_promise, &mut done).await?;
            apply_changes(conn, &changes, &mut done).await?;
            insert_log(conn, items, next_seq, &mut done).await?;
            match conn.execute("COMMIT").await {
                Ok(_) => Ok(done),
                // The server said no: it is rolled back.
                Err(error) if is_refusal(&error) => Err(Broken::Refused(refuse(&error))),
                Err(_) => Err(Broken::AtCommit(Box::new(done))),
            }
        }
        .await;
        self.promises = promises;
        result
    }

    fn note(&mut self, done: Done) {
        use std::sync::atomic::Ordering::Relaxed;
        let tally = &self.tally;
        Tally::add(&tally.commits, 1);
        Tally::add(&tally.syncs, 1);
        Tally::add(&tally.messages, done.messages);
        Tally::add(&tally.recipients, done.recipients);
        Tally::sub(&tally.messages, done.removed_messages);
        Tally::sub(&tally.recipients, done.removed_recipients);
        for (day, first, last) in done.days {
            self.days.note(day, first, last);
        }
        self.next_promise += done.new_promises.len() as i64;
        self.promises.extend(done.new_promises);
        self.next_seq = done.next_seq;
        self.freed_bytes += done.freed_bytes;
        tally.committed.store(self.next_seq - 1, Relaxed);
        tally.synced.store(self.next_seq - 1, Relaxed);
    }

    /// Whether a transaction that broke at its commit was committed.
    async fn fate(&mut self, transaction: &str) -> Option<bool> {
        let since = std::time::Instant::now();
        while since.elapsed() < PATIENCE {
            if let Ok(Ok(mut conn)) = tokio::time::timeout(PATIENCE, self.connect.connect()).await
                && let Ok(status) = status(&mut conn, transaction).await
            {
                self.conn = Some(conn);
                match status.as_deref() {
                    Some("committed") => return Some(true),
                    Some("aborted") => return Some(false),
                    // The server has not noticed yet that the connection is gone.
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }
}

/// Whether an error at a commit says that it was not made. One that ends the session does not:
/// a server that is stopped while it waits for its standby has committed.
fn is_refusal(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| !matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// `committed`, `aborted`, `in progress`; nothing if it is too long ago.
async fn status(conn: &mut PgConnection, transaction: &str) -> Result<Option<String>, sqlx::Error> {
    let query = sqlx::query("SELECT pg_xact_status($1::text::xid8)").bind(transaction);
    match conn.fetch_one(query).await {
        Ok(row) => row.try_get(0),
        // "In the future" (invalid_parameter_value): the server came back without having written
        // anything of it, not even that its number was given away. Nothing of it is there then.
        Err(error) if is_code(&error, "22023") => Ok(Some("aborted".to_owned())),
        Err(error) => Err(error),
    }
}

fn is_code(error: &sqlx::Error, sqlstate: &str) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| code == sqlstate)
}

/// Messages of a doubtful commit were refused: if it was committed after all, they go.
async fn settle_doubt(
    conn: &mut PgConnection,
    epochs: &[u64],
    doubt: &Doubt,
) -> Result<(), Refusal> {
    let fate = status(conn, &doubt.transaction)
        .await
        .map_err(|e| refuse(&e))?;
    match fate.as_deref() {
        Some("aborted") => return Ok(()),
        Some("in progress") => {
            return Err(Refusal::Batch(StoreError::Failed(
                "PostgreSQL has not ended a commit yet that broke off".into(),
            )));
        }
        // Committed, or so long ago that the server has forgotten.
        _ => {}
    }
    run_text(conn, "BEGIN").await?;
    fence(conn, epochs, &[]).await?;
    let mut sql = String::new();
    for (id, day) in &doubt.messages {
        sql.push_str(&format!(
            "DELETE FROM message WHERE id = {id}; DELETE FROM recipient WHERE message = {id};
             DELETE FROM body WHERE id = {id}; DELETE FROM mail_{day} WHERE id = {id};
             DELETE FROM event_{day} WHERE message = {id};"
        ));
    }
    sql.push_str("COMMIT;");
    run_text(conn, sql).await
}

impl Backend for PgWriter {
    async fn attempt(&mut self, items: &[Item]) -> Result<(), Refusal> {
        let claimed = self.claim(items)?;
        let result = match self.make_days(items).await {
            Ok(()) => self.transaction(items).await,
            Err(refusal) => Err(Broken::Refused(refusal)),
        };
        let refusal = match result {
            Ok(done) => {
                self.note(done);
                return Ok(());
            }
            Err(Broken::Refused(refusal)) => {
                self.roll_back().await;
                refusal
            }
            Err(Broken::AtCommit(done)) => {
                self.conn = None;
                match self.fate(&done.transaction).await {
                    Some(true) => {
                        self.note(*done);
                        return Ok(());
                    }
                    Some(false) => {}
                    None => {
                        let refused = items.iter().filter(|item| !item.pays());
                        let messages = refused.filter_map(|item| {
                            let mail = item.mail.as_ref()?;
                            Some((mail.id, mail.day))
                        });
                        self.doubt = Some(Doubt {
                            transaction: done.transaction,
                            messages: messages.collect(),
                        });
                        self.conn = None;
                    }
                }
                Refusal::Batch(StoreError::Failed(
                    "PostgreSQL went away during the commit".into(),
                ))
            }
        };
        self.unclaim(&claimed);
        Err(refusal)
    }

    async fn withdraw(&mut self, _items: &[Item]) {
        // No refusal of this backend is fatal: the server answers for its own syncs.
    }

    async fn execute(&mut self, statements: Vec<Stmt>) -> Result<Vec<u64>, Refusal> {
        let epochs = self.epochs.clone();
        let result = async {
            let conn = self.connection().await?;
            run_text(conn, "BEGIN").await?;
            fence(conn, &epochs, &[]).await?;
            let mut counts = Vec::with_capacity(statements.len());
            for statement in statements {
                let mut query = sqlx::query(AssertSqlSafe(statement.sql.into_owned()));
                for value in statement.args {
                    query = bind_value(query, value);
                }
                counts.push(run(conn, query).await?);
            }
            run_text(conn, "COMMIT").await?;
            Ok(counts)
        }
        .await;
        match &result {
            Ok(_) => {
                Tally::add(&self.tally.commits, 1);
                Tally::add(&self.tally.syncs, 1);
            }
            Err(_) => self.roll_back().await,
        }
        result
    }

    fn idle(&self) -> Option<Duration> {
        None
    }

    async fn sync(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    async fn sweep(&mut self, keep_from: Timestamp) -> Result<SweepReport, Refusal> {
        let mut report = SweepReport::default();
        for day in self.days.before(keep_from.day()) {
            let info = self.days.take(day).unwrap_or_default();
            let mut statements: Vec<Stmt> = ["event", "mail", "find"]
                .into_iter()
                .map(|table| Stmt {
                    sql: format!("DROP TABLE IF EXISTS {table}_{day}").into(),
                    args: Vec::new(),
                })
                .collect();
            // Numbers go on where they were, also after a restart with an empty log.
            statements.push(Stmt::new(
                "INSERT INTO meta (name, value) VALUES ('seq', $1)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                vec![self.next_seq.to_string().into()],
            ));
            if let Err(refusal) = self.execute(statements).await {
                self.days.put(day, info);
                return Err(refusal);
            }
            report.log_days_dropped += 1;
        }
        if self.promises.len() > 1000 {
            self.execute(vec![Stmt::new(
                "DELETE FROM promise WHERE NOT EXISTS
                     (SELECT 1 FROM recipient WHERE recipient.promise = promise.id)",
                Vec::new(),
            )])
            .await?;
            let conn = self.connection().await?;
            let left = load_promises(conn).await.map_err(Refusal::Batch)?;
            self.promises = left.into_iter().map(|(id, p)| (p, id)).collect();
        }
        report.content_bytes_freed = std::mem::take(&mut self.freed_bytes);
        Ok(report)
    }

    async fn close(self) {
        if let Some(conn) = self.conn {
            // The server ends the session either way.
            let _ = conn.close().await;
        }
    }
}
