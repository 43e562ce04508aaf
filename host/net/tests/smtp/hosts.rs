//! Host failures, the walk over addresses, endpoints and AUTH.

use std::sync::Arc;
use std::time::Duration;

use tidegate_net::clock::OsClock;
use tidegate_net::smtp::{Smtp, SmtpConfig, TrustAnchors};
use tidegate_queue::ports::{Contact, Target, TlsMode};

use crate::common::dns::Dns;
use crate::common::peer::{Do, Peer, Turn};
use crate::common::{
    SHORT, certificate, config, deliver, dns_at, endpoint, job, loopback, mx, smtp, summary,
};

/// Two servers on the same port of two loopback addresses.
async fn pair(first: impl Fn(&Turn) -> Option<Do> + Clone + Send + Sync + 'static) -> (Peer, Peer) {
    let one = Peer::start(first).await;
    let address = (loopback(2), one.port()).into();
    let two = Peer::at(address, None, |_| None).await;
    (one, two)
}

#[tokio::test]
async fn a_host_that_will_not_talk_is_passed_over_and_alone_it_is_a_host_failure() {
    for (at, does, expected) in [
        (
            "connect",
            Do::Say("421 4.3.2 busy"),
            "Temporary banner 4.3.2 421",
        ),
        (
            "connect",
            Do::Say("554 5.7.1 go away"),
            "Temporary banner 4.7.1 554",
        ),
        (
            "connect",
            Do::Say("554 go away"),
            "Temporary banner 4.3.2 554",
        ),
        (
            "connect",
            Do::Close,
            "Temporary banner 4.4.2 ConnectionLost",
        ),
        ("connect", Do::Silence, "Temporary banner 4.4.2 Timeout"),
        (
            "connect",
            Do::Say("SSH-2.0-OpenSSH"),
            "Temporary banner 4.5.0 GarbledReply",
        ),
        (
            "EHLO",
            Do::Say("421 4.3.2 busy"),
            "Temporary ehlo 4.3.2 421",
        ),
        ("EHLO", Do::Say("450 who?"), "Temporary ehlo 4.0.0 450"),
        ("EHLO", Do::Close, "Temporary ehlo 4.4.2 ConnectionLost"),
        ("EHLO", Do::Silence, "Temporary ehlo 4.4.2 Timeout"),
    ] {
        let (one, two) = pair(move |t| t.said.starts_with(at).then(|| does.clone())).await;
        let mut config = config(one.port());
        config.timeouts.banner = SHORT;
        config.timeouts.ehlo = SHORT;
        let smtp = smtp(config);
        let mut both = job(&["a@x.example"]);
        both.target = mx(&[loopback(1), loopback(2)]);
        let done = deliver(&smtp, both).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"], "{expected}");
        assert_eq!(done.contact, Contact::Reached);
        assert_eq!(done.results[0].hop.host.as_deref(), Some("mx2.example"));
        assert_eq!(two.messages().len(), 1);

        let done = deliver(&smtp, job(&["a@x.example", "b@x.example"])).await;
        assert_eq!(summary(&done), [expected; 2]);
        assert_eq!(done.contact, Contact::Failed);
        assert_eq!(done.results[0].hop.host.as_deref(), Some("mx1.example"));
    }
}

#[tokio::test]
async fn no_connection() {
    // No test listens on this address.
    let mut to = job(&["a@x.example"]);
    to.target = mx(&[loopback(8)]);
    let done = deliver(&smtp(config(25)), to).await;
    assert_eq!(summary(&done), ["Temporary connect 4.4.1 ConnectRefused"]);
    assert_eq!(done.contact, Contact::Failed);
    assert!(done.results[0].outcome.detail.is_some());
}

#[tokio::test]
async fn an_address_that_took_no_connection_is_tried_last_for_a_while() {
    let two = Peer::at((loopback(6), 0).into(), None, |_| None).await;
    let smtp = smtp(config(two.port()));
    let target = mx(&[loopback(5), loopback(6)]);
    let mut hosts = Vec::new();
    for _ in 0..2 {
        let mut job = job(&["a@x.example"]);
        job.target = target.clone();
        job.messages_per_connection = 1;
        hosts.push(
            deliver(&smtp, job).await.results[0]
                .hop
                .host
                .clone()
                .unwrap(),
        );
    }
    assert_eq!(hosts, ["mx2.example", "mx2.example"]);
    // It comes back: with the second gone, the first is tried all the same.
    let one = Peer::at((loopback(5), two.port()).into(), None, |_| None).await;
    let mut again = job(&["a@x.example"]);
    again.target = mx(&[loopback(5), loopback(8)]);
    deliver(&smtp, again).await;
    assert_eq!(one.messages().len(), 1);
}

