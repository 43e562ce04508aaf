//! The forms that names of the directory may have.

use crate::ApiError;

/// Lower-case letters, digits and `-`, 1 to 63 characters, as in a DNS label.
pub(crate) fn name(field: &str, text: &str) -> Result<(), ApiError> {
    let ok = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if ok {
        Ok(())
    } else {
        Err(
            ApiError::invalid(field, format!("{text:?} is not a valid name"))
                .remedy("use 1 to 63 lower-case letters, digits and '-', not '-' at either end"),
        )
    }
}

/// A domain in A-label form, lower-cased.
pub(crate) fn domain(field: &str, text: &str) -> Result<String, ApiError> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if (1..=253).contains(&lower.len()) && lower.split('.').all(label) {
        Ok(lower)
    } else {
        Err(
            ApiError::invalid(field, format!("{text:?} is not a domain name"))
                .remedy("write it as in DNS, for example crm.example or xn--bcher-kva.example"),
        )
    }
}

/// A host name or an IP address.
pub(crate) fn host(field: &str, text: &str) -> Result<String, ApiError> {
    if let Ok(ip) = text.parse::<std::net::IpAddr>() {
        return Ok(ip.to_string());
    }
    domain(field, text)
}

pub(crate) fn port(field: &str, port: u16) -> Result<u16, ApiError> {
    if port == 0 {
        return Err(ApiError::invalid(field, "port 0 can't be connected to")
            .remedy("give a port from 1 to 65535, as a rule 587, 465 or 25"));
    }
    Ok(port)
}

/// A user name for AUTH: 1 to 255 bytes without white space or control characters.
pub(crate) fn user(field: &str, text: &str) -> Result<(), ApiError> {
    if (1..=255).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c.is_whitespace())
    {
        Ok(())
    } else {
        Err(
            ApiError::invalid(field, format!("{text:?} is not a valid user name"))
                .remedy("use 1 to 255 bytes without white space"),
        )
    }
}

/// A password that a client can send by AUTH PLAIN and LOGIN.
pub(crate) fn password(field: &str, text: &str, least: usize) -> Result<(), ApiError> {
    if text.chars().count() < least {
        return Err(
            ApiError::invalid(field, "the password is too short").remedy(format!(
                "use at least {least} characters, or leave it out to have one made"
            )),
        );
    }
    if text.len() > 255 || text.contains('\0') {
        return Err(
            ApiError::invalid(field, "the password can't be used for AUTH")
                .remedy("use at most 255 bytes, and no NUL"),
        );
    }
    Ok(())
}

/// A text that is shown and logged: bounded, without control characters.
pub(crate) fn note(field: &str, text: &str) -> Result<(), ApiError> {
    if text.len() <= 500 && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(
            ApiError::invalid(field, "the text is too long or has control characters")
                .remedy("use one line of at most 500 bytes"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_domains() {
        for good in ["acme", "a", "acme-2", "0"] {
            assert!(name("id", good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "Acme", "a.b", "-a", "a-", "a/b", "ä", &long] {
            assert!(name("id", bad).is_err(), "{bad}");
        }
        assert_eq!(domain("d", "CRM.Example.").unwrap(), "crm.example");
        for bad in ["", "a..b", "a b", "-a.example", "bücher.example", "a/b"] {
            assert!(domain("d", bad).is_err(), "{bad}");
        }
        assert_eq!(host("h", "::1").unwrap(), "::1");
        assert!(port("p", 0).is_err());
    }

    #[test]
    fn secrets_and_notes() {
        assert!(password("p", "short", 12).is_err());
        assert!(password("p", "long enough, this", 12).is_ok());
        assert!(password("p", "with\0nul-and-more", 12).is_err());
        assert!(note("n", "one\ntwo").is_err());
        assert!(user("u", "crm@acme").is_ok());
        assert!(user("u", "a b").is_err());
    }
}
