//! The configuration file: its keys, their defaults and the reasons for them.
//!
//! The doc comment of a key is its entry in the operator's manual: [`sections`] hands the
//! comments to [`docs`], so the manual can't say anything else than the code. What a
//! tenant or a campaign may vary is not a key here; it is data behind the admin API.

mod docs;
mod load;
mod rules;
mod units;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use docs::markdown;
pub use load::{ConfigError, Loaded, Problem, load, parse};
pub use units::{Size, Span};

/// A table of the file, as the manual shows it.
pub struct Section {
    /// As it is written in the file; empty for the top level.
    pub heading: &'static str,
    pub doc: &'static [&'static str],
    pub fields: &'static [Field],
    /// The table with its defaults.
    pub defaults: fn() -> serde_json::Value,
}

pub struct Field {
    pub name: &'static str,
    pub doc: &'static [&'static str],
}

/// Declares a table: a struct with `serde`, its defaults, and its documentation as data.
macro_rules! table {
    (
        $(#[doc = $doc:literal])*
        $name:ident $heading:literal {
            $( $(#[doc = $fdoc:literal])* $field:ident : $ty:ty = $default:expr, )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $( $(#[doc = $fdoc])* pub $field: $ty, )* }

        impl Default for $name {
            fn default() -> Self { $name { $( $field: $default, )* } }
        }

        impl $name {
            pub const SECTION: Section = Section {
                heading: $heading,
                doc: &[$($doc),*],
                fields: &[$( Field { name: stringify!($field), doc: &[$($fdoc),*] } ),*],
                defaults: || serde_json::to_value($name::default()).unwrap_or_default(),
            };
        }
    };
}

/// All tables, in the order of the manual.
pub fn sections() -> Vec<Section> {
    vec![
        Config::SECTION,
        Submission::SECTION,
        Listener::SECTION,
        Tls::SECTION,
        Delivery::SECTION,
        Timeouts::SECTION,
        Log::SECTION,
        PolicyConfig::SECTION,
        Export::SECTION,
        Admin::SECTION,
    ]
}

table! {
    /// The top of the file, before any table.
    Config "" {
        /// The name under which this gateway greets, signs its `Received` fields and reports
        /// failures: fully qualified, with an address record and a matching PTR record, since
        /// destinations check both. Left out, the machine's own name is used.
        hostname: Option<String> = None,
        /// Where queue, contents, compiled policies and state are kept. Must be on a local
        /// file system that honours `fsync`. Each start lets nobody but its owner in (mode 0700), so what others
        /// are to read does not belong into it. A relative path counts from the
        /// directory of this file, here and for every other path.
        data_dir: PathBuf = "/var/lib/tidegate".into(),
        /// `sqlite` keeps everything in `data_dir`. `postgres://user@host/database` keeps
        /// queue and log in PostgreSQL. A password belongs in the environment variable
        /// `TIDEGATE_DATABASE` (which replaces this key) or in `~/.pgpass`, not here. The
        /// database must have the encoding UTF8.
        database: String = "sqlite".into(),
        /// Number of this gateway, part of every queue id it gives: gateways with different numbers
        /// never give the same one. A database serves one gateway at a time.
        node: u8 = 0,
        /// The key that seals the passwords of tenants' servers in the database: 32 bytes in
        /// hexadecimal, readable by the gateway's user only. Without it sealed
        /// passwords are lost, so keep a copy apart from the database's backups.
        master_key_file: PathBuf = "master.key".into(),
        /// How long an orderly stop waits: at most half of it for messages that are coming in, and until its
        /// end for deliveries under way. A delivery that is cut off is made again after the next start. Keep it
        /// 10 seconds under the service manager's limit.
        shutdown_grace: Span = Span::secs(30),
        /// Where mail comes in.
        submission: Submission = Submission::default(),
        /// The certificate of the submission listeners.
        tls: Tls = Tls::default(),
        /// Where mail goes out.
        delivery: Delivery = Delivery::default(),
        /// The delivery log.
        log: Log = Log::default(),
        /// How WebAssembly policies are run.
        policy: PolicyConfig = PolicyConfig::default(),
        /// Exporters of the delivery log, by name.
        export: BTreeMap<String, Export> = BTreeMap::new(),
        /// The admin API.
        admin: Admin = Admin::default(),
    }
}

table! {
    /// What is true of every listener.
    Submission "[submission]" {
        /// The listeners; see `[[submission.listener]]`. None are opened unless they are named.
        listener: Vec<Listener> = Vec::new(),
        /// Largest message taken, as announced by SIZE; more is answered with 552 5.3.4.
        /// Large providers take 25 to 50 MiB after encoding.
        max_message_size: Size = Size::mib(50),
        /// Most recipients of one message; more are answered with 452 4.5.3, so that the
        /// client sends the rest in a further transaction. At least 100 (RFC 5321
        /// s. 4.5.3.1.8).
        max_recipients: u32 = 1000,
        /// Most connections at the same time, over all listeners; more get 421. An idle one costs a
        /// few kilobytes.
        max_connections: u32 = 16_384,
        /// Most connections at the same time from one address (one IPv6 /64). High, since a CRM is
        /// one address; lower than `max_connections`, so that no address can take them all.
        max_connections_per_address: u32 = 12_288,
        /// Memory for messages that are coming in, up to 256 KiB of each. What does not fit is written
        /// to the store as it comes, like the rest of larger messages; a header that does
        /// not fit is answered with 452 4.3.1. Beside this a connection with a message under way
        /// takes up to 64 KiB, and one that the store is writing for up to 1 MiB more (64 KiB
        /// each when there are many).
        memory: Size = Size::mib(64),
        /// How long a session may be silent. RFC 5321 s. 4.5.3.2.7 asks for 5 minutes.
        idle_timeout: Span = Span::mins(5),
        /// How long a session may last at all, which bounds clients that drip.
        session_timeout: Span = Span::hours(2),
    }
}

/// How a submission listener is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerTls {
    None,
    #[default]
    StartTls,
    Implicit,
}

table! {
    /// A submission listener; the table may be repeated.
    Listener "[[submission.listener]]" {
        /// Address and port; `[::]:587` listens on IPv6 and IPv4. Port 0 takes a free one,
        /// which the ready file names.
        address: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 587),
        /// `starttls` (port 587), `implicit` (port 465, RFC 8314) or `none`, which needs
        /// `allow_plain_auth`, since nobody could log in otherwise.
        tls: ListenerTls = ListenerTls::StartTls,
        /// Offers AUTH without TLS. Only for a loopback address: elsewhere passwords could
        /// be read on the way, so it is refused.
        allow_plain_auth: bool = false,
        /// Turns bare CR and bare LF into CRLF for a client that can't do better, instead of
        /// refusing the message. Only CRLF.CRLF ends the data either way.
        repair_line_ends: bool = false,
    }
}

table! {
    /// The certificate for STARTTLS and implicit TLS. Both files are read again on SIGHUP.
    Tls "[tls]" {
        /// The chain, PEM, the gateway's own certificate first.
        certificate: PathBuf = "tls/cert.pem".into(),
        /// The private key, PEM, readable by the gateway's user only.
        key: PathBuf = "tls/key.pem".into(),
    }
}

/// What makes an answer of the DNS a secure one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnssecMode {
    #[default]
    Auto,
    TrustAd,
    Validate,
    Off,
}

table! {
    /// Delivery, retries and notices. The times are the terms of the managed relay.
    Delivery "[delivery]" {
        /// From acceptance until the gateway gives up and reports the failure. Policies may
        /// promise less, never more.
        lifetime: Span = Span::hours(48),
        /// From acceptance until the sender is told that the mail is late. `0s`: never.
        delay_notice_after: Span = Span::hours(4),
        /// Waits between the attempts; the last one repeats until the lifetime ends. Short at
        /// first, since greylisting and restarts pass in minutes.
        retry: Vec<Span> = [1, 2, 5, 10, 15, 30, 60, 120, 240].map(Span::mins).to_vec(),
        /// Per cent by which a wait is made longer or shorter, so that retries to one site
        /// spread out. At most 50.
        jitter: u8 = 10,
        /// How long a site is left alone after none of its hosts could be talked to; doubled with
        /// each further failure up to `site_backoff_max`.
        site_backoff: Span = Span::mins(1),
        /// The longest such wait.
        site_backoff_max: Span = Span::mins(15),
        /// Most deliveries at the same time, in all. Where there are several tenants, one has three
        /// quarters of them at most.
        max_deliveries: u32 = 500,
        /// Most connections to one site, whatever a shaping policy says.
        max_site_connections: u16 = 20,
        /// How long the client waits at most for the answer of a tenant's own server, to
        /// which mail is passed through within the submission; then it gets 451. Shorter than the
        /// client's own time-out, and long enough for a server that greylists by waiting.
        passthrough_timeout: Span = Span::mins(1),
        /// Most messages over one connection where no policy says otherwise.
        messages_per_connection: u16 = 100,
        /// Memory for messages between acceptance and the first attempt; what does not fit
        /// is read back from the store.
        memory: Size = Size::mib(32),
        /// The port of MX hosts. Other than 25 for tests only.
        mx_port: u16 = 25,
        /// DNS servers to ask, as `address` or `address:port`. None: those of
        /// `/etc/resolv.conf`. They should be near and trusted.
        resolvers: Vec<String> = Vec::new(),
        /// What makes an answer of the DNS a secure one, without which there is no DANE. `auto`: the
        /// AD bit of the DNS servers if all of them have loopback addresses, where nobody can
        /// forge it on the way; otherwise no answer is. `trust-ad`: the AD bit, wherever the
        /// servers are; only over a network that nobody else can write to. `validate`: the
        /// gateway checks signatures itself, which costs further queries for each domain.
        /// `off`: no answer is. A validating resolver on the same machine is the best choice.
        dnssec: DnssecMode = DnssecMode::Auto,
        /// Keys that `validate` starts from, as DNSKEY records in a file. None: the root's keys as
        /// built in.
        dnssec_anchors: Option<PathBuf> = None,
        /// Whether TLSA records of destinations are honoured (DANE, RFC 7672): TLS with a certificate
        /// that they vouch for, or no delivery to that host. Nothing where no answer of the
        /// DNS is secure; see `dnssec`.
        dane: bool = true,
        /// Whether MTA-STS policies of recipients' domains are honoured (RFC 8461): delivery only to
        /// the hosts they name, over TLS with a certificate that `trust_anchors` vouch for. A
        /// policy is fetched by HTTPS before the first mail to its domain, and kept, in `data_dir` too,
        /// for as long as it says. DANE goes first where a host has both.
        mta_sts: bool = true,
        /// The HTTPS port of the hosts that publish MTA-STS policies. Other than 443 for tests only.
        mta_sts_port: u16 = 443,
        /// Roots that certificates of smarthosts, tenants' servers, hosts under MTA-STS or REQUIRETLS
        /// and MTA-STS policy hosts are checked against, PEM. None: Mozilla's list as built in.
        trust_anchors: Option<PathBuf> = None,
        /// Whether mail may go to loopback and private addresses. Otherwise a tenant could make the
        /// gateway talk to the network it stands in. Only for tests and closed networks.
        allow_private_destinations: bool = false,
        /// More recipients than this in one message make it bulk mail.
        bulk_recipients: u32 = 100,
        /// A header field that makes a message bulk mail, such as the CRM's own campaign id. An empty
        /// text: none. `List-*` fields and `Precedence: bulk` do in any case.
        campaign_header: String = String::new(),
        /// Largest message that a failure notice returns whole where RET=FULL asks for it;
        /// of larger ones the header is returned.
        return_limit: Size = Size::kib(48),
        /// Time-outs of the dialogue with a destination.
        timeouts: Timeouts = Timeouts::default(),
    }
}

table! {
    /// Time-outs of the dialogue with a destination, by stage. The defaults are those of RFC 5321
    /// s. 4.5.3.2 but for the connection, where nothing is learnt by waiting longer. `connect`,
    /// `banner` and `command` together are the time a server has until it is ready for a
    /// message, and after so long no other address is tried for a message: a server that stalls at
    /// every step holds a delivery up once.
    Timeouts "[delivery.timeouts]" {
        /// Until the connection stands, for each address.
        connect: Span = Span::secs(30),
        /// Until the greeting (220).
        banner: Span = Span::mins(5),
        /// For the replies to EHLO, STARTTLS, AUTH, MAIL, RCPT and RSET.
        command: Span = Span::mins(5),
        /// For the reply to DATA (354).
        data: Span = Span::mins(2),
        /// For each block of content to be taken.
        block: Span = Span::mins(3),
        /// For the reply to the final dot. Shorter ones make duplicates: the destination may
        /// have accepted the message after the gateway stopped listening.
        dot: Span = Span::mins(10),
    }
}

/// How the process's own messages are written to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

table! {
    /// The delivery log, which answers enquiries, and the process's own messages.
    Log "[log]" {
        /// How long the delivery log is kept, counted from each attempt: a mail's own entry stays
        /// for `delivery.lifetime` more. At least 7 days: that is the service contract.
        retention: Span = Span::days(7),
        /// The header field that carries the CRM's own record id, by which
        /// `tidegate log --record` finds a mail. An empty text: none.
        record_header: String = "X-CRM-Record".into(),
        /// What the process writes to standard error: `error`, `warn`, `info`, `debug`,
        /// `trace`, or a filter such as `info,tidegate_net=debug`.
        level: String = "info".into(),
        /// `text` for people, `json` for a log collector.
        format: LogFormat = LogFormat::Text,
    }
}

/// What decides where neither the active nor the last good routing policy can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    #[default]
    Defer,
    Managed,
}

