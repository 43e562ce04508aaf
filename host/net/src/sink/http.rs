//! [`HttpSink`] posts each body of a batch to an HTTP endpoint and returns once all of them were
//! answered with success. One request after the other, over a connection that is kept.
//!
//! Each request carries an idempotency key, and the same key when it comes again. What a crash or a
//! cut connection leaves: the batch is posted again, though the receiver may have it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
};
use hyper::{Request, Response};
use tidegate_queue::ports::{Clock, ExportBatch, Fut, Payload, Sink, SinkError};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use super::answer::{self, Objection};
use super::sign;
use super::target::{Credential, Target};
use crate::http::{Connection, body, connector};
use crate::resolver::DnsResolver;
use crate::resolver::address::{is_foreign, is_public};
use crate::smtp::{TlsSetupError, TrustAnchors};

/// Reads a secret; the error is for people.
pub type Secret = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Octets of an answer that are read. A bulk API answers with some hundred for each event.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Where an [`HttpSink`] posts to, and how.
#[derive(Clone)]
pub struct HttpSinkConfig {
    /// Of the exporter.
    pub name: String,
    pub target: Target,
    /// Further fields of each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub credential: Option<Credential>,
    /// The keys of the signature, one a line.
    pub signing_key: Option<Secret>,
    /// For a request as a whole, with the connection.
    pub timeout: Duration,
    pub trust_anchors: TrustAnchors,
    /// The receiver may be at a loopback or private address, and be talked to in clear there.
    pub allow_private: bool,
}

/// An HTTP endpoint.
pub struct HttpSink {
    config: HttpSinkConfig,
    tls: TlsConnector,
    resolver: Arc<DnsResolver>,
    clock: Arc<dyn Clock>,
    idle: Mutex<Option<Connection>>,
}

impl HttpSink {
    /// # Errors
    /// The trust anchors can't be used.
    pub fn new(
        config: HttpSinkConfig,
        resolver: Arc<DnsResolver>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TlsSetupError> {
        Ok(HttpSink {
            tls: connector(&config.trust_anchors)?,
            config,
            resolver,
            clock,
            idle: Mutex::new(None),
        })
    }

    async fn connect(&self) -> Result<Connection, String> {
        let target = &self.config.target;
        let found = self.resolver.host_addresses(&target.host).await;
        let found = found.map_err(|outcome| format!("{}: {}", target.host, outcome.text()))?;
        let allowed = |ip: &std::net::IpAddr| match (self.config.allow_private, target.tls) {
            (true, true) => true,
            // In clear to this machine or its network only.
            (true, false) => !is_public(*ip),
            (false, true) => is_foreign(*ip),
            (false, false) => false,
        };
        let usable: Vec<_> = found.into_iter().filter(allowed).collect();
        if usable.is_empty() {
            return Err(if target.tls {
                format!(
                    "{} has a loopback or private address, which allow_private would allow",
                    target.host
                )
            } else {
                format!(
                    "{} has a public address, and http is for near ones only: use https",
                    target.host
                )
            });
        }
        let peers = usable
            .into_iter()
            .map(|ip| SocketAddr::new(ip, target.port));
        let tls = target.tls.then_some(&self.tls);
        Connection::open(tls, &target.host, peers, self.config.timeout).await
    }

    fn request(
        &self,
        batch: &ExportBatch,
        payload: &Payload,
    ) -> Result<Request<Full<Bytes>>, Objection> {
        let key = sign::key(batch, payload);
        let kind = HeaderValue::from_str(&payload.content_type)
            .map_err(|_| Objection::never("the content type of a payload is none"))?;
        let mut request = Request::post(&self.config.target.path)
            .header(HOST, &self.config.target.authority)
            .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, kind)
            .header("idempotency-key", &key);
        for (name, value) in &self.config.headers {
            request = request.header(name, value);
        }
        if let Some(credential) = &self.config.credential {
            let value = credential.value();
            let value = value.map_err(|e| Objection::for_now(format!("secret_file: {e}")))?;
            request = request.header(&credential.header, value);
        }
        if let Some(keys) = &self.config.signing_key {
            let seconds = self.clock.now().as_millis().div_euclid(1000);
            let signature = keys()
                .and_then(|keys| sign::signature(&keys, &key, seconds, &payload.body))
                .map_err(|e| Objection::for_now(format!("signing_key_file: {e}")))?;
            request = request
                .header("webhook-id", &key)
                .header("webhook-timestamp", seconds)
                .header("webhook-signature", signature);
        }
        request
            .body(Full::new(payload.body.clone()))
            .map_err(|e| Objection::never(e.to_string()))
    }

    /// Over the connection that is kept; where that is gone, over a new one.
    async fn ask(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Connection), String> {
        let kept = self.idle.lock().await.take().filter(Connection::is_open);
        if let Some(mut connection) = kept
            && let Ok(response) = connection.ask(request.clone()).await
        {
            return Ok((response, connection));
        }
        let mut connection = self.connect().await?;
        let response = connection.ask(request).await;
        let response = response.map_err(|e| format!("{}: {e}", self.config.target.host))?;
        Ok((response, connection))
    }

    async fn post(&self, batch: &ExportBatch, payload: &Payload) -> Result<(), Objection> {
        let request = self.request(batch, payload)?;
        let exchange = async {
            let (response, connection) = self.ask(request).await?;
            let (head, incoming) = response.into_parts();
            let text = body(incoming, MAX_ANSWER).await;
            let text = text.map_err(|e| {
                let status = head.status.as_u16();
                format!("answered {status}, and the rest of it can't be read: {e}")
            })?;
            if connection.is_open() {
                *self.idle.lock().await = Some(connection);
            }
            Ok::<_, String>((head, text))
        };
        let done = tokio::time::timeout(self.config.timeout, exchange).await;
        let done = done.map_err(|_| {
            let seconds = self.config.timeout.as_secs_f32();
            Objection::for_now(format!("no answer within {seconds} s"))
        })?;
        let (head, text) = done.map_err(Objection::for_now)?;
        let field = |name| head.headers.get(name).and_then(|v| v.to_str().ok());
        let wait = answer::retry_after(field(RETRY_AFTER), self.clock.now());
        answer::read(head.status.as_u16(), field(LOCATION), wait, &text)
    }
}

impl Sink for HttpSink {
    fn deliver(&self, batch: ExportBatch) -> Fut<'_, Result<(), SinkError>> {
        Box::pin(async move {
            for payload in &batch.payloads {
                let posted = self.post(&batch, payload).await;
                posted.map_err(|objection| SinkError {
                    sink: self.config.name.clone(),
                    reason: format!("{}: {}", self.place(), objection.reason),
                    again: objection.again,
                })?;
            }
            Ok(())
        })
    }

    fn place(&self) -> String {
        self.config.target.origin()
    }

    fn knows_batches(&self) -> bool {
        true
    }
}
