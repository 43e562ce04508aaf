//! `tidegate check`: the configuration, and everything outside of it that a start needs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tidegate_mail::Verdict;
use tidegate_net::clock::OsClock;
use tidegate_queue::{Resolver, Sink};

use crate::cli::{Exit, Failure, Outcome, out, out_json};
use crate::config::{self, Config};
use crate::data_dir::{DataDir, Unavailable};
use crate::secrets::{self, MasterKey};
use crate::{parts, submission, tls};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tidegate check\n  tidegate check --config-only\n  tidegate check --json\n\nExit status: 0 all is well, 1 something a start needs is missing, 2 the configuration is wrong."
)]
pub struct CheckArgs {
    /// The file only, not ports, DNS, database and certificates.
    #[arg(long)]
    config_only: bool,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    what: String,
    ok: bool,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    findings: &'a [Finding],
    config: Shown<'a>,
}

/// The configuration in effect, without secrets.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    config: &'a Config,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, what: impl Into<String>, message: impl Into<String>) {
        self.0.push(Finding {
            what: what.into(),
            ok: true,
            message: message.into(),
            remedy: String::new(),
        });
    }

    fn bad(
        &mut self,
        what: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(Finding {
            what: what.into(),
            ok: false,
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    fn result<E: std::fmt::Display>(
        &mut self,
        what: &str,
        good: impl Into<String>,
        result: Result<(), E>,
        remedy: &str,
    ) {
        match result {
            Ok(()) => self.ok(what, good),
            Err(error) => self.bad(what, error.to_string(), remedy),
        }
    }
}

pub fn run(path: &Path, args: &CheckArgs, json: bool) -> Outcome {
    let loaded = config::load(path)?;
    let mut config = loaded.config;
    let mut findings = Findings::default();
    findings.ok("configuration", loaded.path.display().to_string());
    if !args.config_only {
        environment(&config, &mut findings)?;
    }
    let ok = findings.0.iter().all(|f| f.ok);
    if json {
        config.database = config.shown_database();
        config.hostname = Some(config.hostname());
        out_json(&Report {
            ok,
            findings: &findings.0,
            config: Shown { config: &config },
        });
    } else {
        for finding in &findings.0 {
            let mark = if finding.ok { "ok  " } else { "FAIL" };
            out(&format!(
                "{mark}  {:<14}  {}\n",
                finding.what, finding.message
            ));
            if !finding.remedy.is_empty() {
                out(&format!("      remedy: {}\n", finding.remedy));
            }
        }
    }
    if ok {
        Ok(())
    } else {
        Err(Failure::Told(Exit::Failure))
    }
}

fn environment(config: &Config, findings: &mut Findings) -> Outcome {
    let held = match DataDir::take(&config.data_dir) {
        Ok(held) => {
            findings.ok(
                "data directory",
                format!("{} can be written", config.data_dir.display()),
            );
            Some(held)
        }
        Err(Unavailable::InUse) => {
            findings.ok(
                "data directory",
                format!("{}: a gateway runs on it", config.data_dir.display()),
            );
            None
        }
        Err(Unavailable::Io(error)) => {
            findings.bad(
                "data directory",
                format!("{}: {error}", config.data_dir.display()),
                "make it a directory that the user who runs tidegate can write to",
            );
            None
        }
    };
    files(config, findings);
    if config.submission.listener.is_empty() {
        findings.bad(
            "listeners",
            "none are configured",
            "add a [[submission.listener]]",
        );
    }
    if held.is_some() {
        for listener in &config.submission.listener {
            port(
                &format!("submission, tls {:?}", listener.tls).to_lowercase(),
                listener.address,
                findings,
            );
        }
        port("admin API", config.admin.address, findings);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no threads: {e}"), ""))?;
    runtime.block_on(async {
        dns(config, findings).await;
        exporters(config, findings);
        if held.is_some() {
            database(config, findings).await;
        }
    });
    Ok(())
}

fn files(config: &Config, findings: &mut Findings) {
    if config
        .submission
        .listener
        .iter()
        .any(|l| l.tls != config::ListenerTls::None)
    {
        findings.result(
            "certificate",
            config.tls.certificate.display().to_string(),
            tls::read(&config.tls).map(drop),
            "name a PEM chain and its private key under [tls], or make them with: tidegate init --force",
        );
    }
    findings.result(
        "master key",
        config.master_key_file.display().to_string(),
        MasterKey::read(&config.master_key_file)
            .map(drop)
            .map_err(|e| format!("{}: {e}", config.master_key_file.display())),
        "restore it with mode 0600, or make a new one with: tidegate init --force",
    );
    findings.result(
        "admin token",
        config.admin.token_file.display().to_string(),
        secrets::read_private(&config.admin.token_file)
            .map(drop)
            .map_err(|e| format!("{}: {e}", config.admin.token_file.display())),
        "restore it with mode 0600, or make a new one with: tidegate init --force",
    );
}

/// Whether the address can be listened on; it is let go of at once.
fn port(what: &str, address: SocketAddr, findings: &mut Findings) {
    match submission::listen(what, address) {
        Ok(_) => findings.ok("port", format!("{address} is free ({what})")),
        Err(Failure::Failed { message, remedy }) => findings.bad("port", message, remedy),
        Err(other) => findings.bad("port", other.to_string(), ""),
    }
}

/// Whether the DNS answers anything at all about our own name: also "no such name" is an answer.
async fn dns(config: &Config, findings: &mut Findings) {
    let resolver = match parts::resolver(config, Arc::new(OsClock)) {
        Ok(resolver) => resolver,
        Err(failure) => return findings.bad("dns", failure.to_string(), ""),
    };
    let name = config.hostname();
    let asked = tokio::time::timeout(Duration::from_secs(20), resolver.resolve(&name)).await;
    let servers = if config.delivery.resolvers.is_empty() {
        "the system's servers".to_owned()
    } else {
        config.delivery.resolvers.join(", ")
    };
    match asked {
        Ok(Err(outcome)) if outcome.verdict == Verdict::Temporary => findings.bad(
            "dns",
            format!("{servers}: {}", outcome.text()),
            "check delivery.resolvers, or /etc/resolv.conf",
        ),
        Err(_) => findings.bad(
            "dns",
            format!("{servers}: no answer in 20 s"),
            "check delivery.resolvers, or /etc/resolv.conf",
        ),
        Ok(_) => findings.ok("dns", format!("{servers} answered for {name}")),
    }
    if config.delivery.dane {
        findings.ok(
            "dane",
            if resolver.is_dnssec_aware() {
                "TLSA records of destinations are honoured"
            } else {
                "TLSA records are not looked for: no answer of these DNS servers is secure \
                 (delivery.dnssec)"
            },
        );
    }
}

/// Whether what an exporter needs for its requests is there. Nothing is posted.
fn exporters(config: &Config, findings: &mut Findings) {
    let clock: Arc<dyn tidegate_queue::Clock> = Arc::new(OsClock);
    let http = |e: &config::Export| e.kind == config::ExportKind::Http;
    for (name, export) in config.export.iter().filter(|(_, e)| http(e)) {
        let what = format!("export.{name}");
        let made = parts::resolver(config, clock.clone())
            .and_then(|resolver| parts::http_sink(config, name, export, &resolver, &clock));
        match made {
            Ok(sink) => findings.ok(what, format!("posts to {}", Sink::place(&sink))),
            Err(Failure::Failed { message, remedy }) => findings.bad(what, message, remedy),
            Err(other) => findings.bad(what, other.to_string(), ""),
        }
    }
}

async fn database(config: &Config, findings: &mut Findings) {
    let opened = parts::open_store(config).await;
    let registry = match opened {
        Ok((_, registry)) => {
            findings.ok("database", config.shown_database());
            registry
        }
        Err(Failure::Failed { message, remedy }) => {
            return findings.bad("database", message, remedy);
        }
        Err(other) => return findings.bad("database", other.to_string(), ""),
    };
    match registry.activations().await {
        Ok(activations) => {
            if activations
                .iter()
                .any(|a| a.slot == "routing" || a.slot.starts_with("routing/"))
            {
                findings.ok("policy", "a routing policy is active");
            } else {
                findings.ok(
                    "policy",
                    "no routing policy is active: all mail goes by managed relay",
                );
            }
        }
        Err(error) => findings.bad("policy", error.to_string(), ""),
    }
}
