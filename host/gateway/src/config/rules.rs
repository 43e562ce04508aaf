//! What the values of a configuration must be, beyond their types.
//!
//! All rules are tried, so that one run tells everything that is wrong.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tidegate_net::sink::{Target, header};

use super::load::{Problem, place_of};
use super::{
    Config, DnssecMode, Export, ExportAuth, ExportKind, ListenerTls, Size, Span, resolver_address,
};

/// The checks that types can't do.
pub(super) struct Check<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// All problems of a configuration that was read from `text`.
    pub fn run(text: &str, config: &Config) -> Vec<Problem> {
        let mut check = Check {
            text,
            problems: Vec::new(),
        };
        check.all(config);
        check.problems
    }

    fn fail(&mut self, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        // An element that is not written itself is placed at the nearest table that is.
        let mut place = None;
        let mut prefix = key;
        while place.is_none() {
            place = place_of(self.text, prefix);
            match prefix.rfind('.') {
                Some(dot) => prefix = &prefix[..dot],
                None => break,
            }
        }
        self.problems.push(Problem {
            at: place,
            key: key.to_owned(),
            message: message.into(),
            remedy: remedy.into(),
        });
    }

    fn positive(&mut self, key: &str, value: u64) {
        if value == 0 {
            self.fail(key, "must not be zero", "give a number of 1 or more");
        }
    }

    /// The name of a header field; empty: none.
    fn header_name(&mut self, key: &str, name: &str) {
        if name.len() > 100 || !name.bytes().all(|b| (33..=126).contains(&b) && b != b':') {
            self.fail(
                key,
                format!("{name:?} is not the name of a header field"),
                "use printable ASCII without ':' and blanks, or \"\" for none",
            );
        }
    }

    fn at_least(&mut self, key: &str, value: Span, least: Span) {
        if value < least {
            self.fail(
                key,
                format!("{value} is too short"),
                format!("use {least} or more"),
            );
        }
    }

    fn all(&mut self, config: &Config) {
        self.top(config);
        self.submission(config);
        self.delivery(config);
        self.rest(config);
    }

    fn top(&mut self, config: &Config) {
        if let Some(name) = &config.hostname {
            let label = |l: &str| {
                (1..=63).contains(&l.len())
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !l.starts_with('-')
                    && !l.ends_with('-')
            };
            if name.len() > 253 || !name.split('.').all(label) {
                self.fail(
                    "hostname",
                    format!("{name:?} is not a host name"),
                    "write the fully qualified name, such as \"mail.crm.example\"",
                );
            }
        }
        let database = &config.database;
        if database != "sqlite"
            && !database.starts_with("postgres://")
            && !database.starts_with("postgresql://")
        {
            self.fail(
                "database",
                // It may hold a password, so it is not repeated.
                "the value names no known database",
                "use \"sqlite\" or \"postgres://user@host/database\"",
            );
        }
    }

    fn submission(&mut self, config: &Config) {
        let submission = &config.submission;
        if submission.max_message_size.get() < 64 * 1024 {
            self.fail(
                "submission.max_message_size",
                "too small for real mail",
                "use 64KiB or more (RFC 5321 s. 4.5.3.1.7)",
            );
        }
        if submission.max_recipients < 100 {
            self.fail(
                "submission.max_recipients",
                "a server must take 100 recipients (RFC 5321 s. 4.5.3.1.8)",
                "use 100 or more",
            );
        }
        self.positive(
            "submission.max_connections",
            submission.max_connections.into(),
        );
        self.positive(
            "submission.max_connections_per_address",
            submission.max_connections_per_address.into(),
        );
        if submission.memory < Size::mib(1) {
            self.fail(
                "submission.memory",
                "too small for mail to come in side by side",
                "use 1MiB or more",
            );
        }
        self.at_least(
            "submission.idle_timeout",
            submission.idle_timeout,
            Span::secs(1),
        );
        self.at_least(
            "submission.session_timeout",
            submission.session_timeout,
            Span::secs(1),
        );
        let mut seen: BTreeSet<SocketAddr> = BTreeSet::new();
        for (n, listener) in submission.listener.iter().enumerate() {
            let key = |field: &str| format!("submission.listener.{n}.{field}");
            if listener.allow_plain_auth && !listener.address.ip().is_loopback() {
                self.fail(
                    &key("allow_plain_auth"),
                    format!(
                        "passwords would cross the network in clear on {}",
                        listener.address
                    ),
                    "remove it, or give the listener a loopback address",
                );
            }
            if listener.tls == ListenerTls::None && !listener.allow_plain_auth {
                self.fail(
                    &key("tls"),
                    "without TLS and without allow_plain_auth nobody could log in",
                    "use \"starttls\" or \"implicit\", or set allow_plain_auth on a loopback address",
                );
            }
            if listener.address.port() != 0 && !seen.insert(listener.address) {
                self.fail(
                    &key("address"),
                    format!("{} is listed twice", listener.address),
                    "remove one of the listeners or change its port",
                );
            }
        }
    }

    fn delivery(&mut self, config: &Config) {
        let delivery = &config.delivery;
        self.at_least("delivery.lifetime", delivery.lifetime, Span::secs(1));
        if delivery.lifetime > Span::days(5) {
            self.fail(
                "delivery.lifetime",
                format!("{} is too long", delivery.lifetime),
                "use 5d or less; the managed relay promises 48h",
            );
        }
        if delivery.retry.is_empty() {
            self.fail(
                "delivery.retry",
                "a schedule needs at least one wait",
                "remove the key for the default schedule",
            );
        }
        if let Some(short) = delivery.retry.iter().find(|wait| **wait < Span::secs(1)) {
            self.fail(
                "delivery.retry",
                format!("{short} is too short a wait"),
                "use waits of 1s or more",
            );
        }
        if delivery.jitter > 50 {
            self.fail(
                "delivery.jitter",
                format!("{} per cent is too much", delivery.jitter),
                "use 0 to 50",
            );
        }
        if delivery.site_backoff > delivery.site_backoff_max {
            self.fail(
                "delivery.site_backoff",
                "is longer than site_backoff_max",
                "raise site_backoff_max or lower site_backoff",
            );
        }
        for (key, value) in [
            ("delivery.max_deliveries", delivery.max_deliveries),
            (
                "delivery.max_site_connections",
                delivery.max_site_connections.into(),
            ),
            (
                "delivery.messages_per_connection",
                delivery.messages_per_connection.into(),
            ),
            ("delivery.mx_port", delivery.mx_port.into()),
            ("delivery.mta_sts_port", delivery.mta_sts_port.into()),
            ("delivery.bulk_recipients", delivery.bulk_recipients),
        ] {
            self.positive(key, value.into());
        }
        self.header_name("delivery.campaign_header", &delivery.campaign_header);
        if delivery.delay_notice_after >= delivery.lifetime
            && place_of(self.text, "delivery.delay_notice_after").is_some()
        {
            self.fail(
                "delivery.delay_notice_after",
                format!(
                    "no mail waits so long: delivery.lifetime is {}",
                    delivery.lifetime
                ),
                "use less than the lifetime, or \"0s\" for no delay notices",
            );
        }
        if delivery.dnssec_anchors.is_some() && delivery.dnssec != DnssecMode::Validate {
            self.fail(
                "delivery.dnssec_anchors",
                "nothing is checked against them",
                "set delivery.dnssec to \"validate\", or remove them",
            );
        }
        self.at_least(
            "delivery.passthrough_timeout",
            delivery.passthrough_timeout,
            Span::secs(1),
        );
        for (n, text) in delivery.resolvers.iter().enumerate() {
            if resolver_address(text).is_none() {
                self.fail(
                    &format!("delivery.resolvers.{n}"),
                    format!("{text:?} is not an address"),
                    "write it like \"192.0.2.53\" or \"127.0.0.1:5353\"",
                );
            }
        }
        let t = &delivery.timeouts;
        for (key, value) in [
            ("connect", t.connect),
            ("banner", t.banner),
            ("command", t.command),
            ("data", t.data),
            ("block", t.block),
            ("dot", t.dot),
        ] {
            self.at_least(
                &format!("delivery.timeouts.{key}"),
                value,
                Span::millis(100),
            );
        }
    }

    /// What would have no effect is a mistake: its author believes it has.
    fn export_file(&mut self, name: &str, export: &Export) {
        let auth_header = Export::default().auth_header;
        for (key, given) in [
            ("url", export.url.is_some()),
            ("secret_file", export.secret_file.is_some()),
            ("signing_key_file", export.signing_key_file.is_some()),
            ("headers", !export.headers.is_empty()),
            ("auth", export.auth != ExportAuth::Plain),
            ("auth_header", export.auth_header != auth_header),
            ("trust_anchors", export.trust_anchors.is_some()),
            ("allow_private", export.allow_private),
        ] {
            if given {
                self.fail(
                    &format!("export.{name}.{key}"),
                    "a file has none",
                    format!("remove it, or set export.{name}.kind to \"http\""),
                );
            }
        }
    }

    fn export_http(&mut self, name: &str, export: &Export, near: bool) {
        let key = |field: &str| format!("export.{name}.{field}");
        if export.dir.is_some() {
            self.fail(
                &key("dir"),
                "an exporter of the kind http writes no files",
                format!("remove it, or set export.{name}.kind to \"file\""),
            );
        }
        match export.url.as_deref().map(Target::parse) {
            None => self.fail(
                &key("url"),
                "an exporter of the kind http needs one",
                "say where to post to, such as \"https://crm.example/hooks/mail\"",
            ),
            Some(Err(reason)) => self.fail(
                &key("url"),
                reason,
                "write it like \"https://crm.example/hooks/mail\"",
            ),
            Some(Ok(target)) if !target.tls && !near => self.fail(
                &key("url"),
                "the log would cross the network in clear",
                "use https, or set allow_private for a receiver at a loopback or private address",
            ),
            Some(Ok(_)) => {}
        }
        for (n, line) in export.headers.iter().enumerate() {
            let checked = header(line).and_then(|(name, _)| match name.as_str() {
                "authorization" => Err("a secret does not belong here: use secret_file".to_owned()),
                _ => Ok(()),
            });
            if let Err(reason) = checked {
                self.fail(
                    &format!("export.{name}.headers.{n}"),
                    reason,
                    "write it like \"X-Source: tidegate\"",
                );
            }
        }
        if let Err(reason) = header(&format!("{}: x", export.auth_header)) {
            self.fail(&key("auth_header"), reason, "use \"Authorization\"");
        }
        let auth_header = Export::default().auth_header;
        for (field, given) in [
            ("auth", export.auth != ExportAuth::Plain),
            ("auth_header", export.auth_header != auth_header),
        ] {
            if given && export.secret_file.is_none() {
                self.fail(
                    &key(field),
                    "there is no secret to write",
                    "name the file that has it with secret_file",
                );
            }
        }
        self.at_least(&key("timeout"), export.timeout, Span::millis(100));
    }

    fn rest(&mut self, config: &Config) {
        if config.log.retention < Span::days(7) {
            self.fail(
                "log.retention",
                format!(
                    "{} is less than the 7 days that are promised",
                    config.log.retention
                ),
                "use \"7d\" or more",
            );
        }
        self.header_name("log.record_header", &config.log.record_header);
        if !is_log_filter(&config.log.level) {
            self.fail(
                "log.level",
                format!("{:?} is not a log level", config.log.level),
                "use error, warn, info, debug, trace or off, or a filter such as \"info,tidegate_net=debug\"",
            );
        }
        self.positive("policy.keep_revisions", config.policy.keep_revisions.into());
        for (name, export) in &config.export {
            let ok = (1..=63).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if !ok {
                self.fail(
                    &format!("export.{name}"),
                    "not a valid name",
                    "use lower-case letters, digits and '-'",
                );
            }
            self.positive(
                &format!("export.{name}.rotate_size"),
                export.rotate_size.get(),
            );
            match export.kind {
                ExportKind::File => self.export_file(name, export),
                ExportKind::Http => {
                    let near = export.allow_private || config.delivery.allow_private_destinations;
                    self.export_http(name, export, near);
                }
            }
        }
        if !config.admin.address.ip().is_loopback() {
            self.fail(
                "admin.address",
                format!("{} is not a loopback address", config.admin.address),
                "use 127.0.0.1 or [::1]; reach it from elsewhere through SSH",
            );
        }
    }
}

/// Whether it says which messages are written. A word alone that is no level would be taken for
/// the name of a part of the program, and everything else would be silent.
fn is_log_filter(text: &str) -> bool {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let told = |part: &str| {
        let part = part.trim();
        part.contains(['=', '[']) || levels.iter().any(|level| part.eq_ignore_ascii_case(level))
    };
    text.split(',').all(told) && text.parse::<tracing_subscriber::EnvFilter>().is_ok()
}
