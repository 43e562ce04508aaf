//! What a 250 is worth: after a crash, an orderly stop, a full disk; and that a sync stands before it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_tests::gateway::{Gateway, Options, kinds};
use tidegate_tests::internet::Internet;
use tidegate_tests::raw::Raw;
use tidegate_tests::sink::{Behaviour, Delivered, Destination};
use tidegate_tests::{eventually, sink};

use super::{PASSWORD, SENDER, SOON, USER, World};

/// Submits from several sessions until told to stop or the gateway goes away; what was answered
/// with 250: queue id and subject.
fn submit_until(world: &World, stop: &AtomicBool, round: usize) -> Vec<(String, String)> {
    std::thread::scope(|scope| {
        let sources: Vec<_> = (0..6)
            .map(|source| {
                scope.spawn(move || {
                    let mut accepted = Vec::new();
                    let Ok(mut raw) = world.gateway.raw(USER, PASSWORD) else {
                        return accepted;
                    };
                    while !stop.load(Ordering::Relaxed) {
                        let subject = format!("{round}-{source}-{}", accepted.len());
                        let body = "x".repeat(2000);
                        let content = format!("Subject: {subject}\r\n\r\n{body}\r\n");
                        match raw.submit(SENDER, &["b@customer.test"], &content) {
                            Ok(reply) if reply.code == 250 => {
                                accepted.push((reply.queue_id().unwrap(), subject));
                            }
                            // Not accepted, so the client still has it.
                            _ => break,
                        }
                    }
                    accepted
                })
            })
            .collect();
        sources
            .into_iter()
            .flat_map(|source| source.join().unwrap())
            .collect()
    })
}

fn by_subject(mail: &[Delivered]) -> BTreeMap<String, u32> {
    let mut subjects = BTreeMap::new();
    for mail in mail {
        *subjects.entry(mail.field("Subject").unwrap()).or_default() += 1;
    }
    subjects
}

fn wait_all(customer: &Destination, accepted: &[(String, String)]) -> BTreeMap<String, u32> {
    eventually("every 250 delivered", Duration::from_secs(40), || {
        let subjects = by_subject(&customer.mail());
        accepted
            .iter()
            .all(|(_, subject)| subjects.contains_key(subject))
            .then_some(subjects)
    })
    .unwrap_or_else(|error| {
        let subjects = by_subject(&customer.mail());
        let lost: Vec<_> = accepted
            .iter()
            .filter(|(_, subject)| !subjects.contains_key(subject))
            .collect();
        panic!("{error:#}: {} lost, {lost:?}", lost.len())
    })
}

#[test]
fn every_250_survives_kill_9_under_load() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let mut accepted = Vec::new();
    for round in 0..3 {
        let stop = AtomicBool::new(false);
        // The handle is needed to kill while the sources borrow the world: by process id.
        let pid = rustix::process::Pid::from_raw(world.gateway.pid().unwrap() as i32).unwrap();
        let before = customer.counts().messages as usize;
        std::thread::scope(|scope| {
            let (world, stop) = (&world, &stop);
            let load = scope.spawn(move || submit_until(world, stop, round));
            customer.wait_for(before + 100, SOON).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::Relaxed);
            accepted.extend(load.join().unwrap());
        });
        world.gateway.wait(SOON).unwrap();
        world.gateway.start().unwrap();
    }
    assert!(accepted.len() >= 100, "{} accepted", accepted.len());
    let subjects = wait_all(&customer, &accepted);
    world.wait_empty();
    // Twice only what was on its way when the process died: at most as many as there were
    // deliveries in flight, and the log shows a second delivery for none.
    let doubled: Vec<&String> = subjects
        .iter()
        .filter(|(_, times)| **times > 1)
        .map(|(subject, _)| subject)
        .collect();
    assert!(doubled.len() <= 3 * 40, "{} doubled", doubled.len());
    for (id, subject) in &accepted {
        if doubled.contains(&subject) || subject.ends_with("-0") {
            let entry = world.gateway.log(id).unwrap();
            let delivered = kinds(&entry).iter().filter(|k| *k == "delivered").count();
            assert_eq!(delivered, 1, "{entry}");
        }
    }
}