table! {
    /// What happens when a policy fails. The limits of policies (10 ms for a routing decision, 50 for a
    /// plan, 200 for a batch of events, 16 MiB of memory, 1 MiB for an upload) are fixed.
    PolicyConfig "[policy]" {
        /// What decides where a routing policy fails and its last good revision too: `defer`
        /// answers 451 4.3.0, so the client keeps the mail; `managed` takes the tenant's default
        /// relay. Never a refusal.
        fallback: Fallback = Fallback::Defer,
        /// Keep what routing policies are asked and answer (envelope, declared header fields,
        /// origin; no content), for `tidegate policy rehearse`: up to 20 a second of a tenant and
        /// 200 in all. A tenant can be left out: `tidegate tenant set ID --record-inputs false`.
        record_inputs: bool = true,
        /// How long they are kept.
        inputs_retention: Span = Span::days(7),
        /// And how many of a tenant, the newest.
        inputs_per_tenant: u32 = 10_000,
        /// How many uploads of a slot are kept, the newest. One in force, on trial, to be fallen
        /// back to or named in the log stays in any case.
        keep_revisions: u32 = 20,
    }
}

/// Kinds of sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportKind {
    #[default]
    File,
    Http,
}

/// How a receiver wants its secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportAuth {
    #[default]
    Plain,
    Bearer,
    Basic,
    Splunk,
    ApiKey,
}

