//! The client of the admin API.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_admin::ErrorBody;
use tidegate_net::sink::Target;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::{Failure, out_json};
use crate::config::Config;

pub struct Client {
    agent: ureq::Agent,
    /// `http://127.0.0.1:8025`.
    origin: String,
    token: String,
    /// Print what the gateway answers as it is.
    pub json: bool,
}

impl Client {
    /// With the token and the address as told, else as the configuration has them.
    pub fn new(
        config: impl FnOnce() -> Result<Config, Failure>,
        told: &Told,
        json: bool,
    ) -> Result<Self, Failure> {
        let (token, origin) = match (&told.token_file, &told.admin) {
            (Some(file), Some(admin)) => (read_token(file)?, origin(admin)?),
            (file, admin) => {
                let config = config()?;
                let token = read_token(file.as_ref().unwrap_or(&config.admin.token_file))?;
                let origin = match admin {
                    Some(admin) => origin(admin)?,
                    None => format!("http://{}", address_of(&config)?),
                };
                (token, origin)
            }
        };
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(180)))
            .tls_config(tls(told.admin_ca.as_deref())?)
            .build()
            .into();
        Ok(Client {
            agent,
            origin,
            token,
            json,
        })
    }

    /// The same for an output whose every line is a value: errors are told on standard error only.
    pub fn for_stream(&self) -> Client {
        Client {
            agent: self.agent.clone(),
            origin: self.origin.clone(),
            token: self.token.clone(),
            json: false,
        }
    }

    pub fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Failure> {
        let mut request = self
            .agent
            .get(self.url(path))
            .header("authorization", self.bearer());
        for (name, value) in query {
            request = request.query(*name, value);
        }
        self.answer(request.call(), false)
    }

    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let request = self
            .agent
            .post(self.url(path))
            .header("authorization", self.bearer());
        self.answer(request.send_json(body), true)
    }

    pub fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let request = self
            .agent
            .put(self.url(path))
            .header("authorization", self.bearer());
        self.answer(request.send_json(body), true)
    }

    pub fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let request = self
            .agent
            .patch(self.url(path))
            .header("authorization", self.bearer());
        self.answer(request.send_json(body), true)
    }

    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self
            .agent
            .delete(self.url(path))
            .header("authorization", self.bearer());
        self.answer(request.call(), true)
    }

    /// Prints the answer: as it is for `--json`, else by `human`.
    pub fn show(&self, answer: &Value, human: impl FnOnce(&Value)) {
        if self.json {
            out_json(answer);
        } else {
            human(answer);
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v1{path}", self.origin)
    }

    /// Why there is no answer. What a request `changes` may be changed all the same.
    fn failure(&self, error: ureq::Error, changes: bool) -> Failure {
        if is_no_connection(&error) {
            return Failure::NotRunning {
                address: self.origin.clone(),
                reason: error.to_string(),
            };
        }
        let is_tls = match &error {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
            ureq::Error::Io(e) => e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()),
            _ => false,
        };
        let remedy = match &error {
            ureq::Error::HostNotFound => "check the name in --admin or TIDEGATE_ADMIN",
            _ if is_tls => "check the name and the certificate; --admin-ca names a CA of your own",
            _ if changes => {
                "it may have been done: look before you repeat it; see the gateway's messages on standard error"
            }
            _ => "see its messages on standard error",
        };
        Failure::failed(
            format!("the gateway at {} did not answer: {error}", self.origin),
            remedy,
        )
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn answer<T: DeserializeOwned>(
        &self,
        result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        changes: bool,
    ) -> Result<T, Failure> {
        let mut response = result.map_err(|error| self.failure(error, changes))?;
        let status = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(256 * 1024 * 1024)
            .read_to_vec()
            .map_err(|e| Failure::failed(format!("the gateway's answer broke off: {e}"), ""))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| {
                Failure::failed(
                    format!("the gateway's answer is not what this version expects: {e}"),
                    "use the same version of tidegate for gateway and command line",
                )
            });
        }
        let Ok(ErrorBody { error }) = serde_json::from_slice::<ErrorBody>(&body) else {
            return Err(Failure::failed(
                format!(
                    "what answers at {} is not this gateway (HTTP {status})",
                    self.origin
                ),
                "check admin.address in the configuration",
            ));
        };
        if self.json {
            out_json(&ErrorBody {
                error: error.clone(),
            });
        }
        let message = match &error.field {
            Some(field) => format!("{field}: {}", error.message),
            None => error.message,
        };
        Err(Failure::failed(message, error.remedy.unwrap_or_default()))
    }
}

