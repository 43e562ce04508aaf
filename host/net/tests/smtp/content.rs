//! The content on its way: dots, size, 8-bit, early replies, large bodies.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_mail::BodyType;
use tidegate_queue::ports::{ContentReader, Fut, Job};

use crate::common::peer::{Do, Peer};
use crate::common::{SHORT, certificate, config, deliver, job, smtp, summary};

fn with(content: impl Into<Bytes>) -> Job {
    let mut job = job(&["a@x.example"]);
    job.content = Arc::new(content.into());
    job
}

#[tokio::test]
async fn the_message_arrives_as_it_was() {
    let peer = Peer::start(|_| None).await;
    let smtp = smtp(config(peer.port()));
    for content in [
        "S: x\r\n\r\n.\r\n..\r\n.end\r\n",
        "no line end",
        "",
        ".\r\n",
    ] {
        let done = deliver(&smtp, with(content)).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
        let got = peer.messages().pop().unwrap();
        let stuffed = String::from_utf8(got).unwrap();
        let plain: String = stuffed
            .split_inclusive("\r\n")
            .map(|line| line.strip_prefix('.').unwrap_or(line))
            .collect();
        let ended = content.is_empty() || content.ends_with("\r\n");
        assert_eq!(
            plain,
            format!("{content}{}", if ended { "" } else { "\r\n" })
        );
    }
    assert_eq!(peer.connections(), 1);
}

/// 10 MiB of lines, some with dots.
fn large() -> Bytes {
    let mut content = Vec::with_capacity(10 << 20);
    let mut n = 0u32;
    while content.len() < 10 << 20 {
        n += 1;
        let dot = if n.is_multiple_of(7) { "." } else { "" };
        content.extend_from_slice(format!("{dot}line {n} of a large message\r\n").as_bytes());
    }
    content.into()
}

#[tokio::test]
async fn ten_mebibytes_in_clear_and_under_tls() {
    let content = large();
    let (tls, _) = certificate(&["mx1.example"]);
    let clear = Peer::start(|_| None).await;
    let protected = Peer::with_tls(tls, |t| {
        (t.is("EHLO") && !t.tls).then_some(Do::Say("250-peer.example\n250 STARTTLS"))
    })
    .await;
    for peer in [&clear, &protected] {
        let done = deliver(&smtp(config(peer.port())), with(content.clone())).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
        let got = peer.messages().pop().unwrap();
        let dots = content.windows(3).filter(|w| w == b"\r\n.").count();
        assert_eq!(got.len(), content.len() + dots);
        let text = String::from_utf8(got).unwrap().replace("\r\n..", "\r\n.");
        assert!(text.as_bytes() == content);
    }
}

#[tokio::test]
async fn an_early_reply_is_heard_while_the_peer_reads_no_more() {
    for (says, expected) in [
        ("552 5.3.4 too large", "Permanent data 5.3.4 552"),
        ("452 4.3.1 disk full", "Temporary data 4.3.1 452"),
        ("421 4.3.2 going down", "Temporary data 4.3.2 421"),
        (
            "250 2.0.0 taken already",
            "Temporary data 4.5.0 GarbledReply",
        ),
    ] {
        let peer = Peer::start(move |t| (t.said == "body").then_some(Do::SayEarly(says))).await;
        let smtp = smtp(config(peer.port()));
        let done = deliver(&smtp, with(large())).await;
        assert_eq!(summary(&done), [expected]);
        assert_eq!(smtp.idle_connections(), 0);
    }
}

#[tokio::test]
async fn a_connection_lost_before_the_end_of_the_data_is_not_uncertain() {
    let peer = Peer::start(|t| (t.said == "body").then_some(Do::Close)).await;
    let done = deliver(&smtp(config(peer.port())), with(large())).await;
    assert_eq!(summary(&done), ["Temporary data 4.4.2 ConnectionLost"]);
}

