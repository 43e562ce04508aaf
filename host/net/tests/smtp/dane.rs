//! DANE (RFC 7672): TLSA records from a name server, certificates from real peers.

use std::sync::Arc;

use hickory_proto::rr::RecordType;
use tidegate_net::clock::OsClock;
use tidegate_net::resolver::{DnsConfig, DnsResolver, Dnssec};
use tidegate_net::smtp::{Smtp, SmtpConfig};
use tidegate_queue::ports::{Contact, Destination, HandOff, Resolver, Target};

use crate::common::certs::{Ca, Shown, sha256, sha512};
use crate::common::dns::Dns;
use crate::common::peer::{Do, Peer, Turn};
use crate::common::signer::Signer;
use crate::common::{config, deliver, job, summary};

pub const STARTTLS: &str = "250-peer.example\n250-PIPELINING\n250 STARTTLS";

pub fn offers(turn: &Turn) -> Option<Do> {
    (turn.is("EHLO") && !turn.tls).then_some(Do::Say(STARTTLS))
}

/// Names, resolver and client of one gateway.
pub struct Net {
    pub dns: Dns,
    pub resolver: Arc<DnsResolver>,
    pub smtp: Smtp,
}

impl Net {
    /// For peers at this port of loopback addresses; nothing is kept of what the DNS says.
    pub async fn start(
        port: u16,
        dns_config: impl FnOnce(&mut DnsConfig),
        smtp_config: impl FnOnce(&mut SmtpConfig),
    ) -> Net {
        let dns = Dns::start().await;
        let mut changed = DnsConfig {
            servers: vec![dns.address],
            timeout: std::time::Duration::from_secs(10),
            attempts: 1,
            ttl: Default::default(),
            cache_records: 0,
            allow_private: true,
            dnssec: Dnssec::Auto,
            dane: Some(port),
            ..DnsConfig::default()
        };
        dns_config(&mut changed);
        let resolver = Arc::new(DnsResolver::new(changed, Arc::new(OsClock)).unwrap());
        let mut changed = config(port);
        smtp_config(&mut changed);
        let smtp = Smtp::new(changed, resolver.clone(), Arc::new(OsClock)).unwrap();
        Net {
            dns,
            resolver,
            smtp,
        }
    }

    pub async fn dane(port: u16) -> Net {
        Net::start(port, |_| {}, |_| {}).await
    }

    /// `d.example` with one secure host `mx1.example` at 127.0.0.1.
    pub fn secure_host(&self) -> &Dns {
        self.dns
            .secure("example")
            .mx("d.example", 10, "mx1.example")
            .ip("mx1.example", "127.0.0.1")
    }

    pub async fn to(&self, domain: &str) -> Arc<Destination> {
        self.resolver.resolve(domain).await.unwrap()
    }

    /// One message to a domain.
    pub async fn send(&self, domain: &str) -> HandOff {
        self.send_with(domain, |_| {}).await
    }

    pub async fn send_with(
        &self,
        domain: &str,
        change: impl FnOnce(&mut tidegate_queue::ports::Job),
    ) -> HandOff {
        let mut job = job(&[&format!("a@{domain}")]);
        job.target = Target::Mx(self.to(domain).await);
        change(&mut job);
        deliver(&self.smtp, job).await
    }
}

/// The outcome, how TLS was verified and what was demanded.
pub fn told(done: &HandOff) -> [String; 3] {
    let hop = &done.results[0].hop;
    let verified = hop.tls.as_ref().map_or("clear", |tls| &tls.verified);
    let policy = hop.tls_policy.as_deref().unwrap_or("-");
    [
        summary(done)[0].clone(),
        verified.to_owned(),
        policy.to_owned(),
    ]
}

pub const DELIVERED: &str = "Delivered dot 2.0.0 250";
const MISMATCH: &str = "Temporary starttls 4.7.5 DaneMismatch";
const BOGUS: [&str; 3] = ["Temporary dns 4.7.5 DaneUnavailable", "clear", "dane"];

