//! An intake that remembers, a listener over it, and a client that checks replies.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use argon2::password_hash::PasswordHasher;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tidegate_mail::{Enhanced, IdSource, MessageId, Reply};
use tidegate_net::clock::OsClock;
use tidegate_net::submission::{
    ListenerConfig, ListenerMode, Submission, SubmissionConfig, SubmissionStats,
};
use tidegate_queue::directory::{Credential, Tenant};
use tidegate_queue::ports::ContentRef;
use tidegate_queue::{
    Clock, Content, ContentWriter, Directory, Fut, Intake, StoreError, StoreResult,
};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A submission with its whole content, and whether that was streamed.
pub struct Taken {
    pub submission: tidegate_queue::Submission,
    pub content: String,
    pub streamed: bool,
}

#[derive(Default)]
pub struct Remembering {
    pub taken: Mutex<Vec<Taken>>,
    pub spooled: Arc<Mutex<Vec<u8>>>,
    pub full: bool,
    pub refusal: Mutex<Option<Reply>>,
}

pub struct Writer {
    pub into: Arc<Mutex<Vec<u8>>>,
    pub full: bool,
}

impl ContentWriter for Writer {
    fn append(&mut self, chunk: Bytes) -> Fut<'_, StoreResult<()>> {
        Box::pin(async move {
            assert!(chunk.len() <= 512 * 1024, "{}", chunk.len());
            if self.full {
                return Err(StoreError::Full("test".into()));
            }
            self.into.lock().unwrap().extend_from_slice(&chunk);
            Ok(())
        })
    }

    fn finish(self: Box<Self>) -> Fut<'static, StoreResult<Content>> {
        Box::pin(async move {
            Ok(Content::Spooled {
                at: ContentRef("spool".into()),
                size: self.into.lock().unwrap().len() as u64,
            })
        })
    }
}

impl Intake for Remembering {
    fn new_id(&self) -> MessageId {
        static IDS: IdSource = IdSource::new(1);
        IDS.next(OsClock.now())
    }

    fn content_writer(&self) -> Fut<'_, StoreResult<Box<dyn ContentWriter>>> {
        self.spooled.lock().unwrap().clear();
        let writer = Writer {
            into: self.spooled.clone(),
            full: self.full,
        };
        Box::pin(async { Ok(Box::new(writer) as Box<dyn ContentWriter>) })
    }

    fn submit(&self, submission: tidegate_queue::Submission) -> Fut<'_, Reply> {
        Box::pin(async move {
            let (content, streamed) = match &submission.content {
                Content::Memory(bytes) => (bytes.to_vec(), false),
                Content::Spooled { size, .. } => {
                    let bytes = self.spooled.lock().unwrap().clone();
                    assert_eq!(bytes.len() as u64, *size);
                    (bytes, true)
                }
            };
            let id = submission.id;
            self.taken.lock().unwrap().push(Taken {
                submission,
                content: String::from_utf8(content).unwrap(),
                streamed,
            });
            Reply::new(250, Enhanced::new(2, 0, 0), format!("queued as {id}"))
        })
    }

    fn refusal(&self) -> Option<Reply> {
        self.refusal.lock().unwrap().clone()
    }
}

pub fn tenant(id: &str, domain: &str, suspended: bool) -> Tenant {
    Tenant {
        id: id.into(),
        domains: vec![domain.into()],
        relays: vec![],
        suspended,
        bulk_suspended: false,
        wording: None,
        record_inputs: true,
        bulk_quota: None,
    }
}

pub fn credential(user: &str, tenant: &str, password: &str) -> Credential {
    // Cheap parameters: what is tested is not the cost.
    let argon = argon2::Argon2::from(argon2::Params::new(8, 1, 1, None).unwrap());
    let hash = argon
        .hash_password_with_salt(password.as_bytes(), b"saltsaltsalt")
        .unwrap();
    Credential {
        user: user.into(),
        tenant: tenant.into(),
        hash: hash.to_string(),
        bulk: user == "bulk",
    }
}

