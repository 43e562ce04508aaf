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

    /// The queue whose turn it is; its tenant goes to the end of the round. Tenants that `may`
    /// not have it keep their place.
    pub fn pop(&mut self, may: impl Fn(u32) -> bool) -> Option<u32> {
        let turn = self.tenants.iter().position(|tenant| may(*tenant))?;
        let tenant = self.tenants.remove(turn)?;
        let queues = &mut self.queues[tenant as usize];
        let queue = queues.pop_front();
        if !queues.is_empty() {
            self.tenants.push_back(tenant);
        }
        queue
    }

    #[cfg(test)]
    pub fn contains(&self, queue: u32) -> bool {
        self.queues.iter().flatten().any(|q| *q == queue)
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
        let order: Vec<u32> = std::iter::from_fn(|| ring.pop(|_| true)).collect();
        assert_eq!(order, [0, 10, 1, 11, 2, 3]);
    }

    #[test]
    fn a_tenant_that_may_not_is_passed_over_and_keeps_its_place() {
        let mut ring = Ring::default();
        for (tenant, queue) in [(0, 0), (1, 10), (2, 20), (1, 11)] {
            ring.push(tenant, queue);
        }
        assert_eq!(ring.pop(|tenant| tenant != 0), Some(10));
        assert_eq!(ring.pop(|tenant| tenant == 3), None);
        let order: Vec<u32> = std::iter::from_fn(|| ring.pop(|_| true)).collect();
        assert_eq!(order, [0, 20, 11]);
    }
}
