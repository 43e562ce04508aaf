//! The certificate of the submission listeners, replaceable while they run.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;

use crate::config::Tls;

/// Why the files can't be used: which, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct TlsError {
    path: String,
    reason: String,
}

fn fault(path: &Path, reason: impl std::fmt::Display) -> TlsError {
    TlsError {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}

/// Reads both files and checks that they belong together.
pub fn read(config: &Tls) -> Result<CertifiedKey, TlsError> {
    let read_file = |path: &Path| std::fs::read(path).map_err(|e| fault(path, e));
    let (chain_path, key_path) = (&config.certificate, &config.key);
    let chain = CertificateDer::pem_slice_iter(&read_file(chain_path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| fault(chain_path, e))?;
    if chain.is_empty() {
        return Err(fault(chain_path, "there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read_file(key_path)?)
        .map_err(|e| fault(key_path, format!("there is no private key in it: {e}")))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).map_err(
        |e| match e {
            rustls::Error::InconsistentKeys(_) => fault(
                key_path,
                format!("the key does not belong to {}", chain_path.display()),
            ),
            other => fault(chain_path, other),
        },
    )
}

/// What to do where the files can't be used. `init --force` makes a pair where there is neither,
/// and overwrites none.
pub fn remedy(config: &Tls) -> String {
    let (chain, key) = (&config.certificate, &config.key);
    let one = |missing: &Path, there: &Path| {
        format!(
            "restore {}, or move {} away and make a new self-signed pair with: tidegate init --force",
            missing.display(),
            there.display()
        )
    };
    match (chain.exists(), key.exists()) {
        (true, true) => {
            "put a PEM chain and the private key that belongs to it there, or name others under [tls]"
                .to_owned()
        }
        (true, false) => one(key, chain),
        (false, true) => one(chain, key),
        (false, false) => {
            "name a PEM chain and its private key under [tls], or make a self-signed pair with: tidegate init --force"
                .to_owned()
        }
    }
}

/// The certificate in force.
#[derive(Debug)]
pub struct Certificate(ArcSwap<CertifiedKey>);

impl Certificate {
    pub fn load(config: &Tls) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Certificate(ArcSwap::from_pointee(read(config)?))))
    }

    /// Takes the files into use again; on an error the present certificate stays.
    pub fn reload(&self, config: &Tls) -> Result<(), TlsError> {
        self.0.store(Arc::new(read(config)?));
        Ok(())
    }

    /// For the listeners: TLS 1.2 and 1.3, sessions resumed by tickets.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, name: &str) -> Tls {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let tls = Tls {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        std::fs::write(&tls.certificate, made.cert.pem()).unwrap();
        std::fs::write(&tls.key, made.signing_key.serialize_pem()).unwrap();
        tls
    }

    #[test]
    fn mismatching_and_missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (files(dir.path(), "a.test"), files(dir.path(), "b.test"));
        assert!(read(&a).is_ok());
        let mixed = Tls {
            certificate: a.certificate.clone(),
            key: b.key.clone(),
        };
        let error = read(&mixed).unwrap_err().to_string();
        assert!(
            error.contains("b.test.key: the key does not belong"),
            "{error}"
        );
        let swapped = Tls {
            certificate: a.key.clone(),
            key: a.certificate.clone(),
        };
        assert!(
            read(&swapped)
                .unwrap_err()
                .to_string()
                .contains("no certificate")
        );
        let missing = Tls {
            certificate: dir.path().join("none.pem"),
            key: a.key,
        };
        assert!(read(&missing).unwrap_err().to_string().contains("none.pem"));
    }

    #[test]
    fn a_bad_reload_keeps_the_present_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let a = files(dir.path(), "a.test");
        let certificate = Certificate::load(&a).unwrap();
        let before = certificate.0.load_full();
        std::fs::write(&a.certificate, "broken").unwrap();
        assert!(certificate.reload(&a).is_err());
        assert!(Arc::ptr_eq(&before, &certificate.0.load_full()));
        let b = files(dir.path(), "b.test");
        certificate.reload(&b).unwrap();
        assert!(!Arc::ptr_eq(&before, &certificate.0.load_full()));
        assert!(certificate.server_config().is_ok());
    }
}
