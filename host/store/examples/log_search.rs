//! How long the first page of a search in the log takes.
//!
//! `cargo run --release -p tidegate-store --example log_search [DIR] [MESSAGES]`
//!
//! Fills a log with messages of three events each, over seven days, then asks by each key,
//! for what is rare and for what is common.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_mail::event::Detail;
use tidegate_mail::{
    Address, Envelope, Event, EventKind, IdSource, MessageId, Recipient, Timestamp,
};
use tidegate_queue::*;
use tidegate_store::{Options, SqliteStore};

const DAY: Duration = Duration::from_secs(24 * 3600);
const START: Timestamp = Timestamp(1_795_489_500_000);

fn message(n: u64, id: MessageId, at: Timestamp) -> LoggedMessage {
    let address = |text: String| Address::parse(&text).expect("a valid address");
    let event = |kind, recipient| Event {
        at,
        kind,
        message: id,
        recipient,
        detail: Detail::default(),
    };
    LoggedMessage {
        id,
        tenant: format!("tenant-{}", n % 50).into(),
        envelope: Arc::new(Envelope {
            reverse_path: Some(address(format!("sales@t{}.example", n % 50))),
            envid: None,
            ret: None,
            body: Default::default(),
            smtputf8: false,
            requiretls: false,
            tls_optional: false,
            recipients: vec![Recipient {
                address: address(format!("p{n}@d{}.example", n % 500)),
                notify: Default::default(),
                original: None,
            }],
        }),
        size: 5000,
        accepted_at: at,
        keys: LogKeys {
            message_id: Some(format!("{id}@crm.example")),
            record: Some(format!("case-{}", n / 3)),
            subject: Some(format!("Your invoice {n} of November")),
        },
        events: vec![
            event(EventKind::Accepted, None),
            event(EventKind::Routed, Some(0)),
            event(EventKind::Delivered, Some(0)),
        ],
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().unwrap_or_else(|| "target/log-search".into()));
    let count: u64 = args.next().and_then(|s| s.parse().ok()).unwrap_or(100_000);
    let _ = std::fs::remove_dir_all(&dir);
    let store = SqliteStore::open(&dir, Options::default())
        .await
        .expect("the directory can be written");
    let source = IdSource::new(1);
    let since = Instant::now();
    let mut pending = tokio::task::JoinSet::new();
    for n in 0..count {
        let at = START.plus(DAY.mul_f64(7.0 * n as f64 / count as f64));
        let new = message(n, source.next(at), at);
        let store = store.clone();
        pending.spawn(async move { store.log(new).await.expect("logged") });
        if pending.len() >= 500 {
            pending.join_next().await;
        }
    }
    while pending.join_next().await.is_some() {}
    println!(
        "{} events in {:.0} s",
        count * 3,
        since.elapsed().as_secs_f64()
    );
    let half = count / 2;
    let some = |text: String| Some(text);
    let none = LogQuery::default;
    for (name, query) in [
        (
            "record",
            LogQuery {
                record: some(format!("case-{}", half / 3)),
                ..none()
            },
        ),
        (
            "recipient",
            LogQuery {
                recipient: some(format!("p{half}@d{}.example", half % 500)),
                ..none()
            },
        ),
        (
            "subject, rare",
            LogQuery {
                subject: some(format!("invoice {half}")),
                ..none()
            },
        ),
        (
            "subject, common",
            LogQuery {
                subject: some("invoice november".into()),
                ..none()
            },
        ),
        (
            "subject, none",
            LogQuery {
                subject: some("invoice 4711x".into()),
                ..none()
            },
        ),
        (
            "sender",
            LogQuery {
                sender: some("sales@t7.example".into()),
                ..none()
            },
        ),
        (
            "tenant",
            LogQuery {
                tenant: some("tenant-7".into()),
                ..none()
            },
        ),
        ("all", none()),
    ] {
        let mut times: Vec<f64> = Vec::new();
        let mut found = 0;
        for _ in 0..11 {
            let since = Instant::now();
            found = store.search(query.clone()).await.expect("found").len();
            times.push(since.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        println!(
            "{name:<16} {found:>3} found, median {:.1} ms, slowest {:.1} ms",
            times[5], times[10]
        );
    }
    store.close().await;
    let _ = std::fs::remove_dir_all(&dir);
}
