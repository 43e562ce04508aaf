//! An HTTP/1.1 client over connections of our own: the resolver, the check of addresses, the
//! certificates and the time-outs are the gateway's. It follows no redirect and keeps no cookie.
//!
//! Knows nothing of what is asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::smtp::{TlsSetupError, TrustAnchors, roots};

/// Addresses of a host that are tried, each for a quarter of the time that there is: where one
/// family does not work, as IPv6 that leads nowhere, the other is reached, and the last quarter is
/// left for the exchange.
const MAX_TRIES: u32 = 3;

/// TLS for HTTP: verified, always.
pub(crate) fn connector(anchors: &TrustAnchors) -> Result<TlsConnector, TlsSetupError> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsSetupError::new(error.to_string()))?
        .with_root_certificates(roots(anchors)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A connection to a server. Dropping it closes it.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects to the first of these addresses that takes it; `tls`: none for plain HTTP;
    /// `limit`: for all that the connection is wanted for. The error is for people.
    pub async fn open(
        tls: Option<&TlsConnector>,
        host: &str,
        peers: impl IntoIterator<Item = SocketAddr>,
        limit: Duration,
    ) -> Result<Self, String> {
        let mut last = format!("{host} has no address");
        for peer in peers.into_iter().take(MAX_TRIES as usize) {
            let connecting = Connection::at(tls, host, peer);
            let reason = match timeout(limit / (MAX_TRIES + 1), connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(reason)) => reason,
                Err(_) => "no connection in time".to_owned(),
            };
            last = format!("{host} [{peer}]: {reason}");
        }
        Err(last)
    }

    async fn at(tls: Option<&TlsConnector>, host: &str, peer: SocketAddr) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
        let stream = TcpStream::connect(peer).await.map_err(|e| e.to_string())?;
        // A request goes out whole; there is nothing to wait for.
        let _ = stream.set_nodelay(true);
        match tls {
            Some(tls) => {
                let stream = tls.connect(name, stream).await.map_err(|e| e.to_string())?;
                Connection::over(stream).await
            }
            None => Connection::over(stream).await,
        }
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, String> {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        // It has to be driven while the exchange goes on.
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Connection { sender, driver })
    }

    /// Whether another request may be sent, as far as is known.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request; the answer's body is still to be read, with [`body`].
    pub async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }
}

/// Reads a body of at most `limit` octets.
pub(crate) async fn body(body: Incoming, limit: usize) -> Result<Bytes, String> {
    let read = Limited::new(body, limit).collect().await;
    read.map(|body| body.to_bytes()).map_err(|e| e.to_string())
}
