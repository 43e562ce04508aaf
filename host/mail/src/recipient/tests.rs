//! The table of the state machine: every pair of state and input, then the rules about
//! delays, lifetimes and the last words of a destination.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{Enhanced, Fault, Stage, TrafficClass};

const HOUR: i64 = 3600;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_795_489_500 + secs)
}

fn promise() -> Promise {
    Promise {
        class: TrafficClass::Transactional,
        relay: "direct".into(),
        lane: None,
        priority: 0,
        lifetime_secs: 48 * 3600,
        delay_notice_secs: Some(4 * 3600),
        policy: None,
    }
}

fn rights(notify: Notify) -> Rights {
    Rights {
        notify,
        null_sender: false,
        automatic: false,
    }
}

fn on(success: bool, failure: bool, delay: bool) -> Notify {
    Notify::On {
        success,
        failure,
        delay,
    }
}

fn reply(code: u16, text: &str) -> Outcome {
    let class = (code / 100) as u8;
    Outcome::from_reply(
        Stage::Rcpt,
        Reply::new(code, Enhanced::new(class, 1, 1), text),
    )
}

fn attempted(outcome: Outcome, next_slot: Timestamp) -> Input {
    Input::Attempted {
        outcome,
        host: Some("mx.example".into()),
        next_slot,
    }
}

fn accepted() -> RecipientState {
    RecipientState::accepted(&promise(), at(0))
}

/// What a cell of the table says: the next state with what it owes, or which input is illegal.
type Cell = Result<(State, Owes), &'static str>;

#[track_caller]
fn check(from: &RecipientState, input: Input, now: Timestamp, cell: Cell) -> RecipientState {
    let what = format!("{:?} owing {:?}: {input:?}", from.state, from.owes);
    match step(from, input, &promise(), rights(on(true, true, true)), now) {
        Ok(to) => {
            assert_eq!(Ok((to.state, to.owes)), cell, "{what}");
            to
        }
        Err(illegal) => {
            assert_eq!(Err(illegal.input), cell, "{what}");
            assert_eq!((illegal.state, illegal.owes), (from.state, from.owes));
            from.clone()
        }
    }
}

#[test]
fn a_waiting_recipient() {
    let now = at(60);
    let slot = at(120);
    let waiting = State::Waiting { due: slot };
    for owes in [Owes::None, Owes::Delay] {
        let mut from = accepted();
        from.owes = owes;
        let passed_on = Outcome {
            dsn_passed_on: true,
            ..reply(250, "queued")
        };
        let table: [(Input, Cell); 12] = [
            (
                attempted(reply(250, "ok"), slot),
                Ok((State::Done(End::Sent), Owes::Success)),
            ),
            (
                attempted(passed_on, slot),
                Ok((State::Done(End::Sent), Owes::None)),
            ),
            (
                attempted(reply(550, "no"), slot),
                Ok((State::Done(End::Bounced), Owes::Failure)),
            ),
            (
                attempted(Outcome::from_fault(Stage::Dns, Fault::NullMx), slot),
                Ok((State::Done(End::Bounced), Owes::Failure)),
            ),
            (attempted(reply(450, "later"), slot), Ok((waiting, owes))),
            (attempted(reply(421, "bye"), slot), Ok((waiting, owes))),
            (
                attempted(
                    Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout),
                    slot,
                ),
                Ok((waiting, owes)),
            ),
            (
                attempted(Outcome::uncertain(Fault::Timeout), slot),
                Ok((waiting, owes)),
            ),
            (attempted(Outcome::withdrawn(), slot), Ok((waiting, owes))),
            (Input::Expired, Err("expiry before the end of the lifetime")),
            (
                Input::Cancelled,
                Ok((State::Done(End::Cancelled), Owes::None)),
            ),
            (Input::Retry, Ok((State::Waiting { due: now }, owes))),
        ];
        for (input, cell) in table {
            let withdrawn = matches!(&input, Input::Attempted { outcome, .. }
                if outcome.verdict == Verdict::Withdrawn);
            let counts = matches!(input, Input::Attempted { .. }) && !withdrawn;
            let to = check(&from, input, now, cell);
            assert_eq!(to.attempts, u32::from(counts));
            assert_eq!(to.last.is_some(), counts);
            assert_eq!(to.expires_at, from.expires_at);
        }
        // Before its limit a delay is nothing to tell.
        check(&from, Input::DelayLimit, now, Ok((from.state, owes)));
    }
    check(
        &accepted(),
        Input::NoticePaid,
        now,
        Err("a notice that is not owed"),
    );
    let mut owing = accepted();
    owing.owes = Owes::Delay;
    check(
        &owing,
        Input::NoticePaid,
        now,
        Ok((owing.state, Owes::None)),
    );
}

