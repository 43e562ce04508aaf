//! What is configured through the API, and what policies and exporters keep.

use bytes::Bytes;
use tidegate_mail::Timestamp;
use tidegate_mail::dsn::Wording;
use tidegate_queue::directory::{Credential, Relay, Server, Tenant, Token, Way};
use tidegate_queue::measure::{Effect, Lifted, Measure, Scope, Setter};
use tidegate_queue::*;

use crate::common::*;

pub async fn keeps_cursors_measures_and_shaping_state(place: &Place) {
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
    let measure = |id: &str, cause: &str| {
        let scope = Scope {
            site: Some("mx.example".into()),
            ..Scope::default()
        };
        Measure {
            by: Setter::Host,
            lifted: Some(Lifted {
                at: T0,
                by: "operator".into(),
                why: "it answers again".into(),
                until: None,
            }),
            ..Measure::new(id, scope, Effect::Suspend, cause, T0)
        }
    };
    let both = vec![measure("m2", "x"), measure("m1", "x")];
    store.change_measures(both, vec![]).await.unwrap();
    let (m2, m3) = (measure("m2", "y"), measure("m3", "z"));
    store.change_measures(vec![m2, m3], vec![]).await.unwrap();
    let gone = vec!["m3".into(), "never there".into()];
    store.change_measures(vec![], gone).await.unwrap();
    let used = |tenant: &str, recipients| QuotaUse {
        tenant: tenant.into(),
        pieces: vec![Piece {
            from: T0,
            to: T0,
            recipients,
        }],
    };
    let both = vec![used("b", 1), used("a", 2)];
    store.set_quota_use(both).await.unwrap();
    store.set_quota_use(vec![used("b", 3)]).await.unwrap();
    let opened = place.reopen(opened).await;
    let store = &opened.store;
    let kept = store.quota_use().await.unwrap();
    assert_eq!(kept, [used("a", 2), used("b", 3)]);
    assert_eq!(store.cursor("file".into()).await.unwrap(), 9);
    assert_eq!(
        store.shaping_state().await.unwrap(),
        Some((2, state(b"\0three")))
    );
    assert_eq!(
        store.measures().await.unwrap(),
        [measure("m1", "x"), measure("m2", "y")]
    );
    let changes = store.change_measures(vec![measure("m4", "x")], vec!["m1".into()]);
    changes.await.unwrap();
    let left = store.measures().await.unwrap();
    let left: Vec<&str> = left.iter().map(|m| m.id.as_str()).collect();
    assert_eq!(left, ["m2", "m4"]);
}

