//! Verifiers of peers' certificates beside WebPKI's own: any certificate, TLSA records, and a
//! trial whose result is told instead of enforced.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, SignatureScheme,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tidegate_queue::ports::{Dane, Tlsa};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, spki_for_anchor};

/// Checks the chain; the handshake's signatures are checked in any case.
pub trait Chain: fmt::Debug + Send + Sync {
    fn verify(
        &self,
        provider: &CryptoProvider,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error>;
}

/// A verifier that judges the chain in its own way.
#[derive(Debug)]
pub struct Verifier<C> {
    pub provider: Arc<CryptoProvider>,
    pub chain: C,
}

impl<C: Chain> ServerCertVerifier for Verifier<C> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.chain
            .verify(&self.provider, end_entity, intermediates, server_name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Accepts whatever certificate the peer has.
#[derive(Debug)]
pub struct AnyCertificate;

impl Chain for AnyCertificate {
    fn verify(
        &self,
        _provider: &CryptoProvider,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _now: UnixTime,
    ) -> Result<(), rustls::Error> {
        Ok(())
    }
}

/// Accepts what the other verifier would not, and says so.
#[derive(Debug)]
pub struct Trial {
    pub real: Arc<dyn ServerCertVerifier>,
    pub objection: Arc<Mutex<Option<String>>>,
}

impl Chain for Trial {
    fn verify(
        &self,
        _provider: &CryptoProvider,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let verified = self
            .real
            .verify_server_cert(end_entity, intermediates, name, &[], now);
        *self
            .objection
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = verified.err().map(|e| e.to_string());
        Ok(())
    }
}

/// Accepts what one of the TLSA records vouches for (RFC 7672 s. 3).
///
/// DANE-EE: the peer's certificate or key is the one named; its names, its time and its issuer
/// mean nothing. DANE-TA: the chain that the peer sends leads to the certificate or key named, and
/// the peer's certificate has one of the reference names.
#[derive(Debug)]
pub struct TlsaRecords(pub Arc<Dane>);

impl Chain for TlsaRecords {
    fn verify(
        &self,
        provider: &CryptoProvider,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let of_usage = |usage: u8| self.0.records.iter().filter(move |r| r.usage == usage);
        if of_usage(3).any(|record| matches(record, end_entity)) {
            return Ok(());
        }
        let anchors: Vec<_> = intermediates
            .iter()
            .filter(|certificate| of_usage(2).any(|record| matches(record, certificate)))
            .filter_map(|certificate| anchor_from_trusted_cert(certificate).ok())
            .collect();
        if anchors.is_empty() {
            return Err(mismatch(
                "the certificate is none of those of the TLSA records",
            ));
        }
        let parsed = EndEntityCert::try_from(end_entity)
            .map_err(|e| mismatch(&format!("the certificate can't be read: {e}")))?;
        parsed
            .verify_for_usage(
                provider.signature_verification_algorithms.all,
                &anchors,
                intermediates,
                now,
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|e| mismatch(&format!("no chain to the TLSA records' anchor: {e}")))?;
        let named = self.0.names.iter().any(|name| {
            ServerName::try_from(name.as_str())
                .is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
        });
        if named {
            Ok(())
        } else {
            let names = self.0.names.join(", ");
            Err(mismatch(&format!("the certificate is for none of {names}")))
        }
    }
}

/// Whether a certificate is the one that a record names.
fn matches(record: &Tlsa, certificate: &CertificateDer<'_>) -> bool {
    use aws_lc_rs::digest::{SHA256, SHA512, digest};
    let selected = match record.selector {
        0 => certificate.as_ref().to_vec(),
        // An anchor is the shortest way to the key of any certificate.
        1 => match anchor_from_trusted_cert(certificate) {
            Ok(anchor) => spki_for_anchor(&anchor).to_vec(),
            Err(_) => return false,
        },
        _ => return false,
    };
    match record.matching {
        0 => selected == record.data,
        1 => digest(&SHA256, &selected).as_ref() == record.data,
        2 => digest(&SHA512, &selected).as_ref() == record.data,
        _ => false,
    }
}

#[derive(Debug)]
struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

fn mismatch(why: &str) -> rustls::Error {
    let error = OtherError(Arc::new(Mismatch(why.to_owned())));
    rustls::Error::InvalidCertificate(CertificateError::Other(error))
}
