//! Messages per second, CPU and syncs of the embedded store, on the disk at hand.
//!
//! `cargo run --release -p tidegate-store --example store_bench [DIR] [SECONDS]`
//!
//! Each producer accepts a message of 5 KiB for one recipient with two events, then settles
//! it as delivered, and goes on: the whole life of a message. Then a queue of a million
//! recipients is loaded again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_mail::event::Detail;
use tidegate_mail::{
    Address, End, Envelope, Event, EventKind, Hop, IdSource, MessageId, Owes, Promise, Recipient,
    RecipientId, RecipientState, State, Timestamp, TrafficClass,
};
use tidegate_queue::*;
use tidegate_store::{Options, SqliteStore};

const NOW: Timestamp = Timestamp(1_795_489_500_000);

/// User and system time of this process, in microseconds (to 10 ms).
fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<u64> = after
        .split(' ')
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // Fields 14 and 15, in hundredths of a second.
    (fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0)) * 10_000
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

fn message(id: MessageId, recipients: usize, content: Bytes, promise: &Arc<Promise>) -> NewMessage {
    let address = |text: String| Address::parse(&text).expect("a valid address");
    let number = id.as_i64() as u64 >> 8;
    NewMessage {
        id,
        tenant: "tenant-a".into(),
        envelope: Arc::new(Envelope {
            reverse_path: Some(address("sales@sender.example".into())),
            envid: None,
            ret: None,
            body: Default::default(),
            smtputf8: false,
            requiretls: false,
            tls_optional: false,
            recipients: (0..recipients)
                .map(|n| Recipient {
                    address: address(format!("p{number}-{n}@d{}.example", n % 500)),
                    notify: Default::default(),
                    original: None,
                })
                .collect(),
        }),
        content: Content::Memory(content),
        accepted_at: NOW,
        origin: Origin::default(),
        keys: LogKeys {
            message_id: Some(format!("{id}@crm.example")),
            record: None,
            subject: Some("Your invoice".into()),
        },
        automatic: false,
        recipients: (0..recipients as u32)
            .map(|index| NewRecipient {
                index,
                state: RecipientState::accepted(promise, NOW),
                promise: promise.clone(),
                shard: (index % 256) as u16,
            })
            .collect(),
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
        shard: 0,
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
                text: Some("250 2.0.0 Ok: queued as 4F9D195432C".into()),
                hop: Some(Hop {
                    host: Some("mx1.dest.example".into()),
                    ..Hop::nowhere(NOW)
                }),
                site: Some("mx1.dest.example".into()),
                ..Detail::default()
            },
        )],
    }
}

async fn life(
    store: &Arc<SqliteStore>,
    source: &Arc<IdSource>,
    producers: usize,
    length: Duration,
    settle: bool,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let content = Bytes::from(vec![b'x'; 5 * 1024]);
    let before = store.counts().await.expect("counts");
    let (cpu, since) = (cpu_micros(), Instant::now());
    let tasks: Vec<_> = (0..producers)
        .map(|_| {
            let (store, stop, source) = (store.clone(), stop.clone(), source.clone());
            let (done, content, promise) = (done.clone(), content.clone(), promise());
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let id = source.next(NOW);
                    let asked = Instant::now();
                    let new = message(id, 1, content.clone(), &promise);
                    store.accept(new).await.expect("accepted");
                    waits.push(asked.elapsed().as_micros() as u64);
                    if settle {
                        let gone = vec![delivered(id, &promise)];
                        store.settle(gone).await.expect("settled");
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                waits
            })
        })
        .collect();
    tokio::time::sleep(length).await;
    stop.store(true, Ordering::Relaxed);
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.expect("a producer"));
    }
    let took = since.elapsed();
    let cpu = cpu_micros() - cpu;
    let after = store.counts().await.expect("counts");
    waits.sort_unstable();
    let count = done.load(Ordering::Relaxed).max(1);
    println!(
        "{producers:>4} producers, {}: {:>7.0} msg/s  {:>4} us CPU/msg  {:.3} syncs/msg  accept p50 {:.2} ms p99 {:.2} ms",
        if settle {
            "accept + settle"
        } else {
            "accept only    "
        },
        count as f64 / took.as_secs_f64(),
        cpu / count,
        (after.syncs - before.syncs) as f64 / count as f64,
        waits[waits.len() / 2] as f64 / 1000.0,
        waits[waits.len() * 99 / 100] as f64 / 1000.0,
    );
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().unwrap_or_else(|| "target/store-bench".into()));
    let seconds = args.next().and_then(|s| s.parse().ok()).unwrap_or(5);
    let length = Duration::from_secs(seconds);
    for (producers, settle) in [(20, true), (200, true), (20, false), (200, false)] {
        // A store that a bench left behind is not worth keeping.
        let _ = std::fs::remove_dir_all(&dir);
        let store = SqliteStore::open(&dir, Options::default())
            .await
            .expect("the directory can be written");
        let source = Arc::new(IdSource::new(1));
        // The first second warms up.
        for length in [Duration::from_secs(1), length] {
            life(&store, &source, producers, length, settle).await;
        }
        store.close().await;
    }

    let _ = std::fs::remove_dir_all(&dir);
    let store = SqliteStore::open(&dir, Options::default())
        .await
        .expect("the directory can be written");
    let (source, promise) = (IdSource::new(1), promise());
    for _ in 0..10_000 {
        let new = message(source.next(NOW), 100, Bytes::from_static(b"x"), &promise);
        store.accept(new).await.expect("accepted");
    }
    store.close().await;
    drop(store);
    let since = Instant::now();
    let store = SqliteStore::open(&dir, Options::default())
        .await
        .expect("it opens again");
    let opened = since.elapsed();
    let (mut after, mut count) = (None, 0);
    loop {
        let page = store.load(after, 20_000).await.expect("a page");
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        count += page.len();
    }
    println!(
        "{count} recipients: opened in {:.2} s, loaded in {:.2} s",
        opened.as_secs_f64(),
        (since.elapsed() - opened).as_secs_f64()
    );
    store.close().await;
    let _ = std::fs::remove_dir_all(&dir);
}
