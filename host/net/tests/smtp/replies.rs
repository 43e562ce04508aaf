//! The reply table of the semantics, within a transaction.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_mail::{Address, BodyType, Notify, OriginalRecipient, Ret};
use tidegate_queue::ports::Contact;

use crate::common::peer::{Do, Peer, Turn};
use crate::common::{SHORT, config, deliver, job, smtp, summary};

const LOCK_STEP: &str = "250-peer.example\n250 8BITMIME";

/// With and without PIPELINING the same thing comes of it.
async fn both(
    behaviour: impl Fn(&Turn) -> Option<Do> + Clone + Send + Sync + 'static,
    recipients: &[&str],
    expected: &[&str],
) {
    for pipelining in [true, false] {
        let inner = behaviour.clone();
        let peer = Peer::start(move |turn| {
            inner(turn).or_else(|| (turn.is("EHLO") && !pipelining).then_some(Do::Say(LOCK_STEP)))
        })
        .await;
        let smtp = smtp(config(peer.port()));
        let done = deliver(&smtp, job(recipients)).await;
        assert_eq!(summary(&done), expected, "pipelining: {pipelining}");
        assert_eq!(done.contact, Contact::Reached);
        let hop = &done.results[0].hop;
        assert_eq!(hop.host.as_deref(), Some("mx1.example"));
        assert_eq!(hop.peer, Some(peer.address));
        assert_eq!(hop.source, Some(crate::common::loopback(1)));
        assert_eq!(hop.tls, None);
    }
}

#[tokio::test]
async fn delivered() {
    both(|_| None, &["a@x.example"], &["Delivered dot 2.0.0 250"]).await;
    both(
        |_| None,
        &["a@x.example", "b@x.example"],
        &["Delivered dot 2.0.0 250"; 2],
    )
    .await;
}

#[tokio::test]
async fn mail_refused_is_for_all() {
    for (says, expected) in [
        ("451 4.7.1 later", "Temporary mail 4.7.1 451"),
        ("550 5.7.1 never", "Permanent mail 5.7.1 550"),
        ("550 no enhanced code", "Permanent mail 5.0.0 550"),
        ("550 2.7.1 contradicts", "Permanent mail 5.0.0 550"),
        (
            "250-weird\n451 the last line counts",
            "Temporary mail 4.0.0 451",
        ),
    ] {
        both(
            move |t| match t {
                t if t.is("MAIL") => Some(Do::Say(says)),
                t if t.is("RCPT") || t.is("DATA") => Some(Do::Say("503 5.5.1 no MAIL")),
                _ => None,
            },
            &["a@x.example", "b@x.example"],
            &[expected; 2],
        )
        .await;
    }
}

#[tokio::test]
async fn each_recipient_has_its_own_reply() {
    both(
        |t| {
            let says = match t.said.as_str() {
                s if s.contains("grey@") => "450 4.2.0 greylisted",
                s if s.contains("gone@") => "550-5.1.1 no such\n550 5.1.1 user",
                s if s.contains("full@") => "552 5.2.2 mailbox full",
                _ => return None,
            };
            Some(Do::Say(says))
        },
        &[
            "grey@x.example",
            "a@x.example",
            "gone@x.example",
            "full@x.example",
        ],
        &[
            "Temporary rcpt 4.2.0 450",
            "Delivered dot 2.0.0 250",
            "Permanent rcpt 5.1.1 550",
            "Permanent rcpt 5.2.2 552",
        ],
    )
    .await;
}

#[tokio::test]
async fn data_or_the_message_refused() {
    for (at, says, expected) in [
        ("DATA", "451 4.3.0 not now", "Temporary data 4.3.0 451"),
        ("DATA", "554 5.5.1 no", "Permanent data 5.5.1 554"),
        (
            "DATA",
            "250 out of place",
            "Temporary data 4.5.0 GarbledReply",
        ),
        (".", "452 4.3.1 disk full", "Temporary dot 4.3.1 452"),
        (".", "554 5.7.1 spam", "Permanent dot 5.7.1 554"),
        (".", "421 4.3.2 closing", "Temporary dot 4.3.2 421"),
    ] {
        both(
            move |t| t.said.starts_with(at).then_some(Do::Say(says)),
            &["a@x.example", "b@x.example"],
            &[expected; 2],
        )
        .await;
    }
}