table! {
    /// An exporter of the delivery log: what the policy active in the slot `export/NAME`
    /// renders is written or posted here. The place in the log is kept, so nothing is left out over a
    /// restart; after a crash a batch may come twice. See "Exporting the log" above for examples.
    Export "[export.NAME]" {
        /// `file`: appended to `NAME.jsonl` in `dir`, which is rotated. `http`: posted to `url`.
        kind: ExportKind = ExportKind::File,
        /// Directory of the files. None: `export/NAME` in `data_dir`.
        dir: Option<PathBuf> = None,
        /// The file is rotated before it would grow beyond this.
        rotate_size: Size = Size::mib(64),
        /// Rotated files kept, as `NAME.jsonl.1` (the newest) and so on.
        keep: u32 = 8,
        /// Where each body that the policy renders is posted to: `https://host[:port]/path`. No redirect is
        /// followed. `http` needs `allow_private`.
        url: Option<String> = None,
        /// Further header fields of each request, as `"Name: value"`. What is secret belongs into
        /// `secret_file`.
        headers: Vec<String> = Vec::new(),
        /// A file with the secret that opens the receiver, readable by the gateway's user only. It is
        /// read for each request, so a new one counts at once.
        secret_file: Option<PathBuf> = None,
        /// How the secret is written into its field: `plain` (the file holds the whole value), `bearer`,
        /// `basic` (the file holds `user:password`), `splunk` or `api-key` (Elasticsearch).
        auth: ExportAuth = ExportAuth::Plain,
        /// The field that it is written into.
        auth_header: String = "Authorization".into(),
        /// A file with the key that each request is signed with, as Standard Webhooks has it: in the fields
        /// `webhook-id`, `webhook-timestamp` and `webhook-signature` (HMAC-SHA256). A key is any text, or
        /// `whsec_` and base64; of several lines each signs, so that a receiver can change its key. None: not signed.
        signing_key_file: Option<PathBuf> = None,
        /// For a request as a whole, with the connection. What is not answered by then is posted again.
        timeout: Span = Span::secs(30),
        /// Roots that the receiver's certificate is checked against, PEM. None: those of
        /// `delivery.trust_anchors`.
        trust_anchors: Option<PathBuf> = None,
        /// Whether the receiver may be at a loopback or private address, and be reached by `http` there.
        /// `delivery.allow_private_destinations` allows it as well.
        allow_private: bool = false,
    }
}

