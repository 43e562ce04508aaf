//! What an operator meets when something is wrong: a clear message with place and remedy, and an
//! exit code.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Output;

use tidegate_tests::gateway::{Gateway, Options};
use tidegate_tests::internet::Internet;

use super::{SOON, World};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_port_in_use_names_the_address_and_the_remedy() {
    let internet = Internet::start().unwrap();
    let options = Options::new(&internet).unwrap();
    let _first = Gateway::running(options.clone()).unwrap();
    let mut second = Gateway::new(options).unwrap();
    second.spawn().unwrap();
    let status = second.wait(SOON).unwrap();
    assert!(!status.success());
    let said = second.said();
    assert!(said.contains("in use"), "{said}");
    assert!(
        said.contains(&second.smtp().to_string()) || said.contains("admin"),
        "{said}"
    );
    assert!(said.contains("remedy"), "{said}");
}

#[test]
fn two_gateways_do_not_share_a_directory() {
    let internet = Internet::start().unwrap();
    let first = Gateway::running(Options::new(&internet).unwrap()).unwrap();
    let output = first.cli(&["serve"]).unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("remedy"), "{}", said(&output));
}

#[test]
fn mistakes_in_the_configuration_are_placed() {
    let internet = Internet::start().unwrap();
    let mut gateway = Gateway::new(Options::new(&internet).unwrap()).unwrap();
    let good = std::fs::read_to_string(gateway.config()).unwrap();
    assert!(gateway.cli(&["check"]).unwrap().status.success());
    for (from, to, expected) in [
        ("hostname =", "hostnam =", "hostname"),
        ("lifetime = \"1h\"", "lifetime = \"1 parsec\"", "lifetime"),
        ("[log]", "[log]\nretention = \"2d\"", "7"),
    ] {
        assert!(good.contains(from), "{from} in {good}");
        std::fs::write(gateway.config(), good.replacen(from, to, 1)).unwrap();
        for command in ["check", "serve"] {
            let output = gateway.cli(&[command]).unwrap();
            assert_eq!(
                output.status.code(),
                Some(2),
                "{command}: {}",
                said(&output)
            );
            let said = said(&output) + &String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("tidegate.toml:"), "file and line: {said}");
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }
    std::fs::write(gateway.config(), good).unwrap();
    gateway.start().unwrap();
}

#[test]
fn without_a_gateway_the_command_line_says_so() {
    let internet = Internet::start().unwrap();
    let gateway = Gateway::new(Options::new(&internet).unwrap()).unwrap();
    let output = gateway.cli(&["queue", "list"]).unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("serve"), "{}", said(&output));
}

#[test]
fn secrets_are_readable_by_their_owner_only() {
    let world = World::start();
    for name in ["admin.token", "master.key", "tls/key.pem"] {
        let path = world.gateway.directory().join(name);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
    let wrong = world.gateway.directory().join("admin.token");
    std::fs::write(
        &wrong,
        "0000000000000000000000000000000000000000000000000000000000000000\n",
    )
    .unwrap();
    let output = world.gateway.cli(&["tenant", "list"]).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("token"), "{}", said(&output));
}

#[test]
fn a_damaged_database_stops_the_start_with_its_name() {
    let internet = Internet::start().unwrap();
    let mut gateway = Gateway::running(Options::new(&internet).unwrap()).unwrap();
    gateway.stop().unwrap();
    let data = gateway.directory().join("data");
    let database = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3\0")))
        .unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(&database)
        .unwrap();
    file.write_all_at(&[0xff; 512], 0).unwrap();
    // Else the write-ahead log would heal the page.
    for suffix in ["-wal", "-shm"] {
        let mut beside = database.clone().into_os_string();
        beside.push(suffix);
        let _ = std::fs::remove_file(beside);
    }
    gateway.spawn().unwrap();
    let status = gateway.wait(SOON).unwrap();
    assert!(!status.success());
    let said = gateway.said();
    let name = database.file_name().unwrap().to_string_lossy().into_owned();
    assert!(said.contains(&name), "{name}: {said}");
    assert!(said.contains("remedy"), "{said}");
}

#[test]
fn what_a_tenant_may_not_be_called_is_said_with_the_field() {
    let world = World::start();
    let output = world
        .gateway
        .cli(&["tenant", "add", "Not Valid", "--domain", "x.test"])
        .unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("id"), "{}", said(&output));
    let output = world
        .gateway
        .cli(&["credential", "add", "x", "--tenant", "nobody"])
        .unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("nobody"), "{}", said(&output));
}
