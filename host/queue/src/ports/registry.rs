use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_mail::Timestamp;

use super::{Fut, StoreResult};
use crate::directory::{Credential, Relay, Server, Tenant, Token};
use crate::rollout::Activation;

/// An immutable policy revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Hex SHA-256 over world, component and configuration.
    pub digest: String,
    /// `routing-policy`, `shaping-policy` or `log-exporter`.
    pub world: String,
    /// What the component says of itself.
    pub name: String,
    pub version: String,
    pub config: String,
    pub uploaded_at: Timestamp,
    pub uploaded_by: String,
    #[serde(default)]
    pub note: String,
    /// Bytes of the component as uploaded.
    pub size: u64,
}

/// A revision as it was uploaded for a slot. Two tenants may upload the same one; neither
/// learns of the other by that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// Empty: for no slot in particular, by the operator.
    pub slot: String,
    pub digest: String,
    pub at: Timestamp,
    pub by: String,
    #[serde(default)]
    pub note: String,
}

/// A routing decision as it is kept: its inputs and its answer, opaque to all but the
/// policy host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionRow {
    /// Grows with every decision of the store; 0 in one that is to be kept.
    pub id: u64,
    pub tenant: String,
    pub at: Timestamp,
    /// JSON.
    pub body: String,
}

/// Which decisions are wanted, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionQuery {
    /// `None`: of all tenants.
    pub tenant: Option<String>,
    pub since: Option<Timestamp>,
    /// After this id.
    pub after: u64,
    pub max: u32,
}

/// Everything that is configured through the API rather than the file, and what is kept for
/// policies. Changes are rare; readers hold a [`crate::Directory`] built from it.
pub trait Registry: Send + Sync + 'static {
    /// Grows with every change to anything but decisions, by whichever gateway: how the others
    /// learn of it.
    fn version(&self) -> Fut<'_, StoreResult<u64>>;

    fn tenants(&self) -> Fut<'_, StoreResult<Vec<Tenant>>>;
    fn put_tenant(&self, tenant: Tenant) -> Fut<'_, StoreResult<()>>;
    /// Refused while credentials, servers or policies refer to it? No: removes them too.
    fn remove_tenant(&self, id: String) -> Fut<'_, StoreResult<bool>>;

    fn credentials(&self) -> Fut<'_, StoreResult<Vec<Credential>>>;
    fn put_credential(&self, credential: Credential) -> Fut<'_, StoreResult<()>>;
    fn remove_credential(&self, user: String) -> Fut<'_, StoreResult<bool>>;

    fn servers(&self) -> Fut<'_, StoreResult<Vec<Server>>>;
    fn put_server(&self, server: Server) -> Fut<'_, StoreResult<()>>;
    fn remove_server(&self, tenant: String, name: String) -> Fut<'_, StoreResult<bool>>;

    fn relays(&self) -> Fut<'_, StoreResult<Vec<Relay>>>;
    fn put_relay(&self, relay: Relay) -> Fut<'_, StoreResult<()>>;
    fn remove_relay(&self, name: String) -> Fut<'_, StoreResult<bool>>;

    /// Tenants' tokens for the admin API.
    fn tokens(&self) -> Fut<'_, StoreResult<Vec<Token>>>;
    /// The token with this hash.
    fn token(&self, hash: String) -> Fut<'_, StoreResult<Option<Token>>>;
    /// Refused for a tenant that is not there.
    fn put_token(&self, token: Token) -> Fut<'_, StoreResult<()>>;
    fn remove_token(&self, id: String) -> Fut<'_, StoreResult<bool>>;

    /// Keeps a revision and who uploaded it for which slot; a digest already there is left as
    /// it is.
    fn put_revision(
        &self,
        revision: Revision,
        component: Bytes,
        uploaded: Uploaded,
    ) -> Fut<'_, StoreResult<()>>;
    fn revisions(&self) -> Fut<'_, StoreResult<Vec<Revision>>>;
    /// Every revision of every slot, the oldest upload first.
    fn uploads(&self) -> Fut<'_, StoreResult<Vec<Uploaded>>>;
    fn component(&self, digest: String) -> Fut<'_, StoreResult<Option<Bytes>>>;
    /// Forgets a revision and its uploads. What it decided stays in the log.
    fn remove_revision(&self, digest: String) -> Fut<'_, StoreResult<bool>>;

    /// Appends to the history of a slot.
    fn activate(&self, activation: Activation) -> Fut<'_, StoreResult<()>>;
    /// All, oldest first.
    fn activations(&self) -> Fut<'_, StoreResult<Vec<Activation>>>;

    /// Keeps decisions, in one transaction.
    fn keep_decisions(&self, rows: Vec<DecisionRow>) -> Fut<'_, StoreResult<()>>;
    fn decisions(&self, query: DecisionQuery) -> Fut<'_, StoreResult<Vec<DecisionRow>>>;
    /// Drops decisions made before `keep_from`, and of each tenant all but the newest `most`.
    /// Returns how many.
    fn sweep_decisions(&self, keep_from: Timestamp, most: u32) -> Fut<'_, StoreResult<u64>>;
}
