//! What the host does by itself when a revision fails or does harm.

use tidegate_queue::Step;

/// A roll-back that is in force already and has to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    pub slot: String,
    /// `Activate` (what was before), `Withdraw` (a canary) or `Vacate` (a tenant's slot).
    pub step: Step,
    /// The revision that the step is about: the one before, or the one that is taken out.
    pub digest: String,
    /// The revision that failed.
    pub failed: String,
    /// What was measured.
    pub cause: String,
}
