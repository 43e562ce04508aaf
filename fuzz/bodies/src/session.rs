//! The command parser and the session around it.

use crate::driver::{Answers, Driver, config};
use crate::input::Input;

const LOGIN: &[u8] = b"EHLO c\r\nAUTH PLAIN AHVzZXIAc2VjcmV0\r\n";

/// Input: a byte of flags, the size of the pieces, then what a client sends.
///
/// Invariants, besides those of each action (see `driver`): replies are well-formed and bounded by
/// the number of lines sent, little input waits, only a logged-in client has mail accepted, nothing sent in
/// clear behind STARTTLS survives it, and any split of the input gives the same actions.
pub fn session(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let size = usize::from(input.byte() % 64) + 1;
    let client = input.rest();
    let flag = |bit: u8| flags & (1 << bit) != 0;
    let (starttls, repair, tls) = (flag(0), flag(1), flag(2));
    let answers = Answers {
        right_password: !flag(3),
        refuse_content: flag(4),
        code: match flags >> 6 {
            0 | 1 => 250,
            2 => 451,
            _ => 421,
        },
    };
    let config = config(starttls, repair);
    let run = |size: usize| {
        let mut driver = Driver::new(&config, tls, answers);
        if flag(5) {
            driver.feed(LOGIN);
        }
        driver.feed_by(size, client);
        // A content under way may have been given up already, or not yet.
        if !driver.session.is_between_messages() {
            driver.forget_content();
        }
        driver
    };
    let whole = run(client.len());
    let pieces = run(size);
    let single = run(1);
    // Whether bytes follow STARTTLS at once is seen only where they come together.
    if !starttls || tls {
        assert_eq!(whole.events, pieces.events);
        assert_eq!(whole.events, single.events);
    }
}
