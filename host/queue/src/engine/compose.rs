//! Gathering what a notice tells, and having it written.

use tidegate_mail::{MessageId, Owes};

use super::Engine;
use super::flight::Carried;
use crate::ports::QueuedRecipient;

impl Engine {
    pub(super) async fn compose(
        &self,
        about: &Carried,
        kind: Owes,
        recipients: &[&QueuedRecipient],
        id: MessageId,
    ) -> Vec<u8> {
        let _ = (about, kind, recipients, id);
        Vec::new()
    }
}
