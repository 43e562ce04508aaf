//! A batch as one multi-statement SQL text and its parameters.
//!
//! Each table gets one statement, however many rows there are: the numbers of all rows
//! go as one JSON array, the texts as one blob that the rows refer to by offset and
//! length, so that SQLite parses no text twice. Parameters are numbered over the whole
//! text, as sqlx binds them.
//!
//! A constraint that fails ends the transaction (`OR ROLLBACK`), which is what becomes of the
//! batch anyway: by default it undoes its statement alone, and for that SQLite copies each page
//! before a statement changes it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use tidegate_mail::Promise;
use tidegate_queue::StoreResult;

use crate::codec::{Contradiction, Item, StateRow, json, merge_changes};

/// Rows of numbers, `[[1,null,2],...]`.
struct Table {
    json: String,
    rows: u64,
}

impl Table {
    fn new() -> Self {
        Table {
            json: String::from("["),
            rows: 0,
        }
    }

    fn row(&mut self) -> Cells<'_> {
        self.json.push_str(if self.rows == 0 { "[" } else { ",[" });
        self.rows += 1;
        Cells {
            json: &mut self.json,
            first: true,
        }
    }

    fn finish(mut self) -> String {
        self.json.push(']');
        self.json
    }
}

struct Cells<'a> {
    json: &'a mut String,
    first: bool,
}

impl Cells<'_> {
    fn comma(&mut self) {
        if !self.first {
            self.json.push(',');
        }
        self.first = false;
    }

    fn int(&mut self, value: i64) -> &mut Self {
        self.comma();
        // Writing to a String cannot fail.
        let _ = write!(self.json, "{value}");
        self
    }

    fn opt(&mut self, value: Option<i64>) -> &mut Self {
        match value {
            Some(value) => self.int(value),
            None => {
                self.comma();
                self.json.push_str("null");
                self
            }
        }
    }

    /// Two cells: offset (from 1) and length in the blob.
    fn text(&mut self, texts: &mut Vec<u8>, text: &str) -> &mut Self {
        self.int(texts.len() as i64 + 1).int(text.len() as i64);
        texts.extend_from_slice(text.as_bytes());
        self
    }

    fn opt_text(&mut self, texts: &mut Vec<u8>, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.text(texts, text),
            None => self.opt(None).opt(None),
        }
    }
}

impl Drop for Cells<'_> {
    fn drop(&mut self) {
        self.json.push(']');
    }
}

/// A parameter of the text.
pub(crate) enum Param {
    Text(String),
    Blob(Vec<u8>),
}

/// What is to be run, and how many rows it must touch.
pub(crate) struct Batch {
    pub sql: String,
    pub params: Vec<Param>,
    pub changes: u64,
    pub removals: u64,
    pub messages: u64,
    pub recipients: u64,
    /// First and last event number of each day.
    pub days: Vec<(u32, u64, u64)>,
    pub next_seq: u64,
    pub new_promises: Vec<(Arc<Promise>, i64)>,
}

#[derive(Default)]
struct DayTables {
    mails: Option<Table>,
    finds: Option<Table>,
    events: Option<Table>,
    first: u64,
    last: u64,
}

/// Hands out parameter numbers while the text is written.
struct Script {
    sql: String,
    params: Vec<Param>,
}

impl Script {
    fn param(&mut self, param: Param) -> usize {
        self.params.push(param);
        self.params.len()
    }
}

/// A text column of a row: the cells `n` and `n + 1`.
fn text(at: usize) -> String {
    format!("CAST(substr($1, value->>{at}, value->>{}) AS TEXT)", at + 1)
}

