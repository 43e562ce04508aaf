//! The binary as an operator meets it: set up, checked, run, steered, stopped; and what it says
//! and how it exits where something is wrong. Mail itself is the end-to-end suite's.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_tidegate");

/// A program that meets none of the settings of a gateway that whoever runs the tests may have.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in [
        "TIDEGATE_CONFIG",
        "TIDEGATE_DATABASE",
        "TIDEGATE_ADMIN",
        "TIDEGATE_ADMIN_CA",
        "TIDEGATE_TOKEN_FILE",
        "NOTIFY_SOCKET",
    ] {
        command.env_remove(name);
    }
    command
}

/// A directory with a gateway's files.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// Initialised, with ports of the system's choice and no need of a DNS.
    fn new() -> Place {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
        };
        // The default policies take seconds to compile, and none is needed here.
        place.ok(&["init", "--hostname", "gateway.test", "--no-policies"]);
        place.configure("");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, more: &str) {
        let text = format!(
            r#"
hostname = "gateway.test"
data_dir = "data"
shutdown_grace = "2s"
[[submission.listener]]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
{more}
"#
        );
        std::fs::write(self.path("tidegate.toml"), text).unwrap();
    }

    fn run(&self, words: &[&str]) -> Output {
        // A command that should end and does not is a failure, not a hang.
        command("timeout")
            .arg("60")
            .arg(BINARY)
            .args(words)
            .env("TIDEGATE_CONFIG", self.path("tidegate.toml"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let (code, out, err) = parts(&output);
        assert_eq!(code, 0, "{words:?}\n{out}{err}");
        out
    }

    /// Exit status and standard error.
    fn fails(&self, words: &[&str]) -> (i32, String) {
        let (code, _, err) = parts(&self.run(words));
        (code, err)
    }

    fn serve(&self) -> Running {
        let ready = self.path("ready.json");
        let _ = std::fs::remove_file(&ready);
        let mut child = command(BINARY)
            .arg("serve")
            .arg("--ready-file")
            .arg(&ready)
            .env("TIDEGATE_CONFIG", self.path("tidegate.toml"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The ready line comes after the ready file: reading it is the wait.
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(" ready ") {
            let before = said.len();
            lines.read_line(&mut said).unwrap();
            assert!(said.len() > before, "it ended: {said}");
        }
        let ready = std::fs::read_to_string(&ready).unwrap();
        Running {
            child,
            lines,
            said,
            ready: serde_json::from_str(&ready).unwrap(),
        }
    }
}

fn parts(output: &Output) -> (i32, String, String) {
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStderr>,
    /// Until it was ready.
    said: String,
    ready: Value,
}

impl Running {
    fn listener(&self) -> SocketAddr {
        self.ready["listeners"][0]["address"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Reads on until a line has that text.
    fn says(&mut self, text: &str) {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(
                self.lines.read_line(&mut line).unwrap() > 0,
                "it never said {text:?}"
            );
            if line.contains(text) {
                return;
            }
        }
    }

    /// SIGTERM; the exit status and how long it took.
    fn stop(mut self) -> (Option<i32>, Duration) {
        let begin = Instant::now();
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        (status.code(), begin.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_private_secrets_and_overwrites_nothing() {
    let place = Place::new();
    for name in ["admin.token", "master.key", "tls/key.pem"] {
        assert_eq!(mode(&place.path(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&place.path("data")), 0o700);
    let read = |name: &str| std::fs::read(place.path(name)).unwrap();
    let before = (
        read("admin.token"),
        read("master.key"),
        read("tls/cert.pem"),
        read("tidegate.toml"),
    );
    let (code, err) = place.fails(&["init"]);
    assert_eq!(code, 1);
    assert!(
        err.contains("nothing was changed") && err.contains("remedy"),
        "{err}"
    );
    std::fs::remove_file(place.path("admin.token")).unwrap();
    place.ok(&["init", "--force", "--no-policies"]);
    assert_ne!(read("admin.token"), before.0, "what was missing is made");
    assert_eq!(
        (
            read("master.key"),
            read("tls/cert.pem"),
            read("tidegate.toml")
        ),
        (before.1, before.2, before.3)
    );
}

#[test]
fn it_is_set_up_run_steered_and_stopped() {
    let place = Place::new();
    let (code, err) = place.fails(&["tenant", "list"]);
    assert_eq!(code, 69, "{err}");
    assert!(err.contains("tidegate serve"), "{err}");

    let mut running = place.serve();
    let mut greeting = [0; 4];
    let mut client = TcpStream::connect(running.listener()).unwrap();
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ");

    place.ok(&["tenant", "add", "acme", "--domain", "acme.example"]);
    let made: Value = serde_json::from_str(&place.ok(&[
        "credential",
        "add",
        "crm@acme",
        "--tenant",
        "acme",
        "--json",
    ]))
    .unwrap();
    assert_eq!(made["password"].as_str().unwrap().len(), 24);
    let list = place.ok(&["tenant", "list"]);
    assert!(list.contains("acme    acme.example"), "{list}");
    assert!(place.ok(&["queue", "list"]).contains("nothing is waiting"));
    assert!(
        place
            .ok(&["log", "--recipient", "x@y.example"])
            .contains("nothing was found")
    );
    assert!(place.ok(&["stats"]).contains("accepted messages"));
    assert!(place.ok(&["check", "--config-only"]).contains("ok"));
    let (code, err) = place.fails(&["tenant", "add", "acme", "--domain", "acme.example"]);
    assert_eq!(code, 1);
    assert!(err.contains("already"), "{err}");

    // A second one on the same directory is refused, and leaves the first alone.
    let (code, err) = place.fails(&["serve"]);
    assert_eq!(code, 1);
    assert!(err.contains("another gateway runs on it"), "{err}");

    // A broken certificate is told, and the present one stays.
    std::fs::write(place.path("tls/cert.pem"), "broken").unwrap();
    running.signal(Signal::HUP);
    running.says("the present one stays");

    let (status, took) = running.stop();
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(!place.path("data/admin.address").exists());
}

#[test]
fn what_was_set_up_survives_a_restart() {
    let place = Place::new();
    let running = place.serve();
    place.ok(&["tenant", "add", "acme", "--domain", "acme.example"]);
    place.ok(&["tenant", "suspend", "acme", "--bulk"]);
    drop(running);
    let running = place.serve();
    let tenant: Value =
        serde_json::from_str(&place.ok(&["tenant", "show", "acme", "--json"])).unwrap();
    assert_eq!(tenant["bulk_suspended"], Value::Bool(true));
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn a_wrong_configuration_is_status_2_with_its_place() {
    let place = Place::new();
    place.configure("[log]\nretention = \"3d\"\n");
    for words in [&["serve"][..], &["check"], &["stats"]] {
        let (code, err) = place.fails(words);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("tidegate.toml:10:13: log.retention"), "{err}");
        assert!(err.contains("remedy"), "{err}");
    }
    assert_eq!(place.fails(&["tenant", "add"]).0, 2, "missing arguments");
    std::fs::remove_file(place.path("tidegate.toml")).unwrap();
    let (code, err) = place.fails(&["serve"]);
    assert_eq!(code, 2);
    assert!(err.contains("tidegate init"), "{err}");
}

#[test]
fn a_port_in_use_is_named_with_its_remedy() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    place.configure(&format!(
        "[[submission.listener]]\naddress = \"{address}\"\n"
    ));
    let (code, err) = place.fails(&["serve"]);
    assert_eq!(code, 1);
    assert!(
        err.contains(&address.to_string()) && err.contains("remedy"),
        "{err}"
    );
    let (code, out, _) = parts(&place.run(&["check", "--json"]));
    assert_eq!(code, 1);
    let report: Value = serde_json::from_str(&out).unwrap();
    let bad = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["what"] == "port" && f["ok"] == false)
        .unwrap();
    assert!(
        bad["message"]
            .as_str()
            .unwrap()
            .contains(&address.to_string())
    );
    assert_eq!(
        report["config"]["log"]["retention"], "7d",
        "the effective configuration"
    );
    // A start that failed is not taken for a crash by the next.
    drop(taken);
    let running = place.serve();
    assert!(!running.said.contains("in order"), "{}", running.said);
}

/// Names, modes and contents of all files below a directory.
fn files(below: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let content = if path.is_dir() {
            found.extend(files(&path));
            Vec::new()
        } else {
            std::fs::read(&path).unwrap()
        };
        found.insert(path.clone(), (mode(&path), content));
    }
    found
}

/// The findings of `check --json` that are not well, as what they are about and all they say.
fn faults(place: &Place) -> BTreeMap<String, String> {
    let (_, out, err) = parts(&place.run(&["check", "--json"]));
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    let findings = report["findings"].as_array().unwrap();
    let bad = findings.iter().filter(|f| f["ok"] == false);
    bad.map(|f| (f["what"].as_str().unwrap().to_owned(), f.to_string()))
        .collect()
}

#[test]
fn a_check_changes_nothing_and_says_what_a_start_would_refuse() {
    // The DNS is not what this is about.
    const NO_DNS: &str = "[delivery]\nresolvers = [\"127.0.0.1:1\"]\n";
    let place = Place::new();
    place.configure(NO_DNS);
    std::fs::remove_dir_all(place.path("data")).unwrap();
    let before = files(place.dir.path());
    place.run(&["check"]);
    assert_eq!(files(place.dir.path()), before, "before the first start");
    assert_eq!(place.serve().stop().0, Some(0));
    let before = files(place.dir.path());
    let found = faults(&place);
    for well in ["data directory", "database", "admin token", "certificate"] {
        assert!(!found.contains_key(well), "{found:?}");
    }
    assert_eq!(files(place.dir.path()), before, "after a start");

    std::fs::write(place.path("admin.token"), "short\n").unwrap();
    std::fs::remove_file(place.path("tls/cert.pem")).unwrap();
    std::fs::write(place.path("file"), "").unwrap();
    place.configure(&format!(
        "{NO_DNS}[export.log]\nkind = \"file\"\ndir = \"file/below\"\n"
    ));
    let before = files(place.dir.path());
    let found = faults(&place);
    assert!(found["admin token"].contains("32 characters"), "{found:?}");
    assert!(found["export.log"].contains("file/below"), "{found:?}");
    assert!(found["certificate"].contains("move"), "{found:?}");
    assert_eq!(files(place.dir.path()), before, "where all is wrong");
    for (what, remedy) in [("token", "init --force"), ("certificate", "move")] {
        let (code, err) = place.fails(&["serve"]);
        assert_eq!(code, 1);
        assert!(err.contains(what) && err.contains(remedy), "{err}");
        if what == "token" {
            std::fs::remove_file(place.path("admin.token")).unwrap();
            // Half a pair is not completed, and what there is not overwritten.
            let (code, err) = place.fails(&["init", "--force", "--no-policies"]);
            assert_eq!(code, 1);
            assert!(err.contains("cert.pem is missing"), "{err}");
            std::fs::write(place.path("admin.token"), "x".repeat(64)).unwrap();
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(place.path("admin.token"), private).unwrap();
        }
    }
}

#[test]
fn an_init_that_can_not_work_leaves_nothing_in_the_way_of_the_next() {
    let place = Place {
        dir: tempfile::tempdir().unwrap(),
    };
    let (code, err) = place.fails(&["init", "--hostname", "bad name", "--no-policies"]);
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("--hostname") && err.contains("remedy"),
        "{err}"
    );
    assert!(files(place.dir.path()).is_empty());
    place.ok(&["init", "--hostname", "gateway.test", "--no-policies"]);
}

#[test]
fn a_start_that_can_not_tell_that_it_is_ready_ends_in_order() {
    let place = Place::new();
    let serve = |ready: &str| {
        let ready = place.path(ready).display().to_string();
        let (code, err) = place.fails(&["serve", "--ready-file", &ready]);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("can't be written"), "{err}");
        err
    };
    // Seen before anything is done, or only at the end: the name is one of a directory.
    assert!(!serve("missing/ready.json").contains("stopp"));
    std::fs::create_dir(place.path("taken")).unwrap();
    assert!(serve("taken").contains("stopped"));
    let running = place.serve();
    assert!(!running.said.contains("in order"), "{}", running.said);
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn a_start_that_can_not_note_its_configured_admin_address_serves_all_the_same() {
    let place = Place::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = free.local_addr().unwrap();
    drop(free);
    let text = std::fs::read_to_string(place.path("tidegate.toml")).unwrap();
    let (before, _) = text.split_once("[admin]").unwrap();
    let fixed = format!("{before}[admin]\naddress = \"{admin}\"\n");
    std::fs::write(place.path("tidegate.toml"), fixed).unwrap();
    std::fs::create_dir(place.path("data/admin.address")).unwrap();
    let running = place.serve();
    assert!(
        running.said.contains("could not be noted"),
        "{}",
        running.said
    );
    place.ok(&["stats"]);
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn a_damaged_database_and_a_lost_key_are_named() {
    let place = Place::new();
    let running = place.serve();
    place.ok(&["tenant", "add", "acme", "--domain", "acme.example"]);
    assert_eq!(running.stop().0, Some(0));
    // The write-ahead log too, or it would stand in for the damaged page.
    for name in ["queue.db", "queue.db-wal"] {
        let path = place.path("data").join(name);
        if let Ok(mut file) = std::fs::File::options().write(true).open(path) {
            file.write_all(&[0xa5; 4096]).unwrap();
        }
    }
    let (code, err) = place.fails(&["serve"]);
    assert_eq!(code, 1);
    assert!(err.contains("data") && err.contains("backup"), "{err}");
    std::fs::set_permissions(
        place.path("master.key"),
        std::fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let (code, err) = place.fails(&["serve"]);
    assert_eq!(code, 1);
    assert!(err.contains("master.key") && err.contains("0600"), "{err}");
}

#[test]
fn an_address_that_is_none_is_told_from_a_gateway_that_is_down() {
    let place = Place::new();
    let fails = |admin: &str| {
        let token = place.path("admin.token").display().to_string();
        let words = ["--admin", admin, "--token-file", &token, "stats"];
        place.fails(&words)
    };
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let (code, err) = fails(&address);
    assert_eq!(code, 69, "{err}");
    let (code, err) = fails("gateway.invalid:8025");
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("ssh -L"), "{err}");
    let (code, err) = fails("https://gateway.invalid");
    assert_eq!(code, 1, "{err}");
    // Somebody is there, and hangs up in the middle of it.
    let rude = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = rude.local_addr().unwrap().to_string();
    let hangs_up = std::thread::spawn(move || {
        let (mut stream, _) = rude.accept().unwrap();
        let _ = stream.read(&mut [0; 100]);
    });
    let (code, err) = fails(&address);
    assert_eq!(code, 1, "{err}");
    hangs_up.join().unwrap();
}

#[test]
fn completions_and_help_are_printed() {
    let place = Place {
        dir: tempfile::tempdir().unwrap(),
    };
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            place.ok(&["completions", shell]).contains("tidegate"),
            "{shell}"
        );
    }
    let help = place.ok(&["policy", "upload", "--help"]);
    assert!(help.contains("Examples:"), "{help}");
    assert!(
        place.ok(&["--help"]).contains("69"),
        "exit codes are documented"
    );
}
