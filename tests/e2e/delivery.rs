//! Managed mail: delivered, delayed, failed, and what the log and the sender hear of it.

use std::time::Duration;

use tidegate_tests::client::{Answer, Crm, Protection};
use tidegate_tests::gateway::kinds;
use tidegate_tests::mail::Mail;
use tidegate_tests::proc;
use tidegate_tests::raw::Raw;
use tidegate_tests::sink::{Behaviour, Stage};
use tidegate_tests::tls::Identity;

use super::{PASSWORD, SENDER, SOON, USER, World};

#[test]
fn a_mail_arrives_as_it_was_written_and_the_log_finds_it_by_every_key() {
    let mut world = World::start();
    let identity = Identity::new(&["mx.customer.test"]).unwrap();
    let customer = world.destination("customer.test", Behaviour::accept().starttls(&identity));

    let mail = Mail::new(SENDER, &["jane@customer.test"], "Your invoice")
        .field("X-CRM-Record", "4711")
        .body("Grüße.\r\n.\r\n..two dots\r\n");
    let trust = world.gateway.trust().unwrap();
    let mut crm = Crm::connect(
        world.gateway.submission(),
        &Protection::StartTls(trust.clone()),
        USER,
        PASSWORD,
    )
    .unwrap();
    let id = crm.send(&mail).unwrap().id().unwrap();

    let arrived = customer.wait_for(1, SOON).unwrap().remove(0);
    assert_eq!(arrived.from, SENDER);
    assert_eq!(arrived.to, ["jane@customer.test"]);
    assert!(arrived.tls, "STARTTLS was offered");
    let text = arrived.text();
    assert!(
        text.ends_with(&mail.text()),
        "untouched below the trace:\n{text}"
    );
    let received = arrived.field("Received").unwrap();
    assert!(
        received.contains(&id) && received.contains("gateway.test"),
        "{received}"
    );
    assert_eq!(customer.protocol_errors(), Vec::<String>::new());

    let entry = world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    assert_eq!(kinds(&entry), ["accepted", "routed", "delivered"]);
    assert_eq!(entry["sender"], SENDER);
    let delivered = &entry["events"][2];
    assert_eq!(delivered["code"], 250, "{delivered}");
    let routed = &entry["events"][1];
    assert_eq!(routed["promise"]["relay"], "mx", "{routed}");
    assert!(
        routed["policy"]
            .as_str()
            .is_some_and(|digest| digest.len() == 64)
    );
    for (key, value) in [
        ("--recipient", "jane@customer.test"),
        ("--sender", SENDER),
        ("--message-id", mail.message_id.as_str()),
        ("--record", "4711"),
    ] {
        let found = world.gateway.json(&["log", key, value]).unwrap();
        assert_eq!(found[0]["message"], id.as_str(), "{key}: {found}");
    }
    let nothing = world.gateway.json(&["log", "--record", "4712"]).unwrap();
    assert_eq!(nothing.as_array().map(Vec::len), Some(0));
    let timeline = world.gateway.run(&["log", &id]).unwrap();
    assert!(
        timeline.contains("delivered") && timeline.contains("TLSv1.3"),
        "{timeline}"
    );

    // The third listener: TLS from the first octet.
    let mut crm = Crm::connect(
        world.gateway.submissions(),
        &Protection::Implicit(trust),
        USER,
        PASSWORD,
    )
    .unwrap();
    crm.send(&mail).unwrap().id().unwrap();
    customer.wait_for(2, SOON).unwrap();
}

#[test]
fn a_greylisted_mail_is_tried_again_and_arrives() {
    let mut world = World::start();
    let slow = world.destination("slow.test", Behaviour::greylist(2));
    let id = world.send(&["b@slow.test"], "again");
    slow.wait_for(1, SOON).unwrap();
    let entry = world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    assert_eq!(
        kinds(&entry),
        ["accepted", "routed", "deferred", "deferred", "delivered"]
    );
    assert_eq!(entry["events"][2]["code"], 450);
    assert_eq!(entry["events"][4]["attempt"], 3);
    assert_eq!(slow.counts().messages, 1);
}

