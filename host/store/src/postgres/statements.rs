//! The statements of a batch: one per table, over `UNNEST`ed arrays.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Postgres, Row as _};
use tidegate_mail::Promise;
use tidegate_queue::{Content, StoreError};

use super::content::{CHUNK, body_id};
use super::refuse;
use crate::codec::{Changes, EventRow, Item, MailRow, RecipientRow, StateRow, json};
use crate::writer::Refusal;

/// What a transaction did, to be noted once it is committed.
#[derive(Default)]
pub(super) struct Done {
    pub transaction: String,
    pub messages: u64,
    pub recipients: u64,
    pub removed_messages: u64,
    pub removed_recipients: u64,
    pub freed_bytes: u64,
    pub new_promises: Vec<(Arc<Promise>, i64)>,
    pub days: Vec<(u32, u64, u64)>,
    pub next_seq: u64,
}

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

pub(super) async fn run(conn: &mut PgConnection, query: PgQuery<'_>) -> Result<u64, Refusal> {
    let done = conn.execute(query).await.map_err(|e| refuse(&e))?;
    Ok(done.rows_affected())
}

pub(super) async fn run_text(
    conn: &mut PgConnection,
    sql: impl Into<String>,
) -> Result<(), Refusal> {
    let text = sqlx::raw_sql(AssertSqlSafe(sql.into()));
    conn.execute(text).await.map(drop).map_err(|e| refuse(&e))
}

/// Locks the shards that the items rely on against a change of their epochs, and sees
/// that these are still what they were. Returns the transaction's id.
pub(super) async fn fence(
    conn: &mut PgConnection,
    own: &[u64],
    items: &[Item],
) -> Result<String, Refusal> {
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

pub(super) async fn insert_messages(
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

pub(super) async fn insert_recipients(
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

pub(super) async fn apply_changes(
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

pub(super) async fn insert_log(
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
             $6::text[], $7::text[], $8::text[], $9::text[])"
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
pub(super) fn create_day(day: u32) -> String {
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
