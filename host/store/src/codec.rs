//! Values of the ports as rows, and back: what both databases store alike.
//!
//! Encoding happens in the caller's task, so that the one writer of a database only
//! copies. It knows no SQL.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_mail::{
    End, Envelope, Event, EventKind, MessageId, Owes, Promise, RecipientId, RecipientState, State,
    Timestamp, event::Detail, recipient::LastAttempt,
};
use tidegate_queue::{
    Content, ContentRef, LogKeys, LoggedMessage, NewMessage, Origin, QueuedMessage,
    QueuedRecipient, Settlement, StoreError, StoreResult,
};

/// What one call asks to be committed, in rows.
#[derive(Default)]
pub(crate) struct Item {
    pub message: Option<MessageRow>,
    pub recipients: Vec<RecipientRow>,
    /// In the order given; a later one about the same recipient replaces an earlier.
    pub changes: Vec<Change>,
    pub events: Vec<EventRow>,
    pub mail: Option<MailRow>,
}

impl Item {
    /// Whether the caller needs it on stable storage when it is answered.
    pub fn needs_sync(&self) -> bool {
        self.mail.is_some()
    }

    /// Whether it is a notice that pays debts.
    pub fn pays(&self) -> bool {
        self.message.is_some() && !self.changes.is_empty()
    }

    /// Roughly what it weighs in a batch.
    pub fn bytes(&self) -> usize {
        self.message.as_ref().map_or(0, |m| match &m.content {
            Content::Memory(bytes) => bytes.len(),
            Content::Spooled { .. } => 0,
        })
    }
}

pub(crate) struct MessageRow {
    pub id: i64,
    pub tenant: Arc<str>,
    pub content: Content,
    pub accepted_at: i64,
    pub data: String,
}

pub(crate) struct RecipientRow {
    pub message: i64,
    pub index: u32,
    pub shard: u16,
    pub tenant: Arc<str>,
    pub domain: String,
    pub promise: Arc<Promise>,
    pub state: StateRow,
}

#[derive(Clone)]
pub(crate) struct StateRow {
    pub due: Option<i64>,
    pub done: u8,
    pub attempts: u32,
    pub accepted_at: i64,
    pub expires_at: i64,
    pub owes: u8,
    pub delay_reported: bool,
    pub last: Option<String>,
}

pub(crate) struct Change {
    pub message: i64,
    pub index: u32,
    pub shard: u16,
    pub epoch: u64,
    /// `None`: done and owes nothing, so the row goes.
    pub state: Option<StateRow>,
}

pub(crate) struct EventRow {
    pub day: u32,
    pub at: i64,
    pub message: i64,
    pub index: Option<u32>,
    pub kind: u8,
    pub detail: String,
}

/// A message in the log.
pub(crate) struct MailRow {
    pub day: u32,
    pub id: i64,
    pub accepted_at: i64,
    pub tenant: Arc<str>,
    pub sender: String,
    pub size: u64,
    pub keys: LogKeys,
    /// JSON: `[[index, address], ...]`.
    pub recipients: String,
    /// What it is found by, see [`find_key`].
    pub found_by: Vec<i64>,
}

/// Two calls in one batch contradict each other: they are to be run one by one.
pub(crate) struct Contradiction;

/// The last state of each recipient that the items change, in the order of first mention.
pub(crate) type Changes<'a> = Vec<((i64, u32), Option<&'a StateRow>)>;

pub(crate) fn merge_changes<'a>(
    items: impl Iterator<Item = &'a Item>,
) -> Result<Changes<'a>, Contradiction> {
    let mut order: Changes<'a> = Vec::new();
    let mut at: HashMap<(i64, u32), usize> = HashMap::new();
    for change in items.flat_map(|item| &item.changes) {
        let key = (change.message, change.index);
        match at.get(&key) {
            None => {
                at.insert(key, order.len());
                order.push((key, change.state.as_ref()));
            }
            Some(known) => {
                let last = &mut order[*known].1;
                if last.is_none() {
                    return Err(Contradiction);
                }
                *last = change.state.as_ref();
            }
        }
    }
    Ok(order)
}

/// The JSON beside a message's columns.
#[derive(Serialize)]
struct MessageData<'a> {
    envelope: &'a Envelope,
    keys: &'a LogKeys,
    automatic: bool,
    origin: &'a Origin,
}

#[derive(Deserialize)]
struct StoredData {
    envelope: Envelope,
    keys: LogKeys,
    automatic: bool,
}

