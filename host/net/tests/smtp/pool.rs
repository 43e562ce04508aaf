//! Connections kept between messages.

use std::sync::Arc;
use std::time::Duration;

use tidegate_queue::ports::{Contact, Target, TlsMode};

use crate::common::peer::{Do, Peer};
use crate::common::{SHORT, config, deliver, endpoint, job, loopback, smtp, summary};

const DELIVERED: [&str; 1] = ["Delivered dot 2.0.0 250"];

#[tokio::test]
async fn several_messages_over_one_connection_and_then_another() {
    let peer = Peer::start(|_| None).await;
    let smtp = smtp(config(peer.port()));
    for _ in 0..5 {
        let mut job = job(&["a@x.example"]);
        job.messages_per_connection = 2;
        assert_eq!(summary(&deliver(&smtp, job).await), DELIVERED);
    }
    assert_eq!((peer.connections(), peer.count("EHLO")), (3, 3));
    assert_eq!(smtp.idle_connections(), 1);
    smtp.close_idle().await;
    assert_eq!(smtp.idle_connections(), 0);
    assert!(peer.commands().contains(&"2 QUIT".to_owned()));
}

#[tokio::test]
async fn the_peer_s_own_limit_is_kept() {
    let peer = Peer::start(|t| {
        t.is("EHLO")
            .then_some(Do::Say("250-peer.example\n250 LIMITS MAILMAX=1"))
    })
    .await;
    let smtp = smtp(config(peer.port()));
    for _ in 0..2 {
        deliver(&smtp, job(&["a@x.example"])).await;
    }
    assert_eq!(peer.connections(), 2);
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced_without_an_attempt_being_lost() {
    // The second MAIL on the first connection is answered in these ways.
    for (does, limit) in [
        (Do::SayAndClose("421 4.4.2 idle too long"), None),
        (Do::Close, None),
        (Do::Silence, Some(SHORT)),
    ] {
        let peer = Peer::start(move |t| {
            (t.connection == 0 && t.mails == 2 && t.is("MAIL")).then(|| does.clone())
        })
        .await;
        let mut config = config(peer.port());
        if let Some(limit) = limit {
            config.timeouts.mail = limit;
        }
        let smtp = smtp(config);
        for _ in 0..2 {
            assert_eq!(
                summary(&deliver(&smtp, job(&["a@x.example"])).await),
                DELIVERED
            );
        }
        assert_eq!((peer.connections(), peer.messages().len()), (2, 2));
    }
}

#[tokio::test]
async fn a_new_connection_that_dies_the_same_way_is_an_attempt() {
    let peer =
        Peer::start(|t| ((t.connection > 0 || t.mails == 2) && t.is("MAIL")).then_some(Do::Close))
            .await;
    let smtp = smtp(config(peer.port()));
    deliver(&smtp, job(&["a@x.example"])).await;
    let done = deliver(&smtp, job(&["a@x.example"])).await;
    assert_eq!(summary(&done), ["Temporary mail 4.4.2 ConnectionLost"]);
    assert_eq!(peer.connections(), 2);
}

#[tokio::test]
async fn a_connection_the_peer_has_closed_is_noticed_before_it_is_used() {
    for says in ["250 2.0.0 taken\n421 4.4.2 and good-bye", "250 2.0.0 taken"] {
        let peer = Peer::start(move |t| (t.said == ".").then_some(Do::SayAndClose(says))).await;
        let smtp = smtp(config(peer.port()));
        for _ in 0..2 {
            assert_eq!(
                summary(&deliver(&smtp, job(&["a@x.example"])).await),
                DELIVERED
            );
        }
        assert_eq!((peer.connections(), peer.messages().len()), (2, 2));
        assert_eq!(peer.count("MAIL"), 2);
    }
}

#[tokio::test]
async fn connections_are_not_shared_between_sources_modes_and_identities() {
    let peer = Peer::start(|t| match t {
        t if t.is("EHLO") => Some(Do::Say("250-peer.example\n250 AUTH PLAIN")),
        t if t.is("AUTH") => Some(Do::Say("235 ok")),
        _ => None,
    })
    .await;
    let smtp = smtp(config(peer.port()));
    let plain = job(&["a@x.example"]);
    let mut sourced = plain.clone();
    sourced.source = Some(loopback(3));
    let as_user = |user: &str| {
        let mut job = plain.clone();
        let mut target = endpoint(peer.port(), TlsMode::None);
        target.auth = Some((user.to_owned(), "p".to_owned()));
        job.target = Target::Endpoint(Arc::new(target));
        job
    };
    for job in [plain.clone(), sourced, as_user("u"), as_user("v")] {
        for _ in 0..2 {
            assert_eq!(summary(&deliver(&smtp, job.clone()).await), DELIVERED);
        }
    }
    assert_eq!(peer.connections(), 4);
    assert_eq!(peer.count("AUTH"), 2);
}

#[tokio::test]
async fn idle_connections_are_bounded_in_number_and_time() {
    let peer = Peer::start(|_| None).await;
    let mut config = config(peer.port());
    config.pool_size = 1;
    config.pool_idle = Duration::from_millis(50);
    let smtp = Arc::new(smtp(config));
    let mut both = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let smtp = smtp.clone();
        both.spawn(async move { deliver(&smtp, job(&["a@x.example"])).await });
    }
    both.join_all().await;
    assert!(smtp.idle_connections() <= 1);
    let gone = async {
        while smtp.idle_connections() > 0 || peer.count("QUIT") < peer.connections() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap();
}
#[tokio::test]
async fn a_peer_that_takes_one_message_per_connection_gets_the_rest_over_new_ones() {
    let peer = Peer::start(|t| match t {
        t if t.is("EHLO") => Some(Do::Say("250-peer.example\n250 LIMITS RCPTMAX=1")),
        t if t.is("MAIL") && t.mails == 2 => Some(Do::SayAndClose("421 4.7.0 one is enough")),
        _ => None,
    })
    .await;
    let smtp = smtp(config(peer.port()));
    let done = deliver(&smtp, job(&["a@x.example", "b@x.example", "c@x.example"])).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"; 3]);
    assert_eq!((peer.connections(), peer.messages().len()), (3, 3));
}

#[tokio::test]
async fn a_limit_of_messages_holds_for_what_is_split_too() {
    let peer = Peer::start(|t| match t {
        t if t.is("EHLO") => Some(Do::Say("250-peer.example\n250 LIMITS RCPTMAX=1 MAILMAX=1")),
        t if t.is("MAIL") && t.mails == 2 => Some(Do::Say("550 5.7.0 one is enough")),
        _ => None,
    })
    .await;
    let three = ["a@x.example", "b@x.example", "c@x.example"];
    let done = deliver(&smtp(config(peer.port())), job(&three)).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"; 3]);
    assert_eq!((peer.connections(), peer.count("MAIL")), (3, 3));
    // The operator's or a policy's limit as well.
    let peer = Peer::start(|t| {
        t.is("EHLO")
            .then_some(Do::Say("250-peer.example\n250 LIMITS RCPTMAX=1"))
    })
    .await;
    let mut job = job(&three);
    job.messages_per_connection = 2;
    let done = deliver(&smtp(config(peer.port())), job).await;
    assert_eq!(summary(&done), ["Delivered dot 2.0.0 250"; 3]);
    assert_eq!((peer.connections(), peer.count("MAIL")), (2, 3));
}

#[tokio::test]
async fn what_is_split_into_too_many_messages_comes_again_when_it_is_its_turn() {
    let peer = Peer::start(|t| {
        t.is("EHLO")
            .then_some(Do::Say("250-peer.example\n250 LIMITS RCPTMAX=1"))
    })
    .await;
    let mut config = config(peer.port());
    config.timeouts.attempt = Duration::ZERO;
    let smtp = smtp(config);
    let done = deliver(&smtp, job(&["a@x.example", "b@x.example", "c@x.example"])).await;
    let expected = ["Delivered dot 2.0.0 250", "Withdrawn local 4.0.0 -"];
    assert_eq!(summary(&done)[..2], expected);
    assert_eq!(done.contact, Contact::Reached);
    assert_eq!((peer.count("MAIL"), smtp.idle_connections()), (1, 1));
}
