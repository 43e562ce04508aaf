//! What a store ought to hold, kept in ordinary maps: the reference for property tests.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_mail::{Event, Owes, RecipientId, RecipientState};
use tidegate_queue::{NewMessage, Settlement};

#[derive(Default)]
pub struct Model {
    pub queue: BTreeMap<RecipientId, RecipientState>,
    pub contents: BTreeMap<i64, Vec<u8>>,
    pub events: Vec<Event>,
    /// Every message that was ever accepted.
    pub logged: BTreeSet<i64>,
}

impl Model {
    /// Whether the store must take it.
    pub fn accept(&mut self, message: &NewMessage, content: &[u8]) -> bool {
        let known = self.logged.contains(&message.id.as_i64());
        if known || !self.has_all(&message.pays) {
            return false;
        }
        self.logged.insert(message.id.as_i64());
        self.events.extend(message.events.iter().cloned());
        for recipient in &message.recipients {
            let id = RecipientId {
                message: message.id,
                index: recipient.index,
            };
            if stays(&recipient.state) {
                self.queue.insert(id, recipient.state.clone());
                self.contents.insert(id.message.as_i64(), content.to_vec());
            }
        }
        self.apply(&message.pays);
        true
    }

    pub fn settle(&mut self, settlements: &[Settlement]) -> bool {
        let known = self.has_all(settlements);
        if known {
            self.apply(settlements);
        }
        known
    }

    fn has_all(&self, settlements: &[Settlement]) -> bool {
        settlements.iter().all(|s| self.queue.contains_key(&s.id))
    }

    fn apply(&mut self, settlements: &[Settlement]) {
        for settlement in settlements {
            self.events.extend(settlement.events.iter().cloned());
            if stays(&settlement.state) {
                self.queue.insert(settlement.id, settlement.state.clone());
                continue;
            }
            self.queue.remove(&settlement.id);
            let message = settlement.id.message;
            if !self.queue.keys().any(|id| id.message == message) {
                self.contents.remove(&message.as_i64());
            }
        }
    }

    pub fn owing(&self) -> Vec<(RecipientId, Owes)> {
        self.queue
            .iter()
            .filter(|(_, state)| state.owes != Owes::None)
            .map(|(id, state)| (*id, state.owes))
            .collect()
    }
}

fn stays(state: &RecipientState) -> bool {
    !state.is_done() || state.owes != Owes::None
}
