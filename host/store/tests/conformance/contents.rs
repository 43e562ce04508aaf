//! Contents: streamed in, read in parts, given up; and hostile text.

use bytes::Bytes;
use tidegate_mail::EventKind;
use tidegate_queue::*;

use crate::common::*;

pub async fn streams_large_contents(place: &Place) {
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

pub async fn a_content_is_accepted_once(place: &Place) {
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

pub async fn hostile_text_round_trips(place: &Place) {
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
