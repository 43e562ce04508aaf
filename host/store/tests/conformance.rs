//! The contract of the ports `Store` and `Registry`, run against both implementations.

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use tidegate_mail::{End, EventKind, MessageId, Owes, RecipientState, State, Timestamp};
use tidegate_queue::directory::{Credential, Relay, Server, Tenant, Way};
use tidegate_queue::shape::{Effect, Measure, Scope};
use tidegate_queue::*;

macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&super::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&super::Place::postgres().await).await;
            })+
        }
    };
}

conformance!(
    an_accepted_message_is_there_whole,
    states_survive_a_restart,
    a_delivered_message_leaves_the_queue,
    a_debt_is_paid_with_the_notice_that_pays_it,
    a_second_message_of_that_id_is_refused_alone,
    a_settlement_of_nobody_writes_nothing,
    recipients_that_are_done_and_owe_nothing_are_only_logged,
    a_stale_epoch_is_fenced,
    later_settlements_replace_earlier_ones,
    loads_in_pages_in_order,
    streams_large_contents,
    a_content_is_accepted_once,
    many_at_once_share_commits,
    finds_messages_by_every_key,
    finds_the_newest_first_within_bounds,
    events_are_numbered_over_days_and_restarts,
    sweeps_whole_days,
    keeps_cursors_measures_and_shaping_state,
    keeps_tenants_with_what_is_theirs,
    keeps_revisions_and_activations,
    hostile_text_round_trips,
    a_closed_store_refuses,
    agrees_with_the_model,
);

async fn an_accepted_message_is_there_whole(place: &Place) {
    let at = T0;
    let id = ids().next(at);
    let opened = place.open().await;
    let body = pattern(5000, 1);
    let mut new = message(id, at, &["b@x.example", "c@y.example"], body.clone());
    new.automatic = true;
    let envelope = new.envelope.clone();
    let states: Vec<RecipientState> = new.recipients.iter().map(|r| r.state.clone()).collect();
    opened.store.accept(new).await.unwrap();

    let queue = opened.store.load(None, 100).await.unwrap();
    assert_eq!(queue.len(), 2);
    for (n, queued) in queue.iter().enumerate() {
        assert_eq!(queued.id, recipient(id, n as u32));
        assert_eq!(&*queued.tenant, "tenant-a");
        assert_eq!(&*queued.domain, ["x.example", "y.example"][n]);
        assert_eq!(queued.state, states[n]);
        assert_eq!(queued.promise, promise("mx"));
        assert_eq!(queued.shard, n as u16);
    }
    let unknown = ids().next(Timestamp(at.0 + 5000));
    let found = opened.store.messages(vec![unknown, id]).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, id);
    assert_eq!(found[0].envelope, envelope);
    assert_eq!(found[0].size, 5000);
    assert_eq!(found[0].accepted_at, at);
    assert_eq!(found[0].keys.record, Some(format!("R-{id}")));
    assert!(found[0].automatic);
    let reader = opened.store.content(&found[0]);
    assert_eq!(reader.size(), 5000);
    assert_eq!(read_all(&*reader, 700).await.unwrap(), body);
    assert!(reader.read(5000, 10).await.unwrap().is_empty());

    let events = opened.store.events(0, 100).await.unwrap();
    let kinds: Vec<EventKind> = events.iter().map(|e| e.event.kind).collect();
    assert_eq!(
        kinds,
        [EventKind::Accepted, EventKind::Routed, EventKind::Routed]
    );
    assert_eq!(events[0].recipient_address, None);
    assert_eq!(events[2].recipient_address.as_deref(), Some("c@y.example"));
    assert_eq!(events[2].sender, "anna@sender.example");
    assert_eq!(events[2].tenant, "tenant-a");
    assert_eq!(events[2].size, 5000);
    let counts = opened.store.counts().await.unwrap();
    assert_eq!(
        (counts.messages, counts.recipients, counts.owing),
        (1, 2, 0)
    );
    assert!(counts.commits >= 1 && counts.syncs >= 1);
}

