//! The readers of a peer's replies: the one that the client lives by, which finds the end and
//! the code, and the one that keeps the words.

use tidegate_mail::reply::frame::{self, Frame, Framer};
use tidegate_mail::reply::{BadReply, ReplyReader};
use tidegate_mail::{Outcome, Reply, Stage, Verdict};

use crate::input::Input;

/// Input: the size of the pieces, then what a server sends.
///
/// Invariants: any split gives the same replies and the same error; a reply takes nothing of what
/// follows it; codes and texts are within their limits and free of controls and of what reorders
/// text; the class of the code decides; sent on to a client, a reply is one reply with its code. What
/// the framer takes for a reply is what the reader reads, and any split gives the same frames.
pub fn reply(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = usize::from(input.byte() % 32) + 1;
    let server = input.rest();
    let (whole, error, used) = read(server, server.len());
    let pieces = read(server, size);
    assert_eq!(whole, pieces.0);
    assert_eq!(error, pieces.1);
    assert!(used <= server.len());
    for reply in &whole {
        check(reply);
    }
    framed(server, size, &whole, error.is_some());
    // The first reply, alone, is read from the bytes it took and no more.
    if let Ok((used, Some(first))) = ReplyReader::new().feed(server) {
        assert_eq!(server[used - 1], b'\n');
        let again = ReplyReader::new().feed(&server[..used]);
        assert_eq!(again, Ok((used, Some(first))));
    }
}

fn framed(server: &[u8], size: usize, replies: &[Reply], bad: bool) {
    let frames = frames(server, server.len());
    assert_eq!(frames, self::frames(server, size));
    let mut at = 0;
    for (n, frame) in frames.0.iter().enumerate() {
        let reply = replies.get(n).expect("a frame is a reply");
        assert_eq!(frame.code, reply.code);
        let read = ReplyReader::new().feed(&server[at..]);
        assert_eq!(read, Ok((frame.len, Some(reply.clone()))));
        // The keywords of EHLO are looked for in these.
        for line in frame::lines(&server[at..at + frame.len]) {
            assert!(!line.contains(&b'\n'));
        }
        at += frame.len;
    }
    // It gives up sooner, and never where the reader has another reply, but on long ones.
    if frames.0.len() < replies.len() {
        assert!(frames.1 && server.len() > 64 * 1024);
    }
    assert!(frames.1 || !bad, "read as garbage, framed as none");
}

/// The frames, and whether the rest is garbage.
fn frames(server: &[u8], size: usize) -> (Vec<Frame>, bool) {
    let mut framer = Framer::default();
    let mut frames = Vec::new();
    let (mut start, mut end) = (0, 0);
    loop {
        match framer.find(&server[start..end]) {
            Ok(Some(frame)) => {
                start += frame.len;
                assert!(start <= end);
                frames.push(frame);
            }
            Ok(None) if end == server.len() => return (frames, false),
            Ok(None) => end = server.len().min(end + size.max(1)),
            Err(frame::Garbled) => return (frames, true),
        }
    }
}

fn read(server: &[u8], size: usize) -> (Vec<Reply>, Option<BadReply>, usize) {
    let mut reader = ReplyReader::new();
    let mut replies = Vec::new();
    let mut total = 0;
    for mut piece in server.chunks(size.max(1)) {
        while !piece.is_empty() {
            match reader.feed(piece) {
                Ok((used, reply)) => {
                    assert!(used <= piece.len());
                    assert!(used > 0, "no progress");
                    assert!(reply.is_some() || used == piece.len());
                    assert!(reply.is_none() || !reader.is_midway());
                    total += used;
                    piece = &piece[used..];
                    replies.extend(reply);
                }
                Err(error) => {
                    if let BadReply::Garbled(text) = &error {
                        assert!(!crate::has_control(text) && text.len() <= 240);
                    }
                    return (replies, Some(error), total);
                }
            }
        }
    }
    (replies, None, total)
}

fn check(reply: &Reply) {
    assert!((200..600).contains(&reply.code));
    assert!(reply.text.len() <= Reply::MAX_TEXT);
    let bad = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!reply.text.contains(bad), "{reply:?}");
    let line = reply.to_string();
    assert!(!line.contains(char::is_control));

    let outcome = Outcome::from_reply(Stage::Rcpt, reply.clone());
    let (verdict, class) = match reply.code / 100 {
        2 => (Verdict::Delivered, 2),
        5 => (Verdict::Permanent, 5),
        _ => (Verdict::Temporary, 4),
    };
    assert_eq!((outcome.verdict, outcome.status.class), (verdict, class));

    let wire = reply.to_wire();
    for line in wire.split_inclusive(|b| *b == b'\n') {
        assert!(line.len() <= Reply::MAX_WIRE_LINE && line.ends_with(b"\r\n"));
    }
    let (used, again) = ReplyReader::new()
        .feed(&wire)
        .expect("our own form is SMTP");
    assert_eq!(used, wire.len(), "more than one reply in {wire:?}");
    assert_eq!(again.map(|r| r.code), Some(reply.code));
}
