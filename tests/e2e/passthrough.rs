//! Passthrough: one attempt at the tenant's own server within the submission, whose answer is the
//! CRM's answer, and no record of the outcome.

use tidegate_tests::client::Answer;
use tidegate_tests::gateway::{kinds, policy};
use tidegate_tests::internet::Internet;
use tidegate_tests::mail::Mail;
use tidegate_tests::sink::{Behaviour, Destination, Stage};
use tidegate_tests::tls::Identity;

use super::{SENDER, SOON, World};

const TO_OFFICE: &str = r#"{
    "rules": [
        { "recipient_domain": ["partner.test"],
          "action": { "passthrough": { "server": "office" } } }
    ]
}"#;

/// A world whose tenant passes mail for partner.test through its own server.
fn world() -> (World, Destination) {
    let mut world = World::start();
    let ip = world.internet.unused();
    let office = Destination::start(ip, 0, Behaviour::accept()).unwrap();
    world
        .gateway
        .server("acme", "office", office.address())
        .unwrap();
    world
        .gateway
        .policy(
            "routing/acme",
            &policy("routing-default").unwrap(),
            TO_OFFICE,
        )
        .unwrap();
    (world, office)
}

#[test]
fn what_the_server_takes_is_there_before_the_reply() {
    let (world, office) = world();
    let mail = Mail::new(SENDER, &["b@partner.test"], "through").body("as it is\r\n");
    let answer = world.crm().send(&mail).unwrap();
    assert!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");
    let arrived = office.mail();
    assert_eq!(arrived.len(), 1, "already there");
    assert_eq!(arrived[0].to, ["b@partner.test"]);
    assert!(arrived[0].text().ends_with(&mail.text()));
    assert_eq!(office.protocol_errors(), Vec::<String>::new());

    let found = world
        .gateway
        .json(&["log", "--recipient", "b@partner.test"])
        .unwrap();
    let kinds = kinds(&found[0]);
    assert!(
        kinds.iter().any(|kind| kind == "passthrough-tried"),
        "{found}"
    );
    for outcome in ["delivered", "bounced", "deferred"] {
        assert!(!kinds.iter().any(|kind| kind == outcome), "{found}");
    }
    assert!(
        !found.to_string().contains("2.0.0 taken"),
        "no outcome: {found}"
    );
    world.wait_empty();
}

#[test]
fn what_the_server_refuses_is_refused_to_the_crm() {
    let (world, office) = world();
    let mail = Mail::new(SENDER, &["gone@partner.test"], "through");
    for (behaviour, expected) in [
        (
            Behaviour::accept().reply_to("gone@partner.test", "550 5.1.1 not with us"),
            550,
        ),
        (
            Behaviour::accept().reply(Stage::EndOfData, "554 5.6.0 not this"),
            554,
        ),
        (
            Behaviour::accept().reply(Stage::Mail, "451 4.3.2 not now"),
            451,
        ),
    ] {
        office.behave(behaviour);
        let answer = world.crm().send(&mail).unwrap();
        let Answer::Refused { code, text } = &answer else {
            panic!("{answer:?} instead of {expected}");
        };
        assert_eq!(*code, expected, "{text}");
        assert!(text.contains("not "), "the server's own words: {text}");
    }
    assert_eq!(office.counts().messages, 0);
    world.wait_empty();
    assert_eq!(world.inbox.counts().messages, 0, "the reply was the answer");
}

#[test]
fn a_server_that_is_down_defers_the_crm_and_nothing_is_kept() {
    let (world, office) = world();
    drop(office);
    let mail = Mail::new(SENDER, &["b@partner.test"], "through");
    let answer = world.crm().send(&mail).unwrap();
    assert!(
        matches!(answer, Answer::Refused { code: 400..500, .. }),
        "{answer:?}"
    );
    world.wait_empty();
}

#[test]
fn beside_managed_recipients_a_refusal_becomes_a_notice() {
    let (mut world, office) = world();
    let customer = world.destination("customer.test", Behaviour::accept());
    office.behave(Behaviour::accept().reply_to("gone@partner.test", "550 5.1.1 not with us"));
    let mail = Mail::new(
        SENDER,
        &["a@customer.test", "gone@partner.test", "b@partner.test"],
        "to both",
    );
    world.crm().send(&mail).unwrap().id().unwrap();
    customer.wait_for(1, SOON).unwrap();
    assert_eq!(office.mail()[0].to, ["b@partner.test"]);
    let notice = world.notice("failed", "gone@partner.test");
    notice.check_form(&mail.message_id);
    notice.says("Status: 5.1.1");
    assert!(!notice.status().contains("a@customer.test"));
}

#[test]
fn the_servers_password_travels_over_verified_tls_only_and_is_not_shown() {
    const SECRET: &str = "secret of the tenant";
    let mut internet = Internet::start().unwrap();
    let ip = internet.unused();
    let host = ip.to_string();
    let identity = Identity::new(&[&host]).unwrap();
    let anchors = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(anchors.path(), &identity.certificate_pem).unwrap();
    let anchors = anchors.path().display().to_string();
    let world = World::on(internet, |options| {
        options.set("delivery.trust_anchors", anchors.as_str())
    });
    let behaviour = || Behaviour::accept().login("relay", SECRET);
    let office = Destination::start(ip, 0, behaviour().starttls(&identity)).unwrap();
    let port = office.address().port().to_string();
    let file = world.gateway.secret(SECRET).unwrap();
    let add = |tls: &str| {
        let words = ["server", "add", "office", "--tenant", "acme", "--replace"];
        let place = ["--host", &host, "--port", &port, "--tls", tls];
        let login = ["--user", "relay", "--password-file", &file];
        world.gateway.run(&[&words[..], &place, &login].concat())
    };
    let refused = add("none").unwrap_err().to_string();
    assert!(refused.contains("TLS"), "{refused}");
    add("start-tls").unwrap();
    world
        .gateway
        .policy(
            "routing/acme",
            &policy("routing-default").unwrap(),
            TO_OFFICE,
        )
        .unwrap();

    let mail = Mail::new(SENDER, &["b@partner.test"], "through");
    let answer = world.crm().send(&mail).unwrap();
    assert!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");
    assert!(office.mail()[0].tls);

    // A server that shows another certificate, or none, gets no password.
    let other = Identity::new(&[&host]).unwrap();
    office.behave(behaviour().starttls(&other));
    office.hang_up();
    let answer = world.crm().send(&mail).unwrap();
    assert!(
        matches!(answer, Answer::Refused { code: 400..500, .. }),
        "{answer:?}"
    );
    office.behave(behaviour());
    office.hang_up();
    let answer = world.crm().send(&mail).unwrap();
    assert!(
        matches!(answer, Answer::Refused { code: 400..500, .. }),
        "{answer:?}"
    );
    assert_eq!(office.counts().messages, 1);

    let shown = world.gateway.run(&["server", "list", "--json"]).unwrap();
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(!world.gateway.said().contains(SECRET));
}
