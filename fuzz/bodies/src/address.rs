//! Addresses and the paths around them.

use tidegate_mail::Address;
use tidegate_mail::address::canonical_domain;

/// Input: an address, or the argument of MAIL or RCPT behind its keyword.
///
/// Invariants: what is an address is so again as text, in brackets, and behind a source route,
/// is within its limits, has no control, space or bracket outside of a quoted string, and a domain in
/// its canonical form; what follows a path is exactly what was left of the input.
pub fn address(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(address) = Address::parse(&text) {
        check(&address);
    }
    let bracketed = format!("<{text}>");
    if let Ok(Some(address)) = Address::parse_path(&bracketed, None) {
        check(&address);
    }
    for host in [None, Some("gate.example")] {
        let Ok((path, rest)) = Address::take_path(&text, host) else {
            continue;
        };
        let taken = text
            .strip_suffix(rest)
            .expect("the rest is the input's end");
        assert!(taken.starts_with('<') && taken.ends_with('>'));
        assert_eq!(Address::parse_path(taken, host).as_ref(), Ok(&path));
        if let Some(path) = path {
            check(&path);
        }
    }
    if let Ok(domain) = canonical_domain(&text) {
        check_domain(&domain);
    }
}

fn check(address: &Address) {
    let text = address.as_str();
    assert_eq!(Address::parse(text).as_ref(), Ok(address));
    assert!(text.len() <= Address::MAX);
    assert!(address.local_part().len() <= Address::MAX_LOCAL_PART);
    assert_eq!(
        format!("{}@{}", address.local_part(), address.domain()),
        text
    );
    assert!(!text.contains(char::is_control));
    if !address.local_part().starts_with('"') {
        assert!(!text.contains([' ', '<', '>', '"', '\\', ',', ';', '(', ')']));
        assert_eq!(text.matches('@').count(), 1);
    }
    check_domain(address.domain());
    assert_eq!(address.is_international(), !address.local_part().is_ascii());
    assert_eq!(
        address.literal().is_some(),
        address.domain().starts_with('[')
    );

    let path = format!("<{text}>");
    assert_eq!(Address::parse_path(&path, None), Ok(Some(address.clone())));
    let with_parameters = format!("{path} SIZE=1>");
    assert_eq!(
        Address::take_path(&with_parameters, Some("gate.example")),
        Ok((Some(address.clone()), " SIZE=1>"))
    );
    let routed = format!("<@a.example,@[IPv6:::1]:{text}>");
    assert_eq!(
        Address::parse_path(&routed, None),
        Ok(Some(address.clone()))
    );
}

fn check_domain(domain: &str) {
    assert_eq!(canonical_domain(domain).as_deref(), Ok(domain));
    assert!(domain.is_ascii() && domain.len() <= Address::MAX_DOMAIN);
    assert!(domain.starts_with('[') || !domain.bytes().any(|b| b.is_ascii_uppercase()));
    assert!(!domain.contains([' ', '<', '>', '@', '"', '(', ')', ',', ';']));
}
