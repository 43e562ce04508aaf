//! A look at a database changes nothing in it, and takes nothing from whoever has it open.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use common::cluster::Cluster;
use common::*;
use sqlx::{AssertSqlSafe, Executor};
use tidegate_queue::*;
use tidegate_store::{Probe, Schema, probe};

async fn look(place: &Place) -> StoreResult<Probe> {
    probe(place.database(), place.dir.path()).await
}

/// Every file with its contents.
fn files(below: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.display().to_string(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_is_looked_at_without_a_trace() {
    let place = Place::sqlite();
    assert_eq!(look(&place).await.unwrap().schema, Schema::None);
    assert!(files(place.dir.path()).is_empty());

    let opened = place.open().await;
    let revision = Revision {
        digest: "d1".to_owned(),
        world: "routing-policy".to_owned(),
        name: "default".to_owned(),
        version: "1.0.0".to_owned(),
        config: String::new(),
        uploaded_at: T0,
        uploaded_by: "init".to_owned(),
        note: String::new(),
        size: 3,
    };
    let uploaded = Uploaded {
        slot: "routing".to_owned(),
        digest: "d1".to_owned(),
        at: T0,
        by: "init".to_owned(),
        note: String::new(),
    };
    let component = Bytes::from(pattern(100_000, 1));
    opened
        .registry
        .put_revision(revision, component, uploaded)
        .await
        .unwrap();
    let step = Activation {
        seq: 0,
        slot: "routing".to_owned(),
        digest: "d1".to_owned(),
        step: Step::Activate,
        purpose: None,
        at: T0,
        by: "init".to_owned(),
        note: String::new(),
        cause: None,
    };
    opened.registry.activate(step).await.unwrap();
    // What a crash leaves: the commits are in the write-ahead log.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["queue.db", "queue.db-wal"] {
        std::fs::copy(place.dir.path().join(name), crashed.path().join(name)).unwrap();
    }
    assert_eq!(opened.registry.activations().await.unwrap().len(), 1);
    opened.store.close().await;
    drop(opened);

    let before = files(place.dir.path());
    let found = look(&place).await.unwrap();
    assert_eq!(found.schema, Schema::Current);
    assert!(!found.behind && found.activations.len() == 1);
    assert_eq!(files(place.dir.path()), before);

    for pages in [None, Some(1), Some(10)] {
        // A crash while commits are copied into the database: some of its pages are new.
        if let Some(pages) = pages {
            let whole = std::fs::read(place.dir.path().join("queue.db")).unwrap();
            assert!(whole.len() > 11 * 4096, "{}", whole.len());
            std::fs::write(crashed.path().join("queue.db"), &whole[..pages * 4096]).unwrap();
        }
        let before = files(crashed.path());
        let found = probe("sqlite", crashed.path()).await.unwrap();
        assert_eq!(found.schema, Schema::Current, "{pages:?}");
        assert!(found.behind && found.activations.len() == 1, "{pages:?}");
        assert_eq!(files(crashed.path()), before, "{pages:?}");
    }

    // An empty database, or none, with a log beside it: SQLite would delete the log.
    let emptied = crashed.path().join("queue.db");
    std::fs::write(&emptied, "").unwrap();
    for _ in 0..2 {
        let before = files(crashed.path());
        let found = probe("sqlite", crashed.path()).await.unwrap();
        assert_eq!(found.schema, Schema::None);
        assert_eq!(files(crashed.path()), before);
        let _ = std::fs::remove_file(&emptied);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_version_is_told() {
    let place = Place::sqlite();
    let opened = place.open().await;
    opened.store.close().await;
    drop(opened);
    let path = place.dir.path().join("queue.db");
    let change = async |sql: &'static str| {
        use sqlx::ConnectOptions;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
        let mut conn = options.connect().await.unwrap();
        conn.execute(sql).await.unwrap();
        sqlx::Connection::close(conn).await.unwrap();
    };
    change("DELETE FROM migration WHERE number = (SELECT max(number) FROM migration)").await;
    let found = look(&place).await.unwrap();
    assert_eq!(found.schema, Schema::Older { steps: 1 });
    change("INSERT INTO migration (number, name) VALUES (9999, 'tomorrow')").await;
    match look(&place).await {
        Err(StoreError::Conflict(text)) => assert!(text.contains("newer version"), "{text}"),
        other => panic!("{other:?}"),
    }
    std::fs::write(&path, [0xa5; 8192]).unwrap();
    match look(&place).await {
        Err(StoreError::Damaged(text)) => assert!(text.contains("backup"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_a_postgresql_database_notices_nothing() {
    let place = Place::postgres().await;
    assert_eq!(look(&place).await.unwrap().schema, Schema::None);
    let opened = place.open().await;
    let source = ids();
    let id = source.next(T0);
    opened
        .store
        .accept(message(id, T0, &["a@x.example"], "text"))
        .await
        .unwrap();
    let mut upload = opened.store.content_writer().await.unwrap();
    let large = pattern(600_000, 1);
    upload
        .append(Bytes::from(large[..400_000].to_vec()))
        .await
        .unwrap();

    assert_eq!(look(&place).await.unwrap().schema, Schema::Current);

    upload
        .append(Bytes::from(large[400_000..].to_vec()))
        .await
        .unwrap();
    let content = upload.finish().await.unwrap();
    let second = source.next(T0);
    let mut whole = message(second, T0, &["b@x.example"], "");
    whole.content = content;
    opened.store.accept(whole).await.unwrap();
    opened
        .store
        .settle(vec![delivered(&opened.store, recipient(id, 0), T0)])
        .await
        .unwrap();
    assert_eq!(opened.store.counts().await.unwrap().recipients, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_use_a_postgresql_database_is_told() {
    let place = Place::postgres().await;
    let name = place.database().split('?').next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let mut admin = Cluster::get().connect(&name).await;
    let role = format!("guest_{name}");
    for sql in [
        format!("CREATE ROLE {role} LOGIN"),
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC".to_owned(),
    ] {
        admin
            .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .unwrap();
    }
    let (scheme, rest) = place.database().split_once("://").unwrap();
    let (_, at) = rest.split_once('@').unwrap();
    let url = format!("{scheme}://{role}@{at}");
    match probe(&url, place.dir.path()).await {
        Err(StoreError::Failed(text)) => assert!(text.contains("CREATE"), "{text}"),
        other => panic!("{other:?}"),
    }
    match probe("host=db password=s3cret", place.dir.path()).await {
        Err(StoreError::Conflict(text)) => assert!(!text.contains("s3cret"), "{text}"),
        other => panic!("{other:?}"),
    }
}
