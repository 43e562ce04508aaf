//! What only PostgreSQL has: fencing between gateways, servers that come and go or do not
//! sync, and commits that break off.

mod common;

#[path = "common/breaker.rs"]
mod breaker;

use std::time::Duration;

use breaker::Breaker;
use common::cluster::Cluster;
use common::*;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tidegate_mail::{End, EventKind, Owes};
use tidegate_queue::*;

async fn database_of(place: &Place) -> String {
    let url = place.database();
    let path = url.split('?').next().unwrap_or(url);
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_took_over_fences_the_other() {
    let place = Place::postgres().await;
    let old = place.open().await;
    let source = ids();
    let id = source.next(T0);
    old.store
        .accept(message(id, T0, &["a@x.example"], "text"))
        .await
        .unwrap();
    let new = place.open().await;
    assert!(new.store.epoch(0) > old.store.epoch(0));

    let refused = old
        .store
        .settle(vec![delivered(&old.store, recipient(id, 0), T0)])
        .await;
    assert!(matches!(refused, Err(StoreError::Fenced(0))), "{refused:?}");
    let refused = old
        .store
        .accept(message(source.next(T0), T0, &["a@x.example"], "text"))
        .await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    assert_eq!(new.store.counts().await.unwrap().recipients, 1);
    // Nor does it change anything else, and least of all drops the other's log.
    let refused = old.store.set_cursor("log".into(), 77).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    let refused = old.store.set_life(0, Life::default()).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    let refused = old.registry.remove_tenant("tenant-a".into()).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    let later = T0.plus(Duration::from_secs(9 * 24 * 3600));
    let refused = old.store.sweep(later).await;
    assert!(matches!(refused, Err(StoreError::Fenced(_))), "{refused:?}");
    assert_eq!(new.store.cursor("log".into()).await.unwrap(), 0);
    let found = new.store.search(LogQuery::default()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].events.len(), 2);

    new.store
        .settle(vec![delivered(&new.store, recipient(id, 0), T0)])
        .await
        .unwrap();
    assert!(new.store.load(None, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_sync_is_refused() {
    let place = Place::postgres().await;
    let database = database_of(&place).await;
    let mut admin = Cluster::get().connect("postgres").await;
    let sql = format!("ALTER DATABASE {database} SET synchronous_commit = off");
    admin
        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
        .await
        .unwrap();
    match place.try_open().await {
        Err(StoreError::Conflict(text)) => {
            assert!(text.contains("synchronous_commit = off"), "{text}");
            assert!(text.contains("set synchronous_commit = on"), "{text}");
        }
        other => panic!("{:?}", other.map(drop)),
    }
    admin.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_are_made_anew() {
    let place = Place::postgres().await;
    let opened = place.open().await;
    let database = database_of(&place).await;
    let source = ids();
    let mut admin = Cluster::get().connect("postgres").await;
    let mut kept = Vec::new();
    for round in 0..5 {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        );
        // While calls are under way.
        let mut tasks = Vec::new();
        for n in 0..20 {
            let id = source.next(T0);
            let store = opened.store.clone();
            tasks.push(tokio::spawn(async move {
                let new = message(id, T0, &["a@x.example"], pattern(5000, n));
                (id, store.accept(new).await)
            }));
            if n == 10 {
                let query = sqlx::raw_sql(AssertSqlSafe(sql.clone()));
                admin.execute(query).await.unwrap();
            }
        }
        for task in tasks {
            let (id, result) = task.await.unwrap();
            match result {
                Ok(()) => kept.push(id),
                Err(StoreError::Failed(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
        // Afterwards it works again.
        let id = source.next(T0);
        let new = message(id, T0, &["a@x.example"], format!("round {round}"));
        if opened.store.accept(new).await.is_ok() {
            kept.push(id);
        } else {
            let id = source.next(T0);
            let new = message(id, T0, &["a@x.example"], "second try");
            opened.store.accept(new).await.unwrap();
            kept.push(id);
        }
    }
    kept.sort_unstable();
    let opened = place.reopen(opened).await;
    let queue = load_all(&opened.store, 1000).await;
    let ids: Vec<_> = queue.iter().map(|r| r.id.message).collect();
    assert_eq!(ids, kept, "what was acknowledged, and nothing else");
    admin.close().await.unwrap();
}

#[tokio::test]
async fn an_unreachable_server_and_a_bad_url_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("postgres://nobody@127.0.0.1:1/x", "can't be reached"),
        ("postgres://host:notaport/x", "not valid"),
        ("mysql://x", "neither \"sqlite\" nor"),
    ];
    for (url, expected) in cases {
        let refused = tidegate_store::open(url, dir.path(), options()).await;
        let error = refused.map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{url}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_can_not_hold_every_character_is_refused() {
    let cluster = Cluster::get();
    let mut admin = cluster.connect("postgres").await;
    let name = format!("latin_{}", std::process::id());
    let sql = format!("CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0");
    admin
        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
        .await
        .unwrap();
    admin.close().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    match tidegate_store::open(&cluster.url(&name), dir.path(), options()).await {
        Err(StoreError::Conflict(text)) => {
            assert!(text.contains("encoding LATIN1"), "{text}");
            assert!(text.contains("ENCODING 'UTF8'"), "{text}");
        }
        other => panic!("{:?}", other.map(drop)),
    }
}

/// In one thread, so that all calls are there before the first batch begins.
#[tokio::test]
async fn a_text_that_can_not_be_stored_is_refused_alone() {
    let place = Place::postgres().await;
    let opened = place.open().await;
    let source = ids();
    let mut tasks = Vec::new();
    for n in 0..5 {
        let mut new = message(source.next(T0), T0, &["a@x.example"], "text");
        if n == 2 {
            new.tenant = "no\0text".into();
        }
        let store = opened.store.clone();
        tasks.push(tokio::spawn(async move { store.accept(new).await }));
    }
    for (n, task) in tasks.into_iter().enumerate() {
        match task.await.unwrap() {
            Ok(()) => assert_ne!(n, 2),
            Err(StoreError::Conflict(_)) => assert_eq!(n, 2),
            Err(other) => panic!("{n}: {other}"),
        }
    }
    assert_eq!(opened.store.counts().await.unwrap().messages, 4);
}

/// The connection goes at the commit of a message and of a notice, and the server ends that
/// commit only when both have long been refused.
#[tokio::test]
async fn what_was_refused_in_doubt_goes_but_a_notice_that_paid_stays() {
    let place = Place::postgres().await;
    let breaker = Breaker::before(&place).await;
    let dir = tempfile::tempdir().unwrap();
    let (store, _registry) = tidegate_store::open(&breaker.url, dir.path(), options())
        .await
        .unwrap();
    let source = ids();
    let failed = source.next(T0);
    let new = message(failed, T0, &["a@x.example"], "text");
    store.accept(new).await.unwrap();
    let settled = |owes, kind| {
        let state = done(T0, End::Bounced, owes);
        settlement(&store, recipient(failed, 0), state, kind, T0)
    };
    let debt = settled(Owes::Failure, EventKind::Bounced);
    store.settle(vec![debt]).await.unwrap();

    let ordinary = message(source.next(T0), T0, &["b@x.example"], "ordinary");
    let mut notice = message(source.next(T0), T0, &["anna@sender.example"], "notice");
    notice.pays = vec![settled(Owes::None, EventKind::DsnSent)];
    let ids = vec![ordinary.id, notice.id];
    breaker.hold_commit();
    let (one, other) = tokio::join!(store.accept(ordinary), store.accept(notice.clone()));
    assert!(matches!(one, Err(StoreError::Failed(_))), "{one:?}");
    assert!(matches!(other, Err(StoreError::Failed(_))), "{other:?}");
    // Nothing is written before the fate of that commit is known.
    let early = message(source.next(T0), T0, &["c@x.example"], "early");
    let refused = store.accept(early).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");

    breaker.let_go().await;
    let late = message(source.next(T0), T0, &["d@x.example"], "late");
    let late_id = late.id;
    store.accept(late).await.unwrap();
    let found = store.messages(ids.clone()).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, notice.id);
    assert!(store.owing(10).await.unwrap().is_empty());
    let again = store.accept(notice.clone()).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    let found = store.search(LogQuery::default()).await.unwrap();
    let found: Vec<_> = found.iter().map(|entry| entry.message).collect();
    assert_eq!(found, [late_id, notice.id, failed]);
}

/// As a server does that is stopped while it waits for its standby.
#[tokio::test]
async fn a_session_that_is_ended_at_the_commit_may_have_committed() {
    let place = Place::postgres().await;
    let breaker = Breaker::before(&place).await;
    let dir = tempfile::tempdir().unwrap();
    let (store, _registry) = tidegate_store::open(&breaker.url, dir.path(), options())
        .await
        .unwrap();
    let source = ids();
    store
        .accept(message(source.next(T0), T0, &["a@x.example"], "text"))
        .await
        .unwrap();
    breaker.end_session_after_commit();
    let id = source.next(T0);
    store
        .accept(message(id, T0, &["a@x.example"], "text"))
        .await
        .unwrap();
    assert_eq!(store.messages(vec![id]).await.unwrap().len(), 1);
    assert_eq!(store.counts().await.unwrap().messages, 2);
}