#[test]
fn an_orderly_stop_under_load_neither_loses_nor_doubles() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let mut accepted = Vec::new();
    for round in 0..2 {
        let stop = AtomicBool::new(false);
        let before = customer.counts().messages as usize;
        std::thread::scope(|scope| {
            let (world, stop) = (&world, &stop);
            let load = scope.spawn(move || submit_until(world, stop, round));
            customer.wait_for(before + 100, SOON).unwrap();
            world.gateway.signal(rustix::process::Signal::TERM).unwrap();
            accepted.extend(load.join().unwrap());
        });
        let status = world.gateway.wait(SOON).unwrap();
        assert!(status.success(), "{status}: {}", world.gateway.said());
        world.gateway.start().unwrap();
    }
    let subjects = wait_all(&customer, &accepted);
    world.wait_empty();
    let doubled: Vec<_> = subjects.iter().filter(|(_, times)| **times > 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
}

/// One line of strace: when it was completed, and what.
fn trace_lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_sync_is_completed_between_the_end_of_data_and_each_250() {
    assert!(
        Command::new("strace").arg("-V").output().is_ok(),
        "this test needs strace: apt-get install strace, or run cargo xtask test"
    );
    let mut internet = Internet::start().unwrap();
    // No delivery may sync in between: after one failure the destination is left alone.
    internet.unreachable("dark.test");
    let options = Options::new(&internet)
        .unwrap()
        .set("delivery.retry", vec!["1h"])
        .set("delivery.site_backoff", "1h")
        .set("delivery.site_backoff_max", "1h");
    let mut gateway = Gateway::new(options).unwrap();
    let trace = gateway.directory().join("trace");
    gateway.wrap(&[
        "strace",
        "-f",
        "-q",
        "-s",
        "4096",
        "-e",
        "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,fsync,fdatasync",
        "-o",
        &trace.display().to_string(),
    ]);
    gateway.start().unwrap();
    gateway.tenant("acme", &["acme.test"]).unwrap();
    gateway.credential("acme", USER, PASSWORD).unwrap();
    let mut raw = gateway.raw(USER, PASSWORD).unwrap();
    let mut ids = Vec::new();
    for number in 0..20 {
        let content = format!("Subject: x\r\n\r\nmarker-{number}-end\r\n");
        let reply = raw.submit(SENDER, &["b@dark.test"], &content).unwrap();
        assert_eq!(reply.code, 250);
        ids.push(reply.queue_id().unwrap());
        if number == 0 {
            gateway.wait_logged(&ids[0], "deferred", SOON).unwrap();
        }
    }
    gateway.stop().unwrap();

    let lines = trace_lines(&trace);
    for (number, id) in ids.iter().enumerate() {
        let marker = format!("marker-{number}-end");
        let read = lines
            .iter()
            .position(|line| {
                line.contains(&marker) && (line.contains("recv") || line.contains("read"))
            })
            .unwrap_or_else(|| panic!("{marker} was never read"));
        let replied = lines
            .iter()
            .position(|line| line.contains("\"250 ") && line.contains(id.as_str()))
            .unwrap_or_else(|| panic!("no reply with {id}"));
        assert!(read < replied);
        let synced = lines[read..replied].iter().any(|line| {
            // Completed: not the first half of an interrupted line.
            line.contains("sync") && line.contains("= 0") && !line.contains("unfinished")
        });
        assert!(
            synced,
            "no sync before the 250 of {id}:\n{}",
            lines[read..=replied].join("\n")
        );
    }
}