#[tokio::test]
async fn what_a_tlsa_record_vouches_for_is_taken_and_nothing_else() {
    let ca = Ca::new();
    let own = Shown::alone(&["mx1.example"], false);
    let other = Shown::alone(&["mx1.example"], false);
    let expired = Shown::alone(&["else.example"], true);
    let issued = ca.issue(&["mx1.example"], false);
    let of_domain = ca.issue(&["d.example"], false);
    let misnamed = ca.issue(&["else.example"], false);
    let outdated = ca.issue(&["mx1.example"], true);
    let foreign = Ca::new().issue(&["mx1.example"], false);
    let leaf = |shown: &Shown| shown.chain[0].to_vec();
    for (number, shown, record, data, delivered) in [
        // DANE-EE, by certificate and by key, whole and as digests.
        (1, &own, [3, 0, 0], leaf(&own), true),
        (2, &own, [3, 0, 1], sha256(&leaf(&own)), true),
        (3, &own, [3, 0, 2], sha512(&leaf(&own)), true),
        (4, &own, [3, 1, 0], own.spki.clone(), true),
        (5, &own, [3, 1, 1], sha256(&own.spki), true),
        (6, &own, [3, 1, 2], sha512(&own.spki), true),
        (7, &other, [3, 1, 1], sha256(&own.spki), false),
        // It binds neither name nor time nor issuer (RFC 7672 s. 3.1.1).
        (8, &expired, [3, 1, 1], sha256(&expired.spki), true),
        (9, &misnamed, [3, 0, 1], sha256(&leaf(&misnamed)), true),
        // DANE-TA: the chain, the name and the time.
        (10, &issued, [2, 0, 1], sha256(ca.der()), true),
        (11, &issued, [2, 1, 2], sha512(&ca.spki()), true),
        (12, &issued, [2, 0, 0], ca.der().to_vec(), true),
        (13, &of_domain, [2, 0, 1], sha256(ca.der()), true),
        (14, &misnamed, [2, 0, 1], sha256(ca.der()), false),
        (15, &outdated, [2, 0, 1], sha256(ca.der()), false),
        (16, &foreign, [2, 0, 1], sha256(ca.der()), false),
        // An anchor that the peer does not show, or shows in vain.
        (17, &own, [2, 0, 1], sha256(ca.der()), false),
    ] {
        let peer = Peer::with_tls(shown.server(), offers).await;
        let net = Net::dane(peer.port()).await;
        net.secure_host()
            .tlsa("mx1.example", peer.port(), record, &data);
        let done = net.send("d.example").await;
        if delivered {
            assert_eq!(told(&done), [DELIVERED, "dane", "dane"], "case {number}");
        } else {
            assert_eq!(told(&done), [MISMATCH, "clear", "dane"], "case {number}");
            assert_eq!(done.contact, Contact::Untried, "others need not care");
            assert_eq!(peer.count("MAIL"), 0, "case {number}");
            assert_eq!(peer.connections(), 1, "not retried in clear");
        }
    }
}

#[tokio::test]
async fn one_matching_record_of_several_is_enough() {
    let (old, new) = (
        Shown::alone(&["mx1.example"], false),
        Shown::alone(&["mx1.example"], false),
    );
    let peer = Peer::with_tls(new.server(), offers).await;
    let net = Net::dane(peer.port()).await;
    let port = peer.port();
    net.secure_host()
        .tlsa("mx1.example", port, [3, 1, 1], &sha256(&old.spki))
        .tlsa("mx1.example", port, [3, 1, 1], &sha256(&new.spki))
        .tlsa("mx1.example", port, [1, 1, 1], &sha256(&old.spki));
    assert_eq!(told(&net.send("d.example").await)[0], DELIVERED);
}

