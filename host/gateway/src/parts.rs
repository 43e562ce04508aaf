//! The parts of a gateway as the configuration wants them, each with the words for a person where
//! it can't be had.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_net::resolver::{DnsConfig, DnsResolver, Dnssec};
use tidegate_net::sink::{
    Credential, FileSink, FileSinkConfig, HttpSink, HttpSinkConfig, Scheme, Secret, Target, header,
};
use tidegate_net::smtp::{Smtp, SmtpConfig, Timeouts, TrustAnchors};
use tidegate_net::sts::StsConfig;
use tidegate_queue::route::Ceilings;
use tidegate_queue::shape::Limits;
use tidegate_queue::{Clock, Registry, Settings, Sink, Store, StoreError};

use crate::cli::Failure;
use crate::config::{Config, DnssecMode, Export, ExportAuth, ExportKind};
use crate::secrets::{self, MasterKey};

/// The key that tenants' passwords are sealed with.
pub fn master_key(config: &Config) -> Result<Arc<MasterKey>, Failure> {
    let path = &config.master_key_file;
    MasterKey::read(path).map(Arc::new).map_err(|e| {
        let remedy = if path.exists() {
            "restore it from its copy, and let only its owner read it (mode 0600)"
        } else {
            "restore it from its copy, with mode 0600. Without one: tidegate init --force makes a new \
             key, and the passwords of tenants' servers and of smarthosts have to be set again"
        };
        Failure::failed(format!("the master key {}: {e}", path.display()), remedy)
    })
}

/// The operator's token.
pub fn admin_token(config: &Config) -> Result<String, Failure> {
    let path = &config.admin.token_file;
    let token = secrets::read_private(path)
        .map(|text| text.trim().to_owned())
        .map_err(|e| e.to_string())
        .and_then(|token| match token.len() {
            0..32 => Err("it is shorter than 32 characters".to_owned()),
            _ => Ok(token),
        });
    token.map_err(|reason| {
        let remedy = if path.exists() {
            "let only its owner read it (mode 0600); or remove it and make a new one with: tidegate init --force"
        } else {
            "make a new one with: tidegate init --force"
        };
        Failure::failed(
            format!("the admin token {}: {reason}", path.display()),
            remedy,
        )
    })
}

/// The words for a person where the store does not open.
pub fn store_failure(config: &Config, error: &StoreError) -> Failure {
    let embedded = config.database == "sqlite";
    let place = if embedded {
        config.data_dir.display().to_string()
    } else {
        config.shown_database()
    };
    let remedy = match error {
        StoreError::Full(_) => "free space on the volume",
        StoreError::Busy(_) => "end the program that has the database locked",
        StoreError::Damaged(_) | StoreError::Failed(_) if embedded => {
            "check the disk and the directory's owner; if the files are damaged, keep a copy of the \
             directory and restore the last backup"
        }
        StoreError::Conflict(_) => "stop the other gateway, or give this one a database of its own",
        _ => "check that the database runs, and that the user of tidegate may use it",
    };
    Failure::failed(
        format!("the database at {place} does not open: {error}"),
        remedy,
    )
}

/// The store with the words for a person where it does not open.
pub async fn open_store(config: &Config) -> Result<(Arc<dyn Store>, Arc<dyn Registry>), Failure> {
    let options = tidegate_store::Options {
        owner: config.hostname(),
        ..tidegate_store::Options::default()
    };
    tidegate_store::open(&config.database, &config.data_dir, options)
        .await
        .map_err(|error| store_failure(config, &error))
}

pub fn resolver(config: &Config, clock: Arc<dyn Clock>) -> Result<Arc<DnsResolver>, Failure> {
    let dns = DnsConfig {
        servers: config.resolvers(),
        own_names: vec![config.hostname()],
        allow_private: config.delivery.allow_private_destinations,
        dnssec: match (config.delivery.dnssec, &config.delivery.dnssec_anchors) {
            (DnssecMode::Auto, _) => Dnssec::Auto,
            (DnssecMode::TrustAd, _) => Dnssec::TrustAd,
            (DnssecMode::Validate, None) => Dnssec::Validate,
            (DnssecMode::Validate, Some(file)) => Dnssec::ValidateFrom(file.clone()),
            (DnssecMode::Off, _) => Dnssec::Off,
        },
        dane: config.delivery.dane.then_some(config.delivery.mx_port),
        sts: config.delivery.mta_sts.then(|| StsConfig {
            port: config.delivery.mta_sts_port,
            trust_anchors: trust_anchors(config),
            file: Some(config.data_dir.join("mta-sts.json")),
            ..StsConfig::default()
        }),
        ..DnsConfig::default()
    };
    DnsResolver::new(dns, clock).map(Arc::new).map_err(|e| {
        Failure::failed(
            format!("DNS: {e}"),
            "see delivery.resolvers, delivery.dnssec_anchors and delivery.trust_anchors",
        )
    })
}

