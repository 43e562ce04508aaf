//! Reading the delivery log: the export stream and the search for a message.
//!
//! The log is kept in three tables per UTC day, dropped whole when it is old enough:
//! `event_D` (each step, numbered over all days), `mail_D` (what identifies a message,
//! under the day of its queue id) and `find_D` (hashed search terms). Later events of a
//! message lie in the tables of their own day; a timeline joins them.

use std::collections::{BTreeMap, HashMap};
use std::sync::RwLock;
use std::time::Duration;

use tidegate_mail::{Event, MessageId, Timestamp};
use tidegate_queue::{EventRecord, LogEntry, LogKeys, LogQuery, StoreResult};

use crate::codec::{self, Find, find_key, same_text, subject_words};
use crate::rows::{Kind, Row, Rows, Value};

/// What is known of a day's tables without reading them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Day {
    /// Numbers of its first and last event; 0 and 0 if it has none.
    pub first: u64,
    pub last: u64,
}

/// The days that have tables.
#[derive(Debug, Default)]
pub(crate) struct Days(RwLock<BTreeMap<u32, Day>>);

impl Days {
    pub fn put(&self, day: u32, info: Day) {
        self.write().insert(day, info);
    }

    /// Notes committed events; the day's tables exist.
    pub fn note(&self, day: u32, first: u64, last: u64) {
        let mut days = self.write();
        let info = days.entry(day).or_default();
        if info.first == 0 {
            info.first = first;
        }
        info.last = info.last.max(last);
    }

    pub fn contains(&self, day: u32) -> bool {
        self.read().contains_key(&day)
    }

    pub fn before(&self, keep: u32) -> Vec<u32> {
        self.read().range(..keep).map(|(day, _)| *day).collect()
    }

    /// Nobody reads the day's tables from here on.
    pub fn take(&self, day: u32) -> Option<Day> {
        self.write().remove(&day)
    }

