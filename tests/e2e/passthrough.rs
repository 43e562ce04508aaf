//! Passthrough: one attempt at the tenant's own server within the submission, whose answer is the
//! CRM's answer, and no record of the outcome.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Instant;

use tidegate_tests::client::Answer;
use tidegate_tests::eventually;
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

#[test]
fn a_server_that_hangs_at_any_stage_defers_the_crm_in_time() {
    let world = World::with(|options| options.set("delivery.passthrough_timeout", "1s"));
    world
        .gateway
        .policy(
            "routing/acme",
            &policy("routing-default").unwrap(),
            TO_OFFICE,
        )
        .unwrap();
    let ip = Ipv4Addr::LOCALHOST;
    // It is connected to by the kernel, and nobody is there.
    let deaf = TcpListener::bind((ip, 0)).unwrap();
    let silent: Vec<Destination> = [Stage::Ehlo, Stage::Mail, Stage::Rcpt, Stage::EndOfData]
        .map(|stage| Destination::start(ip, 0, Behaviour::accept().silent_at(stage)).unwrap())
        .into();
    let mut places: Vec<SocketAddr> = silent.iter().map(Destination::address).collect();
    places.push(deaf.local_addr().unwrap());
    for place in places {
        let (host, port) = (place.ip().to_string(), place.port().to_string());
        let words = ["server", "add", "office", "--tenant", "acme", "--replace"];
        let at = ["--host", &host, "--port", &port, "--tls", "none"];
        world.gateway.run(&[&words[..], &at].concat()).unwrap();
        let begun = Instant::now();
        let answer = world
            .crm()
            .send(&Mail::new(SENDER, &["b@partner.test"], "through"))
            .unwrap();
        assert!(
            matches!(answer, Answer::Refused { code: 451, .. }),
            "{place}: {answer:?}"
        );
        // Far below the stage's own time-out on a quiet machine; generous on a busy one.
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    world.wait_empty();
    assert_eq!(world.inbox.counts().messages, 0);
}

/// Whether a file below the directory has these bytes.
fn is_written_down(below: &Path, words: &str) -> Option<String> {
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let found = if path.is_dir() {
            is_written_down(&path, words)
        } else {
            // A socket or a file that has gone meanwhile holds nothing.
            let bytes = std::fs::read(&path).unwrap_or_default();
            let needle = words.as_bytes();
            bytes
                .windows(needle.len())
                .any(|window| window == needle)
                .then(|| path.display().to_string())
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

#[test]
fn the_outcome_of_a_passthrough_is_written_down_nowhere() {
    let (mut world, office) = world();
    for reply in [
        "550 5.1.1 zebrafish gone",
        "451 4.3.2 zebrafish later",
        "250 2.0.0 zebrafish taken",
    ] {
        office.behave(Behaviour::accept().reply(Stage::EndOfData, reply));
        let mail = Mail::new(SENDER, &["b@partner.test"], "through");
        let answer = format!("{:?}", world.crm().send(&mail).unwrap());
        assert!(answer.contains("zebrafish"), "the CRM is told: {answer}");
    }
    let found = world
        .gateway
        .json(&["log", "--recipient", "b@partner.test"])
        .unwrap();
    assert_eq!(found.as_array().map(Vec::len), Some(3), "each is logged");

    // Where the policy is asked again, with the server's answer, what it says may be that the
    // managed relay takes over; why it does is written down neither.
    let partner = world.destination("partner.test", Behaviour::accept());
    world
        .gateway
        .policy(
            "routing/acme",
            &policy("routing-default").unwrap(),
            &TO_OFFICE.replace("\"office\"", "\"office\", \"after_failure\": \"managed\""),
        )
        .unwrap();
    for (n, reply) in ["550 5.1.1 zebrafish gone", "451 4.3.2 zebrafish later"]
        .into_iter()
        .enumerate()
    {
        office.behave(Behaviour::accept().reply(Stage::EndOfData, reply));
        world.send(&["b@partner.test"], "taken over");
        partner.wait_for(n + 1, SOON).unwrap();
    }
    // Decisions are written in the order in which they were made.
    world.send(&["last@customer.test"], "the last");
    let inputs = eventually("the decisions are on record", SOON, || {
        let lines = world.gateway.run(&["policy", "inputs", "export"]).unwrap();
        lines.contains("last@customer.test").then_some(lines)
    })
    .unwrap();
    assert_eq!(inputs.lines().count(), 6, "one for each mail: {inputs}");
    for word in ["zebrafish", "passthrough_failed"] {
        assert!(!inputs.contains(word), "{word} in {inputs}");
    }
    // Database, contents, exported log, and what the process says.
    assert_eq!(
        is_written_down(world.gateway.directory(), "zebrafish"),
        None
    );
    assert!(is_written_down(world.gateway.directory(), "b@partner.test").is_some());
}

#[test]
fn a_tenant_can_not_make_the_gateway_talk_to_itself() {
    let world = World::start();
    let add = |host: &str, port: u16| {
        let port = port.to_string();
        let words = ["server", "add", "office", "--tenant", "acme", "--replace"];
        let at = ["--host", host, "--port", &port, "--tls", "none"];
        world.gateway.run(&[&words[..], &at].concat())
    };
    // Private destinations are allowed here, so that only the gateway itself is left.
    let own = world.gateway.smtp();
    let refused = add(&own.ip().to_string(), own.port()).unwrap_err();
    let refused = refused.to_string();
    assert!(
        refused.contains("host") && refused.contains("this gateway itself"),
        "{refused}"
    );
    // A name passes, and is looked at when it is used.
    world.internet.dns.host("trick.acme.test", own.ip());
    add("trick.acme.test", own.port()).unwrap();
    world
        .gateway
        .policy(
            "routing/acme",
            &policy("routing-default").unwrap(),
            TO_OFFICE,
        )
        .unwrap();
    let answer = world
        .crm()
        .send(&Mail::new(SENDER, &["b@partner.test"], "through"))
        .unwrap();
    let Answer::Refused { code, text } = &answer else {
        panic!("{answer:?}");
    };
    assert_eq!(*code, 550);
    assert!(text.contains("5.4.6"), "{text}");
    world.wait_empty();
}

#[test]
fn a_tenant_can_not_make_the_gateway_talk_to_its_network() {
    let world = World::with(|options| options.set("delivery.allow_private_destinations", false));
    let office = Destination::start(Ipv4Addr::LOCALHOST, 0, Behaviour::accept()).unwrap();
    let port = office.address().port().to_string();
    let add = |host: &str| {
        let words = ["server", "add", "office", "--tenant", "acme", "--replace"];
        let at = ["--host", host, "--port", &port, "--tls", "none"];
        world.gateway.run(&[&words[..], &at].concat())
    };
    for host in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "fd00::1",
    ] {
        let refused = add(host).unwrap_err().to_string();
        assert!(refused.contains("own network"), "{host}: {refused}");
    }
    world
        .gateway
        .policy(
            "routing/acme",
            &policy("routing-default").unwrap(),
            TO_OFFICE,
        )
        .unwrap();
    // A name that stood for a public address when it was registered, and now does not.
    for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        let name = format!("n{}.acme.test", address.len());
        add(&name).unwrap();
        let address: std::net::IpAddr = address.parse().unwrap();
        world.internet.dns.host(&name, address);
        let answer = world
            .crm()
            .send(&Mail::new(SENDER, &["b@partner.test"], "through"))
            .unwrap();
        assert!(
            matches!(&answer, Answer::Refused { code: 550, text } if text.contains("5.4.6")),
            "{address}: {answer:?}"
        );
    }
    assert_eq!(office.counts().sessions, 0);
    // What a recipient's domain stands for is no way in either.
    world.internet.dns.mx("inside.test", 10, "mx.inside.test");
    world
        .internet
        .dns
        .host("mx.inside.test", office.address().ip());
    let id = world.send(&["a@inside.test"], "inside");
    world.gateway.wait_logged(&id, "bounced", SOON).unwrap();
    assert_eq!(office.counts().sessions, 0);
}