fn trust_anchors(config: &Config) -> TrustAnchors {
    match &config.delivery.trust_anchors {
        Some(path) => TrustAnchors::File(path.clone()),
        None => TrustAnchors::WebPki,
    }
}

pub fn transport(
    config: &Config,
    resolver: Arc<DnsResolver>,
    clock: Arc<dyn Clock>,
) -> Result<Smtp, Failure> {
    let t = &config.delivery.timeouts;
    let opening = t.connect.get() + t.banner.get() + t.command.get();
    let timeouts = Timeouts {
        connect: t.connect.get(),
        tls: t.command.get().min(Timeouts::default().tls),
        opening,
        attempt: opening,
        banner: t.banner.get(),
        ehlo: t.command.get(),
        mail: t.command.get(),
        rcpt: t.command.get(),
        envelope: t.command.get() * 3,
        data: t.data.get(),
        block: t.block.get(),
        content: t.block.get() * 20,
        dot: t.dot.get(),
    };
    let smtp = SmtpConfig {
        mx_port: config.delivery.mx_port,
        timeouts,
        trust_anchors: trust_anchors(config),
        allow_private: config.delivery.allow_private_destinations,
        ..SmtpConfig::new(config.hostname())
    };
    Smtp::new(smtp, resolver, clock).map_err(|e| {
        Failure::failed(
            e.to_string(),
            "check delivery.trust_anchors, or remove it for the built-in roots",
        )
    })
}

pub fn sinks(
    config: &Config,
    resolver: &Arc<DnsResolver>,
    clock: &Arc<dyn Clock>,
) -> Result<HashMap<String, Arc<dyn Sink>>, Failure> {
    let mut sinks: HashMap<String, Arc<dyn Sink>> = HashMap::new();
    for (name, export) in &config.export {
        let sink: Arc<dyn Sink> = match export.kind {
            ExportKind::File => {
                let mut file = FileSinkConfig::new(config.export_dir(name, export), name.clone());
                file.max_bytes = export.rotate_size.get();
                file.keep = export.keep;
                Arc::new(FileSink::open(file).map_err(|e| no_export_dir(name, e.to_string()))?)
            }
            ExportKind::Http => Arc::new(http_sink(config, name, export, resolver, clock)?),
        };
        sinks.insert(name.clone(), sink);
    }
    Ok(sinks)
}

/// The words for a person where an exporter's files can't be written.
pub fn no_export_dir(name: &str, reason: String) -> Failure {
    Failure::failed(
        reason,
        format!("make export.{name}.dir a directory that tidegate can write to"),
    )
}

/// A secret in a file that only its owner may read.
fn secret(path: &Path) -> Secret {
    let path = path.to_owned();
    Arc::new(move || {
        secrets::read_private(&path)
            .map_err(|e| e.to_string())
            .and_then(|text| match text.trim() {
                "" => Err("it is empty".to_owned()),
                text => Ok(text.to_owned()),
            })
            .map_err(|e| format!("{}: {e}", path.display()))
    })
}

