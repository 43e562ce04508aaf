//! The file at `https://mta-sts.DOMAIN/.well-known/mta-sts.txt` (RFC 8461 s. 3.3): a verified
//! certificate, no redirects, plain text, bounded in size and time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::ServerName;
use tidegate_mail::sts::{MAX_POLICY, Policy};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Sts;
use crate::resolver::DnsConfig;
use crate::resolver::ask::Dns;
use crate::resolver::records::{addresses, fqdn};
use crate::smtp::{TlsSetupError, TrustAnchors, roots};

/// Addresses of a policy host that are tried.
const MAX_TRIES: usize = 3;

const PATH: &str = "/.well-known/mta-sts.txt";

pub(super) fn connector(anchors: &TrustAnchors) -> Result<TlsConnector, TlsSetupError> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsSetupError::new(error.to_string()))?
        .with_root_certificates(roots(anchors)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Fetches the policy of a domain. The error is for people.
pub(super) async fn fetch(
    sts: &Sts,
    dns: &Dns,
    config: &DnsConfig,
    domain: &str,
) -> Result<Policy, String> {
    let fetching = async {
        let host = format!("mta-sts.{domain}");
        let name = fqdn(&host).ok_or("the policy host's name is none")?;
        let found = addresses(dns, name, config, config.allow_private).await;
        if found.usable.is_empty() {
            return Err(match found.failed {
                Some(detail) => format!("{host}: {detail}"),
                None if found.forbidden => format!("{host} has an address that is not allowed"),
                None => format!("{host} has no address"),
            });
        }
        let mut last = String::new();
        for ip in found.usable.into_iter().take(MAX_TRIES) {
            match connect(sts, &host, ip).await {
                Ok(stream) => return get(&host, stream).await,
                Err(reason) => last = format!("{host} [{ip}]: {reason}"),
            }
        }
        Err(last)
    };
    match tokio::time::timeout(sts.config.timeout, fetching).await {
        Ok(fetched) => fetched,
        Err(_) => Err("the policy host did not answer in time".to_owned()),
    }
}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(sts: &Sts, host: &str, ip: IpAddr) -> Result<Tls, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let stream = TcpStream::connect(SocketAddr::new(ip, sts.config.port))
        .await
        .map_err(|e| e.to_string())?;
    let tls = sts.tls.connect(name, stream);
    tls.await.map_err(|e| e.to_string())
}

async fn get(host: &str, stream: Tls) -> Result<Policy, String> {
    let failed = |error: hyper::Error| format!("{host}: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let asking = async move {
        let request = Request::get(PATH)
            .header(HOST, host)
            .header(ACCEPT, "text/plain")
            .header(USER_AGENT, "tidegate")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(failed)?;
        // RFC 8461 s. 3.3: a redirect is not followed; anything but 200 is no policy.
        if response.status() != hyper::StatusCode::OK {
            return Err(format!("{host} answered {}", response.status().as_u16()));
        }
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|v| v.to_str().ok()).unwrap_or_default();
        let media = kind.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("text/plain") {
            return Err(format!("{host} answered with `{media}`, not text/plain"));
        }
        let body = Limited::new(response.into_body(), MAX_POLICY)
            .collect()
            .await;
        let body = body.map_err(|error| format!("{host}: {error}"))?.to_bytes();
        Policy::parse(&body).map_err(|error| format!("{host}: {error}"))
    };
    // The connection has to be driven while the exchange goes on, and ends with it.
    tokio::pin!(asking);
    tokio::pin!(connection);
    let mut open = true;
    loop {
        tokio::select! {
            done = &mut asking => return done,
            _ = &mut connection, if open => open = false,
        }
    }
}