pub async fn keeps_tenants_with_what_is_theirs(place: &Place) {
    let opened = place.open().await;
    let registry = &opened.registry;
    let tenant = |id: &str, suspended| Tenant {
        id: id.into(),
        domains: vec![format!("{id}.example")],
        relays: vec!["mx".into()],
        suspended,
        bulk_suspended: false,
        wording: suspended.then(|| {
            Box::new(Wording {
                contact: Some("help@b.example".into()),
                ..Wording::default()
            })
        }),
        record_inputs: true,
        bulk_quota: None,
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

pub async fn keeps_revisions_and_activations(place: &Place) {
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
        seq: 0,
        slot: "routing".into(),
        digest: digest.into(),
        step: Step::Canary { permille: 50 },
        purpose: None,
        at: Timestamp(at),
        by: "operator".into(),
        note: "first".into(),
        cause: None,
    };
    let uploaded = |slot: &str, digest: &str, at: i64| Uploaded {
        slot: slot.into(),
        digest: digest.into(),
        at: Timestamp(at),
        by: "operator".into(),
        note: String::new(),
    };
    let component = Bytes::from(pattern(300_000, 9));
    registry
        .put_revision(
            revision("d2", 20),
            component.clone(),
            uploaded("", "d2", 20),
        )
        .await
        .unwrap();
    registry
        .put_revision(
            revision("d1", 10),
            Bytes::from_static(b"one"),
            uploaded("routing", "d1", 10),
        )
        .await
        .unwrap();
    // A digest that is there is left as it is.
    registry
        .put_revision(
            revision("d1", 99),
            Bytes::from_static(b"two"),
            uploaded("routing/acme", "d1", 99),
        )
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
    let history = registry.activations().await.unwrap();
    let digests: Vec<&str> = history.iter().map(|a| a.digest.as_str()).collect();
    assert_eq!(digests, ["d1", "d2", "d1"]);
    assert!(history.is_sorted_by(|a, b| a.seq < b.seq), "{history:?}");
    // Whoever follows the history by its numbers misses nothing after a tenant was removed.
    let last = history.last().unwrap().seq;
    let of_tenant = Activation {
        slot: "routing/beta".into(),
        ..activation("d1", 6)
    };
    registry.activate(of_tenant).await.unwrap();
    let of_tenant = registry.activations().await.unwrap().pop().unwrap().seq;
    registry.remove_tenant("beta".into()).await.unwrap();
    registry.activate(activation("d2", 7)).await.unwrap();
    let newest = registry.activations().await.unwrap().pop().unwrap();
    assert!(last < of_tenant && of_tenant < newest.seq, "{newest:?}");
    assert_eq!(newest.digest, "d2");
    assert_eq!(
        registry.uploads().await.unwrap(),
        [
            uploaded("routing", "d1", 10),
            uploaded("", "d2", 20),
            uploaded("routing/acme", "d1", 99)
        ]
    );
    assert!(registry.remove_revision("d1".into()).await.unwrap());
    assert!(!registry.remove_revision("d1".into()).await.unwrap());
    assert_eq!(registry.component("d1".into()).await.unwrap(), None);
    assert_eq!(registry.uploads().await.unwrap(), [uploaded("", "d2", 20)]);
}

pub async fn keeps_tokens_by_their_hash(place: &Place) {
    let opened = place.open().await;
    let registry = &opened.registry;
    let tenant = |id: &str| Tenant {
        id: id.into(),
        domains: vec![format!("{id}.example")],
        relays: Vec::new(),
        suspended: false,
        bulk_suspended: false,
        wording: None,
        record_inputs: true,
        bulk_quota: None,
    };
    let token = |id: &str, tenant: &str| Token {
        id: id.into(),
        tenant: tenant.into(),
        hash: format!("hash-of-{id}"),
        note: "for the build".into(),
        created_at: T0,
    };
    registry.put_tenant(tenant("a")).await.unwrap();
    let before = registry.version().await.unwrap();
    registry.put_token(token("t1", "a")).await.unwrap();
    assert!(
        registry.version().await.unwrap() > before,
        "others learn of it"
    );
    for refused in [token("t2", "nobody"), token("t1", "a")] {
        let answer = registry.put_token(refused).await;
        assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
    }
    let opened = place.reopen(opened).await;
    let registry = &opened.registry;
    assert_eq!(registry.tokens().await.unwrap(), [token("t1", "a")]);
    let found = registry.token("hash-of-t1".into()).await.unwrap();
    assert_eq!(found, Some(token("t1", "a")));
    assert_eq!(registry.token("hash-of-t2".into()).await.unwrap(), None);
    assert!(registry.remove_token("t1".into()).await.unwrap());
    assert!(!registry.remove_token("t1".into()).await.unwrap());
    assert_eq!(registry.token("hash-of-t1".into()).await.unwrap(), None);
    registry.put_token(token("t3", "a")).await.unwrap();
    assert!(registry.remove_tenant("a".into()).await.unwrap());
    assert_eq!(registry.tokens().await.unwrap(), []);
}

pub async fn keeps_the_newest_decisions(place: &Place) {
    let opened = place.open().await;
    let registry = &opened.registry;
    let row = |tenant: &str, at: i64| DecisionRow {
        id: 0,
        tenant: tenant.into(),
        at: Timestamp(at),
        body: format!("{{\"at\":{at}}}"),
    };
    let rows = (1..=6).map(|at| row(if at % 2 == 0 { "a" } else { "b" }, at));
    registry.keep_decisions(rows.collect()).await.unwrap();
    registry.keep_decisions(Vec::new()).await.unwrap();
    let of = async |tenant: Option<&str>, since: i64, after: u64, max: u32| {
        let query = DecisionQuery {
            tenant: tenant.map(str::to_owned),
            since: Some(Timestamp(since)),
            after,
            max,
        };
        registry.decisions(query).await.unwrap()
    };
    let times = |rows: &[DecisionRow]| rows.iter().map(|r| r.at.0).collect::<Vec<_>>();
    let first = of(None, 2, 0, 2).await;
    assert_eq!(times(&first), [2, 3]);
    assert_eq!(first[0].body, "{\"at\":2}");
    assert_eq!(times(&of(None, 2, first[1].id, 9).await), [4, 5, 6]);
    assert_eq!(times(&of(Some("a"), 3, 0, 9).await), [4, 6]);
    assert_eq!(registry.sweep_decisions(Timestamp(2), 2).await.unwrap(), 2);
    assert_eq!(times(&of(None, 0, 0, 9).await), [3, 4, 5, 6]);
}
