//! The reader of delivery reports.

use tidegate_mail::dsn::{Report, TypedAddress, parse};

/// Input: a message that may be a report.
///
/// Invariants: a report has at least one recipient and at most the limit, each named by an original or a
/// final address; types are lower-case atoms; no text has a control character.
pub fn dsn(bytes: &[u8]) {
    let Some(report) = parse(bytes) else { return };
    check(&report);
}

fn check(report: &Report) {
    assert!((1..=1000).contains(&report.recipients.len()));
    for text in [
        &report.reporting_mta,
        &report.envelope_id,
        &report.message_id,
    ] {
        assert!(!text.as_deref().is_some_and(crate::has_control));
    }
    assert!(
        report
            .message_id
            .as_deref()
            .is_none_or(|id| id.len() <= 500)
    );
    for recipient in &report.recipients {
        assert!(recipient.original.is_some() || recipient.address.is_some());
        for address in [&recipient.original, &recipient.address]
            .into_iter()
            .flatten()
        {
            let TypedAddress { kind, address } = address;
            assert!(!kind.is_empty() && is_atom(kind), "{kind:?}");
            assert!(!crate::has_control(address));
        }
        if let Some(diagnostic) = &recipient.diagnostic {
            assert!(is_atom(&diagnostic.kind));
            assert!(!crate::has_control(&diagnostic.text));
        }
        assert!(
            !recipient
                .remote_mta
                .as_deref()
                .is_some_and(crate::has_control)
        );
        assert!(
            recipient
                .status
                .is_none_or(|s| matches!(s.class, 2 | 4 | 5))
        );
    }
}

fn is_atom(kind: &str) -> bool {
    kind.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
