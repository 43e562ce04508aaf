//! The gateway with its default policies active, and the name server it asks.

use std::net::SocketAddr;
use std::path::Path;

use tidegate_tests::dns::Dns;
use tidegate_tests::gateway::{Gateway, Options};

use super::super::measure::Destinations;
use super::super::workload::{DOMAINS, domain};

pub struct Tidegate {
    pub gateway: Gateway,
    pub dns: Dns,
    _directory: tempfile::TempDir,
}

const USER: &str = "bench";
const PASSWORD: &str = "bench-password-1";

pub fn login() -> (String, String) {
    (USER.into(), PASSWORD.into())
}

impl Tidegate {
    pub fn start(
        to: &Destinations,
        place: &Path,
        trace: Option<&Path>,
    ) -> anyhow::Result<Tidegate> {
        Tidegate::with(to, place, trace, |options| options)
    }

    /// With its syncs turned off, by a library that is loaded before the system's.
    pub fn unsynced(
        to: &Destinations,
        place: &Path,
        trace: Option<&Path>,
    ) -> anyhow::Result<Tidegate> {
        Tidegate::wrapped(to, place, trace, &["eatmydata"], |options| options)
    }

    /// The same with more configuration.
    pub fn with(
        to: &Destinations,
        place: &Path,
        trace: Option<&Path>,
        more: impl FnOnce(Options) -> Options,
    ) -> anyhow::Result<Tidegate> {
        Tidegate::wrapped(to, place, trace, &[], more)
    }

    fn wrapped(
        to: &Destinations,
        place: &Path,
        trace: Option<&Path>,
        wrapper: &[&str],
        more: impl FnOnce(Options) -> Options,
    ) -> anyhow::Result<Tidegate> {
        let dns = Dns::start()?;
        for (at, address) in (0..DOMAINS).zip(to.sink.addresses()) {
            let host = format!("mx.{}", domain(at));
            dns.mx(&domain(at), 10, &host).host(&host, address.ip());
        }
        let options = Options::on(to.relay, dns.address(), to.sink.port())?
            .set("log.level", "warn")
            .set("submission.max_connections_per_address", 1000);
        let directory = tempfile::Builder::new()
            .prefix("tidegate-")
            .tempdir_in(place)?;
        let mut gateway = Gateway::kept(directory.path(), more(options))?;
        let trace = trace.map(|trace| trace.display().to_string());
        let mut words: Vec<&str> = match &trace {
            Some(trace) => vec!["strace", "-f", "-q", "-e", super::SYNCS, "-o", trace],
            None => Vec::new(),
        };
        words.extend(wrapper);
        if !words.is_empty() {
            gateway.wrap(&words);
        }
        gateway.start()?;
        gateway.tenant("bench", &["source.test"])?;
        gateway.credential("bench", USER, PASSWORD)?;
        Ok(Tidegate {
            gateway,
            dns,
            _directory: directory,
        })
    }

    pub fn address(&self, tls: bool) -> SocketAddr {
        if tls {
            self.gateway.submission()
        } else {
            self.gateway.smtp()
        }
    }
}
