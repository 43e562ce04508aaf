//! The client of the admin API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_admin::ErrorBody;

use super::{Failure, out_json};
use crate::config::Config;

pub struct Client {
    agent: ureq::Agent,
    address: String,
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
        let (token, address) = match (&told.token_file, &told.admin) {
            (Some(file), Some(admin)) => (read_token(file)?, admin.clone()),
            (file, admin) => {
                let config = config()?;
                let token = read_token(file.as_ref().unwrap_or(&config.admin.token_file))?;
                let address = match admin {
                    Some(admin) => admin.clone(),
                    None => address_of(&config)?,
                };
                (token, address)
            }
        };
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(180)))
            .build()
            .into();
        Ok(Client {
            agent,
            address,
            token,
            json,
        })
    }

    /// The same for an output whose every line is a value: errors are told on standard error only.
    pub fn for_stream(&self) -> Client {
        Client {
            agent: self.agent.clone(),
            address: self.address.clone(),
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
        self.answer(request.call())
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
        self.answer(request.send_json(body))
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
        self.answer(request.send_json(body))
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
        self.answer(request.send_json(body))
    }

    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self
            .agent
            .delete(self.url(path))
            .header("authorization", self.bearer());
        self.answer(request.call())
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
        format!("http://{}/api/v1{path}", self.address)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn answer<T: DeserializeOwned>(
        &self,
        result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Failure> {
        let not_running = |reason: String| Failure::NotRunning {
            address: self.address.clone(),
            reason,
        };
        let mut response = result.map_err(|error| match error {
            ureq::Error::Io(e) => not_running(e.to_string()),
            ureq::Error::ConnectionFailed | ureq::Error::Timeout(ureq::Timeout::Connect) => {
                not_running("no connection".to_owned())
            }
            other => Failure::failed(
                format!("the gateway at {} did not answer: {other}", self.address),
                "see its messages on standard error",
            ),
        })?;
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
                    self.address
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

/// What stands in for the configuration, on another machine or with another token.
#[derive(clap::Args)]
pub struct Told {
    /// The token to use, in a file; the operator's otherwise.
    #[arg(long, global = true, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The admin API's HOST:PORT; the configuration's otherwise.
    #[arg(long, global = true, env = "TIDEGATE_ADMIN", value_name = "HOST:PORT")]
    pub admin: Option<String>,
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
    use super::segment;

    #[test]
    fn segments_are_encoded() {
        assert_eq!(segment("crm@acme/x y"), "crm%40acme%2Fx%20y");
        assert_eq!(segment("a-b_c.d~"), "a-b_c.d~");
    }
}
