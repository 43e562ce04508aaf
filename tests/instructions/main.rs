//! A part of the hot path, so many messages of it, for counting instructions:
//! `instructions PART MESSAGES`. The difference of two counts is the cost of the messages
//! between; `cargo xtask bench instructions` does that and compares with the baseline.
//!
//! One thread asks and waits, so that batches and statements are the same in every run.

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_mail::event::Detail;
use tidegate_mail::header::HeaderBlock;
use tidegate_mail::{
    Address, End, Envelope, Event, EventKind, Hop, IdSource, MessageId, Owes, Promise, Recipient,
    RecipientId, RecipientState, Reply, State, Timestamp, TrafficClass,
};
use tidegate_queue::{Content, LogKeys, NewMessage, NewRecipient, Origin, Settlement, Store};
use tidegate_store::{Options, SqliteStore};
use tidegate_submit::{Action, Config, Host, Session};

const NOW: Timestamp = Timestamp(1_795_489_500_000);

fn main() {
    let mut words = std::env::args().skip(1);
    let part = words.next().unwrap_or_default();
    let messages: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    match part.as_str() {
        "session" => session(messages),
        "store" => store(messages),
        _ => {
            eprintln!("usage: instructions session|store MESSAGES");
            std::process::exit(2);
        }
    }
}

/// A message of 5 KiB as the benchmarks send it.
fn content() -> Vec<u8> {
    let mut content = b"From: <crm@acme.example>\r\nTo: <someone@d0.test>\r\n\
        Subject: Your invoice\r\nDate: Tue, 24 Nov 2026 03:00:00 +0000\r\n\
        Message-ID: <invoice@acme.example>\r\nMIME-Version: 1.0\r\n\
        Content-Type: text/plain\r\n\r\n"
        .to_vec();
    while content.len() + 74 <= 5 * 1024 {
        content.extend([b'x'; 72]);
        content.extend(b"\r\n");
    }
    content
}

struct Anyone;

impl Host for Anyone {
    fn mail(&mut self, _: Option<&Address>, _: u64) -> Result<(), Reply> {
        Ok(())
    }
}

/// Commands one by one, the content in one piece, its header parsed.
fn session(messages: u64) {
    let config = Config {
        allow_plain_auth: true,
        max_idle_commands: u32::MAX,
        ..Config::default()
    };
    let mut session = Session::new(Arc::new(config), false);
    let mut data = content();
    data.extend(b".\r\n");
    let ok = Reply::new(
        250,
        tidegate_mail::Enhanced::new(2, 0, 0),
        "queued as 1j8k2m3n4p5q6",
    );
    session.greet(false);
    let mut input = BytesMut::new();
    // The password is taken by whoever drives the session.
    for line in [
        "EHLO crm.acme.example\r\n",
        "AUTH PLAIN AGFjbWUAc2VjcmV0\r\n",
    ] {
        input.extend_from_slice(line.as_bytes());
        if let Action::Authenticate(_) = session.advance(&mut input, &mut Anyone) {
            session.auth_result(Ok(()));
            session.advance(&mut input, &mut Anyone);
        }
        session.output().clear();
    }
    assert!(session.is_authenticated());
    let lines: [&[u8]; 4] = [
        b"MAIL FROM:<crm@acme.example>\r\n",
        b"RCPT TO:<someone@d0.test>\r\n",
        b"DATA\r\n",
        &data,
    ];
    let mut accepted = 0;
    for _ in 0..messages {
        let mut header = Vec::new();
        for line in lines {
            let mut input = BytesMut::from(line);
            loop {
                match session.advance(&mut input, &mut Anyone) {
                    Action::Read => break,
                    Action::Piece(tidegate_submit::Part::Header, piece) => {
                        header.extend_from_slice(&piece);
                    }
                    Action::Piece(_, piece) => drop(black_box(piece)),
                    Action::Accept(envelope) => {
                        let block = HeaderBlock::parse(&header);
                        black_box((envelope, block.log_subject(), block.is_bulk()));
                        session.data_result(&ok);
                        accepted += 1;
                    }
                    _ => {}
                }
            }
            black_box(&session.output()[..]);
            session.output().clear();
        }
    }
    assert_eq!(accepted, messages);
}

/// Accepted, and settled as delivered, one after the other.
fn store(messages: u64) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let source = IdSource::new(1);
    let promise = promise();
    let content = Bytes::from(content());
    runtime.block_on(async {
        let store = SqliteStore::open(directory.path(), Options::default())
            .await
            .expect("the store opens");
        for _ in 0..messages {
            let id = source.next(NOW);
            let new = message(id, content.clone(), &promise);
            store.accept(new).await.expect("accepted");
            store
                .settle(vec![delivered(id, &promise)])
                .await
                .expect("settled");
        }
        store.close().await;
    });
}

fn promise() -> Arc<Promise> {
    Arc::new(Promise {
        class: TrafficClass::Transactional,
        relay: "mx".into(),
        lane: None,
        priority: 0,
        lifetime_secs: 48 * 3600,
        delay_notice_secs: Some(4 * 3600),
        policy: Some("ab".repeat(32)),
    })
}

fn event(kind: EventKind, message: MessageId, recipient: Option<u32>, detail: Detail) -> Event {
    Event {
        at: NOW,
        kind,
        message,
        recipient,
        detail,
    }
}

fn message(id: MessageId, content: Bytes, promise: &Arc<Promise>) -> NewMessage {
    let address = |text: &str| Address::parse(text).expect("a valid address");
    NewMessage {
        id,
        tenant: "acme".into(),
        envelope: Arc::new(Envelope {
            reverse_path: Some(address("crm@acme.example")),
            envid: None,
            ret: None,
            body: Default::default(),
            smtputf8: false,
            requiretls: false,
            tls_optional: false,
            recipients: vec![Recipient {
                address: address("someone@d0.test"),
                notify: Default::default(),
                original: None,
            }],
        }),
        content: Content::Memory(content),
        accepted_at: NOW,
        origin: Origin::default(),
        keys: LogKeys {
            message_id: Some("invoice@acme.example".into()),
            record: None,
            subject: Some("Your invoice".into()),
        },
        automatic: false,
        recipients: vec![NewRecipient {
            index: 0,
            state: RecipientState::accepted(promise, NOW),
            promise: promise.clone(),
            shard: 7,
        }],
        events: vec![
            event(EventKind::Accepted, id, None, Detail::default()),
            event(
                EventKind::Routed,
                id,
                Some(0),
                Detail {
                    promise: Some((**promise).clone()),
                    ..Detail::default()
                },
            ),
        ],
        pays: Vec::new(),
    }
}

fn delivered(id: MessageId, promise: &Promise) -> Settlement {
    Settlement {
        id: RecipientId {
            message: id,
            index: 0,
        },
        shard: 7,
        epoch: 0,
        state: RecipientState {
            state: State::Done(End::Sent),
            attempts: 1,
            owes: Owes::None,
            ..RecipientState::accepted(promise, NOW)
        },
        events: vec![event(
            EventKind::Delivered,
            id,
            Some(0),
            Detail {
                attempt: Some(1),
                code: Some(250),
                text: Some("250 2.0.0 ok".into()),
                hop: Some(Hop {
                    host: Some("mx.d0.test".into()),
                    ..Hop::nowhere(NOW)
                }),
                site: Some("mx.d0.test".into()),
                ..Detail::default()
            },
        )],
    }
}