/// JSON without NUL, which PostgreSQL's text cannot hold.
pub(crate) fn json<T: Serialize>(value: &T) -> StoreResult<String> {
    let text = serde_json::to_string(value)
        .map_err(|e| StoreError::Conflict(format!("a value has no JSON form: {e}")))?;
    Ok(if text.contains("\\u0000") {
        text.replace("\\u0000", "\\ufffd")
    } else {
        text
    })
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(what: &str, text: &'a str) -> StoreResult<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Damaged(format!("{what}: {e}")))
}

/// Text without NUL, which PostgreSQL's text cannot hold.
fn clean(text: &str) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text.to_owned()
    }
}

pub(crate) fn accept_item(message: NewMessage) -> StoreResult<Item> {
    let id = message.id.as_i64();
    let mut item = Item {
        mail: Some(mail_row(
            message.id,
            &message.tenant,
            &message.envelope,
            message.content.size(),
            message.accepted_at,
            &message.keys,
        )?),
        events: event_rows(message.events)?,
        ..Item::default()
    };
    for recipient in message.recipients {
        let Some(state) = state_row(&recipient.state)? else {
            continue;
        };
        let domain = message
            .envelope
            .recipients
            .get(recipient.index as usize)
            .ok_or_else(|| {
                StoreError::Conflict(format!(
                    "recipient {} of message {} is not in its envelope",
                    recipient.index, message.id
                ))
            })?
            .address
            .domain();
        item.recipients.push(RecipientRow {
            message: id,
            index: recipient.index,
            shard: recipient.shard,
            tenant: message.tenant.clone(),
            domain: clean(domain),
            promise: recipient.promise,
            state,
        });
    }
    if !item.recipients.is_empty() {
        item.message = Some(MessageRow {
            id,
            data: json(&MessageData {
                envelope: &message.envelope,
                keys: &message.keys,
                automatic: message.automatic,
                origin: &message.origin,
            })?,
            tenant: message.tenant,
            content: message.content,
            accepted_at: message.accepted_at.as_millis(),
        });
    }
    for settlement in message.pays {
        settle_into(&mut item, settlement)?;
    }
    Ok(item)
}

pub(crate) fn settle_item(settlements: Vec<Settlement>) -> StoreResult<Item> {
    let mut item = Item::default();
    for settlement in settlements {
        settle_into(&mut item, settlement)?;
    }
    Ok(item)
}

pub(crate) fn log_item(message: LoggedMessage) -> StoreResult<Item> {
    Ok(Item {
        mail: Some(mail_row(
            message.id,
            &message.tenant,
            &message.envelope,
            message.size,
            message.accepted_at,
            &message.keys,
        )?),
        events: event_rows(message.events)?,
        ..Item::default()
    })
}

fn settle_into(item: &mut Item, settlement: Settlement) -> StoreResult<()> {
    item.changes.push(Change {
        message: settlement.id.message.as_i64(),
        index: settlement.id.index,
        shard: settlement.shard,
        epoch: settlement.epoch,
        state: state_row(&settlement.state)?,
    });
    item.events.extend(event_rows(settlement.events)?);
    Ok(())
}

/// `None` if the recipient leaves the queue.
fn state_row(state: &RecipientState) -> StoreResult<Option<StateRow>> {
    let (due, done) = match state.state {
        State::Waiting { due } => (Some(due.as_millis()), 0),
        State::Done(End::Sent) => (None, 1),
        State::Done(End::Bounced) => (None, 2),
        State::Done(End::Expired) => (None, 3),
        State::Done(End::Cancelled) => (None, 4),
    };
    if done != 0 && state.owes == Owes::None {
        return Ok(None);
    }
    Ok(Some(StateRow {
        due,
        done,
        attempts: state.attempts,
        accepted_at: state.accepted_at.as_millis(),
        expires_at: state.expires_at.as_millis(),
        owes: match state.owes {
            Owes::None => 0,
            Owes::Delay => 1,
            Owes::Failure => 2,
            Owes::Success => 3,
        },
        delay_reported: state.delay_reported,
        last: state.last.as_ref().map(json).transpose()?,
    }))
}

pub(crate) fn owes(code: i64) -> StoreResult<Owes> {
    Ok(match code {
        0 => Owes::None,
        1 => Owes::Delay,
        2 => Owes::Failure,
        3 => Owes::Success,
        other => return Err(StoreError::Damaged(format!("unknown debt {other}"))),
    })
}

fn event_rows(events: Vec<Event>) -> StoreResult<Vec<EventRow>> {
    events
        .into_iter()
        .map(|event| {
            Ok(EventRow {
                day: event.at.day(),
                at: event.at.as_millis(),
                message: event.message.as_i64(),
                index: event.recipient,
                kind: kind_code(event.kind),
                detail: json(&event.detail)?,
            })
        })
        .collect()
}

