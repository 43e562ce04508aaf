//! What a peer announces in its reply to EHLO.

use tidegate_mail::reply::frame;

/// The extensions the client makes use of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 1870: `Some(0)` announces SIZE without a limit.
    pub size: Option<u64>,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 8689.
    pub requiretls: bool,
    /// RFC 4954, the mechanisms that the client knows.
    pub auth_plain: bool,
    pub auth_login: bool,
    /// RFC 9422: recipients in a transaction, transactions in a connection.
    pub rcpt_max: Option<usize>,
    pub mail_max: Option<u16>,
}

impl Capabilities {
    /// Reads a whole EHLO reply. Keywords are case-insensitive; what is unknown or
    /// malformed is passed over.
    pub fn parse(ehlo: &[u8]) -> Self {
        let mut caps = Capabilities::default();
        for line in frame::lines(ehlo).skip(1) {
            let Ok(line) = str::from_utf8(line) else {
                continue;
            };
            // `AUTH=PLAIN` is how some old servers say it.
            let mut words = line.split(|c: char| c == '=' || c.is_ascii_whitespace());
            let keyword = words.next().unwrap_or("");
            let is = |known: &str| keyword.eq_ignore_ascii_case(known);
            if is("PIPELINING") {
                caps.pipelining = true;
            } else if is("SIZE") {
                caps.size = Some(words.next().and_then(|n| n.parse().ok()).unwrap_or(0));
            } else if is("8BITMIME") {
                caps.eight_bit_mime = true;
            } else if is("SMTPUTF8") {
                caps.smtputf8 = true;
            } else if is("DSN") {
                caps.dsn = true;
            } else if is("STARTTLS") {
                caps.starttls = true;
            } else if is("REQUIRETLS") {
                caps.requiretls = true;
            } else if is("AUTH") {
                for mechanism in words {
                    caps.auth_plain |= mechanism.eq_ignore_ascii_case("PLAIN");
                    caps.auth_login |= mechanism.eq_ignore_ascii_case("LOGIN");
                }
            } else if is("LIMITS") {
                caps.limits(line);
            }
        }
        caps
    }

    fn limits(&mut self, line: &str) {
        for word in line.split_ascii_whitespace().skip(1) {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            if name.eq_ignore_ascii_case("RCPTMAX") {
                self.rcpt_max = value.parse().ok().filter(|n| *n > 0);
            } else if name.eq_ignore_ascii_case("MAILMAX") {
                self.mail_max = value.parse().ok().filter(|n| *n > 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_servers_say() {
        let caps = Capabilities::parse(
            b"250-mx.example.org greets you\r\n250-pipelining\r\n250-SIZE 35882577\r\n\
              250-8BITMIME\r\n250-STARTTLS\r\n250-AUTH LOGIN plain XOAUTH2\r\n250-DSN\r\n\
              250-REQUIRETLS\r\n250-LIMITS RCPTMAX=20 MAILMAX=5 X=\r\n250-\xff\r\n250 SMTPUTF8\r\n",
        );
        assert_eq!(
            caps,
            Capabilities {
                pipelining: true,
                size: Some(35_882_577),
                eight_bit_mime: true,
                smtputf8: true,
                dsn: true,
                starttls: true,
                requiretls: true,
                auth_plain: true,
                auth_login: true,
                rcpt_max: Some(20),
                mail_max: Some(5),
            }
        );
    }

    #[test]
    fn the_greeting_line_announces_nothing_and_odd_values_do_no_harm() {
        assert_eq!(Capabilities::parse(b"250 DSN\r\n"), Capabilities::default());
        let caps = Capabilities::parse(
            b"250-x\r\n250-SIZE\r\n250-AUTH=LOGIN\r\n250-LIMITS RCPTMAX=0\r\n250 \r\n",
        );
        assert_eq!(caps.size, Some(0));
        assert!(caps.auth_login && !caps.auth_plain);
        assert_eq!(caps.rcpt_max, None);
    }
}
