//! A small local internet: one name server, and destinations that share the MX port on addresses
//! of their own.

use std::net::Ipv4Addr;

use crate::dns::Dns;
use crate::sink::{Behaviour, Destination};
use crate::{address, loopback_block};

/// Names, addresses and the one port that stands for 25.
pub struct Internet {
    pub dns: Dns,
    block: [u8; 3],
    next: u8,
    mx_port: u16,
}

impl Internet {
    pub fn start() -> anyhow::Result<Internet> {
        let block = loopback_block();
        // Found free on one address of the block, it is free on all.
        let probe = std::net::TcpListener::bind((address(block, 2), 0))?;
        let mx_port = probe.local_addr()?.port();
        Ok(Internet {
            dns: Dns::start()?,
            block,
            next: 2,
            mx_port,
        })
    }

    pub fn mx_port(&self) -> u16 {
        self.mx_port
    }

    /// The block's own address for the gateway's listeners.
    pub fn gateway(&self) -> Ipv4Addr {
        address(self.block, 1)
    }

    /// An address that nobody listens on yet.
    pub fn unused(&mut self) -> Ipv4Addr {
        let unused = address(self.block, self.next);
        self.next += 1;
        unused
    }

    /// A destination for a domain: its server, its MX and its address record.
    pub fn destination(
        &mut self,
        domain: &str,
        behaviour: Behaviour,
    ) -> anyhow::Result<Destination> {
        let ip = self.unused();
        let destination = Destination::start(ip, self.mx_port, behaviour)?;
        self.point(domain, ip);
        Ok(destination)
    }

    /// A domain whose one MX does not answer: connections are refused.
    pub fn unreachable(&mut self, domain: &str) -> Ipv4Addr {
        let ip = self.unused();
        self.point(domain, ip);
        ip
    }

    /// Gives the domain an MX, and that one this address.
    pub fn point(&self, domain: &str, ip: Ipv4Addr) {
        let host = format!("mx.{domain}");
        self.dns.mx(domain, 10, &host).host(&host, ip);
    }
}
