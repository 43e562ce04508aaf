//! The submission listeners over loopback sockets, with an intake that only remembers.

mod rig;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_mail::{Enhanced, Reply};
use tidegate_net::clock::OsClock;
use tidegate_net::submission::{
    AuthConfig, ListenerConfig, ListenerMode, Submission, SubmissionConfig, Timeouts,
};
use tidegate_queue::Directory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use rig::*;

#[tokio::test]
async fn a_message_over_starttls_with_its_trace_and_the_fields_it_lacked() {
    let server = start(Remembering::default(), |_| {});
    let mut clear = server.connect(0).await;
    clear.expect("220 mx.example").await;
    let offers = clear.command("EHLO client.example", "250").await;
    assert!(
        offers.contains("STARTTLS") && !offers.contains("AUTH"),
        "{offers}"
    );
    clear
        .command("MAIL FROM:<crm@acme.example>", "530 5.7.0")
        .await;
    clear.command("STARTTLS", "220").await;
    let mut client = server.handshake(clear.0.into_inner()).await;
    client.login("crm", "secret").await;
    client.begin().await;
    let id = client
        .command("Subject: hello\r\n\r\nbody\r\n.", "250 2.0.0 queued as")
        .await;
    client.command("QUIT", "221").await;
    client.closed().await;
    let taken = server.taken();
    let [message] = &taken[..] else {
        panic!("{}", taken.len())
    };
    let id = id.trim_end().rsplit(' ').next().unwrap();
    assert_eq!(message.submission.id.to_string(), id);
    assert_eq!(&*message.submission.tenant, "acme");
    assert!(!message.submission.bulk && !message.streamed);
    let origin = &message.submission.origin;
    assert_eq!((origin.via.as_str(), origin.tls), ("smtp", true));
    assert_eq!(origin.user.as_deref(), Some("crm"));
    assert_eq!(origin.peer.as_deref(), Some("127.0.0.1"));
    assert_eq!(origin.helo, "client.example");
    let content = &message.content;
    assert!(
        content.starts_with("Received: from client.example ([127.0.0.1])"),
        "{content}"
    );
    for part in [
        "TLSv1.3",
        "by mx.example with ESMTPSA",
        &format!("id {id};"),
        "\r\nSubject: hello\r\nDate: ",
        &format!("Message-ID: <{id}@mx.example>\r\n\r\nbody\r\n"),
    ] {
        assert!(content.contains(part), "{part:?} not in {content}");
    }
    let header = &message.submission.header;
    assert_eq!(header.get("subject"), Some("hello"));
    assert_eq!(header.hops(), 1);
    server.stop().await;
}

#[tokio::test]
async fn implicit_tls_pipelining_and_chunks() {
    let server = start(Remembering::default(), |_| {});
    let tcp = TcpStream::connect(server.addresses[1]).await.unwrap();
    let mut client = server.handshake(tcp).await;
    client.expect("220").await;
    client.login("bulk", "secret").await;
    let envelope = "MAIL FROM:<crm@acme.example>\r\nRCPT TO:<bob@example.org>\r\n";
    // Two messages by BDAT and one by DATA, all at once but for the data.
    let chunks = format!("{envelope}BDAT 4\r\nA: bBDAT 7 LAST\r\n\r\n\r\n1\r\n");
    client
        .send(&format!("{chunks}{chunks}{envelope}DATA\r\n"))
        .await;
    for start in [
        "250 2.1.0",
        "250 2.1.5",
        "250 2.0.0 4 octets",
        "250 2.0.0 queued",
        "250 2.1.0",
        "250 2.1.5",
        "250 2.0.0 4 octets",
        "250 2.0.0 queued",
        "250 2.1.0",
        "250 2.1.5",
        "354",
    ] {
        client.expect(start).await;
    }
    client.send("A: b\r\n\r\n..\r\n.\r\nQUIT\r\n").await;
    client.expect("250 2.0.0 queued").await;
    client.expect("221").await;
    client.closed().await;
    let taken = server.taken();
    let bodies: Vec<&str> = taken
        .iter()
        .map(|t| t.content.split_once("\r\n\r\n").unwrap().1)
        .collect();
    assert_eq!(bodies, ["1\r\n", "1\r\n", ".\r\n"]);
    assert!(taken.iter().all(|t| t.submission.bulk));
    assert_eq!(taken[0].submission.origin.via, "smtps");
    assert_eq!(server.stats.messages_accepted.load(Ordering::Relaxed), 3);
    server.stop().await;
}

