//! Replies on their way out: formatted into one buffer, so that the replies to a
//! pipelined group leave in one write.

use tidegate_mail::Reply;

/// Longest text of a reply line, in bytes: 512 less code, enhanced code and line end.
const MAX_LINE_TEXT: usize = 490;

/// Appends one reply line, given without its CRLF.
pub(crate) fn line(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends a reply, in as many lines as its text has. What is not printable US-ASCII
/// becomes `?`, since the text may come from a peer or a policy.
pub(crate) fn reply(out: &mut Vec<u8>, reply: &Reply) {
    let mut lines = reply.text.lines().filter(|l| !l.is_empty()).peekable();
    if lines.peek().is_none() {
        one(out, reply, ' ', "");
        return;
    }
    while let Some(text) = lines.next() {
        let last = lines.peek().is_none();
        one(out, reply, if last { ' ' } else { '-' }, text);
    }
}

fn one(out: &mut Vec<u8>, reply: &Reply, separator: char, text: &str) {
    let code = reply.code.clamp(200, 599);
    out.extend_from_slice(format!("{code}{separator}").as_bytes());
    // RFC 2034 s. 4: only replies of class 2, 4 and 5 carry an enhanced code.
    if code / 100 != 3 {
        out.extend_from_slice(reply.status().to_string().as_bytes());
        if !text.is_empty() {
            out.push(b' ');
        }
    }
    out.extend(
        text.chars()
            .map(|c| {
                if matches!(c, ' '..='~') {
                    c as u8
                } else {
                    b'?'
                }
            })
            .take(MAX_LINE_TEXT),
    );
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_mail::Enhanced;

    fn text(code: u16, text: &str) -> String {
        let mut out = Vec::new();
        reply(&mut out, &Reply::new(code, Enhanced::new(5, 1, 1), text));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_line_and_several() {
        assert_eq!(text(550, "no such user"), "550 5.1.1 no such user\r\n");
        assert_eq!(text(550, "a\nb"), "550-5.1.1 a\r\n550 5.1.1 b\r\n");
        assert_eq!(text(550, ""), "550 5.1.1\r\n");
    }

    #[test]
    fn a_text_cannot_inject_a_line() {
        assert_eq!(
            text(550, "a\r\n250 2.0.0 fine\u{85}"),
            "550-5.1.1 a\r\n550 5.1.1 250 2.0.0 fine?\r\n"
        );
        assert_eq!(text(550, "a\rb"), "550 5.1.1 a?b\r\n");
        assert!(text(550, &"x".repeat(5000)).len() <= 512);
    }

    #[test]
    fn an_enhanced_code_of_another_class_is_not_sent() {
        assert_eq!(text(450, "later"), "450 4.0.0 later\r\n");
    }
}
