use std::net::IpAddr;
use std::sync::Arc;

use tidegate_mail::{Outcome, Timestamp};

use super::Fut;

/// Where the mail of a domain goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub domain: String,
    /// The receiving site: a name that domains with the same set of MX hosts share.
    pub site: Arc<str>,
    /// In the order to be tried: by preference, shuffled among equals.
    pub hosts: Vec<MxHost>,
    /// From then on the answer is to be asked for again.
    pub valid_until: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxHost {
    /// In lower-case A-label form, without the final dot.
    pub name: String,
    pub preference: u16,
    /// IPv6 and IPv4, in the order to be tried; empty if the host has none.
    pub addresses: Vec<IpAddr>,
    /// What the domain demands of a connection to this host. Of the domain, not of the
    /// host: domains with the same hosts may demand different things.
    pub protection: Protection,
    /// That the host serves the domain is certain: by DNSSEC or by an MTA-STS policy
    /// (RFC 8689 s. 4.2.1).
    pub authentic: bool,
}

impl MxHost {
    /// A host of which nothing is demanded.
    pub fn new(name: impl Into<String>, preference: u16, addresses: Vec<IpAddr>) -> Self {
        MxHost {
            name: name.into(),
            preference,
            addresses,
            protection: Protection::default(),
            authentic: false,
        }
    }
}

/// What a domain demands of a connection to one of its hosts. DANE goes before MTA-STS
/// where both apply (RFC 8461 s. 2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// Nothing: TLS where it is offered (RFC 7435).
    #[default]
    Opportunistic,
    /// TLS with a certificate that matches a TLSA record (RFC 7672).
    Dane(Arc<Dane>),
    /// TLS with any certificate: there are TLSA records, none of them usable (RFC 7672 s. 2.2).
    Encrypted,
    /// Whether there are TLSA records could not be learnt: no connection at all. For people.
    Unknown(String),
    /// TLS with a certificate that the public roots vouch for, for the host's name (RFC 8461).
    Sts,
    /// An MTA-STS policy in force does not name the host: no connection at all.
    StsMismatch,
    /// As without a policy, and failures of it are logged.
    StsTesting {
        /// Whether the policy names the host.
        listed: bool,
    },
}

/// The usable TLSA records of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dane {
    /// Never empty.
    pub records: Vec<Tlsa>,
    /// The TLSA base domain, which is sent as SNI.
    pub base: String,
    /// Names of which the certificate must have one where a trust anchor is asserted; empty if
    /// no record does (RFC 7672 s. 3.1.1: DANE-EE binds no name).
    pub names: Vec<String>,
}

/// A TLSA record (RFC 6698 s. 2.1) by its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tlsa {
    pub usage: u8,
    pub selector: u8,
    pub matching: u8,
    pub data: Vec<u8>,
}

/// The DNS as mail routing needs it (RFC 5321 s. 5.1, RFC 7505).
pub trait Resolver: Send + Sync + 'static {
    /// Resolves a domain of an address: MX records, else the domain's own addresses
    /// (implicit MX), or an address literal. The error is an outcome at stage `Dns`:
    /// permanent for a null MX, NXDOMAIN or no address; temporary for anything else.
    fn resolve<'a>(&'a self, domain: &'a str) -> Fut<'a, Result<Arc<Destination>, Outcome>>;
}
