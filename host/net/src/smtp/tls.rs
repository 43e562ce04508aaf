//! TLS towards peers: one shared rustls configuration for each class, so that sessions
//! are resumed.
//!
//! Opportunistic (RFC 7435): any certificate will do, since the alternative is to send in
//! clear; the handshake's signatures are still checked. Verified: WebPKI against the
//! configured roots and the name that was asked for.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tidegate_mail::{Fault, TlsInfo};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

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

/// Sessions kept for resumption, per class.
const SESSIONS: usize = 4096;

/// The configurations of both classes.
#[derive(Clone)]
pub struct TlsClient {
    opportunistic: TlsConnector,
    verified: TlsConnector,
}

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
        let any = Arc::new(AnyCertificate(provider.clone()));
        let opportunistic = builder()?
            .dangerous()
            .with_custom_certificate_verifier(any)
            .with_no_client_auth();
        let verified = builder()?
            .with_root_certificates(roots(anchors)?)
            .with_no_client_auth();
        Ok(TlsClient {
            opportunistic: resumed(opportunistic),
            verified: resumed(verified),
        })
    }

    /// Makes the handshake. `host` is the name the certificate must have when verified; a
    /// name that can't be sent as SNI stands back for the address.
    pub async fn handshake(
        &self,
        verified: bool,
        host: &str,
        peer: IpAddr,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, (Fault, String)> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = match ServerName::try_from(host) {
            Ok(name) => name.to_owned(),
            Err(_) if !verified => ServerName::from(peer),
            Err(error) => return Err((Fault::TlsUntrusted, error.to_string())),
        };
        let connector = if verified {
            &self.verified
        } else {
            &self.opportunistic
        };
        connector.connect(name, stream).await.map_err(|error| {
            let untrusted = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .is_some_and(|e| matches!(e, rustls::Error::InvalidCertificate(_)));
            let fault = if untrusted {
                Fault::TlsUntrusted
            } else {
                Fault::TlsFailed
            };
            (fault, error.to_string())
        })
    }
}

/// What is recorded of a connection.
pub fn describe(connection: &ClientConnection, verified: bool) -> TlsInfo {
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
        verified: if verified { "webpki" } else { "none" }.to_owned(),
    }
}

fn roots(anchors: &TrustAnchors) -> Result<RootCertStore, TlsSetupError> {
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

/// Accepts whatever certificate the peer has.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
