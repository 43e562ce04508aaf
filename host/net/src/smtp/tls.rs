//! TLS towards peers: one shared rustls configuration for each class, so that sessions
//! are resumed.
//!
//! Opportunistic (RFC 7435): any certificate will do, since the alternative is to send in
//! clear; the handshake's signatures are still checked. Verified: WebPKI against the
//! configured roots and the name that was asked for. Where a TLSA record is to vouch for the
//! peer, or a verification is tried only, the configuration is the connection's own: a
//! session that was resumed would not be verified.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConfig, ClientConnection, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tidegate_mail::{Fault, TlsInfo};
use tidegate_queue::ports::Dane;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::verify::{AnyCertificate, Chain, TlsaRecords, Trial, Verifier};

/// What certificates are verified against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TrustAnchors {
    /// Mozilla's roots, built in.
    #[default]
    WebPki,
    /// A PEM file with one or more certificates, instead of the built-in ones.
    File(PathBuf),
}

/// The trust anchors can't be used.
#[derive(Debug, thiserror::Error)]
#[error("trust anchors: {0}")]
pub struct TlsSetupError(String);

impl TlsSetupError {
    pub(crate) fn new(reason: String) -> Self {
        TlsSetupError(reason)
    }
}

/// Sessions kept for resumption, per class.
const SESSIONS: usize = 4096;

/// The configurations of both classes.
#[derive(Clone)]
pub struct TlsClient {
    opportunistic: TlsConnector,
    verified: TlsConnector,
    provider: Arc<CryptoProvider>,
    webpki: Arc<dyn ServerCertVerifier>,
}

/// What is checked of a peer's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nothing.
    Nothing,
    /// WebPKI for the host's name.
    WebPki,
    /// WebPKI for the host's name, and what does not pass is told.
    Trial,
    /// The TLSA records.
    Dane(Arc<Dane>),
}

/// A connection under TLS, and what a [`Check::Trial`] has to object.
pub type Shaken = (TlsStream<TcpStream>, Option<String>);

impl TlsClient {
    pub fn new(anchors: &TrustAnchors) -> Result<Self, TlsSetupError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = || {
            ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map_err(|error| TlsSetupError(error.to_string()))
        };
        let resumed = |mut config: ClientConfig| {
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            TlsConnector::from(Arc::new(config))
        };
        let any = Arc::new(Verifier {
            provider: provider.clone(),
            chain: AnyCertificate,
        });
        let roots = Arc::new(roots(anchors)?);
        let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| TlsSetupError(error.to_string()))?;
        let opportunistic = builder()?
            .dangerous()
            .with_custom_certificate_verifier(any)
            .with_no_client_auth();
        let verified = builder()?
            .with_webpki_verifier(webpki.clone())
            .with_no_client_auth();
        Ok(TlsClient {
            opportunistic: resumed(opportunistic),
            verified: resumed(verified),
            webpki,
            provider,
        })
    }

    /// A configuration for one connection.
    fn single(&self, chain: impl Chain + 'static) -> Result<TlsConnector, (Fault, String)> {
        let verifier = Verifier {
            provider: self.provider.clone(),
            chain,
        };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| (Fault::TlsFailed, error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// Makes the handshake. `host` is the name the certificate must have when verified; a
    /// name that can't be sent as SNI stands back for the address.
    pub async fn handshake(
        &self,
        check: &Check,
        host: &str,
        peer: IpAddr,
        stream: TcpStream,
    ) -> Result<Shaken, (Fault, String)> {
        let host = match check {
            Check::Dane(dane) => &dane.base,
            _ => host.trim_start_matches('[').trim_end_matches(']'),
        };
        let name = match ServerName::try_from(host) {
            Ok(name) => name.to_owned(),
            Err(error) if *check == Check::WebPki => {
                return Err((Fault::TlsUntrusted, error.to_string()));
            }
            Err(_) => ServerName::from(peer),
        };
        let objection = Arc::new(Mutex::new(None));
        let connector = match check {
            Check::Nothing => self.opportunistic.clone(),
            Check::WebPki => self.verified.clone(),
            Check::Trial => self.single(Trial {
                real: self.webpki.clone(),
                objection: objection.clone(),
            })?,
            Check::Dane(dane) => self.single(TlsaRecords(dane.clone()))?,
        };
        let stream = connector.connect(name, stream).await.map_err(|error| {
            let untrusted = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .is_some_and(|e| matches!(e, rustls::Error::InvalidCertificate(_)));
            let fault = match check {
                Check::Dane(_) if untrusted => Fault::DaneMismatch,
                _ if untrusted => Fault::TlsUntrusted,
                _ => Fault::TlsFailed,
            };
            (fault, error.to_string())
        })?;
        let objection = objection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok((stream, objection))
    }
}

/// What is recorded of a connection.
pub fn describe(connection: &ClientConnection, check: &Check) -> TlsInfo {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLS",
    };
    let cipher = connection
        .negotiated_cipher_suite()
        .and_then(|suite| suite.suite().as_str())
        .unwrap_or("unknown");
    TlsInfo {
        version: version.to_owned(),
        cipher: cipher.strip_prefix("TLS13_").map_or_else(
            || cipher.to_owned(),
            // The registered name is TLS_AES_...; rustls marks the version in its own.
            |suite| format!("TLS_{suite}"),
        ),
        verified: match check {
            Check::Nothing | Check::Trial => "none",
            Check::WebPki => "webpki",
            Check::Dane(_) => "dane",
        }
        .to_owned(),
    }
}

/// The certificates to verify against.
pub(crate) fn roots(anchors: &TrustAnchors) -> Result<RootCertStore, TlsSetupError> {
    let mut store = RootCertStore::empty();
    match anchors {
        TrustAnchors::WebPki => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        TrustAnchors::File(path) => {
            for certificate in read_pem(path)? {
                store
                    .add(certificate)
                    .map_err(|e| TlsSetupError(format!("{}: {e}", path.display())))?;
            }
        }
    }
    Ok(store)
}

fn read_pem(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let fail = |reason: String| TlsSetupError(format!("{}: {reason}", path.display()));
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fail(error.to_string()))?;
    if certificates.is_empty() {
        return Err(fail("no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}
