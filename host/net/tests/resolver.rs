//! The resolver against a real DNS server on loopback.

mod common;

use std::sync::Arc;

use common::SHORT;
use common::dns::Dns;
use hickory_proto::rr::RecordType;
use tidegate_mail::Outcome;
use tidegate_net::clock::OsClock;
use tidegate_net::resolver::{DnsConfig, DnsResolver};
use tidegate_queue::ports::{Destination, Resolver};

fn resolver(dns: &Dns, change: impl FnOnce(&mut DnsConfig)) -> DnsResolver {
    let mut config = DnsConfig {
        servers: vec![dns.address],
        timeout: SHORT,
        attempts: 1,
        own_names: vec!["gate.example".to_owned()],
        ..DnsConfig::default()
    };
    change(&mut config);
    DnsResolver::new(config, Arc::new(OsClock)).unwrap()
}

fn hosts(found: &Result<Arc<Destination>, Outcome>) -> Vec<String> {
    let show = |h: &tidegate_queue::ports::MxHost| {
        let ips: Vec<String> = h.addresses.iter().map(ToString::to_string).collect();
        format!("{} {} {}", h.preference, h.name, ips.join(","))
    };
    found.as_ref().unwrap().hosts.iter().map(show).collect()
}

fn fault(found: Result<Arc<Destination>, Outcome>) -> String {
    common::line(&found.unwrap_err())
}

#[tokio::test]
async fn mx_hosts_come_by_preference_with_their_addresses() {
    let dns = Dns::start().await;
    dns.mx("a.example", 20, "MX2.a.example")
        .mx("a.example", 10, "mx1.a.example")
        .mx("a.example", 30, "gone.a.example")
        .ip("mx1.a.example", "203.0.113.1")
        .ip("mx1.a.example", "203.0.113.2")
        .ip("mx1.a.example", "2a01:db8::1")
        .ip("mx2.a.example", "203.0.113.3");
    let resolver = resolver(&dns, |_| {});
    let found = resolver.resolve("a.example").await;
    assert_eq!(
        hosts(&found),
        [
            "10 mx1.a.example 2a01:db8::1,203.0.113.1,203.0.113.2",
            "20 mx2.a.example 203.0.113.3",
            "30 gone.a.example ",
        ]
    );
    let found = found.unwrap();
    assert!(found.site.starts_with("a.example~"), "{}", found.site);
    assert!(found.valid_until > tidegate_queue::ports::Clock::now(&OsClock));
}

#[tokio::test]
async fn failures_are_told_apart() {
    let dns = Dns::start().await;
    dns.mx("null.example", 0, ".")
        .mx("bare.example", 10, "nowhere.example")
        .ip("nodata.example", "10.0.0.1")
        .mx("inside.example", 10, "inner.example")
        .ip("inner.example", "192.168.1.1")
        .mx("loop.example", 10, "GATE.example")
        .mx("loop.example", 20, "worse.example")
        .ip("worse.example", "203.0.113.9")
        .fails("fail.example", RecordType::MX)
        .silent("mute.example", RecordType::MX)
        .mx("half.example", 10, "half-mx.example")
        .fails("half-mx.example", RecordType::A)
        .fails("half-mx.example", RecordType::AAAA);
    let resolver = resolver(&dns, |_| {});
    for (domain, expected) in [
        ("null.example", "Permanent dns 5.1.10 NullMx"),
        ("nx.example", "Permanent dns 5.1.2 NoSuchDomain"),
        ("bare.example", "Permanent dns 5.4.4 NoAddress"),
        ("nodata.example", "Permanent dns 5.4.6 ForbiddenAddress"),
        ("inside.example", "Permanent dns 5.4.6 ForbiddenAddress"),
        ("loop.example", "Permanent dns 5.4.6 LoopsToSelf"),
        ("gate.example", "Permanent dns 5.1.2 NoSuchDomain"),
        ("fail.example", "Temporary dns 4.4.3 DnsUnavailable"),
        ("mute.example", "Temporary dns 4.4.3 DnsUnavailable"),
        ("half.example", "Temporary dns 4.4.3 DnsUnavailable"),
        ("[127.0.0.1]", "Permanent dns 5.4.6 ForbiddenAddress"),
        ("[IPv6:::1]", "Permanent dns 5.4.6 ForbiddenAddress"),
        ("[nonsense]", "Permanent dns 5.1.2 NoSuchDomain"),
    ] {
        let found = resolver.resolve(domain).await;
        assert_eq!(fault(found), expected, "{domain}");
    }
}

