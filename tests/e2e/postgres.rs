//! The same gateway with PostgreSQL as its database.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_tests::eventually;
use tidegate_tests::gateway::kinds;
use tidegate_tests::postgres::Postgres;
use tidegate_tests::sink::Behaviour;

use super::{PASSWORD, SENDER, SOON, USER, World};

/// Submits until told to stop: the subjects of what was answered with 250, and every other reply.
fn submit_until(world: &World, stop: &AtomicBool, source: u32) -> (Vec<String>, Vec<String>) {
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
    let mut accepted: Vec<String> = Vec::new();
    let mut refused: Vec<String> = Vec::new();
    std::thread::scope(|scope| {
        let (world, stop) = (&world, &stop);
        let sources: Vec<_> = (0..4)
            .map(|source| scope.spawn(move || submit_until(world, stop, source)))
            .collect();
        let crashes = (0..3).try_for_each(|_| -> anyhow::Result<()> {
            let before = customer.counts().messages;
            eventually("mail flows", SOON, || {
                (customer.counts().messages > before + 30).then_some(())
            })?;
            postgres.crash()?;
            // Long enough for sessions to be refused meanwhile.
            std::thread::sleep(Duration::from_millis(300));
            postgres.restart()
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
    assert!(!refused.is_empty(), "no crash was noticed");
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
    // What was under way by then may end; nothing is begun.
    std::thread::sleep(Duration::from_secs(1));
    let taken = back.counts().messages;
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(back.counts().messages, taken, "nothing is attempted");

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