table! {
    /// The admin API, which the command line talks to.
    Admin "[admin]" {
        /// Address and port. Loopback only: the API has no TLS, and its token opens
        /// everything. Port 0 takes a free one, which the command line finds in `data_dir`.
        address: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8025),
        /// The operator's token, readable by its owner only.
        token_file: PathBuf = "admin.token".into(),
    }
}

impl Config {
    /// The configured name, else the machine's.
    pub fn hostname(&self) -> String {
        match &self.hostname {
            Some(name) => name.to_ascii_lowercase(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim().to_ascii_lowercase())
                .ok()
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "localhost".to_owned()),
        }
    }

    /// Directory of an exporter's files.
    pub fn export_dir(&self, name: &str, export: &Export) -> PathBuf {
        export
            .dir
            .clone()
            .unwrap_or_else(|| self.data_dir.join("export").join(name))
    }

    /// The database without the password, for people. Only what is certainly none is shown.
    pub fn shown_database(&self) -> String {
        if self.database == "sqlite" {
            return self.database.clone();
        }
        let Some((scheme, rest)) = self.database.split_once("://") else {
            return "...".to_owned();
        };
        let hidden = format!("{scheme}://...");
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(end) => rest.split_at(end),
            None => (rest, ""),
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (user.split(':').next(), host),
            None => (None, authority),
        };
        // Something that had to be encoded and was not can end a part too early.
        let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) || port.ends_with(']');
        let name = path.split(['?', '#']).next().unwrap_or_default();
        if path.contains('@') || !host.rsplit_once(':').is_none_or(|(_, port)| is_port(port)) {
            return hidden;
        }
        let at = user.map(|user| format!("{user}@")).unwrap_or_default();
        format!("{scheme}://{at}{host}{name}")
    }

    /// The configuration in effect, without anything that may be a secret, for people.
    pub fn shown(&self) -> Config {
        let mut shown = self.clone();
        shown.database = self.shown_database();
        shown.hostname = Some(self.hostname());
        for export in shown.export.values_mut() {
            // A path or a query may be all that opens a webhook.
            if let Some(url) = &mut export.url {
                *url = match tidegate_net::sink::Target::parse(url) {
                    Ok(target) => format!("{}/...", target.origin()),
                    Err(_) => "...".to_owned(),
                };
            }
            for header in &mut export.headers {
                let name = header.split(':').next().unwrap_or_default();
                *header = format!("{name}: ...");
            }
        }
        shown
    }

    /// The resolvers' addresses, port 53 where none is given.
    pub fn resolvers(&self) -> Vec<SocketAddr> {
        self.delivery
            .resolvers
            .iter()
            .filter_map(|text| resolver_address(text))
            .collect()
    }
}

/// `address` or `address:port`.
pub(crate) fn resolver_address(text: &str) -> Option<SocketAddr> {
    text.parse::<SocketAddr>().ok().or_else(|| {
        text.parse::<IpAddr>()
            .ok()
            .map(|ip| SocketAddr::new(ip, 53))
    })
}