#[tokio::test]
async fn without_secure_answers_there_is_no_dane() {
    let shown = Shown::alone(&["mx1.example"], false);
    let peer = Peer::with_tls(shown.server(), offers).await;
    let port = peer.port();
    // Insecure MX records; an insecure host; an insecure TLSA record; no record at all.
    for secure in [
        &["mx1.example"][..],
        &["d.example"],
        &["d.example", "mx1.example"],
        &["example"],
    ] {
        let net = Net::dane(port).await;
        net.dns
            .mx("d.example", 10, "mx1.example")
            .ip("mx1.example", "127.0.0.1");
        for name in secure {
            net.dns.secure(name);
        }
        if secure == ["d.example", "mx1.example"] {
            // Below the host's name, so it takes an alias to be insecure.
            let at = format!("_{port}._tcp.mx1.example");
            net.dns.cname(&at, "_1._tcp.insecure.test").tlsa(
                "insecure.test",
                1,
                [3, 1, 1],
                &[7; 32],
            );
        } else if secure != ["example"] {
            net.dns.tlsa("mx1.example", port, [3, 1, 1], &[7; 32]);
        }
        let done = net.send("d.example").await;
        assert_eq!(told(&done), [DELIVERED, "none", "-"], "{secure:?}");
        let asked = format!("_{port}._tcp.mx1.example");
        assert_eq!(
            net.dns.asked(&asked, RecordType::TLSA),
            secure.len() == 2 || secure == ["example"]
        );
    }
    // The same names and records, and a resolver that is not to be believed.
    let net = Net::start(port, |dns| dns.dnssec = Dnssec::Off, |_| {}).await;
    net.secure_host()
        .tlsa("mx1.example", port, [3, 1, 1], &[7; 32]);
    assert_eq!(told(&net.send("d.example").await), [DELIVERED, "none", "-"]);
    assert!(!net.resolver.is_dnssec_aware());
}

#[tokio::test]
async fn a_failed_tlsa_lookup_defers_the_host_and_is_no_downgrade() {
    let shown = Shown::alone(&["mx1.example"], false);
    let peer = Peer::with_tls(shown.server(), offers).await;
    let port = peer.port();
    let net = Net::dane(port).await;
    let at = format!("_{port}._tcp.mx1.example");
    net.secure_host().fails(&at, RecordType::TLSA);
    let done = net.send("d.example").await;
    assert_eq!(
        told(&done),
        ["Temporary dns 4.7.5 DaneUnavailable", "clear", "dane"]
    );
    assert_eq!(done.contact, Contact::Untried, "others need not care");
    let detail = done.results[0].outcome.detail.clone().unwrap();
    assert!(detail.contains("_tcp.mx1.example"), "{detail}");
    assert_eq!(peer.connections(), 0);
    // Another host of the domain, of which more is known, is used.
    net.dns
        .mx("d.example", 20, "mx2.example")
        .ip("mx2.example", "127.0.0.1")
        .tlsa("mx2.example", port, [3, 1, 1], &sha256(&shown.spki));
    let done = net.send("d.example").await;
    assert_eq!(told(&done), [DELIVERED, "dane", "dane"]);
    assert_eq!(done.results[0].hop.host.as_deref(), Some("mx2.example"));
    // The message says that it may go without.
    let net = Net::dane(port).await;
    net.secure_host().fails(&at, RecordType::TLSA);
    let done = net
        .send_with("d.example", |job| job.tls_optional = true)
        .await;
    assert_eq!(told(&done), [DELIVERED, "none", "TLS-Required: No"]);
}

#[tokio::test]
async fn records_that_nobody_can_use_ask_for_tls_all_the_same() {
    let shown = Shown::alone(&["mx1.example"], false);
    let peer = Peer::with_tls(shown.server(), offers).await;
    let net = Net::dane(peer.port()).await;
    net.secure_host()
        .tlsa("mx1.example", peer.port(), [1, 1, 1], &[7; 32])
        .tlsa("mx1.example", peer.port(), [3, 1, 9], &[7; 32]);
    let done = net.send("d.example").await;
    assert_eq!(
        told(&done),
        [DELIVERED, "none", "dane: no usable TLSA record"]
    );
}

