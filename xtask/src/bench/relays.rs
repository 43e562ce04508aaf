//! The relays under measurement: how each is configured, started, and ended.
//!
//! All sync what they accept before they answer for it, unless their name says otherwise; they
//! sign nothing, and deliver to the ten domains of the benchmark at ten addresses.

mod daemon;
mod exim;
mod haraka;
pub mod opensmtpd;
mod postfix;
mod tidegate;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tidegate_tests::proc;
use tidegate_tests::tls::ClientConfig;

use super::measure::Destinations;
use super::workload::Workload;
use crate::host;
use postfix::Postfix;
pub use tidegate::Tidegate;

/// What is traced to count syncs: all calls that wait for the disk.
pub const SYNCS: &str = "trace=fsync,fdatasync,sync,syncfs,sync_file_range,msync";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    None,
    Tidegate,
    /// The gateway with its syncs turned off: what they cost.
    #[value(skip)]
    Unsynced,
    Postfix,
    Exim,
    #[value(name = "opensmtpd")]
    OpenSmtpd,
    Haraka,
}

impl Kind {
    /// With what a reader of figures has to know of it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Tidegate => "tidegate",
            Kind::Unsynced => "tidegate (syncs off)",
            Kind::Postfix => "postfix",
            Kind::Exim => "exim",
            Kind::OpenSmtpd => "opensmtpd (not synced)",
            Kind::Haraka => "haraka",
        }
    }

    /// How to install what is not here.
    pub fn missing(self) -> Option<&'static str> {
        match self {
            Kind::None | Kind::Tidegate => None,
            Kind::Unsynced => host::find("eatmydata")
                .is_none()
                .then_some("Debian: apt-get install eatmydata"),
            Kind::Postfix => host::find("postfix")
                .is_none()
                .then_some("Debian: apt-get install postfix"),
            Kind::Exim => exim::program().is_none().then_some(
                "Debian: apt-get install exim4-daemon-light; beside another mail server: \
                 apt-get download it, dpkg -x, and exim4 in PATH",
            ),
            Kind::OpenSmtpd => opensmtpd::program().is_none().then_some(
                "Debian: apt-get install opensmtpd; beside another mail server: apt-get download \
                 it, dpkg -x, and smtpd in PATH",
            ),
            Kind::Haraka => host::find("haraka")
                .is_none()
                .then_some("npm install -g Haraka, with Node.js 20 or newer"),
        }
    }

    /// Whether it is set up for this workload here.
    pub fn can(self, workload: Workload) -> bool {
        let without_tls = matches!(self, Kind::Exim | Kind::OpenSmtpd | Kind::Haraka);
        !without_tls || !workload.tls()
    }

    /// Another mail server.
    pub fn is_peer(self) -> bool {
        !matches!(self, Kind::None | Kind::Tidegate | Kind::Unsynced)
    }
}

/// Another mail server that runs.
pub trait Peer {
    fn address(&self) -> SocketAddr;
    /// The process whose family it is.
    fn pid(&self) -> u32;
    fn stop(self: Box<Self>) -> anyhow::Result<()>;
}

/// A running relay.
pub enum Relay {
    /// The sink itself, and what trusts it.
    None(SocketAddr, Option<String>),
    Tidegate(Box<Tidegate>),
    Peer(Box<dyn Peer + Sync>, Option<String>),
}

impl Relay {
    /// Starts with its queue below `place`, and its syncs traced to a file if one is given.
    pub fn start(
        kind: Kind,
        to: &Destinations,
        place: &Path,
        trace: Option<&Path>,
    ) -> anyhow::Result<Relay> {
        let pem = to.identity.as_ref().map(|i| i.certificate_pem.clone());
        Ok(match kind {
            Kind::None => Relay::None(to.sink.addresses()[0], pem),
            Kind::Tidegate => Relay::Tidegate(Box::new(Tidegate::start(to, place, trace)?)),
            Kind::Unsynced => Relay::Tidegate(Box::new(Tidegate::unsynced(to, place, trace)?)),
            Kind::Postfix => Relay::Peer(Box::new(Postfix::start(to, place, trace)?), pem),
            Kind::Exim => Relay::Peer(Box::new(exim::start(to, place, trace)?), None),
            Kind::OpenSmtpd => Relay::Peer(Box::new(opensmtpd::start(to, place, trace)?), None),
            Kind::Haraka => Relay::Peer(Box::new(haraka::start(to, place, trace)?), None),
        })
    }

    /// Where it takes mail, in clear or with STARTTLS.
    pub fn address(&self, tls: bool) -> SocketAddr {
        match self {
            Relay::None(address, _) => *address,
            Relay::Tidegate(tidegate) => tidegate.address(tls),
            Relay::Peer(peer, _) => peer.address(),
        }
    }

    /// Trusts its certificate, which is for the name.
    pub fn trust(&self) -> anyhow::Result<(Arc<ClientConfig>, String)> {
        let pem = match self {
            Relay::Tidegate(tidegate) => {
                return Ok((tidegate.gateway.trust()?, "gateway.test".into()));
            }
            Relay::None(_, pem) | Relay::Peer(_, pem) => pem.as_deref(),
        };
        let pem = pem.context("no TLS here")?;
        Ok((
            tidegate_tests::tls::client_trusting(pem)?,
            "relay.test".into(),
        ))
    }

    pub fn login(&self) -> Option<(String, String)> {
        matches!(self, Relay::Tidegate(_)).then(tidegate::login)
    }

    /// The process whose family is the relay.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Relay::None(..) => None,
            Relay::Tidegate(tidegate) => tidegate.gateway.pid().ok(),
            Relay::Peer(peer, _) => Some(peer.pid()),
        }
    }

    pub fn cpu(&self) -> Option<Duration> {
        self.pid().map(proc::family_cpu)
    }

    /// SIGKILL to the gateway.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        match self {
            Relay::Tidegate(tidegate) => tidegate.gateway.kill(),
            _ => bail!("only the gateway is killed"),
        }
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        match self {
            Relay::Tidegate(tidegate) => tidegate.gateway.start(),
            _ => bail!("only the gateway is started again"),
        }
    }

    pub fn stop(self) -> anyhow::Result<()> {
        match self {
            Relay::None(..) => Ok(()),
            Relay::Tidegate(mut tidegate) => tidegate.gateway.stop().map(drop),
            Relay::Peer(peer, _) => peer.stop(),
        }
    }
}

/// A free port of the address that relays listen on.
fn free_address(to: &Destinations) -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((to.relay, 0))?.local_addr()?)
}
