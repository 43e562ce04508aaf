//! MTA-STS (RFC 8461) and REQUIRETLS (RFC 8689): policies from a real HTTPS server, announced by a
//! name server, held against the certificates of real peers.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tidegate_net::smtp::TrustAnchors;
use tidegate_net::sts::StsConfig;
use tidegate_queue::ports::{Contact, HandOff};

use super::dane::{DELIVERED, Net, offers, told};
use crate::common::certs::{Ca, Shown, sha256};
use crate::common::https::Https;
use crate::common::peer::{Do, Peer, Turn};
use crate::common::summary;

const POLICY: &str = "version: STSv1\r\nmode: enforce\r\nmx: *.mx.example\r\nmax_age: 86400\r\n";
const TESTING: &str = "version: STSv1\nmode: testing\nmx: *.mx.example\nmax_age: 86400\n";

/// A gateway, the issuer it trusts, and the policy host of `d.example`.
struct Rig {
    net: Net,
    https: Https,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn start(ca: &Ca, port: u16) -> Rig {
        Rig::with(ca, port, &["mta-sts.d.example"]).await
    }

    async fn with(ca: &Ca, port: u16, policy_hosts: &[&str]) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("roots.pem");
        std::fs::write(&file, ca.pem()).unwrap();
        let https = Https::start(ca.issue(policy_hosts, false).server()).await;
        let sts = StsConfig {
            port: https.address.port(),
            trust_anchors: TrustAnchors::File(file.clone()),
            timeout: Duration::from_secs(20),
            ..StsConfig::default()
        };
        let net = Net::start(
            port,
            |dns| dns.sts = Some(sts),
            |smtp| smtp.trust_anchors = TrustAnchors::File(file),
        )
        .await;
        net.dns
            .mx("d.example", 10, "a.mx.example")
            .ip("a.mx.example", "127.0.0.1")
            .ip("mta-sts.d.example", "127.0.0.1")
            .txt("_mta-sts.d.example", &["v=STSv1; id=1;"]);
        Rig {
            net,
            https,
            _dir: dir,
        }
    }

    async fn send(&self) -> [String; 3] {
        told(&self.net.send("d.example").await)
    }
}

async fn peer(shown: &Shown) -> Peer {
    Peer::with_tls(shown.server(), offers).await
}

