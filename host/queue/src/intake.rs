//! The way in: what a submission listener hands over, and what it is answered.

use std::sync::Arc;

use tidegate_mail::{Envelope, MessageId, Reply};

use crate::ports::{Content, ContentWriter, Fut, Origin, StoreResult};

/// A message whose data has ended, on its way to a route and to stable storage.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Given by [`Intake::new_id`] before the data, since the Received field names it.
    pub id: MessageId,
    pub tenant: Arc<str>,
    pub origin: Origin,
    /// The credential is for bulk mail only.
    pub bulk: bool,
    pub envelope: Envelope,
    /// The header block as stored, at most [`MAX_HEADER`] bytes, trace field included.
    pub header: tidegate_mail::header::HeaderBlock,
    /// Header and body, with CRLF line ends, dots unstuffed.
    pub content: Content,
}

/// The queue as a listener sees it.
pub trait Intake: Send + Sync + 'static {
    fn new_id(&self) -> MessageId;

    /// Begins a content that is too large to be held in memory.
    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>>;

    /// Routes the message and makes it durable or hands it off. The reply is the reply to the
    /// data: 250 only once every managed recipient is on stable storage; its text then
    /// carries the queue id.
    fn submit(&self, submission: Submission) -> Fut<'_, Reply>;

    /// Whether new mail is taken at all: `Some` is the 4xx to answer MAIL with (storage
    /// full or failed, memory budget used up, stopping).
    fn refusal(&self) -> Option<Reply>;
}

/// Largest header block accepted, in bytes.
pub const MAX_HEADER: usize = 256 * 1024;

/// More Received fields than this is a loop: 554 5.4.6.
pub const MAX_HOPS: usize = 50;
