//! The relays under measurement: how each is configured, started, and ended.
//!
//! All sync what they accept before they answer for it, sign nothing, and deliver to the ten
//! domains of the benchmark at ten addresses.

mod exim;
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
use exim::Exim;
use postfix::Postfix;
pub use tidegate::Tidegate;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    None,
    Tidegate,
    Postfix,
    Exim,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Tidegate => "tidegate",
            Kind::Postfix => "postfix",
            Kind::Exim => "exim",
        }
    }

    /// How to install what is not here.
    pub fn missing(self) -> Option<&'static str> {
        match self {
            Kind::Postfix if host::find("postfix").is_none() => {
                Some("Debian: apt-get install postfix")
            }
            Kind::Exim if exim::program().is_none() => {
                Some("Debian: apt-get install exim4-daemon-light")
            }
            _ => None,
        }
    }

    /// Whether it is set up for this workload here.
    pub fn can(self, workload: Workload) -> bool {
        self != Kind::Exim || !workload.tls()
    }
}

/// A running relay.
pub enum Relay {
    /// The sink itself, and what trusts it.
    None(SocketAddr, Option<String>),
    Tidegate(Box<Tidegate>),
    Postfix(Postfix, Option<String>),
    Exim(Exim),
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
            Kind::Postfix => Relay::Postfix(Postfix::start(to, place, trace)?, pem),
            Kind::Exim => Relay::Exim(Exim::start(to, place, trace)?),
        })
    }

    /// Where it takes mail, in clear or with STARTTLS.
    pub fn address(&self, tls: bool) -> SocketAddr {
        match self {
            Relay::None(address, _) => *address,
            Relay::Tidegate(tidegate) => tidegate.address(tls),
            Relay::Postfix(postfix, _) => postfix.address(),
            Relay::Exim(exim) => exim.address(),
        }
    }

    /// Trusts its certificate, which is for the name.
    pub fn trust(&self) -> anyhow::Result<(Arc<ClientConfig>, String)> {
        let pem = match self {
            Relay::Tidegate(tidegate) => {
                return Ok((tidegate.gateway.trust()?, "gateway.test".into()));
            }
            Relay::None(_, pem) | Relay::Postfix(_, pem) => pem.as_deref(),
            Relay::Exim(_) => None,
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
            Relay::Postfix(postfix, _) => Some(postfix.master()),
            Relay::Exim(exim) => Some(exim.pid()),
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
            Relay::Postfix(postfix, _) => postfix.stop(),
            Relay::Exim(exim) => exim.stop(),
        }
    }
}
