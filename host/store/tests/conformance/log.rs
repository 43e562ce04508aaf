//! The delivery log: search, numbering, retention.

use std::time::Duration;

use tidegate_mail::{EventKind, MessageId, Timestamp};
use tidegate_queue::*;

use crate::common::*;

pub async fn finds_messages_by_every_key(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let mut ids = Vec::new();
    for n in 0..5 {
        let id = source.next(T0);
        let to = format!("Person{n}@Dest.example");
        let mut new = message(id, T0, &[&to, "common@dest.example"], "text");
        new.tenant = format!("tenant-{}", n % 2).into();
        new.keys.message_id = Some(format!("Mid-{n}@crm.example"));
        new.keys.record = Some(format!("Case-{n}"));
        if n >= 3 {
            new.keys.subject = Some(format!("Ihre Rechnung Nr. {n}4711: Gr\u{fc}\u{df}e"));
        }
        opened.store.accept(new).await.unwrap();
        ids.push(id);
    }
    let find = |query: LogQuery| {
        let store = opened.store.clone();
        async move {
            let found = store.search(query).await.unwrap();
            found.iter().map(|e| e.message).collect::<Vec<MessageId>>()
        }
    };
    let none = LogQuery::default;
    let some = |text: &str| Some(text.to_owned());
    let query = LogQuery {
        recipient: some("person3@dest.EXAMPLE"),
        ..none()
    };
    assert_eq!(find(query).await, [ids[3]]);
    let query = LogQuery {
        message_id: some("mid-1@CRM.example"),
        ..none()
    };
    assert_eq!(find(query).await, [ids[1]]);
    let query = LogQuery {
        record: some("case-4"),
        ..none()
    };
    assert_eq!(find(query).await, [ids[4]]);
    let query = LogQuery {
        sender: some("Anna@Sender.example"),
        ..none()
    };
    assert_eq!(find(query).await.len(), 5);
    let query = LogQuery {
        tenant: some("tenant-1"),
        ..none()
    };
    assert_eq!(find(query).await, [ids[3], ids[1]]);
    let query = LogQuery {
        tenant: some("tenant-1"),
        recipient: some("common@dest.example"),
        ..none()
    };
    assert_eq!(find(query).await, [ids[3], ids[1]]);
    let query = LogQuery {
        tenant: some("tenant-0"),
        record: some("case-1"),
        ..none()
    };
    assert!(find(query).await.is_empty());
    let query = LogQuery {
        tenant: some("tenant-0"),
        message: Some(ids[1]),
        ..none()
    };
    assert!(find(query).await.is_empty(), "another tenant's message");
    for (subject, found) in [
        ("rechnung", &[ids[4], ids[3]][..]),
        ("34711 RECHNUNG", &[ids[3]]),
        ("gr\u{dc}\u{df}e rechnung", &[ids[4], ids[3]]),
        ("Rechnung 99", &[]),
        ("rech", &[]),
    ] {
        let query = LogQuery {
            subject: some(subject),
            ..none()
        };
        assert_eq!(find(query.clone()).await, found, "{subject}");
        let query = LogQuery {
            recipient: some("person3@dest.example"),
            ..query
        };
        let both: Vec<_> = found.iter().copied().filter(|id| *id == ids[3]).collect();
        assert_eq!(find(query).await, both, "{subject} and a recipient");
    }
    let query = LogQuery {
        recipient: some("person3@dest"),
        ..none()
    };
    assert!(find(query).await.is_empty(), "not the whole address");
    let entry = &opened
        .store
        .search(LogQuery {
            message: Some(ids[2]),
            ..none()
        })
        .await
        .unwrap()[0];
    assert_eq!(
        entry.recipients,
        [
            (0, "Person2@dest.example".to_owned()),
            (1, "common@dest.example".to_owned())
        ]
    );
    assert_eq!(entry.keys.subject.as_deref(), Some("Gr\u{fc}\u{df}e"));
    assert_eq!(entry.sender, "anna@sender.example");
}

pub async fn finds_the_newest_first_within_bounds(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let day = Duration::from_secs(24 * 3600);
    let mut ids = Vec::new();
    let mut at = T0;
    for _ in 0..4 {
        for _ in 0..3 {
            at = at.plus(Duration::from_secs(1));
            let id = source.next(at);
            let new = message(id, at, &["a@x.example"], "text");
            opened.store.accept(new).await.unwrap();
            ids.push((at, id));
        }
        at = at.plus(day);
    }
    ids.reverse();
    let find = |query: LogQuery| {
        let store = opened.store.clone();
        async move {
            let found = store.search(query).await.unwrap();
            found.iter().map(|e| e.message).collect::<Vec<MessageId>>()
        }
    };
    for recipient in [None, Some("a@x.example".to_owned())] {
        let query = LogQuery {
            recipient,
            ..LogQuery::default()
        };
        let all: Vec<MessageId> = ids.iter().map(|(_, id)| *id).collect();
        assert_eq!(find(query.clone()).await, all);
        let limited = LogQuery {
            limit: 5,
            ..query.clone()
        };
        assert_eq!(find(limited).await, all[..5]);
        let between = LogQuery {
            since: Some(ids[7].0),
            until: Some(ids[4].0),
            ..query
        };
        assert_eq!(find(between).await, all[4..=7]);
    }
}

