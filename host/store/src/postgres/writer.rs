//! A batch in PostgreSQL: one transaction, one statement per table over `UNNEST`ed
//! arrays.
//!
//! A connection that breaks before the commit was asked for has changed nothing. One that
//! breaks at the commit leaves a doubt: the transaction's fate is then asked of the
//! server over a new connection, and nobody is told "accepted" before it is known.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Postgres, Row as _};
use tidegate_mail::{Promise, Timestamp};
use tidegate_queue::{Content, StoreError, SweepReport};

use super::content::{CHUNK, Uploads, body_id};
use super::open::load_promises;
use super::refuse;
use super::rows::bind_value;
use crate::codec::{Changes, EventRow, Item, MailRow, RecipientRow, StateRow, json, merge_changes};
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
    /// Ids and log days.
    messages: Vec<(i64, u32)>,
}

/// What a transaction did, to be noted once it is committed.
#[derive(Default)]
struct Done {
    transaction: String,
    messages: u64,
    recipients: u64,
    removed_messages: u64,
    removed_recipients: u64,
    freed_bytes: u64,
    new_promises: Vec<(Arc<Promise>, i64)>,
    days: Vec<(u32, u64, u64)>,
    next_seq: u64,
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

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

async fn run(conn: &mut PgConnection, query: PgQuery<'_>) -> Result<u64, Refusal> {
    let done = conn.execute(query).await.map_err(|e| refuse(&e))?;
    Ok(done.rows_affected())
}

async fn run_text(conn: &mut PgConnection, sql: impl Into<String>) -> Result<(), Refusal> {
    let text = sqlx::raw_sql(AssertSqlSafe(sql.into()));
    conn.execute(text).await.map(drop).map_err(|e| refuse(&e))
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
                settle_doubt(&mut conn, doubt).await?;
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
                Err(error @ sqlx::Error::Database(_)) => Err(Broken::Refused(refuse(&error))),
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

/// `committed`, `aborted`, `in progress`; nothing if it is too long ago.
async fn status(conn: &mut PgConnection, transaction: &str) -> Result<Option<String>, sqlx::Error> {
    let query = sqlx::query("SELECT pg_xact_status($1::text::xid8)").bind(transaction);
    conn.fetch_one(query).await?.try_get(0)
}

/// Messages of a doubtful commit were refused: if it was committed after all, they go.
async fn settle_doubt(conn: &mut PgConnection, doubt: &Doubt) -> Result<(), Refusal> {
    let fate = status(conn, &doubt.transaction)
        .await
        .map_err(|e| refuse(&e))?;
    if fate.as_deref() != Some("committed") {
        return Ok(());
    }
    let mut sql = String::from("BEGIN;");
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
                        let messages = items.iter().filter_map(|item| {
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
        let result = async {
            let conn = self.connection().await?;
            run_text(conn, "BEGIN").await?;
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
        for day in self.days.take_before(keep_from.day()) {
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
                self.days.put(day, Default::default());
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

/// Locks the shards that the items rely on against a change of their epochs, and sees
/// that these are still what they were. Returns the transaction's id.
async fn fence(conn: &mut PgConnection, own: &[u64], items: &[Item]) -> Result<String, Refusal> {
    let mut wanted: BTreeMap<i64, u64> = BTreeMap::new();
    let mut want = |shard: u16, epoch: u64| match wanted.insert(i64::from(shard), epoch) {
        Some(before) if before != epoch => Err(Refusal::Blame(StoreError::Fenced(shard))),
        _ => Ok(()),
    };
    let held = |shard: u16| own.get(usize::from(shard)).copied().unwrap_or(0);
    // Also where no shard is named (a log entry): the log is the owner's.
    want(0, held(0))?;
    for item in items {
        for recipient in &item.recipients {
            want(recipient.shard, held(recipient.shard))?;
        }
        for change in &item.changes {
            want(change.shard, change.epoch)?;
        }
    }
    let ids: Vec<i64> = wanted.keys().copied().collect();
    let sql = "SELECT id, epoch, pg_current_xact_id()::text FROM shard
               WHERE id = ANY($1) ORDER BY id FOR SHARE";
    let rows = conn
        .fetch_all(sqlx::query(sql).bind(ids))
        .await
        .map_err(|e| refuse(&e))?;
    let mut transaction = String::new();
    for row in rows {
        let id: i64 = row.try_get(0).map_err(|e| refuse(&e))?;
        let epoch: i64 = row.try_get(1).map_err(|e| refuse(&e))?;
        transaction = row.try_get(2).map_err(|e| refuse(&e))?;
        if wanted.get(&id) == Some(&(epoch as u64)) {
            wanted.remove(&id);
        }
    }
    match wanted.keys().next() {
        Some(shard) => Err(Refusal::Blame(StoreError::Fenced(*shard as u16))),
        None => Ok(transaction),
    }
}

async fn insert_messages(
    conn: &mut PgConnection,
    items: &[Item],
    done: &mut Done,
) -> Result<(), Refusal> {
    let messages: Vec<_> = items.iter().filter_map(|i| i.message.as_ref()).collect();
    if messages.is_empty() {
        return Ok(());
    }
    let (mut ids, mut parts, mut data) = (Vec::new(), Vec::new(), Vec::<&[u8]>::new());
    let mut contents = Vec::with_capacity(messages.len());
    for message in &messages {
        match &message.content {
            Content::Memory(bytes) => {
                for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
                    ids.push(message.id);
                    parts.push(n as i64);
                    data.push(chunk);
                }
                contents.push(message.id);
            }
            Content::Spooled { at, .. } => contents.push(body_id(at).map_err(Refusal::Blame)?),
        }
    }
    if !ids.is_empty() {
        let sql = "INSERT INTO body (id, n, data)
                   SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bytea[])";
        run(conn, sqlx::query(sql).bind(ids).bind(parts).bind(data)).await?;
    }
    let sql = "INSERT INTO message (id, content, size, accepted_at, tenant, data)
               SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[],
                   $5::text[], $6::text[])";
    let query = sqlx::query(sql)
        .bind(messages.iter().map(|m| m.id).collect::<Vec<i64>>())
        .bind(contents)
        .bind(
            messages
                .iter()
                .map(|m| m.content.size() as i64)
                .collect::<Vec<i64>>(),
        )
        .bind(messages.iter().map(|m| m.accepted_at).collect::<Vec<i64>>())
        .bind(messages.iter().map(|m| &*m.tenant).collect::<Vec<&str>>())
        .bind(messages.iter().map(|m| &*m.data).collect::<Vec<&str>>());
    done.messages = run(conn, query).await?;
    Ok(())
}

/// The columns of states, for inserts and updates alike.
fn bind_states<'q>(query: PgQuery<'q>, states: &[&StateRow]) -> PgQuery<'q> {
    fn ints(states: &[&StateRow], of: impl Fn(&StateRow) -> i64) -> Vec<i64> {
        states.iter().map(|s| of(s)).collect()
    }
    query
        .bind(states.iter().map(|s| s.due).collect::<Vec<Option<i64>>>())
        .bind(ints(states, |s| i64::from(s.done)))
        .bind(ints(states, |s| i64::from(s.attempts)))
        .bind(ints(states, |s| s.accepted_at))
        .bind(ints(states, |s| s.expires_at))
        .bind(ints(states, |s| i64::from(s.owes)))
        .bind(ints(states, |s| i64::from(s.delay_reported)))
        .bind(
            states
                .iter()
                .map(|s| s.last.clone())
                .collect::<Vec<Option<String>>>(),
        )
}

async fn insert_recipients(
    conn: &mut PgConnection,
    items: &[Item],
    promises: &HashMap<Arc<Promise>, i64>,
    next_promise: i64,
    done: &mut Done,
) -> Result<(), Refusal> {
    let rows: Vec<&RecipientRow> = items.iter().flat_map(|item| &item.recipients).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let mut ids = Vec::with_capacity(rows.len());
    for row in &rows {
        let known = promises.get(&row.promise).copied();
        let known = known.or_else(|| {
            let new = done.new_promises.iter().find(|(p, _)| *p == row.promise);
            new.map(|(_, id)| *id)
        });
        ids.push(known.unwrap_or_else(|| {
            let id = next_promise + done.new_promises.len() as i64;
            done.new_promises.push((row.promise.clone(), id));
            id
        }));
    }
    for (promise, id) in &done.new_promises {
        let body = json(&**promise).map_err(Refusal::Batch)?;
        let query = sqlx::query("INSERT INTO promise (id, body) VALUES ($1, $2)");
        run(conn, query.bind(id).bind(body)).await?;
    }
    let sql = "INSERT INTO recipient (message, idx, shard, tenant, domain, promise, due, done,
                   attempts, accepted_at, expires_at, owes, delay_reported, last)
               SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::text[],
                   $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
                   $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::text[])";
    let query = sqlx::query(sql)
        .bind(rows.iter().map(|r| r.message).collect::<Vec<i64>>())
        .bind(
            rows.iter()
                .map(|r| i64::from(r.index))
                .collect::<Vec<i64>>(),
        )
        .bind(
            rows.iter()
                .map(|r| i64::from(r.shard))
                .collect::<Vec<i64>>(),
        )
        .bind(rows.iter().map(|r| &*r.tenant).collect::<Vec<&str>>())
        .bind(rows.iter().map(|r| &*r.domain).collect::<Vec<&str>>())
        .bind(ids);
    let states: Vec<&StateRow> = rows.iter().map(|r| &r.state).collect();
    done.recipients = run(conn, bind_states(query, &states)).await?;
    Ok(())
}

