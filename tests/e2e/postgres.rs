//! The same gateway with PostgreSQL as its database.

use tidegate_tests::gateway::kinds;
use tidegate_tests::postgres::Postgres;
use tidegate_tests::sink::Behaviour;

use super::{SOON, World};

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
