//! How connections to destinations are protected: DANE, MTA-STS, REQUIRETLS, and what the log says
//! of them.

use serde_json::Value;
use tidegate_tests::client::{Crm, Protection};
use tidegate_tests::https::Https;
use tidegate_tests::internet::Internet;
use tidegate_tests::mail::Mail;
use tidegate_tests::sink::Behaviour;
use tidegate_tests::tls::Identity;

use super::{PASSWORD, SENDER, SOON, USER, World};

const ENFORCE: &str = "version: STSv1\nmode: enforce\nmx: mx.guarded.test\nmax_age: 86400\n";
const TESTING: &str = "version: STSv1\nmode: testing\nmx: other.test\nmax_age: 86400\n";

/// The last attempt of a mail that the log shows with this kind.
fn attempt(world: &World, id: &str, kind: &str) -> Value {
    let entry = world.gateway.wait_logged(id, kind, SOON).unwrap();
    let events = entry["events"].as_array().unwrap();
    let found = events.iter().rev().find(|event| event["kind"] == kind);
    found.unwrap().clone()
}

#[test]
fn the_log_says_what_a_domain_demanded_and_why_an_attempt_failed() {
    let mut internet = Internet::start().unwrap();
    let port = internet.mx_port();
    let identity = Identity::new(&[
        "mx.guarded.test",
        "mta-sts.guarded.test",
        "mta-sts.trial.test",
    ])
    .unwrap();
    let https = Https::start(internet.gateway(), &identity).unwrap();
    let able = Behaviour::accept().starttls(&identity);
    let requiring = able.clone().extension("REQUIRETLS");
    let sealed = internet
        .destination("sealed.test", requiring.clone())
        .unwrap();
    let forged = internet.destination("forged.test", able.clone()).unwrap();
    let guarded = internet.destination("guarded.test", able.clone()).unwrap();
    let foreign = internet.destination("foreign.test", able.clone()).unwrap();
    let trial = internet.destination("trial.test", able.clone()).unwrap();
    let plain = internet.destination("plain.test", requiring).unwrap();
    for domain in ["sealed.test", "forged.test", "bogus.test"] {
        internet.dns.secure(domain);
    }
    internet.point("bogus.test", sealed_ip(&sealed));
    internet
        .dns
        .tlsa("mx.sealed.test", port, [3, 1, 0], &identity.key)
        .tlsa("mx.forged.test", port, [3, 1, 1], &[7; 32])
        .servfail(&format!("_{port}._tcp.mx.bogus.test"));
    for (domain, policy) in [
        ("guarded.test", ENFORCE),
        ("foreign.test", ENFORCE),
        ("trial.test", TESTING),
    ] {
        let host = format!("mta-sts.{domain}");
        internet
            .dns
            .host(&host, internet.gateway())
            .txt(&format!("_mta-sts.{domain}"), "v=STSv1; id=1;");
        https.serve(&host, policy);
    }
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), &identity.certificate_pem).unwrap();
    let world = World::on(internet, |options| {
        options
            .without_policies()
            .set("delivery.mta_sts_port", i64::from(https.address().port()))
            .set("delivery.trust_anchors", roots.path().to_str().unwrap())
            .set("delivery.retry", vec!["10m".to_owned()])
    });

    // Delivered as demanded.
    let id = world.send(&["a@sealed.test"], "sealed");
    let sent = attempt(&world, &id, "delivered");
    assert_eq!(sent["hop"]["tls"]["verified"], "dane", "{sent}");
    assert_eq!(sent["hop"]["tls_policy"], "dane", "{sent}");
    let told = world.gateway.run(&["log", &id]).unwrap();
    assert!(
        told.contains("TLSv1.3 verified by dane; demanded: dane"),
        "{told}"
    );
    let id = world.send(&["a@guarded.test"], "guarded");
    let sent = attempt(&world, &id, "delivered");
    assert_eq!(sent["hop"]["tls"]["verified"], "mta-sts", "{sent}");
    assert_eq!(sent["hop"]["tls_policy"], "mta-sts", "{sent}");
    assert_eq!(https.requests(), 1);
    let id = world.send(&["a@trial.test"], "trial");
    let sent = attempt(&world, &id, "delivered");
    assert_eq!(
        sent["hop"]["tls_policy"], "mta-sts testing: the policy does not name the host",
        "{sent}"
    );

    // Deferred, and why.
    for (domain, text, policy) in [
        (
            "forged.test",
            "matches none of the domain's TLSA records",
            "dane",
        ),
        ("bogus.test", "could not be learnt", "dane"),
    ] {
        let id = world.send(&[&format!("a@{domain}")], domain);
        let failed = attempt(&world, &id, "deferred");
        assert_eq!(failed["status"], "4.7.5", "{failed}");
        assert_eq!(failed["hop"]["tls_policy"], policy, "{failed}");
        let said = failed["text"].as_str().unwrap();
        assert!(said.contains(text), "{failed}");
        let told = world.gateway.run(&["log", &id]).unwrap();
        assert!(
            told.contains(text) && told.contains("demanded: dane"),
            "{told}"
        );
    }
    // The policy host's certificate is for others: there is no policy, so the mail goes.
    let id = world.send(&["a@foreign.test"], "foreign");
    let sent = attempt(&world, &id, "delivered");
    assert_eq!(sent["hop"]["tls_policy"], Value::Null, "{sent}");
    assert_eq!(foreign.counts().messages, 1);

    // The message itself says that it may go without protection.
    let mail = Mail::new(SENDER, &["a@forged.test"], "postcard").field("TLS-Required", "No");
    let id = world.crm().send(&mail).unwrap().id().unwrap();
    let sent = attempt(&world, &id, "delivered");
    assert_eq!(sent["hop"]["tls_policy"], "TLS-Required: No", "{sent}");
    assert_eq!(forged.counts().messages, 1);

    // REQUIRETLS is offered under TLS, kept, and refused where it can't be.
    let trust = world.gateway.trust().unwrap();
    let address = world.gateway.submission();
    let mut crm = Crm::connect(address, &Protection::StartTls(trust), USER, PASSWORD).unwrap();
    let secret = |to: &str| {
        Mail::new(SENDER, &[to], "secret")
            // mail-send writes `=` behind every name.
            .mail_parameter("REQUIRETLS RET", "FULL")
            .body("for nobody else\r\n")
    };
    let id = crm.send(&secret("b@sealed.test")).unwrap().id().unwrap();
    let sent = attempt(&world, &id, "delivered");
    assert_eq!(sent["hop"]["tls_policy"], "requiretls", "{sent}");
    let arrived = sealed.wait_for(2, SOON).unwrap().remove(1);
    let parameters: Vec<&str> = arrived.from_parameters.split(' ').collect();
    assert!(
        parameters.contains(&"REQUIRETLS") && parameters.contains(&"RET=HDRS"),
        "{parameters:?}"
    );
    let mail = secret("b@plain.test");
    let id = crm.send(&mail).unwrap().id().unwrap();
    let failed = attempt(&world, &id, "bounced");
    assert_eq!(failed["status"], "5.7.10", "{failed}");
    let notice = world.notice("failed", "b@plain.test");
    notice.check_form(&mail.message_id);
    notice.says("Status: 5.7.10");
    assert!(!notice.mail.text().contains("for nobody else"), "RET=HDRS");
    assert_eq!(plain.counts().messages, 0);
    for destination in [&sealed, &forged, &guarded, &foreign, &trial, &plain] {
        assert_eq!(destination.protocol_errors(), Vec::<String>::new());
    }
}

fn sealed_ip(destination: &tidegate_tests::sink::Destination) -> std::net::Ipv4Addr {
    match destination.address().ip() {
        std::net::IpAddr::V4(ip) => ip,
        std::net::IpAddr::V6(ip) => panic!("{ip} is no IPv4 address"),
    }
}
