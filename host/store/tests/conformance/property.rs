//! Random operations against the model.

use std::sync::Arc;
use std::time::Duration;

use tidegate_mail::{End, EventKind, MessageId, Owes, State};
use tidegate_queue::*;

use crate::common::*;

pub async fn agrees_with_the_model(place: &Place) {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::{Config, TestRunner};
    let mut runner = TestRunner::new(Config::default());
    let operation = (0..12u8, 0..1000usize, 0..3u8, 0..40_000usize);
    let operations = proptest::collection::vec(operation, 150)
        .new_tree(&mut runner)
        .unwrap()
        .current();
    let mut model = model::Model::default();
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

async fn compare(store: &Arc<dyn Store>, model: &model::Model, context: &str) {
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