async fn apply_changes(
    conn: &mut PgConnection,
    changes: &Changes<'_>,
    done: &mut Done,
) -> Result<(), Refusal> {
    let unknown = || {
        Refusal::Blame(StoreError::Conflict(
            "a recipient to be settled is not in the queue".into(),
        ))
    };
    let (mut messages, mut indices, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gone, mut gone_indices) = (Vec::new(), Vec::new());
    for ((message, index), state) in changes {
        match state {
            Some(state) => {
                messages.push(*message);
                indices.push(i64::from(*index));
                states.push(*state);
            }
            None => {
                gone.push(*message);
                gone_indices.push(i64::from(*index));
            }
        }
    }
    if !messages.is_empty() {
        let sql = "UPDATE recipient SET due = c.due, done = c.done, attempts = c.attempts,
                       accepted_at = c.accepted_at, expires_at = c.expires_at, owes = c.owes,
                       delay_reported = c.delay_reported, last = c.last
                   FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[],
                       $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
                       $10::text[]) AS c (message, idx, due, done, attempts, accepted_at,
                       expires_at, owes, delay_reported, last)
                   WHERE recipient.message = c.message AND recipient.idx = c.idx";
        let wanted = messages.len() as u64;
        let query = sqlx::query(sql).bind(messages).bind(indices);
        if run(conn, bind_states(query, &states)).await? != wanted {
            return Err(unknown());
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    let sql = "DELETE FROM recipient USING UNNEST($1::bigint[], $2::bigint[]) AS c (message, idx)
               WHERE recipient.message = c.message AND recipient.idx = c.idx";
    done.removed_recipients = gone.len() as u64;
    let query = sqlx::query(sql).bind(gone.clone()).bind(gone_indices);
    if run(conn, query).await? != done.removed_recipients {
        return Err(unknown());
    }
    let sql = "DELETE FROM message WHERE id = ANY($1)
                   AND NOT EXISTS (SELECT 1 FROM recipient WHERE recipient.message = message.id)
               RETURNING content, size";
    let rows = conn
        .fetch_all(sqlx::query(sql).bind(gone))
        .await
        .map_err(|e| refuse(&e))?;
    let mut contents: Vec<i64> = Vec::with_capacity(rows.len());
    for row in rows {
        contents.push(row.try_get(0).map_err(|e| refuse(&e))?);
        done.freed_bytes += row.try_get::<i64, _>(1).map_err(|e| refuse(&e))? as u64;
    }
    done.removed_messages = contents.len() as u64;
    if !contents.is_empty() {
        let query = sqlx::query("DELETE FROM body WHERE id = ANY($1)").bind(contents);
        run(conn, query).await?;
    }
    Ok(())
}

async fn insert_log(
    conn: &mut PgConnection,
    items: &[Item],
    mut seq: u64,
    done: &mut Done,
) -> Result<(), Refusal> {
    let mut mails: BTreeMap<u32, Vec<&MailRow>> = BTreeMap::new();
    let mut events: BTreeMap<u32, Vec<(u64, &EventRow)>> = BTreeMap::new();
    for item in items {
        if let Some(mail) = &item.mail {
            mails.entry(mail.day).or_default().push(mail);
        }
        for event in &item.events {
            events.entry(event.day).or_default().push((seq, event));
            seq += 1;
        }
    }
    done.next_seq = seq;
    for (day, mails) in mails {
        insert_mails(conn, day, &mails).await?;
    }
    for (day, events) in events {
        let sql = format!(
            "INSERT INTO event_{day} (seq, at, message, idx, kind, detail)
             SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[],
                 $5::bigint[], $6::text[])"
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(events.iter().map(|(n, _)| *n as i64).collect::<Vec<i64>>())
            .bind(events.iter().map(|(_, e)| e.at).collect::<Vec<i64>>())
            .bind(events.iter().map(|(_, e)| e.message).collect::<Vec<i64>>())
            .bind(
                events
                    .iter()
                    .map(|(_, e)| e.index.map(i64::from))
                    .collect::<Vec<Option<i64>>>(),
            )
            .bind(
                events
                    .iter()
                    .map(|(_, e)| i64::from(e.kind))
                    .collect::<Vec<i64>>(),
            )
            .bind(
                events
                    .iter()
                    .map(|(_, e)| &*e.detail)
                    .collect::<Vec<&str>>(),
            );
        run(conn, query).await?;
        if let (Some(first), Some(last)) = (events.first(), events.last()) {
            done.days.push((day, first.0, last.0));
        }
    }
    Ok(())
}

async fn insert_mails(
    conn: &mut PgConnection,
    day: u32,
    mails: &[&MailRow],
) -> Result<(), Refusal> {
    fn texts<'a>(
        mails: &[&'a MailRow],
        of: impl Fn(&'a MailRow) -> Option<&'a str>,
    ) -> Vec<Option<&'a str>> {
        mails.iter().map(|m| of(m)).collect()
    }
    let sql = format!(
        "INSERT INTO mail_{day} (id, accepted_at, size, tenant, sender, message_id, record,
             subject, recipients)
         SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[],
             $6::text[], $7::text[], $8::text[], $9::text[])
         ON CONFLICT DO NOTHING"
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(mails.iter().map(|m| m.id).collect::<Vec<i64>>())
        .bind(mails.iter().map(|m| m.accepted_at).collect::<Vec<i64>>())
        .bind(mails.iter().map(|m| m.size as i64).collect::<Vec<i64>>())
        .bind(texts(mails, |m| Some(&m.tenant)))
        .bind(texts(mails, |m| Some(&m.sender)))
        .bind(texts(mails, |m| m.keys.message_id.as_deref()))
        .bind(texts(mails, |m| m.keys.record.as_deref()))
        .bind(texts(mails, |m| m.keys.subject.as_deref()))
        .bind(texts(mails, |m| Some(&m.recipients)));
    run(conn, query).await?;
    let (mut terms, mut ids) = (Vec::new(), Vec::new());
    for mail in mails {
        terms.extend_from_slice(&mail.found_by);
        ids.resize(terms.len(), mail.id);
    }
    let sql = format!(
        "INSERT INTO find_{day} (term, message)
         SELECT * FROM UNNEST($1::bigint[], $2::bigint[]) ON CONFLICT DO NOTHING"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(terms).bind(ids);
    run(conn, query).await.map(drop)
}

/// The tables of a log day.
fn create_day(day: u32) -> String {
    format!(
        "BEGIN;
         CREATE TABLE IF NOT EXISTS event_{day} (
            seq     BIGINT PRIMARY KEY,
            at      BIGINT NOT NULL,
            message BIGINT NOT NULL,
            idx     BIGINT,
            kind    BIGINT NOT NULL,
            detail  TEXT NOT NULL
         );
         CREATE INDEX IF NOT EXISTS event_{day}_message ON event_{day} (message);
         CREATE TABLE IF NOT EXISTS mail_{day} (
            id          BIGINT PRIMARY KEY,
            accepted_at BIGINT NOT NULL,
            tenant      TEXT NOT NULL,
            sender      TEXT NOT NULL,
            size        BIGINT NOT NULL,
            message_id  TEXT,
            record      TEXT,
            subject     TEXT,
            recipients  TEXT NOT NULL
         );
         CREATE TABLE IF NOT EXISTS find_{day} (
            term    BIGINT NOT NULL,
            message BIGINT NOT NULL,
            PRIMARY KEY (term, message)
         );
         COMMIT;"
    )
}