#[test]
fn one_refused_recipient_of_three_yields_one_notice_about_that_one() {
    let mut world = World::start();
    let customer = world.destination(
        "customer.test",
        Behaviour::accept().reply_to(
            "gone@customer.test",
            "550 5.1.1 no mailbox here by that name",
        ),
    );
    let mail = Mail::new(
        SENDER,
        &["a@customer.test", "gone@customer.test", "b@customer.test"],
        "to three",
    );
    let id = world.crm().send(&mail).unwrap().id().unwrap();
    let arrived = customer.wait_for(1, SOON).unwrap();
    assert_eq!(
        arrived[0].to,
        ["a@customer.test", "b@customer.test"],
        "one transaction"
    );

    let notice = world.notice("failed", "gone@customer.test");
    notice.check_form(&mail.message_id);
    notice.says("Status: 5.1.1");
    notice.says("no mailbox here by that name");
    assert!(!notice.status().contains("a@customer.test"));
    let entry = world.gateway.wait_logged(&id, "dsn-sent", SOON).unwrap();
    let bounced = entry["events"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["kind"] == "bounced")
        .unwrap();
    assert_eq!(
        (&bounced["recipient"], &bounced["code"]),
        (&1.into(), &550.into())
    );
    world.wait_empty();
    assert_eq!(world.inbox.counts().messages, 1, "one notice");
}

#[test]
fn a_mail_to_nowhere_is_reported_late_and_then_failed() {
    let mut world = World::with(|options| {
        options
            .set("delivery.lifetime", "5s")
            .set("delivery.delay_notice_after", "2s")
    });
    world.internet.unreachable("dark.test");
    let mail = Mail::new(SENDER, &["b@dark.test"], "into the dark");
    let id = world.crm().send(&mail).unwrap().id().unwrap();
    let delayed = world.notice("delayed", "b@dark.test");
    delayed.check_form(&mail.message_id);
    delayed.says("Will-Retry-Until:");
    let failed = world.notice("failed", "b@dark.test");
    failed.check_form(&mail.message_id);
    failed.says("Status: 4.4.7");
    assert!(failed.mail.at > delayed.mail.at);
    let entry = world.gateway.wait_logged(&id, "dsn-sent", SOON).unwrap();
    let kinds = kinds(&entry);
    for kind in ["deferred", "delay-notified", "expired", "dsn-sent"] {
        assert_eq!(
            kinds.iter().filter(|k| *k == kind).count().min(1),
            1,
            "{kind} in {kinds:?}"
        );
    }
    assert!(!kinds.iter().any(|k| k == "bounced"));
    world.wait_empty();
    assert_eq!(world.inbox.counts().messages, 2);
}

#[test]
fn bulk_mail_gets_no_delay_notice() {
    let mut world = World::with(|options| {
        options
            .set("delivery.lifetime", "4s")
            .set("delivery.delay_notice_after", "1s")
    });
    world.internet.unreachable("dark.test");
    let mail = Mail::new(SENDER, &["b@dark.test"], "news").field("Precedence", "bulk");
    world.crm().send(&mail).unwrap().id().unwrap();
    world.notice("failed", "b@dark.test");
    assert_eq!(world.inbox.counts().messages, 1, "the failure only");
}

#[test]
fn name_service_decides_what_is_permanent() {
    let mut world = World::start();
    world.internet.dns.null_mx("null.test");
    world.internet.dns.servfail("broken.test");
    let fixed = world.internet.unused();
    let mail = Mail::new(
        SENDER,
        &["a@null.test", "b@nonexistent.test", "c@broken.test"],
        "three kinds",
    );
    let id = world.crm().send(&mail).unwrap().id().unwrap();
    world.notice("failed", "a@null.test").says("Status: 5.1.10");
    world
        .notice("failed", "b@nonexistent.test")
        .says("Status: 5.1.2");
    let entry = world.gateway.wait_logged(&id, "deferred", SOON).unwrap();
    assert!(!kinds(&entry).iter().any(|kind| kind == "delivered"));
    // The zone is repaired: what only could not be known goes out.
    world.internet.dns.remove("broken.test");
    let server = tidegate_tests::sink::Destination::start(
        fixed,
        world.internet.mx_port(),
        Behaviour::accept(),
    )
    .unwrap();
    world.internet.point("broken.test", fixed);
    server.wait_for(1, SOON).unwrap();
}

