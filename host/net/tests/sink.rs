//! The HTTP sink against a real server: what it sends, and what it makes of each answer.

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_net::clock::OsClock;
use tidegate_net::sink::{Credential, HttpSink, HttpSinkConfig, Scheme, Target};
use tidegate_net::smtp::TrustAnchors;
use tidegate_queue::ports::{Again, ExportBatch, Payload, Sink, SinkError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{certificate, dns, dns_at, no_dns};

/// Answers each request with the next of its texts and closes where there is none; keeps what came.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

impl Server {
    async fn start(answers: &[&str]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server {
            url: format!("http://{}/in?k=1", listener.local_addr().unwrap()),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let mut answers: Vec<String> = answers.iter().rev().map(|a| (*a).to_owned()).collect();
        let (requests, connections) = (server.requests.clone(), server.connections.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                *connections.lock().unwrap() += 1;
                while let Some(request) = read(&mut stream).await {
                    requests.lock().unwrap().push(request);
                    let Some(answer) = answers.pop() else { break };
                    let written = stream.write_all(answer.as_bytes()).await;
                    if written.is_err() || answer.contains("Connection: close") {
                        break;
                    }
                }
            }
        });
        server
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Head and body of a request.
async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.to_lowercase();
    let length = length.split("content-length: ").nth(1)?;
    let length: usize = length.split("\r\n").next()?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(head + &String::from_utf8_lossy(&body))
}

fn config(url: &str) -> HttpSinkConfig {
    HttpSinkConfig {
        name: "crm".to_owned(),
        target: Target::parse(url).unwrap(),
        headers: vec![tidegate_net::sink::header("X-Team: mail").unwrap()],
        credential: None,
        signing_key: None,
        timeout: Duration::from_secs(20),
        trust_anchors: TrustAnchors::WebPki,
        allow_private: true,
    }
}

fn sink(config: HttpSinkConfig) -> HttpSink {
    HttpSink::new(config, no_dns(), Arc::new(OsClock)).unwrap()
}

fn batch(bodies: &[&str]) -> ExportBatch {
    ExportBatch {
        exporter: "crm".to_owned(),
        first: 4,
        last: 9,
        payloads: bodies
            .iter()
            .map(|body| Payload {
                body: (*body).to_owned().into_bytes().into(),
                content_type: "application/json".to_owned(),
            })
            .collect(),
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn told(server: &Server) -> SinkError {
    sink(config(&server.url))
        .deliver(batch(&["{}"]))
        .await
        .unwrap_err()
}

#[tokio::test]
async fn each_body_is_a_request_over_one_connection() {
    let server = Server::start(&[OK, OK, OK]).await;
    let secret = Arc::new(Mutex::new("first".to_owned()));
    let reading = secret.clone();
    let mut config = config(&server.url);
    config.credential = Some(Credential {
        header: "Authorization".parse().unwrap(),
        scheme: Scheme::Bearer,
        secret: Arc::new(move || Ok(reading.lock().unwrap().clone())),
    });
    config.signing_key = Some(Arc::new(|| Ok("key".to_owned())));
    let sink = sink(config);
    sink.deliver(batch(&["{1}", "{2}"])).await.unwrap();
    *secret.lock().unwrap() = "second".to_owned();
    sink.deliver(batch(&["{1}"])).await.unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(*server.connections.lock().unwrap(), 1);
    let authority = server.url.split('/').nth(2).unwrap();
    for request in &requests {
        assert!(
            request.starts_with("POST /in?k=1 HTTP/1.1\r\n"),
            "{request}"
        );
        for field in [
            &format!("host: {authority}\r\n"),
            "content-type: application/json\r\n",
            "x-team: mail\r\n",
            "idempotency-key: crm-4-9-",
            "webhook-id: crm-4-9-",
            "webhook-timestamp: ",
            "webhook-signature: v1,",
        ] {
            assert!(request.contains(field), "{field} in {request}");
        }
    }
    let key = |request: &str| {
        let from = request.find("idempotency-key: ").unwrap();
        request[from..].lines().next().unwrap().to_owned()
    };
    assert_ne!(key(&requests[0]), key(&requests[1]));
    assert_eq!(key(&requests[0]), key(&requests[2]), "the same again");
    assert!(requests[0].contains("authorization: Bearer first\r\n"));
    assert!(requests[2].contains("authorization: Bearer second\r\n"));
}

#[tokio::test]
async fn a_kept_connection_that_is_gone_is_replaced_at_once() {
    let closing = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let server = Server::start(&[closing]).await;
    let sink = sink(config(&server.url));
    sink.deliver(batch(&["{}"])).await.unwrap();
    // No answer is left: the server closes after it has the request.
    let error = sink.deliver(batch(&["{}"])).await.unwrap_err();
    assert_eq!(error.again, Again::After(None));
    assert_eq!(*server.connections.lock().unwrap(), 2, "{error}");
}

#[tokio::test]
async fn the_second_body_is_not_sent_after_the_first_was_refused() {
    let refused = "HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nno:x";
    let server = Server::start(&[refused, OK]).await;
    let done = sink(config(&server.url))
        .deliver(batch(&["{1}", "{2}"]))
        .await;
    let error = done.unwrap_err();
    assert_eq!(error.again, Again::Never);
    assert!(error.to_string().contains("answered 400 no:x"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn what_may_pass_is_told_with_the_wait_that_was_asked_for() {
    let busy = "HTTP/1.1 429 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
    let error = told(&Server::start(&[busy]).await).await;
    assert_eq!(error.again, Again::After(Some(Duration::from_secs(7))));
    let cut = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{";
    let error = told(&Server::start(&[cut]).await).await;
    assert_eq!(error.again, Again::After(None));
    assert!(error.to_string().contains("can't be read"), "{error}");
    let endless = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n{}",
        "x".repeat(5_000_000)
    );
    let error = told(&Server::start(&[&endless]).await).await;
    assert_eq!(error.again, Again::After(None), "{error}");
    let rubbish = told(&Server::start(&["220 mail.example ESMTP\r\n\r\n"]).await).await;
    assert_eq!(rubbish.again, Again::After(None), "{rubbish}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(&format!("http://{}/", listener.local_addr().unwrap()));
    config.timeout = Duration::from_millis(300);
    let error = sink(config).deliver(batch(&["{}"])).await.unwrap_err();
    assert!(
        error.to_string().contains("no answer within 0.3 s"),
        "{error}"
    );
}

#[tokio::test]
async fn addresses_and_certificates_that_will_not_do_get_no_request() {
    let server = Server::start(&[OK]).await;
    let mut near = config(&server.url.replace("http://", "https://"));
    near.allow_private = false;
    let error = sink(near).deliver(batch(&["{}"])).await.unwrap_err();
    assert!(error.to_string().contains("allow_private"), "{error}");
    // In clear to the world: never.
    let dns = dns::Dns::start().await;
    dns.ip("crm.example", "192.0.2.1");
    let far = config("http://crm.example/");
    let far = HttpSink::new(far, dns_at(dns.address), Arc::new(OsClock)).unwrap();
    let error = far.deliver(batch(&["{}"])).await.unwrap_err();
    assert!(error.to_string().contains("use https"), "{error}");
    // A certificate that nothing vouches for.
    let (tls, _) = certificate(&["127.0.0.1"]);
    let https = common::https::Https::start(tls).await;
    let untrusted = config(&format!("https://{}/", https.address));
    let error = sink(untrusted).deliver(batch(&["{}"])).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(https.requests().is_empty() && server.requests().is_empty());
}

#[tokio::test]
async fn a_secret_that_can_not_be_read_sends_nothing() {
    let server = Server::start(&[OK]).await;
    let mut config = config(&server.url);
    config.credential = Some(Credential {
        header: "Authorization".parse().unwrap(),
        scheme: Scheme::Plain,
        secret: Arc::new(|| Err("others than its owner can read it".to_owned())),
    });
    let error = sink(config).deliver(batch(&["{}"])).await.unwrap_err();
    assert_eq!(error.again, Again::After(None));
    assert!(error.to_string().contains("secret_file: others"), "{error}");
    assert!(server.requests().is_empty());
}
