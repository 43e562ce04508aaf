//! Records as the resolver needs them: MX sets and the addresses of a host.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use tidegate_mail::{Fault, Outcome, Stage};

use super::ask::{Dns, Trust};
use super::{DnsConfig, address};

/// The records of one name and type.
pub(crate) enum Found {
    /// Whether the whole answer is secure comes with it.
    Records(Lookup, bool),
    /// The name exists without such records.
    Nothing,
    NoSuchName,
    Failed(String),
}

/// The addresses of a host name.
#[derive(Default)]
pub(crate) struct Addresses {
    pub usable: Vec<IpAddr>,
    pub forbidden: bool,
    /// What went wrong with a query, in the library's words.
    pub failed: Option<String>,
    pub no_such_name: bool,
    pub valid_for: Option<Duration>,
    /// Every answer that had addresses is secure.
    pub secure: bool,
    /// The name at the end of the aliases, if there are any.
    pub alias_of: Option<Name>,
}

pub(crate) fn fqdn(domain: &str) -> Option<Name> {
    let mut name = Name::from_ascii(domain).ok()?;
    name.set_fqdn(true);
    (!name.is_root()).then_some(name)
}

pub(super) fn remaining(lookup: &Lookup) -> Duration {
    lookup
        .valid_until()
        .saturating_duration_since(Instant::now())
}

/// Preference and name of each MX host, in no order; a null MX is an error.
pub(super) fn mx_hosts(lookup: &Lookup) -> Result<Vec<(u16, String)>, Outcome> {
    let mut null = false;
    let mut hosts: Vec<(u16, String)> = Vec::new();
    for record in lookup.answers() {
        let RData::MX(mx) = &record.data else {
            continue;
        };
        if mx.exchange.is_root() {
            null = true;
            continue;
        }
        let mut name = mx.exchange.to_ascii();
        name.make_ascii_lowercase();
        if name.ends_with('.') {
            name.pop();
        }
        match hosts.iter_mut().find(|(_, known)| *known == name) {
            Some(known) => known.0 = known.0.min(mx.preference),
            None => hosts.push((mx.preference, name)),
        }
    }
    // RFC 7505 s. 3: a null MX beside others is no null MX; the others count.
    if null && hosts.is_empty() {
        return Err(Outcome::from_fault(Stage::Dns, Fault::NullMx));
    }
    Ok(hosts)
}

/// By preference, in random order among equals (RFC 5321 s. 5.1).
pub(super) fn shuffle_equals(hosts: &mut [(u16, String)]) {
    use std::hash::{BuildHasher, RandomState};
    // Each RandomState has fresh keys, so the hash of a name is a random number.
    let random = RandomState::new();
    hosts.sort_by_cached_key(|(preference, name)| (*preference, random.hash_one(name)));
}

pub(crate) async fn records(dns: &Dns, name: &Name, kind: RecordType) -> Found {
    match dns.resolver.lookup(name.clone(), kind).await {
        Ok(lookup) if lookup.answers().iter().any(|r| r.record_type() == kind) => {
            let secure = is_secure(&lookup, name, dns.trust);
            Found::Records(lookup, secure)
        }
        Ok(_) => Found::Nothing,
        Err(error) => {
            let code = match &error {
                NetError::Dns(DnsError::NoRecordsFound(none)) => none.response_code,
                // Denied with a proof, or from a zone that has none to give.
                NetError::Dns(DnsError::Nsec {
                    response, proof, ..
                }) if !proof.is_bogus() => response.metadata.response_code,
                _ => return Found::Failed(error.to_string()),
            };
            match code {
                ResponseCode::NXDomain => Found::NoSuchName,
                ResponseCode::NoError => Found::Nothing,
                other => Found::Failed(other.to_string()),
            }
        }
    }
}

/// Whether every record of an answer is secure.
fn is_secure(lookup: &Lookup, name: &Name, trust: Trust) -> bool {
    match trust {
        Trust::Nothing => false,
        // An answer put together of several has the flags of the last.
        Trust::AdBit => lookup.message().metadata.authentic_data && lookup.query().name() == name,
        Trust::Proofs => lookup
            .answers()
            .iter()
            .filter(|r| r.record_type() != RecordType::RRSIG)
            .all(|r| r.proof.is_secure()),
    }
}

/// Both families at the same time; IPv6 and IPv4 by turns, so that a family that does not
/// work costs one try only.
pub(crate) async fn addresses(
    dns: &Dns,
    name: Name,
    config: &DnsConfig,
    allow_private: bool,
) -> Addresses {
    let six = async {
        if config.ipv6 {
            records(dns, &name, RecordType::AAAA).await
        } else {
            Found::Nothing
        }
    };
    let (six, four) = tokio::join!(six, records(dns, &name, RecordType::A));
    let mut result = Addresses {
        no_such_name: matches!(four, Found::NoSuchName),
        secure: true,
        ..Addresses::default()
    };
    let mut take = |found: Found| -> Vec<IpAddr> {
        match found {
            Found::Records(lookup, secure) => {
                result.secure &= secure;
                let owner = lookup.answers().iter().find(|r| r.data.ip_addr().is_some());
                if let Some(owner) = owner.filter(|r| r.name != name) {
                    result.alias_of = Some(owner.name.clone());
                }
                let valid_for = remaining(&lookup);
                result.valid_for = Some(result.valid_for.map_or(valid_for, |v| v.min(valid_for)));
                let mut all: Vec<IpAddr> = lookup
                    .answers()
                    .iter()
                    .filter_map(|r| r.data.ip_addr())
                    .collect();
                let before = all.len();
                all.retain(|ip| address::is_allowed(*ip, allow_private));
                result.forbidden |= all.len() < before;
                all
            }
            Found::Nothing | Found::NoSuchName => Vec::new(),
            Found::Failed(detail) => {
                result.failed.get_or_insert(detail);
                Vec::new()
            }
        }
    };
    let (mut six, mut four) = (take(six).into_iter(), take(four).into_iter());
    let mut usable = Vec::new();
    while usable.len() < config.max_addresses {
        let before = usable.len();
        usable.extend(six.next());
        usable.extend(four.next());
        if usable.len() == before {
            break;
        }
    }
    usable.truncate(config.max_addresses);
    result.usable = usable;
    result
}