#[test]
fn a_dead_first_mx_gives_way_to_the_second() {
    let mut world = World::start();
    let second = world.internet.unused();
    let server = tidegate_tests::sink::Destination::start(
        second,
        world.internet.mx_port(),
        Behaviour::accept(),
    )
    .unwrap();
    let dead = world.internet.unused();
    world
        .internet
        .dns
        .mx("two.test", 10, "dead.two.test")
        .mx("two.test", 20, "alive.two.test")
        .host("dead.two.test", dead)
        .host("alive.two.test", second);
    let id = world.send(&["b@two.test"], "second choice");
    server.wait_for(1, SOON).unwrap();
    let entry = world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    assert!(
        !kinds(&entry).iter().any(|kind| kind == "deferred"),
        "{entry}"
    );
}

#[test]
fn a_lost_reply_to_the_final_dot_means_twice_rather_than_never_and_the_log_says_so() {
    let mut world = World::start();
    let server = world.destination("lossy.test", Behaviour::accept().lose_replies(1));
    let id = world.send(&["b@lossy.test"], "once or twice");
    server.wait_for(2, SOON).unwrap();
    let entry = world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    let deferred = entry["events"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["kind"] == "deferred")
        .unwrap();
    assert_eq!(deferred["verdict"], "uncertain", "{deferred}");
}

#[test]
fn destinations_that_misbehave_only_delay() {
    let mut world = World::with(|options| {
        options
            .set("delivery.timeouts.banner", "1s")
            .set("delivery.timeouts.command", "1s")
            .set("delivery.timeouts.data", "1s")
    });
    let behaviours = [
        ("close-banner", Behaviour::accept().close_at(Stage::Banner)),
        ("close-ehlo", Behaviour::accept().close_at(Stage::Ehlo)),
        ("close-rcpt", Behaviour::accept().close_at(Stage::Rcpt)),
        ("close-data", Behaviour::accept().close_at(Stage::Data)),
        ("mute-banner", Behaviour::accept().silent_at(Stage::Banner)),
        ("mute-mail", Behaviour::accept().silent_at(Stage::Mail)),
        (
            "busy",
            Behaviour::accept().reply(Stage::Banner, "421 4.3.2 busy"),
        ),
        (
            "later-mail",
            Behaviour::accept().reply(Stage::Mail, "451 4.3.0 not now"),
        ),
        (
            "later-data",
            Behaviour::accept().reply(Stage::Data, "451 4.3.0 not now"),
        ),
        (
            "later-dot",
            Behaviour::accept().reply(Stage::EndOfData, "451 4.3.0 not now"),
        ),
        (
            "shut",
            Behaviour::accept().reply(Stage::Banner, "554 5.7.1 go away"),
        ),
    ];
    let mut servers = Vec::new();
    for (name, behaviour) in behaviours {
        let domain = format!("{name}.test");
        servers.push((name, world.destination(&domain, behaviour)));
    }
    let addresses: Vec<String> = servers
        .iter()
        .map(|(name, _)| format!("b@{name}.test"))
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let id = world.send(&addresses, "patience");
    tidegate_tests::eventually("every recipient deferred once", SOON, || {
        let entry = world.gateway.log(&id).ok()?;
        let deferred: std::collections::BTreeSet<u64> = entry["events"]
            .as_array()?
            .iter()
            .filter(|event| event["kind"] == "deferred")
            .filter_map(|event| event["recipient"].as_u64())
            .collect();
        (deferred.len() == servers.len()).then_some(())
    })
    .unwrap();
    for (_, server) in &servers {
        server.behave(Behaviour::accept());
    }
    for (name, server) in &servers {
        server
            .wait_for(1, SOON)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(server.counts().messages, 1, "{name}");
    }
    world.wait_empty();
    assert_eq!(world.inbox.counts().messages, 0, "nothing failed");
}

#[test]
fn refusals_at_every_stage_are_told_to_the_sender() {
    let mut world = World::start();
    let refusing = [
        ("no-mail", Stage::Mail),
        ("no-data", Stage::Data),
        ("no-dot", Stage::EndOfData),
    ];
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for (name, stage) in refusing {
        let domain = format!("{name}.test");
        let behaviour = Behaviour::accept().reply(stage, "554 5.7.1 not wanted");
        servers.push(world.destination(&domain, behaviour));
        addresses.push(format!("b@{domain}"));
    }
    for address in &addresses {
        world.send(&[address.as_str()], "unwanted");
    }
    for address in &addresses {
        world.notice("failed", address).says("Status: 5.7.1");
    }
}

