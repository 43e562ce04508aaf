//! The same gateway with PostgreSQL as its database.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tidegate_tests::eventually;
use tidegate_tests::gateway::{self, Gateway, Options, kinds};
use tidegate_tests::postgres::Postgres;
use tidegate_tests::sink::Behaviour;

use super::{PASSWORD, SENDER, SOON, USER, World};

/// Submits until told to stop: the subjects of what was answered with 250, and every other reply.
fn submit_until(
    world: &World,
    stop: &AtomicBool,
    refusals: &AtomicUsize,
    source: u32,
) -> (Vec<String>, Vec<String>) {
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut raw) = world.gateway.raw(USER, PASSWORD) else {
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let subject = format!("{source}-{number}");
            let content = format!("Subject: {subject}\r\n\r\nbody\r\n");
            match raw.submit(SENDER, &["b@customer.test"], &content) {
                Ok(reply) if reply.code == 250 => accepted.push(subject),
                Ok(reply) => {
                    refusals.fetch_add(1, Ordering::Relaxed);
                    refused.push(format!("{} {}", reply.code, reply.text()));
                    // A client that is told to try later does not do so at once.
                    std::thread::sleep(Duration::from_millis(50));
                    break;
                }
                Err(_) => break,
            }
        }
    }
    (accepted, refused)
}

#[test]
fn mail_is_delivered_retried_reported_and_survives_a_crash() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    let mut world = World::with(|options| options.set("database", url.as_str()));
    let customer = world.destination(
        "customer.test",
        Behaviour::accept().reply_to("gone@customer.test", "550 5.1.1 nobody"),
    );
    let slow = world.destination("slow.test", Behaviour::greylist(1));

    let id = world.send(&["b@customer.test"], "on PostgreSQL");
    customer.wait_for(1, SOON).unwrap();
    let entry = world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    assert_eq!(kinds(&entry), ["accepted", "routed", "delivered"]);

    world.send(&["gone@customer.test"], "to nobody");
    world
        .notice("failed", "gone@customer.test")
        .says("Status: 5.1.1");

    let ip = world.internet.unreachable("back.test");
    let id = world.send(&["b@slow.test", "b@back.test"], "later");
    slow.wait_for(1, SOON).unwrap();
    world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    world.gateway.kill().unwrap();
    let server =
        tidegate_tests::sink::Destination::start(ip, world.internet.mx_port(), Behaviour::accept())
            .unwrap();
    world.gateway.start().unwrap();
    server.wait_for(1, SOON).unwrap();
    world.wait_empty();
    assert_eq!(slow.counts().messages, 1);
    let tables = postgres
        .query("select count(*) from information_schema.tables where table_schema = 'public'")
        .unwrap();
    assert!(tables.parse::<u32>().unwrap() > 3, "{tables}");
}