#[tokio::test]
async fn what_closes_the_connection_leaves_those_without_an_answer_deferred() {
    let recipients = [
        "no@x.example",
        "a@x.example",
        "last@x.example",
        "b@x.example",
    ];
    let refused = |t: &Turn| t.said.contains("no@").then_some(Do::Say("550 5.1.1 no"));
    for (does, expected) in [
        (
            Do::SayAndClose("421 4.4.2 too slow"),
            "Temporary rcpt 4.4.2 421",
        ),
        (Do::Close, "Temporary rcpt 4.4.2 ConnectionLost"),
        (
            Do::Say("HTTP/1.1 400 Bad Request"),
            "Temporary rcpt 4.5.0 GarbledReply",
        ),
        (
            Do::Bytes(vec![b'2'; 70_000]),
            "Temporary rcpt 4.5.0 GarbledReply",
        ),
    ] {
        both(
            move |t| refused(t).or_else(|| t.said.contains("last@").then(|| does.clone())),
            &recipients,
            &["Permanent rcpt 5.1.1 550", expected, expected, expected],
        )
        .await;
    }
}

#[tokio::test]
async fn the_connection_closed_at_mail() {
    for (does, expected) in [
        (
            Do::SayAndClose("421 4.3.2 busy"),
            "Temporary mail 4.3.2 421",
        ),
        (Do::Close, "Temporary mail 4.4.2 ConnectionLost"),
    ] {
        both(
            move |t| t.is("MAIL").then(|| does.clone()),
            &["a@x.example"],
            &[expected],
        )
        .await;
    }
}

#[tokio::test]
async fn the_connection_closed_within_the_data() {
    both(
        |t| (t.said == "body").then_some(Do::Close),
        &["a@x.example"],
        // The content is short: it had all left us.
        &["Uncertain dot 4.4.2 ConnectionLost"],
    )
    .await;
}

#[tokio::test]
async fn a_lost_final_reply_is_uncertain() {
    let recipients = ["no@x.example", "a@x.example"];
    let refused = |t: &Turn| t.said.contains("no@").then_some(Do::Say("550 5.1.1 no"));
    for (does, expected) in [
        (Do::Close, "Uncertain dot 4.4.2 ConnectionLost"),
        (Do::Say("!!"), "Uncertain dot 4.5.0 GarbledReply"),
        (Do::Say("354 what?"), "Uncertain dot 4.5.0 GarbledReply"),
    ] {
        both(
            move |t| refused(t).or_else(|| (t.said == ".").then(|| does.clone())),
            &recipients,
            &["Permanent rcpt 5.1.1 550", expected],
        )
        .await;
    }
}

#[tokio::test]
async fn silence_ends_with_the_stage_s_time_out() {
    for (at, expected) in [
        ("MAIL", "Temporary mail 4.4.2 Timeout"),
        ("RCPT", "Temporary rcpt 4.4.2 Timeout"),
        ("DATA", "Temporary data 4.4.2 Timeout"),
        (".", "Uncertain dot 4.4.2 Timeout"),
    ] {
        let peer = Peer::start(move |t| t.said.starts_with(at).then_some(Do::Silence)).await;
        let mut config = config(peer.port());
        match at {
            "MAIL" => config.timeouts.mail = SHORT,
            "RCPT" => config.timeouts.rcpt = SHORT,
            "DATA" => config.timeouts.data = SHORT,
            _ => config.timeouts.dot = SHORT,
        }
        let done = deliver(&smtp(config), job(&["a@x.example"])).await;
        assert_eq!(summary(&done), [expected]);
        assert!(done.results[0].hop.duration_ms >= SHORT.as_millis() as u32);
        assert_eq!(done.contact, Contact::Reached);
    }
}

