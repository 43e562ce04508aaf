//! Notices and what operators see, over the binary: parameters of RFC 3461 on the wire, a
//! tenant's own words, the log and the queue on the command line.

use serde_json::Value;
use tidegate_tests::eventually;
use tidegate_tests::mail::Mail;
use tidegate_tests::sink::Behaviour;

use super::{SENDER, SOON, World};

/// What a destination offers that knows nothing of RFC 3461.
const WITHOUT_DSN: [&str; 4] = [
    "PIPELINING",
    "SIZE 20971520",
    "8BITMIME",
    "ENHANCEDSTATUSCODES",
];

fn stdout(world: &World, words: &[&str]) -> String {
    world.gateway.run(words).unwrap()
}

#[test]
fn dsn_parameters_are_passed_on_or_answered_over_the_wire() {
    let mut world = World::start();
    let knows = world.destination("knows.test", Behaviour::accept());
    let plain = Behaviour::accept().extensions(&WITHOUT_DSN);
    let plain = world.destination("plain.test", plain);
    let _refuses = world.destination(
        "refuses.test",
        Behaviour::accept().reply_to("gone@refuses.test", "550 5.1.1 no mailbox"),
    );
    let to = ["a@knows.test", "b@plain.test", "gone@refuses.test"];
    let mail = Mail::new(SENDER, &to, "parameters")
        .mail_parameter("RET", "FULL")
        .mail_parameter("ENVID", "rec+2B47+2B11")
        .rcpt_parameter("NOTIFY", "SUCCESS,FAILURE")
        .rcpt_parameter("ORCPT", "rfc822;first+2Bone@old.test");
    let id = world.crm().send(&mail).unwrap().id().unwrap();

    let passed = knows.wait_for(1, SOON).unwrap().remove(0);
    let upper = |text: &str| text.to_ascii_uppercase();
    assert!(upper(&passed.from_parameters).contains("RET=FULL"));
    assert!(
        passed.from_parameters.contains("ENVID=rec+2B47"),
        "{}",
        passed.from_parameters
    );
    assert!(upper(&passed.to_parameters[0]).contains("NOTIFY=SUCCESS,FAILURE"));
    assert!(
        passed.to_parameters[0].contains("ORCPT=rfc822;first"),
        "{}",
        passed.to_parameters[0]
    );
    let bare = plain.wait_for(1, SOON).unwrap().remove(0);
    for parameters in [&bare.from_parameters, &bare.to_parameters[0]] {
        for word in ["RET", "ENVID", "NOTIFY", "ORCPT"] {
            assert!(!upper(parameters).contains(word), "{parameters}");
        }
    }

    let relayed = world.notice("relayed", "b@plain.test");
    let failed = world.notice("failed", "gone@refuses.test");
    for notice in [&relayed, &failed] {
        notice.check_form(&mail.message_id);
        let text = notice.mail.text();
        assert!(
            text.contains("\r\nOriginal-Envelope-Id: rec+47+11\r\n"),
            "{text}"
        );
        notice.says("Original-Recipient: rfc822;first+one@old.test\r\n");
    }
    let whole = "this is about: parameters.";
    assert!(
        failed.mail.text().contains(whole),
        "RET=FULL: {}",
        failed.mail.text()
    );
    assert!(!relayed.mail.text().contains(whole), "headers only");
    world.wait_empty();
    // Nothing about the one whose server reports by itself.
    let notices = world.inbox.wait_for(2, SOON).unwrap();
    assert!(
        !notices
            .iter()
            .any(|n| n.text().contains("a@knows.test\r\nAction"))
    );

    // The log says what was asked, promised and told.
    let text = stdout(&world, &["log", "show", &id]);
    for expected in [
        "asked       RET=FULL ENVID=rec+47+11",
        "asked NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;first+one@old.test",
        "promised: relay mx, transactional, retried for 1h",
        "delay notice after 30m",
        "by policy ",
        "in clear",
        "at rcpt: 550 5.1.1 no mailbox",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    let entry = world.gateway.log(&id).unwrap();
    let told: Vec<&str> = entry["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["notice"].as_str())
        .collect();
    assert_eq!(told.len(), 2, "{entry}");
    for notice in told {
        assert!(text.contains(&format!("notice {notice}")), "{text}");
        let about = stdout(&world, &["log", notice]);
        assert!(about.contains(&format!("about={id}")), "{about}");
    }
}

#[test]
fn a_tenant_s_words_are_in_force_for_the_next_notice() {
    let mut world = World::start();
    let _gone = world.destination(
        "gone.test",
        Behaviour::accept()
            .reply_to("a@gone.test", "550 5.1.1 unknown")
            .reply_to("b@gone.test", "550 5.1.1 unknown"),
    );
    let file = world.gateway.directory().join("acme.toml");
    let path = file.display().to_string();
    let set = ["tenant", "wording", "set", "acme", "--file", &path];

    // What is wrong is named, and changes nothing.
    for (text, field) in [
        ("language = \"deutsch!\"", "language"),
        (
            "[texts.failure]\nopening = \"An {wen}\"",
            "texts.failure.opening",
        ),
        ("[texts.failure]\nopning = \"x\"", "opning"),
        ("contact = \"a\\nBcc: x@y\"", "contact"),
        ("contact = ", "acme.toml"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = world.gateway.cli(&set).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        assert!(
            said.contains(field) && said.contains("remedy:"),
            "{text}: {said}"
        );
    }
    let shown = world
        .gateway
        .json(&["tenant", "wording", "show", "acme"])
        .unwrap();
    assert_eq!(shown["own"], false);

    let german = "language = \"de\"\ncontact = \"die Hilfe (hilfe@acme.test)\"\n[texts.failure]\n\
                  subject = \"Nicht zugestellt\"\nopening = \"„{subject}“ kam nicht an.\"\n\
                  [texts.reasons]\nmailbox_unknown = \"Diese Adresse gibt es dort nicht.\"\n";
    std::fs::write(&file, german).unwrap();
    let preview = [
        "tenant", "wording", "preview", "acme", "--file", &path, "--kind", "failure",
    ];
    let preview = stdout(&world, &preview);
    assert!(
        preview.contains("Subject: Nicht zugestellt: Invoice 4711"),
        "{preview}"
    );
    assert!(
        preview.contains("„Invoice 4711“ kam nicht an."),
        "{preview}"
    );
    assert!(!preview.contains("--- delay"), "{preview}");
    stdout(&world, &set);
    world.send(&["a@gone.test"], "Rechnung");
    let notice = world.notice("failed", "a@gone.test").mail;
    assert_eq!(
        notice.field("Subject").as_deref(),
        Some("Nicht zugestellt: Rechnung")
    );
    let parsed = mail_parser::MessageParser::default()
        .parse(&notice.content)
        .unwrap();
    let text = parsed.body_text(0).unwrap();
    for expected in [
        "„Rechnung“ kam nicht an.",
        "Diese Adresse gibt es dort nicht.",
        "hilfe@acme.test",
        "550 5.1.1 unknown",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    assert!(notice.text().contains("\r\nContent-Language: de\r\n"));

    // What is shown can be set again; reset gives it up.
    let toml = stdout(&world, &["tenant", "wording", "show", "acme"]);
    std::fs::write(&file, &toml).unwrap();
    stdout(&world, &set);
    assert_eq!(stdout(&world, &["tenant", "wording", "show", "acme"]), toml);
    stdout(&world, &["tenant", "wording", "reset", "acme"]);
    world.send(&["b@gone.test"], "Rechnung");
    let notice = world.notice("failed", "b@gone.test").mail;
    assert_eq!(
        notice.field("Subject").as_deref(),
        Some("Undelivered mail: Rechnung")
    );
}

#[test]
fn a_mail_is_found_by_words_of_its_subject() {
    let mut world = World::start();
    let shop = world.destination("shop.test", Behaviour::accept());
    let first = world.send(&["a@shop.test"], "Your invoice 4711 of November");
    let second = world.send(&["a@shop.test"], "Your invoice 4712 of November");
    shop.wait_for(2, SOON).unwrap();
    let find = |words: &str| -> Vec<String> {
        let found = world.gateway.json(&["log", "--subject", words]).unwrap();
        let found = found.as_array().unwrap();
        found
            .iter()
            .map(|e| e["message"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(find("invoice 4711"), [first.as_str()]);
    assert_eq!(find("NOVEMBER, invoice"), [second.as_str(), first.as_str()]);
    assert!(find("invoice 47").is_empty());
    let output = world.gateway.cli(&["log", "--subject", "..."]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("subject") && said.contains("remedy:"),
        "{said}"
    );
}

#[test]
fn the_queue_says_why_each_recipient_waits_and_when_it_moves() {
    let mut world = World::start();
    world.internet.dns.servfail("mute.test");
    let dead = world.internet.unused();
    let _slow = world.destination("slow.test", Behaviour::greylist(1000));
    world.destination("held.test", Behaviour::accept());
    let host = dead.to_string();
    let port = world.internet.mx_port().to_string();
    let relay = [
        "relay", "add", "partner", "--host", &host, "--port", &port, "--tls", "none",
    ];
    stdout(&world, &relay);
    let hold = [
        "queue",
        "hold",
        "--domain",
        "held.test",
        "--why",
        "they asked us to wait",
    ];
    stdout(&world, &hold);
    for (to, reason) in [
        ("a@mute.test", "dns"),
        ("a@slow.test", "retry-schedule"),
        ("a@held.test", "held"),
    ] {
        let id = world.send(&[to], "waits");
        wait_for(&world, &id, reason);
    }
    // Another way out for all that comes from now on.
    stdout(&world, &["tenant", "set", "acme", "--relay", "partner"]);
    let id = world.send(&["a@elsewhere.test"], "waits");
    wait_for(&world, &id, "relay-down");

    let table = stdout(&world, &["queue", "list"]);
    assert!(
        table.contains("WAITS FOR") && table.contains("when released"),
        "{table}"
    );
    assert!(table.contains("450"), "the last reply: {table}");
    assert!(!table.contains('\x1b'), "no colours in a pipe");
}

/// Waits until the message's one recipient is listed with this reason and with when it moves:
/// at a time unless it is held. While name servers are being asked that time is not known yet.
fn wait_for(world: &World, id: &str, reason: &str) {
    let mut seen = Value::Null;
    let found = eventually(&format!("{id} waiting for {reason}"), SOON, || {
        seen = world.gateway.json(&["queue", "show", id]).ok()?;
        let timed = !seen[0]["next"].is_null();
        (seen[0]["reason"] == reason && timed == (reason != "held")).then_some(())
    });
    assert!(found.is_ok(), "{reason}: {seen}");
}
