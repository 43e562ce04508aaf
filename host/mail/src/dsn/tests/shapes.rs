//! Reports in the shapes of systems in the field, all written for this test. What a
//! system of that name sends differs in words, not in its shape.

use super::*;

/// Name, header (without the fields that all have), body, and who is reported how.
type Shape = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, Action, &'static str)],
);

use Action::{Delayed, Delivered, Expanded, Failed, Relayed};

const REPORT: &str = "Content-Type: multipart/report; report-type=delivery-status; boundary=\"b\"";

const SHAPES: &[Shape] = &[
    (
        "qmail",
        "From: MAILER-DAEMON@relay.example\nSubject: failure notice",
        "Hi. This is the qmail-send program at relay.example.\nI'm afraid I wasn't able to deliver your message to the following addresses.\n\
         This is a permanent error; I've given up. Sorry it didn't work out.\n\n\
         <ann@one.example>:\n192.0.2.7 does not like recipient.\nRemote host said: 550 5.1.1 <ann@one.example>: no mailbox\nGiving up on 192.0.2.7.\n\n\
         <bob@two.example>:\nUser's disk is over quota.\n\n\
         <eve@three.example>:\nSorry, I couldn't find any host named three.example. (#5.1.2)\n\n\
         --- Below this line is a copy of the message.\n\nReturn-Path: <crm@acme.example>\nMessage-ID: <1@acme.example>\nTo: zoe@elsewhere.example\n\nText\n",
        &[
            ("ann@one.example", Failed, "5.1.1"),
            ("bob@two.example", Failed, "5.2.2"),
            ("eve@three.example", Failed, "5.1.2"),
        ],
    ),
    (
        "Exim with X-Failed-Recipients",
        "From: Mail Delivery System <Mailer-Daemon@relay.example>\nX-Failed-Recipients: ann@one.example,\n bob@two.example\nSubject: Mail delivery failed: returning message to sender",
        "This message was created automatically by mail delivery software.\n\nA message that you sent could not be delivered to one or more of its\n\
         recipients. This is a permanent error. The following address(es) failed:\n\n\
         \x20 ann@one.example\n    host mx.one.example [192.0.2.1]\n    SMTP error from remote mail server after RCPT TO:<ann@one.example>:\n    552 5.2.2 mailbox is full\n\
         \x20 bob@two.example\n    Unrouteable address\n\n\
         ------ This is a copy of the message, including all the headers. ------\n\nMessage-ID: <1@acme.example>\nTo: someone@else.example\n\nText\n",
        &[
            ("ann@one.example", Failed, "5.2.2"),
            ("bob@two.example", Failed, "5.1.2"),
        ],
    ),
    (
        "Exim's warning of a delay",
        "From: Mail Delivery System <Mailer-Daemon@relay.example>\nSubject: Warning: message 1tAbCd-000001 delayed 24 hours",
        "A message that you sent has not yet been delivered to one or more of its\nrecipients after more than 24 hours on the queue.\n\n\
         No action is required on your part. Delivery attempts will continue for\nsome time.\n\n\
         The address to which the message has not yet been delivered is:\n\n  ann@one.example\n    host mx.one.example [192.0.2.1]: 451 4.7.1 come back later\n",
        &[("ann@one.example", Delayed, "4.7.1")],
    ),
    (
        "sendmail",
        REPORT,
        "--b\n\nThe original message was received at Tue, 24 Nov 2026 03:05:00 GMT\n\n   ----- The following addresses had permanent fatal errors -----\n<ann@one.example>\n    (reason: 550 5.1.1 unknown)\n\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; relay.example\nArrival-Date: Tue, 24 Nov 2026 03:05:00 GMT\n\n\
         Final-Recipient: RFC822; ann@one.example\nAction: failed\nStatus: 5.1.1\nRemote-MTA: DNS; mx.one.example\nDiagnostic-Code: SMTP; 550 5.1.1 unknown\n\n--b--\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "sendmail 5, a transcript only",
        "From: Mail Delivery Subsystem <MAILER-DAEMON@relay.example>\nTo: crm@acme.example\nSubject: Returned mail: User unknown",
        "   ----- Transcript of session follows -----\nWhile talking to mx.one.example:\n>>> MAIL From:<crm@acme.example>\n>>> RCPT To:<ann@one.example>\n<<< 550 <ann@one.example>... User unknown\n\
         550 <ann@one.example>... User unknown\n554 <bob@two.example>... 550 Host unknown\n\n   ----- Unsent message follows -----\nFrom: crm@acme.example\nTo: ann@one.example\n\nText\n",
        &[
            ("ann@one.example", Failed, "5.1.1"),
            ("bob@two.example", Failed, "5.1.2"),
        ],
    ),
    (
        "Postfix's delay",
        REPORT,
        "--b\nContent-Type: text/plain\n\n####\n# THIS IS A WARNING ONLY.\n####\n\n<ann@one.example>: connect to mx.one.example[192.0.2.1]:25: Connection timed out\n\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; relay.example\nX-Postfix-Queue-ID: 4AbC\n\nFinal-Recipient: rfc822; ann@one.example\nOriginal-Recipient: rfc822;Ann@one.example\nAction: delayed\nStatus: 4.4.1\nDiagnostic-Code: X-Postfix; connect to mx.one.example[192.0.2.1]:25: Connection timed\n    out\nWill-Retry-Until: Thu, 26 Nov 2026 03:05:00 +0000 (UTC)\n\n--b--\n",
        &[("ann@one.example", Delayed, "4.4.1")],
    ),
    (
        "Exchange Server of old",
        "From: System Administrator <postmaster@acme.example>\nSubject: Undeliverable: Invoice",
        "Your message\n\n  To:      shared@acme.example\n  Subject: Invoice\n  Sent:    Tue, 24 Nov 2026 03:05:00 -0000\n\n\
         did not reach the following recipient(s):\n\nann@one.example on Tue, 24 Nov 2026 03:06:00 -0000\n    The recipient name is not recognized\n    MSEXCH:IMS:ACME:ONE:MAIL 0 (000C05A6)\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "Exchange Online",
        "From: <postmaster@acme.example>\nSubject: Undeliverable: Invoice\nContent-Type: multipart/report; report-type=delivery-status;\n\tboundary=\"b\"",
        "--b\nContent-Type: multipart/alternative; boundary=a\n\n--a\nContent-Type: text/html; charset=\"utf-8\"\nContent-Transfer-Encoding: base64\n\nPGI+YW5uPC9iPg==\n--a--\n\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns;AM0PR01.prod.example\nReceived-From-MTA: dns;CRM\nArrival-Date: Tue, 24 Nov 2026 03:05:00 +0000\n\n\
         Final-Recipient: rfc822;ann@one.example\nAction: failed\nStatus: 5.4.1\nDiagnostic-Code: smtp;550 5.4.1 Recipient address rejected: Access denied. [AM0PR01]\nRemote-MTA: dns;mail.protection.example\nX-Display-Name: ann@one.example\n\n--b--\n",
        &[("ann@one.example", Failed, "5.4.1")],
    ),
    (
        "Gmail of old",
        "From: Mail Delivery Subsystem <mailer-daemon@mail.example>\nX-Failed-Recipients: ann@one.example\nSubject: Delivery Status Notification (Failure)",
        "Delivery to the following recipient failed permanently:\n\n     ann@one.example\n\nTechnical details of permanent failure:\nWe tried to deliver your message, but it was rejected by the server for one.example.\n\n\
         The error that the other server returned was:\n550 5.2.1 <ann@one.example> disabled\n\n----- Original message -----\n\nMessage-ID: <1@acme.example>\nTo: ann@one.example\n",
        &[("ann@one.example", Failed, "5.2.1")],
    ),
    (
        "Gmail",
        REPORT,
        "--b\nContent-Type: multipart/related; boundary=r\n\n--r\nContent-Type: multipart/alternative; boundary=a\n\n--a\nContent-Type: text/plain\n\n** Address not found **\n\nYour message wasn't delivered to ann@one.example because the address couldn't be found.\n--a--\n--r--\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mail.example\nArrival-Date: Tue, 24 Nov 2026 03:05:00 -0800 (PST)\nX-Original-Message-ID: <1@acme.example>\n\n\
         Final-Recipient: rfc822; ann@one.example\nAction: failed\nStatus: 5.1.1\nRemote-MTA: dns; mx.one.example. (192.0.2.1, the server for the domain one.example.)\nDiagnostic-Code: smtp; 550-5.1.1 The account that you tried to reach does not exist. Please try\n 550-5.1.1 again\n 550 5.1.1 - gsmtp\nLast-Attempt-Date: Tue, 24 Nov 2026 03:05:01 -0800 (PST)\n\n--b--\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "Yahoo",
        "From: MAILER-DAEMON@web.example\nSubject: Failure Notice",
        "Sorry, we were unable to deliver your message to the following address.\n\n<ann@one.example>:\n554: 5.7.9: Message not accepted for policy reasons\n\n--- Below this line is a copy of the message.\n\nX-A: b\nMessage-ID: <1@acme.example>\n",
        &[("ann@one.example", Failed, "5.7.9")],
    ),
    (
        "AOL, without empty lines between the recipients",
        REPORT,
        "--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; out.example\nFinal-Recipient: rfc822; ann@one.example\nOriginal-Recipient: rfc822;ann@one.example\nAction: failed\nStatus: 5.2.2\n\
         Diagnostic-Code: smtp; 550 5.2.2 full\nFinal-Recipient: rfc822; bob@two.example\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 unknown\n\n--b--\n",
        &[
            ("ann@one.example", Failed, "5.2.2"),
            ("bob@two.example", Failed, "5.1.1"),
        ],
    ),
    (
        "Amazon SES, fields in another order",
        "From: MAILER-DAEMON@ses.example\nContent-Type: multipart/report; report-type=delivery-status; boundary=\"b\"",
        "--b\nContent-Type: text/plain; charset=us-ascii\n\nAn error occurred while trying to deliver the mail to the following recipients:\nann@one.example\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; a8-50.smtp-out.example\n\nAction: failed\nFinal-Recipient: rfc822; ann@one.example\nDiagnostic-Code: smtp; 550 5.1.1 user unknown\nStatus: 5.1.1\n\n--b--\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "Notes",
        "From: postmaster@notes.example\nSubject: Undeliverable message",
        "------- Failure Reasons  --------\n\nUser not listed in public Name & Address Book\nann@one.example\n\n------- Returned Message --------\nReceived: from a by b\nTo: ann@one.example\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "Domino",
        "From: Postmaster@notes.example\nSubject: DELIVERY FAILURE: User Ann (ann@one.example) not listed in",
        "Your message\n\n  Subject: Invoice\n\nwas not delivered to:\n\n  ann@one.example\n\nbecause:\n\n  User Ann (ann@one.example) not listed in Domino Directory\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "Haraka",
        REPORT,
        "--b\nContent-Type: text/plain; charset=us-ascii\n\nHi. This is the Haraka Mailer program at relay.example.\nI'm afraid I wasn't able to deliver your message to the following addresses.\n\n<ann@one.example>: 550 5.7.1 refused\n\
         --b\nContent-Type: message/delivery-status\n\nOriginal-Envelope-Id: 0A-1B.1\nReporting-MTA: dns;relay.example\nArrival-Date: Tue, 24 Nov 2026 03:05:00 +0000\n\nFinal-Recipient: rfc822;ann@one.example\nAction: failed\nStatus: 5.7.1\nDiagnostic-Code: smtp;550 5.7.1 refused\n\n--b--\n",
        &[("ann@one.example", Failed, "5.7.1")],
    ),
    (
        "OpenSMTPD, whose reason is in the text only",
        "From: Mailer Daemon <MAILER-DAEMON@relay.example>\nSubject: Delivery status notification: error\nContent-Type: multipart/mixed; boundary=b",
        "--b\nContent-Type: text/plain\n\n    Hi!\n\n    This is the MAILER-DAEMON, please DO NOT REPLY to this email.\n\n    An error has occurred while attempting to deliver a message for\n    the following list of recipients:\n\n\
         ann@one.example: 550 5.7.26 not authenticated\nbob@two.example: 452 4.2.2 full\n\n    Below is a copy of the original message:\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; relay.example\n\nFinal-Recipient: rfc822; ann@one.example\nAction: failed\nStatus: 5.0.0\n\nFinal-Recipient: rfc822; bob@two.example\nAction: delayed\nStatus: 4.0.0\n\n--b--\n",
        &[
            ("ann@one.example", Failed, "5.7.26"),
            ("bob@two.example", Delayed, "4.2.2"),
        ],
    ),
    (
        "OpenSMTPD of old",
        "From: Mailer Daemon <MAILER-DAEMON@relay.example>\nSubject: Delivery status notification: error",
        "    Hi!\n\n    An error has occurred while attempting to deliver a message for\n    the following list of recipients:\n\nann@one.example: 530 5.7.0 Must issue a STARTTLS command first\n\n    Below is a copy of the original message:\n\nReceived: from a by b\n",
        &[("ann@one.example", Failed, "5.7.0")],
    ),
    (
        "KumoMTA",
        REPORT,
        "--b\nContent-Type: text/plain; charset=\"us-ascii\"\n\nThe message was received at Tue, 24 Nov 2026 03:05:00 +0000\nfrom CRM and addressed to <ann@one.example>.\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; relay.example\nArrival-Date: Tue, 24 Nov 2026 03:05:00 +0000\n\nFinal-Recipient: rfc822;ann@one.example\nAction: failed\nStatus: 5.0.0 (no such user)\nRemote-MTA: dns; mx.one.example\nDiagnostic-Code: smtp; 550 5.1.1 no such user\nLast-Attempt-Date: Tue, 24 Nov 2026 03:06:00 +0000\n\n--b--\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "Courier",
        "From: \"Courier mail server at relay.example\" <@>\nSubject: NOTICE: mail delivery status.\nContent-Type: multipart/report; report-type=delivery-status; boundary=\"b\"",
        "--b\nContent-Type: text/plain\n\nUNDELIVERABLE MAIL\n\n<ann@one.example>:\n     mx.one.example [192.0.2.1]:\n     <<< 550 User unknown\n\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; relay.example\nReceived-From-MTA: dns; localhost\n\nFinal-Recipient: rfc822; ann@one.example\nAction: failed\nStatus: 5.0.0\nDiagnostic-Code: smtp; 550 5.1.1 User unknown\n\n--b--\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "a web mailer's, with the address quoted",
        "From: MAILER-DAEMON@mail.example\nSubject: Mail delivery failed: returning message to sender",
        "This message was created automatically by mail delivery software.\n\nA message that you sent could not be delivered to one or more of\nits recipients. This is a permanent error. The following address\nfailed:\n\n\"ann@one.example\":\nSMTP error from remote server after RCPT command:\nhost: mx.one.example\n5.2.2 <ann@one.example>... Mailbox Full\n\n\n--- The header of the original message is following. ---\n\nMessage-ID: <1@acme.example>\n",
        &[("ann@one.example", Failed, "5.2.2")],
    ),
    (
        "not in English, with a field to go by",
        "X-Failed-Recipients: ann@one.example\nFrom: mailer-daemon@corp.example\nSubject: =?UTF-8?B?0J/QuNGB0YzQvNC+?=",
        "\u{41a} \u{441}\u{43e}\u{436}\u{430}\u{43b}\u{435}\u{43d}\u{438}\u{44e}:\n\n  ann@one.example\n    host mx.one.example [192.0.2.1]: 550 5.1.1 User Unknown\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "a gateway's sentence",
        "From: MAILER-DAEMON@filter.example\nSubject: Message delivery has failed",
        "Unable to deliver message to: <ann@one.example>\nDelivery failed for the following reason:\nServer mx.one.example[192.0.2.1] failed with: 550 No such user here\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "an operator's sentence",
        "From: MAILER-DAEMON@isp.example\nSubject: Returned mail: Invoice",
        "User's mailbox is full: <ann@one.example>\nUnable to deliver mail.\n",
        &[("ann@one.example", Failed, "5.2.2")],
    ),
    (
        "HTML alone",
        "From: postmaster@isp.example\nSubject: Undeliverable\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable",
        "<html><head><style>p { x: y@z.example }</style></head><body><p>Delivery has failed to these recipients:</p><div>&lt;ann@one.example&gt;</div>=\n<p>550 5.1.1 unknown &amp; gone</p></body></html>\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "nothing but the returned message says to whom",
        "From: MAILER-DAEMON@isp.example\nSubject: Returned mail\nContent-Type: multipart/mixed; boundary=b",
        "--b\n\nThe message was refused: 552 5.3.4 too large\n--b\nContent-Type: message/rfc822\n\nMessage-ID: <1@acme.example>\nTo: Ann <ann@one.example>, bob@two.example\n\nText\n--b--\n",
        &[
            ("ann@one.example", Failed, "5.3.4"),
            ("bob@two.example", Failed, "5.3.4"),
        ],
    ),
    (
        "a boundary that was changed on the way",
        "From: MAILER-DAEMON@relay.example\nContent-Type: multipart/report; report-type=delivery-status; boundary=\"other\"",
        "--b123\nContent-Type: message/delivery-status\n\nFinal-Recipient: rfc822; ann@one.example\nAction: failed\nStatus: 5.1.1\n\n--b123--\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "wrapped by a filter",
        "From: MAILER-DAEMON@filter.example\nSubject: Returned mail\nContent-Type: multipart/mixed; boundary=o",
        "--o\nContent-Type: image/png\n\nx\n--o\nContent-Type: message/rfc822\n\nFrom: MAILER-DAEMON@relay.example\nSubject: failure notice\n\n<ann@one.example>:\n550 5.1.1 unknown\n--o--\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
    (
        "delivered, relayed, expanded",
        REPORT,
        "--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; r.example\n\nFinal-Recipient: rfc822; a@one.example\nAction: delivered (to mailbox)\nStatus: 2.1.5\n\nFinal-Recipient: rfc822; b@one.example\nAction: relayed\nStatus: 2.0.0\n\nFinal-Recipient: rfc822; c@one.example\nAction: expanded\nStatus: 2.0.0\n\n\
         --b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; r.example\n\nFinal-Recipient: rfc822; d@one.example\nAction: deliverable\nStatus: 2.1.5\n\n--b--\n",
        &[
            ("a@one.example", Delivered, "2.1.5"),
            ("b@one.example", Relayed, "2.0.0"),
            ("c@one.example", Expanded, "2.0.0"),
            ("d@one.example", Delivered, "2.1.5"),
        ],
    ),
    (
        "no Status, no Action: the diagnostic says it",
        REPORT,
        "--b\nContent-Type: message/delivery-status\n\nOriginal-Recipient: <ann@one.example>\nDiagnostic-Code: smtp; 550 No such user\nRemote-MTA: 192.0.2.1\n\n--b--\n",
        &[("ann@one.example", Failed, "5.1.1")],
    ),
];

#[test]
fn every_shape_is_read_exactly() {
    for (name, header, body, expected) in SHAPES {
        for line_end in ["\n", "\r\n"] {
            let mail = format!("Return-Path: <>\n{header}\n\n{body}").replace('\n', line_end);
            let report = parse(mail.as_bytes()).unwrap_or_else(|| panic!("{name}: not read"));
            let read: Vec<_> = report
                .recipients
                .iter()
                .map(|r| {
                    let address = r.address.as_ref().or(r.original.as_ref()).unwrap();
                    let cause = r.cause().map_or(String::new(), |s| s.to_string());
                    (address.address.clone(), r.action, cause)
                })
                .collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|(a, action, status)| ((*a).to_owned(), *action, (*status).to_owned()))
                .collect();
            assert_eq!(read, expected, "{name}");
            if body.contains("<1@acme.example>") && !body.contains("X-Original-Message-ID") {
                assert_eq!(
                    report.message_id.as_deref(),
                    Some("1@acme.example"),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_report_is_not_read_as_one() {
    for mail in [
        // An answer of a person, with addresses, codes and the words of a report in it.
        "From: ann@one.example\nSubject: Re: Undeliverable mail\n\nHello,\n\n<bob@two.example>:\n550 5.1.1 unknown\n\nis what I got.\n",
        "From: ann@one.example\nSubject: Fwd: failure notice\n\n> <bob@two.example>:\n> 550 5.1.1 unknown\n",
        "From: ann@one.example\nSubject: Meeting\n\nRecipient: bob@two.example\n550 of us are coming.\n",
        // A holiday notice, with a null return path.
        "Return-Path: <>\nFrom: ann@one.example\nSubject: Away until May\nAuto-Submitted: auto-replied\n\nI am away.\n",
        // An abuse report.
        "Return-Path: <>\nFrom: fbl@isp.example\nSubject: Abuse\nContent-Type: multipart/report; report-type=feedback-report; boundary=b\n\n--b\nContent-Type: text/plain\n\nThis is an abuse report.\n--b\nContent-Type: message/feedback-report\n\nFeedback-Type: abuse\nVersion: 1\n\n--b\nContent-Type: message/rfc822\n\nTo: bob@two.example\n\nText\n--b--\n",
    ] {
        assert_eq!(parse(mail.as_bytes()), None, "{mail}");
    }
}

#[test]
fn a_text_is_bounded() {
    let mut mail = String::from("From: MAILER-DAEMON@x.example\nSubject: failure notice\n\n");
    for n in 0..20_000 {
        mail.push_str(&format!("<u{n}@one.example>: 550 5.1.1 no\u{1b}[31m\n"));
    }
    let report = parse(mail.as_bytes()).unwrap();
    assert!((500..=1000).contains(&report.recipients.len()));
    assert_eq!(report.form, Form::Text);
    let text = &report.recipients[0].diagnostic.as_ref().unwrap().text;
    assert_eq!(text, "550 5.1.1 no [31m");
    let long = format!(
        "From: MAILER-DAEMON@x\n\n<a@b>: 550 {}\n",
        "x".repeat(100_000)
    );
    let report = parse(long.as_bytes()).unwrap();
    assert!(report.recipients[0].diagnostic.as_ref().unwrap().text.len() <= 1000);
}
