//! What DANE demands of a host (RFC 7672): from the DNS to a [`Protection`].
//!
//! Only where the MX records and the host's addresses are secure: elsewhere nobody could
//! tell an absent TLSA record from a suppressed one, and the servers of unsigned zones are
//! known to fail at questions for such records (RFC 7672 s. 2.2.2).

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::{Name, RData, RecordType};
use tidegate_queue::ports::{Dane, Protection, Tlsa};

use super::ask::Dns;
use super::records::{Addresses, Found, records, remaining};

/// TLSA records of one host that are read.
const MAX_RECORDS: usize = 32;

/// For a host with secure or insecure addresses, and how long the answer holds. To be asked only
/// where the MX records are secure, or there are none; `domain`: the recipient's.
pub(super) async fn protection(
    dns: &Dns,
    host: &Name,
    addresses: &Addresses,
    port: u16,
    domain: &str,
) -> (Protection, Duration) {
    let mut valid_for = Duration::MAX;
    for base in bases(dns, host, addresses).await {
        let Ok(name) = Name::from_ascii(format!("_{port}._tcp.{base}")) else {
            // Too long to be a name, so there is no such record.
            continue;
        };
        match records(dns, &name, RecordType::TLSA).await {
            Found::Records(lookup, true) => {
                valid_for = valid_for.min(remaining(&lookup));
                let all = lookup.answers().iter().filter_map(|r| match &r.data {
                    RData::TLSA(tlsa) => Some(Tlsa {
                        usage: tlsa.cert_usage.into(),
                        selector: tlsa.selector.into(),
                        matching: tlsa.matching.into(),
                        data: tlsa.cert_data.clone(),
                    }),
                    _ => None,
                });
                let usable = usable(all.take(MAX_RECORDS).collect());
                if usable.is_empty() {
                    return (Protection::Encrypted, valid_for);
                }
                return (demand(usable, &base, host, domain), valid_for);
            }
            Found::Records(..) | Found::Nothing | Found::NoSuchName => {}
            Found::Failed(detail) => {
                return (Protection::Unknown(format!("{name}: {detail}")), valid_for);
            }
        }
    }
    (Protection::Opportunistic, valid_for)
}

/// The TLSA base domains to try, in this order (RFC 7672 s. 2.2.2, 2.2.3): the name at the end
/// of a secure chain of aliases, then the host's own.
async fn bases(dns: &Dns, host: &Name, addresses: &Addresses) -> Vec<Name> {
    match &addresses.alias_of {
        None if addresses.secure => vec![host.clone()],
        None => Vec::new(),
        Some(end) if addresses.secure => vec![end.clone(), host.clone()],
        // The chain leaves the signed part of the DNS; its beginning may be in there.
        Some(_) => match records(dns, host, RecordType::CNAME).await {
            Found::Records(_, true) => vec![host.clone()],
            _ => Vec::new(),
        },
    }
}

fn demand(records: Vec<Tlsa>, base: &Name, host: &Name, domain: &str) -> Protection {
    let base = plain(base);
    let mut names = Vec::new();
    if records.iter().any(|r| r.usage == 2) {
        for name in [base.clone(), plain(host), domain.to_owned()] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Protection::Dane(Arc::new(Dane {
        records,
        base,
        names,
    }))
}

fn plain(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// The records that can be used: DANE-TA and DANE-EE (RFC 7672 s. 3.1.3 rules out the PKIX
/// usages), with known selectors, matching types and lengths. Of several digests for a
/// usage and selector only the strongest counts (RFC 7671 s. 9).
fn usable(mut records: Vec<Tlsa>) -> Vec<Tlsa> {
    records.retain(|r| {
        let length = match r.matching {
            0 => !r.data.is_empty(),
            1 => r.data.len() == 32,
            2 => r.data.len() == 64,
            _ => false,
        };
        matches!(r.usage, 2 | 3) && matches!(r.selector, 0 | 1) && length
    });
    let strong: Vec<(u8, u8)> = records
        .iter()
        .filter(|r| r.matching == 2)
        .map(|r| (r.usage, r.selector))
        .collect();
    records.retain(|r| r.matching != 1 || !strong.contains(&(r.usage, r.selector)));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlsa(usage: u8, selector: u8, matching: u8, length: usize) -> Tlsa {
        Tlsa {
            usage,
            selector,
            matching,
            data: vec![7; length],
        }
    }

    #[test]
    fn usable_records() {
        for (record, expected) in [
            (tlsa(3, 1, 1, 32), true),
            (tlsa(3, 0, 2, 64), true),
            (tlsa(3, 0, 0, 500), true),
            (tlsa(2, 0, 1, 32), true),
            (tlsa(2, 1, 2, 64), true),
            // PKIX usages, unknown numbers, digests of another length.
            (tlsa(0, 1, 1, 32), false),
            (tlsa(1, 1, 1, 32), false),
            (tlsa(4, 1, 1, 32), false),
            (tlsa(255, 1, 1, 32), false),
            (tlsa(3, 2, 1, 32), false),
            (tlsa(3, 1, 3, 32), false),
            (tlsa(3, 1, 1, 31), false),
            (tlsa(3, 1, 2, 32), false),
            (tlsa(3, 1, 0, 0), false),
        ] {
            assert_eq!(
                !usable(vec![record.clone()]).is_empty(),
                expected,
                "{record:?}"
            );
        }
    }

    #[test]
    fn the_strongest_digest_counts() {
        let left = usable(vec![
            tlsa(3, 1, 1, 32),
            tlsa(3, 1, 2, 64),
            tlsa(3, 0, 1, 32),
            tlsa(2, 1, 1, 32),
            tlsa(3, 1, 0, 91),
        ]);
        let kinds: Vec<_> = left
            .iter()
            .map(|r| (r.usage, r.selector, r.matching))
            .collect();
        assert_eq!(kinds, [(3, 1, 2), (3, 0, 1), (2, 1, 1), (3, 1, 0)]);
    }

    #[test]
    fn names_bind_trust_anchors_only() {
        let name = |text| Name::from_ascii(text).unwrap();
        let of = |usage| {
            let records = vec![tlsa(usage, 1, 1, 32)];
            match demand(
                records,
                &name("real.mx.example."),
                &name("MX.example."),
                "d.example",
            ) {
                Protection::Dane(dane) => dane,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of(2).names, ["real.mx.example", "mx.example", "d.example"]);
        assert!(of(3).names.is_empty());
        assert_eq!(of(3).base, "real.mx.example");
    }
}
