//! Reports of other systems.

use proptest::prelude::*;

use super::*;

#[test]
fn reads_what_others_send() {
    let postfix = b"From: MAILER-DAEMON@mx.example (Mail Delivery System)\r\n\
Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"8A/mx.example\"\r\n\r\n\
This is a MIME message.\r\n\r\n--8A/mx.example\r\nContent-Type: text/plain\r\n\r\nFinal-Recipient: not here\r\n\r\n\
--8A/mx.example\r\nContent-Type: message/delivery-status\r\n\r\n\
Reporting-MTA: dns; mx.example\r\nX-Postfix-Queue-ID: 8A\r\nArrival-Date: Tue, 24 Nov 2026 04:05:00 +0100 (CET)\r\n\r\n\
Final-Recipient: rfc822; ann@example.com\r\nOriginal-Recipient: rfc822;Ann@example.com\r\nAction: failed\r\n\
Status: 5.1.1\r\nRemote-MTA: dns; mail.example\r\nDiagnostic-Code: smtp; 550 5.1.1 <ann@example.com>; User\r\n    unknown\r\n\r\n\
--8A/mx.example\r\nContent-Type: text/rfc822-headers\r\n\r\nMessage-ID: <1@x>\r\n\r\n--8A/mx.example--\r\n";
    let report = parse(postfix).unwrap();
    assert_eq!(report.arrival, Some(ACCEPTED));
    assert_eq!(report.message_id.as_deref(), Some("1@x"));
    let ann = &report.recipients[0];
    assert_eq!(
        ann.diagnostic.as_ref().unwrap().text,
        "550 5.1.1 <ann@example.com>; User    unknown"
    );
    assert_eq!(ann.original.as_ref().unwrap().address, "Ann@example.com");

    // Base64, nested in a mixed, LF line ends, one block, status with a comment, no action.
    let nested = b"Content-Type: multipart/mixed; boundary=out\n\n--out\nContent-Type: multipart/report; BOUNDARY = in\n\n\
--in\nContent-Type: message/delivery-status\nContent-Transfer-Encoding: Base64\n\n\
UmVwb3J0aW5nLU1UQTogbXgKRmluYWwtUmVjaXBpZW50OiA8YUBiPgpTdGF0dXM6IDUuMi4yIChmdWxsKQo=\n--in--\n--out--\n";
    let report = parse(nested).unwrap();
    assert_eq!(report.reporting_mta.as_deref(), Some("mx"));
    let only = &report.recipients[0];
    assert_eq!(
        only.address,
        Some(TypedAddress {
            kind: "rfc822".into(),
            address: "a@b".into()
        })
    );
    assert_eq!(
        (only.action, only.status),
        (Action::Failed, status("5.2.2"))
    );

    // No MIME at all.
    let plain = b"Subject: failure\r\n\r\nSorry.\r\n\r\nFinal-Recipient: rfc822;a@b\r\nAction: Delayed (x)\r\nStatus: 4.0.0\r\n";
    assert_eq!(parse(plain).unwrap().recipients[0].action, Action::Delayed);

    for none in [
        &b""[..],
        b"Subject: x\r\n\r\nHello\r\n",
        b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; a\r\n",
        b"Content-Type: message/delivery-status\r\n\r\nFinal-Recipient: rfc822; a@b\r\n",
    ] {
        assert_eq!(parse(none), None);
    }
}

#[test]
fn an_original_indented_with_blanks_of_several_octets_is_read() {
    for blank in ["\u{a0}", "\u{2003}", "\u{2028}", "\t", ""] {
        let text = format!(
            "From: mailer-daemon@x\r\n\r\nbob@example.com\r\n\r\nBelow this line is a copy of the message.\r\n\r\n Received: by a\r\n{blank}Message-ID: <1@x>\r\n"
        );
        let report = parse(text.as_bytes()).unwrap();
        assert_eq!(report.message_id.as_deref(), Some("1@x"), "{blank:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed(bytes in proptest::collection::vec(prop_oneof![
        Just(b"--x\r\n".to_vec()), Just(b"--x--\r\n".to_vec()), Just(b"\r\n".to_vec()),
        Just(b"Content-Type: multipart/report; boundary=x\r\n\r\n".to_vec()),
        Just(b"Content-Type: message/delivery-status\r\n".to_vec()),
        Just(b"Content-Transfer-Encoding: base64\r\n".to_vec()),
        Just(b"Final-Recipient: rfc822; a@b\r\nAction: failed\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..20),
    ], 0..20)) {
        if let Some(report) = parse(&bytes.concat()) {
            prop_assert!(!report.recipients.is_empty());
        }
    }
}
