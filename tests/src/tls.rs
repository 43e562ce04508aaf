//! Certificates and TLS configurations for servers and clients of the tests.

use std::sync::Arc;

pub use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};

/// A self-signed certificate and its server configuration.
#[derive(Clone)]
pub struct Identity {
    pub certificate_pem: String,
    /// Its public key, as a TLSA record may name it.
    pub key: Vec<u8>,
    pub key_pem: String,
    pub server: Arc<ServerConfig>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl Identity {
    /// Made new, valid for these host names.
    pub fn new(hosts: &[&str]) -> anyhow::Result<Identity> {
        let names: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        Ok(Identity {
            certificate_pem: made.cert.pem(),
            key: rcgen::PublicKeyData::subject_public_key_info(&made.signing_key),
            key_pem: made.signing_key.serialize_pem(),
            server: Arc::new(server),
        })
    }
}

/// A client that trusts the certificates of this PEM text and nothing else.
pub fn client_trusting(pem: &str) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(Arc::new(
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}
