//! The same misbehaviour at every stage of a session, and what a server may do slowly or oddly and
//! still get the mail.

use std::time::Duration;

use tidegate_net::smtp::{SmtpConfig, TrustAnchors};
use tidegate_queue::ports::{Contact, Target, TlsMode};

use crate::common::peer::{Do, Peer, Turn};
use crate::common::{SHORT, certificate, config, deliver, endpoint, job, smtp, summary};

const LOCK_STEP: &str = "250-peer.example\n250 8BITMIME";
const STARTTLS: &str = "250-peer.example\n250-PIPELINING\n250 STARTTLS";

/// What becomes of a message for two where the server does this at that stage, with and
/// without PIPELINING; the connection is not used again.
async fn at(stage: &'static str, does: Do, change: impl Fn(&mut SmtpConfig)) -> Vec<String> {
    let mut ends = Vec::new();
    for pipelining in [true, false] {
        let does = does.clone();
        let (tls, _) = certificate(&["mx1.example"]);
        let peer = Peer::with_tls(tls, move |t: &Turn| {
            let here = t.said == stage || stage.len() > 1 && t.said.starts_with(stage);
            if here {
                return Some(does.clone());
            }
            if t.is("EHLO") && stage == "STARTTLS" {
                return Some(Do::Say(STARTTLS));
            }
            (t.is("EHLO") && !pipelining).then_some(Do::Say(LOCK_STEP))
        })
        .await;
        let mut config = config(peer.port());
        change(&mut config);
        let smtp = smtp(config);
        let done = deliver(&smtp, job(&["a@x.example", "b@x.example"])).await;
        assert_eq!(smtp.idle_connections(), 0, "{stage} {:?}", summary(&done));
        ends.extend(summary(&done));
    }
    ends.dedup();
    ends
}

#[tokio::test]
async fn a_421_ends_the_session_at_any_stage_and_blames_nobody() {
    for (stage, name) in [
        ("connect", "banner"),
        ("EHLO", "ehlo"),
        ("STARTTLS", "starttls"),
        ("MAIL", "mail"),
        ("RCPT", "rcpt"),
        ("DATA", "data"),
        (".", "dot"),
    ] {
        for does in [
            Do::Say("421 4.3.2 closing"),
            Do::SayAndClose("421 4.3.2 closing"),
        ] {
            let expected = format!("Temporary {name} 4.3.2 421");
            assert_eq!(at(stage, does, |_| {}).await, [expected]);
        }
    }
}

#[tokio::test]
async fn a_code_out_of_place_ends_the_session_and_is_held_against_the_server() {
    for (stage, says, expected) in [
        (
            "connect",
            "354 go on",
            "Temporary banner 4.5.0 GarbledReply",
        ),
        ("EHLO", "354 go on", "Temporary ehlo 4.5.0 GarbledReply"),
        ("MAIL", "354 go on", "Temporary mail 4.5.0 GarbledReply"),
        ("RCPT", "354 go on", "Temporary rcpt 4.5.0 GarbledReply"),
        ("DATA", "250 taken", "Temporary data 4.5.0 GarbledReply"),
        (".", "354 go on", "Uncertain dot 4.5.0 GarbledReply"),
    ] {
        assert_eq!(
            at(stage, Do::Say(says), |_| {}).await,
            [expected],
            "{stage}"
        );
    }
}

#[tokio::test]
async fn garbage_and_endless_replies_are_held_against_the_server_at_any_stage() {
    let endless = || "250-more\r\n".repeat(101).into_bytes();
    for (stage, expected) in [
        ("connect", "Temporary banner 4.5.0 GarbledReply"),
        ("EHLO", "Temporary ehlo 4.5.0 GarbledReply"),
        ("MAIL", "Temporary mail 4.5.0 GarbledReply"),
        ("RCPT", "Temporary rcpt 4.5.0 GarbledReply"),
        ("DATA", "Temporary data 4.5.0 GarbledReply"),
        (".", "Uncertain dot 4.5.0 GarbledReply"),
    ] {
        for bytes in [
            b"\x16\x03\x01\0\r\n".to_vec(),
            b"hello there\r\n".to_vec(),
            b"25\r\n".to_vec(),
            b"999 beyond\r\n".to_vec(),
            endless(),
        ] {
            let ends = at(stage, Do::Bytes(bytes.clone()), |_| {}).await;
            assert_eq!(ends, [expected], "{stage} {bytes:?}");
        }
    }
}

#[tokio::test]
async fn a_drip_gains_no_time_at_any_stage() {
    let slowly = "250-slowly and on and on and on and on and on and on and on";
    for (stage, expected) in [
        ("connect", "Temporary banner 4.4.2 Timeout"),
        ("EHLO", "Temporary ehlo 4.4.2 Timeout"),
        ("MAIL", "Temporary mail 4.4.2 Timeout"),
        ("DATA", "Temporary data 4.4.2 Timeout"),
        (".", "Uncertain dot 4.4.2 Timeout"),
    ] {
        let drip = Do::Drip(slowly, Duration::from_millis(80));
        let ends = at(stage, drip, |config| {
            config.timeouts.banner = SHORT;
            config.timeouts.ehlo = SHORT;
            config.timeouts.mail = SHORT;
            config.timeouts.data = SHORT;
            config.timeouts.dot = SHORT;
        })
        .await;
        assert_eq!(ends, [expected], "{stage}");
    }
}

