//! Command lines: verb and arguments, and the lines that are no SMTP at all.

/// The commands known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Ehlo,
    Helo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    Bdat,
    Rset,
    Noop,
    Vrfy,
    Expn,
    Help,
    Quit,
    /// A known protocol, but not this one: what a browser can be made to send to a port.
    Http,
    Unknown,
}

const VERBS: [(&str, Verb); 19] = [
    ("EHLO", Verb::Ehlo),
    ("HELO", Verb::Helo),
    ("STARTTLS", Verb::StartTls),
    ("AUTH", Verb::Auth),
    ("MAIL", Verb::Mail),
    ("RCPT", Verb::Rcpt),
    ("DATA", Verb::Data),
    ("BDAT", Verb::Bdat),
    ("RSET", Verb::Rset),
    ("NOOP", Verb::Noop),
    ("VRFY", Verb::Vrfy),
    ("EXPN", Verb::Expn),
    ("HELP", Verb::Help),
    ("QUIT", Verb::Quit),
    ("GET", Verb::Http),
    ("POST", Verb::Http),
    ("PUT", Verb::Http),
    ("CONNECT", Verb::Http),
    ("OPTIONS", Verb::Http),
];

/// Splits a line into its verb and the rest, without the space between them.
pub(crate) fn split(line: &str) -> (Verb, &str) {
    let line = line.trim_end_matches(' ');
    let (word, args) = line.split_once(' ').unwrap_or((line, ""));
    let verb = VERBS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(word))
        .map_or(Verb::Unknown, |(_, verb)| *verb);
    (verb, args)
}

/// What stands behind `FROM:` or `TO:`; spaces before the path are common and harmless.
pub(crate) fn after_keyword<'a>(args: &'a str, keyword: &str) -> Option<&'a str> {
    let head = args.get(..keyword.len())?;
    head.eq_ignore_ascii_case(keyword)
        .then(|| args[keyword.len()..].trim_start_matches(' '))
}

/// The argument of EHLO and HELO: a host name or address literal, taken on trust but for
/// its characters, since clients behind NAT or on a desktop have no better.
pub(crate) fn helo_name(args: &str) -> Option<&str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    let inner = args
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
        .unwrap_or(args);
    (!inner.is_empty() && inner.len() <= 255 && inner.bytes().all(fits)).then_some(args)
}

/// `size [LAST]` of BDAT (RFC 3030 s. 2).
pub(crate) fn bdat(args: &str) -> Option<(u64, bool)> {
    let (size, last) = match args.split_once(' ') {
        None => (args, false),
        Some((size, word)) if word.trim().eq_ignore_ascii_case("LAST") => (size, true),
        Some(_) => return None,
    };
    if size.is_empty() || !size.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((size.parse().ok()?, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs() {
        assert_eq!(split("mail FROM:<>"), (Verb::Mail, "FROM:<>"));
        assert_eq!(split("QUIT "), (Verb::Quit, ""));
        assert_eq!(split("QUIT now"), (Verb::Quit, "now"));
        assert_eq!(split("GET / HTTP/1.1").0, Verb::Http);
        assert_eq!(split(""), (Verb::Unknown, ""));
        assert_eq!(split("MAILFROM:<>").0, Verb::Unknown);
    }

    #[test]
    fn keywords() {
        assert_eq!(after_keyword("from:<a>", "FROM:"), Some("<a>"));
        assert_eq!(after_keyword("FROM: <a>", "FROM:"), Some("<a>"));
        assert_eq!(after_keyword("FROM <a>", "FROM:"), None);
        assert_eq!(after_keyword("é", "TO:"), None);
    }

    #[test]
    fn names() {
        for good in ["a", "[192.0.2.1]", "[IPv6:::1]", "my_pc.local", "::1"] {
            assert_eq!(helo_name(good), Some(good));
        }
        for bad in ["", "a b", "a(b)", "[", "[]", "é.example", "a;b"] {
            assert_eq!(helo_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn chunks() {
        assert_eq!(bdat("12"), Some((12, false)));
        assert_eq!(bdat("0 last"), Some((0, true)));
        for bad in [
            "",
            "x",
            "-1",
            "+1",
            "1 2",
            "1 LAST x",
            "99999999999999999999",
        ] {
            assert_eq!(bdat(bad), None, "{bad}");
        }
    }
}
