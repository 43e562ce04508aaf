//! Policies in the running gateway: what they decide, and that changing them disturbs no mail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate_tests::client::Answer;
use tidegate_tests::gateway::{kinds, policy};
use tidegate_tests::mail::Mail;
use tidegate_tests::sink::Behaviour;

use super::{SENDER, SOON, World};

/// A configuration that differs from any other by its lane.
fn by_lane(lane: &str) -> String {
    format!(r#"{{ "default": {{ "managed": {{ "lane": "{lane}" }} }} }}"#)
}

#[test]
fn a_swap_under_load_loses_doubles_and_delays_nothing() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let component = policy("routing-default").unwrap();
    let mut digests = BTreeSet::new();
    digests.insert(
        world
            .gateway
            .policy("routing/acme", &component, &by_lane("zero"))
            .unwrap(),
    );

    let stop = AtomicBool::new(false);
    let accepted: Vec<(String, String)> = std::thread::scope(|scope| {
        let sources: Vec<_> = (0..4)
            .map(|source| {
                let (world, stop) = (&world, &stop);
                scope.spawn(move || {
                    let mut raw = world.raw();
                    let mut ids = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let subject = format!("{source}-{}", ids.len());
                        let content = format!("Subject: {subject}\r\n\r\nx\r\n");
                        // Few enough for each address that one enquiry finds them all.
                        let to = format!("b{source}-{}@customer.test", ids.len() / 500);
                        let reply = raw.submit(SENDER, &[&to], &content).unwrap();
                        assert_eq!(reply.code, 250, "{}", reply.text());
                        ids.push((reply.queue_id().unwrap(), subject));
                    }
                    ids
                })
            })
            .collect();
        let swapped = || -> anyhow::Result<()> {
            for lane in ["one", "two", "three"] {
                let at_least = customer.counts().messages as usize + 30;
                customer.wait_for(at_least, SOON)?;
                digests.insert(
                    world
                        .gateway
                        .policy("routing/acme", &component, &by_lane(lane))?,
                );
            }
            let at_least = customer.counts().messages as usize + 30;
            customer.wait_for(at_least, SOON).map(drop)
        };
        let mut swapped = swapped;
        let outcome = swapped();
        stop.store(true, Ordering::Relaxed);
        let ids = sources
            .into_iter()
            .flat_map(|source| source.join().unwrap())
            .collect();
        outcome.unwrap();
        ids
    });
    assert_eq!(digests.len(), 4);

    let arrived = customer.wait_for(accepted.len(), SOON).unwrap();
    world.wait_empty();
    let mut subjects: BTreeMap<String, u32> = BTreeMap::new();
    for mail in &arrived {
        *subjects.entry(mail.field("Subject").unwrap()).or_default() += 1;
    }
    assert_eq!(subjects.len(), accepted.len(), "nothing lost");
    assert!(subjects.values().all(|times| *times == 1), "nothing twice");

    let mut used = BTreeSet::new();
    let mut logged = BTreeSet::new();
    let addresses: BTreeSet<&String> = arrived.iter().map(|mail| &mail.to[0]).collect();
    for address in addresses {
        let words = ["log", "--recipient", address, "--limit", "1000"];
        let found = world.gateway.json(&words).unwrap();
        for entry in found.as_array().unwrap() {
            assert_eq!(kinds(entry), ["accepted", "routed", "delivered"], "{entry}");
            let decided: BTreeSet<String> = entry["events"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|event| event["policy"].as_str().map(str::to_owned))
                .collect();
            assert_eq!(decided.len(), 1, "one revision decided: {entry}");
            used.extend(decided);
            logged.insert(entry["message"].as_str().unwrap().to_owned());
        }
    }
    assert!(
        accepted.iter().all(|(id, _)| logged.contains(id)),
        "each is in the log"
    );
    assert_eq!(used, digests, "each revision decided some of it");
}

#[test]
fn a_policy_refuses_and_defers_within_the_submission() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let config = r#"{ "rules": [
        { "recipient_domain": ["blocked.test"],
          "action": { "refuse": { "code": 550, "enhanced": "5.7.1", "text": "not to them" } } },
        { "recipient_domain": [".later.test"],
          "action": { "defer": { "text": "come back" } } }
    ] }"#;
    let component = policy("routing-default").unwrap();
    world
        .gateway
        .policy("routing/acme", &component, config)
        .unwrap();
    let mut crm = world.crm();
    let refused = crm
        .send(&Mail::new(SENDER, &["b@blocked.test"], "x"))
        .unwrap();
    assert!(
        matches!(&refused, Answer::Refused { code: 550, text } if text.contains("not to them")),
        "{refused:?}"
    );
    // Any defer defers the whole message.
    let deferred = crm
        .send(&Mail::new(
            SENDER,
            &["b@sub.later.test", "a@customer.test"],
            "x",
        ))
        .unwrap();
    assert!(
        matches!(&deferred, Answer::Refused { code: 450..=451, text } if text.contains("come back")),
        "{deferred:?}"
    );
    assert_eq!(customer.counts().messages, 0);
    // Some refused: the others are accepted, the refused owe a notice.
    let mail = Mail::new(SENDER, &["b@blocked.test", "a@customer.test"], "x");
    crm.send(&mail).unwrap().id().unwrap();
    customer.wait_for(1, SOON).unwrap();
    let notice = world.notice("failed", "b@blocked.test");
    notice.check_form(&mail.message_id);
    notice.says("Status: 5.7.1");

    // Back to what was active before.
    world
        .gateway
        .policy("routing/acme", &component, &by_lane("all"))
        .unwrap();
    world.send(&["c@customer.test"], "y");
    world
        .gateway
        .run(&["policy", "rollback", "--slot", "routing/acme"])
        .unwrap();
    let refused = crm
        .send(&Mail::new(SENDER, &["b@blocked.test"], "x"))
        .unwrap();
    assert!(matches!(refused, Answer::Refused { code: 550, .. }));
}

