//! Bytes of messages that connections hold between them, within a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub struct Memory {
    limit: usize,
    held: AtomicUsize,
}

impl Memory {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Memory {
            limit,
            held: AtomicUsize::new(0),
        })
    }

    /// A holder of nothing yet.
    pub fn hold(self: &Arc<Self>) -> Held {
        Held {
            memory: self.clone(),
            bytes: 0,
        }
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// What one message holds; given back when dropped.
#[derive(Debug)]
pub struct Held {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Held {
    /// Notes that so many bytes are held now; `false`: together it is more than the limit, and
    /// the holder is to let go of them.
    pub fn set(&mut self, bytes: usize) -> bool {
        let held = &self.memory.held;
        let total = if bytes >= self.bytes {
            let more = bytes - self.bytes;
            held.fetch_add(more, Ordering::Relaxed) + more
        } else {
            let less = self.bytes - bytes;
            held.fetch_sub(less, Ordering::Relaxed) - less
        };
        self.bytes = bytes;
        total <= self.memory.limit
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_counts_and_comes_back() {
        let memory = Memory::new(100);
        let (mut one, mut two) = (memory.hold(), memory.hold());
        assert!(one.set(60) && two.set(40));
        assert!(!two.set(41));
        assert!(two.set(0) && one.set(100));
        drop(one);
        assert_eq!(memory.held(), 0);
        assert!(!two.set(101));
        drop(two);
        assert_eq!(memory.held(), 0);
    }
}
