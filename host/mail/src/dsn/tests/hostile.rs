//! Whatever clients, headers, servers and tenants write, the notice keeps its form.

use proptest::prelude::*;

use super::*;

/// Bytes that would end a line, a field, a header or a part if they were let through.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\r\n".to_owned()),
        Just("\n".to_owned()),
        Just("\r".to_owned()),
        Just("\r\n\r\n".to_owned()),
        Just("\r\nBcc: x@y\r\n".to_owned()),
        Just("\r\n\r\nFinal-Recipient: rfc822; z@z\r\nAction: delivered\r\n".to_owned()),
        Just("\r\n--=_1m8pyt3kcc000.0\r\n".to_owned()),
        Just("=?utf-8?Q?=0D=0ABcc:_x?=".to_owned()),
        Just("{host}{until}".to_owned()),
        Just("\0\u{1b}\u{85}\u{2028}\u{202e}".to_owned()),
        "[ -~]{0,30}",
        "\\PC{0,20}",
        Just("x".repeat(1200)),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|p| p.concat())
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => (200u16..600, 0u16..1000, 0u16..1000, hostile()).prop_map(|(code, s, d, text)| {
            let class = Reply { code, enhanced: None, text: String::new() }.status().class;
            Outcome::from_reply(Stage::Rcpt, Reply::new(code, Enhanced::new(class, s, d), text))
        }),
        1 => Just(Outcome::from_fault(Stage::Dns, Fault::NoSuchDomain)),
        1 => Just(Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_hostile_gets_through(
        kind in prop_oneof![Just(Kind::Failure), Just(Kind::Delay), Just(Kind::Success)],
        sender in prop_oneof![Just("sales@crm.example"), Just("jürgen@crm.example"), Just("\"a  > b\"@c")],
        rcpts in proptest::collection::vec((
            prop_oneof![Just("ann@example.com"), Just("\"> <\"@b"), Just("用户@例え.テスト")],
            proptest::option::of((prop_oneof![Just("rfc822"), Just("utf-8")], "[!-;=-~]{1,40}")),
            any_outcome(), hostile(), any::<bool>(),
        ), 1..4),
        subject in proptest::option::of(hostile()),
        message_id in proptest::option::of(hostile()),
        full in any::<bool>(),
        content in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            hostile().prop_map(String::into_bytes),
            hostile().prop_map(|h| format!("Subject: {h}\r\n\r\n{h}\r\n").into_bytes()),
        ],
        contact in proptest::option::of(hostile()),
        opening in hostile(),
    ) {
        let recipients = rcpts.into_iter().map(|(address, original, outcome, host, expired)| {
            let mut rcpt = to(address);
            rcpt.original = original.map(|(kind, address)| OriginalRecipient { kind: kind.into(), address });
            let mut state = after(&[]);
            state = RecipientState {
                state: State::Done(if expired { End::Expired } else { End::Bounced }),
                attempts: 1,
                last: Some(crate::recipient::LastAttempt { at: at(1), host: Some(host), outcome, heard: None }),
                ..state
            };
            (rcpt, state)
        }).collect();
        let mut case = Case::new(kind, recipients);
        case.sender = Address::parse(sender).unwrap();
        case.subject = subject;
        case.message_id = message_id;
        case.ret = full.then_some(Ret::Full);
        case.content = content;
        case.wording.contact = contact;
        case.wording.from_name = opening.clone().into();
        case.wording.language = opening.clone().into();
        case.wording.texts.failure.opening = opening.into();
        is_sound(&case, &case.compose());
    }
}