async fn states_survive_a_restart(place: &Place) {
    let source = ids();
    let opened = place.open().await;
    let id = source.next(T0);
    let body = pattern(70_000, 2);
    let new = message(
        id,
        T0,
        &["a@x.example", "b@x.example", "c@x.example"],
        body.clone(),
    );
    opened.store.accept(new).await.unwrap();
    let at = T0.plus(Duration::from_secs(9));
    let later = deferred(at, 3);
    let failed = done(at, End::Bounced, Owes::Failure);
    let settled = vec![
        settlement(
            &opened.store,
            recipient(id, 0),
            later.clone(),
            EventKind::Deferred,
            at,
        ),
        settlement(
            &opened.store,
            recipient(id, 2),
            failed.clone(),
            EventKind::Bounced,
            at,
        ),
    ];
    opened.store.settle(settled).await.unwrap();
    let opened = place.reopen(opened).await;
    let queue = opened.store.recipients(id).await.unwrap();
    assert_eq!(queue.len(), 3);
    assert_eq!(queue[0].state, later);
    assert_eq!(queue[1].state, RecipientState::accepted(&promise("mx"), T0));
    assert_eq!(queue[2].state, failed);
    assert_eq!(
        opened.store.owing(10).await.unwrap(),
        [(recipient(id, 2), Owes::Failure)]
    );
    let counts = opened.store.counts().await.unwrap();
    assert_eq!(
        (counts.messages, counts.recipients, counts.owing),
        (1, 3, 1)
    );
    let found = opened.store.messages(vec![id]).await.unwrap();
    let reader = opened.store.content(&found[0]);
    assert_eq!(read_all(&*reader, 1 << 20).await.unwrap(), body);
    assert!(
        opened
            .store
            .recipients(source.next(at))
            .await
            .unwrap()
            .is_empty()
    );
}

async fn a_delivered_message_leaves_the_queue(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let (id, other) = (source.next(T0), source.next(T0));
    for id in [id, other] {
        let new = message(id, T0, &["a@x.example", "b@x.example"], "text");
        opened.store.accept(new).await.unwrap();
    }
    let one = delivered(&opened.store, recipient(id, 0), T0);
    opened.store.settle(vec![one]).await.unwrap();
    assert_eq!(opened.store.messages(vec![id]).await.unwrap().len(), 1);
    let two = delivered(&opened.store, recipient(id, 1), T0);
    opened.store.settle(vec![two]).await.unwrap();
    assert!(opened.store.messages(vec![id]).await.unwrap().is_empty());
    assert!(opened.store.recipients(id).await.unwrap().is_empty());
    let counts = opened.store.counts().await.unwrap();
    assert_eq!((counts.messages, counts.recipients), (1, 2));
    // The log keeps it.
    let query = LogQuery {
        message: Some(id),
        ..LogQuery::default()
    };
    let found = opened.store.search(query).await.unwrap();
    assert_eq!(found.len(), 1);
    let kinds: Vec<EventKind> = found[0].events.iter().map(|e| e.kind).collect();
    use EventKind::*;
    assert_eq!(kinds, [Accepted, Routed, Routed, Delivered, Delivered]);
}

