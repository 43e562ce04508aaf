//! What only PostgreSQL has: fencing between gateways, and servers that come and go or
//! do not sync.

mod common;

use common::cluster::Cluster;
use common::*;
use sqlx::{AssertSqlSafe, Connection, Executor};
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
        ("mysql://x", "expected \"sqlite\" or"),
    ];
    for (url, expected) in cases {
        let refused = tidegate_store::open(url, dir.path(), options()).await;
        let error = refused.map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{url}: {error}");
    }
}
