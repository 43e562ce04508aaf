//! AUTH PLAIN (RFC 4616) and LOGIN, on bounded base64.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Longest user name, in bytes.
const MAX_USER: usize = 255;

/// Longest password, in bytes.
const MAX_PASSWORD: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    Login,
}

/// A password: not shown by `Debug`, and overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Secret(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from leaving out a store that nothing reads.
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a client claims to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub mechanism: Mechanism,
    /// UTF-8 without control characters, 1 to 255 bytes.
    pub user: String,
    /// 1 to 1,024 bytes, no NUL.
    pub password: Secret,
}

/// Decodes one line of an exchange; `=` stands for the empty response (RFC 4954 s. 4).
pub(crate) fn decode(line: &str) -> Option<Secret> {
    if line == "=" {
        return Some(Secret(Vec::new()));
    }
    BASE64.decode(line).ok().map(Secret)
}

/// `[authzid] NUL authcid NUL passwd`. An authorisation identity other than the user's own
/// is refused: nobody may act for another.
pub(crate) fn plain(response: &Secret) -> Result<Credentials, &'static str> {
    let mut parts = response.0.split(|b| *b == 0);
    let (Some(authzid), Some(user), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("AUTH PLAIN needs base64 of [identity] NUL user NUL password");
    };
    if !authzid.is_empty() && authzid != user {
        return Err("AUTH PLAIN: leave the authorization identity empty");
    }
    credentials(Mechanism::Plain, user, password)
}

pub(crate) fn credentials(
    mechanism: Mechanism,
    user: &[u8],
    password: &[u8],
) -> Result<Credentials, &'static str> {
    let user = user_name(user)?;
    if password.is_empty() || password.len() > MAX_PASSWORD || password.contains(&0) {
        return Err("the password is empty, too long, or has a NUL");
    }
    Ok(Credentials {
        mechanism,
        user,
        password: Secret(password.to_vec()),
    })
}

pub(crate) fn user_name(user: &[u8]) -> Result<String, &'static str> {
    match str::from_utf8(user) {
        Ok(text)
            if !text.is_empty()
                && text.len() <= MAX_USER
                && !text.chars().any(char::is_control) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("the user name is empty, too long, or not plain UTF-8 text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &[u8]) -> Option<(String, Vec<u8>)> {
        let got = plain(&Secret(raw.to_vec())).ok()?;
        Some((got.user.clone(), got.password.as_bytes().to_vec()))
    }

    #[test]
    fn plain_responses() {
        let ok = Some(("u".to_owned(), b"p".to_vec()));
        assert_eq!(parse(b"\0u\0p"), ok);
        assert_eq!(parse(b"u\0u\0p"), ok);
        for bad in [
            &b"v\0u\0p"[..],
            b"\0u",
            b"u\0p",
            b"\0u\0p\0",
            b"\0\0p",
            b"\0u\0",
            b"\0u\r\n\0p",
            b"\0\xff\0p",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn base64_with_and_without_padding() {
        assert_eq!(decode("AHUAcA==").unwrap().as_bytes(), b"\0u\0p");
        assert_eq!(decode("AHUAcA").unwrap().as_bytes(), b"\0u\0p");
        assert_eq!(decode("=").unwrap().as_bytes(), b"");
        assert!(decode("AHU*").is_none());
        assert!(decode("A").is_none());
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "***");
    }
}