#[tokio::test]
async fn a_refusal_in_the_transaction_is_not_taken_to_another_host() {
    let (one, two) = pair(|t| t.is("RCPT").then_some(Do::Say("450 4.2.0 greylisted"))).await;
    let mut job = job(&["a@x.example"]);
    job.target = mx(&[loopback(1), loopback(2)]);
    let done = deliver(&smtp(config(one.port())), job).await;
    assert_eq!(summary(&done), ["Temporary rcpt 4.2.0 450"]);
    assert_eq!(two.connections(), 0);
}

#[tokio::test]
async fn hosts_that_stall_one_after_the_other_are_not_all_waited_for() {
    let stalls = |t: &Turn| (t.said == "connect").then_some(Do::Silence);
    let (one, two) = pair(stalls).await;
    let mut both = job(&["a@x.example"]);
    // Nobody is at the first address: that costs nothing, and does not count.
    both.target = mx(&[loopback(8), loopback(1), loopback(2)]);
    let silent = ["Temporary banner 4.4.2 Timeout"];
    for change in [
        |config: &mut SmtpConfig| config.max_peers = 1,
        |config: &mut SmtpConfig| config.timeouts.attempt = SHORT / 2,
    ] {
        let mut config = config(one.port());
        config.timeouts.banner = SHORT;
        change(&mut config);
        let done = deliver(&smtp(config), both.clone()).await;
        assert_eq!(summary(&done), silent);
        assert_eq!(done.contact, Contact::Failed, "the site is left alone");
        assert_eq!(two.connections(), 0);
    }
    assert_eq!(one.connections(), 2);
    // With time and patience the other is found.
    let mut config = config(one.port());
    config.timeouts.banner = SHORT;
    let done = deliver(&smtp(config), both).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
}

#[tokio::test]
async fn a_peer_that_stalls_at_every_step_has_one_limit_for_all_of_them() {
    // Each step alone may take longer than the test may.
    let long = Duration::from_secs(600);
    for (at, stage) in [("connect", "banner"), ("EHLO", "ehlo"), ("HELO", "ehlo")] {
        let peer = Peer::start(move |t| match t {
            t if t.said.starts_with(at) => Some(Do::Silence),
            t if t.is("EHLO") => Some(Do::Say("502 5.5.1 what?")),
            _ => None,
        })
        .await;
        let mut config = config(peer.port());
        (config.timeouts.banner, config.timeouts.ehlo) = (long, long);
        config.timeouts.opening = SHORT;
        let done = deliver(&smtp(config), job(&["a@x.example"])).await;
        let expected = format!("Temporary {stage} 4.4.2 Timeout");
        assert_eq!(summary(&done), [expected]);
    }
}

#[tokio::test]
async fn each_recipient_is_told_of_the_host_that_answered_for_it() {
    // Takes one message, and then no more connections.
    let first = |t: &Turn| match t {
        t if t.is("EHLO") => Some(Do::Say("250-peer.example\n250 LIMITS RCPTMAX=1")),
        t if t.is("MAIL") && t.mails == 2 => Some(Do::SayAndClose("421 4.7.0 enough")),
        t if t.said == "connect" && t.connection > 0 => Some(Do::SayAndClose("421 4.7.0 enough")),
        _ => None,
    };
    let (one, two) = pair(first).await;
    let mut both = job(&["a@x.example", "b@x.example", "c@x.example"]);
    both.target = mx(&[loopback(1), loopback(2)]);
    let done = deliver(&smtp(config(one.port())), both).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"; 3]);
    let hosts: Vec<_> = done.results.iter().map(|r| r.hop.host.as_deref()).collect();
    let (first_host, second_host) = (Some("mx1.example"), Some("mx2.example"));
    assert_eq!(hosts, [first_host, second_host, second_host]);
    assert_eq!((one.messages().len(), two.messages().len()), (1, 1));

    // Nobody takes the rest: the site took mail all the same.
    let alone = Peer::start(first).await;
    let smtp = smtp(config(alone.port()));
    let done = deliver(&smtp, job(&["a@x.example", "b@x.example"])).await;
    let expected = ["Delivered dot 2.0.0 250", "Temporary banner 4.7.0 421"];
    assert_eq!(summary(&done), expected);
    assert_eq!(done.contact, Contact::Reached);
}

