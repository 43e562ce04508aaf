//! Accepting, settling and reloading.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::{End, EventKind, Owes, RecipientState, Timestamp};
use tidegate_queue::*;

use crate::common::*;

pub async fn an_accepted_message_is_there_whole(place: &Place) {
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

pub async fn states_survive_a_restart(place: &Place) {
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

pub async fn a_delivered_message_leaves_the_queue(place: &Place) {
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

pub async fn a_debt_is_paid_with_the_notice_that_pays_it(place: &Place) {
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

pub async fn a_second_message_of_that_id_is_refused_alone(place: &Place) {
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

/// Its events would be found under the other's sender and tenant.
pub async fn an_id_that_is_in_the_log_is_not_taken_again(place: &Place) {
    let opened = place.open().await;
    let id = ids().next(T0);
    let first = message(id, T0, &["a@x.example"], "first");
    opened.store.accept(first).await.unwrap();
    let gone = delivered(&opened.store, recipient(id, 0), T0);
    opened.store.settle(vec![gone]).await.unwrap();
    let before = opened.store.events(0, 100).await.unwrap().len();

    let mut second = message(id, T0, &["b@y.example"], "second");
    second.tenant = "tenant-b".into();
    let refused = opened.store.accept(second).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    let passed = LoggedMessage {
        id,
        tenant: "tenant-b".into(),
        envelope: envelope(None, &["p@own.example"]),
        size: 77,
        accepted_at: T0,
        keys: LogKeys::default(),
        events: Vec::new(),
    };
    let refused = opened.store.log(passed).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    assert_eq!(opened.store.events(0, 100).await.unwrap().len(), before);
    let found = opened.store.search(LogQuery::default()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].tenant, "tenant-a");
    assert_eq!(opened.store.counts().await.unwrap().messages, 0);
}

pub async fn knows_the_newest_id_of_queue_and_log(place: &Place) {
    let day = Duration::from_secs(24 * 3600);
    let opened = place.open().await;
    assert_eq!(opened.store.newest_id(T0).await.unwrap(), None);
    let source = ids();
    let mut given = Vec::new();
    // The last under a clock that was a year ahead.
    for at in [T0, T0.plus(day), T0.plus(day * 365)] {
        let id = source.next(at);
        opened
            .store
            .accept(message(id, at, &["a@x.example"], "text"))
            .await
            .unwrap();
        given.push(id);
        assert_eq!(opened.store.newest_id(at).await.unwrap(), Some(id));
        let gone = delivered(&opened.store, recipient(id, 0), at);
        opened.store.settle(vec![gone]).await.unwrap();
    }
    let opened = place.reopen(opened).await;
    let before = Timestamp(T0.0 - 1);
    for (until, expected) in [
        (before, None),
        (T0, Some(given[0])),
        (T0.plus(day / 2), Some(given[0])),
        (T0.plus(day), Some(given[1])),
        (T0.plus(day * 9), Some(given[1])),
        (T0.plus(day * 366), Some(given[2])),
        (Timestamp::FAR_FUTURE, Some(given[2])),
    ] {
        assert_eq!(
            opened.store.newest_id(until).await.unwrap(),
            expected,
            "{until:?}"
        );
    }
    // In the queue alone, as after a sweep of the log.
    let id = source.next(T0.plus(day * 365));
    let at = T0.plus(day * 365);
    let new = message(id, at, &["a@x.example"], "text");
    opened.store.accept(new).await.unwrap();
    opened.store.sweep(T0.plus(day * 400)).await.unwrap();
    assert_eq!(opened.store.newest_id(at).await.unwrap(), Some(id));
}

pub async fn a_settlement_of_nobody_writes_nothing(place: &Place) {
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

pub async fn recipients_that_are_done_and_owe_nothing_are_only_logged(place: &Place) {
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

pub async fn a_stale_epoch_is_fenced(place: &Place) {
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

pub async fn later_settlements_replace_earlier_ones(place: &Place) {
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

pub async fn loads_in_pages_in_order(place: &Place) {
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

pub async fn many_at_once_share_commits(place: &Place) {
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

pub async fn a_closed_store_refuses(place: &Place) {
    let opened = place.open().await;
    opened.store.close().await;
    let new = message(ids().next(T0), T0, &["a@x.example"], "text");
    let refused = opened.store.accept(new).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    let again = place.open().await;
    assert!(again.store.load(None, 10).await.unwrap().is_empty());
}