#[test]
fn a_bad_policy_is_refused_with_a_reason_and_the_old_one_decides_on() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let component = policy("routing-default").unwrap();
    let directory = world.gateway.directory().to_owned();
    let rubbish = directory.join("rubbish.wasm");
    std::fs::write(&rubbish, b"not wasm at all").unwrap();
    let exporter = policy("export-jsonl").unwrap();
    let file = directory.join("refused.json");
    for (component, config, field, expected) in [
        (&rubbish, "", "component", ""),
        (
            &component,
            "{ \"rules\": 7 }",
            "config",
            "expected a sequence",
        ),
        (&component, "{ \"ruels\": [] }", "config", "ruels"),
        (&exporter, "", "slot", "log-exporter"),
    ] {
        std::fs::write(&file, config).unwrap();
        let (component, file) = (component.display().to_string(), file.display().to_string());
        let words = ["policy", "upload", &component, "--config", &file];
        let output = world
            .gateway
            .cli(&[&words[..], &["--slot", "routing/acme"]].concat())
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with(&format!("tidegate: {field}: ")), "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
    }
    world.send(&["b@customer.test"], "still");
    customer.wait_for(1, SOON).unwrap();
}

/// The lines about a mail, once it is through.
fn exported(world: &World, id: &str) -> Vec<serde_json::Value> {
    let directory = world.gateway.directory().join("data/export/log");
    tidegate_tests::eventually("three lines about the mail", SOON, || {
        let mut lines = Vec::new();
        for entry in std::fs::read_dir(&directory).ok()?.flatten() {
            let text = std::fs::read_to_string(entry.path()).ok()?;
            for line in text.lines() {
                let event: serde_json::Value = serde_json::from_str(line).ok()?;
                if event.to_string().contains(id) {
                    lines.push(event);
                }
            }
        }
        (lines.len() >= 3).then_some(lines)
    })
    .unwrap()
}

#[test]
fn the_exported_log_has_every_step_as_a_line_of_json() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let id = world.send(&["b@customer.test"], "exported");
    customer.wait_for(1, SOON).unwrap();
    let lines = exported(&world, &id);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.to_string().contains("b@customer.test"))
    );
}

#[test]
fn a_shadow_of_an_exporter_renders_the_same_events_and_its_receiver_sees_nothing_of_it() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let config = world.gateway.directory().join("export.json");
    std::fs::write(
        &config,
        r#"{ "fields": ["seq", "message"], "facts": false }"#,
    )
    .unwrap();
    let (component, config) = (
        policy("export-jsonl").unwrap(),
        config.display().to_string(),
    );
    let component = component.display().to_string();
    let upload = ["policy", "upload", &component, "--config", &config];
    let slot = ["--slot", "export/log"];
    let refused = world
        .gateway
        .run(&[&upload[..], &slot, &["--canary", "5%"]].concat())
        .unwrap_err();
    let words = format!("{refused:#}");
    assert!(
        words.contains("two formats") && words.contains("as a shadow"),
        "{words}"
    );
    world
        .gateway
        .run(&[&upload[..], &slot, &["--shadow"]].concat())
        .unwrap();
    let id = world.send(&["b@customer.test"], "exported");
    customer.wait_for(1, SOON).unwrap();
    for line in exported(&world, &id) {
        assert!(
            line["kind"].is_string(),
            "as what is in force has it: {line}"
        );
    }
    let status = |world: &World| {
        let words = ["policy", "status", "--slot", "export/log"];
        world.gateway.json(&words).unwrap()[0].take()
    };
    let compared = tidegate_tests::eventually("the shadow is asked", SOON, || {
        let compared = status(&world)["running"]["trial"]["compared"].take();
        (compared["events"].as_u64()? >= 3).then_some(compared)
    })
    .unwrap();
    assert_eq!(compared["of"], "batches");
    assert_eq!(
        compared["changed_batches"], compared["batches"],
        "{compared}"
    );
    let bytes = |side: &str| compared[side]["bytes"].as_u64().unwrap();
    assert!(
        bytes("trial") > 0 && bytes("trial") < bytes("in_force"),
        "{compared}"
    );
    let text = world.gateway.run(&["policy", "status"]).unwrap();
    for part in ["The shadow of export/log", "other bytes", "on trial"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // It is there again after a restart, and promoted it is what the receiver gets.
    world.gateway.stop().unwrap();
    world.gateway.start().unwrap();
    assert_eq!(status(&world)["running"]["trial"]["kind"], "shadow");
    let promote = ["policy", "promote", "--slot", "export/log"];
    world.gateway.run(&promote).unwrap();
    let id = world.send(&["b@customer.test"], "exported otherwise");
    for line in exported(&world, &id) {
        assert!(line["kind"].is_null(), "{line}");
    }
}
