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
}

/// The DNS as mail routing needs it (RFC 5321 s. 5.1, RFC 7505).
pub trait Resolver: Send + Sync + 'static {
    /// Resolves a domain of an address: MX records, else the domain's own addresses
    /// (implicit MX), or an address literal. The error is an outcome at stage `Dns`:
    /// permanent for a null MX, NXDOMAIN or no address; temporary for anything else.
    fn resolve<'a>(&'a self, domain: &'a str) -> Fut<'a, Result<Arc<Destination>, Outcome>>;
}
