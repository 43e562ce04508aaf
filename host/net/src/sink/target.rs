//! Where a batch is sent, as an operator writes it.

use std::net::IpAddr;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};

/// The address of a receiver: `https://host[:port]/path`, or `http` where it is near.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// With the query.
    pub path: String,
    /// For the Host field.
    pub authority: String,
}

impl Target {
    /// # Errors
    /// For people: what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|e| format!("it is no URL: {e}"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("it does not begin with https:// or http://".to_owned()),
        };
        let authority = uri.authority().ok_or("it names no host")?;
        if authority.as_str().contains('@') {
            return Err("it has a user in it, which belongs into secret_file".to_owned());
        }
        let bare = authority.host();
        let host = bare.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = host.unwrap_or(bare).to_ascii_lowercase();
        if host.is_empty() || rustls_pki_types::ServerName::try_from(host.as_str()).is_err() {
            return Err("it names no host".to_owned());
        }
        let port = match authority.as_str()[bare.len()..].strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| format!("{port:?} is no port"))?,
            None if tls => 443,
            None => 80,
        };
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        Ok(Target {
            tls,
            host,
            port,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
            authority: authority.as_str().to_owned(),
        })
    }

    /// Without the path, which may be a secret.
    pub fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// The address, where the host is written as one.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// How a secret is put into its header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// As it is.
    Plain,
    /// RFC 6750.
    Bearer,
    /// RFC 7617; the secret is `user:password`.
    Basic,
    /// Splunk's HTTP Event Collector.
    Splunk,
    /// Elasticsearch.
    ApiKey,
}

impl Scheme {
    fn value(self, secret: &str) -> String {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        match self {
            Scheme::Plain => secret.to_owned(),
            Scheme::Bearer => format!("Bearer {secret}"),
            Scheme::Basic => format!("Basic {}", STANDARD.encode(secret)),
            Scheme::Splunk => format!("Splunk {secret}"),
            Scheme::ApiKey => format!("ApiKey {secret}"),
        }
    }
}

/// What opens the receiver. The secret is read for each request, so it may be changed at any time.
#[derive(Clone)]
pub struct Credential {
    pub header: HeaderName,
    pub scheme: Scheme,
    pub secret: super::Secret,
}

impl Credential {
    /// # Errors
    /// For people, where the secret can't be read or is none.
    pub fn value(&self) -> Result<HeaderValue, String> {
        let secret = (self.secret)()?;
        let mut value = HeaderValue::from_str(&self.scheme.value(secret.trim()))
            .map_err(|_| "the secret has characters that a header field can't have".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Fields that are the sink's own.
const OWN: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "idempotency-key",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// A header field as an operator writes it: `Name: value`.
///
/// # Errors
/// For people: what is wrong with it.
pub fn header(line: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = line
        .split_once(':')
        .ok_or("it is not of the form \"Name: value\"")?;
    let parsed: HeaderName = name
        .trim()
        .parse()
        .map_err(|_| format!("{name:?} is not the name of a header field"))?;
    if OWN.contains(&parsed.as_str()) {
        return Err(format!("{parsed} is set by the gateway itself"));
    }
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| "its value has characters that a header field can't have".to_owned())?;
    Ok((parsed, value))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_url_names_host_port_and_path() {
        let t = Target::parse("https://Splunk.example:8088/services/collector/event?x=1").unwrap();
        assert_eq!((t.tls, &*t.host, t.port), (true, "splunk.example", 8088));
        assert_eq!(t.path, "/services/collector/event?x=1");
        assert_eq!(t.origin(), "https://Splunk.example:8088");
        let t = Target::parse("http://[::1]/").unwrap();
        assert_eq!((t.tls, &*t.host, t.port), (false, "::1", 80));
        assert_eq!(t.address(), Some("::1".parse().unwrap()));
        assert_eq!(Target::parse("https://a.example").unwrap().path, "/");
        assert_eq!(Target::parse("https://a.example?x").unwrap().path, "/?x");
    }

    #[test]
    fn what_is_no_address_of_a_receiver_is_told() {
        for (text, expected) in [
            ("", "no URL"),
            ("crm.example/hook", "no URL"),
            ("/hook", "https://"),
            ("ftp://crm.example/", "https://"),
            ("https://user:secret@crm.example/", "secret_file"),
            ("https://crm.example:99999/", "port"),
            ("https://a b/", "no URL"),
        ] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("secret@"), "{error}");
        }
    }

    #[test]
    fn header_fields_are_checked() {
        let (name, value) = header("X-Team:  mail ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-team", "mail"));
        for bad in [
            "X-Team",
            "a b: c",
            "x: a\nb",
            "Host: other",
            "Content-Length: 3",
        ] {
            assert!(header(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_written_as_each_receiver_wants_them() {
        for (scheme, expected) in [
            (Scheme::Plain, "a:b"),
            (Scheme::Bearer, "Bearer a:b"),
            (Scheme::Basic, "Basic YTpi"),
            (Scheme::Splunk, "Splunk a:b"),
            (Scheme::ApiKey, "ApiKey a:b"),
        ] {
            let credential = Credential {
                header: hyper::header::AUTHORIZATION,
                scheme,
                secret: Arc::new(|| Ok("a:b\n".to_owned())),
            };
            let value = credential.value().unwrap();
            assert_eq!(value.to_str().unwrap(), expected);
            assert!(!format!("{value:?}").contains("a:b"));
        }
    }
}
