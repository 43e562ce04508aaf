//! MTA-STS (RFC 8461): the record that announces a policy, the policy, and which hosts
//! it names. Texts in, values out; fetching and keeping them is for others.

use std::time::Duration;

/// Longest policy read, in octets. RFC 8461 s. 3.3 leaves the limit to the sender; the
/// largest known ones are a few hundred.
pub const MAX_POLICY: usize = 64 * 1024;

/// Hosts of one policy that are kept.
pub const MAX_HOSTS: usize = 256;

/// Longest time a policy is believed: a year, RFC 8461 s. 3.2.
pub const MAX_AGE: Duration = Duration::from_secs(31_557_600);

/// What a domain wants done with hosts that its policy does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No delivery to them.
    Enforce,
    /// Delivery as without a policy; failures are reported.
    Testing,
    /// The domain has no policy any more.
    None,
}

/// A policy as RFC 8461 s. 3.2 has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub mode: Mode,
    /// From the time it was fetched.
    pub max_age: Duration,
    /// Patterns in lower case: a host name, or `*.` and one.
    pub mx: Vec<String>,
}

/// Why a policy is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPolicy {
    #[error("the policy is not text in UTF-8")]
    NotText,
    #[error("the policy is larger than 64 KiB")]
    TooLarge,
    #[error("the policy does not say `version: STSv1`")]
    Version,
    #[error("the policy's `mode` is missing or not one of enforce, testing, none")]
    Mode,
    #[error("the policy's `max_age` is missing or not a number of seconds of up to ten digits")]
    MaxAge,
    #[error("the policy names no `mx`")]
    NoHost,
    #[error("an `mx` of the policy is not a host name")]
    Host,
}

/// The id of the TXT record at `_mta-sts` of a domain, if it is one (RFC 8461 s. 3.1). A
/// record without a valid id announces nothing.
pub fn record_id(text: &str) -> Option<&str> {
    let mut fields = text.split(';').map(|f| f.trim_matches([' ', '\t']));
    if fields.next()? != "v=STSv1" {
        return None;
    }
    let mut ids = fields.filter_map(|f| f.strip_prefix("id="));
    let id = ids.next()?;
    let valid = (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    (valid && ids.next().is_none()).then_some(id)
}

/// Of all TXT records at the name: one announces a policy, two or none don't.
pub fn announced<'a>(records: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut ours = records.filter(|text| {
        let version = text.split(';').next().unwrap_or_default();
        version.trim_matches([' ', '\t']) == "v=STSv1"
    });
    let one = ours.next()?;
    match ours.next() {
        None => record_id(one),
        Some(_) => None,
    }
}

impl Policy {
    /// Reads the body of a policy file. Unknown keys are passed over, and of a key other than `mx`
    /// the first counts.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadPolicy> {
        if bytes.len() > MAX_POLICY {
            return Err(BadPolicy::TooLarge);
        }
        let text = str::from_utf8(bytes).map_err(|_| BadPolicy::NotText)?;
        let mut version = None;
        let mut mode = None;
        let mut max_age = None;
        let mut mx = Vec::new();
        for line in text.split('\n') {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim_matches([' ', '\t']);
            match key {
                "version" => _ = version.get_or_insert(value),
                "mode" => _ = mode.get_or_insert(value),
                "max_age" => _ = max_age.get_or_insert(value),
                "mx" if mx.len() < MAX_HOSTS => mx.push(pattern(value).ok_or(BadPolicy::Host)?),
                _ => {}
            }
        }
        if version != Some("STSv1") {
            return Err(BadPolicy::Version);
        }
        let mode = match mode {
            Some("enforce") => Mode::Enforce,
            Some("testing") => Mode::Testing,
            Some("none") => Mode::None,
            _ => return Err(BadPolicy::Mode),
        };
        let max_age = max_age
            .filter(|v| (1..=10).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|v| v.parse().ok())
            .map(Duration::from_secs)
            .ok_or(BadPolicy::MaxAge)?
            .min(MAX_AGE);
        if mx.is_empty() && mode != Mode::None {
            return Err(BadPolicy::NoHost);
        }
        Ok(Policy { mode, max_age, mx })
    }

    /// Whether a host is one of the policy's (RFC 8461 s. 4.1): `*.` stands for one label.
    /// `host` is in A-label form, without the final dot.
    pub fn names(&self, host: &str) -> bool {
        self.mx
            .iter()
            .any(|pattern| match pattern.strip_prefix("*.") {
                Some(domain) => host.split_once('.').is_some_and(|(label, rest)| {
                    !label.is_empty() && rest.eq_ignore_ascii_case(domain)
                }),
                None => pattern.eq_ignore_ascii_case(host),
            })
    }

    /// As text that parses to the same policy, to be kept.
    pub fn to_text(&self) -> String {
        let mode = match self.mode {
            Mode::Enforce => "enforce",
            Mode::Testing => "testing",
            Mode::None => "none",
        };
        let mut text = format!(
            "version: STSv1\nmode: {mode}\nmax_age: {}\n",
            self.max_age.as_secs()
        );
        for mx in &self.mx {
            text.push_str("mx: ");
            text.push_str(mx);
            text.push('\n');
        }
        text
    }
}

