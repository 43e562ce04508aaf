//! The default exporter, as built.

mod support;

use support::*;
use tidegate_mail::event::Detail;
use tidegate_mail::{
    Enhanced, Event, EventKind, Hop, MessageId, Promise, Stage, TlsInfo, TrafficClass, Verdict,
};
use tidegate_policy::Refused;
use tidegate_queue::{EventRecord, LogKeys, Policy, PolicyFault};

fn record(seq: u64, kind: EventKind, detail: Detail) -> EventRecord {
    EventRecord {
        seq,
        event: Event {
            at: NOW,
            kind,
            message: MessageId::from_i64(0x0123_4567_89ab_cdef),
            recipient: Some(0),
            detail,
        },
        tenant: "acme".to_owned(),
        sender: "crm@acme.example".to_owned(),
        recipient_address: Some("a@x.test".to_owned()),
        size: 5000,
        keys: LogKeys {
            message_id: Some("1@crm".to_owned()),
            record: Some("contact/7".to_owned()),
            subject: Some("\"Grüße\"\t\u{1}".to_owned()),
        },
    }
}

fn delivered() -> Detail {
    Detail {
        attempt: Some(2),
        stage: Some(Stage::Dot),
        verdict: Some(Verdict::Delivered),
        code: Some(250),
        status: Some(Enhanced::new(2, 0, 0)),
        text: Some("250 2.0.0 ok\nqueued".to_owned()),
        hop: Some(Hop {
            host: Some("mx.x.test".to_owned()),
            peer: Some("192.0.2.1:25".parse().unwrap()),
            source: None,
            tls: Some(TlsInfo {
                version: "TLSv1.3".to_owned(),
                cipher: "TLS_AES_128_GCM_SHA256".to_owned(),
                verified: "none".to_owned(),
            }),
            tls_policy: None,
            started: NOW,
            duration_ms: 120,
        }),
        site: Some("x.test".to_owned()),
        promise: Some(Promise {
            class: TrafficClass::Bulk,
            relay: "eu".to_owned(),
            lane: Some("spring".to_owned()),
            priority: 0,
            lifetime_secs: 3600,
            delay_notice_secs: None,
            policy: None,
        }),
        facts: vec![("tag.campaign".to_owned(), "spring".to_owned())],
        ..Detail::default()
    }
}

#[tokio::test]
async fn every_event_is_a_line_of_json_with_all_its_fields() {
    let host = host();
    host.activate("export/file", &prepared("export-jsonl", ""))
        .unwrap();
    let batch = [
        record(7, EventKind::Delivered, delivered()),
        record(8, EventKind::Accepted, Detail::default()),
    ];
    let payloads = host.render("file", &batch).await.unwrap();
    assert_eq!(payloads.len(), 1);
    assert_eq!(payloads[0].content_type, "application/x-ndjson");
    let lines: Vec<serde_json::Value> = std::str::from_utf8(&payloads[0].body)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines[0],
        serde_json::json!({
            "seq": 7, "at": NOW.as_millis(), "kind": "delivered",
            "message": MessageId::from_i64(0x0123_4567_89ab_cdef).to_string(),
            "tenant": "acme", "sender": "crm@acme.example", "recipient": "a@x.test", "size": 5000,
            "message_id": "1@crm", "record_id": "contact/7", "subject": "\"Grüße\"\t\u{1}",
            "attempt": 2, "duration_ms": 120, "site": "x.test", "host": "mx.x.test",
            "peer": "192.0.2.1:25", "tls": "TLSv1.3 TLS_AES_128_GCM_SHA256", "code": 250,
            "enhanced": "2.0.0", "text": "250 2.0.0 ok\nqueued",
            "facts": {
                "stage": "dot", "verdict": "delivered", "tls-verified": "none", "class": "bulk",
                "relay": "eu", "lane": "spring", "lifetime": "3600", "tag.campaign": "spring"
            }
        })
    );
    assert_eq!(lines[1]["kind"], "accepted");
    assert!(lines[1].get("code").is_none() && lines[1].get("facts").is_none());
}

#[tokio::test]
async fn fields_are_selected_renamed_and_filtered() {
    let host = host();
    let config = r#"{"fields":["record_id","kind"],"rename":{"record_id":"crm"},"kinds":["bounced"],"facts":false}"#;
    host.activate("export/crm", &prepared("export-jsonl", config))
        .unwrap();
    let batch = [
        record(1, EventKind::Delivered, delivered()),
        record(2, EventKind::Bounced, Detail::default()),
    ];
    let payloads = host.render("crm", &batch).await.unwrap();
    assert_eq!(
        &payloads[0].body[..],
        b"{\"crm\":\"contact/7\",\"kind\":\"bounced\"}\n"
    );
    assert_eq!(host.render("crm", &batch[..1]).await.unwrap(), []);
    assert_eq!(
        host.render("other", &batch).await,
        Err(PolicyFault::Inactive)
    );
}

#[tokio::test]
async fn a_full_batch_fits_its_bounds() {
    let host = host();
    host.activate("export/file", &prepared("export-jsonl", ""))
        .unwrap();
    let mut detail = delivered();
    detail.text = Some("x".repeat(2048));
    let batch: Vec<_> = (0..512)
        .map(|n| record(n, EventKind::Deferred, detail.clone()))
        .collect();
    let payloads = host.render("file", &batch).await.unwrap();
    let lines = payloads[0].body.iter().filter(|b| **b == b'\n').count();
    assert_eq!(lines, 512);
}

#[test]
fn an_unknown_field_is_refused_with_the_list() {
    match try_prepare(&plugin("export-jsonl"), r#"{"fields":["color"]}"#) {
        Err(Refused::Config(text)) => assert!(
            text.contains("color") && text.contains("record_id"),
            "{text}"
        ),
        other => panic!("{other:?}"),
    }
}

/// A policy that is left alone says nothing about the events: they must not be taken for bad ones.
#[tokio::test]
async fn what_an_open_breaker_keeps_from_a_policy_is_no_fault_of_the_events() {
    let host = host();
    // Past its probation: it is not rolled back.
    let long = std::time::Duration::from_secs(3600);
    host.restore("export/file", &prepared("export-jsonl", ""), None, long)
        .unwrap();
    // More than a call's memory.
    let large = || Detail {
        text: Some("x".repeat(64 * 1024)),
        ..delivered()
    };
    let batch: Vec<_> = (0..512)
        .map(|seq| record(seq, EventKind::Delivered, large()))
        .collect();
    for n in 1..=7 {
        let fault = host.render("file", &batch).await.unwrap_err();
        assert_eq!(
            matches!(fault, PolicyFault::Broken(_)),
            n <= 5,
            "{n}: {fault}"
        );
    }
    let good = [record(600, EventKind::Delivered, delivered())];
    let fault = host.render("file", &good).await.unwrap_err();
    assert!(matches!(fault, PolicyFault::Temporary(_)), "{fault}");
}
