//! Certificates of every kind, and servers that show them.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate with its key and the chain behind it.
pub struct Shown {
    pub chain: Vec<CertificateDer<'static>>,
    pub spki: Vec<u8>,
    key: KeyPair,
}

/// An issuer.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

fn params(names: &[&str], expired: bool) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    if expired {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    params
}

impl Ca {
    pub fn new() -> Ca {
        let mut params = params(&[], false);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = rcgen::DnValue::from("test issuer");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn der(&self) -> &[u8] {
        self.0.der()
    }

    pub fn spki(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(self.0.key())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names, the issuer's own behind it.
    pub fn issue(&self, names: &[&str], expired: bool) -> Shown {
        let key = KeyPair::generate().unwrap();
        let leaf = params(names, expired).signed_by(&key, &self.0).unwrap();
        Shown {
            chain: vec![leaf.der().clone(), self.0.der().clone()],
            spki: rcgen::PublicKeyData::subject_public_key_info(&key),
            key,
        }
    }
}

impl Shown {
    /// Signed by itself.
    pub fn alone(names: &[&str], expired: bool) -> Shown {
        let key = KeyPair::generate().unwrap();
        let leaf = params(names, expired).self_signed(&key).unwrap();
        Shown {
            chain: vec![leaf.der().clone()],
            spki: rcgen::PublicKeyData::subject_public_key_info(&key),
            key,
        }
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)
            .unwrap();
        Arc::new(config)
    }
}

pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

pub fn sha512(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA512, bytes).as_ref().to_vec()
}