pub fn directory(password: &str) -> Directory {
    Directory::new(
        vec![
            tenant("acme", "acme.example", false),
            tenant("late", "late.example", true),
        ],
        vec![
            credential("crm", "acme", password),
            credential("bulk", "acme", password),
            credential("late", "late", password),
        ],
        vec![],
        vec![],
    )
}

pub struct Server {
    pub addresses: Vec<SocketAddr>,
    pub intake: Arc<Remembering>,
    pub directory: Arc<ArcSwap<Directory>>,
    pub stats: Arc<SubmissionStats>,
    pub certificate: CertificateDer<'static>,
    pub stop: Option<oneshot::Sender<()>>,
    pub running: JoinHandle<()>,
}

/// STARTTLS, implicit TLS, clear with AUTH, and clear with repair.
pub fn start(intake: Remembering, change: impl FnOnce(&mut SubmissionConfig)) -> Server {
    let made = rcgen::generate_simple_self_signed(vec!["mx.example".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let listener = |mode, repair_line_ends| ListenerConfig {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        mode,
        allow_plain_auth: mode == ListenerMode::Plain,
        repair_line_ends,
    };
    let mut config = SubmissionConfig {
        listeners: vec![
            listener(ListenerMode::StartTls, false),
            listener(ListenerMode::Implicit, false),
            listener(ListenerMode::Plain, false),
            listener(ListenerMode::Plain, true),
        ],
        hostname: "mx.example".into(),
        ..SubmissionConfig::default()
    };
    change(&mut config);
    let intake = Arc::new(intake);
    let directory = Arc::new(ArcSwap::from_pointee(directory("secret")));
    let submission = Submission::bind(
        config,
        Some(Arc::new(tls)),
        directory.clone(),
        Arc::new(OsClock),
    )
    .unwrap();
    let (stop, stopped) = oneshot::channel();
    Server {
        addresses: submission.local_addrs().unwrap(),
        intake: intake.clone(),
        directory,
        stats: submission.stats(),
        certificate,
        stop: Some(stop),
        running: tokio::spawn(submission.run(intake, async {
            let _ = stopped.await;
        })),
    }
}

impl Server {
    pub async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.running.await.unwrap();
    }

    pub fn taken(&self) -> Vec<Taken> {
        std::mem::take(&mut self.intake.taken.lock().unwrap())
    }

    pub async fn connect(&self, listener: usize) -> Client<TcpStream> {
        let tcp = TcpStream::connect(self.addresses[listener]).await.unwrap();
        Client(BufReader::new(tcp))
    }

    pub async fn handshake(
        &self,
        tcp: TcpStream,
    ) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("mx.example").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        Client(BufReader::new(connector.connect(name, tcp).await.unwrap()))
    }

    /// In clear, greeted and logged in.
    pub async fn logged_in(&self, user: &str) -> Client<TcpStream> {
        let mut client = self.connect(2).await;
        client.expect("220").await;
        client.login(user, "secret").await;
        client
    }
}

pub struct Client<S>(pub BufReader<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// A whole reply, lines joined; empty at the end of the connection.
    pub async fn reply(&mut self) -> String {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).await.unwrap();
            if line.is_empty() {
                return text;
            }
            let last = line.as_bytes()[3] == b' ';
            text += &line;
            if last {
                return text;
            }
        }
    }

    pub async fn expect(&mut self, start: &str) -> String {
        let reply = self.reply().await;
        assert!(reply.starts_with(start), "wanted {start}, got {reply:?}");
        reply
    }

    pub async fn command(&mut self, line: &str, start: &str) -> String {
        self.send(&format!("{line}\r\n")).await;
        self.expect(start).await
    }

    pub async fn login(&mut self, user: &str, password: &str) {
        self.command("EHLO client.example", "250").await;
        let response = STANDARD.encode(format!("\0{user}\0{password}"));
        self.command(&format!("AUTH PLAIN {response}"), "235").await;
    }

    pub async fn begin(&mut self) {
        self.command("MAIL FROM:<crm@acme.example>", "250").await;
        self.command("RCPT TO:<bob@example.org>", "250").await;
        self.command("DATA", "354").await;
    }

    pub async fn closed(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}
