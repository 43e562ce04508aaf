//! STARTTLS, implicit TLS, what is verified and what happens when it breaks.

use std::sync::Arc;

use tidegate_mail::TlsInfo;
use tidegate_net::smtp::{Smtp, SmtpConfig, TrustAnchors};
use tidegate_queue::ports::{Contact, HandOff, Job, Target, TlsMode};

use crate::common::peer::{Do, Peer, Turn};
use crate::common::{SHORT, certificate, config, deliver, endpoint, job, smtp, summary};

const STARTTLS: &str = "250-peer.example\n250-PIPELINING\n250 STARTTLS";

fn offers(turn: &Turn) -> Option<Do> {
    (turn.is("EHLO") && !turn.tls).then_some(Do::Say(STARTTLS))
}

fn tls(done: &HandOff) -> Option<TlsInfo> {
    done.results[0].hop.tls.clone()
}

/// A client that trusts this certificate.
fn trusting(pem: &str, port: u16) -> Smtp {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("roots.pem");
    std::fs::write(&file, pem).unwrap();
    smtp(SmtpConfig {
        trust_anchors: TrustAnchors::File(file),
        ..config(port)
    })
}

fn to(port: u16, mode: TlsMode) -> Job {
    let mut job = job(&["a@x.example"]);
    job.target = Target::Endpoint(Arc::new(endpoint(port, mode)));
    job
}

#[tokio::test]
async fn opportunistic_takes_any_certificate_and_resumes_sessions() {
    let (server, _) = certificate(&["another.example"]);
    let peer = Peer::with_tls(server, offers).await;
    let smtp = smtp(config(peer.port()));
    for _ in 0..2 {
        let mut job = job(&["a@x.example"]);
        job.messages_per_connection = 1;
        let done = deliver(&smtp, job).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
        let info = tls(&done).unwrap();
        assert_eq!(
            (info.version.as_str(), info.verified.as_str()),
            ("TLSv1.3", "none")
        );
        assert!(info.cipher.starts_with("TLS_"), "{info:?}");
    }
    assert_eq!(peer.count("resumed"), 1, "{:?}", peer.commands());
    assert_eq!(
        peer.commands()[..4],
        [
            "0 EHLO gate.example",
            "0 STARTTLS",
            "0s EHLO gate.example",
            "0s MAIL FROM:<crm@sender.example> SIZE=23",
        ]
    );
}

#[tokio::test]
async fn broken_tls_is_retried_in_clear_on_a_new_connection_and_remembered() {
    let (server, _) = certificate(&["mx1.example"]);
    // The last one makes the handshake and then goes away.
    for does in [Do::BreakTls, Do::Close, Do::Silence, Do::StartTls] {
        let peer = Peer::with_tls(server.clone(), move |t| match t {
            t if t.is("STARTTLS") => Some(does.clone()),
            t if t.tls => Some(Do::Close),
            t => offers(t),
        })
        .await;
        let mut config = config(peer.port());
        config.timeouts.ehlo = SHORT;
        let smtp = smtp(config);
        let mut one = job(&["a@x.example"]);
        one.messages_per_connection = 1;
        let done = deliver(&smtp, one.clone()).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
        assert_eq!(tls(&done), None);
        assert_eq!((peer.connections(), peer.count("STARTTLS")), (2, 1));
        deliver(&smtp, one).await;
        assert_eq!((peer.connections(), peer.count("STARTTLS")), (3, 1));
    }
}