#[tokio::test]
async fn who_may_send_what() {
    let server = start(Remembering::default(), |_| {});
    let mut client = server.connect(2).await;
    client.expect("220").await;
    client.command("EHLO c", "250").await;
    let wrong = STANDARD.encode("\0crm\0guess");
    client
        .command(&format!("AUTH PLAIN {wrong}"), "535 5.7.8")
        .await;
    client
        .command("MAIL FROM:<crm@acme.example>", "530 5.7.0")
        .await;
    client.login("crm", "secret").await;
    for (path, start) in [
        (
            "<crm@late.example>",
            "550 5.7.1 MAIL FROM: late.example is not a domain",
        ),
        ("<crm@sub.acme.example>", "550 5.7.1"),
        ("<>", "550 5.7.1 MAIL FROM: the null reverse-path"),
        ("<crm@ACME.example>", "250"),
    ] {
        client.command(&format!("MAIL FROM:{path}"), start).await;
    }
    let mut late = server.logged_in("late").await;
    late.command(
        "MAIL FROM:<a@late.example>",
        "550 5.7.1 tenant late is suspended",
    )
    .await;
    // The queue takes nothing now.
    client.command("RSET", "250").await;
    let full = Reply::new(452, Enhanced::new(4, 3, 1), "storage is full");
    *server.intake.refusal.lock().unwrap() = Some(full);
    client
        .command("MAIL FROM:<crm@acme.example>", "452 4.3.1")
        .await;
    *server.intake.refusal.lock().unwrap() = None;
    client.command("MAIL FROM:<crm@acme.example>", "250").await;
    client.command("RSET", "250").await;
    // A connection does not outlive its password.
    server.directory.store(Arc::new(directory("changed")));
    client
        .command("MAIL FROM:<crm@acme.example>", "421 4.7.0")
        .await;
    client.closed().await;
    assert_eq!(server.stats.logins_failed.load(Ordering::Relaxed), 1);
    assert!(server.taken().is_empty());
    drop(late);
    server.stop().await;
}

#[tokio::test]
async fn guessing_passwords_is_cut_short() {
    let server = start(Remembering::default(), |config| {
        config.auth = AuthConfig {
            failures_per_address: 4,
            ..AuthConfig::default()
        };
    });
    let wrong = format!("AUTH PLAIN {}", STANDARD.encode("\0crm\0guess"));
    let mut client = server.connect(2).await;
    client.expect("220").await;
    client.command("EHLO c", "250").await;
    for _ in 0..3 {
        client.command(&wrong, "535").await;
    }
    client.expect("421 4.7.0 too many failed logins").await;
    client.closed().await;
    let mut client = server.connect(2).await;
    client.expect("220").await;
    client.command("EHLO c", "250").await;
    client.command(&wrong, "535").await;
    client
        .command(&wrong, "421 4.7.0 too many failed logins from your address")
        .await;
    client.closed().await;
    server.stop().await;
}

#[tokio::test]
async fn a_large_message_is_streamed() {
    let server = start(Remembering::default(), |config| {
        config.spool_above = 64 * 1024
    });
    let mut client = server.logged_in("crm").await;
    client.begin().await;
    let line = format!("{}\r\n", "x".repeat(998));
    let mut sent = String::from("Subject: big\r\n\r\n");
    sent += &line.repeat(3_000);
    client.send(&sent).await;
    client.command(".", "250").await;
    // A small one behind it is in memory again.
    client.begin().await;
    client.command("Subject: small\r\n\r\nx\r\n.", "250").await;
    let taken = server.taken();
    assert!(taken[0].streamed && !taken[1].streamed);
    let content = &taken[0].content;
    assert!(content.starts_with("Received: "));
    let (_, body) = content.split_once("\r\n\r\n").unwrap();
    assert!(body == line.repeat(3_000));
    server.stop().await;
}