async fn a_debt_is_paid_with_the_notice_that_pays_it(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let id = source.next(T0);
    let new = message(id, T0, &["a@x.example", "b@x.example"], "text");
    opened.store.accept(new).await.unwrap();
    let failed = (0..2).map(|n| {
        let state = done(T0, End::Bounced, Owes::Failure);
        settlement(
            &opened.store,
            recipient(id, n),
            state,
            EventKind::Bounced,
            T0,
        )
    });
    opened.store.settle(failed.collect()).await.unwrap();
    assert_eq!(opened.store.owing(1).await.unwrap().len(), 1);
    assert_eq!(opened.store.owing(10).await.unwrap().len(), 2);

    let notice = source.next(T0);
    let pay = |n| {
        let state = done(T0, End::Bounced, Owes::None);
        settlement(
            &opened.store,
            recipient(id, n),
            state,
            EventKind::DsnSent,
            T0,
        )
    };
    // A debt that is not there refuses the whole notice.
    let mut wrong = message(notice, T0, &["anna@sender.example"], "notice");
    wrong.pays = vec![pay(0), pay(7)];
    let refused = opened.store.accept(wrong).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    assert!(
        opened
            .store
            .messages(vec![notice])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(opened.store.owing(10).await.unwrap().len(), 2);

    let mut right = message(notice, T0, &["anna@sender.example"], "notice");
    right.pays = vec![pay(0), pay(1)];
    opened.store.accept(right).await.unwrap();
    assert!(opened.store.owing(10).await.unwrap().is_empty());
    let left = opened.store.messages(vec![id, notice]).await.unwrap();
    assert_eq!(left.iter().map(|m| m.id).collect::<Vec<_>>(), [notice]);
    let events = opened.store.events(0, 100).await.unwrap();
    let sent = events.iter().filter(|e| e.event.kind == EventKind::DsnSent);
    assert_eq!(sent.count(), 2);
}

async fn a_second_message_of_that_id_is_refused_alone(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let id = source.next(T0);
    let first = message(id, T0, &["a@x.example"], "first");
    opened.store.accept(first).await.unwrap();
    let mut tasks = Vec::new();
    for n in 0..40u32 {
        let id = if n == 20 { id } else { source.next(T0) };
        let new = message(id, T0, &["a@x.example"], format!("later {n}"));
        let store = opened.store.clone();
        tasks.push(tokio::spawn(async move { (n, store.accept(new).await) }));
    }
    for task in tasks {
        let (n, result) = task.await.unwrap();
        match result {
            Ok(()) => assert_ne!(n, 20),
            Err(StoreError::Conflict(_)) => assert_eq!(n, 20),
            Err(other) => panic!("{n}: {other}"),
        }
    }
    let found = opened.store.messages(vec![id]).await.unwrap();
    let reader = opened.store.content(&found[0]);
    assert_eq!(read_all(&*reader, 100).await.unwrap(), b"first");
    assert_eq!(opened.store.counts().await.unwrap().messages, 40);
}

async fn a_settlement_of_nobody_writes_nothing(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let id = source.next(T0);
    let new = message(id, T0, &["a@x.example"], "text");
    opened.store.accept(new).await.unwrap();
    let wrong = vec![
        settlement(
            &opened.store,
            recipient(id, 0),
            deferred(T0, 1),
            EventKind::Deferred,
            T0,
        ),
        delivered(&opened.store, recipient(id, 5), T0),
    ];
    let refused = opened.store.settle(wrong).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    assert_eq!(
        opened.store.recipients(id).await.unwrap()[0].state,
        RecipientState::accepted(&promise("mx"), T0)
    );
    assert_eq!(opened.store.events(0, 10).await.unwrap().len(), 2);
    let twice = vec![
        delivered(&opened.store, recipient(id, 0), T0),
        delivered(&opened.store, recipient(id, 0), T0),
    ];
    let refused = opened.store.settle(twice).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    assert_eq!(opened.store.counts().await.unwrap().recipients, 1);
}

async fn recipients_that_are_done_and_owe_nothing_are_only_logged(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let id = source.next(T0);
    let mut new = message(id, T0, &["a@x.example", "b@x.example"], "text");
    new.recipients[0].state = done(T0, End::Bounced, Owes::None);
    opened.store.accept(new).await.unwrap();
    let queue = opened.store.load(None, 10).await.unwrap();
    assert_eq!(queue.len(), 1);
    assert_eq!(queue[0].id, recipient(id, 1));

    let id = source.next(T0);
    let mut new = message(id, T0, &["a@x.example"], "text");
    new.recipients[0].state = done(T0, End::Bounced, Owes::None);
    opened.store.accept(new).await.unwrap();
    assert!(opened.store.messages(vec![id]).await.unwrap().is_empty());
    let logged = LoggedMessage {
        id: source.next(T0),
        tenant: "tenant-b".into(),
        envelope: envelope(None, &["p@own.example"]),
        size: 77,
        accepted_at: T0,
        keys: LogKeys::default(),
        events: Vec::new(),
    };
    let passed = logged.id;
    opened.store.log(logged).await.unwrap();
    for id in [id, passed] {
        let query = LogQuery {
            message: Some(id),
            ..LogQuery::default()
        };
        assert_eq!(opened.store.search(query).await.unwrap().len(), 1);
    }
    assert_eq!(opened.store.counts().await.unwrap().messages, 1);
}

async fn a_stale_epoch_is_fenced(place: &Place) {
    let opened = place.open().await;
    let id = ids().next(T0);
    let new = message(id, T0, &["a@x.example"], "text");
    opened.store.accept(new).await.unwrap();
    let mut stale = delivered(&opened.store, recipient(id, 0), T0);
    stale.epoch += 1;
    let refused = opened.store.settle(vec![stale]).await;
    assert!(matches!(refused, Err(StoreError::Fenced(0))), "{refused:?}");
    assert_eq!(opened.store.counts().await.unwrap().recipients, 1);
    assert_eq!(opened.store.events(0, 10).await.unwrap().len(), 2);
}

async fn later_settlements_replace_earlier_ones(place: &Place) {
    let opened = place.open().await;
    let id = ids().next(T0);
    let new = message(id, T0, &["a@x.example"], "text");
    opened.store.accept(new).await.unwrap();
    let at = recipient(id, 0);
    let settled =
        (1..=3).map(|n| settlement(&opened.store, at, deferred(T0, n), EventKind::Deferred, T0));
    opened.store.settle(settled.collect()).await.unwrap();
    assert_eq!(
        opened.store.recipients(id).await.unwrap()[0].state.attempts,
        3
    );
    let events = opened.store.events(0, 10).await.unwrap();
    let count = events
        .iter()
        .filter(|e| e.event.kind == EventKind::Deferred);
    assert_eq!(count.count(), 3);
}

async fn loads_in_pages_in_order(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let to = ["a@x.example", "b@x.example", "c@x.example"];
    let mut expected = Vec::new();
    for n in 0..20 {
        let id = source.next(T0);
        let mut new = message(id, T0, &to, "text");
        for recipient in &mut new.recipients {
            recipient.promise = promise(["mx", "smarthost"][n % 2]);
        }
        opened.store.accept(new).await.unwrap();
        expected.extend((0..3).map(|index| recipient(id, index)));
    }
    let opened = place.reopen(opened).await;
    for page in [1, 7, 1000] {
        let all = load_all(&opened.store, page).await;
        assert_eq!(all.iter().map(|r| r.id).collect::<Vec<_>>(), expected);
        assert_eq!(all[0].promise.relay, "mx");
        assert_eq!(all[3].promise.relay, "smarthost");
    }
}

async fn streams_large_contents(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let body = pattern(3_000_001, 5);
    let mut writer = opened.store.content_writer().await.unwrap();
    for chunk in body.chunks(77_777) {
        writer.append(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    let content = writer.finish().await.unwrap();
    assert_eq!(content.size(), body.len() as u64);
    let id = source.next(T0);
    let mut new = message(id, T0, &["a@x.example"], "");
    new.content = content;
    opened.store.accept(new).await.unwrap();
    // In memory, and larger than one record.
    let big = source.next(T0);
    let new = message(big, T0, &["a@x.example"], body.clone());
    opened.store.accept(new).await.unwrap();
    let empty = source.next(T0);
    opened
        .store
        .accept(message(empty, T0, &["a@x.example"], ""))
        .await
        .unwrap();

    // Given up: unfinished, and finished but refused.
    let mut writer = opened.store.content_writer().await.unwrap();
    writer.append(Bytes::from(body.clone())).await.unwrap();
    drop(writer);
    let mut writer = opened.store.content_writer().await.unwrap();
    writer.append(Bytes::from(body.clone())).await.unwrap();
    opened.store.discard(writer.finish().await.unwrap());

    let opened = place.reopen(opened).await;
    for id in [id, big] {
        let found = opened.store.messages(vec![id]).await.unwrap();
        let reader = opened.store.content(&found[0]);
        assert_eq!(reader.size(), body.len() as u64);
        assert!(read_all(&*reader, 100_000).await.unwrap() == body);
        let part = reader.read(2_999_990, 100).await.unwrap();
        assert_eq!(part, &body[2_999_990..]);
    }
    let found = opened.store.messages(vec![empty]).await.unwrap();
    let reader = opened.store.content(&found[0]);
    assert!(reader.read(0, 10).await.unwrap().is_empty());
    let settled = [id, big, empty].map(|id| delivered(&opened.store, recipient(id, 0), T0));
    opened.store.settle(settled.into()).await.unwrap();
    let report = opened.store.sweep(T0).await.unwrap();
    assert_eq!(report.content_bytes_held, 0);
}

async fn a_content_is_accepted_once(place: &Place) {
    let opened = place.open().await;
    let source = ids();
    let mut writer = opened.store.content_writer().await.unwrap();
    writer
        .append(Bytes::from_static(b"streamed"))
        .await
        .unwrap();
    let content = writer.finish().await.unwrap();
    let mut new = message(source.next(T0), T0, &["a@x.example"], "");
    new.content = content.clone();
    opened.store.accept(new).await.unwrap();
    let mut again = message(source.next(T0), T0, &["a@x.example"], "");
    again.content = content;
    let refused = opened.store.accept(again).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    assert_eq!(opened.store.counts().await.unwrap().messages, 1);
}

async fn many_at_once_share_commits(place: &Place) {
    let opened = place.open().await;
    let source = Arc::new(ids());
    let before = opened.store.counts().await.unwrap();
    let mut tasks = Vec::new();
    for task in 0..50u8 {
        let (store, source) = (opened.store.clone(), source.clone());
        tasks.push(tokio::spawn(async move {
            for n in 0..10u8 {
                let id = source.next(T0);
                let body = pattern(5000, task ^ n);
                let new = message(id, T0, &["a@x.example"], body.clone());
                store.accept(new).await.unwrap();
                let found = store.messages(vec![id]).await.unwrap();
                let reader = store.content(&found[0]);
                assert!(read_all(&*reader, 1 << 20).await.unwrap() == body);
                store
                    .settle(vec![delivered(&store, recipient(id, 0), T0)])
                    .await
                    .unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let after = opened.store.counts().await.unwrap();
    assert_eq!((after.messages, after.recipients), (0, 0));
    let commits = after.commits - before.commits;
    assert!(commits < 700, "{commits} commits for 1000 calls");
    let events = opened.store.events(0, 10_000).await.unwrap();
    assert_eq!(events.len(), 1500);
    assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let report = opened.store.sweep(T0).await.unwrap();
    assert_eq!(report.content_bytes_held, 0);
}

async fn finds_messages_by_every_key(place: &Place) {
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

async fn finds_the_newest_first_within_bounds(place: &Place) {
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

async fn events_are_numbered_over_days_and_restarts(place: &Place) {
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

async fn sweeps_whole_days(place: &Place) {
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

async fn keeps_cursors_measures_and_shaping_state(place: &Place) {
    let opened = place.open().await;
    let store = &opened.store;
    assert_eq!(store.cursor("file".into()).await.unwrap(), 0);
    store.set_cursor("file".into(), 7).await.unwrap();
    store.set_cursor("file".into(), 9).await.unwrap();
    assert_eq!(store.shaping_state().await.unwrap(), None);
    let state = Bytes::from_static;
    assert!(store.set_shaping_state(0, state(b"one")).await.unwrap());
    assert!(!store.set_shaping_state(0, state(b"two")).await.unwrap());
    assert!(store.set_shaping_state(1, state(b"\0three")).await.unwrap());
    assert!(!store.set_shaping_state(1, state(b"four")).await.unwrap());
    let measure = |id: &str, cause: &str| Measure {
        id: id.into(),
        scope: Scope {
            site: Some("mx.example".into()),
            ..Scope::default()
        },
        effect: Effect::Suspend,
        cause: cause.into(),
        since: T0,
        until: None,
    };
    store.put_measure(measure("m2", "x")).await.unwrap();
    store.put_measure(measure("m1", "x")).await.unwrap();
    store.put_measure(measure("m2", "y")).await.unwrap();
    let opened = place.reopen(opened).await;
    let store = &opened.store;
    assert_eq!(store.cursor("file".into()).await.unwrap(), 9);
    assert_eq!(
        store.shaping_state().await.unwrap(),
        Some((2, state(b"\0three")))
    );
    assert_eq!(
        store.measures().await.unwrap(),
        [measure("m1", "x"), measure("m2", "y")]
    );
    assert!(store.remove_measure("m1".into()).await.unwrap());
    assert!(!store.remove_measure("m1".into()).await.unwrap());
    assert_eq!(store.measures().await.unwrap().len(), 1);
}

async fn keeps_tenants_with_what_is_theirs(place: &Place) {
    let opened = place.open().await;
    let registry = &opened.registry;
    let tenant = |id: &str, suspended| Tenant {
        id: id.into(),
        domains: vec![format!("{id}.example")],
        relays: vec!["mx".into()],
        suspended,
        bulk_suspended: false,
    };
    let credential = |user: &str, tenant: &str| Credential {
        user: user.into(),
        tenant: tenant.into(),
        hash: "$argon2id$...".into(),
        bulk: false,
    };
    let server = |tenant: &str, name: &str| Server {
        tenant: tenant.into(),
        name: name.into(),
        host: "mail.example".into(),
        port: 587,
        tls: TlsMode::StartTls,
        user: Some("u".into()),
        sealed_password: Some("c2VhbGVk".into()),
    };
    let relay = Relay {
        name: "eu".into(),
        way: Way::Mx {
            sources: vec!["192.0.2.1".parse().unwrap()],
        },
    };
    registry.put_tenant(tenant("b", false)).await.unwrap();
    registry.put_tenant(tenant("a", false)).await.unwrap();
    registry.put_tenant(tenant("b", true)).await.unwrap();
    registry
        .put_credential(credential("u1", "a"))
        .await
        .unwrap();
    registry
        .put_credential(credential("u2", "b"))
        .await
        .unwrap();
    let stolen = registry.put_credential(credential("u1", "b")).await;
    assert!(matches!(stolen, Err(StoreError::Conflict(_))), "{stolen:?}");
    let nobody = registry.put_credential(credential("u3", "c")).await;
    assert!(matches!(nobody, Err(StoreError::Conflict(_))), "{nobody:?}");
    registry.put_server(server("a", "own")).await.unwrap();
    registry.put_server(server("b", "own")).await.unwrap();
    let nobody = registry.put_server(server("c", "own")).await;
    assert!(matches!(nobody, Err(StoreError::Conflict(_))), "{nobody:?}");
    registry.put_relay(relay.clone()).await.unwrap();

    let opened = place.reopen(opened).await;
    let registry = &opened.registry;
    assert_eq!(
        registry.tenants().await.unwrap(),
        [tenant("a", false), tenant("b", true)]
    );
    assert_eq!(
        registry.credentials().await.unwrap(),
        [credential("u1", "a"), credential("u2", "b")]
    );
    assert_eq!(registry.servers().await.unwrap().len(), 2);
    assert_eq!(registry.relays().await.unwrap(), [relay]);
    assert!(registry.remove_tenant("a".into()).await.unwrap());
    assert!(!registry.remove_tenant("a".into()).await.unwrap());
    assert_eq!(
        registry.credentials().await.unwrap(),
        [credential("u2", "b")]
    );
    assert_eq!(registry.servers().await.unwrap(), [server("b", "own")]);
    assert!(registry.remove_credential("u2".into()).await.unwrap());
    assert!(!registry.remove_credential("u2".into()).await.unwrap());
    let removed = registry.remove_server("b".into(), "own".into()).await;
    assert!(removed.unwrap());
    assert!(registry.remove_relay("eu".into()).await.unwrap());
    assert!(!registry.remove_relay("eu".into()).await.unwrap());
}

async fn keeps_revisions_and_activations(place: &Place) {
    let opened = place.open().await;
    let registry = &opened.registry;
    let revision = |digest: &str, at: i64| Revision {
        digest: digest.into(),
        world: "routing-policy".into(),
        name: "default".into(),
        version: "1.0.0".into(),
        config: "{\"a\": 1}".into(),
        uploaded_at: Timestamp(at),
        uploaded_by: "operator".into(),
        note: String::new(),
        size: 3,
    };
    let activation = |digest: &str, at: i64| Activation {
        slot: "routing".into(),
        digest: digest.into(),
        at: Timestamp(at),
        by: "operator".into(),
        note: "first".into(),
    };
    let component = Bytes::from(pattern(300_000, 9));
    registry
        .put_revision(revision("d2", 20), component.clone())
        .await
        .unwrap();
    registry
        .put_revision(revision("d1", 10), Bytes::from_static(b"one"))
        .await
        .unwrap();
    // A digest that is there is left as it is.
    registry
        .put_revision(revision("d1", 99), Bytes::from_static(b"two"))
        .await
        .unwrap();
    let unknown = registry.activate(activation("d9", 1)).await;
    assert!(
        matches!(unknown, Err(StoreError::Conflict(_))),
        "{unknown:?}"
    );
    for digest in ["d1", "d2", "d1"] {
        registry.activate(activation(digest, 5)).await.unwrap();
    }
    let opened = place.reopen(opened).await;
    let registry = &opened.registry;
    assert_eq!(
        registry.revisions().await.unwrap(),
        [revision("d1", 10), revision("d2", 20)]
    );
    assert_eq!(
        registry.component("d2".into()).await.unwrap(),
        Some(component)
    );
    assert_eq!(
        registry.component("d1".into()).await.unwrap().as_deref(),
        Some(&b"one"[..])
    );
    assert_eq!(registry.component("d9".into()).await.unwrap(), None);
    let digests: Vec<String> = registry
        .activations()
        .await
        .unwrap()
        .into_iter()
        .map(|a| a.digest)
        .collect();
    assert_eq!(digests, ["d1", "d2", "d1"]);
}

async fn hostile_text_round_trips(place: &Place) {
    let opened = place.open().await;
    let id = ids().next(T0);
    let nasty = "'); DROP TABLE message; -- \\ \" | \u{1f}\n\t\u{10ffff} ${1} \u{e9}";
    let mut new = message(
        id,
        T0,
        &["o'brien|{x}@x.example", "j\u{f6}rg@x.example"],
        "text",
    );
    new.tenant = "t'|x".into();
    new.keys.message_id = Some(nasty.into());
    new.keys.record = Some("nul \0 inside".into());
    new.keys.subject = Some(String::new());
    opened.store.accept(new).await.unwrap();
    let mut state = deferred(T0, 1);
    if let Some(last) = &mut state.last {
        last.host = Some(nasty.into());
    }
    let mut settled = settlement(
        &opened.store,
        recipient(id, 0),
        state.clone(),
        EventKind::Deferred,
        T0,
    );
    settled.events[0].detail.text = Some(nasty.into());
    settled.events[0].detail.site = Some("a\0b".into());
    opened.store.settle(vec![settled]).await.unwrap();
    let found = opened.store.messages(vec![id]).await.unwrap();
    assert_eq!(found[0].keys.message_id.as_deref(), Some(nasty));
    assert_eq!(
        found[0].envelope.recipients[0].address.as_str(),
        "o'brien|{x}@x.example"
    );
    let queue = opened.store.recipients(id).await.unwrap();
    assert_eq!(queue[0].state, state);
    assert_eq!(&*queue[0].tenant, "t'|x");
    let queries = [
        LogQuery {
            message_id: Some(nasty.to_uppercase()),
            ..LogQuery::default()
        },
        LogQuery {
            recipient: Some("J\u{d6}RG@x.example".into()),
            ..LogQuery::default()
        },
    ];
    for query in queries {
        let entries = opened.store.search(query).await.unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(
            entries[0].keys.record.as_deref(),
            Some("nul \u{fffd} inside")
        );
        let last = entries[0].events.last().unwrap();
        assert_eq!(last.detail.text.as_deref(), Some(nasty));
        assert_eq!(last.detail.site.as_deref(), Some("a\u{fffd}b"));
    }
}

async fn a_closed_store_refuses(place: &Place) {
    let opened = place.open().await;
    opened.store.close().await;
    let new = message(ids().next(T0), T0, &["a@x.example"], "text");
    let refused = opened.store.accept(new).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    let again = place.open().await;
    assert!(again.store.load(None, 10).await.unwrap().is_empty());
}

/// Random operations, one after another and with restarts, against the model.
async fn agrees_with_the_model(place: &Place) {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::{Config, TestRunner};
    let mut runner = TestRunner::new(Config::default());
    let operation = (0..12u8, 0..1000usize, 0..3u8, 0..40_000usize);
    let operations = proptest::collection::vec(operation, 150)
        .new_tree(&mut runner)
        .unwrap()
        .current();
    let mut model = common::model::Model::default();
    let mut opened = place.open().await;
    let source = ids();
    let mut known: Vec<MessageId> = Vec::new();
    for (step, (kind, pick, state, size)) in operations.into_iter().enumerate() {
        let at = T0.plus(Duration::from_secs(1800 * step as u64));
        let context = format!("step {step}: {kind} {pick} {state} {size}");
        let queued: Vec<_> = model.queue.keys().copied().collect();
        let state = match state {
            0 => deferred(at, 1),
            1 => done(at, End::Bounced, Owes::Failure),
            _ => done(at, End::Sent, Owes::None),
        };
        match kind {
            0..=4 => {
                let again = kind == 4 && !known.is_empty();
                let id = if again {
                    known[pick % known.len()]
                } else {
                    source.next(at)
                };
                let body = pattern(size, pick as u8);
                let to = ["a@x.example", "b@y.example", "c@z.example"];
                let mut new = message(id, at, &to[..1 + pick % 3], body.clone());
                new.recipients[0].state = match state.state {
                    State::Done(_) => state,
                    State::Waiting { .. } => new.recipients[0].state.clone(),
                };
                if pick % 5 == 0 && !queued.is_empty() {
                    let paid = queued[pick % queued.len()];
                    let state = done(at, End::Bounced, Owes::None);
                    new.pays = vec![settlement(
                        &opened.store,
                        paid,
                        state,
                        EventKind::DsnSent,
                        at,
                    )];
                }
                let expected = model.accept(&new, &body);
                let got = opened.store.accept(new).await;
                assert_eq!(got.is_ok(), expected, "{context}: {got:?}");
                known.push(id);
            }
            5..=10 if !known.is_empty() => {
                let id = match queued.get(pick % queued.len().max(1)) {
                    Some(id) if kind < 10 => *id,
                    _ => recipient(known[pick % known.len()], 0),
                };
                let settled = vec![settlement(
                    &opened.store,
                    id,
                    state,
                    EventKind::Deferred,
                    at,
                )];
                let expected = model.settle(&settled);
                let got = opened.store.settle(settled).await;
                assert_eq!(got.is_ok(), expected, "{context}: {got:?}");
            }
            _ => opened = place.reopen(opened).await,
        }
        if step % 10 == 9 {
            compare(&opened.store, &model, &context).await;
        }
    }
    compare(&opened.store, &model, "at the end").await;
    let opened = place.reopen(opened).await;
    compare(&opened.store, &model, "after a restart").await;
}

async fn compare(store: &Arc<dyn Store>, model: &common::model::Model, context: &str) {
    let queue = load_all(store, 50).await;
    let expected: Vec<_> = model.queue.iter().map(|(id, s)| (*id, s.clone())).collect();
    let got: Vec<_> = queue.iter().map(|r| (r.id, r.state.clone())).collect();
    assert_eq!(got, expected, "{context}");
    assert_eq!(
        store.owing(10_000).await.unwrap(),
        model.owing(),
        "{context}"
    );
    let ids: Vec<MessageId> = model
        .contents
        .keys()
        .map(|id| MessageId::from_i64(*id))
        .collect();
    let found = store.messages(ids).await.unwrap();
    assert_eq!(found.len(), model.contents.len(), "{context}");
    for message in &found {
        let reader = store.content(message);
        let content = read_all(&*reader, 9000).await.unwrap();
        assert!(content == model.contents[&message.id.as_i64()], "{context}");
    }
    let events: Vec<_> = store
        .events(0, 100_000)
        .await
        .unwrap()
        .into_iter()
        .map(|e| e.event)
        .collect();
    assert_eq!(events, model.events, "{context}");
    let counts = store.counts().await.unwrap();
    assert_eq!(counts.messages as usize, model.contents.len(), "{context}");
    assert_eq!(counts.recipients as usize, model.queue.len(), "{context}");
    assert_eq!(counts.owing as usize, model.owing().len(), "{context}");
}