#[tokio::test]
async fn with_tlsa_records_a_host_without_working_tls_gets_nothing() {
    let shown = Shown::alone(&["mx1.example"], false);
    for usable in [true, false] {
        for (does, expected) in [
            (None, "Temporary starttls 4.7.5 TlsRequired"),
            (Some(Do::BreakTls), "Temporary starttls 4.7.5 TlsFailed"),
            (Some(Do::Inject), "Temporary starttls 4.7.5 TlsInjection"),
        ] {
            let behaviour = does.clone();
            let peer = Peer::with_tls(shown.server(), move |t| match &behaviour {
                Some(does) if t.is("STARTTLS") => Some(does.clone()),
                Some(_) => offers(t),
                None => None,
            })
            .await;
            let net = Net::dane(peer.port()).await;
            let usage = if usable { 3 } else { 1 };
            let digest = sha256(&shown.spki);
            net.secure_host()
                .tlsa("mx1.example", peer.port(), [usage, 1, 1], &digest);
            let done = net.send("d.example").await;
            assert_eq!(summary(&done), [expected], "{does:?}");
            assert_eq!((peer.connections(), peer.count("MAIL")), (1, 0));
        }
    }
}

#[tokio::test]
async fn records_are_looked_for_where_a_chain_of_aliases_ends_and_begins() {
    let shown = Shown::alone(&["x.example"], false);
    let peer = Peer::with_tls(shown.server(), offers).await;
    let port = peer.port();
    let right = sha256(&shown.spki);
    // A secure chain: its end, else its beginning.
    for at in ["end.example", "mx1.example"] {
        let net = Net::dane(port).await;
        net.dns
            .secure("example")
            .mx("d.example", 10, "mx1.example")
            .cname("mx1.example", "end.example")
            .ip("end.example", "127.0.0.1")
            .tlsa(at, port, [3, 1, 1], &right);
        let done = net.send("d.example").await;
        assert_eq!(told(&done), [DELIVERED, "dane", "dane"], "{at}");
    }
    // One that leaves the signed part of the DNS: its beginning.
    let net = Net::dane(port).await;
    net.dns
        .secure("example")
        .mx("d.example", 10, "mx1.example")
        .cname("mx1.example", "end.test")
        .ip("end.test", "127.0.0.1")
        .tlsa("mx1.example", port, [3, 1, 1], &[7; 32]);
    let done = net.send("d.example").await;
    assert_eq!(told(&done)[0], MISMATCH);
    assert!(
        !net.dns
            .asked(&format!("_{port}._tcp.end.test"), RecordType::TLSA)
    );
}

#[tokio::test]
async fn a_domain_without_mx_records_is_its_own_host() {
    let shown = Shown::alone(&["d.example"], false);
    let peer = Peer::with_tls(shown.server(), offers).await;
    let net = Net::dane(peer.port()).await;
    net.dns.secure("example").ip("d.example", "127.0.0.1").tlsa(
        "d.example",
        peer.port(),
        [3, 1, 1],
        &sha256(&shown.spki),
    );
    assert_eq!(
        told(&net.send("d.example").await),
        [DELIVERED, "dane", "dane"]
    );
}

#[tokio::test]
async fn domains_with_one_host_and_different_demands_share_no_connection_of_lesser_security() {
    let shown = Shown::alone(&["mx1.example"], false);
    let peer = Peer::with_tls(shown.server(), offers).await;
    let net = Net::dane(peer.port()).await;
    let right = sha256(&shown.spki);
    net.secure_host()
        .tlsa("mx1.example", peer.port(), [3, 1, 1], &right)
        // Served by the same host, and not by secure records.
        .mx("plain.test", 10, "mx1.example")
        .mx("also.example", 10, "mx1.example");
    assert_eq!(
        told(&net.send("plain.test").await),
        [DELIVERED, "none", "-"]
    );
    assert_eq!(told(&net.send("d.example").await)[1], "dane");
    assert_eq!(peer.connections(), 2, "not the one that is unverified");
    assert_eq!(told(&net.send("also.example").await)[1], "dane");
    assert_eq!(told(&net.send("plain.test").await)[1], "none");
    assert_eq!(peer.connections(), 2, "those that are alike are shared");
}