#[tokio::test]
async fn a_full_store_is_said_after_the_data() {
    let intake = Remembering {
        full: true,
        ..Remembering::default()
    };
    let server = start(intake, |config| config.spool_above = 10_000);
    let mut client = server.logged_in("crm").await;
    client.begin().await;
    client
        .send(&format!("A: b\r\n\r\n{}", "text\r\n".repeat(50_000)))
        .await;
    client.command(".", "452 4.3.1").await;
    client.begin().await;
    client.command("A: b\r\n\r\nsmall\r\n.", "250").await;
    assert_eq!(server.taken().len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_in_mid_stream_reaches_a_client_that_goes_on_sending() {
    let server = start(Remembering::default(), |_| {});
    let mut client = server.logged_in("crm").await;
    client.begin().await;
    client.send("A: b\r\n\r\nbare\n").await;
    let rest = "text\r\n".repeat(500_000);
    let (mut reader, mut writer) = tokio::io::split(client.0.into_inner());
    let sending = tokio::spawn(async move {
        let sent = writer.write_all(rest.as_bytes()).await;
        let _ = writer.write_all(b".\r\n").await;
        let _ = writer.shutdown().await;
        sent
    });
    let mut reply = String::new();
    reader.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("554 5.6.0"), "{reply}");
    sending.await.unwrap().unwrap();
    assert!(server.taken().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_listener_may_repair_line_ends() {
    let server = start(Remembering::default(), |_| {});
    let mut client = server.connect(3).await;
    client.expect("220").await;
    client.login("crm", "secret").await;
    client.begin().await;
    client
        .command("Date: x\nMessage-ID: <y>\n\none\ntwo\r\n.", "250")
        .await;
    let taken = server.taken();
    let content = &taken[0].content;
    assert!(
        content.ends_with("\r\nDate: x\r\nMessage-ID: <y>\r\n\r\none\r\ntwo\r\n"),
        "{content}"
    );
    server.stop().await;
}

#[tokio::test]
async fn commands_behind_starttls_are_an_attack() {
    let server = start(Remembering::default(), |_| {});
    let mut client = server.connect(0).await;
    client.expect("220").await;
    client.command("EHLO c", "250").await;
    client
        .send("STARTTLS\r\nMAIL FROM:<crm@acme.example>\r\n")
        .await;
    client.expect("554 5.5.1").await;
    client.closed().await;
    server.stop().await;
}

#[tokio::test]
async fn idle_clients_are_told_so_and_closed() {
    let server = start(Remembering::default(), |config| {
        config.timeouts = Timeouts {
            command: Duration::from_millis(50),
            ..Timeouts::default()
        };
    });
    let mut client = server.connect(0).await;
    client.expect("220").await;
    client.expect("421 4.4.2").await;
    client.closed().await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_drips_is_cut_off_with_the_session() {
    let server = start(Remembering::default(), |config| {
        config.timeouts.session = Duration::from_millis(600);
    });
    // One drips a command, the other a message.
    let mut commands = server.connect(2).await;
    commands.expect("220").await;
    let mut message = server.logged_in("crm").await;
    message.begin().await;
    for client in [commands, message] {
        let (mut reader, mut writer) = tokio::io::split(client.0.into_inner());
        let dripping = tokio::spawn(async move {
            while writer.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut heard = String::new();
        // The end may be a reset: the client goes on talking.
        let _ = tokio::time::timeout(Duration::from_secs(30), reader.read_to_string(&mut heard))
            .await
            .expect("it ends");
        assert!(heard.starts_with("421 4.4.2"), "{heard:?}");
        dripping.abort();
    }
    assert!(server.taken().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn messages_beyond_the_memory_are_streamed_and_headers_refused() {
    let server = start(Remembering::default(), |config| {
        config.memory = 32 * 1024;
    });
    // Holds most of it, with its message half sent.
    let mut first = server.logged_in("crm").await;
    first.begin().await;
    first
        .send(&format!("A: b\r\n\r\n{}", "held\r\n".repeat(4_500)))
        .await;
    // The next goes to the store as it comes, although it is small.
    let mut second = server.logged_in("crm").await;
    second.begin().await;
    let body = "text\r\n".repeat(2_000);
    second.command(&format!("A: b\r\n\r\n{body}."), "250").await;
    let taken = server.taken();
    assert!(taken[0].streamed && taken[0].content.ends_with(&body));
    // A header has to be whole.
    second.begin().await;
    second
        .command(
            &format!("A: b\r\n{}\r\nx\r\n.", "B: c\r\n".repeat(4_000)),
            "452 4.3.1 too much mail at once",
        )
        .await;
    // With the first gone there is room.
    first.command(".", "250").await;
    second.begin().await;
    second.command(&format!("A: b\r\n\r\n{body}."), "250").await;
    let taken = server.taken();
    assert_eq!(
        taken.iter().map(|t| t.streamed).collect::<Vec<_>>(),
        [false, false]
    );
    server.stop().await;
}

#[tokio::test]
async fn connections_are_limited_and_places_are_given_back() {
    let server = start(Remembering::default(), |config| {
        config.max_connections_per_address = 2;
    });
    let mut first = server.connect(0).await;
    first.expect("220").await;
    let mut second = server.connect(2).await;
    second.expect("220").await;
    let mut third = server.connect(0).await;
    third
        .expect("421 4.7.0 too many connections from your address")
        .await;
    third.closed().await;
    first.command("QUIT", "221").await;
    first.closed().await;
    // The place is free a moment after the client sees the end.
    loop {
        let mut again = server.connect(0).await;
        if again.reply().await.starts_with("220") {
            break;
        }
    }
    assert!(server.stats.connections_refused.load(Ordering::Relaxed) >= 1);
    drop(second);
    server.stop().await;
}

#[tokio::test]
async fn a_stop_closes_idle_sessions_and_lets_messages_end() {
    let mut server = start(Remembering::default(), |_| {});
    let mut idle = server.connect(0).await;
    idle.expect("220").await;
    let mut busy = server.logged_in("crm").await;
    busy.begin().await;
    busy.send("A: b\r\n\r\nhalf").await;
    let _ = server.stop.take().unwrap().send(());
    idle.expect("421 4.3.2").await;
    idle.closed().await;
    let late = TcpStream::connect(server.addresses[0]).await;
    assert!(late.is_err(), "the listener is closed");
    busy.command(" and half\r\n.", "250").await;
    busy.expect("421 4.3.2").await;
    busy.closed().await;
    server.running.await.unwrap();
    let taken = server.intake.taken.lock().unwrap();
    assert!(taken[0].content.ends_with("half and half\r\n"));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let mut server = start(Remembering::default(), |config| {
        config.timeouts.stop = Duration::from_millis(50);
    });
    let mut busy = server.logged_in("crm").await;
    busy.begin().await;
    let _ = server.stop.take().unwrap().send(());
    busy.expect("421 4.3.2").await;
    busy.closed().await;
    drop(busy);
    server.running.await.unwrap();
    assert!(server.intake.taken.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_honest_client_is_served_among_idle_ones() {
    let server = start(Remembering::default(), |_| {});
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(server.addresses[0]).await.unwrap());
    }
    let mut client = server.logged_in("crm").await;
    client.begin().await;
    client.command("A: b\r\n\r\nx\r\n.", "250").await;
    drop((idle, client));
    server.stop().await;
}

#[tokio::test]
async fn bind_errors_name_the_listener_and_the_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = |address: SocketAddr, mode, allow_plain_auth| {
        let config = SubmissionConfig {
            listeners: vec![ListenerConfig {
                address,
                mode,
                allow_plain_auth,
                repair_line_ends: false,
            }],
            ..SubmissionConfig::default()
        };
        let directory = Arc::new(ArcSwap::from_pointee(Directory::default()));
        match Submission::bind(config, None, directory, Arc::new(OsClock)) {
            Ok(_) => panic!("bound"),
            Err(error) => error.to_string(),
        }
    };
    let used = taken.local_addr().unwrap();
    let error = bind(used, ListenerMode::Plain, true);
    assert!(
        error.contains(&used.to_string()) && error.contains("choose another port"),
        "{error}"
    );
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let error = bind(loopback, ListenerMode::StartTls, false);
    assert!(error.contains("certificate"), "{error}");
    let error = bind(loopback, ListenerMode::Plain, false);
    assert!(error.contains("nobody could log in"), "{error}");
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let error = bind(everywhere, ListenerMode::Plain, true);
    assert!(error.contains("loopback"), "{error}");
    let error = bind("192.0.2.77:0".parse().unwrap(), ListenerMode::Plain, false);
    assert!(error.contains("192.0.2.77"), "{error}");
}