    fn all(&self) -> Vec<(u32, Day)> {
        self.read()
            .iter()
            .map(|(day, info)| (*day, *info))
            .collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<u32, Day>> {
        self.0.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<u32, Day>> {
        self.0.write().unwrap_or_else(|e| e.into_inner())
    }
}

const EVENT: &[Kind] = &[
    Kind::Int,
    Kind::Int,
    Kind::Int,
    Kind::Int,
    Kind::Int,
    Kind::Text,
];
const EVENT_COLUMNS: &str = "seq, at, message, idx, kind, detail";

fn event(row: &Row) -> StoreResult<(u64, Event)> {
    let event = codec::event(
        row.int(1)?,
        row.int(2)?,
        row.opt_int(3)?,
        row.int(4)?,
        row.text(5)?,
    )?;
    Ok((row.int(0)? as u64, event))
}

/// A row of `mail_D`.
struct Mail {
    id: i64,
    accepted_at: Timestamp,
    tenant: String,
    sender: String,
    size: u64,
    keys: LogKeys,
    recipients: Vec<(u32, String)>,
}

const MAIL: &[Kind] = &[
    Kind::Int,
    Kind::Int,
    Kind::Text,
    Kind::Text,
    Kind::Int,
    Kind::Text,
    Kind::Text,
    Kind::Text,
    Kind::Text,
];
const MAIL_COLUMNS: &str =
    "id, accepted_at, tenant, sender, size, message_id, record, subject, recipients";

fn mail(row: &Row) -> StoreResult<Mail> {
    let own = |text: Option<&str>| text.map(str::to_owned);
    Ok(Mail {
        id: row.int(0)?,
        accepted_at: Timestamp(row.int(1)?),
        tenant: row.text(2)?.to_owned(),
        sender: row.text(3)?.to_owned(),
        size: row.int(4)? as u64,
        keys: LogKeys {
            message_id: own(row.opt_text(5)?),
            record: own(row.opt_text(6)?),
            subject: own(row.opt_text(7)?),
        },
        recipients: codec::parse("recipients in the log", row.text(8)?)?,
    })
}

/// A JSON array of numbers, as [`Rows::numbers`] reads it.
pub(crate) fn number_list(ids: impl Iterator<Item = i64>) -> Value {
    use std::fmt::Write;
    let mut text = String::from("[");
    for id in ids {
        if text.len() > 1 {
            text.push(',');
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{id}");
    }
    text.push(']');
    Value::Text(text)
}

async fn mails(rows: &dyn Rows, days: &Days, ids: &[i64]) -> StoreResult<HashMap<i64, Mail>> {
    let mut by_day: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for id in ids {
        let day = codec::log_day(MessageId::from_i64(*id));
        by_day.entry(day).or_default().push(*id);
    }
    let mut found = HashMap::with_capacity(ids.len());
    for (day, ids) in by_day {
        if !days.contains(day) {
            continue;
        }
        let sql = format!(
            "SELECT {MAIL_COLUMNS} FROM mail_{day} WHERE id IN ({})",
            rows.numbers()
        );
        for row in rows
            .select(sql.into(), vec![number_list(ids.iter().copied())], MAIL)
            .await?
        {
            let mail = mail(&row)?;
            found.insert(mail.id, mail);
        }
    }
    Ok(found)
}

/// The highest id in the queue and the log that was given no later than `until`: at most one row
/// of each table is read.
pub(crate) async fn newest_id(
    rows: &dyn Rows,
    days: &Days,
    until: Timestamp,
) -> StoreResult<Option<MessageId>> {
    let below = MessageId::after(until);
    let (below, last) = (below.as_i64(), below.given_at().day());
    let mut newest = highest(rows, "message".to_owned(), below).await?;
    for (day, _) in days.all().into_iter().rev() {
        if day > last {
            continue;
        }
        let logged = highest(rows, format!("mail_{day}"), below).await?;
        newest = newest.max(logged);
        // An id lies in the table of the day on which it was given.
        if logged.is_some() {
            break;
        }
    }
    Ok(newest.map(MessageId::from_i64))
}

async fn highest(rows: &dyn Rows, table: String, below: i64) -> StoreResult<Option<i64>> {
    let sql = format!("SELECT max(id) FROM {table} WHERE id < $1");
    let found = rows
        .select(sql.into(), vec![Value::Int(below)], &[Kind::Int])
        .await?;
    found.first().map_or(Ok(None), |row| row.opt_int(0))
}

/// Events numbered above `after`, in order, at most `max`.
pub(crate) async fn events(
    rows: &dyn Rows,
    days: &Days,
    after: u64,
    max: u32,
) -> StoreResult<Vec<EventRecord>> {
    let max = max.clamp(1, 100_000) as usize;
    let mut wanted: Vec<(u32, Day)> = days.all();
    wanted.retain(|(_, day)| day.last > after);
    wanted.sort_by_key(|(_, day)| day.first);
    let mut found: Vec<(u64, Event)> = Vec::new();
    for (day, info) in wanted {
        if found.len() >= max && info.first > found[max - 1].0 {
            break;
        }
        let sql =
            format!("SELECT {EVENT_COLUMNS} FROM event_{day} WHERE seq > $1 ORDER BY seq LIMIT $2");
        let args = vec![Value::Int(after as i64), Value::Int(max as i64)];
        for row in rows.select(sql.into(), args, EVENT).await? {
            found.push(event(&row)?);
        }
        found.sort_by_key(|(seq, _)| *seq);
    }
    found.truncate(max);
    let mut ids: Vec<i64> = found.iter().map(|(_, e)| e.message.as_i64()).collect();
    ids.sort_unstable();
    ids.dedup();
    let mails = mails(rows, days, &ids).await?;
    Ok(found
        .into_iter()
        .map(|(seq, event)| {
            let mail = mails.get(&event.message.as_i64());
            let recipient_address = mail.and_then(|mail| {
                let index = event.recipient?;
                let at = mail.recipients.binary_search_by_key(&index, |r| r.0).ok()?;
                Some(mail.recipients[at].1.clone())
            });
            EventRecord {
                seq,
                tenant: mail.map_or(String::new(), |m| m.tenant.clone()),
                sender: mail.map_or(String::new(), |m| m.sender.clone()),
                recipient_address,
                size: mail.map_or(0, |m| m.size),
                keys: mail.map_or_else(LogKeys::default, |m| m.keys.clone()),
                event,
            }
        })
        .collect())
}

/// Whether a logged message is what the query asks for.
fn matches(query: &LogQuery, mail: &Mail) -> bool {
    let is = |wanted: &Option<String>, have: Option<&str>| match wanted {
        None => true,
        Some(wanted) => have.is_some_and(|have| same_text(wanted, have)),
    };
    is(&query.tenant, Some(&mail.tenant))
        && is(&query.sender, Some(&mail.sender))
        && is(&query.message_id, mail.keys.message_id.as_deref())
        && is(&query.record, mail.keys.record.as_deref())
        && query.subject.as_ref().is_none_or(|wanted| {
            let have = subject_words(mail.keys.subject.as_deref().unwrap_or(""));
            subject_words(wanted).iter().all(|word| have.contains(word))
        })
        && query
            .recipient
            .as_ref()
            .is_none_or(|wanted| mail.recipients.iter().any(|(_, r)| same_text(wanted, r)))
        && query
            .message
            .is_none_or(|wanted| wanted.as_i64() == mail.id)
        && query.since.is_none_or(|since| mail.accepted_at >= since)
        && query.until.is_none_or(|until| mail.accepted_at <= until)
}

/// All terms of a query, those first that are likely to be rare.
fn terms(query: &LogQuery) -> Vec<i64> {
    // Of a subject's words a number tells most, then a long word.
    let telling = |word: &String| (word.contains(char::is_numeric), word.chars().count());
    let mut words = subject_words(query.subject.as_deref().unwrap_or(""));
    words.sort_by_key(|word| std::cmp::Reverse(telling(word)));
    let keys = |find: Find, text: &Option<String>| text.as_deref().map(|text| find_key(find, text));
    let mut terms: Vec<i64> = [
        keys(Find::MessageId, &query.message_id),
        keys(Find::Record, &query.record),
        keys(Find::Recipient, &query.recipient),
    ]
    .into_iter()
    .flatten()
    .collect();
    terms.extend(words.iter().map(|word| find_key(Find::Subject, word)));
    terms.extend(keys(Find::Sender, &query.sender));
    terms.extend(keys(Find::Tenant, &query.tenant));
    terms
}

/// An id is given when the content begins to come in: before the acceptance by less than a session
/// may last, and after it only where the clock was set back.
const GIVEN_BEFORE: Duration = Duration::from_secs(24 * 3600);
const GIVEN_AFTER: Duration = Duration::from_secs(3600);

/// No id of this time or later is below.
fn first_id(at: Timestamp) -> i64 {
    at.as_millis().clamp(0, i64::MAX >> 20) << 20
}

/// What a search asks the tables of a day.
struct Sought {
    terms: Vec<i64>,
    /// Ids from `least` to before `below`.
    least: i64,
    below: i64,
    since: i64,
    until: i64,
}

impl Sought {
    fn of(query: &LogQuery) -> Sought {
        Sought {
            terms: terms(query),
            least: query
                .since
                .map_or(0, |since| first_id(since.minus(GIVEN_BEFORE))),
            below: query
                .until
                .map_or(i64::MAX, |until| first_id(until.plus(GIVEN_AFTER))),
            since: query.since.map_or(i64::MIN, Timestamp::as_millis),
            until: query.until.map_or(i64::MAX, Timestamp::as_millis),
        }
    }

    fn has(&self, day: u32) -> bool {
        let day_of = |id: i64| codec::log_day(MessageId::from_i64(id));
        day_of(self.least) <= day && day <= day_of(self.below)
    }
}

/// How many entries of a term are counted to tell which is the rarest.
const COUNTED: usize = 4096;

/// Which term to go by on a day: the rarest. `None`: one of them has no entry.
async fn rarest(rows: &dyn Rows, day: u32, sought: &Sought) -> StoreResult<Option<usize>> {
    if sought.terms.len() < 2 {
        return Ok(Some(0));
    }
    let mut args = vec![Value::Int(sought.least), Value::Int(sought.below)];
    let mut counts: Vec<String> = Vec::with_capacity(sought.terms.len());
    for (at, term) in sought.terms.iter().enumerate() {
        args.push(Value::Int(*term));
        counts.push(format!(
            "SELECT CAST({at} AS bigint), count(*) FROM (SELECT 1 FROM find_{day} WHERE term = ${}
             AND message >= $1 AND message < $2 LIMIT {COUNTED}) AS few",
            args.len()
        ));
    }
    let sql = counts.join(" UNION ALL ");
    let mut rarest = (i64::MAX, 0);
    for row in rows
        .select(sql.into(), args, &[Kind::Int, Kind::Int])
        .await?
    {
        rarest = rarest.min((row.int(1)?, row.int(0)?));
    }
    Ok((rarest.0 > 0).then_some(rarest.1 as usize))
}

/// Messages that match, newest first, each with its events.
pub(crate) async fn search(
    rows: &dyn Rows,
    days: &Days,
    query: LogQuery,
) -> StoreResult<Vec<LogEntry>> {
    let limit = match query.limit {
        0 => 50,
        n => n.min(1000) as usize,
    };
    let known = days.all();
    let mut found: Vec<Mail> = Vec::new();
    if let Some(id) = query.message {
        let mails = mails(rows, days, &[id.as_i64()]).await?;
        found.extend(mails.into_values().filter(|mail| matches(&query, mail)));
    } else {
        let sought = Sought::of(&query);
        for (day, _) in known.iter().rev().filter(|(day, _)| sought.has(*day)) {
            search_day(rows, *day, &sought, &query, limit, &mut found).await?;
            if found.len() >= limit {
                break;
            }
        }
    }
    let mut timelines = timelines(rows, &known, &found).await?;
    Ok(found
        .into_iter()
        .map(|mail| LogEntry {
            message: MessageId::from_i64(mail.id),
            tenant: mail.tenant,
            accepted_at: mail.accepted_at,
            sender: mail.sender,
            size: mail.size,
            keys: mail.keys,
            recipients: mail.recipients,
            events: timelines.remove(&mail.id).unwrap_or_default(),
        })
        .collect())
}

async fn search_day(
    rows: &dyn Rows,
    day: u32,
    sought: &Sought,
    query: &LogQuery,
    limit: usize,
    found: &mut Vec<Mail>,
) -> StoreResult<()> {
    let Some(rarest) = rarest(rows, day, sought).await? else {
        return Ok(());
    };
    let mut before = sought.below;
    loop {
        let mut args: Vec<Value> = [sought.least, before, sought.since, sought.until]
            .map(Value::Int)
            .into();
        let mut sql = format!("SELECT {MAIL_COLUMNS} FROM ");
        if let Some(term) = sought.terms.get(rarest) {
            args.push(Value::Int(*term));
            let mut wheres = String::from(
                " WHERE found.term = $5 AND found.message >= $1 AND found.message < $2
                 AND id = found.message",
            );
            sql.push_str(&format!("find_{day} AS found"));
            // In this order, which SQLite takes from a CROSS JOIN: a row of the log is read last.
            for (at, other) in sought.terms.iter().enumerate() {
                if at != rarest {
                    args.push(Value::Int(*other));
                    sql.push_str(&format!(" CROSS JOIN find_{day} AS other{at}"));
                    wheres.push_str(&format!(
                        " AND other{at}.term = ${} AND other{at}.message = found.message",
                        args.len()
                    ));
                }
            }
            sql.push_str(&format!(" CROSS JOIN mail_{day}{wheres}"));
        } else {
            sql.push_str(&format!("mail_{day} WHERE id >= $1 AND id < $2"));
        }
        let page = limit - found.len();
        let order = if sought.terms.is_empty() {
            "id"
        } else {
            "found.message"
        };
        sql.push_str(&format!(
            " AND accepted_at >= $3 AND accepted_at <= $4 ORDER BY {order} DESC LIMIT {page}"
        ));
        let rows = rows.select(sql.into(), args, MAIL).await?;
        for row in &rows {
            let mail = mail(row)?;
            before = mail.id;
            // Terms are hashes, and those of other texts can be the same.
            if matches(query, &mail) {
                found.push(mail);
            }
        }
        if rows.len() < page || found.len() >= limit {
            return Ok(());
        }
    }
}

/// The events of each message, over all days since it was accepted.
async fn timelines(
    rows: &dyn Rows,
    known: &[(u32, Day)],
    found: &[Mail],
) -> StoreResult<HashMap<i64, Vec<Event>>> {
    let first_of = |own| {
        known
            .iter()
            .find(|(day, _)| *day == own)
            .map_or(0, |(_, i)| i.first)
    };
    let mut events: Vec<(u64, Event)> = Vec::new();
    for (day, info) in known {
        // No step is logged on a day before its message, but where the clock was set back: such a
        // day has steps that are numbered behind the first of the message's own day.
        let may = |id: &i64| {
            let own = codec::log_day(MessageId::from_i64(*id));
            own <= day + 1 || first_of(own) <= info.last
        };
        let mut ids: Vec<i64> = found.iter().map(|mail| mail.id).filter(may).collect();
        if info.last == 0 || ids.is_empty() {
            continue;
        }
        ids.sort_unstable();
        let sql = format!(
            "SELECT {EVENT_COLUMNS} FROM event_{day} WHERE message IN ({})",
            rows.numbers()
        );
        for row in rows
            .select(sql.into(), vec![number_list(ids.iter().copied())], EVENT)
            .await?
        {
            events.push(event(&row)?);
        }
    }
    events.sort_by_key(|(seq, _)| *seq);
    let mut timelines: HashMap<i64, Vec<Event>> = HashMap::new();
    for (_, event) in events {
        timelines
            .entry(event.message.as_i64())
            .or_default()
            .push(event);
    }
    Ok(timelines)
}
