//! What an operator meets when something is wrong: a clear message with place and remedy, and an
//! exit code.

use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Output;

use tidegate_tests::gateway::{Gateway, Options, command};
use tidegate_tests::internet::Internet;
use tidegate_tests::tls::Identity;

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
    let output = gateway.cli(&["check"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(found.contains("is of this version"), "{found}");
    assert!(!found.contains("in order"), "init closes it: {found}");
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
fn what_is_tested_is_not_the_gateway_of_whoever_runs_the_tests() {
    let internet = Internet::start().unwrap();
    let gateway = Gateway::new(Options::new(&internet).unwrap().without_policies()).unwrap();
    let help = gateway.run(&["--help"]).unwrap();
    let mut names: Vec<&str> = help
        .split("[env: ")
        .skip(1)
        .filter_map(|rest| rest.split('=').next())
        .collect();
    assert!(names.contains(&"TIDEGATE_ADMIN"), "{help}");
    names.extend(["TIDEGATE_DATABASE", "NOTIFY_SOCKET"]);
    let command = command("true");
    for name in names {
        let removed = command
            .get_envs()
            .any(|(key, value)| key == name && value.is_none());
        assert!(removed, "{name} reaches the gateway under test");
    }
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
    assert_eq!(output.status.code(), Some(1));
    let words = said(&output);
    assert!(words.starts_with("tidegate: id: "), "{words}");
    assert!(words.contains("remedy: "), "{words}");
    let output = world
        .gateway
        .cli(&["credential", "add", "x", "--tenant", "nobody"])
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = said(&output);
    assert!(words.contains("no tenant \"nobody\""), "{words}");
}

/// A reverse proxy with TLS, as stands before the admin API for tenants elsewhere. Ends with the
/// handle.
fn proxy(identity: &Identity, to: String) -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
    let tls = tokio_rustls::TlsAcceptor::from(identity.server.clone());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                let (tls, to) = (tls.clone(), to.clone());
                tokio::spawn(async move {
                    // A client that does not trust the certificate goes away.
                    if let Ok(mut client) = tls.accept(client).await {
                        let mut admin = tokio::net::TcpStream::connect(to).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut admin).await;
                    }
                });
            }
        };
        runtime.block_on(async {
            tokio::select! {
                () = serve => {}
                _ = stopped => {}
            }
        });
    });
    (address, stop)
}

#[test]
fn a_tenant_elsewhere_reaches_the_api_through_a_proxy_with_tls() {
    let world = World::with(Options::without_policies);
    let token = world.gateway.token("acme").unwrap();
    let identity = Identity::new(&["localhost"]).unwrap();
    let ca = world.gateway.directory().join("ca.pem");
    std::fs::write(&ca, &identity.certificate_pem).unwrap();
    let admin = std::fs::read_to_string(world.gateway.directory().join("data/admin.address"));
    let (address, _stop) = proxy(&identity, admin.unwrap().trim().to_owned());
    let ask = |more: &[&str]| {
        command(tidegate_tests::gateway::binary().unwrap())
            .args(["policy", "status", "--json", "--admin"])
            .arg(format!("https://localhost:{}", address.port()))
            .arg("--token-file")
            .arg(&token)
            .args(more)
            .output()
            .unwrap()
    };
    let ca = ca.display().to_string();
    let output = ask(&["--admin-ca", &ca]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "[]");
    // Nobody vouches for it.
    let output = ask(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("--admin-ca"), "{}", said(&output));
    let output = ask(&["--admin-ca", "nowhere.pem"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}