#[tokio::test]
async fn a_drip_feed_gains_no_time() {
    let drip = Do::Drip(
        "250-slowly and on and on and on and on",
        Duration::from_millis(100),
    );
    let peer = Peer::start(move |t| t.is("RCPT").then(|| drip.clone())).await;
    let mut config = config(peer.port());
    config.timeouts.rcpt = SHORT;
    let done = deliver(&smtp(config), job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Temporary rcpt 4.4.2 Timeout"]);
    assert!(done.results[0].hop.duration_ms < 3000);
}

#[tokio::test]
async fn the_envelope_as_a_whole_has_a_time_out_too() {
    let drip = Do::Drip("250 ok", Duration::from_millis(25));
    let peer = Peer::start(move |t| t.is("RCPT").then(|| drip.clone())).await;
    let mut config = config(peer.port());
    config.timeouts.envelope = SHORT;
    let many: Vec<String> = (0..50).map(|n| format!("r{n}@x.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let done = deliver(&smtp(config), job(&many)).await;
    assert_eq!(summary(&done), ["Temporary rcpt 4.4.2 Timeout"; 50]);
}

#[tokio::test]
async fn too_many_recipients_are_sent_at_once_in_further_transactions() {
    for says in [
        "452 4.5.3 too many recipients",
        "552 5.5.3 limit",
        "552 Too many recipients",
    ] {
        // Two in a transaction.
        let peer = Peer::start(move |t| {
            if !t.is("RCPT") {
                return None;
            }
            let n: usize = t.said[9..10].parse().unwrap();
            (n >= t.mails * 2).then_some(Do::Say(says))
        })
        .await;
        let smtp = smtp(config(peer.port()));
        let recipients = [
            "0@x.example",
            "1@x.example",
            "2@x.example",
            "3@x.example",
            "4@x.example",
        ];
        let done = deliver(&smtp, job(&recipients)).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"; 5], "{says}");
        assert_eq!(
            (
                peer.connections(),
                peer.count("MAIL"),
                peer.messages().len()
            ),
            (1, 3, 3)
        );
    }
}

#[tokio::test]
async fn without_an_acceptance_it_is_a_refusal() {
    both(
        |t| t.is("RCPT").then_some(Do::Say("452 4.2.2 mailbox full")),
        &["a@x.example", "b@x.example"],
        &["Temporary rcpt 4.2.2 452"; 2],
    )
    .await;
    // One is taken; the other is asked for again and is full in truth.
    both(
        |t| {
            t.said
                .contains("b@")
                .then_some(Do::Say("452 4.2.2 mailbox full"))
        },
        &["a@x.example", "b@x.example"],
        &["Delivered dot 2.0.0 250", "Temporary rcpt 4.2.2 452"],
    )
    .await;
    both(
        |t| {
            t.is("RCPT")
                .then_some(Do::Say("552 5.5.3 too many recipients"))
        },
        &["a@x.example"],
        &["Temporary rcpt 4.5.3 552"],
    )
    .await;
}

#[tokio::test]
async fn after_a_split_a_temporary_refusal_of_the_message_defers_the_rest() {
    both(
        |t| match t {
            t if t.said.contains("b@") => Some(Do::Say("452 4.5.3 too many")),
            t if t.said == "." => Some(Do::Say("451 4.3.0 later")),
            _ => None,
        },
        &["a@x.example", "b@x.example"],
        &["Temporary dot 4.3.0 451"; 2],
    )
    .await;
}

#[tokio::test]
async fn all_refused_ends_in_rset_and_the_connection_is_kept() {
    for says_at_data in ["503 5.5.1 no valid recipients", "354 go on all the same"] {
        let peer = Peer::start(move |t| match t {
            t if t.said.contains("no@") => Some(Do::Say("550 5.1.1 no")),
            t if t.is("DATA") && t.mails == 1 => Some(Do::Say(says_at_data)),
            t if t.said == "." && t.mails == 1 => Some(Do::Say("554 5.5.1 no valid recipients")),
            _ => None,
        })
        .await;
        let smtp = smtp(config(peer.port()));
        let done = deliver(&smtp, job(&["no@x.example"])).await;
        assert_eq!(summary(&done), ["Permanent rcpt 5.1.1 550"]);
        let done = deliver(&smtp, job(&["a@x.example"])).await;
        assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
        assert_eq!(peer.connections(), 1);
        let commands = peer.commands();
        let verbs: Vec<&str> = commands.iter().map(|c| &c[2..6]).collect();
        let expected = [
            "EHLO", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA",
        ];
        assert_eq!(verbs, expected);
    }
}

#[tokio::test]
async fn what_rcpt_was_told_stands_whatever_becomes_of_the_message() {
    for (at, says, expected) in [
        ("DATA", "451 4.3.0 later", "Temporary data 4.3.0 451"),
        (".", "451 4.3.0 later", "Temporary dot 4.3.0 451"),
        (".", "554 5.7.1 spam", "Permanent dot 5.7.1 554"),
        (".", "250 2.0.0 taken", "Delivered dot 2.0.0 250"),
    ] {
        both(
            move |t| match t {
                t if t.said.contains("no@") => Some(Do::Say("550 5.1.1 no")),
                t if t.said.contains("grey@") => Some(Do::Say("450 4.7.1 greylisted")),
                t => t.said.starts_with(at).then_some(Do::Say(says)),
            },
            &["no@x.example", "a@x.example", "grey@x.example"],
            &[
                "Permanent rcpt 5.1.1 550",
                expected,
                "Temporary rcpt 4.7.1 450",
            ],
        )
        .await;
    }
}

#[tokio::test]
async fn recipients_beyond_the_limit_go_in_another_transaction() {
    let peer = Peer::start(|t| {
        t.is("EHLO").then_some(Do::Say(
            "250-peer.example\n250-PIPELINING\n250 LIMITS RCPTMAX=2",
        ))
    })
    .await;
    let smtp = smtp(config(peer.port()));
    let done = deliver(&smtp, job(&["a@x.example", "b@x.example", "c@x.example"])).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"; 3]);
    assert_eq!((peer.connections(), peer.count("MAIL")), (1, 2));
}

#[tokio::test]
async fn dsn_parameters_go_where_dsn_is_announced() {
    let mut with = job(&["a@x.example", "b@x.example"]);
    with.envid = Some("id 1".to_owned());
    with.ret = Some(Ret::Hdrs);
    with.recipients[0].recipient.notify = Notify::On {
        success: true,
        failure: true,
        delay: false,
    };
    with.recipients[0].recipient.original = Some(OriginalRecipient {
        kind: "rfc822".to_owned(),
        address: "a+b@x.example".to_owned(),
    });
    with.recipients[1].recipient.notify = Notify::Never;

    let peer = Peer::start(|t| {
        t.is("EHLO").then_some(Do::Say(
            "250-peer.example\n250-PIPELINING\n250-DSN\n250 SIZE",
        ))
    })
    .await;
    let done = deliver(&smtp(config(peer.port())), with.clone()).await;
    assert!(done.results.iter().all(|r| r.outcome.dsn_passed_on));
    assert_eq!(
        peer.commands()[1..4],
        [
            "0 MAIL FROM:<crm@sender.example> SIZE=23 RET=HDRS ENVID=id+201",
            "0 RCPT TO:<a@x.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bb@x.example",
            "0 RCPT TO:<b@x.example> NOTIFY=NEVER",
        ]
    );

    let peer = Peer::start(|t| t.is("EHLO").then_some(Do::Say(LOCK_STEP))).await;
    with.reverse_path = None;
    let done = deliver(&smtp(config(peer.port())), with).await;
    assert!(done.results.iter().all(|r| !r.outcome.dsn_passed_on));
    assert_eq!(
        peer.commands()[1..3],
        ["0 MAIL FROM:<>", "0 RCPT TO:<a@x.example>"]
    );
}

#[tokio::test]
async fn international_addresses_need_smtputf8() {
    let mixed = || {
        let mut job = job(&["a@x.example", "jös@x.example"]);
        job.smtputf8 = true;
        job
    };
    let without = Peer::start(|_| None).await;
    let done = deliver(&smtp(config(without.port())), mixed()).await;
    assert_eq!(
        summary(&done),
        [
            "Delivered dot 2.0.0 250",
            "Permanent local 5.6.7 SmtpUtf8Unsupported"
        ]
    );
    assert!(!without.commands().iter().any(|c| c.contains("UTF8")));

    let mut from = job(&["a@x.example"]);
    from.reverse_path = Some(Address::parse("jös@sender.example").unwrap());
    let done = deliver(&smtp(config(without.port())), from).await;
    assert_eq!(
        summary(&done),
        ["Permanent local 5.6.7 SmtpUtf8Unsupported"]
    );

    let with = Peer::start(|t| {
        t.is("EHLO")
            .then_some(Do::Say("250-peer.example\n250-8BITMIME\n250 SMTPUTF8"))
    })
    .await;
    let done = deliver(&smtp(config(with.port())), mixed()).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"; 2]);
    assert!(with.commands()[1].ends_with("> SMTPUTF8"));
}

#[tokio::test]
async fn international_headers_need_smtputf8_and_international_bodies_do_not() {
    let long = format!("X-Long: {}\r\n", "x".repeat(100_000));
    for (content, fits) in [
        ("Subject: hi\r\n\r\nGrüße\r\n".to_owned(), true),
        ("\r\nGrüße\r\n".to_owned(), true),
        ("Subject: Grüße\r\n\r\nHello.\r\n".to_owned(), false),
        (format!("{long}Subject: hi\r\n\r\nGrüße\r\n"), true),
        (format!("{long}Subject: Grüße\r\n\r\nHi.\r\n"), false),
    ] {
        for offered in [false, true] {
            let peer = Peer::start(move |t| {
                (t.is("EHLO") && offered)
                    .then_some(Do::Say("250-peer.example\n250-8BITMIME\n250 SMTPUTF8"))
            })
            .await;
            let mut job = job(&["a@x.example"]);
            job.smtputf8 = true;
            job.body = BodyType::EightBitMime;
            job.content = Arc::new(Bytes::from(content.clone()));
            let done = deliver(&smtp(config(peer.port())), job).await;
            if fits || offered {
                assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"]);
            } else {
                let expected = "Permanent local 5.6.7 SmtpUtf8Unsupported";
                assert_eq!(summary(&done), [expected]);
                assert_eq!(peer.count("MAIL"), 0);
            }
        }
    }
}

#[tokio::test]
async fn replies_that_change_nothing_are_waited_for_within_the_envelope_s_limit_too() {
    // MAIL is refused, or every recipient: what was pipelined behind is answered never.
    for (refused, silent, expected) in [
        ("MAIL", "RCPT", "Temporary mail 4.3.0 451"),
        ("RCPT", "DATA", "Temporary rcpt 4.3.0 451"),
    ] {
        let peer = Peer::start(move |t| match t {
            t if t.is(refused) => Some(Do::Say("451 4.3.0 later")),
            t if t.is(silent) => Some(Do::Silence),
            _ => None,
        })
        .await;
        let mut config = config(peer.port());
        config.timeouts.envelope = SHORT;
        let done = deliver(&smtp(config), job(&["a@x.example"])).await;
        assert_eq!(summary(&done), [expected]);
        let took = Duration::from_millis(done.results[0].hop.duration_ms.into());
        assert!(took < Duration::from_secs(25), "{took:?}");
    }
}