/// The number an event kind is stored under; never reused.
pub(crate) fn kind_code(kind: EventKind) -> u8 {
    match kind {
        EventKind::Accepted => 1,
        EventKind::Routed => 2,
        EventKind::Delivered => 3,
        EventKind::Deferred => 4,
        EventKind::Bounced => 5,
        EventKind::Expired => 6,
        EventKind::Cancelled => 7,
        EventKind::DelayNotified => 8,
        EventKind::DsnSent => 9,
        EventKind::PassthroughTried => 10,
        EventKind::Refused => 11,
        EventKind::Recovered => 12,
    }
}

fn kind_of(code: i64) -> StoreResult<EventKind> {
    EventKind::ALL
        .into_iter()
        .find(|kind| i64::from(kind_code(*kind)) == code)
        .ok_or_else(|| StoreError::Damaged(format!("unknown kind of event {code}")))
}

pub(crate) fn event(
    at: i64,
    message: i64,
    index: Option<i64>,
    kind: i64,
    detail: &str,
) -> StoreResult<Event> {
    Ok(Event {
        at: Timestamp(at),
        kind: kind_of(kind)?,
        message: MessageId::from_i64(message),
        recipient: index.map(|i| i as u32),
        detail: parse::<Detail>("event", detail)?,
    })
}

fn mail_row(
    id: MessageId,
    tenant: &Arc<str>,
    envelope: &Envelope,
    size: u64,
    accepted_at: Timestamp,
    keys: &LogKeys,
) -> StoreResult<MailRow> {
    let sender = envelope
        .reverse_path
        .as_ref()
        .map_or(String::new(), |a| clean(a.as_str()));
    let mut found_by = vec![find_key(Find::Tenant, tenant)];
    if !sender.is_empty() {
        found_by.push(find_key(Find::Sender, &sender));
    }
    if let Some(message_id) = &keys.message_id {
        found_by.push(find_key(Find::MessageId, message_id));
    }
    if let Some(record) = &keys.record {
        found_by.push(find_key(Find::Record, record));
    }
    if let Some(subject) = &keys.subject {
        let words = subject_words(subject);
        found_by.extend(words.iter().map(|word| find_key(Find::Subject, word)));
    }
    found_by.extend(
        envelope
            .recipients
            .iter()
            .map(|r| find_key(Find::Recipient, r.address.as_str())),
    );
    found_by.sort_unstable();
    found_by.dedup();
    let recipients: Vec<(usize, &str)> = envelope
        .recipients
        .iter()
        .map(|r| r.address.as_str())
        .enumerate()
        .collect();
    Ok(MailRow {
        day: log_day(id),
        id: id.as_i64(),
        accepted_at: accepted_at.as_millis(),
        tenant: tenant.clone(),
        sender,
        size,
        keys: LogKeys {
            message_id: keys.message_id.as_deref().map(clean),
            record: keys.record.as_deref().map(clean),
            subject: keys.subject.as_deref().map(clean),
        },
        recipients: json(&recipients)?,
        found_by,
    })
}

/// The day under which a message is logged: that of its id, so that it is found
/// without a search.
pub(crate) fn log_day(id: MessageId) -> u32 {
    id.given_at().day()
}

/// By what a message is looked for.
#[derive(Clone, Copy)]
pub(crate) enum Find {
    Tenant = 1,
    Sender = 2,
    Recipient = 3,
    MessageId = 4,
    Record = 5,
    /// One word of it.
    Subject = 6,
}

/// Words of a subject that it is found by.
const MAX_SUBJECT_WORDS: usize = 12;

/// The first words of a subject, in lower case, each once.
pub(crate) fn subject_words(subject: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in subject.split(|c: char| !c.is_alphanumeric()) {
        if words.len() == MAX_SUBJECT_WORDS {
            break;
        }
        let word = word.to_lowercase();
        if !word.is_empty() && !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

/// Sixty-four bits over a search term, without case: FNV-1a with SplitMix64's
/// finaliser. Searches compare the whole text afterwards, so a collision only costs time.
pub(crate) fn find_key(find: Find, text: &str) -> i64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut take = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    take(find as u8);
    if text.is_ascii() {
        text.bytes().for_each(|b| take(b.to_ascii_lowercase()));
    } else {
        clean(text).to_lowercase().bytes().for_each(take);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)) as i64
}