#[tokio::test]
async fn signatures_are_checked_where_no_server_is_believed() {
    let shown = Shown::alone(&["mx1.example"], false);
    let peer = Peer::with_tls(shown.server(), offers).await;
    let port = peer.port();
    let dir = tempfile::tempdir().unwrap();
    let anchor = dir.path().join("root.key");
    let validating = |signer: &Signer| {
        signer.write_anchor(&anchor);
        let anchor = anchor.clone();
        Net::start(
            port,
            |dns| dns.dnssec = Dnssec::ValidateFrom(anchor),
            |_| {},
        )
    };
    // Signed, and right; signed, and wrong.
    for (data, expected) in [
        (sha256(&shown.spki), [DELIVERED, "dane", "dane"]),
        (vec![7; 32], [MISMATCH, "clear", "dane"]),
    ] {
        let signer = Signer::new();
        let net = validating(&signer).await;
        net.secure_host()
            .signs(signer)
            .tlsa("mx1.example", port, [3, 1, 1], &data);
        assert_eq!(told(&net.send("d.example").await), expected);
    }
    // Proven to be absent.
    let signer = Signer::new();
    let net = validating(&signer).await;
    net.secure_host().signs(signer);
    assert_eq!(told(&net.send("d.example").await), [DELIVERED, "none", "-"]);
    // In a part of the DNS that is proven to be unsigned.
    let signer = Signer::new();
    let net = validating(&signer).await;
    net.dns
        .signs(signer)
        .delegates("test")
        .mx("d.test", 10, "mx1.test")
        .ip("mx1.test", "127.0.0.1")
        .tlsa("mx1.test", port, [3, 1, 1], &[7; 32]);
    assert_eq!(told(&net.send("d.test").await), [DELIVERED, "none", "-"]);
    // Signed by somebody else: nothing is known of the domain.
    let signer = Signer::new();
    let net = validating(&signer).await;
    net.secure_host().signs(Signer::new());
    let outcome = net.resolver.resolve("d.example").await.unwrap_err();
    assert_eq!(
        crate::common::line(&outcome),
        "Temporary dns 4.4.3 DnsUnavailable"
    );
}

#[tokio::test]
async fn a_bogus_tlsa_answer_alone_is_no_downgrade() {
    let shown = Shown::alone(&["mx1.example"], false);
    let peer = Peer::with_tls(shown.server(), offers).await;
    let port = peer.port();
    let dir = tempfile::tempdir().unwrap();
    let anchor = dir.path().join("root.key");
    let at = format!("_{port}._tcp.mx1.example");
    // Records, and the proof that there are none: as they are, and signed with another key.
    for (records, forged, expected) in [
        (true, false, [DELIVERED, "dane", "dane"]),
        (false, false, [DELIVERED, "none", "-"]),
        (true, true, BOGUS),
        (false, true, BOGUS),
    ] {
        let signer = Signer::new();
        signer.write_anchor(&anchor);
        let from = Dnssec::ValidateFrom(anchor.clone());
        let net = Net::start(port, |dns| dns.dnssec = from, |_| {}).await;
        net.secure_host().signs(signer);
        if records {
            net.dns
                .tlsa("mx1.example", port, [3, 1, 1], &sha256(&shown.spki));
        }
        if forged {
            net.dns.forges(&at, RecordType::TLSA);
        }
        let done = net.send("d.example").await;
        assert_eq!(told(&done), expected, "records {records}, forged {forged}");
        let contact = if forged {
            Contact::Untried
        } else {
            Contact::Reached
        };
        assert_eq!(done.contact, contact);
    }
    assert_eq!(peer.connections(), 2, "none but for what was right");
}
