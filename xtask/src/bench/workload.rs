//! The work that relays are given.

use serde::{Deserialize, Serialize};

/// Destinations, each an address with a domain of its own.
pub const DOMAINS: u8 = 10;

pub fn domain(at: u8) -> String {
    format!("d{at}.test")
}

/// The sender that relays have to let in.
pub const SENDER: &str = "bench@source.test";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// 5 KiB, many messages on a connection.
    Keep,
    /// 5 KiB, one message on a connection.
    One,
    /// 50 KiB, many messages on a connection.
    Big,
    /// 5 KiB to 10 recipients in 10 domains, many messages on a connection.
    Many,
    /// As keep, with TLS from the source to the relay and from the relay to the sink.
    Tls,
    /// As one, with TLS on both sides; sessions are resumed.
    TlsOne,
}

impl Workload {
    pub fn size(self) -> usize {
        if self == Workload::Big {
            50 * 1024
        } else {
            5 * 1024
        }
    }

    pub fn keeps(self) -> bool {
        !matches!(self, Workload::One | Workload::TlsOne)
    }

    pub fn tls(self) -> bool {
        matches!(self, Workload::Tls | Workload::TlsOne)
    }

    pub fn recipients(self) -> Vec<String> {
        let number = if self == Workload::Many { DOMAINS } else { 1 };
        (0..number)
            .map(|at| format!("someone@{}", domain(at)))
            .collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Workload::Keep => "keep",
            Workload::One => "one",
            Workload::Big => "big",
            Workload::Many => "many",
            Workload::Tls => "tls",
            Workload::TlsOne => "tls-one",
        }
    }

    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Workload::Keep => "5 KiB, connections kept",
            Workload::One => "5 KiB, one message a connection",
            Workload::Big => "50 KiB, connections kept",
            Workload::Many => "5 KiB, 10 recipients in 10 domains, connections kept",
            Workload::Tls => "5 KiB, connections kept, TLS on both sides",
            Workload::TlsOne => "5 KiB, one message a connection, TLS on both sides",
        }
    }
}
