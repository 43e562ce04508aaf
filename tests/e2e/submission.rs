//! What hostile and heavy clients do to the submission listeners, and what others notice of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tidegate_tests::raw::Raw;
use tidegate_tests::sink::Behaviour;
use tidegate_tests::{eventually, proc};

use super::{PASSWORD, SENDER, SOON, USER, World};

/// Connects from an address of the loopback network, of which one client has only so many ports.
fn from(source: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_starve_nobody() {
    const MANY: u64 = 10_000;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    // Half of them are this process's.
    let possible = limit.maximum.unwrap_or(u64::MAX).saturating_sub(1_000);
    let many = MANY.min(possible);
    assert!(many >= 2_000, "the hard limit of open files is too low");

    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    // Whatever the first message brings into memory is there before it is measured.
    world.send(&["a@customer.test"], "before");
    customer.wait_for(1, SOON).unwrap();
    let pid = world.gateway.pid().unwrap();
    let before = proc::rss_kib(pid).unwrap();

    let begun = Instant::now();
    let listener = world.gateway.submission();
    let mut idle: Vec<TcpStream> = (0..many)
        .map(|n| from(Ipv4Addr::new(127, 99, 7, 1 + (n % 5) as u8), listener).unwrap())
        .collect();
    for stream in &mut idle {
        let mut greeting = [0; 4];
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ");
    }
    let connected = begun.elapsed();
    let each = (proc::rss_kib(pid).unwrap().saturating_sub(before)) as f64 / many as f64;

    let begun = Instant::now();
    let id = world.send(&["a@customer.test"], "among them");
    let served = begun.elapsed();
    customer.wait_for(2, SOON).unwrap();
    println!(
        "{many} idle connections in {connected:?}: {each:.1} KiB each; another served in {served:?}"
    );
    assert!(each <= 10.0, "{each:.1} KiB for each idle connection");
    assert!(served < SOON, "{served:?}");
    world.gateway.wait_logged(&id, "delivered", SOON).unwrap();

    // They are still there, and each is served when it wakes up.
    for stream in idle.iter_mut().step_by(1_000) {
        stream.write_all(b"QUIT\r\n").unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("221 "), "{rest:?}");
    }
}

#[test]
fn many_large_messages_at_once_stay_within_the_memory_configured() {
    const SESSIONS: usize = 200;
    let mut world = World::with(|options| options.set("submission.memory", "4MiB"));
    let customer = world.destination("customer.test", Behaviour::accept());
    world.send(&["a@customer.test"], "before");
    let pid = world.gateway.pid().unwrap();
    let before = proc::rss_kib(pid).unwrap();
    let body = format!("{}\r\n", "x".repeat(998)).repeat(900);
    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        let mut raw = world.raw();
        raw.say(&format!("MAIL FROM:<{SENDER}>"), 250).unwrap();
        raw.say("RCPT TO:<a@customer.test>", 250).unwrap();
        raw.say("DATA", 354).unwrap();
        raw.write(format!("Subject: large {n}\r\n\r\n{body}").as_bytes())
            .unwrap();
        sessions.push(raw);
    }
    // All of it lies in the gateway, or on its disk.
    let grown = (proc::rss_kib(pid).unwrap().saturating_sub(before)) / 1024;
    let sent = (SESSIONS * body.len()) >> 20;
    println!("{SESSIONS} messages, {sent} MiB under way: {grown} MiB more memory");
    assert!(grown < sent as u64 * 3 / 5, "{grown} MiB for {sent} MiB");
    for raw in &mut sessions {
        raw.write(b".\r\n").unwrap();
    }
    for raw in &mut sessions {
        raw.expect(250).unwrap();
    }
    customer.wait_for(SESSIONS + 1, SOON * 2).unwrap();
}

#[test]
fn a_thousand_recipients_are_taken_and_the_rest_told_to_come_again() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let mut raw = world.raw();
    raw.say(&format!("MAIL FROM:<{SENDER}>"), 250).unwrap();
    let commands: String = (0..1_005)
        .map(|n| format!("RCPT TO:<r{n}@customer.test>\r\n"))
        .collect();
    raw.write(commands.as_bytes()).unwrap();
    for n in 0..1_005 {
        raw.expect(if n < 1_000 { 250 } else { 452 }).unwrap();
    }
    raw.say("DATA", 354).unwrap();
    raw.write(b"Subject: many\r\n\r\nhello\r\n.\r\n").unwrap();
    raw.expect(250).unwrap();
    eventually("all recipients", SOON, || {
        (customer.counts().recipients == 1_000).then_some(())
    })
    .unwrap();
    assert_eq!(customer.protocol_errors(), Vec::<String>::new());
}

