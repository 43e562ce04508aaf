//! Gathering what a notice tells, and having it written.

use bytes::Bytes;
use tidegate_mail::dsn::{self, Content, Kind, Notice, NoticeRecipient, Original, Wording};
use tidegate_mail::{Address, Envelope, MessageId};

use super::Engine;
use super::flight::Carried;
use crate::intake::MAX_HEADER;
use crate::ports::{ContentReader, QueuedRecipient};

impl Engine {
    /// How a tenant's notices read at this moment: in its own words, or the gateway's where it has
    /// none or is gone.
    pub fn wording(&self, tenant: &str) -> Wording {
        let directory = self.parts.directory.load();
        match directory.tenant(tenant).and_then(|t| t.wording.as_deref()) {
            Some(own) => own.clone(),
            None => self.parts.settings.wording.clone(),
        }
    }

    /// The notice's envelope and content. What can't be read of the original is left out: a
    /// notice without it is better than none.
    pub(super) async fn compose(
        &self,
        about: &Carried,
        sender: &Address,
        kind: Kind,
        recipients: &[&QueuedRecipient],
        id: MessageId,
    ) -> (Envelope, Bytes) {
        let settings = &self.parts.settings;
        let wording = self.wording(&about.tenant);
        let envelope = &about.envelope;
        let limit = settings.dsn_return_limit;
        let size = about.content.size();
        let whole = Notice::wants_whole(kind, envelope.effective_ret(), size, limit);
        let most = if whole { limit } else { MAX_HEADER.min(limit) };
        let original = match gather(&*about.content, most).await {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::warn!(message = %about.id, %error, "a notice goes without the original's header");
                None
            }
        };
        let notice = Notice {
            kind,
            reporting_mta: &settings.hostname,
            id,
            at: self.now(),
            original: Original {
                id: about.id,
                reverse_path: sender,
                envid: envelope.envid.as_deref(),
                ret: envelope.effective_ret(),
                arrived: about.accepted_at,
                message_id: about.keys.message_id.as_deref(),
                subject: about.keys.subject.as_deref(),
                content: match &original {
                    Some(bytes) if whole => Content::Whole(bytes),
                    Some(bytes) => Content::Head(bytes),
                    None => Content::Unavailable,
                },
            },
            recipients: recipients
                .iter()
                .filter_map(|r| {
                    Some(NoticeRecipient {
                        recipient: envelope.recipients.get(r.id.index as usize)?,
                        state: &r.state,
                    })
                })
                .collect(),
            return_limit: limit,
            wording: &wording,
        };
        let content = dsn::compose(&notice);
        // RFC 8689 s. 5: a notice tells of the message, so it is protected like it.
        let envelope = Envelope {
            requiretls: envelope.requiretls,
            tls_optional: envelope.tls_optional,
            ..notice.envelope(&content)
        };
        (envelope, Bytes::from(content))
    }
}

/// The first `most` bytes of a content.
async fn gather(content: &dyn ContentReader, most: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < most {
        let part = content.read(bytes.len() as u64, most - bytes.len()).await?;
        if part.is_empty() {
            break;
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}