pub async fn events_are_numbered_over_days_and_restarts(place: &Place) {
    let mut opened = place.open().await;
    let source = ids();
    let mut at = T0;
    let id = source.next(at);
    let new = message(id, at, &["a@x.example"], "text");
    opened.store.accept(new).await.unwrap();
    for n in 1..=3 {
        at = at.plus(Duration::from_secs(20 * 3600));
        let state = deferred(at, n);
        let settled = settlement(
            &opened.store,
            recipient(id, 0),
            state,
            EventKind::Deferred,
            at,
        );
        opened.store.settle(vec![settled]).await.unwrap();
        opened = place.reopen(opened).await;
    }
    let all = opened.store.events(0, 100).await.unwrap();
    assert_eq!(all.len(), 5);
    assert!(all.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert!(all.iter().all(|e| e.sender == "anna@sender.example"));
    let mut after = 0;
    for expected in &all {
        let one = opened.store.events(after, 1).await.unwrap();
        assert_eq!(one[0].seq, expected.seq);
        assert_eq!(one[0].event, expected.event);
        after = one[0].seq;
    }
    assert!(opened.store.events(after, 1).await.unwrap().is_empty());
    let query = LogQuery {
        record: Some(format!("R-{id}")),
        ..LogQuery::default()
    };
    let found = opened.store.search(query).await.unwrap();
    let times: Vec<Timestamp> = found[0].events.iter().map(|e| e.at).collect();
    assert_eq!(times.len(), 5);
    assert!(times.is_sorted());
}

pub async fn sweeps_whole_days(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let day = Duration::from_secs(24 * 3600);
    let mut last = 0;
    let mut ids = Vec::new();
    for n in 0..3 {
        let at = T0.plus(day * n);
        let id = source.next(at);
        let new = message(id, at, &["a@x.example"], "text");
        opened.store.accept(new).await.unwrap();
        let gone = vec![delivered(&opened.store, recipient(id, 0), at)];
        opened.store.settle(gone).await.unwrap();
        let events = opened.store.events(last, 100).await.unwrap();
        assert_eq!(events.len(), 3);
        last = events[2].seq;
        ids.push(id);
    }
    let report = opened.store.sweep(T0.plus(day)).await.unwrap();
    assert_eq!(report.log_days_dropped, 1);
    let all = LogQuery::default();
    let found = opened.store.search(all.clone()).await.unwrap();
    assert_eq!(
        found.iter().map(|e| e.message).collect::<Vec<_>>(),
        [ids[2], ids[1]]
    );
    assert_eq!(opened.store.events(0, 100).await.unwrap().len(), 6);
    let report = opened.store.sweep(T0.plus(day * 9)).await.unwrap();
    assert_eq!(report.log_days_dropped, 2);
    assert!(opened.store.search(all).await.unwrap().is_empty());
    // The numbers go on, so an exporter's cursor stays right.
    let opened = place.reopen(opened).await;
    let at = T0.plus(day * 9);
    let new = message(source.next(at), at, &["a@x.example"], "text");
    opened.store.accept(new).await.unwrap();
    let events = opened.store.events(last, 100).await.unwrap();
    assert_eq!(events.len(), 2);
    assert!(events[0].seq > last);
}

/// Terms that are common alone and rare together, and bounds anywhere in a day.
pub async fn several_terms_and_bounds_find_exactly_what_matches(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let words = ["invoice", "reminder", "shipped"];
    let mut logged = Vec::new();
    for n in 0..240u64 {
        let at = T0.plus(Duration::from_secs(n * 1201));
        let id = source.next(at);
        let sender = format!("role{}@sender.example", n % 5);
        let subject = format!(
            "{} {} {n}",
            words[(n % 3) as usize],
            words[(n % 2) as usize]
        );
        // A long submission: the id is older than the acceptance.
        let accepted_at = at.plus(Duration::from_secs(n % 7 * 1000));
        let message = LoggedMessage {
            id,
            tenant: format!("tenant-{}", n % 4).into(),
            envelope: envelope(Some(&sender), &["p@own.example"]),
            size: 77,
            accepted_at,
            keys: LogKeys {
                subject: Some(subject.clone()),
                ..LogKeys::default()
            },
            events: vec![
                event(accepted_at, EventKind::Accepted, id, None),
                event(
                    accepted_at.plus(Duration::from_secs(100_000)),
                    EventKind::Delivered,
                    id,
                    Some(0),
                ),
            ],
        };
        opened.store.log(message).await.unwrap();
        logged.push((id, n % 4, n % 5, subject, accepted_at));
    }
    for tenant in [None, Some(1), Some(9)] {
        for sender in [None, Some(3)] {
            for subject in [None, Some("shipped"), Some("reminder invoice"), Some("7")] {
                for (from, to) in [(0, 1_000_000), (90_000, 95_000), (200_000, 260_000)] {
                    let since = T0.plus(Duration::from_secs(from));
                    let until = T0.plus(Duration::from_secs(to));
                    let mut expected: Vec<MessageId> = logged
                        .iter()
                        .filter(|(_, t, s, text, at)| {
                            tenant.is_none_or(|tenant| tenant == *t)
                                && sender.is_none_or(|sender| sender == *s)
                                && subject.is_none_or(|words: &str| {
                                    words.split(' ').all(|w| text.split(' ').any(|x| x == w))
                                })
                                && *at >= since
                                && *at <= until
                        })
                        .map(|(id, ..)| *id)
                        .collect();
                    expected.reverse();
                    let query = LogQuery {
                        tenant: tenant.map(|n| format!("tenant-{n}")),
                        sender: sender.map(|n| format!("role{n}@sender.example")),
                        subject: subject.map(str::to_owned),
                        since: Some(since),
                        until: Some(until),
                        limit: 1000,
                        ..LogQuery::default()
                    };
                    let found = opened.store.search(query.clone()).await.unwrap();
                    assert!(found.iter().all(|entry| entry.events.len() == 2));
                    let found: Vec<MessageId> = found.iter().map(|e| e.message).collect();
                    assert_eq!(found, expected, "{query:?}");
                    let query = LogQuery { limit: 3, ..query };
                    let page = opened.store.search(query).await.unwrap();
                    let page: Vec<MessageId> = page.iter().map(|e| e.message).collect();
                    assert_eq!(page, expected[..expected.len().min(3)]);
                }
            }
        }
    }
}

pub async fn a_sweep_that_fails_forgets_no_day(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let day = Duration::from_secs(24 * 3600);
    for n in 0..3 {
        let at = T0.plus(day * n);
        let new = message(source.next(at), at, &["a@x.example"], "text");
        opened.store.accept(new).await.unwrap();
    }
    // What is no table can't be dropped as one.
    let first = T0.day();
    let sql = format!(
        "ALTER TABLE mail_{first} RENAME TO kept; CREATE VIEW mail_{first} AS SELECT * FROM kept"
    );
    place.tamper(sql).await;
    let swept = opened.store.sweep(T0.plus(day * 2)).await;
    assert!(matches!(swept, Err(StoreError::Failed(_))), "{swept:?}");
    let found = opened.store.search(LogQuery::default()).await.unwrap();
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|entry| entry.events.len() == 2));
    if !place.is_sqlite() {
        // The server goes on, and so does the sweep once it can.
        assert_eq!(opened.store.events(0, 100).await.unwrap().len(), 6);
        let sql = format!("DROP VIEW mail_{first}; ALTER TABLE kept RENAME TO mail_{first}");
        place.tamper(sql).await;
        let report = opened.store.sweep(T0.plus(day * 2)).await.unwrap();
        assert_eq!(report.log_days_dropped, 2);
    }
}

/// Its search terms may be left: a page of candidates is then short, and not the last.
pub async fn what_was_taken_back_hides_nothing_behind_it(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let mut tasks = Vec::new();
    for _ in 0..300 {
        let new = message(source.next(T0), T0, &["a@x.example"], "text");
        let store = opened.store.clone();
        tasks.push(tokio::spawn(async move { store.accept(new).await }));
    }
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let query = LogQuery {
        recipient: Some("a@x.example".to_owned()),
        limit: 1000,
        ..LogQuery::default()
    };
    let found = opened.store.search(query.clone()).await.unwrap();
    assert_eq!(found.len(), 300);
    let (day, newest) = (T0.day(), found[0].message.as_i64());
    place
        .tamper(format!("DELETE FROM mail_{day} WHERE id = {newest}"))
        .await;
    let found = opened.store.search(query).await.unwrap();
    assert_eq!(found.len(), 299);
}
