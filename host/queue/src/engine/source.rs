//! Which of a relay's addresses a destination is called from.

use std::net::IpAddr;

use super::shard_of;
use crate::ports::Destination;

/// The source address for a destination: always the same one, so that a greylisting
/// destination sees the address it saw before, and of a family in which the destination can be
/// called. With none of such a family it is any, and the attempt says what is missing.
pub(super) fn source_for(sources: &[IpAddr], destination: &Destination) -> Option<IpAddr> {
    let mut families = [false; 2];
    for ip in destination.hosts.iter().flat_map(|host| &host.addresses) {
        families[usize::from(ip.is_ipv6())] = true;
    }
    let fits = |source: &&IpAddr| families[usize::from(source.is_ipv6())];
    let at = usize::from(shard_of("", &destination.domain));
    match sources.iter().filter(fits).count() {
        0 => sources.get(at % sources.len().max(1)),
        fitting => sources.iter().filter(fits).nth(at % fitting),
    }
    .copied()
}

#[cfg(test)]
mod tests {
    use tidegate_mail::Timestamp;

    use super::*;
    use crate::ports::MxHost;

    fn at(domain: String, addresses: &[&str]) -> Destination {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Destination {
            site: domain.as_str().into(),
            domain,
            hosts: vec![MxHost::new("mx.example", 10, addresses)],
            valid_until: Timestamp::FAR_FUTURE,
        }
    }

    #[test]
    fn a_destination_is_called_from_an_address_of_its_own_family_and_always_the_same() {
        let all: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1", "192.0.2.2"]
            .map(|ip| ip.parse().unwrap())
            .to_vec();
        let mut used = [0; 3];
        for n in 0..300 {
            let domain = format!("d{n}.example");
            let source = |addresses: &[&str]| source_for(&all, &at(domain.clone(), addresses));
            let v4 = source(&["198.51.100.1"]);
            assert!(v4.is_some_and(|ip| ip.is_ipv4()), "{v4:?}");
            assert_eq!(source(&["198.51.100.1"]), v4);
            assert_eq!(source(&["2001:db8:1::1"]), Some(all[1]));
            let both = source(&["198.51.100.1", "2001:db8:1::1"]).unwrap();
            used[all.iter().position(|ip| *ip == both).unwrap()] += 1;
            let v4_only = source_for(&all[..1], &at(domain.clone(), &["2001:db8:1::1"]));
            assert_eq!(v4_only, Some(all[0]), "there is no other");
        }
        assert!(used.iter().all(|n| *n > 50), "{used:?}");
        assert_eq!(source_for(&[], &at("d.example".into(), &[])), None);
    }
}
