//! Messages on their way: what an attempt needs, from memory if it was just accepted,
//! else from the store.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::recipient::Rights;
use tidegate_mail::{Envelope, MessageId, Promise, RecipientId, RecipientState, Timestamp};

use super::Engine;
use crate::ports::{ContentReader, LogKeys, StoreResult};
use crate::schedule::Ticket;

/// A message, as every attempt of any of its recipients shares it.
pub(super) struct Carried {
    pub id: MessageId,
    pub tenant: Arc<str>,
    pub envelope: Arc<Envelope>,
    pub content: Arc<dyn ContentReader>,
    pub accepted_at: Timestamp,
    pub keys: LogKeys,
    pub automatic: bool,
}

impl Carried {
    pub fn rights(&self, index: u32) -> Rights {
        Rights {
            notify: self
                .envelope
                .recipients
                .get(index as usize)
                .map(|r| r.notify)
                .unwrap_or_default(),
            null_sender: self.envelope.reverse_path.is_none(),
            automatic: self.automatic,
        }
    }
}

/// A recipient with all that a transition needs.
#[derive(Clone)]
pub(super) struct Loaded {
    pub id: RecipientId,
    pub state: RecipientState,
    pub promise: Arc<Promise>,
    pub shard: u16,
}

/// Unclaimed for so long, a message gives way to a newer one where the budget is used up: what
/// waits behind a site that does not answer must not make all other mail be read back.
const STALE: Duration = Duration::from_secs(5);

/// Just accepted messages, within a budget of bytes: their first attempt reads nothing back.
pub(super) struct Flights {
    budget: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    bytes: usize,
    /// The oldest first, as ids grow with time.
    messages: BTreeMap<MessageId, Fresh>,
}

struct Fresh {
    carried: Arc<Carried>,
    recipients: Vec<Loaded>,
    bytes: usize,
}

impl Flights {
    pub fn new(budget: usize) -> Self {
        Flights {
            budget,
            inner: Mutex::new(Inner::default()),
        }
    }

    /// Keeps a message for its first attempts, if the budget allows, or does without what is
    /// [`STALE`].
    pub fn keep(&self, carried: Arc<Carried>, recipients: Vec<Loaded>, content: &Bytes) {
        let bytes = content.len() + weight(&carried, recipients.len());
        let mut inner = self.lock();
        if recipients.is_empty() || bytes > self.budget {
            return;
        }
        let stale = carried.id.given_at().minus(STALE);
        while inner.bytes + bytes > self.budget {
            match inner.messages.first_entry() {
                Some(oldest) if oldest.key().given_at() < stale => {
                    let gone = oldest.remove().bytes;
                    inner.bytes -= gone;
                }
                _ => return,
            }
        }
        inner.bytes += bytes;
        inner.messages.insert(
            carried.id,
            Fresh {
                carried,
                recipients,
                bytes,
            },
        );
    }

