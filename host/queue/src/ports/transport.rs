use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_mail::{BodyType, Hop, Outcome, Recipient, Ret};

use super::{Destination, Fut};

/// How a connection to a named server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// In clear.
    None,
    /// STARTTLS where offered, without verification (RFC 7435).
    #[default]
    Opportunistic,
    /// STARTTLS with a verified certificate, or no delivery.
    StartTls,
    /// TLS from the first byte (RFC 8314), verified.
    Implicit,
}

/// A server named by configuration: a tenant's own server or a smarthost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or IP address.
    pub host: String,
    pub port: u16,
    pub tls: TlsMode,
    /// User and password for AUTH.
    pub auth: Option<(String, String)>,
    /// Loopback and private addresses are refused unless this is set: a tenant's
    /// server must not be on the gateway's own network.
    pub allow_private: bool,
    /// A tenant named it, so it must not be the gateway itself either.
    pub of_tenant: bool,
}

/// Where a job goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// The MX hosts of a destination, each under the protection that the domain demands
    /// ([`MxHost::protection`](super::MxHost::protection)).
    Mx(Arc<Destination>),
    Endpoint(Arc<Endpoint>),
}

/// Reads a message's content, wherever it lies.
pub trait ContentReader: Send + Sync {
    /// Bytes in all.
    fn size(&self) -> u64;

    /// Up to `max` bytes from `offset`; empty at the end. The error is for the operator.
    fn read(&self, offset: u64, max: usize) -> Fut<'_, std::io::Result<Bytes>>;
}

impl ContentReader for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, max: usize) -> Fut<'_, std::io::Result<Bytes>> {
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let part = self.slice(from..from.saturating_add(max).min(self.len()));
        Box::pin(std::future::ready(Ok(part)))
    }
}

/// One recipient of a job.
#[derive(Clone, Debug)]
pub struct JobRecipient {
    /// Position in the envelope as submitted.
    pub index: u32,
    pub recipient: Recipient,
}

/// One transaction: a message and the recipients of it that share a target.
#[derive(Clone)]
pub struct Job {
    pub target: Target,
    /// `None`: the null reverse-path.
    pub reverse_path: Option<tidegate_mail::Address>,
    pub envid: Option<String>,
    pub ret: Option<Ret>,
    pub body: BodyType,
    pub smtputf8: bool,
    pub requiretls: bool,
    /// Deliver where the protection that the domain demands can't be had
    /// (`TLS-Required: No`, RFC 8689 s. 5).
    pub tls_optional: bool,
    pub content: Arc<dyn ContentReader>,
    pub recipients: Vec<JobRecipient>,
    /// The address to send from; `None`: the system's choice.
    pub source: Option<IpAddr>,
    /// Close the connection after this many messages.
    pub messages_per_connection: u16,
}

/// The result for one recipient, with the hop that gave it.
#[derive(Clone, Debug)]
pub struct Hand {
    pub index: u32,
    pub hop: Arc<Hop>,
    pub outcome: Outcome,
}

/// What became of a job.
#[derive(Clone, Debug)]
pub struct HandOff {
    /// One entry for each recipient of the job, in its order.
    pub results: Vec<Hand>,
    pub contact: Contact,
}

/// What a job has shown of its target's hosts, as others find them who send there too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// A host took part in a transaction, whatever it answered.
    Reached,
    /// No host could be talked to: the site is to be left alone for a while.
    Failed,
    /// Nothing: no host was asked, or what stood in the way was a demand for protection, of
    /// the message or of its domain, that other mail to the same hosts does not make.
    Untried,
}

/// Delivers by SMTP. Never an `Err`: what the peer or the network does is an outcome.
pub trait Transport: Send + Sync + 'static {
    /// Makes one attempt for every recipient of the job: walks the hosts in order, over
    /// pooled connections; splits the transaction where the peer says 452 after
    /// some recipients. Ends within a bounded time; who had no turn by then is withdrawn.
    fn deliver(&self, job: Job) -> Fut<'_, HandOff>;
}
