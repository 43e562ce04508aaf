//! Which addresses the gateway may deliver to.
//!
//! A tenant names its servers and every sender names domains, so both could point the
//! gateway at its own network. Unless private destinations are allowed, everything that
//! is not a global unicast address is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Whether mail may be sent there when private destinations are not allowed.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// Whether the address is public and another machine's.
pub fn is_foreign(address: IpAddr) -> bool {
    is_public(address) && !is_of_this_machine(address)
}

/// Whether mail may be sent there, however the address was found: by name or as a literal.
pub fn is_allowed(address: IpAddr, private: bool) -> bool {
    private || is_foreign(address)
}

/// Whether the address is one of this machine's own: the kernel would call it from that very
/// address. Connecting a datagram socket asks it, and sends nothing.
pub fn is_of_this_machine(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let own = UdpSocket::bind((any, 0)).and_then(|socket| {
        // Any port will do.
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    address.is_unspecified()
        || address.is_loopback()
        || own.is_ok_and(|own| own.ip().to_canonical() == address)
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = a == 0                                  // "this network", RFC 1122
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()                        // also the cloud's metadata service
        || (a == 100 && b & 0xc0 == 64)                   // carrier-grade NAT, RFC 6598
        || (a == 192 && b == 0 && c == 0)                 // IETF protocol assignments
        || (a == 198 && b & 0xfe == 18)                   // benchmarking, RFC 2544
        || a >= 224; // multicast, reserved, broadcast
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // Forms that carry an IPv4 address are as public as that address.
    if let Some(v4) = address.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let s = address.segments();
    let embedded =
        |high: u16, low: u16| is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low), // NAT64, RFC 6052
        [0x2002, high, low, ..] => embedded(high, low),               // 6to4, RFC 3056
        // Only 2000::/3 is global unicast; Teredo (2001::/32) is not a mail server.
        [0x2001, 0, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// The address of a literal as RFC 5321 s. 4.1.3 writes it: `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
pub fn literal(domain: &str) -> Option<Result<IpAddr, ()>> {
    let inner = domain.strip_prefix('[')?;
    let Some(inner) = inner.strip_suffix(']') else {
        return Some(Err(()));
    };
    let tagged = inner
        .get(..5)
        .filter(|tag| tag.eq_ignore_ascii_case("ipv6:"))
        .map(|tag| &inner[tag.len()..]);
    Some(match tagged {
        Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| ()),
        None => inner.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| ()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_global_unicast_is_public() {
        for public in [
            "8.8.8.8",
            "203.0.113.5",
            "2a00:1450:400c::1a",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "fec0::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:0:1::1",
            "::7f00:1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    #[test]
    fn own_addresses_are_known() {
        for own in [
            "127.0.0.1",
            "127.9.8.7",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
        ] {
            let own = own.parse().unwrap();
            assert!(is_of_this_machine(own), "{own}");
            assert!(!is_allowed(own, false) && is_allowed(own, true), "{own}");
        }
        for other in ["192.0.2.1", "8.8.8.8", "2001:db8::1"] {
            assert!(!is_of_this_machine(other.parse().unwrap()), "{other}");
        }
        // The address that this machine calls others from, whatever it is, is its own.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert!(is_of_this_machine(own) && !is_allowed(own, false), "{own}");
        }
    }

    #[test]
    fn literals() {
        assert_eq!(literal("example.com"), None);
        assert_eq!(
            literal("[192.0.2.1]"),
            Some(Ok("192.0.2.1".parse().unwrap()))
        );
        assert_eq!(literal("[ipv6:::1]"), Some(Ok("::1".parse().unwrap())));
        for bad in [
            "[192.0.2]",
            "[::1]",
            "[IPv6:1.2.3.4]",
            "[x-tag:foo]",
            "[1.2.3.4",
            "[é]",
        ] {
            assert_eq!(literal(bad), Some(Err(())), "{bad}");
        }
    }
}