#[test]
fn a_recipient_that_is_done() {
    let slot = at(120);
    for end in [End::Sent, End::Bounced, End::Expired, End::Cancelled] {
        for owes in [Owes::None, Owes::Delay, Owes::Failure, Owes::Success] {
            let mut from = accepted();
            from.state = State::Done(end);
            from.owes = owes;
            let late = at(50 * HOUR);
            for outcome in [
                reply(250, ""),
                reply(550, ""),
                reply(450, ""),
                Outcome::withdrawn(),
            ] {
                check(&from, attempted(outcome, slot), late, Err("an attempt"));
            }
            check(&from, Input::Expired, late, Err("expiry"));
            check(&from, Input::DelayLimit, late, Err("a delay"));
            check(&from, Input::Cancelled, late, Err("cancelling"));
            check(&from, Input::Retry, late, Err("a retry"));
            let paid = if owes == Owes::None {
                Err("a notice that is not owed")
            } else {
                Ok((State::Done(end), Owes::None))
            };
            check(&from, Input::NoticePaid, late, paid);
        }
    }
}

#[test]
fn the_lifetime_ends_in_every_way() {
    let end = at(48 * HOUR);
    let expired = Ok((State::Done(End::Expired), Owes::Failure));
    let from = accepted();
    assert_eq!(from.expires_at, end);
    for outcome in [
        reply(450, "later"),
        Outcome::from_fault(Stage::Connect, Fault::ConnectRefused),
        Outcome::uncertain(Fault::ConnectionLost),
    ] {
        let to = check(
            &from,
            attempted(outcome.clone(), at(49 * HOUR)),
            end,
            expired,
        );
        assert_eq!(to.last.unwrap().outcome, outcome);
    }
    // Held, throttled or suspended until the end: no attempt.
    let to = check(&from, Input::Expired, end, expired);
    assert_eq!((to.attempts, to.last), (0, None));
    // One that was taken back is not blamed for the time; the next input is the expiry.
    let due = Ok((State::Waiting { due: end }, Owes::None));
    check(
        &from,
        attempted(Outcome::withdrawn(), at(49 * HOUR)),
        end,
        due,
    );
    // The last attempt may succeed, and a slot never lies past the end.
    check(
        &from,
        attempted(reply(250, ""), end),
        end,
        Ok((State::Done(End::Sent), Owes::Success)),
    );
    check(
        &from,
        attempted(reply(450, ""), at(52 * HOUR)),
        at(47 * HOUR),
        Ok((State::Waiting { due: end }, Owes::Delay)),
    );
    check(
        &from,
        Input::Retry,
        at(49 * HOUR),
        Ok((State::Waiting { due: end }, Owes::None)),
    );
}

