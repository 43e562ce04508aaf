//! Whose turn it is: round robin over tenants, and within a tenant over its queues.

use std::collections::VecDeque;

/// The queues of one traffic class that have something to send.
#[derive(Debug, Default)]
pub(super) struct Ring {
    tenants: VecDeque<u32>,
    /// By tenant number: its queues, in turn.
    queues: Vec<VecDeque<u32>>,
}

impl Ring {
    /// Adds a queue at the end of its tenant's turn order. The caller keeps it from
    /// being added twice.
    pub fn push(&mut self, tenant: u32, queue: u32) {
        let at = tenant as usize;
        if self.queues.len() <= at {
            self.queues.resize_with(at + 1, VecDeque::new);
        }
        if self.queues[at].is_empty() {
            self.tenants.push_back(tenant);
        }
        self.queues[at].push_back(queue);
    }

    /// The queue whose turn it is; its tenant goes to the end of the round.
    pub fn pop(&mut self) -> Option<u32> {
        let tenant = self.tenants.pop_front()?;
        let queues = &mut self.queues[tenant as usize];
        let queue = queues.pop_front();
        if !queues.is_empty() {
            self.tenants.push_back(tenant);
        }
        queue
    }

    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_with_many_queues_gets_no_more_turns() {
        let mut ring = Ring::default();
        for queue in 0..4 {
            ring.push(0, queue);
        }
        ring.push(1, 10);
        ring.push(1, 11);
        let order: Vec<u32> = std::iter::from_fn(|| ring.pop()).collect();
        assert_eq!(order, [0, 10, 1, 11, 2, 3]);
        assert!(ring.is_empty());
    }
}
