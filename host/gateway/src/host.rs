//! What the admin API needs of this process: secrets, the directory, policies.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::{Map, Value};
use tidegate_admin::{ApiError, Host, Inputs, PolicyChanges, Rehearse, Upload};
use tidegate_mail::Fault;
use tidegate_net::smtp::Smtp;
use tidegate_queue::{Activation, Directory, Engine, Fut, Registry, Revision, StoreResult};
use tokio::sync::Mutex;

use crate::policies::Policies;
use crate::secrets::{self, CryptoFailed, MasterKey};

pub struct GatewayHost {
    pub registry: Arc<dyn Registry>,
    pub directory: Arc<ArcSwap<Directory>>,
    pub engine: Arc<Engine>,
    pub key: Arc<MasterKey>,
    pub policies: Arc<Policies>,
    pub exporters: Vec<String>,
    pub smtp: Arc<Smtp>,
    pub allow_private: bool,
    /// One rebuild at a time, or an older state could replace a newer one.
    pub rebuilding: Mutex<()>,
}

/// Everything that the registry holds, as the hot path looks it up.
pub async fn load_directory(registry: &dyn Registry) -> StoreResult<Directory> {
    Ok(Directory::new(
        registry.tenants().await?,
        registry.credentials().await?,
        registry.servers().await?,
        registry.relays().await?,
    ))
}

fn crypto(error: CryptoFailed) -> ApiError {
    ApiError::internal(error.to_string())
}

impl Host for GatewayHost {
    fn hash_password(&self, password: String) -> Fut<'_, Result<String, ApiError>> {
        Box::pin(async move {
            tokio::task::spawn_blocking(move || secrets::hash_password(&password))
                .await
                .map_err(|e| ApiError::internal(e.to_string()))?
                .map_err(crypto)
        })
    }

    fn random_password(&self) -> Result<String, ApiError> {
        secrets::random_password().map_err(crypto)
    }

    fn seal(&self, secret: &str) -> Result<String, ApiError> {
        self.key.seal(secret).map_err(crypto)
    }

    fn directory_changed(&self) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move {
            let _one = self.rebuilding.lock().await;
            let directory = load_directory(&*self.registry).await?;
            self.policies.directory_changed(&directory);
            self.directory.store(Arc::new(directory));
            self.engine.directory_changed();
            Ok(())
        })
    }

    fn refuses_server(&self, host: &str, port: u16) -> Option<String> {
        let ip = host.parse().ok()?;
        let peer = SocketAddr::new(ip, port);
        let what = match self.smtp.forbids(peer, self.allow_private)? {
            Fault::LoopsToSelf => "this gateway itself",
            _ => "on the gateway's own network, which tenants can't make it talk to",
        };
        Some(format!("{peer} is {what}"))
    }

    fn upload(&self, upload: Upload) -> Fut<'_, Result<Revision, ApiError>> {
        Box::pin(self.policies.upload(upload))
    }

    fn change(&self, change: Activation) -> Fut<'_, Result<(), ApiError>> {
        Box::pin(self.policies.change(change))
    }

    fn policy_status(&self) -> Map<String, Value> {
        self.policies.status()
    }

    fn rehearse(&self, rehearse: Rehearse) -> Fut<'_, Result<Value, ApiError>> {
        Box::pin(self.policies.rehearse(rehearse))
    }

    fn inputs(&self, inputs: Inputs) -> Fut<'_, Result<Value, ApiError>> {
        Box::pin(self.policies.inputs(inputs))
    }

    fn random_token(&self) -> Result<String, ApiError> {
        secrets::random_hex().map_err(crypto)
    }

    fn hash_token(&self, token: &str) -> String {
        secrets::digest(token)
    }

    fn exporters(&self) -> Vec<String> {
        self.exporters.clone()
    }

    fn policy_changes(&self) -> Vec<PolicyChanges> {
        self.policies.changes()
    }
}