/// Builds the batch. `contents` are the references of the items' messages, in order.
pub(crate) fn encode(
    items: &[Item],
    contents: &[String],
    promises: &HashMap<Arc<Promise>, i64>,
    next_promise: i64,
    mut next_seq: u64,
) -> StoreResult<Result<Batch, Contradiction>> {
    let Ok(merged) = merge_changes(items.iter()) else {
        return Ok(Err(Contradiction));
    };
    let mut texts: Vec<u8> = Vec::with_capacity(4096);
    let (mut messages, mut recipients) = (Table::new(), Table::new());
    let mut accepted = String::from("[");
    // Of these the contents are synced before the commit.
    let verified = items.iter().any(Item::pays);
    let mut new_promises: Vec<(Arc<Promise>, i64)> = Vec::new();
    let mut contents = contents.iter();
    let mut days: BTreeMap<u32, DayTables> = BTreeMap::new();

    for item in items {
        if let (Some(message), Some(content)) = (
            &item.message,
            item.message.as_ref().and_then(|_| contents.next()),
        ) {
            if !verified {
                if accepted.len() > 1 {
                    accepted.push(',');
                }
                let _ = write!(accepted, "{}", message.id);
            }
            messages
                .row()
                .int(message.id)
                .int(message.content.size() as i64)
                .int(message.accepted_at)
                .text(&mut texts, content)
                .text(&mut texts, &message.tenant)
                .text(&mut texts, &message.data);
        }
        for r in &item.recipients {
            let promise = match promises.get(&r.promise) {
                Some(id) => *id,
                None => match new_promises.iter().find(|(p, _)| *p == r.promise) {
                    Some((_, id)) => *id,
                    None => {
                        let id = next_promise + new_promises.len() as i64;
                        new_promises.push((r.promise.clone(), id));
                        id
                    }
                },
            };
            let mut row = recipients.row();
            row.int(r.message)
                .int(i64::from(r.index))
                .int(i64::from(r.shard))
                .int(promise);
            state_cells(&mut row, &mut texts, &r.state);
            row.text(&mut texts, &r.tenant).text(&mut texts, &r.domain);
        }
        if let Some(mail) = &item.mail {
            let day = days.entry(mail.day).or_default();
            day.mails
                .get_or_insert_with(Table::new)
                .row()
                .int(mail.id)
                .int(mail.accepted_at)
                .int(mail.size as i64)
                .text(&mut texts, &mail.tenant)
                .text(&mut texts, &mail.sender)
                .opt_text(&mut texts, mail.keys.message_id.as_deref())
                .opt_text(&mut texts, mail.keys.record.as_deref())
                .opt_text(&mut texts, mail.keys.subject.as_deref())
                .text(&mut texts, &mail.recipients);
            let finds = day.finds.get_or_insert_with(Table::new);
            for term in &mail.found_by {
                finds.row().int(*term).int(mail.id);
            }
        }
        for event in &item.events {
            let seq = next_seq;
            next_seq += 1;
            let day = days.entry(event.day).or_default();
            if day.first == 0 {
                day.first = seq;
            }
            day.last = seq;
            day.events
                .get_or_insert_with(Table::new)
                .row()
                .int(seq as i64)
                .int(event.at)
                .int(event.message)
                .opt(event.index.map(i64::from))
                .int(i64::from(event.kind))
                .text(&mut texts, &event.detail);
        }
    }

    let (mut updates, mut removals) = (Table::new(), Table::new());
    let mut touched: Vec<i64> = Vec::new();
    for ((message, index), state) in merged {
        match state {
            Some(state) => {
                let mut row = updates.row();
                row.int(message).int(i64::from(index)).int(0).int(0);
                state_cells(&mut row, &mut texts, state);
            }
            None => {
                removals.row().int(message).int(i64::from(index));
                touched.push(message);
            }
        }
    }

    let mut script = Script {
        sql: String::with_capacity(4096),
        params: Vec::with_capacity(12),
    };
    let mut promise_rows = Table::new();
    for (promise, id) in &new_promises {
        promise_rows
            .row()
            .int(*id)
            .text(&mut texts, &json(&**promise)?);
    }
    let mut batch = Batch {
        changes: updates.rows,
        removals: removals.rows,
        messages: messages.rows,
        recipients: recipients.rows,
        days: Vec::with_capacity(days.len()),
        next_seq,
        new_promises,
        sql: String::new(),
        params: Vec::new(),
    };
    script.param(Param::Blob(texts));
    script.sql.push_str("BEGIN IMMEDIATE;\n");
    write_queue(&mut script, messages, recipients, promise_rows, accepted);
    write_changes(&mut script, updates, removals, &mut touched);
    for (day, tables) in days {
        if tables.first > 0 {
            batch.days.push((day, tables.first, tables.last));
        }
        write_day(&mut script, day, tables);
    }
    batch.sql = script.sql;
    batch.params = script.params;
    Ok(Ok(batch))
}

/// Ten cells, from the fifth of a row on (`[4]` to `[12]`, two for the text).
fn state_cells(row: &mut Cells<'_>, texts: &mut Vec<u8>, state: &StateRow) {
    row.opt(state.due)
        .int(i64::from(state.done))
        .int(i64::from(state.attempts))
        .int(state.accepted_at)
        .int(state.expires_at)
        .int(i64::from(state.owes))
        .int(i64::from(state.delay_reported))
        .opt_text(texts, state.last.as_deref());
}

fn write_queue(
    script: &mut Script,
    messages: Table,
    recipients: Table,
    promises: Table,
    accepted: String,
) {
    if messages.rows > 0 {
        let n = script.param(Param::Text(messages.finish()));
        let _ = writeln!(
            script.sql,
            "INSERT OR ROLLBACK INTO message (id, content, size, accepted_at, tenant, data)
             SELECT value->>0, {}, value->>1, value->>2, {}, {} FROM jsonb_each(${n});",
            text(3),
            text(5),
            text(7)
        );
        // Whose records are to be verified if this commit is the last before a crash.
        let n = script.param(Param::Text(format!("{accepted}]")));
        let _ = writeln!(
            script.sql,
            "INSERT INTO meta (name, value) VALUES ('latest', ${n})
             ON CONFLICT (name) DO UPDATE SET value = excluded.value;"
        );
    }
    if promises.rows > 0 {
        let n = script.param(Param::Text(promises.finish()));
        let _ = writeln!(
            script.sql,
            "INSERT OR ROLLBACK INTO promise (id, body) SELECT value->>0, {} FROM jsonb_each(${n});",
            text(1)
        );
    }
    if recipients.rows > 0 {
        let n = script.param(Param::Text(recipients.finish()));
        let _ = writeln!(
            script.sql,
            "INSERT OR ROLLBACK INTO recipient (message, idx, shard, promise, due, done, attempts,
                 accepted_at, expires_at, owes, delay_reported, last, tenant, domain)
             SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5,
                 value->>6, value->>7, value->>8, value->>9, value->>10, {}, {}, {}
             FROM jsonb_each(${n});",
            text(11),
            text(13),
            text(15)
        );
    }
}