#[test]
fn only_tenants_submit_and_only_as_themselves() {
    let world = World::start();
    let at = world.gateway.smtp();
    let mut stranger = Raw::connect(at).unwrap();
    stranger.expect(220).unwrap();
    stranger.say("EHLO stranger.test", 250).unwrap();
    stranger.say("MAIL FROM:<sales@acme.test>", 530).unwrap();
    assert!(Raw::login(at, USER, "wrong").is_err());

    // No AUTH in clear where the listener does not say so.
    let mut clear = Raw::connect(world.gateway.submission()).unwrap();
    clear.expect(220).unwrap();
    let offers = clear.say("EHLO crm.test", 250).unwrap();
    assert!(offers.lines.iter().any(|line| line == "STARTTLS"));
    assert!(!offers.lines.iter().any(|line| line.starts_with("AUTH")));

    let mut crm = world.crm();
    let foreign = Mail::new("ceo@bank.test", &["b@customer.test"], "hello");
    let refused = crm.send(&foreign).unwrap();
    assert!(
        matches!(
            refused,
            Answer::Refused {
                code: 550 | 553,
                ..
            }
        ),
        "{refused:?}"
    );
}

#[test]
fn a_suspended_destination_waits_visibly_and_goes_on_when_released() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let hold = world
        .gateway
        .json(&[
            "queue",
            "hold",
            "--domain",
            "customer.test",
            "--why",
            "asked to wait",
        ])
        .unwrap();
    let id = world.send(&["b@customer.test"], "held");
    let entry = tidegate_tests::eventually("the hold is the reason", SOON, || {
        let list = world.gateway.json(&["queue", "show", &id]).ok()?;
        (list[0]["reason"] == "held").then(|| list[0].clone())
    })
    .unwrap();
    assert_eq!(entry["address"], "b@customer.test");
    assert_eq!(customer.counts().messages, 0);
    let hold = hold["id"].as_str().unwrap();
    world.gateway.run(&["queue", "release", hold]).unwrap();
    customer.wait_for(1, SOON).unwrap();
}

#[test]
fn a_pause_by_the_policy_is_seen_outlives_a_restart_and_is_lifted() {
    let mut world = World::start();
    let news = "news@acme";
    let gateway = &world.gateway;
    gateway.bulk_credential("acme", news, PASSWORD).unwrap();
    let blocks = Behaviour::accept().reply(Stage::Rcpt, "421 4.7.0 blocked by our list");
    let customer = world.destination("customer.test", blocks);
    let send = |world: &World, to: &str| {
        let mut crm = world.gateway.crm(news, PASSWORD).unwrap();
        let answer = crm.send(&Mail::new(SENDER, &[to], "news")).unwrap();
        answer.id().unwrap()
    };
    send(&world, "a@customer.test");
    let of_policy = |world: &World| {
        let list = world.gateway.json(&["queue", "measures"]).ok()?;
        let mut rows = list.as_array()?.iter();
        rows.find(|row| row["by"] == "policy").cloned()
    };
    let row = tidegate_tests::eventually("the pause is seen", SOON, || of_policy(&world)).unwrap();
    assert_eq!(row["effect"], "suspend");
    assert_eq!(row["scope"]["tenant"], "acme");
    assert_eq!(row["scope"]["class"], "bulk");
    let cause = row["cause"].as_str().unwrap();
    assert!(cause.contains("blocked by our list"), "{row}");
    assert!(row["until"].is_i64(), "{row}");

    world.gateway.stop().unwrap();
    customer.behave(Behaviour::accept());
    world.gateway.start().unwrap();
    assert_eq!(of_policy(&world).unwrap()["id"], row["id"]);
    let id = send(&world, "b@customer.test");
    tidegate_tests::eventually("the pause is the reason", SOON, || {
        let list = world.gateway.json(&["queue", "show", &id]).ok()?;
        (list[0]["reason"] == "suspended" && list[0]["next"].is_i64()).then_some(())
    })
    .unwrap();
    assert_eq!(customer.counts().messages, 0);

    let row = row["id"].as_str().unwrap();
    let why = "they took us off";
    let lift = ["queue", "release", row, "--why", why, "--for", "2h"];
    let said = world.gateway.run(&lift).unwrap();
    assert!(
        said.contains("by operator: they took us off; not repeated before"),
        "{said}"
    );
    customer.wait_for(1, SOON).unwrap();
    let lifted = world.gateway.json(&["queue", "measures", "--lifted"]);
    let lifted = lifted.unwrap();
    assert_eq!(lifted[0]["id"], row);
    assert_eq!(lifted[0]["lifted"]["by"], "operator");
    assert_eq!(lifted[0]["lifted"]["why"], why);
    let table = world.gateway.run(&["queue", "measures"]).unwrap();
    assert!(table.contains("blocked by our list"), "{table}");
}