#[tokio::test]
async fn implicit_mx_literals_and_private_addresses_where_allowed() {
    let dns = Dns::start().await;
    dns.ip("plain.example", "203.0.113.7")
        .ip("inner.example", "127.0.0.1");
    let strict = resolver(&dns, |_| {});
    assert_eq!(
        hosts(&strict.resolve("plain.example").await),
        ["0 plain.example 203.0.113.7"]
    );
    assert_eq!(
        hosts(&strict.resolve("[203.0.113.4]").await),
        ["0 [203.0.113.4] 203.0.113.4"]
    );
    let lax = resolver(&dns, |c| c.allow_private = true);
    assert_eq!(
        hosts(&lax.resolve("inner.example").await),
        ["0 inner.example 127.0.0.1"]
    );
    assert_eq!(
        hosts(&lax.resolve("[IPv6:::1]").await),
        ["0 [IPv6:::1] ::1"]
    );
}

#[tokio::test]
async fn we_and_what_is_worse_than_us_are_left_out() {
    let dns = Dns::start().await;
    dns.mx("b.example", 10, "best.example")
        .mx("b.example", 20, "gate.example")
        .mx("b.example", 20, "equal.example")
        .mx("b.example", 30, "worse.example")
        .ip("best.example", "203.0.113.1")
        .ip("equal.example", "203.0.113.2")
        .ip("worse.example", "203.0.113.3")
        .ip("gate.example", "203.0.113.4");
    let resolver = resolver(&dns, |_| {});
    assert_eq!(
        hosts(&resolver.resolve("b.example").await),
        ["10 best.example 203.0.113.1"]
    );
    // Mail for our own name, which has an address and no MX.
    assert_eq!(
        fault(resolver.resolve("gate.example").await),
        "Permanent dns 5.4.6 LoopsToSelf"
    );
}

#[tokio::test]
async fn one_host_that_fails_does_not_fail_the_others() {
    let dns = Dns::start().await;
    dns.mx("c.example", 10, "bad.example")
        .mx("c.example", 20, "good.example")
        .fails("bad.example", RecordType::A)
        .fails("bad.example", RecordType::AAAA)
        .ip("good.example", "203.0.113.1");
    let found = resolver(&dns, |_| {}).resolve("c.example").await;
    assert_eq!(
        hosts(&found),
        ["10 bad.example ", "20 good.example 203.0.113.1"]
    );
}

#[tokio::test]
async fn equals_are_shuffled_and_the_list_is_cut() {
    let dns = Dns::start().await;
    for n in 0..8 {
        let host = format!("mx{n}.d.example");
        dns.mx("d.example", 10, &host);
        for ip in 0..6 {
            dns.ip(&host, &format!("203.0.113.{}", n * 10 + ip));
        }
    }
    let mut orders = std::collections::HashSet::new();
    for _ in 0..20 {
        let found = resolver(&dns, |_| {}).resolve("d.example").await.unwrap();
        assert_eq!(found.hosts.len(), 5);
        assert!(found.hosts.iter().all(|h| h.addresses.len() == 4));
        orders.insert(
            found
                .hosts
                .iter()
                .map(|h| h.name.clone())
                .collect::<Vec<_>>(),
        );
    }
    assert!(orders.len() > 3, "{orders:?}");
}

#[tokio::test]
async fn asked_once_for_many_and_not_again() {
    let dns = Dns::start().await;
    dns.mx("e.example", 10, "mx.e.example")
        .ip("mx.e.example", "203.0.113.1");
    let resolver = Arc::new(resolver(&dns, |_| {}));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let resolver = resolver.clone();
        tasks.spawn(async move { resolver.resolve("e.example").await.unwrap() });
    }
    let all = tasks.join_all().await;
    assert!(all.iter().all(|d| Arc::ptr_eq(d, &all[0])));
    assert_eq!(dns.queries(), 3, "MX, A and AAAA");
    resolver.resolve("nx.example").await.unwrap_err();
    let asked = dns.queries();
    resolver.resolve("nx.example").await.unwrap_err();
    assert_eq!(dns.queries(), asked, "failures are remembered, too");
}

#[tokio::test]
async fn truncated_answers_are_asked_for_over_tcp() {
    let dns = Dns::start().await;
    dns.truncated("f.example", RecordType::MX)
        .mx("f.example", 10, "mx.f.example")
        .ip("mx.f.example", "203.0.113.1");
    assert_eq!(
        hosts(&resolver(&dns, |_| {}).resolve("f.example").await),
        ["10 mx.f.example 203.0.113.1"]
    );
}

#[tokio::test]
async fn named_servers() {
    let dns = Dns::start().await;
    dns.ip("smtp.tenant.example", "10.1.1.1");
    let resolver = resolver(&dns, |_| {});
    // Whether the address is allowed is decided at use.
    let found = resolver
        .host_addresses("smtp.tenant.example")
        .await
        .unwrap();
    assert_eq!(found, ["10.1.1.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(resolver.host_addresses("::1").await.unwrap().len(), 1);
    let none = resolver.host_addresses("nx.example").await.unwrap_err();
    assert_eq!(common::line(&none), "Permanent dns 5.1.2 NoSuchDomain");
}