#[test]
fn a_server_that_crashes_under_load_loses_and_doubles_nothing() {
    let mut postgres = Postgres::start().unwrap();
    let url = postgres.url();
    let mut world = World::with(|options| options.set("database", url.as_str()));
    let customer = world.destination("customer.test", Behaviour::accept());
    let stop = AtomicBool::new(false);
    let refusals = AtomicUsize::new(0);
    let mut accepted: Vec<String> = Vec::new();
    let mut refused: Vec<String> = Vec::new();
    std::thread::scope(|scope| {
        let (world, stop, refusals) = (&world, &stop, &refusals);
        let sources: Vec<_> = (0..4)
            .map(|source| scope.spawn(move || submit_until(world, stop, refusals, source)))
            .collect();
        let crashes = (0..3).try_for_each(|_| -> anyhow::Result<()> {
            let before = customer.counts().messages;
            eventually("mail flows", SOON, || {
                (customer.counts().messages > before + 30).then_some(())
            })?;
            let before = refusals.load(Ordering::Relaxed);
            postgres.crash()?;
            let noticed = eventually("mail is refused", SOON, || {
                (refusals.load(Ordering::Relaxed) > before).then_some(())
            });
            postgres.restart()?;
            noticed
        });
        let flows = crashes.and_then(|()| {
            let before = customer.counts().messages;
            eventually("mail flows again", SOON, || {
                (customer.counts().messages > before + 30).then_some(())
            })
        });
        stop.store(true, Ordering::Relaxed);
        for source in sources {
            let (taken, told) = source.join().unwrap();
            accepted.extend(taken);
            refused.extend(told);
        }
        flows.unwrap_or_else(|error| panic!("{error:#}\n{}", world.gateway.said()));
    });
    let strange: Vec<_> = refused
        .iter()
        .filter(|reply| !reply.starts_with("451 4.3.0") && !reply.starts_with("452 4.3.1"))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(refused.len() >= 3, "each crash was noticed: {refused:?}");
    world.wait_empty();
    let mut copies: BTreeMap<String, u32> = BTreeMap::new();
    for mail in customer.mail() {
        *copies.entry(mail.field("Subject").unwrap()).or_default() += 1;
    }
    let lost: Vec<_> = accepted
        .iter()
        .filter(|s| !copies.contains_key(*s))
        .collect();
    assert!(
        lost.is_empty(),
        "{} of {}: {lost:?}",
        lost.len(),
        accepted.len()
    );
    let doubled: Vec<_> = copies.iter().filter(|(_, times)| **times > 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
}

/// Every statement that changes the queue fails with this SQLSTATE, as where the server finds
/// no room; empty: no more.
fn without_room(postgres: &Postgres, sqlstate: &str) {
    let sql = match sqlstate {
        "" => "drop function no_room() cascade".to_owned(),
        code => format!(
            "create function no_room() returns trigger language plpgsql as \
             $$ begin raise exception 'could not extend file: No space left on device' \
             using errcode = '{code}'; end $$; \
             create trigger no_room before insert or update or delete on message \
             for each statement execute function no_room(); \
             create trigger no_room before insert or update or delete on recipient \
             for each statement execute function no_room()"
        ),
    };
    postgres.query(&sql).unwrap();
}

#[test]
fn a_server_without_room_is_a_452_and_what_can_t_be_recorded_is_not_attempted() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    let mut world = World::with(|options| {
        options
            .without_policies()
            .set("database", url.as_str())
            .set("delivery.retry", vec!["1s"])
    });
    let customer = world.destination("customer.test", Behaviour::accept());
    let back = world.destination("back.test", Behaviour::greylist(u32::MAX));
    let ids: Vec<String> = (0..5)
        .map(|n| world.send(&["b@back.test"], &format!("waits-{n}")))
        .collect();
    for id in &ids {
        world.gateway.wait_logged(id, "deferred", SOON).unwrap();
    }
    without_room(&postgres, "53100");
    back.behave(Behaviour::accept());
    let submit = |subject: &str| {
        let mut raw = world.raw();
        let content = format!("Subject: {subject}\r\n\r\nbody\r\n");
        raw.submit(SENDER, &["b@customer.test"], &content).unwrap()
    };
    for _ in 0..3 {
        let reply = submit("refused");
        assert_eq!(reply.code, 452, "{}", reply.text());
        assert!(reply.text().starts_with("4.3.1"), "{}", reply.text());
    }
    eventually("results can't be stored", SOON, || {
        let said = world.gateway.said();
        said.contains("results of attempts could not be stored")
            .then_some(())
    })
    .unwrap();
    // What was under way by then may end; nothing is begun. All are due: the wait is one second.
    let results_wait = || {
        let said = world.gateway.said();
        said.matches("results of attempts could not be stored")
            .count()
    };
    eventually("what was under way has ended", SOON, || {
        let stats = world.gateway.json(&["stats"]).ok()?;
        (stats["engine"]["in_flight"] == 0).then_some(())
    })
    .unwrap();
    let (taken, before) = (back.counts().sessions, results_wait());
    eventually("the results were offered twice more", SOON, || {
        (results_wait() >= before + 2).then_some(())
    })
    .unwrap();
    assert_eq!(back.counts().sessions, taken, "nothing is attempted");

    without_room(&postgres, "");
    for id in &ids {
        let entry = world.gateway.wait_logged(id, "delivered", SOON).unwrap();
        let delivered = kinds(&entry).iter().filter(|k| *k == "delivered").count();
        assert_eq!(delivered, 1, "{entry}");
    }
    assert_eq!(world.gateway.health().unwrap().0, 200);
    assert_eq!(submit("after").code, 250);
    customer.wait_for(1, SOON).unwrap();
    world.wait_empty();
    assert_eq!(back.counts().messages, 5, "each once");
    assert_eq!(customer.counts().messages, 1, "and none that was refused");
}

#[test]
fn who_only_looks_or_does_not_come_up_takes_nothing_from_the_gateway_that_runs() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    let mut world = World::with(|options| options.without_policies().set("database", url.as_str()));
    let customer = world.destination("customer.test", Behaviour::accept());
    // As on another machine: the same database, a directory of its own, listeners that are taken.
    let text = std::fs::read_to_string(world.gateway.config()).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    table.insert("data_dir".to_owned(), "other".into());
    table["admin"]["address"] = "127.0.0.1:0".into();
    let other = world.gateway.directory().join("other.toml");
    std::fs::write(&other, table.to_string()).unwrap();
    let other = other.display().to_string();
    let as_other = |command: &str| {
        gateway::command(gateway::binary().unwrap())
            .args(["--config", &other, command, "--json"])
            .output()
            .unwrap()
    };

    let checked = as_other("check");
    let report: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    let found = |what: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|f| f["what"] == what).unwrap().clone()
    };
    assert_eq!(found("database")["ok"], true, "{report}");
    assert!(
        found("database")["message"]
            .as_str()
            .unwrap()
            .contains("is of this version"),
        "{report}"
    );
    assert!(!world.gateway.directory().join("other").exists());

    let refused = as_other("serve");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("choose another port"), "{said}");

    let id = world.send(&["b@customer.test"], "goes on");
    customer.wait_for(1, SOON).unwrap();
    world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    assert_eq!(world.gateway.health().unwrap().0, 200);
    world.wait_empty();
}

#[test]
fn a_gateway_whose_database_was_taken_over_says_so_and_attempts_nothing() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    let mut world = World::with(|options| {
        options
            .without_policies()
            .set("database", url.as_str())
            .set("delivery.retry", vec!["1s"])
    });
    let customer = world.destination("customer.test", Behaviour::greylist(u32::MAX));
    let id = world.send(&["b@customer.test"], "waits");
    world.gateway.wait_logged(&id, "deferred", SOON).unwrap();

    let options = Options::new(&world.internet).unwrap().without_policies();
    let second = Gateway::running(options.set("database", url.as_str())).unwrap();
    eventually("the first one says so", SOON, || {
        let (code, _) = world.gateway.health().ok()?;
        (code == 503).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));
    let mut raw = world.raw();
    raw.say(&format!("MAIL FROM:<{SENDER}>"), 451).unwrap();

    // An orderly end of the first is not taken for one of the second.
    world.gateway.stop().unwrap();
    assert_eq!(second.health().unwrap().0, 200);
    customer.behave(Behaviour::accept());
    let arrived = customer.wait_for(1, SOON).unwrap();
    assert_eq!(arrived.len(), 1);
    second.wait_logged(&id, "delivered", SOON).unwrap();
}
