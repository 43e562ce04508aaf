//! The file at `https://mta-sts.DOMAIN/.well-known/mta-sts.txt` (RFC 8461 s. 3.3): a verified
//! certificate, no redirects, plain text, bounded in size and time.

use std::net::SocketAddr;

use http_body_util::Full;
use hyper::Request;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use tidegate_mail::sts::{MAX_POLICY, Policy};

use super::Sts;
use crate::http::{Connection, body};
use crate::resolver::DnsConfig;
use crate::resolver::ask::Dns;
use crate::resolver::records::{addresses, fqdn};

const PATH: &str = "/.well-known/mta-sts.txt";

/// Fetches the policy of a domain. The error is for people.
pub(super) async fn fetch(
    sts: &Sts,
    dns: &Dns,
    config: &DnsConfig,
    domain: &str,
) -> Result<Policy, String> {
    let fetching = async {
        let host = format!("mta-sts.{domain}");
        let name = fqdn(&host).ok_or("the policy host's name is none")?;
        let found = addresses(dns, name, config, config.allow_private).await;
        if found.usable.is_empty() {
            return Err(match found.failed {
                Some(detail) => format!("{host}: {detail}"),
                None if found.forbidden => format!("{host} has an address that is not allowed"),
                None => format!("{host} has no address"),
            });
        }
        let at = |ip| SocketAddr::new(ip, sts.config.port);
        let peers = found.usable.into_iter().map(at);
        let limit = sts.config.timeout;
        let connection = Connection::open(Some(&sts.tls), &host, peers, limit).await?;
        get(&host, connection).await
    };
    match tokio::time::timeout(sts.config.timeout, fetching).await {
        Ok(fetched) => fetched,
        Err(_) => Err("the policy host did not answer in time".to_owned()),
    }
}

async fn get(host: &str, mut connection: Connection) -> Result<Policy, String> {
    let request = Request::get(PATH)
        .header(HOST, host)
        .header(ACCEPT, "text/plain")
        .header(USER_AGENT, "tidegate")
        .body(Full::default())
        .map_err(|error| error.to_string())?;
    let asked = connection.ask(request).await;
    let response = asked.map_err(|error| format!("{host}: {error}"))?;
    // RFC 8461 s. 3.3: a redirect is not followed; anything but 200 is no policy.
    if response.status() != hyper::StatusCode::OK {
        return Err(format!("{host} answered {}", response.status().as_u16()));
    }
    let kind = response.headers().get(CONTENT_TYPE);
    let kind = kind.and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = kind.split(';').next().unwrap_or_default().trim();
    if !media.eq_ignore_ascii_case("text/plain") {
        return Err(format!("{host} answered with `{media}`, not text/plain"));
    }
    let text = body(response.into_body(), MAX_POLICY).await;
    let text = text.map_err(|error| format!("{host}: {error}"))?;
    Policy::parse(&text).map_err(|error| format!("{host}: {error}"))
}