#[test]
fn bulk_beyond_the_tenant_s_quota_waits_and_says_until_when() {
    let mut world = World::with(|options| options.without_policies());
    let customer = world.destination("customer.test", Behaviour::accept());
    let news = "news@acme";
    world
        .gateway
        .bulk_credential("acme", news, PASSWORD)
        .unwrap();
    let set = |quota| {
        let set = ["tenant", "set", "acme", "--bulk-quota", quota];
        world.gateway.json(&set)
    };
    for bad in ["many", "0/1h", "5/2s", "5/60d", "5/parsec"] {
        assert!(set(bad).is_err(), "{bad}");
    }
    let tenant = set("2/1h").unwrap();
    assert_eq!(tenant["bulk_quota"]["window_secs"], 3600);
    let mut crm = world.gateway.crm(news, PASSWORD).unwrap();
    for to in ["a@customer.test", "b@customer.test"] {
        crm.send(&Mail::new(SENDER, &[to], "news")).unwrap();
    }
    customer.wait_for(2, SOON).unwrap();
    let answer = crm.send(&Mail::new(SENDER, &["c@customer.test"], "news"));
    let id = answer.unwrap().id().unwrap();
    let entry = tidegate_tests::eventually("the quota is the reason", SOON, || {
        let list = world.gateway.json(&["queue", "show", &id]).ok()?;
        (list[0]["reason"] == "quota").then(|| list[0].clone())
    })
    .unwrap();
    assert!(entry["next"].is_i64(), "{entry}");
    let shown = world.gateway.json(&["tenant", "show", "acme"]).unwrap();
    assert_eq!(shown["bulk_used"], 2, "{shown}");
    let table = world.gateway.run(&["tenant", "show", "acme"]).unwrap();
    assert!(table.contains("2 in 1h, 2 used"), "{table}");
    // Other mail of the tenant is not concerned.
    world.send(&["d@customer.test"], "an invoice");
    customer.wait_for(3, SOON).unwrap();
    let tenant = set("none").unwrap();
    assert!(tenant["bulk_quota"].is_null(), "{tenant}");
    customer.wait_for(4, SOON).unwrap();
}

#[test]
fn many_large_messages_on_their_way_to_a_slow_server_cost_little_memory() {
    const MESSAGES: usize = 40;
    let mut world = World::with(|options| {
        options
            .without_policies()
            .set("submission.memory", "4MiB")
            .set("delivery.timeouts.dot", "60s")
    });
    // As many are under way at once as the site may have connections.
    let slow = Behaviour::accept().delay(Duration::from_secs(10));
    let customer = world.destination("customer.test", slow);
    let pid = world.gateway.pid().unwrap();
    let before = proc::peak_rss_kib(pid).unwrap();
    let body = format!("{}\r\n", "x".repeat(998)).repeat(6 * 1024);
    let mut raw = world.raw();
    for n in 0..MESSAGES {
        let content = format!("Subject: large {n}\r\n\r\n{body}");
        let reply = raw.submit(SENDER, &["b@customer.test"], &content).unwrap();
        assert_eq!(reply.code, 250, "{}", reply.text());
    }
    customer.wait_for(MESSAGES, SOON * 2).unwrap();
    world.wait_empty();
    let grown = (proc::peak_rss_kib(pid).unwrap() - before) >> 10;
    let sent = ((MESSAGES * body.len()) >> 20) as u64;
    println!("{MESSAGES} messages, {sent} MiB delivered: {grown} MiB more memory at most");
    assert!(grown < sent / 2, "{grown} MiB for {sent} MiB");
}

#[test]
fn cancelled_mail_stays_away() {
    let world = World::with(|options| options.set("delivery.retry", vec!["20s"]));
    world.internet.dns.servfail("later.test");
    let id = world.send(&["b@later.test"], "never mind");
    world.gateway.wait_logged(&id, "deferred", SOON).unwrap();
    world
        .gateway
        .run(&["queue", "cancel", &id, "--why", "sent by mistake"])
        .unwrap();
    let entry = world
        .gateway
        .wait_logged(&id, "cancelled", Duration::from_secs(10))
        .unwrap();
    assert!(entry.to_string().contains("sent by mistake"), "{entry}");
    world.wait_empty();
}
