//! `tidegate check`: the configuration, and everything outside of it that a start needs.
//!
//! It only looks. A gateway may be running on the directory or the database, here or on another
//! machine, and whoever checks may be another user than the one who will run it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tidegate_mail::Verdict;
use tidegate_net::clock::OsClock;
use tidegate_queue::{Resolver, Sink, rollout};
use tidegate_store::Schema;

use crate::cli::{Exit, Failure, Outcome, out, out_json};
use crate::config::{self, Config};
use crate::data_dir::{DataDir, Found, look_at};
use crate::{parts, submission, tls};

/// For the answer of a server.
const WAIT: Duration = Duration::from_secs(20);

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
    /// In effect, without secrets.
    config: Config,
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

    fn result<T>(&mut self, what: &str, good: impl Into<String>, result: Result<T, Failure>) {
        match result {
            Ok(_) => self.ok(what, good),
            Err(Failure::Failed { message, remedy } | Failure::Usage { message, remedy }) => {
                self.bad(what, message, remedy);
            }
            Err(other) => self.bad(what, other.to_string(), ""),
        }
    }
}

pub fn run(path: &Path, args: &CheckArgs, json: bool) -> Outcome {
    let loaded = config::load(path)?;
    let config = loaded.config;
    let mut findings = Findings::default();
    findings.ok("configuration", loaded.path.display().to_string());
    if !args.config_only {
        environment(&config, &mut findings)?;
    }
    let ok = findings.0.iter().all(|f| f.ok);
    if json {
        out_json(&Report {
            ok,
            findings: &findings.0,
            config: config.shown(),
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
    let dir = &config.data_dir;
    let looked = DataDir::look(dir).map_err(|unavailable| unavailable.tell(dir));
    let said = match &looked {
        Ok(Found::Nothing) => "will be made",
        Ok(Found::Free) => "can be written",
        Ok(Found::InUse) => "a gateway runs on it",
        Err(_) => "",
    };
    let free = matches!(looked, Ok(Found::Nothing | Found::Free));
    findings.result(
        "data directory",
        format!("{}: {said}", dir.display()),
        looked,
    );
    files(config, findings);
    if config.submission.listener.is_empty() {
        findings.bad(
            "listeners",
            "none are configured",
            "add a [[submission.listener]]",
        );
    }
    if free {
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
        // What a gateway writes meanwhile can't be read from beside it, and needs no check.
        if free || config.database != "sqlite" {
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
            tls::read(&config.tls)
                .map_err(|e| Failure::failed(e.to_string(), tls::remedy(&config.tls))),
        );
    }
    findings.result(
        "master key",
        config.master_key_file.display().to_string(),
        parts::master_key(config),
    );
    findings.result(
        "admin token",
        config.admin.token_file.display().to_string(),
        parts::admin_token(config),
    );
}

/// Whether the address can be listened on; it is let go of at once.
fn port(what: &str, address: SocketAddr, findings: &mut Findings) {
    findings.result(
        "port",
        format!("{address} is free ({what})"),
        submission::listen(what, address),
    );
}

/// Whether the DNS answers anything at all about our own name: also "no such name" is an answer.
async fn dns(config: &Config, findings: &mut Findings) {
    let resolver = match parts::resolver(config, Arc::new(OsClock)) {
        Ok(resolver) => resolver,
        Err(failure) => return findings.bad("dns", failure.to_string(), ""),
    };
    let name = config.hostname();
    let asked = tokio::time::timeout(WAIT, resolver.resolve(&name)).await;
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

/// Whether what an exporter needs is there. Nothing is written or posted.
fn exporters(config: &Config, findings: &mut Findings) {
    let clock: Arc<dyn tidegate_queue::Clock> = Arc::new(OsClock);
    for (name, export) in &config.export {
        let what = format!("export.{name}");
        match export.kind {
            config::ExportKind::File => {
                let dir = config.export_dir(name, export);
                let looked = look_at(&dir)
                    .map_err(|e| parts::no_export_dir(name, format!("{}: {e}", dir.display())));
                findings.result(&what, format!("writes to {}", dir.display()), looked);
            }
            config::ExportKind::Http => {
                let made = parts::resolver(config, clock.clone())
                    .and_then(|resolver| parts::http_sink(config, name, export, &resolver, &clock));
                let place = made.as_ref().map(Sink::place).unwrap_or_default();
                findings.result(&what, format!("posts to {place}"), made);
            }
        }
    }
}

async fn database(config: &Config, findings: &mut Findings) {
    let looked = tidegate_store::probe(&config.database, &config.data_dir);
    let found = match tokio::time::timeout(WAIT, looked).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            let failure = parts::store_failure(config, &error);
            return findings.result::<()>("database", "", Err(failure));
        }
        Err(_) => {
            return findings.bad(
                "database",
                format!("{}: no answer in 20 s", config.shown_database()),
                "check that the database runs, and that this machine may reach it",
            );
        }
    };
    let state = match found.schema {
        Schema::None => "is made at the first start".to_owned(),
        Schema::Current => "is of this version".to_owned(),
        Schema::Older { steps } => {
            format!("is of an older version; the next start brings it up to date ({steps} steps)")
        }
    };
    let behind = if found.behind {
        "; it was not closed in order, and the next start takes in its last commits"
    } else {
        ""
    };
    findings.ok(
        "database",
        format!("{} {state}{behind}", config.shown_database()),
    );
    let routes = rollout::slots(&found.activations)
        .into_iter()
        .any(|(slot, state)| {
            state.in_force.is_some() && (slot == "routing" || slot.starts_with("routing/"))
        });
    findings.ok(
        "policy",
        if routes {
            "a routing policy is active"
        } else {
            "no routing policy is active: all mail goes by managed relay"
        },
    );
}