#[test]
fn a_full_disk_is_a_452_and_passes_when_there_is_room() {
    let mut internet = Internet::start().unwrap();
    let customer = internet
        .destination("customer.test", Behaviour::accept())
        .unwrap();
    let mut gateway = Gateway::new(Options::new(&internet).unwrap()).unwrap();
    // The data lie on a small file system that only this process sees.
    let data = gateway.directory().join("data").display().to_string();
    let script = format!(
        "cp -a '{data}' '{data}.seed' && mount -t tmpfs -o size=400m none '{data}' && \
         cp -a '{data}.seed/.' '{data}/' && exec \"$@\""
    );
    gateway.wrap(&[
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
        "sh",
    ]);
    gateway.start().unwrap();
    gateway.tenant("acme", &["acme.test"]).unwrap();
    gateway.credential("acme", USER, PASSWORD).unwrap();

    let body = format!(
        "Subject: big\r\n\r\n{}",
        "0123456789abcdef\r\n".repeat(12_000)
    );
    let mut raw = gateway.raw(USER, PASSWORD).unwrap();
    let first = raw.submit(SENDER, &["b@customer.test"], &body).unwrap();
    assert_eq!(first.code, 250, "{}", first.text());
    let mut accepted = 1;

    let filler = format!("/proc/{}/root{data}/filler", gateway.pid().unwrap());
    fill(Path::new(&filler));
    let refused = loop {
        let reply = raw.submit(SENDER, &["b@customer.test"], &body).unwrap();
        match reply.code {
            // Room that was set aside before is used up first.
            250 => accepted += 1,
            _ => break reply,
        }
        assert!(accepted < 3000, "a full disk was never noticed");
    };
    assert!(
        matches!(refused.code, 451 | 452),
        "{} {}",
        refused.code,
        refused.text()
    );
    std::fs::remove_file(&filler).unwrap();
    eventually("mail is taken again", SOON, || {
        let mut raw = Raw::login(gateway.smtp(), USER, PASSWORD).ok()?;
        let reply = raw.submit(SENDER, &["b@customer.test"], &body).ok()?;
        assert!(matches!(reply.code, 250 | 451 | 452), "{}", reply.text());
        (reply.code == 250).then_some(())
    })
    .unwrap();
    accepted += 1;
    let arrived = customer
        .wait_for(accepted, Duration::from_secs(40))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", gateway.said()));
    assert!(arrived.iter().all(|mail| mail.content.len() > body.len()));
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![0; size];
        while file.write_all(&block).is_ok() {}
    }
}

#[test]
fn what_waits_is_still_there_after_a_crash() {
    let mut world = World::with(|options| options.set("delivery.retry", vec!["2s"]));
    let ip = world.internet.unreachable("back.test");
    let id = world.send(&["b@back.test"], "later");
    world.gateway.wait_logged(&id, "deferred", SOON).unwrap();
    world.gateway.kill().unwrap();
    world.gateway.start().unwrap();
    let list = world.gateway.json(&["queue", "show", &id]).unwrap();
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    let server =
        sink::Destination::start(ip, world.internet.mx_port(), Behaviour::accept()).unwrap();
    server.wait_for(1, SOON).unwrap();
    let entry = world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    assert!(kinds(&entry).iter().any(|kind| kind == "deferred"));
}

#[test]
fn an_orderly_stop_takes_no_longer_than_its_grace_and_says_what_it_cut_off() {
    let mut world = World::with(|options| {
        options
            .without_policies()
            .set("shutdown_grace", "8s")
            .set("delivery.timeouts.dot", "2m")
    });
    let silent = world.destination(
        "silent.test",
        Behaviour::accept().silent_at(sink::Stage::EndOfData),
    );
    let id = world.send(&["b@silent.test"], "cut off");
    eventually("the attempt is under way", SOON, || {
        let stats = world.gateway.json(&["stats"]).ok()?;
        (stats["engine"]["in_flight"] == 1 && silent.counts().sessions > 0).then_some(())
    })
    .unwrap();
    // Both have something under way that does not end: a client and a delivery.
    let mut raw = world.raw();
    raw.say(&format!("MAIL FROM:<{SENDER}>"), 250).unwrap();
    raw.say("RCPT TO:<b@silent.test>", 250).unwrap();
    raw.say("DATA", 354).unwrap();
    raw.write(b"Subject: half\r\n").unwrap();
    let begun = std::time::Instant::now();
    assert!(world.gateway.stop().unwrap().success());
    let took = begun.elapsed();
    // Twice the grace if each waited for itself; not much more than it together.
    assert!(took < Duration::from_secs(15), "{took:?}");
    silent.behave(Behaviour::accept());
    world.gateway.start().unwrap();
    let entry = world.gateway.wait_logged(&id, "delivered", SOON).unwrap();
    assert!(
        kinds(&entry).iter().any(|kind| kind == "recovered"),
        "the log says that it may have come twice: {entry}"
    );
}