#[tokio::test]
async fn starttls_refused() {
    let peer = Peer::start(|t| match t {
        t if t.is("STARTTLS") => Some(Do::Say("454 4.7.0 TLS not available")),
        t => offers(t),
    })
    .await;
    let smtp = smtp(config(peer.port()));
    let done = deliver(&smtp, job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    assert_eq!((peer.connections(), tls(&done)), (1, None));
    let done = deliver(&smtp, to(peer.port(), TlsMode::StartTls)).await;
    assert_eq!(summary(&done), ["Temporary starttls 4.7.5 TlsRequired"]);
    assert_eq!(done.results[0].outcome.reply.as_ref().unwrap().code, 454);
    assert_eq!(done.contact, Contact::Failed);
}

#[tokio::test]
async fn bytes_behind_the_reply_to_starttls_are_an_attack() {
    let peer = Peer::start(|t| match t {
        t if t.is("STARTTLS") => Some(Do::Inject),
        t => offers(t),
    })
    .await;
    let done = deliver(&smtp(config(peer.port())), job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Temporary starttls 4.7.5 TlsInjection"]);
    assert_eq!(done.contact, Contact::Failed);
    assert_eq!(peer.connections(), 1, "and not a reason to send in clear");
}

#[tokio::test]
async fn verified_modes_want_a_good_certificate() {
    let (good, pem) = certificate(&["127.0.0.1"]);
    let (other, other_pem) = certificate(&["smtp.example"]);
    let delivered = "Delivered dot 2.0.0 250";
    let untrusted = "Temporary starttls 4.7.5 TlsUntrusted";
    for (server, roots, expected) in [
        (&good, &pem, delivered),
        (&good, &other_pem, untrusted),
        // Trusted, and for another name.
        (&other, &other_pem, untrusted),
    ] {
        let peer = Peer::with_tls(server.clone(), offers).await;
        let smtp = trusting(roots, peer.port());
        let done = deliver(&smtp, to(peer.port(), TlsMode::StartTls)).await;
        assert_eq!(summary(&done), [expected]);
        if expected == delivered {
            assert_eq!(tls(&done).unwrap().verified, "webpki");
        } else {
            assert_eq!(done.contact, Contact::Failed);
            assert_eq!(peer.count("MAIL"), 0);
            assert_eq!(peer.connections(), 1, "not retried in clear");
        }
    }
    let plain = Peer::start(|_| None).await;
    let done = deliver(&trusting(&pem, 1), to(plain.port(), TlsMode::StartTls)).await;
    assert_eq!(summary(&done), ["Temporary starttls 4.7.5 TlsRequired"]);
    assert_eq!(plain.count("MAIL"), 0);
}

#[tokio::test]
async fn implicit_tls() {
    let (server, pem) = certificate(&["127.0.0.1"]);
    // A server that begins with the handshake: STARTTLS without the words.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let inner = Peer::start(|_| None).await;
    let inner_address = inner.address;
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(server);
        while let Ok((stream, _)) = listener.accept().await {
            let mut outer = acceptor.accept(stream).await?;
            let mut inner = tokio::net::TcpStream::connect(inner_address).await?;
            tokio::io::copy_bidirectional(&mut outer, &mut inner).await?;
        }
        std::io::Result::Ok(())
    });
    let done = deliver(&trusting(&pem, 1), to(port, TlsMode::Implicit)).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    assert_eq!(tls(&done).unwrap().verified, "webpki");
    assert_eq!(inner.messages().len(), 1);

    let clear = Peer::start(|_| None).await;
    let done = deliver(&trusting(&pem, 1), to(clear.port(), TlsMode::Implicit)).await;
    assert_eq!(summary(&done), ["Temporary connect 4.7.5 TlsFailed"]);
    assert_eq!(clear.count("MAIL"), 0);
}

#[tokio::test]
async fn requiretls_is_kept_or_the_message_is_not_sent() {
    let unsupported = "Permanent local 5.7.30 RequireTlsUnsupported";
    let (server, pem) = certificate(&["mx1.example"]);
    let requiring = || {
        let mut job = job(&["a@x.example"]);
        job.requiretls = true;
        let Target::Mx(destination) = &mut job.target else {
            panic!("{:?}", job.target);
        };
        // As DNSSEC or a policy would say.
        Arc::make_mut(destination).hosts[0].authentic = true;
        job
    };
    let able = |t: &Turn| match t {
        t if t.is("EHLO") && t.tls => Some(Do::Say("250-peer.example\n250 REQUIRETLS")),
        t => offers(t),
    };
    let peer = Peer::with_tls(server.clone(), able).await;
    let done = deliver(&trusting(&pem, peer.port()), requiring()).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    assert!(
        peer.commands()[3].ends_with("> REQUIRETLS"),
        "{:?}",
        peer.commands()
    );
    // A certificate nobody vouches for.
    let done = deliver(&smtp(config(peer.port())), requiring()).await;
    let unprotected = "Permanent starttls 5.7.10 RequireTlsUnprotected";
    assert_eq!(summary(&done), [unprotected]);

    let unable = Peer::with_tls(server, offers).await;
    let done = deliver(&trusting(&pem, unable.port()), requiring()).await;
    assert_eq!(summary(&done), [unsupported]);
    let plain = Peer::start(|_| None).await;
    let done = deliver(&trusting(&pem, plain.port()), requiring()).await;
    assert_eq!(summary(&done), [unprotected]);
    assert_eq!(unable.count("MAIL") + plain.count("MAIL"), 0);
}

#[test]
fn bad_trust_anchors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("empty.pem");
    std::fs::write(&file, "nothing\n").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    for file in [file, dir.path().join("missing.pem")] {
        let config = SmtpConfig {
            trust_anchors: TrustAnchors::File(file.clone()),
            ..config(25)
        };
        let clock = Arc::new(tidegate_net::clock::OsClock);
        let error = Smtp::new(config, crate::common::no_dns(), clock)
            .err()
            .unwrap();
        assert!(
            error.to_string().contains(file.to_str().unwrap()),
            "{error}"
        );
    }
}
