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