#[tokio::test]
async fn an_enforced_policy_wants_a_certificate_of_the_public_roots_for_the_host() {
    let ca = Ca::new();
    let untrusted = "Temporary starttls 4.7.5 TlsUntrusted";
    for (shown, expected) in [
        (
            ca.issue(&["a.mx.example"], false),
            [DELIVERED, "mta-sts", "mta-sts"],
        ),
        (
            ca.issue(&["*.mx.example"], false),
            [DELIVERED, "mta-sts", "mta-sts"],
        ),
        (
            ca.issue(&["b.mx.example"], false),
            [untrusted, "clear", "mta-sts"],
        ),
        (
            ca.issue(&["a.mx.example"], true),
            [untrusted, "clear", "mta-sts"],
        ),
        (
            Shown::alone(&["a.mx.example"], false),
            [untrusted, "clear", "mta-sts"],
        ),
    ] {
        let peer = peer(&shown).await;
        let rig = Rig::start(&ca, peer.port()).await;
        rig.https.serves(POLICY);
        let done = rig.net.send("d.example").await;
        assert_eq!(told(&done), expected);
        let delivered = usize::from(expected[0] == DELIVERED);
        if delivered == 0 {
            assert_eq!(done.contact, Contact::Untried, "others may go there");
        }
        assert_eq!(peer.count("MAIL"), delivered);
        assert_eq!(peer.connections(), 1, "not retried in clear");
        let asked = &rig.https.requests()[0];
        assert!(
            asked.starts_with("GET /.well-known/mta-sts.txt HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(asked.contains("host: mta-sts.d.example\r\n"), "{asked}");
    }
    // A host without STARTTLS gets nothing either.
    let plain = Peer::start(|_| None).await;
    let rig = Rig::start(&ca, plain.port()).await;
    rig.https.serves(POLICY);
    let required = "Temporary starttls 4.7.5 TlsRequired";
    let done = rig.net.send("d.example").await;
    assert_eq!(told(&done), [required, "clear", "mta-sts"]);
    assert_eq!(done.contact, Contact::Untried);
    assert_eq!(plain.count("MAIL"), 0);
    // Nor one whose TLS is broken; and one that does not talk at all is down for everybody.
    for (at, does, expected, contact) in [
        (
            "STARTTLS",
            Do::BreakTls,
            "Temporary starttls 4.7.5 TlsFailed",
            Contact::Untried,
        ),
        (
            "connect",
            Do::Say("421 4.3.2 busy"),
            "Temporary banner 4.3.2 421",
            Contact::Failed,
        ),
    ] {
        let peer = Peer::start(move |t| match t {
            t if t.said.starts_with(at) => Some(does.clone()),
            t => offers(t),
        })
        .await;
        let rig = Rig::start(&ca, peer.port()).await;
        rig.https.serves(POLICY);
        let done = rig.net.send("d.example").await;
        assert_eq!(told(&done), [expected, "clear", "mta-sts"]);
        assert_eq!(done.contact, contact, "{expected}");
        assert_eq!(peer.count("MAIL"), 0);
    }
}

#[tokio::test]
async fn hosts_that_an_enforced_policy_does_not_name_are_skipped() {
    let ca = Ca::new();
    let shown = ca.issue(&["a.mx.example", "evil.example"], false);
    let peer = peer(&shown).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https.serves(POLICY);
    // The better host is somebody else's.
    rig.net
        .dns
        .mx("d.example", 5, "evil.example")
        .ip("evil.example", "127.0.0.1");
    let done = rig.net.send("d.example").await;
    assert_eq!(told(&done), [DELIVERED, "mta-sts", "mta-sts"]);
    assert_eq!(done.results[0].hop.host.as_deref(), Some("a.mx.example"));
    // Only somebody else's are left.
    rig.net.dns.forget("d.example", RecordType::MX);
    rig.net.dns.mx("d.example", 5, "evil.example");
    let done = rig.net.send("d.example").await;
    let mismatch = "Temporary local 4.7.5 StsMismatch";
    assert_eq!(told(&done), [mismatch, "clear", "mta-sts"]);
    assert_eq!(done.contact, Contact::Untried);
    assert_eq!(peer.count("MAIL"), 1);
    // The message says that it may go without.
    let relaxed = |job: &mut tidegate_queue::ports::Job| job.tls_optional = true;
    let done = rig.net.send_with("d.example", relaxed).await;
    assert_eq!(told(&done), [DELIVERED, "none", "TLS-Required: No"]);
}

#[tokio::test]
async fn a_policy_in_testing_delivers_and_the_log_says_what_it_would_have_refused() {
    let ca = Ca::new();
    let good = ca.issue(&["a.mx.example"], false);
    let peer = peer(&good).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https.serves(TESTING);
    assert_eq!(rig.send().await, [DELIVERED, "none", "mta-sts testing"]);
    // The same answer over the kept connection.
    assert_eq!(rig.send().await, [DELIVERED, "none", "mta-sts testing"]);
    assert_eq!(peer.connections(), 1);

    let bad = self::peer(&ca.issue(&["b.mx.example"], false)).await;
    let rig = Rig::start(&ca, bad.port()).await;
    rig.https.serves(TESTING);
    for _ in 0..2 {
        let [outcome, _, policy] = rig.send().await;
        assert_eq!(outcome, DELIVERED);
        assert!(
            policy.starts_with("mta-sts testing: invalid peer certificate"),
            "{policy}"
        );
    }
    let other = self::peer(&ca.issue(&["x.example"], false)).await;
    let rig = Rig::start(&ca, other.port()).await;
    rig.https.serves(TESTING);
    rig.net.dns.forget("d.example", RecordType::MX);
    rig.net
        .dns
        .mx("d.example", 5, "x.example")
        .ip("x.example", "127.0.0.1");
    assert_eq!(
        rig.send().await,
        [
            DELIVERED,
            "none",
            "mta-sts testing: the policy does not name the host"
        ]
    );
    for does in [None, Some(Do::BreakTls)] {
        let plain = Peer::with_tls(good.server(), move |t| match &does {
            Some(does) if t.is("STARTTLS") => Some(does.clone()),
            Some(_) => offers(t),
            None => None,
        })
        .await;
        let rig = Rig::start(&ca, plain.port()).await;
        rig.https.serves(TESTING);
        assert_eq!(
            rig.send().await,
            [DELIVERED, "clear", "mta-sts testing: no TLS"]
        );
    }
}

#[tokio::test]
async fn a_policy_of_mode_none_or_none_at_all_demands_nothing() {
    let ca = Ca::new();
    let peer = peer(&Shown::alone(&["else.example"], false)).await;
    let nothing = [DELIVERED, "none", "-"];
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https
        .serves("version: STSv1\nmode: none\nmax_age: 86400\n");
    assert_eq!(rig.send().await, nothing);
    let rig = Rig::start(&ca, peer.port()).await;
    rig.net.dns.forget("_mta-sts.d.example", RecordType::TXT);
    assert_eq!(rig.send().await, nothing);
    assert!(rig.https.requests().is_empty());
    // Two records are none.
    rig.net
        .dns
        .txt("_mta-sts.d.example", &["v=STSv1; id=1;", "v=STSv1; id=2;"]);
    assert_eq!(rig.send().await, nothing);
    assert!(rig.https.requests().is_empty());
}

#[tokio::test]
async fn what_a_policy_host_must_not_answer_is_no_policy() {
    let ca = Ca::new();
    let peer = peer(&Shown::alone(&["else.example"], false)).await;
    let head = "Content-Type: text/plain\r\n";
    let long = "x".repeat(65_537);
    for (number, answer) in [
        // A redirect, another status, another type, no type, too much of it, and no HTTP.
        format!("HTTP/1.1 301 Moved\r\nLocation: https://mta-sts.d.example/x\r\n{head}Content-Length: 0\r\n\r\n"),
        format!("HTTP/1.1 404 Not Found\r\n{head}\r\n{POLICY}"),
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{POLICY}"),
        format!("HTTP/1.1 200 OK\r\n\r\n{POLICY}"),
        format!("HTTP/1.1 200 OK\r\n{head}\r\n{POLICY}{long}"),
        "gopher".to_owned(),
        String::new(),
    ]
    .into_iter()
    .enumerate()
    {
        let rig = Rig::start(&ca, peer.port()).await;
        rig.https.says(answer);
        assert_eq!(rig.send().await, [DELIVERED, "none", "-"], "answer {number}");
        assert_eq!(rig.https.requests().len(), 1, "answer {number}");
        // Nor is it asked again at once.
        rig.https.serves(POLICY);
        assert_eq!(rig.send().await, [DELIVERED, "none", "-"]);
        assert_eq!(rig.https.requests().len(), 1, "answer {number}");
    }
    // A certificate for another name, or of somebody else.
    for (issuer, name) in [(&ca, "d.example"), (&Ca::new(), "mta-sts.d.example")] {
        let mut rig = Rig::start(&ca, peer.port()).await;
        let https = Https::start(issuer.issue(&[name], false).server()).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("roots.pem");
        std::fs::write(&file, ca.pem()).unwrap();
        let sts = StsConfig {
            port: https.address.port(),
            trust_anchors: TrustAnchors::File(file),
            ..StsConfig::default()
        };
        https.serves(POLICY);
        rig.net = Net::start(peer.port(), |dns| dns.sts = Some(sts), |_| {}).await;
        rig.net
            .dns
            .mx("d.example", 10, "a.mx.example")
            .ip("a.mx.example", "127.0.0.1")
            .ip("mta-sts.d.example", "127.0.0.1")
            .txt("_mta-sts.d.example", &["v=STSv1; id=1;"]);
        assert_eq!(rig.send().await, [DELIVERED, "none", "-"]);
        assert!(https.requests().is_empty());
    }
}

#[tokio::test]
async fn a_policy_host_inside_the_own_network_is_not_asked() {
    let ca = Ca::new();
    let peer = peer(&ca.issue(&["a.mx.example"], false)).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https.serves(POLICY);
    let dns = rig.net.dns.address;
    let file = rig._dir.path().join("roots.pem");
    let sts = StsConfig {
        port: rig.https.address.port(),
        trust_anchors: TrustAnchors::File(file),
        ..StsConfig::default()
    };
    let guarded = Net::start(
        peer.port(),
        |config| {
            config.servers = vec![dns];
            config.sts = Some(sts);
            config.allow_private = false;
        },
        |_| {},
    )
    .await;
    rig.net.dns.ip("public.mx.example", "203.0.113.9");
    rig.net.dns.mx("d.example", 5, "public.mx.example");
    let found = guarded.to("d.example").await;
    assert_eq!(
        found.hosts[0].protection,
        tidegate_queue::ports::Protection::Opportunistic
    );
    assert!(rig.https.requests().is_empty());
}

#[tokio::test]
async fn a_policy_stays_in_force_when_it_can_not_be_fetched_any_more() {
    let ca = Ca::new();
    let untrusted = "Temporary starttls 4.7.5 TlsUntrusted";
    let peer = peer(&Shown::alone(&["a.mx.example"], false)).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https.serves(POLICY);
    assert_eq!(rig.send().await[0], untrusted);
    // The same id: nothing is fetched.
    assert_eq!(rig.send().await[0], untrusted);
    assert_eq!(rig.https.requests().len(), 1);
    // A new one that can't be had; no record; and no answer for the record.
    rig.https
        .says("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
    rig.net.dns.txt("_mta-sts.d.example", &["v=STSv1; id=2;"]);
    assert_eq!(rig.send().await[0], untrusted);
    assert_eq!(rig.https.requests().len(), 2);
    rig.net.dns.forget("_mta-sts.d.example", RecordType::TXT);
    assert_eq!(rig.send().await[0], untrusted);
    rig.net.dns.fails("_mta-sts.d.example", RecordType::TXT);
    assert_eq!(rig.send().await[0], untrusted);
    assert_eq!(peer.count("MAIL"), 0);
}

#[tokio::test]
async fn a_policy_outlives_a_restart() {
    let ca = Ca::new();
    let peer = peer(&Shown::alone(&["a.mx.example"], false)).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https.serves(POLICY);
    let dns = rig.net.dns.address;
    let kept = rig._dir.path().join("policies.json");
    let sts = StsConfig {
        port: rig.https.address.port(),
        trust_anchors: TrustAnchors::File(rig._dir.path().join("roots.pem")),
        file: Some(kept.clone()),
        ..StsConfig::default()
    };
    let gateway = || {
        let sts = sts.clone();
        let config = move |config: &mut tidegate_net::resolver::DnsConfig| {
            config.servers = vec![dns];
            config.sts = Some(sts);
        };
        Net::start(peer.port(), config, |_| {})
    };
    let untrusted = "Temporary starttls 4.7.5 TlsUntrusted";
    assert_eq!(told(&gateway().await.send("d.example").await)[0], untrusted);
    let begun = std::time::Instant::now();
    while !kept.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The next one can't fetch it, and does not need to.
    rig.https.says("");
    assert_eq!(told(&gateway().await.send("d.example").await)[0], untrusted);
    assert_eq!(rig.https.requests().len(), 1);
}

#[tokio::test]
async fn a_new_policy_takes_the_place_of_the_old() {
    let ca = Ca::new();
    let peer = peer(&Shown::alone(&["a.mx.example"], false)).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https.serves(POLICY);
    assert_eq!(rig.send().await[0], "Temporary starttls 4.7.5 TlsUntrusted");
    rig.https
        .serves("version: STSv1\nmode: none\nmax_age: 86400\n");
    rig.net.dns.txt("_mta-sts.d.example", &["v=STSv1; id=2;"]);
    assert_eq!(rig.send().await, [DELIVERED, "none", "-"]);
}

#[tokio::test]
async fn dane_goes_before_mta_sts() {
    let ca = Ca::new();
    let shown = Shown::alone(&["else.example"], false);
    let peer = peer(&shown).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https
        .serves("version: STSv1\nmode: enforce\nmx: other.example\nmax_age: 86400\n");
    rig.net.dns.secure("example").tlsa(
        "a.mx.example",
        peer.port(),
        [3, 1, 1],
        &sha256(&shown.spki),
    );
    assert_eq!(rig.send().await, [DELIVERED, "dane", "dane"]);
}

#[tokio::test]
async fn tlsa_records_that_nobody_can_use_do_not_switch_an_enforced_policy_off() {
    let ca = Ca::new();
    let elsewhere = "version: STSv1\nmode: enforce\nmx: other.example\nmax_age: 86400\n";
    let untrusted = "Temporary starttls 4.7.5 TlsUntrusted";
    let mismatch = "Temporary local 4.7.5 StsMismatch";
    for (shown, policy, expected) in [
        (
            ca.issue(&["a.mx.example"], false),
            POLICY,
            [DELIVERED, "mta-sts", "mta-sts"],
        ),
        (
            Shown::alone(&["a.mx.example"], false),
            POLICY,
            [untrusted, "clear", "mta-sts"],
        ),
        (
            ca.issue(&["a.mx.example"], false),
            elsewhere,
            [mismatch, "clear", "mta-sts"],
        ),
    ] {
        let peer = peer(&shown).await;
        let rig = Rig::start(&ca, peer.port()).await;
        rig.https.serves(policy);
        // Usage 1 is not for mail (RFC 7672 s. 3.1.3).
        rig.net
            .dns
            .secure("example")
            .tlsa("a.mx.example", peer.port(), [1, 1, 1], &[7; 32]);
        assert_eq!(rig.send().await, expected);
    }
}

#[tokio::test]
async fn a_policy_host_whose_first_address_is_silent_is_asked_at_the_next() {
    let ca = Ca::new();
    let peer = peer(&ca.issue(&["a.mx.example"], false)).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https.serves(POLICY);
    let port = rig.https.address.port();
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind(("127.0.0.4", port)).unwrap();
    rig.net.dns.forget("mta-sts.d.example", RecordType::A);
    rig.net
        .dns
        .ip("mta-sts.d.example", "127.0.0.4")
        .ip("mta-sts.d.example", "127.0.0.1");
    assert_eq!(rig.send().await, [DELIVERED, "mta-sts", "mta-sts"]);
    silent.set_nonblocking(true).unwrap();
    assert!(silent.accept().is_ok(), "it was asked first");
}

#[tokio::test]
async fn two_domains_on_one_host_keep_their_own_policies() {
    let ca = Ca::new();
    let peer = peer(&ca.issue(&["a.mx.example"], false)).await;
    let rig = Rig::with(
        &ca,
        peer.port(),
        &["mta-sts.d.example", "mta-sts.t.example"],
    )
    .await;
    rig.https.serves(POLICY);
    assert_eq!(rig.send().await, [DELIVERED, "mta-sts", "mta-sts"]);
    rig.net
        .dns
        .mx("t.example", 10, "a.mx.example")
        .mx("n.example", 10, "a.mx.example")
        .ip("mta-sts.t.example", "127.0.0.1")
        .txt("_mta-sts.t.example", &["v=STSv1; id=1;"]);
    rig.https
        .serves("version: STSv1\nmode: enforce\nmx: other.example\nmax_age: 86400\n");
    // The one refuses the host that the other names; the third has no policy.
    let done = rig.net.send("t.example").await;
    assert_eq!(told(&done)[0], "Temporary local 4.7.5 StsMismatch");
    assert_eq!(
        told(&rig.net.send("n.example").await),
        [DELIVERED, "none", "-"]
    );
    assert_eq!(rig.send().await, [DELIVERED, "mta-sts", "mta-sts"]);
    assert_eq!(peer.connections(), 2, "the verified one and the other");
}

fn able(turn: &Turn) -> Option<Do> {
    match turn {
        t if t.is("EHLO") && t.tls => Some(Do::Say("250-peer.example\n250 REQUIRETLS")),
        t => offers(t),
    }
}

async fn requiring(net: &Net, domain: &str) -> HandOff {
    net.send_with(domain, |job| job.requiretls = true).await
}

#[tokio::test]
async fn requiretls_goes_to_hosts_that_dnssec_or_a_policy_vouches_for() {
    let unprotected = "Permanent local 5.7.10 RequireTlsUnprotected";
    let ca = Ca::new();
    let shown = ca.issue(&["a.mx.example"], false);
    let peer = Peer::with_tls(shown.server(), able).await;
    let port = peer.port();
    // Nobody does.
    let rig = Rig::start(&ca, port).await;
    rig.net.dns.forget("_mta-sts.d.example", RecordType::TXT);
    let done = requiring(&rig.net, "d.example").await;
    assert_eq!(told(&done), [unprotected, "clear", "requiretls"]);
    // DNSSEC does, for the name; the public roots for the certificate.
    rig.net.dns.secure("example");
    let done = requiring(&rig.net, "d.example").await;
    assert_eq!(told(&done), [DELIVERED, "webpki", "requiretls"]);
    // TLSA records do for both.
    rig.net
        .dns
        .tlsa("a.mx.example", port, [3, 1, 1], &sha256(&shown.spki));
    let done = requiring(&rig.net, "d.example").await;
    assert_eq!(told(&done), [DELIVERED, "dane", "requiretls"]);
    // A policy does.
    for policy in [POLICY, TESTING] {
        let rig = Rig::start(&ca, port).await;
        rig.https.serves(policy);
        let done = requiring(&rig.net, "d.example").await;
        assert_eq!(told(&done), [DELIVERED, "webpki", "requiretls"]);
    }
    let passed_on = |line: &&String| line.contains("MAIL FROM") && line.ends_with(" REQUIRETLS");
    assert_eq!(peer.commands().iter().filter(passed_on).count(), 4);
    assert_eq!(peer.count("MAIL"), 4);
}

#[tokio::test]
async fn requiretls_is_refused_for_good_where_it_can_not_be_kept() {
    let ca = Ca::new();
    let good = ca.issue(&["a.mx.example"], false);
    let bad = ca.issue(&["b.mx.example"], false);
    for (number, shown, behaviour, expected) in [
        (
            1,
            &good,
            offers as fn(&Turn) -> Option<Do>,
            "Permanent local 5.7.30 RequireTlsUnsupported",
        ),
        (
            2,
            &good,
            |_| None,
            "Permanent starttls 5.7.10 RequireTlsUnprotected",
        ),
        (
            3,
            &bad,
            able,
            "Permanent starttls 5.7.10 RequireTlsUnprotected",
        ),
    ] {
        let peer = Peer::with_tls(shown.server(), behaviour).await;
        let rig = Rig::start(&ca, peer.port()).await;
        rig.https.serves(POLICY);
        let done = requiring(&rig.net, "d.example").await;
        assert_eq!(summary(&done), [expected], "case {number}");
        assert_eq!(peer.count("MAIL"), 0, "case {number}");
        // It wins over TLS-Required: No (RFC 8689 s. 5).
        let done = rig.net.send_with("d.example", |job| {
            job.requiretls = true;
            job.tls_optional = true;
        });
        assert_eq!(summary(&done.await), [expected], "case {number}");
        // A notice is not lost for it.
        let done = rig.net.send_with("d.example", |job| {
            job.requiretls = true;
            job.reverse_path = None;
        });
        let done = done.await;
        if number == 1 {
            assert_eq!(told(&done), [DELIVERED, "mta-sts", "mta-sts"]);
            assert!(
                peer.commands()
                    .iter()
                    .any(|c| c.ends_with("MAIL FROM:<> SIZE=23") || c.ends_with("MAIL FROM:<>")),
                "{:?}",
                peer.commands()
            );
        } else {
            // The domain's own policy still holds.
            assert_eq!(done.results[0].outcome.status.to_string(), "4.7.5");
        }
    }
    // A handshake that fails may succeed another time.
    let broken = Peer::with_tls(good.server(), |t| match t {
        t if t.is("STARTTLS") => Some(Do::BreakTls),
        t => offers(t),
    })
    .await;
    let rig = Rig::start(&ca, broken.port()).await;
    rig.https.serves(POLICY);
    let done = requiring(&rig.net, "d.example").await;
    assert_eq!(summary(&done), ["Temporary starttls 4.7.5 TlsFailed"]);
}

#[tokio::test]
async fn what_is_known_of_a_domain_costs_nothing_per_message() {
    let ca = Ca::new();
    let shown = ca.issue(&["a.mx.example"], false);
    let peer = peer(&shown).await;
    let rig = Rig::start(&ca, peer.port()).await;
    rig.https.serves(POLICY);
    let dns = rig.net.dns.address;
    let file = rig._dir.path().join("roots.pem");
    let sts = StsConfig {
        port: rig.https.address.port(),
        trust_anchors: TrustAnchors::File(file.clone()),
        ..StsConfig::default()
    };
    let keeping = Net::start(
        peer.port(),
        |config| {
            config.servers = vec![dns];
            config.sts = Some(sts);
            config.ttl = (Duration::from_secs(60), Duration::from_secs(600));
        },
        |smtp| smtp.trust_anchors = TrustAnchors::File(file),
    )
    .await;
    let first = keeping.to("d.example").await;
    let queries = rig.net.dns.queries();
    for _ in 0..5 {
        assert!(Arc::ptr_eq(&first, &keeping.to("d.example").await));
        assert_eq!(told(&keeping.send("d.example").await)[1], "mta-sts");
    }
    assert_eq!(rig.net.dns.queries(), queries);
    assert_eq!((rig.https.requests().len(), peer.connections()), (1, 1));
}
