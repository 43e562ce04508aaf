//! Shadows of export policies, through the port, with real components.

mod support;

use support::{NOW, host, prepared, trapping_exporter, try_prepare};
use tidegate_mail::event::Detail;
use tidegate_mail::{Event, EventKind, MessageId};
use tidegate_policy::compare::{Compared, batches::Report};
use tidegate_policy::{PolicyHost, Prepared, TrialKind};
use tidegate_queue::{EventRecord, LogKeys, Policy, PolicyFault};

const SLOT: &str = "export/file";

fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<EventRecord> {
    let record = |seq| EventRecord {
        seq,
        event: Event {
            at: NOW,
            kind: EventKind::Delivered,
            message: MessageId::from_i64(7),
            recipient: Some(0),
            detail: Detail::default(),
        },
        tenant: "acme".to_owned(),
        sender: "crm@acme.example".to_owned(),
        recipient_address: Some("a@x.test".to_owned()),
        size: 5000,
        keys: LogKeys::default(),
    };
    seqs.map(record).collect()
}

fn lines_of(fields: &str) -> Prepared {
    prepared("export-jsonl", &format!(r#"{{"fields":{fields}}}"#))
}

fn compared(host: &PolicyHost) -> Report {
    match host.trials().remove(0).1.compared {
        Some(Compared::Batches(report)) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_shadow_renders_the_same_batches_aside_and_nothing_of_it_is_handed_over() {
    let host = host();
    let (old, new) = (lines_of(r#"["seq"]"#), lines_of(r#"["seq","kind"]"#));
    host.activate(SLOT, &old).unwrap();
    host.try_out(SLOT, &new, TrialKind::Shadow).unwrap();
    let mut aside = host.rendered_aside().unwrap();
    let batch = events(1..=3);
    let payloads = host.render("file", &batch).await.unwrap();
    assert_eq!(
        &payloads[0].body[..],
        b"{\"seq\":1}\n{\"seq\":2}\n{\"seq\":3}\n"
    );
    assert_eq!(compared(&host).batches, 0, "not before the answer is given");
    host.render_aside(aside.try_recv().unwrap()).await;
    // What was not taken comes again, in smaller parts at last, and is no news.
    host.render("file", &batch).await.unwrap();
    host.render("file", &batch[..1]).await.unwrap();
    assert!(aside.try_recv().is_err());
    host.render("file", &events(4..=4)).await.unwrap();
    host.render_aside(aside.try_recv().unwrap()).await;
    let report = compared(&host);
    assert_eq!((report.batches, report.events), (2, 4));
    assert_eq!(report.changed_batches, 2);
    assert_eq!(
        (report.in_force.bytes, report.trial.bytes),
        (40, 40 + 4 * 19)
    );
    let change = &report.changes[0];
    assert_eq!(
        (change.from.as_str(), change.to.as_str()),
        ("application/x-ndjson", "other bytes")
    );
    assert_eq!((change.examples[0].first, change.examples[0].last), (1, 3));
    assert!(report.cost.max > 0);

    // Another configuration that renders the same.
    host.try_out(SLOT, &lines_of(r#"[ "seq" ]"#), TrialKind::Shadow)
        .unwrap();
    host.render("file", &batch).await.unwrap();
    host.render_aside(aside.try_recv().unwrap()).await;
    let report = compared(&host);
    assert_eq!((report.batches, report.changed_batches), (1, 0));
}

#[tokio::test]
async fn a_shadow_that_traps_or_has_no_time_skips_events_and_disturbs_nobody() {
    let host = host();
    host.activate(SLOT, &lines_of(r#"["seq"]"#)).unwrap();
    let trapping = try_prepare(&trapping_exporter(), "").unwrap();
    host.try_out(SLOT, &trapping, TrialKind::Shadow).unwrap();
    let mut aside = host.rendered_aside().unwrap();
    // Two wait, the others have no place.
    for n in 0..5 {
        let batch = events(n * 10 + 1..=n * 10 + 10);
        assert!(host.render("file", &batch).await.is_ok());
    }
    assert_eq!(host.trials()[0].1.skipped, 30);
    for n in 5..15 {
        while let Ok(batch) = aside.try_recv() {
            host.render_aside(batch).await;
        }
        let batch = events(n * 10 + 1..=n * 10 + 10);
        assert!(host.render("file", &batch).await.is_ok());
    }
    // After five failures it is left alone.
    let report = compared(&host);
    assert_eq!((report.batches, report.failures.calls()), (5, 5));
    assert_eq!(host.trials()[0].1.skipped, 30 + 60);
    assert!(host.incidents().unwrap().try_recv().is_err());
    // Nothing in force: nothing is rendered, and there is nothing to compare with.
    host.deactivate(SLOT);
    while aside.try_recv().is_ok() {}
    let answer = host.render("file", &events(900..=901)).await;
    assert_eq!(answer, Err(PolicyFault::Inactive));
    assert!(aside.try_recv().is_err());
}

#[tokio::test]
async fn a_canary_of_an_exporter_is_refused_with_the_reason() {
    let host = host();
    let canary = TrialKind::Canary { permille: 500 };
    let refused = host.try_out(SLOT, &lines_of(r#"["seq"]"#), canary);
    let words = refused.unwrap_err().to_string();
    assert!(
        words.contains("two formats") && words.contains("shadow"),
        "{words}"
    );
    assert!(host.trials().is_empty());
}
