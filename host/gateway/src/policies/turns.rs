//! One at a time for each: of what is costly nobody gets more by asking more often.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Who has something under way.
pub(super) struct Turns {
    most: usize,
    taken: Mutex<BTreeSet<String>>,
}

/// Given back when dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    whose: String,
}

impl Turns {
    /// At most so many at the same time, of all together.
    pub fn new(most: usize) -> Self {
        Turns {
            most,
            taken: Mutex::default(),
        }
    }

    /// `None` where one is under way already, or too many in all.
    pub fn take(&self, whose: &str) -> Option<Turn<'_>> {
        let mut taken = self.taken();
        (taken.len() < self.most && taken.insert(whose.to_owned())).then(|| Turn {
            turns: self,
            whose: whose.to_owned(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken().remove(&self.whose);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_at_a_time_and_all_together_so_many() {
        let turns = Turns::new(2);
        let acme = turns.take("acme");
        assert!(acme.is_some() && turns.take("acme").is_none());
        let beta = turns.take("beta");
        assert!(beta.is_some() && turns.take("gamma").is_none());
        drop(acme);
        assert!(turns.take("acme").is_some());
    }
}