#[tokio::test]
async fn a_peer_that_takes_nothing_meets_the_time_out_of_the_block() {
    let peer = Peer::start(|t| (t.said == "body").then_some(Do::Stall)).await;
    let mut config = config(peer.port());
    config.timeouts.block = SHORT;
    let done = deliver(&smtp(config), with(large())).await;
    assert_eq!(summary(&done), ["Temporary data 4.4.2 Timeout"]);
}

#[tokio::test]
async fn larger_than_the_peer_takes_is_not_tried() {
    let peer = Peer::start(|t| {
        t.is("EHLO")
            .then_some(Do::Say("250-peer.example\n250 SIZE 22"))
    })
    .await;
    let smtp = smtp(config(peer.port()));
    let done = deliver(&smtp, job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Permanent local 5.3.4 TooLarge"]);
    assert_eq!(peer.count("MAIL"), 0);
    let done = deliver(&smtp, with("S: x\r\n\r\nshort.\r\n")).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    assert_eq!(
        peer.commands()[1],
        "0 MAIL FROM:<crm@sender.example> SIZE=16"
    );
    assert_eq!(peer.connections(), 1, "the connection was kept");
}

#[tokio::test]
async fn eight_bit_content_needs_8bitmime_unless_it_is_none() {
    let plain = Peer::start(|t| t.is("EHLO").then_some(Do::Say("250 peer.example"))).await;
    let smtp = smtp(config(plain.port()));
    let mut eight = with("S: x\r\n\r\ncaf\u{e9}\r\n");
    eight.body = BodyType::EightBitMime;
    let done = deliver(&smtp, eight.clone()).await;
    assert_eq!(
        summary(&done),
        ["Permanent local 5.6.3 EightBitUnsupported"]
    );
    let mut seven = with("S: x\r\n\r\ncafe\r\n");
    seven.body = BodyType::EightBitMime;
    let done = deliver(&smtp, seven).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    assert_eq!(plain.commands()[1], "0 MAIL FROM:<crm@sender.example>");

    let able = Peer::start(|_| None).await;
    let done = deliver(&crate::common::smtp(config(able.port())), eight).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
    assert!(able.commands()[1].ends_with(" BODY=8BITMIME"));
}

#[tokio::test]
async fn content_that_can_not_be_read() {
    /// Fails at this offset.
    struct Broken(u64);
    impl ContentReader for Broken {
        fn size(&self) -> u64 {
            1 << 20
        }
        fn read(&self, offset: u64, max: usize) -> Fut<'_, std::io::Result<Bytes>> {
            Box::pin(std::future::ready(if offset >= self.0 {
                Err(std::io::Error::other("bad sector"))
            } else {
                Ok(vec![b'x'; max].into())
            }))
        }
    }
    for (at, connections) in [(0, 0), (300_000, 1)] {
        let peer = Peer::start(|_| None).await;
        let mut job = job(&["a@x.example"]);
        job.content = Arc::new(Broken(at));
        let done = deliver(&smtp(config(peer.port())), job).await;
        assert_eq!(summary(&done), ["Temporary local 4.3.0 ContentUnreadable"]);
        assert_eq!(
            done.results[0].outcome.detail.as_deref(),
            Some("bad sector")
        );
        assert_eq!(peer.connections(), connections);
        assert!(peer.messages().is_empty(), "half a message is never ended");
    }
}

#[tokio::test]
async fn thousands_of_recipients_in_one_go() {
    let peer = Peer::start(|_| None).await;
    let mut config = config(peer.port());
    config.recipients_per_transaction = 5000;
    let many: Vec<String> = (0..5000)
        .map(|n| format!("recipient-{n}@x.example"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let done = deliver(&smtp(config), job(&many)).await;
    assert!(
        summary(&done)
            .iter()
            .all(|s| s == "Delivered dot 2.0.0 250")
    );
    assert_eq!(peer.count("MAIL"), 1);
}