/// Whether nobody was there to talk to, as opposed to somebody who stopped talking.
fn is_no_connection(error: &ureq::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        ureq::Error::ConnectionFailed | ureq::Error::Timeout(ureq::Timeout::Connect) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::AddrNotAvailable
        ),
        _ => false,
    }
}

/// Where the API is, from `HOST:PORT` or a URL. In clear only to this machine: the token opens
/// everything.
fn origin(text: &str) -> Result<String, Failure> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let malformed = |reason: String| {
        Failure::usage(
            format!("--admin {text}: {reason}"),
            "write it like 127.0.0.1:8025 or https://gateway.example",
        )
    };
    let target = Target::parse(&url).map_err(malformed)?;
    if target.path != "/" {
        return Err(malformed("it has a path".to_owned()));
    }
    let ip = target.host.trim_matches(['[', ']']).parse::<IpAddr>();
    let here = target.host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback());
    if !target.tls && !here {
        return Err(Failure::usage(
            format!("--admin {text}: the token would cross the network in clear"),
            "use https:// where a proxy with TLS stands before it, or a tunnel: \
             ssh -L 8025:127.0.0.1:8025 HOST, and then --admin 127.0.0.1:8025",
        ));
    }
    Ok(target.origin())
}

/// Whom to believe that it is the gateway.
fn tls(ca: Option<&Path>) -> Result<TlsConfig, Failure> {
    let roots = match ca {
        None => RootCerts::WebPki,
        Some(path) => {
            let wrong = |reason: String| {
                Failure::usage(
                    format!("--admin-ca {}: {reason}", path.display()),
                    "name a file of PEM certificates",
                )
            };
            let pem = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
            let roots = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                    Ok(_) => None,
                    Err(e) => Some(Err(wrong(e.to_string()))),
                })
                .collect::<Result<Vec<_>, _>>()?;
            if roots.is_empty() {
                return Err(wrong("there is no certificate in it".to_owned()));
            }
            RootCerts::Specific(Arc::new(roots))
        }
    };
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(provider))
        .build())
}

/// What stands in for the configuration, on another machine or with another token.
#[derive(clap::Args)]
pub struct Told {
    /// The token to use, in a file; the operator's otherwise.
    #[arg(long, global = true, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The admin API: HOST:PORT of this machine, or https://HOST; the configuration's otherwise.
    #[arg(long, global = true, env = "TIDEGATE_ADMIN", value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// Certificates (PEM) that vouch for https:// instead of Mozilla's list.
    #[arg(long, global = true, env = "TIDEGATE_ADMIN_CA", value_name = "FILE")]
    pub admin_ca: Option<PathBuf>,
}

fn address_of(config: &Config) -> Result<String, Failure> {
    if config.admin.address.port() != 0 {
        return Ok(config.admin.address.to_string());
    }
    let path: PathBuf = config.data_dir.join(crate::serve::ADMIN_ADDRESS);
    std::fs::read_to_string(&path)
        .map(|text| text.trim().to_owned())
        .map_err(|e| Failure::NotRunning {
            address: path.display().to_string(),
            reason: e.to_string(),
        })
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::failed(
            format!("the admin token can't be read: {}: {e}", path.display()),
            if e.kind() == std::io::ErrorKind::PermissionDenied {
                "run as the user who owns the file"
            } else {
                "make one with: tidegate init"
            },
        )
    })?;
    Ok(text.trim().to_owned())
}

/// A text as one segment of a path.
pub fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::{origin, segment};

    #[test]
    fn the_token_is_sent_in_clear_to_this_machine_alone() {
        for (text, at) in [
            ("127.0.0.1:8025", "http://127.0.0.1:8025"),
            ("localhost:8025", "http://localhost:8025"),
            ("[::1]:8025", "http://[::1]:8025"),
            ("https://gateway.example", "https://gateway.example"),
            (
                "https://gateway.example:8443/",
                "https://gateway.example:8443",
            ),
        ] {
            assert_eq!(origin(text).unwrap(), at, "{text}");
        }
        for text in [
            "gateway.example:8025",
            "http://192.0.2.1:8025",
            "https://gateway.example/api",
            "ftp://127.0.0.1",
            "",
        ] {
            let failure = origin(text).unwrap_err();
            assert_eq!(failure.exit() as u8, 2, "{text}: {failure}");
        }
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(segment("crm@acme/x y"), "crm%40acme%2Fx%20y");
        assert_eq!(segment("a-b_c.d~"), "a-b_c.d~");
    }
}