#[tokio::test]
async fn helo_where_ehlo_is_unknown() {
    let peer = Peer::start(|t| t.is("EHLO").then_some(Do::Say("502 5.5.1 what?"))).await;
    let smtp = smtp(config(peer.port()));
    let done = deliver(&smtp, job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    assert_eq!(peer.commands()[1], "0 HELO gate.example");

    let peer =
        Peer::start(|t| (t.is("EHLO") || t.is("HELO")).then_some(Do::Say("550 5.7.1 no"))).await;
    let done = deliver(
        &crate::common::smtp(config(peer.port())),
        job(&["a@x.example"]),
    )
    .await;
    assert_eq!(summary(&done), ["Temporary ehlo 4.7.1 550"]);
    assert_eq!(done.contact, Contact::Failed);
}

#[tokio::test]
async fn a_server_of_our_own_name_is_ourselves() {
    let peer = Peer::start(|t| {
        t.is("EHLO")
            .then_some(Do::Say("250-GATE.example at your service\n250 PIPELINING"))
    })
    .await;
    let done = deliver(&smtp(config(peer.port())), job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Permanent ehlo 5.4.6 LoopsToSelf"]);
    assert_eq!(done.contact, Contact::Untried);
    assert_eq!(peer.count("MAIL"), 0);
}

#[tokio::test]
async fn forbidden_addresses_are_never_called() {
    let peer = Peer::start(|_| None).await;
    let mut strict = config(peer.port());
    strict.allow_private = false;
    let strict = smtp(strict);
    let done = deliver(&strict, job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Permanent dns 5.4.6 ForbiddenAddress"]);

    let mut to_server = job(&["a@x.example"]);
    let mut target = endpoint(peer.port(), TlsMode::None);
    target.allow_private = false;
    to_server.target = Target::Endpoint(Arc::new(target));
    let lax = smtp(config(peer.port()));
    let done = deliver(&lax, to_server).await;
    assert_eq!(summary(&done), ["Permanent dns 5.4.6 ForbiddenAddress"]);
    assert_eq!(peer.connections(), 0);
}

/// Names that a tenant could register with a public address, and point elsewhere afterwards.
#[tokio::test]
async fn a_tenant_s_server_is_checked_at_each_use_and_never_on_our_own_network() {
    let dns = Dns::start().await;
    // All that is called at all ends here.
    let peer = Peer::start(|_| None).await;
    let smtp = Smtp::new(config(1), dns_at(dns.address), Arc::new(OsClock)).unwrap();
    let target_at = |host: &str, allow_private| {
        let mut job = job(&["a@x.example"]);
        let mut target = endpoint(peer.port(), TlsMode::None);
        target.host = host.to_owned();
        target.allow_private = allow_private;
        job.target = Target::Endpoint(Arc::new(target));
        job
    };
    let forbidden = ["Permanent dns 5.4.6 ForbiddenAddress"];
    for (n, address) in [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::1",
        "fe80::1",
        "fd00::1",
        "ff02::1",
    ]
    .iter()
    .enumerate()
    {
        // As it is written, and behind a name.
        let name = format!("smtp{n}.tenant.example");
        dns.ip(&name, address);
        for host in [*address, name.as_str()] {
            let done = deliver(&smtp, target_at(host, false)).await;
            assert_eq!(summary(&done), forbidden, "{host} {address}");
            assert_eq!(done.contact, Contact::Untried);
        }
    }
    // The name was good once: what it stands for now is what counts.
    dns.ip("moves.example", "127.0.0.1");
    let done = deliver(&smtp, target_at("moves.example", true)).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    let done = deliver(&smtp, target_at("moves.example", false)).await;
    assert_eq!(
        summary(&done),
        forbidden,
        "not over a kept connection either"
    );
    assert_eq!(peer.connections(), 1);
}

#[tokio::test]
async fn nobody_is_led_to_the_gateway_s_own_listeners() {
    let ourselves = Peer::start(|_| None).await;
    let port = ourselves.port();
    for listeners in [
        vec![ourselves.address],
        vec![std::net::SocketAddr::from(([0, 0, 0, 0], port))],
        vec![std::net::SocketAddr::from((
            std::net::Ipv6Addr::UNSPECIFIED,
            port,
        ))],
    ] {
        let smtp = smtp(config(port));
        smtp.listens_at(listeners);
        let mut to_server = job(&["a@x.example"]);
        to_server.target = Target::Endpoint(Arc::new(endpoint(port, TlsMode::None)));
        for job in [job(&["a@x.example"]), to_server] {
            let done = deliver(&smtp, job).await;
            assert_eq!(summary(&done), ["Permanent dns 5.4.6 LoopsToSelf"]);
        }
        // The other port of the same address is somebody else.
        let other = Peer::start(|_| None).await;
        let mut to_other = job(&["a@x.example"]);
        to_other.target = Target::Endpoint(Arc::new(endpoint(other.port(), TlsMode::None)));
        assert_eq!(
            summary(&deliver(&smtp, to_other).await),
            ["Delivered dot 2.0.0 250"]
        );
    }
    assert_eq!(ourselves.connections(), 0);

    // Behind a port forwarder it is known by its name.
    let mirror = Peer::start(|t| t.is("EHLO").then_some(Do::Say("250 gate.example"))).await;
    let mut to_mirror = job(&["a@x.example"]);
    to_mirror.target = Target::Endpoint(Arc::new(endpoint(mirror.port(), TlsMode::None)));
    let done = deliver(&smtp(config(1)), to_mirror).await;
    assert_eq!(summary(&done), ["Permanent ehlo 5.4.6 LoopsToSelf"]);
    assert_eq!(mirror.count("MAIL"), 0);
}

#[tokio::test]
async fn the_source_address_is_used() {
    let peer = Peer::start(|_| None).await;
    let smtp = smtp(config(peer.port()));
    let mut from = job(&["a@x.example"]);
    from.source = Some(loopback(7));
    let done = deliver(&smtp, from).await;
    assert_eq!(done.results[0].hop.source, Some(loopback(7)));
    let mut other_family = job(&["a@x.example"]);
    other_family.source = Some("::1".parse().unwrap());
    let done = deliver(&smtp, other_family).await;
    assert_eq!(summary(&done), ["Temporary connect 4.4.1 ConnectRefused"]);
}

#[tokio::test]
async fn endpoints_are_resolved_and_authenticated_to() {
    let dns = Dns::start().await;
    dns.ip("smtp.tenant.example", "127.0.0.1");
    let (tls, pem) = certificate(&["smtp.tenant.example"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("roots.pem");
    std::fs::write(&file, pem).unwrap();
    let plain = "250-peer.example\n250 AUTH PLAIN LOGIN";
    let login = "250-peer.example\n250 AUTH LOGIN";
    let none = "250-peer.example\n250 AUTH XOAUTH2";
    let ok = "235 2.7.0 welcome";
    let delivered = "Delivered dot 2.0.0 250";
    let failed = "Temporary auth 4.7.8 AuthFailed";
    for (mechanisms, mode, answer, said, expected) in [
        (
            plain,
            TlsMode::StartTls,
            ok,
            "0s AUTH PLAIN AHUAcA==",
            delivered,
        ),
        (
            plain,
            TlsMode::Opportunistic,
            ok,
            "0s AUTH PLAIN AHUAcA==",
            delivered,
        ),
        (login, TlsMode::StartTls, ok, "0s cA==", delivered),
        (none, TlsMode::StartTls, ok, "0s EHLO gate.example", failed),
        (
            plain,
            TlsMode::StartTls,
            "535 5.7.8 no",
            "0s AUTH PLAIN AHUAcA==",
            failed,
        ),
        (login, TlsMode::StartTls, "535 5.7.8 no", "0s cA==", failed),
        (
            plain,
            TlsMode::StartTls,
            "454 4.7.0 later",
            "0s AUTH PLAIN AHUAcA==",
            failed,
        ),
    ] {
        let peer = Peer::with_tls(tls.clone(), move |t| match t {
            t if t.is("EHLO") && t.tls => Some(Do::Say(mechanisms)),
            t if t.is("EHLO") => Some(Do::Say("250-peer.example\n250 STARTTLS")),
            t if t.said == "AUTH LOGIN" => Some(Do::Say("334 VXNlcm5hbWU6")),
            t if t.said == "dQ==" => Some(Do::Say("334 UGFzc3dvcmQ6")),
            t if t.said == "cA==" || t.is("AUTH") => Some(Do::Say(answer)),
            _ => None,
        })
        .await;
        let mut config = config(1);
        config.trust_anchors = TrustAnchors::File(file.clone());
        let smtp = Smtp::new(config, dns_at(dns.address), Arc::new(OsClock)).unwrap();
        let mut to = job(&["a@x.example"]);
        let mut target = endpoint(peer.port(), mode);
        target.host = "smtp.tenant.example".to_owned();
        target.auth = Some(("u".to_owned(), "p".to_owned()));
        to.target = Target::Endpoint(Arc::new(target));
        let done = deliver(&smtp, to).await;
        assert_eq!(summary(&done), [expected], "{mechanisms} {answer}");
        let contact = if expected == failed {
            Contact::Failed
        } else {
            Contact::Reached
        };
        assert_eq!(done.contact, contact);
        assert!(
            peer.commands().iter().any(|c| c == said),
            "{:?}",
            peer.commands()
        );
        assert!(!peer.commands().iter().any(|c| c.starts_with("0 AUTH")));
    }
}

#[tokio::test]
async fn credentials_go_in_clear_to_loopback_but_where_tls_is_required() {
    let peer = Peer::start(|t| match t {
        t if t.is("EHLO") => Some(Do::Say("250-peer.example\n250 AUTH PLAIN")),
        t if t.is("AUTH") => Some(Do::Say("235 ok")),
        _ => None,
    })
    .await;
    for (mode, expected) in [
        (TlsMode::Opportunistic, "Delivered dot 2.0.0 250"),
        (TlsMode::None, "Delivered dot 2.0.0 250"),
        (TlsMode::StartTls, "Temporary starttls 4.7.5 TlsRequired"),
    ] {
        let mut to = job(&["a@x.example"]);
        let mut target = endpoint(peer.port(), mode);
        target.auth = Some(("u".to_owned(), "p".to_owned()));
        to.target = Target::Endpoint(Arc::new(target));
        let done = deliver(&smtp(config(1)), to).await;
        assert_eq!(summary(&done), [expected]);
    }
}

#[tokio::test]
async fn a_configured_server_that_can_not_be_found_is_waited_for() {
    let dns = Dns::start().await;
    // A name without an address.
    dns.mx("empty.example", 10, "mx.example");
    let ourselves = Peer::start(|_| None).await;
    let smtp = Smtp::new(config(1), dns_at(dns.address), Arc::new(OsClock)).unwrap();
    smtp.listens_at(vec![ourselves.address]);
    let unavailable = "Temporary dns 4.3.2 RelayUnavailable";
    for (host, of_tenant, expected, why) in [
        ("nowhere.example", false, unavailable, "does not exist"),
        ("nowhere.example", true, unavailable, "does not exist"),
        (
            "empty.example",
            false,
            unavailable,
            "neither MX nor address",
        ),
        ("empty.example", true, unavailable, "neither MX nor address"),
        ("127.0.0.1", false, unavailable, "this gateway"),
        ("127.0.0.1", true, "Permanent dns 5.4.6 LoopsToSelf", ""),
    ] {
        let mut to = job(&["a@x.example"]);
        let mut target = endpoint(ourselves.port(), TlsMode::None);
        target.host = host.to_owned();
        target.of_tenant = of_tenant;
        to.target = Target::Endpoint(Arc::new(target));
        let done = deliver(&smtp, to).await;
        assert_eq!(summary(&done), [expected], "{host}");
        if expected == unavailable {
            assert_eq!(done.contact, Contact::Failed, "the relay is down");
            let detail = done.results[0].outcome.detail.clone().unwrap();
            assert!(detail.contains(why), "{detail}");
        }
    }
    assert_eq!(ourselves.connections(), 0);
}