pub(crate) fn same_text(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
        || (!(a.is_ascii() && b.is_ascii()) && a.to_lowercase() == b.to_lowercase())
}

pub(crate) fn queued_message(
    id: i64,
    content: String,
    size: i64,
    accepted_at: i64,
    tenant: &str,
    data: &str,
) -> StoreResult<QueuedMessage> {
    let data: StoredData = parse("queued message", data)?;
    Ok(QueuedMessage {
        id: MessageId::from_i64(id),
        tenant: tenant.into(),
        envelope: Arc::new(data.envelope),
        content: ContentRef(content),
        size: size as u64,
        accepted_at: Timestamp(accepted_at),
        keys: data.keys,
        automatic: data.automatic,
    })
}

/// Shares equal texts among the rows of a page.
#[derive(Default)]
pub(crate) struct Interner(HashMap<Box<str>, Arc<str>>);

impl Interner {
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let shared: Arc<str> = text.into();
        self.0.insert(text.into(), shared.clone());
        shared
    }
}

/// The columns of a stored recipient, in the order in which both databases give them.
pub(crate) struct StoredRecipient<'a> {
    pub message: i64,
    pub index: i64,
    pub shard: i64,
    pub tenant: &'a str,
    pub domain: &'a str,
    pub promise: Arc<Promise>,
    pub due: Option<i64>,
    pub done: i64,
    pub attempts: i64,
    pub accepted_at: i64,
    pub expires_at: i64,
    pub owes: i64,
    pub delay_reported: i64,
    pub last: Option<&'a str>,
}

impl StoredRecipient<'_> {
    pub fn decode(self, names: &mut Interner) -> StoreResult<QueuedRecipient> {
        let state = match (self.done, self.due) {
            (0, Some(due)) => State::Waiting {
                due: Timestamp(due),
            },
            (1, _) => State::Done(End::Sent),
            (2, _) => State::Done(End::Bounced),
            (3, _) => State::Done(End::Expired),
            (4, _) => State::Done(End::Cancelled),
            (done, _) => {
                return Err(StoreError::Damaged(format!(
                    "recipient {}/{} is in unknown state {done}",
                    MessageId::from_i64(self.message),
                    self.index
                )));
            }
        };
        Ok(QueuedRecipient {
            id: RecipientId {
                message: MessageId::from_i64(self.message),
                index: self.index as u32,
            },
            tenant: names.get(self.tenant),
            domain: names.get(self.domain),
            state: RecipientState {
                state,
                attempts: self.attempts as u32,
                accepted_at: Timestamp(self.accepted_at),
                expires_at: Timestamp(self.expires_at),
                owes: owes(self.owes)?,
                delay_reported: self.delay_reported != 0,
                last: match self.last {
                    None => None,
                    Some(text) => Some(parse::<LastAttempt>("last attempt", text)?),
                },
            },
            promise: self.promise,
            shard: self.shard as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_event_have_codes_of_their_own() {
        for kind in EventKind::ALL {
            assert_eq!(kind_of(i64::from(kind_code(kind))).unwrap(), kind);
        }
        assert!(kind_of(0).is_err());
    }

    #[test]
    fn search_keys_ignore_case_and_tell_fields_apart() {
        let key = find_key(Find::Recipient, "Anna@Example.org");
        assert_eq!(key, find_key(Find::Recipient, "anna@example.ORG"));
        assert_ne!(key, find_key(Find::Sender, "anna@example.org"));
        assert_eq!(
            find_key(Find::Sender, "J\u{d6}RG@x.de"),
            find_key(Find::Sender, "j\u{f6}rg@X.de")
        );
        assert!(same_text("J\u{d6}RG@x.de", "j\u{f6}rg@X.de"));
    }

    #[test]
    fn a_subject_is_found_by_its_words() {
        let words = subject_words("Re: Ihre Rechnung Nr. 4711/B \u{2014} Gr\u{dc}\u{df}e, re");
        assert_eq!(
            words,
            [
                "re",
                "ihre",
                "rechnung",
                "nr",
                "4711",
                "b",
                "gr\u{fc}\u{df}e"
            ]
        );
        let many: String = (0..50).map(|n| format!("w{n} ")).collect();
        assert_eq!(subject_words(&many).len(), MAX_SUBJECT_WORDS);
        assert!(subject_words(" -- ").is_empty());
    }

    #[test]
    fn nul_never_reaches_a_text_column() {
        assert_eq!(json(&"a\0b").unwrap(), "\"a\\ufffdb\"");
        assert_eq!(clean("a\0b"), "a\u{fffd}b");
    }
}