fn write_changes(script: &mut Script, updates: Table, removals: Table, touched: &mut Vec<i64>) {
    if updates.rows > 0 {
        let n = script.param(Param::Text(updates.finish()));
        let _ = writeln!(
            script.sql,
            "UPDATE OR ROLLBACK recipient SET due = c.c4, done = c.c5, attempts = c.c6, accepted_at = c.c7,
                 expires_at = c.c8, owes = c.c9, delay_reported = c.c10, last = c.last
             FROM (SELECT value->>0 AS c0, value->>1 AS c1, value->>4 AS c4, value->>5 AS c5,
                 value->>6 AS c6, value->>7 AS c7, value->>8 AS c8, value->>9 AS c9,
                 value->>10 AS c10, {} AS last FROM jsonb_each(${n})) AS c
             WHERE recipient.message = c.c0 AND recipient.idx = c.c1;
             SELECT 1, changes(), '';",
            text(11)
        );
    }
    if removals.rows > 0 {
        let n = script.param(Param::Text(removals.finish()));
        let _ = writeln!(
            script.sql,
            "DELETE FROM recipient WHERE (message, idx) IN
                 (SELECT value->>0, value->>1 FROM jsonb_each(${n}));
             SELECT 2, changes(), '';"
        );
        touched.sort_unstable();
        touched.dedup();
        let mut list = String::from("[");
        for id in touched.iter() {
            if list.len() > 1 {
                list.push(',');
            }
            let _ = write!(list, "{id}");
        }
        list.push(']');
        let n = script.param(Param::Text(list));
        let _ = writeln!(
            script.sql,
            "DELETE FROM message WHERE id IN (SELECT value FROM jsonb_each(${n}))
                 AND NOT EXISTS (SELECT 1 FROM recipient WHERE recipient.message = message.id)
             RETURNING 3, 1, content;"
        );
    }
}

fn write_day(script: &mut Script, day: u32, tables: DayTables) {
    if let Some(mails) = tables.mails {
        let n = script.param(Param::Text(mails.finish()));
        let _ = writeln!(
            script.sql,
            "INSERT INTO mail_{day} (id, accepted_at, size, tenant, sender,
                 message_id, record, subject, recipients)
             SELECT value->>0, value->>1, value->>2, {}, {}, {}, {}, {}, {}
             FROM jsonb_each(${n});",
            text(3),
            text(5),
            text(7),
            text(9),
            text(11),
            text(13)
        );
    }
    if let Some(finds) = tables.finds {
        let n = script.param(Param::Text(finds.finish()));
        let _ = writeln!(
            script.sql,
            "INSERT OR IGNORE INTO find_{day} (term, message)
             SELECT value->>0, value->>1 FROM jsonb_each(${n});"
        );
    }
    if let Some(events) = tables.events {
        let n = script.param(Param::Text(events.finish()));
        let _ = writeln!(
            script.sql,
            "INSERT OR ROLLBACK INTO event_{day} (seq, at, message, idx, kind, detail)
             SELECT value->>0, value->>1, value->>2, value->>3, value->>4, {}
             FROM jsonb_each(${n});",
            text(5)
        );
    }
}

/// The tables of a log day.
pub(crate) fn create_day(day: u32) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS event_{day} (
            seq     INTEGER PRIMARY KEY,
            at      INTEGER NOT NULL,
            message INTEGER NOT NULL,
            idx     INTEGER,
            kind    INTEGER NOT NULL,
            detail  TEXT NOT NULL
         );
         CREATE INDEX IF NOT EXISTS event_{day}_message ON event_{day} (message);
         CREATE TABLE IF NOT EXISTS mail_{day} (
            id          INTEGER PRIMARY KEY,
            accepted_at INTEGER NOT NULL,
            tenant      TEXT NOT NULL,
            sender      TEXT NOT NULL,
            size        INTEGER NOT NULL,
            message_id  TEXT,
            record      TEXT,
            subject     TEXT,
            recipients  TEXT NOT NULL
         );
         CREATE TABLE IF NOT EXISTS find_{day} (
            term    INTEGER NOT NULL,
            message INTEGER NOT NULL,
            PRIMARY KEY (term, message)
         ) WITHOUT ROWID;"
    )
}

pub(crate) fn drop_day(day: u32) -> String {
    format!(
        "DROP TABLE IF EXISTS event_{day};
         DROP TABLE IF EXISTS mail_{day};
         DROP TABLE IF EXISTS find_{day};"
    )
}