#[test]
fn a_delay_is_owed_once() {
    let limit = at(4 * HOUR);
    let slot = at(5 * HOUR);
    let waiting = State::Waiting { due: slot };
    let early = check(
        &accepted(),
        attempted(reply(450, ""), slot),
        limit.minus(Duration::from_millis(1)),
        Ok((waiting, Owes::None)),
    );
    assert!(!early.delay_reported);
    let late = check(
        &early,
        attempted(reply(450, ""), slot),
        limit,
        Ok((waiting, Owes::Delay)),
    );
    assert!(late.delay_reported);
    let still = check(
        &late,
        attempted(reply(450, ""), slot),
        at(5 * HOUR),
        Ok((waiting, Owes::Delay)),
    );
    let paid = check(
        &still,
        Input::NoticePaid,
        at(5 * HOUR),
        Ok((waiting, Owes::None)),
    );
    check(
        &paid,
        attempted(reply(450, ""), slot),
        at(6 * HOUR),
        Ok((waiting, Owes::None)),
    );
    check(
        &paid,
        Input::DelayLimit,
        at(6 * HOUR),
        Ok((waiting, Owes::None)),
    );
    // Without any attempt to notice it, and superseded by what comes before it is paid.
    let noticed = check(&early, Input::DelayLimit, limit, Ok((waiting, Owes::Delay)));
    check(
        &noticed,
        attempted(reply(550, ""), slot),
        slot,
        Ok((State::Done(End::Bounced), Owes::Failure)),
    );
    // Past the lifetime there is only the failure to report.
    check(
        &early,
        Input::DelayLimit,
        at(48 * HOUR),
        Ok((waiting, Owes::None)),
    );
}

#[test]
fn the_sender_has_a_say_in_what_is_owed() {
    let slot = at(5 * HOUR);
    let owes = |rights: Rights, input: Input| {
        step(&accepted(), input, &promise(), rights, at(4 * HOUR))
            .unwrap()
            .owes
    };
    let failed = || attempted(reply(550, ""), slot);
    let late = || attempted(reply(450, ""), slot);
    let sent = || attempted(reply(250, ""), slot);
    for (notify, success, failure, delay) in [
        (Notify::Absent, false, true, true),
        (Notify::Never, false, false, false),
        (on(true, false, false), true, false, false),
        (on(false, true, false), false, true, false),
        (on(false, false, true), false, false, true),
        (on(true, true, true), true, true, true),
    ] {
        let or_none = |yes: bool, owes: Owes| if yes { owes } else { Owes::None };
        let r = rights(notify);
        assert_eq!(
            owes(r, sent()),
            or_none(success, Owes::Success),
            "{notify:?}"
        );
        assert_eq!(
            owes(r, failed()),
            or_none(failure, Owes::Failure),
            "{notify:?}"
        );
        assert_eq!(owes(r, late()), or_none(delay, Owes::Delay), "{notify:?}");
        // A null reverse-path: nobody to tell.
        let null = Rights {
            null_sender: true,
            ..r
        };
        for input in [sent(), failed(), late()] {
            assert_eq!(owes(null, input), Owes::None, "{notify:?}");
        }
        // List and automatic mail: a delay is told only to who asked for it.
        let automatic = Rights {
            automatic: true,
            ..r
        };
        assert_eq!(
            owes(automatic, late()),
            or_none(notify.asks_delay(), Owes::Delay),
            "{notify:?}"
        );
        assert_eq!(
            owes(automatic, failed()),
            or_none(failure, Owes::Failure),
            "{notify:?}"
        );
        let refused = RecipientState::refused(reply(550, "not by this route"), r, at(0));
        assert_eq!(refused.owes, or_none(failure, Owes::Failure));
        assert_eq!(refused.state, State::Done(End::Bounced));
    }
    let never = Promise {
        delay_notice_secs: None,
        ..promise()
    };
    let to = step(
        &accepted(),
        late(),
        &never,
        rights(on(true, true, true)),
        at(40 * HOUR),
    )
    .unwrap();
    assert_eq!(to.owes, Owes::None);
}