    /// The recipients of those tickets, if all are here. Those that are here are then no longer:
    /// where some are not, all are read from the store, and what is here would be older than that.
    fn claim(&self, message: MessageId, tickets: &[Ticket]) -> Option<(Arc<Carried>, Vec<Loaded>)> {
        let mut inner = self.lock();
        let fresh = inner.messages.get_mut(&message)?;
        let carried = fresh.carried.clone();
        let found = if fresh.recipients.len() == tickets.len()
            && fresh
                .recipients
                .iter()
                .zip(tickets)
                .all(|(r, t)| r.id == t.id)
        {
            std::mem::take(&mut fresh.recipients)
        } else {
            let mut found = Vec::with_capacity(tickets.len());
            for ticket in tickets {
                if let Some(at) = fresh.recipients.iter().position(|r| r.id == ticket.id) {
                    found.push(fresh.recipients.swap_remove(at));
                }
            }
            found
        };
        if fresh.recipients.is_empty() {
            let bytes = fresh.bytes;
            inner.messages.remove(&message);
            inner.bytes -= bytes;
        }
        (found.len() == tickets.len()).then_some((carried, found))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// About how many bytes a message takes beside its content: with hundreds of recipients that is
/// more than most contents.
fn weight(carried: &Carried, recipients: usize) -> usize {
    /// A key of the map, what the allocator adds, and the parts of an address.
    const AROUND: usize = 128;
    size_of::<Carried>()
        + size_of::<Envelope>()
        + carried.envelope.recipients.len() * (size_of::<tidegate_mail::Recipient>() + AROUND)
        + recipients * size_of::<Loaded>()
        + AROUND
}

impl Engine {
    /// What an attempt for those tickets needs. A ticket whose row is gone is left out.
    pub(super) async fn load(
        &self,
        message: MessageId,
        tickets: &[Ticket],
    ) -> StoreResult<Option<(Arc<Carried>, Vec<Loaded>)>> {
        if let Some(found) = self.flights.claim(message, tickets) {
            return Ok(Some(found));
        }
        let store = &self.parts.store;
        let Some(carried) = self.carried(message).await? else {
            return Ok(None);
        };
        let rows = store.recipients(message).await?;
        let mut by_index: HashMap<u32, _> = rows.into_iter().map(|r| (r.id.index, r)).collect();
        let loaded = tickets
            .iter()
            .filter_map(|t| by_index.remove(&t.id.index))
            .map(|r| Loaded {
                id: r.id,
                state: r.state,
                promise: r.promise,
                shard: r.shard,
            })
            .collect();
        Ok(Some((carried, loaded)))
    }

    /// A queued message from the store.
    pub(super) async fn carried(&self, message: MessageId) -> StoreResult<Option<Arc<Carried>>> {
        let store = &self.parts.store;
        let Some(queued) = store.messages(vec![message]).await?.pop() else {
            return Ok(None);
        };
        let content = store.content(&queued);
        Ok(Some(Arc::new(Carried {
            id: queued.id,
            tenant: queued.tenant,
            envelope: queued.envelope,
            content,
            accepted_at: queued.accepted_at,
            keys: queued.keys,
            automatic: queued.automatic,
        })))
    }
}

#[cfg(test)]
mod tests {
    use tidegate_mail::{Address, Recipient, TrafficClass};

    use super::*;

    fn message(number: i64, recipients: u32) -> (Arc<Carried>, Vec<Loaded>) {
        let now = Timestamp(1_800_000_000_000);
        let id = MessageId::from_i64(number);
        let promise = Arc::new(Promise {
            class: TrafficClass::Bulk,
            relay: "direct".into(),
            lane: None,
            priority: 0,
            lifetime_secs: 172_800,
            delay_notice_secs: None,
            policy: None,
        });
        let loaded = (0..recipients)
            .map(|index| Loaded {
                id: RecipientId { message: id, index },
                state: RecipientState::accepted(&promise, now),
                promise: promise.clone(),
                shard: 0,
            })
            .collect();
        let recipient = Recipient {
            address: Address::parse("customer@example.net").unwrap(),
            notify: Default::default(),
            original: None,
        };
        let envelope = Envelope {
            reverse_path: None,
            envid: None,
            ret: None,
            body: Default::default(),
            smtputf8: false,
            requiretls: false,
            tls_optional: false,
            recipients: vec![recipient; recipients as usize],
        };
        let carried = Carried {
            id,
            tenant: "acme".into(),
            envelope: Arc::new(envelope),
            content: Arc::new(Bytes::new()),
            accepted_at: now,
            keys: LogKeys::default(),
            automatic: false,
        };
        (Arc::new(carried), loaded)
    }

    #[test]
    fn what_is_not_claimed_gives_way_to_newer_mail() {
        let flights = Flights::new(1024 * 1024);
        let content = Bytes::from(vec![0; 100 * 1024]);
        let id = |seconds: i64| (seconds * 1000) << 20;
        let keep = |number| {
            let (carried, recipients) = message(number, 1);
            flights.keep(carried, recipients, &content);
        };
        for number in 0..20 {
            keep(id(1000) + number);
        }
        let kept: Vec<MessageId> = flights.lock().messages.keys().copied().collect();
        assert_eq!(kept.len(), 10, "the first ones, while all are new");
        assert_eq!(kept[0], MessageId::from_i64(id(1000)));
        keep(id(1004));
        assert_eq!(flights.lock().messages.len(), 10);
        keep(id(1006));
        let kept: Vec<MessageId> = flights.lock().messages.keys().copied().collect();
        assert_eq!(kept.len(), 10);
        assert_eq!(
            kept[0],
            MessageId::from_i64(id(1000) + 1),
            "the oldest went"
        );
        assert_eq!(kept[9], MessageId::from_i64(id(1006)));
        let bytes: usize = flights.lock().messages.values().map(|m| m.bytes).sum();
        assert_eq!(flights.lock().bytes, bytes);
    }

    #[test]
    fn what_was_read_from_the_store_is_kept_here_no_longer() {
        let flights = Flights::new(1024 * 1024);
        let mut scheduler = crate::schedule::Scheduler::new(crate::schedule::Bounds {
            max_deliveries: 1,
            max_resolutions: 1,
            max_site_connections: 1,
            default_limits: Default::default(),
            site_backoff: Default::default(),
        });
        let (carried, loaded) = message(1, 3);
        let id = carried.id;
        let tickets: Vec<Ticket> = loaded
            .iter()
            .map(|l| {
                let key = crate::engine::queue_key(&"a".into(), &"x.test".into(), &l.promise);
                let entry = crate::engine::new_entry(l.id, &l.state, &l.promise);
                scheduler.add_taken(&key, entry)
            })
            .collect();
        flights.keep(carried, loaded, &Bytes::from_static(b"short"));
        assert!(flights.claim(id, &tickets[..1]).is_some());
        // The first has been tried, and comes together with the others: from the store.
        assert!(flights.claim(id, &tickets).is_none());
        assert!(flights.claim(id, &tickets[1..]).is_none(), "they are older");
        let inner = flights.lock();
        assert_eq!((inner.messages.len(), inner.bytes), (0, 0));
    }

    #[test]
    fn recipients_count_like_contents() {
        let flights = Flights::new(1024 * 1024);
        let content = Bytes::from_static(b"short");
        for number in 0..100 {
            let (carried, recipients) = message(number, 1_000);
            flights.keep(carried, recipients, &content);
        }
        let kept = flights.lock().messages.len();
        assert!(
            (1..10).contains(&kept),
            "{kept} messages of 1,000 recipients in 1 MiB"
        );
        let bytes = flights.lock().bytes;
        assert!(bytes <= 1024 * 1024, "{bytes}");
    }
}