#[tokio::test]
async fn a_connection_that_nobody_answers_times_out() {
    // A listener whose queue is full: the system does not answer any more.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    loop {
        let connecting = tokio::net::TcpStream::connect(address);
        match tokio::time::timeout(SHORT, connecting).await {
            Ok(connected) => waiting.push(connected.unwrap()),
            Err(_) => break,
        }
        assert!(waiting.len() < 100, "its queue never fills");
    }
    let mut config = config(address.port());
    config.timeouts.connect = SHORT;
    let done = deliver(&smtp(config), job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Temporary connect 4.4.1 ConnectTimeout"]);
    assert_eq!(done.contact, Contact::Failed);
}

#[tokio::test]
async fn what_is_slow_or_odd_and_still_right_gets_the_mail() {
    let slow = |text| Do::Drip(text, Duration::from_millis(2));
    for (what, stage, does) in [
        ("a slow banner", "connect", slow("220 peer.example")),
        (
            "a banner of several lines",
            "connect",
            Do::Say("220-one\n220-two\n220 three"),
        ),
        (
            "a banner without a text",
            "connect",
            Do::Bytes(b"220\r\n".to_vec()),
        ),
        (
            "bare line feeds",
            "EHLO",
            Do::Bytes(b"250-peer\n250-SIZE\n250 PIPELINING\n".to_vec()),
        ),
        (
            "no space behind the hyphen",
            "EHLO",
            Do::Bytes(b"250-peer\r\n250-\r\n250 \r\n".to_vec()),
        ),
        (
            "unknown extensions",
            "EHLO",
            Do::Say("250-peer\n250-XSECRET 1 2\n250-=\n250 AUTH=LOGIN"),
        ),
        (
            "lower case",
            "EHLO",
            Do::Say("250-peer\n250-pipelining\n250 size 9999"),
        ),
        ("a slow RCPT", "RCPT", slow("250 2.1.5 ok")),
        ("251", "RCPT", Do::Say("251 2.1.5 will forward")),
        ("252", "RCPT", Do::Say("252 2.1.5 can not say")),
        (
            "a long reply",
            "MAIL",
            Do::Bytes([&b"250 "[..], &[b'x'; 5000], b"\r\n"].concat()),
        ),
        (
            "fifty lines",
            "MAIL",
            Do::Bytes(format!("{}250 end\r\n", "250-x\r\n".repeat(49)).into_bytes()),
        ),
        ("a slow end", ".", slow("250 2.0.0 taken")),
        (
            "several lines at the end",
            ".",
            Do::Say("250-2.0.0 taken\n250 2.0.0 really"),
        ),
        (
            "8-bit at the end",
            ".",
            Do::Bytes(b"250 2.0.0 accept\xe9\r\n".to_vec()),
        ),
    ] {
        let peer = Peer::start(move |t| {
            let here = t.said == stage || stage.len() > 1 && t.said.starts_with(stage);
            here.then(|| does.clone())
        })
        .await;
        let done = deliver(&smtp(config(peer.port())), job(&["a@x.example"])).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"], "{what}");
        assert_eq!(peer.messages().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_answers_rset_wrongly_is_replaced() {
    for says in ["421 4.4.2 bye", "500 5.5.1 what?", "garbage"] {
        let peer = Peer::start(move |t| match t {
            t if t.connection == 0 && t.is("RSET") => Some(Do::Say(says)),
            t if t.said.contains("no@") => Some(Do::Say("550 5.1.1 no")),
            _ => None,
        })
        .await;
        let smtp = smtp(config(peer.port()));
        let done = deliver(&smtp, job(&["no@x.example"])).await;
        assert_eq!(summary(&done), ["Permanent rcpt 5.1.1 550"]);
        let done = deliver(&smtp, job(&["a@x.example"])).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"], "{says}");
        assert_eq!(peer.connections(), 2);
    }
}

#[tokio::test]
async fn an_expired_certificate_is_none_where_one_is_required() {
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2019, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("roots.pem");
    std::fs::write(&roots, made.pem()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let private = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.der().clone()], private)
        .unwrap();
    let peer = Peer::with_tls(std::sync::Arc::new(server), |t| {
        (t.is("EHLO") && !t.tls).then_some(Do::Say(STARTTLS))
    })
    .await;
    let smtp = smtp(SmtpConfig {
        trust_anchors: TrustAnchors::File(roots),
        ..config(peer.port())
    });
    let mut required = job(&["a@x.example"]);
    let target = endpoint(peer.port(), TlsMode::StartTls);
    required.target = Target::Endpoint(std::sync::Arc::new(target));
    let done = deliver(&smtp, required).await;
    assert_eq!(summary(&done), ["Temporary starttls 4.7.5 TlsUntrusted"]);
    let detail = done.results[0].outcome.detail.clone().unwrap_or_default();
    assert!(detail.to_ascii_lowercase().contains("expired"), "{detail}");
    assert_eq!(peer.count("MAIL"), 0);
    // Opportunistic TLS looks at no certificate.
    let done = deliver(&smtp, job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    assert!(done.results[0].hop.tls.is_some());
}