#[test]
fn an_endless_header_is_refused_and_costs_no_memory() {
    let world = World::start();
    let pid = world.gateway.pid().unwrap();
    let before = proc::peak_rss_kib(pid).unwrap();
    let mut raw = world.raw();
    raw.say(&format!("MAIL FROM:<{SENDER}>"), 250).unwrap();
    raw.say("RCPT TO:<a@customer.test>", 250).unwrap();
    raw.say("DATA", 354).unwrap();
    let fields = "X-Filler: and on and on\r\n".repeat(40_000);
    for _ in 0..20 {
        raw.write(fields.as_bytes()).unwrap();
    }
    raw.write(b"\r\nbody\r\n.\r\n").unwrap();
    let reply = raw.expect(552).unwrap();
    assert!(reply.text().contains("header"), "{}", reply.text());
    let grown = proc::peak_rss_kib(pid).unwrap() - before;
    assert!(grown < 16 * 1024, "{grown} KiB for 20 MiB of header");
    raw.say("RSET", 250).unwrap();
}

/// Everything that some server somewhere has taken for the end of the data.
fn ends() -> Vec<String> {
    let breaks = ["\r\n", "\n", "\r", "\r\r\n", "\r\n\0", "\0\r\n", "\n\r"];
    let mut all = Vec::new();
    for before in breaks {
        for after in breaks {
            for dot in [".", " .", ". "] {
                let end = format!("{before}{dot}{after}");
                // That is the true one, whatever stands around it.
                if !end.contains("\r\n.\r\n") {
                    all.push(end);
                }
            }
        }
    }
    all
}

#[test]
fn no_end_of_data_but_the_true_one_smuggles_a_message_in_or_out() {
    const EVIL: &str = "evil@acme.test";
    for repair in [false, true] {
        let mut world = World::with(|options| if repair { options.repairing() } else { options });
        let customer = world.destination("customer.test", Behaviour::accept());
        let (mut accepted, mut refused) = (0, 0);
        for end in ends() {
            let mut raw = world.raw();
            raw.say(&format!("MAIL FROM:<{SENDER}>"), 250).unwrap();
            raw.say("RCPT TO:<a@customer.test>", 250).unwrap();
            raw.say("DATA", 354).unwrap();
            let smuggled = format!(
                "MAIL FROM:<{EVIL}>\r\nRCPT TO:<victim@customer.test>\r\nDATA\r\n\
                 Subject: smuggled\r\n\r\nsmuggled\r\n"
            );
            raw.write(format!("Subject: end\r\n\r\ntext{end}{smuggled}.\r\n").as_bytes())
                .unwrap();
            // One answer to one message, and no other.
            let reply = raw.reply().unwrap();
            match reply.code {
                250 => accepted += 1,
                554 => refused += 1,
                _ => panic!("{end:?}: {} {}", reply.code, reply.text()),
            }
            // Cut off, or in step: the next command gets its own answer.
            if let Ok(noop) = raw.send("NOOP") {
                assert_eq!(noop.code, 250, "{end:?}");
            }
        }
        assert_eq!(accepted + refused, ends().len());
        assert!(accepted > 0 && refused > 0, "{accepted} {refused}");
        let arrived = customer.wait_for(accepted, SOON).unwrap();
        assert_eq!(arrived.len(), accepted, "repair: {repair}");
        for mail in &arrived {
            assert_eq!(
                (mail.from.as_str(), &mail.to[..]),
                (SENDER, &["a@customer.test".to_owned()][..])
            );
            // What goes on has nothing that the next server could fall for.
            let text = mail.text().replace("\r\n", "");
            assert!(!text.contains(['\r', '\n', '\0']), "{text:?}");
        }
        world.wait_empty();
        assert_eq!(customer.protocol_errors(), Vec::<String>::new());
    }
}

/// As Python, Perl and PHP clients do it.
#[test]
fn a_second_ehlo_after_starttls_or_auth_is_not_asked_for() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let mut raw = Raw::connect(world.gateway.smtp()).unwrap();
    raw.expect(220).unwrap();
    raw.say("HELO old.client.test", 250).unwrap();
    let token = base64_of(&format!("\0{USER}\0{PASSWORD}"));
    raw.say(&format!("AUTH PLAIN {token}"), 235).unwrap();
    let reply = raw
        .submit(SENDER, &["a@customer.test"], "Subject: x\r\n\r\nhello\r\n")
        .unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text());
    customer.wait_for(1, SOON).unwrap();
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
