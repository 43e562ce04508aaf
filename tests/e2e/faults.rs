//! A disk that fails under the running gateway, and files that are damaged while it is down: what
//! it says, what it takes, what it still delivers.
//!
//! Faults are put into the gateway's own system calls by strace, and taken out again.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tidegate_tests::eventually;
use tidegate_tests::gateway::kinds;
use tidegate_tests::raw::{Raw, Reply};
use tidegate_tests::sink::{Behaviour, Destination};

use super::{PASSWORD, SENDER, SOON, USER, World};

/// What writes to files: database, log of the database, segments.
const WRITES: &str = "pwrite64,pwritev,pwritev2,fallocate,ftruncate";
const SYNCS: &str = "fsync,fdatasync";

/// A world whose gateway may be traced by this process, also where only children otherwise may:
/// who made a user namespace may look into it.
fn traceable() -> World {
    let mut world = World::with(|options| options.set("delivery.retry", vec!["1s"]));
    world.gateway.stop().unwrap();
    world
        .gateway
        .wrap(&["unshare", "--user", "--map-root-user"]);
    world.gateway.start().unwrap();
    world
}

/// System calls of the gateway fail while this lives.
struct Fault(Child);

impl Fault {
    fn inject(world: &World, calls: &str, error: &str) -> Fault {
        let pid = world.gateway.pid().unwrap();
        let said = world.gateway.directory().join("strace.log");
        let child = Command::new("strace")
            .args(["-f", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:error={error}")])
            .args(["-p", &pid.to_string(), "-o", "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&said).unwrap())
            .spawn()
            .expect("this test needs strace: apt-get install strace, or run cargo xtask test");
        let fault = Fault(child);
        let tasks = format!("/proc/{pid}/task");
        eventually("every thread is traced", SOON, || {
            let all = std::fs::read_dir(&tasks).ok()?.flatten();
            let mut traced = all.filter_map(|task| {
                let status = std::fs::read_to_string(task.path().join("status")).ok()?;
                Some(!status.contains("TracerPid:\t0"))
            });
            traced.all(|traced| traced).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e:#}: {}", std::fs::read_to_string(said).unwrap()));
        fault
    }

    /// The calls succeed again.
    fn lift(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let pid = Pid::from_raw(self.0.id() as i32).unwrap();
        // It lets go of the gateway before it ends.
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        self.end();
    }
}

/// The reply to the data, or the first one that refuses.
fn submit(world: &World, subject: &str, to: &str) -> Reply {
    let mut raw = Raw::login(world.gateway.smtp(), USER, PASSWORD).unwrap();
    for (line, code) in [
        (format!("MAIL FROM:<{SENDER}>"), 250),
        (format!("RCPT TO:<{to}>"), 250),
        ("DATA".to_owned(), 354),
    ] {
        let reply = raw.send(&line).unwrap();
        if reply.code != code {
            return reply;
        }
    }
    let content = format!("Subject: {subject}\r\n\r\nmarker of {subject}\r\n.\r\n");
    raw.write(content.as_bytes()).unwrap();
    raw.reply().unwrap()
}

/// How often mail of this subject arrived.
fn copies(destination: &Destination, subject: &str) -> usize {
    let mail = destination.mail();
    let of_it = mail
        .iter()
        .filter(|m| m.field("Subject").as_deref() == Some(subject));
    of_it.count()
}

fn wait_for(destination: &Destination, subject: &str) {
    destination
        .wait_until(subject, SOON, |m| {
            m.field("Subject").as_deref() == Some(subject)
        })
        .unwrap();
}

/// A fatal fault of the disk: nothing is acknowledged or attempted until a restart, and what was
/// acknowledged before arrives after it, once.
fn fatal_until_a_restart(calls: &str, error: &str) {
    let mut world = traceable();
    let customer = world.destination("customer.test", Behaviour::accept());
    let dark = world.internet.unreachable("back.test");
    let waits = world.send(&["b@back.test"], "waits");
    world.gateway.wait_logged(&waits, "deferred", SOON).unwrap();

    let fault = Fault::inject(&world, calls, error);
    let reply = eventually("mail is refused", SOON, || {
        let reply = submit(&world, "refused", "b@customer.test");
        (reply.code != 250).then_some(reply)
    })
    .unwrap();
    assert!(
        reply.code == 451 && reply.text().starts_with("4.3.0"),
        "{} {}",
        reply.code,
        reply.text()
    );
    fault.lift();
    // What is on the disk is not known, so that is not forgotten when calls succeed again.
    let reply = submit(&world, "refused", "b@customer.test");
    assert_eq!(reply.code, 451, "{}", reply.text());
    let (code, body) = world.gateway.health().unwrap();
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("storage failed"), "{body}");
    let said = world.gateway.said();
    assert!(
        said.contains("storage failed; no more mail is accepted"),
        "{said}"
    );
    assert!(
        said.contains("os error") || said.contains("disk I/O"),
        "{said}"
    );

    let back = Destination::start(dark, world.internet.mx_port(), Behaviour::accept()).unwrap();
    world.gateway.kill().unwrap();
    world.gateway.start().unwrap();
    assert_eq!(world.gateway.health().unwrap().0, 200);
    assert_eq!(submit(&world, "after", "b@customer.test").code, 250);
    wait_for(&customer, "after");
    wait_for(&back, "waits");
    world
        .gateway
        .wait_logged(&waits, "delivered", SOON)
        .unwrap();
    world.wait_empty();
    assert_eq!(copies(&back, "waits"), 1);
    assert_eq!(copies(&customer, "after"), 1);
}

#[test]
fn a_failed_sync_takes_no_more_mail_and_says_so_until_a_restart() {
    fatal_until_a_restart(SYNCS, "EIO");
}

#[test]
fn a_failed_write_takes_no_more_mail_and_says_so_until_a_restart() {
    fatal_until_a_restart(WRITES, "EIO");
}

#[test]
fn a_file_system_gone_read_only_takes_no_more_mail_and_says_so_until_a_restart() {
    fatal_until_a_restart(WRITES, "EROFS");
}

#[test]
fn a_full_disk_is_a_452_and_what_can_t_be_recorded_is_not_attempted() {
    let mut world = traceable();
    let customer = world.destination("customer.test", Behaviour::accept());
    let dark = world.internet.unreachable("back.test");
    let mut ids = Vec::new();
    for n in 0..5 {
        let id = world.send(&["b@back.test"], &format!("waits-{n}"));
        world.gateway.wait_logged(&id, "deferred", SOON).unwrap();
        ids.push(id);
    }
    let fault = Fault::inject(&world, WRITES, "ENOSPC");
    let reply = submit(&world, "refused", "b@customer.test");
    assert!(
        reply.code == 452 && reply.text().starts_with("4.3.1"),
        "{} {}",
        reply.code,
        reply.text()
    );
    // What is attempted now can't be recorded, so it is one attempt for what was under way and
    // none for the rest.
    let back = Destination::start(dark, world.internet.mx_port(), Behaviour::accept()).unwrap();
    eventually("results can't be stored", SOON, || {
        let said = world.gateway.said();
        said.contains("results of attempts could not be stored")
            .then_some(())
    })
    .unwrap();
    fault.lift();
    for (n, id) in ids.iter().enumerate() {
        let entry = world.gateway.wait_logged(id, "delivered", SOON).unwrap();
        let delivered = kinds(&entry).iter().filter(|k| *k == "delivered").count();
        assert_eq!(delivered, 1, "{entry}");
        assert_eq!(copies(&back, &format!("waits-{n}")), 1);
    }
    // No restart is needed.
    assert_eq!(world.gateway.health().unwrap().0, 200);
    assert_eq!(submit(&world, "after", "b@customer.test").code, 250);
    wait_for(&customer, "after");
    world.wait_empty();
    assert_eq!(copies(&customer, "refused"), 0);
}

/// A gateway with mail waiting for back.test that was stopped, or killed.
struct Stopped {
    world: World,
    dark: std::net::Ipv4Addr,
    ids: Vec<String>,
}

impl Stopped {
    fn new(mails: usize, orderly: bool) -> Stopped {
        let mut world = World::with(|options| options.set("delivery.retry", vec!["1s"]));
        let dark = world.internet.unreachable("back.test");
        let ids: Vec<String> = (0..mails)
            .map(|n| {
                let reply = submit(&world, &format!("m{n}"), "b@back.test");
                assert_eq!(reply.code, 250);
                reply.queue_id().unwrap()
            })
            .collect();
        for id in &ids {
            world.gateway.wait_logged(id, "deferred", SOON).unwrap();
        }
        if orderly {
            world.gateway.stop().unwrap();
        } else {
            world.gateway.kill().unwrap();
        }
        Stopped { world, dark, ids }
    }

    /// Where the mail goes, from now on.
    fn destination(&self) -> Destination {
        let port = self.world.internet.mx_port();
        Destination::start(self.dark, port, Behaviour::accept()).unwrap()
    }

    fn data(&self) -> PathBuf {
        self.world.gateway.directory().join("data")
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = std::fs::read_dir(self.data().join("segments"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        found.sort();
        found
    }
}

/// Where this text is in the file.
fn find(path: &Path, text: &str) -> Option<u64> {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())?;
    Some(at as u64)
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn a_damaged_content_is_returned_at_once_and_the_rest_is_delivered() {
    let mut stopped = Stopped::new(3, true);
    let segment = stopped
        .segments()
        .into_iter()
        .find(|path| find(path, "marker of m1").is_some())
        .unwrap();
    let at = find(&segment, "marker of m1").unwrap();
    overwrite(&segment, at, b"M");
    let back = stopped.destination();
    stopped.world.gateway.start().unwrap();
    let world = &stopped.world;
    let notice = world.notice("failed", "b@back.test");
    notice.says("Status: 5.3.0");
    notice.says("damaged on the gateway's");
    wait_for(&back, "m0");
    wait_for(&back, "m2");
    world.wait_empty();
    assert_eq!(copies(&back, "m1"), 0);
    let entry = world.gateway.log(&stopped.ids[1]).unwrap();
    assert!(
        kinds(&entry).iter().any(|kind| kind == "bounced"),
        "{entry}"
    );
    assert!(entry.to_string().contains("checksum mismatch"), "{entry}");
    let said = world.gateway.said();
    assert!(said.contains("a stored content can't be read"), "{said}");
}

#[test]
fn mail_of_a_missing_segment_waits_until_the_file_is_put_back() {
    let mut stopped = Stopped::new(2, false);
    let aside = stopped.world.gateway.directory().join("aside");
    let segment = stopped
        .segments()
        .into_iter()
        .find(|path| find(path, "marker of m0").is_some())
        .unwrap();
    std::fs::rename(&segment, &aside).unwrap();
    let back = stopped.destination();
    stopped.world.gateway.start().unwrap();
    {
        let world = &stopped.world;
        let said = world.gateway.said();
        assert!(said.contains("a segment file is missing"), "{said}");
        assert!(said.contains(segment.to_str().unwrap()), "{said}");
        // New mail is not concerned.
        assert_eq!(submit(world, "new", "b@back.test").code, 250);
        wait_for(&back, "new");
        eventually("the content is missed", SOON, || {
            let entry = world.gateway.log(&stopped.ids[0]).ok()?;
            entry.to_string().contains("is gone").then_some(())
        })
        .unwrap();
    }
    stopped.world.gateway.stop().unwrap();
    std::fs::rename(&aside, &segment).unwrap();
    stopped.world.gateway.start().unwrap();
    wait_for(&back, "m0");
    wait_for(&back, "m1");
    stopped.world.wait_empty();
    assert!(stopped.world.inbox.mail().is_empty());
}

#[test]
fn a_damaged_database_is_refused_with_the_remedy_and_its_backup_loses_nothing() {
    let mut stopped = Stopped::new(2, true);
    let database = stopped.data().join("queue.db");
    let wal = stopped.data().join("queue.db-wal");
    let aside = |name| stopped.world.gateway.directory().join(name);
    let (backup, backup_wal) = (aside("backup"), aside("backup-wal"));
    std::fs::copy(&database, &backup).unwrap();
    // Part of the database, as long as it is there.
    let with_wal = std::fs::rename(&wal, &backup_wal).is_ok();
    overwrite(&database, 0, &[0x55; 8192]);
    let error = stopped.world.gateway.start().unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("queue.db"), "{said}");
    assert!(said.contains("restore it from a backup"), "{said}");
    // Nothing was made worse by the attempt.
    std::fs::copy(&backup, &database).unwrap();
    let _ = std::fs::remove_file(&wal);
    if with_wal {
        std::fs::rename(&backup_wal, &wal).unwrap();
    }
    let back = stopped.destination();
    stopped.world.gateway.start().unwrap();
    wait_for(&back, "m0");
    wait_for(&back, "m1");
    stopped.world.wait_empty();
}

#[test]
fn a_damaged_write_ahead_log_is_kept_and_said_and_costs_nothing_before_the_damage() {
    let mut stopped = Stopped::new(1, false);
    // What is committed from here on lies behind all that the first start wrote.
    stopped.world.gateway.start().unwrap();
    let wal = stopped.data().join("queue.db-wal");
    let damage_at = std::fs::metadata(&wal).map_or(0, |m| m.len());
    for n in 0..3 {
        let reply = submit(&stopped.world, &format!("late{n}"), "b@back.test");
        assert_eq!(reply.code, 250);
    }
    stopped.world.gateway.kill().unwrap();
    assert!(std::fs::metadata(&wal).unwrap().len() > damage_at + 8000);
    overwrite(&wal, damage_at.max(32) + 100, &[0x55; 64]);
    let back = stopped.destination();
    stopped.world.gateway.start().unwrap();
    wait_for(&back, "m0");
    let said = stopped.world.gateway.said();
    assert!(said.contains("the write-ahead log is damaged"), "{said}");
    let kept = stopped.data().join("queue.db-wal.damaged");
    assert!(kept.exists());
    assert_eq!(submit(&stopped.world, "new", "b@back.test").code, 250);
    wait_for(&back, "new");
    stopped.world.wait_empty();
}

#[test]
fn a_torn_end_of_the_write_ahead_log_costs_nothing() {
    let mut stopped = Stopped::new(3, false);
    let wal = stopped.data().join("queue.db-wal");
    let length = std::fs::metadata(&wal).unwrap().len();
    assert!(length > 0);
    // Half a frame that a power cut left.
    overwrite(&wal, length, &[0x55; 2000]);
    let back = stopped.destination();
    stopped.world.gateway.start().unwrap();
    for n in 0..3 {
        wait_for(&back, &format!("m{n}"));
    }
    stopped.world.wait_empty();
}