fn pattern(value: &str) -> Option<String> {
    let host = value.strip_prefix("*.").unwrap_or(value);
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    (host.len() <= 253 && host.split('.').all(label)).then(|| value.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "version: STSv1\r\nmode: enforce\r\nmx: Mail.example.com\r\n\
                        mx: *.example.net\r\nmax_age: 604800\r\n";

    #[test]
    fn records() {
        for (text, id) in [
            ("v=STSv1; id=20160831085700Z;", Some("20160831085700Z")),
            ("v=STSv1;id=1", Some("1")),
            ("v=STSv1 ; x=y ; id=1 ;", Some("1")),
            ("v=STSv1;", None),
            ("v=STSv1; id=;", None),
            ("v=STSv1; id=a-b;", None),
            ("v=STSv1; id=1; id=2;", None),
            ("v=STSv2; id=1;", None),
            ("id=1; v=STSv1;", None),
            ("v=stsv1; id=1", None),
            ("", None),
        ] {
            assert_eq!(record_id(text), id, "{text}");
        }
        assert_eq!(record_id(&format!("v=STSv1; id={};", "1".repeat(33))), None);
        let of = |records: &[&'static str]| announced(records.iter().copied());
        assert_eq!(of(&["other", "v=STSv1; id=7"]), Some("7"));
        assert_eq!(of(&["v=STSv1; id=7", "v=STSv1; id=8"]), None);
        assert_eq!(of(&["v=STSv1; id=7", "v=STSv1"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn policies() {
        let policy = Policy::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(policy.mode, Mode::Enforce);
        assert_eq!(policy.max_age, Duration::from_secs(604_800));
        assert_eq!(policy.mx, ["mail.example.com", "*.example.net"]);
        for (text, expected) in [
            // Line feeds alone, no final one, unknown keys, repeated ones.
            (
                "version: STSv1\nmode:testing\nmode: none\nx: y\nnothing\nmx: a.b\nmax_age: 0",
                Ok((Mode::Testing, 0)),
            ),
            (
                "version: STSv1\nmode: none\nmax_age: 86400\n",
                Ok((Mode::None, 86_400)),
            ),
            (
                "version: STSv1\nmode: none\nmax_age: 9999999999\n",
                Ok((Mode::None, MAX_AGE.as_secs())),
            ),
            (
                "version: STSv2\nmode: none\nmax_age: 1\n",
                Err(BadPolicy::Version),
            ),
            ("mode: none\nmax_age: 1\n", Err(BadPolicy::Version)),
            ("version: STSv1\nmax_age: 1\n", Err(BadPolicy::Mode)),
            (
                "version: STSv1\nmode: Enforce\nmax_age: 1\nmx: a\n",
                Err(BadPolicy::Mode),
            ),
            ("version: STSv1\nmode: none\n", Err(BadPolicy::MaxAge)),
            (
                "version: STSv1\nmode: none\nmax_age: -1\n",
                Err(BadPolicy::MaxAge),
            ),
            (
                "version: STSv1\nmode: none\nmax_age: 12345678901\n",
                Err(BadPolicy::MaxAge),
            ),
            (
                "version: STSv1\nmode: enforce\nmax_age: 1\n",
                Err(BadPolicy::NoHost),
            ),
            (
                "version: STSv1\nmode: enforce\nmax_age: 1\nmx: a b\n",
                Err(BadPolicy::Host),
            ),
            (
                "version: STSv1\nmode: enforce\nmax_age: 1\nmx: *.*.a\n",
                Err(BadPolicy::Host),
            ),
            ("<html>", Err(BadPolicy::Version)),
        ] {
            let read = Policy::parse(text.as_bytes()).map(|p| (p.mode, p.max_age.as_secs()));
            assert_eq!(read, expected, "{text}");
        }
        assert_eq!(
            Policy::parse(b"version: STSv1\n\xff"),
            Err(BadPolicy::NotText)
        );
        let large = format!("{GOOD}{}", "#".repeat(MAX_POLICY));
        assert_eq!(Policy::parse(large.as_bytes()), Err(BadPolicy::TooLarge));
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let policy = Policy::parse(GOOD.as_bytes()).unwrap();
        for (host, named) in [
            ("mail.example.com", true),
            ("MAIL.example.com", true),
            ("mx.mail.example.com", false),
            ("example.com", false),
            ("mx.example.net", true),
            ("mx1.EXAMPLE.net", true),
            ("a.mx.example.net", false),
            ("example.net", false),
            (".example.net", false),
            ("mx.example.net.evil.example", false),
        ] {
            assert_eq!(policy.names(host), named, "{host}");
        }
    }
}
