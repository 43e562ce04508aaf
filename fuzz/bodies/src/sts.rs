//! MTA-STS: records and policies.

use tidegate_mail::sts::{MAX_AGE, MAX_HOSTS, MAX_POLICY, Mode, Policy, announced, record_id};

/// Input: a policy file, and as well TXT records, one a line.
///
/// Invariants: an id is 1 to 32 letters and digits; a policy is within its limits, has hosts unless
/// its mode is `none`, reads the same when it is written anew, names what it lists, and of what
/// a wildcard stands for one label and no more, whatever the case.
pub fn sts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for id in text.lines().filter_map(record_id) {
        assert!((1..=32).contains(&id.len()));
        assert!(id.bytes().all(|b| b.is_ascii_alphanumeric()));
    }
    if let Some(id) = announced(text.lines()) {
        assert!(text.lines().any(|line| record_id(line) == Some(id)));
    }
    let Ok(policy) = Policy::parse(bytes) else {
        return;
    };
    assert!(bytes.len() <= MAX_POLICY);
    assert!(policy.max_age <= MAX_AGE && policy.mx.len() <= MAX_HOSTS);
    assert!(!policy.mx.is_empty() || policy.mode == Mode::None);
    assert_eq!(
        Policy::parse(policy.to_text().as_bytes()).as_ref(),
        Ok(&policy)
    );
    for pattern in &policy.mx {
        assert!(!pattern.contains(|c: char| c.is_whitespace() || c.is_control()));
        let only = Policy {
            mx: vec![pattern.clone()],
            ..policy.clone()
        };
        match pattern.strip_prefix("*.") {
            Some(domain) => {
                assert!(policy.names(&format!("mx.{domain}")));
                assert!(only.names(&format!("MX.{}", domain.to_ascii_uppercase())));
                assert!(!only.names(domain));
                assert!(!only.names(&format!("a.mx.{domain}")));
                assert!(!only.names(&format!(".{domain}")));
            }
            None => {
                assert!(policy.names(pattern) && only.names(&pattern.to_ascii_uppercase()));
                assert!(!only.names(&format!("x{pattern}")));
            }
        }
        assert!(!only.names(&format!("{pattern}.example")));
    }
}