/// An exporter's endpoint; its secrets can be read now.
pub fn http_sink(
    config: &Config,
    name: &str,
    export: &Export,
    resolver: &Arc<DnsResolver>,
    clock: &Arc<dyn Clock>,
) -> Result<HttpSink, Failure> {
    // The values are checked when the configuration is read.
    let wrong = |key: &str, reason: String| {
        Failure::usage(format!("export.{name}.{key}: {reason}"), "correct it")
    };
    let url = export.url.as_deref().unwrap_or_default();
    let target = Target::parse(url).map_err(|e| wrong("url", e))?;
    let headers = export.headers.iter().map(|line| header(line));
    let headers = headers.collect::<Result<_, _>>();
    let headers = headers.map_err(|e| wrong("headers", e))?;
    let auth_header = header(&format!("{}: x", export.auth_header));
    let (auth_header, _) = auth_header.map_err(|e| wrong("auth_header", e))?;
    let readable = |key: &str, path: &Option<PathBuf>| -> Result<Option<Secret>, Failure> {
        let Some(path) = path else { return Ok(None) };
        let secret = secret(path);
        let read = secret();
        read.map(|_| Some(secret.clone())).map_err(|e| {
            Failure::failed(
                format!("export.{name}.{key}: {e}"),
                "put the secret into it, with mode 0600 and the owner that runs tidegate",
            )
        })
    };
    let credential = readable("secret_file", &export.secret_file)?.map(|secret| Credential {
        header: auth_header,
        scheme: match export.auth {
            ExportAuth::Plain => Scheme::Plain,
            ExportAuth::Bearer => Scheme::Bearer,
            ExportAuth::Basic => Scheme::Basic,
            ExportAuth::Splunk => Scheme::Splunk,
            ExportAuth::ApiKey => Scheme::ApiKey,
        },
        secret,
    });
    let http = HttpSinkConfig {
        name: name.to_owned(),
        target,
        headers,
        credential,
        signing_key: readable("signing_key_file", &export.signing_key_file)?,
        timeout: export.timeout.get(),
        trust_anchors: match &export.trust_anchors {
            Some(path) => TrustAnchors::File(path.clone()),
            None => trust_anchors(config),
        },
        allow_private: export.allow_private || config.delivery.allow_private_destinations,
    };
    HttpSink::new(http, resolver.clone(), clock.clone()).map_err(|e| {
        Failure::failed(
            format!("export.{name}: {e}"),
            format!("check export.{name}.trust_anchors, or remove it"),
        )
    })
}

/// The engine's settings out of the configuration.
pub fn settings(config: &Config) -> Result<Settings, Failure> {
    let delivery = &config.delivery;
    let waits = delivery.retry.iter().map(|wait| wait.get()).collect();
    let schedule = tidegate_mail::schedule::Schedule::new(waits, u16::from(delivery.jitter) * 10)
        .map_err(|e| Failure::usage(e.to_string(), "see delivery.retry"))?;
    let defaults = Settings::default();
    Ok(Settings {
        hostname: config.hostname().into(),
        ceilings: Ceilings {
            lifetime_secs: delivery.lifetime.whole_secs(),
            delay_notice_secs: match delivery.delay_notice_after.whole_secs() {
                0 => None,
                secs => Some(secs),
            },
            ..defaults.ceilings
        },
        schedule,
        site_backoff: (delivery.site_backoff.get(), delivery.site_backoff_max.get()),
        max_deliveries: delivery.max_deliveries as usize,
        max_site_connections: delivery.max_site_connections,
        default_limits: Limits {
            connections: delivery.max_site_connections,
            messages_per_connection: delivery.messages_per_connection,
            ..Limits::default()
        },
        content_budget: delivery.memory.as_usize(),
        record_header: Some(config.log.record_header.clone()).filter(|name| !name.is_empty()),
        campaign_header: Some(delivery.campaign_header.clone()).filter(|name| !name.is_empty()),
        retention: config.log.retention.get(),
        dsn_return_limit: delivery.return_limit.as_usize(),
        allow_private_destinations: delivery.allow_private_destinations,
        exporters: config.export.keys().cloned().collect(),
        passthrough_timeout: delivery.passthrough_timeout.get(),
        bulk_recipients: delivery.bulk_recipients as usize,
        ..defaults
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    #[test]
    fn the_settings_say_what_the_configuration_says() {
        let mut config = Config::default();
        let settings_of = |config: &Config| settings(config).unwrap();
        let defaults = settings_of(&config);
        assert_eq!(defaults.ceilings.lifetime_secs, 48 * 3600);
        assert_eq!(defaults.ceilings.delay_notice_secs, Some(4 * 3600));
        assert_eq!(
            defaults.schedule,
            tidegate_mail::schedule::Schedule::default()
        );
        assert_eq!(defaults.record_header.as_deref(), Some("X-CRM-Record"));
        config.delivery.delay_notice_after = Span::secs(0);
        config.delivery.lifetime = Span::millis(1500);
        config.log.record_header = String::new();
        let changed = settings_of(&config);
        assert_eq!(changed.ceilings.delay_notice_secs, None);
        assert_eq!(changed.ceilings.lifetime_secs, 1);
        assert_eq!(changed.record_header, None);
        assert_eq!(changed.campaign_header, None);
        config.delivery.campaign_header = "X-Campaign".to_owned();
        assert_eq!(
            settings_of(&config).campaign_header.as_deref(),
            Some("X-Campaign")
        );
    }
}