#[test]
fn the_last_words_of_a_server_outlive_later_silence() {
    let slot = at(120);
    let mut state = accepted();
    let mut attempt = |outcome: Outcome, host: &str, secs: i64| {
        let input = Input::Attempted {
            outcome,
            host: Some(host.into()),
            next_slot: slot,
        };
        state = step(&state, input, &promise(), rights(Notify::Absent), at(secs)).unwrap();
        state.last.clone().unwrap()
    };
    let silence = || Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout);
    assert_eq!(attempt(silence(), "a", 0).last_reply(), None);
    attempt(reply(450, "greylisted"), "b", 60);
    attempt(silence(), "c", 120);
    let last = attempt(silence(), "d", 180);
    let (words, host) = last.last_reply().unwrap();
    assert_eq!((words.text.as_str(), host), ("greylisted", Some("b")));
    assert_eq!(last.host.as_deref(), Some("d"));
    let json = serde_json::to_string(&last).unwrap();
    assert_eq!(serde_json::from_str::<LastAttempt>(&json).unwrap(), last);
    let last = attempt(reply(452, "full"), "e", 240);
    assert_eq!(last.heard, None);
    assert_eq!(last.last_reply().unwrap().0.text, "full");
}

fn any_input() -> impl Strategy<Value = Input> {
    let outcome = prop_oneof![
        (200u16..600).prop_map(|code| reply(code, "text")),
        Just(Outcome::from_fault(Stage::Dns, Fault::NoSuchDomain)),
        Just(Outcome::from_fault(Stage::Connect, Fault::ConnectTimeout)),
        Just(Outcome::uncertain(Fault::Timeout)),
        Just(Outcome::withdrawn()),
    ];
    prop_oneof![
        6 => (outcome, any::<i64>()).prop_map(|(o, slot)| attempted(o, Timestamp(slot))),
        1 => Just(Input::Expired),
        2 => Just(Input::DelayLimit),
        1 => Just(Input::Cancelled),
        1 => Just(Input::Retry),
        2 => Just(Input::NoticePaid),
    ]
}

fn any_notify() -> impl Strategy<Value = Notify> {
    prop_oneof![
        Just(Notify::Absent),
        Just(Notify::Never),
        any::<(bool, bool, bool)>().prop_map(|(s, f, d)| on(s, f, d)),
    ]
}

proptest! {
    #[test]
    fn whatever_happens(
        notify in any_notify(),
        null_sender in any::<bool>(),
        automatic in any::<bool>(),
        delay_notice_secs in proptest::option::of(0u32..300_000),
        lifetime_secs in 0u32..300_000,
        inputs in proptest::collection::vec((any_input(), 0i64..40_000), 0..20),
    ) {
        let promise = Promise { delay_notice_secs, lifetime_secs, ..promise() };
        let rights = Rights { notify, null_sender, automatic };
        let mut state = RecipientState::accepted(&promise, at(0));
        let (mut now, mut delays, mut ends) = (at(0), 0, 0);
        for (input, passed) in inputs {
            now = now.plus(Duration::from_secs(passed as u64));
            let paid = input == Input::NoticePaid;
            let before = state.clone();
            let Ok(after) = step(&before, input, &promise, rights, now) else { continue };
            if let State::Waiting { due } = after.state {
                prop_assert!(due <= after.expires_at);
                prop_assert!(!before.is_done());
            }
            if before.is_done() {
                prop_assert!(paid);
                prop_assert_eq!(after.state, before.state);
            }
            ends += u32::from(after.is_done() && !before.is_done());
            delays += u32::from(after.owes == Owes::Delay && before.owes != Owes::Delay);
            prop_assert!(after.attempts - before.attempts <= 1);
            prop_assert_eq!(after.expires_at, before.expires_at);
            if null_sender || notify == Notify::Never {
                prop_assert_eq!(after.owes, Owes::None);
            }
            if paid {
                prop_assert_eq!(after.owes, Owes::None);
                prop_assert!(before.owes != Owes::None);
            }
            let owed_by = match after.owes {
                Owes::None => true,
                Owes::Delay => !after.is_done() && after.delay_reported,
                Owes::Failure => matches!(after.state, State::Done(End::Bounced | End::Expired)),
                Owes::Success => after.state == State::Done(End::Sent),
            };
            prop_assert!(owed_by);
            state = after;
        }
        prop_assert!(delays <= 1);
        prop_assert!(ends <= 1);
    }
}
