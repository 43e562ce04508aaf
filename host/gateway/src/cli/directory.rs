//! `tidegate tenant`, `credential`, `server`, `relay`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::{Client, segment};
use super::table;
use super::{Failure, Outcome, out};
use crate::config::Span;

#[derive(Subcommand)]
pub enum TenantCommand {
    /// Add a tenant.
    #[command(
        after_help = "Examples:\n  tidegate tenant add acme --domain acme.example\n  tidegate tenant add acme --domain acme.example --domain news.acme.example --relay eu-pool"
    )]
    Add {
        /// Lower-case letters, digits and '-'.
        id: String,
        /// A domain it may send from; may be repeated. Sub-domains are not included.
        #[arg(long = "domain", required = true)]
        domains: Vec<String>,
        /// A relay it may use; the first is its default. None: direct to MX.
        #[arg(long = "relay")]
        relays: Vec<String>,
        /// How many recipients of bulk mail in any time of that length; what is beyond waits.
        #[arg(long, value_name = "N/TIME")]
        bulk_quota: Option<BulkQuota>,
    },
    /// List the tenants.
    #[command(after_help = "Example:\n  tidegate tenant list --json")]
    List,
    /// Show a tenant.
    #[command(after_help = "Example:\n  tidegate tenant show acme")]
    Show { id: String },
    /// Replace a tenant's domains, relays or quota, or what is recorded of it.
    #[command(
        after_help = "Examples:\n  tidegate tenant set acme --domain acme.example --domain acme.test\n  tidegate tenant set acme --bulk-quota 7000/7d\n  tidegate tenant set acme --bulk-quota none\n  tidegate tenant set acme --record-inputs false"
    )]
    Set {
        id: String,
        /// All the domains it may send from.
        #[arg(long = "domain")]
        domains: Vec<String>,
        /// All the relays it may use.
        #[arg(long = "relay")]
        relays: Vec<String>,
        /// Whether what its routing policy is asked is kept for rehearsals.
        #[arg(long, value_name = "BOOL")]
        record_inputs: Option<bool>,
        /// How many recipients of bulk mail in any time of that length, or `none`.
        #[arg(long, value_name = "N/TIME")]
        bulk_quota: Option<BulkQuota>,
    },
    /// Remove a tenant with its credentials, servers and policies; queued mail goes on.
    #[command(after_help = "Example:\n  tidegate tenant remove acme")]
    Remove { id: String },
    /// Take no more mail from a tenant; queued mail goes on.
    #[command(
        after_help = "Examples:\n  tidegate tenant suspend acme\n  tidegate tenant suspend acme --bulk"
    )]
    Suspend {
        id: String,
        /// Bulk mail only.
        #[arg(long)]
        bulk: bool,
    },
    /// Take mail from a tenant again.
    #[command(
        after_help = "Examples:\n  tidegate tenant resume acme\n  tidegate tenant resume acme --bulk"
    )]
    Resume {
        id: String,
        /// Bulk mail only.
        #[arg(long)]
        bulk: bool,
    },
    /// How a tenant's notices read: in its language, with its contact.
    #[command(subcommand)]
    Wording(super::wording::WordingCommand),
}

fn show_tenant(tenant: &Value) {
    let list = json!([tenant]);
    tenants(&list).print("");
}

fn tenants(list: &Value) -> table::Table {
    let mut list = list.clone();
    for tenant in list.as_array_mut().into_iter().flatten() {
        let quota = &tenant["bulk_quota"];
        if let (Some(recipients), Some(secs)) =
            (quota["recipients"].as_u64(), quota["window_secs"].as_u64())
        {
            let mut text = format!("{recipients} in {}", table::duration(secs));
            if let Some(used) = tenant["bulk_used"].as_u64() {
                text.push_str(&format!(", {used} used"));
            }
            tenant["bulk_quota"] = text.into();
        }
    }
    table::of(
        &list,
        &[
            ("TENANT", "id"),
            ("DOMAINS", "domains"),
            ("RELAYS", "relays"),
            ("SUSPENDED", "suspended"),
            ("BULK SUSPENDED", "bulk_suspended"),
            ("BULK QUOTA", "bulk_quota"),
        ],
    )
}

/// `7000/7d`, or `none`.
#[derive(Clone, Copy)]
pub struct BulkQuota(Option<(u32, Span)>);

impl FromStr for BulkQuota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(BulkQuota(None));
        }
        let (count, time) = text
            .split_once('/')
            .ok_or("write recipients and a time, as 7000/7d, or none")?;
        let count = count
            .parse()
            .map_err(|_| format!("{count:?} is not a number of recipients"))?;
        let time = Span::from_str(time).map_err(|e| e.to_string())?;
        Ok(BulkQuota(Some((count, time))))
    }
}

impl BulkQuota {
    fn json(self) -> Value {
        match self.0 {
            Some((recipients, time)) => {
                json!({"recipients": recipients, "window_secs": time.whole_secs()})
            }
            None => Value::Null,
        }
    }
}

fn suspend(client: &Client, id: &str, bulk: bool, on: bool) -> Outcome {
    let member = if bulk { "bulk_suspended" } else { "suspended" };
    let answer: Value = client.patch(&format!("/tenants/{}", segment(id)), &json!({member: on}))?;
    client.show(&answer, show_tenant);
    Ok(())
}

impl TenantCommand {
    pub fn run(self, client: &Client) -> Outcome {
        let answer: Value = match self {
            TenantCommand::Add {
                id,
                domains,
                relays,
                bulk_quota,
            } => {
                let mut body = json!({"id": id, "domains": domains, "relays": relays});
                if let Some(quota) = bulk_quota {
                    body["bulk_quota"] = quota.json();
                }
                client.post("/tenants", &body)?
            }
            TenantCommand::List => {
                let list: Value = client.get("/tenants", &[])?;
                client.show(&list, |list| {
                    tenants(list).print("no tenants; add one with: tidegate tenant add");
                });
                return Ok(());
            }
            TenantCommand::Show { id } => client.get(&format!("/tenants/{}", segment(&id)), &[])?,
            TenantCommand::Set {
                id,
                domains,
                relays,
                record_inputs,
                bulk_quota,
            } => {
                let mut change = Map::new();
                if !domains.is_empty() {
                    change.insert("domains".to_owned(), json!(domains));
                }
                if !relays.is_empty() {
                    change.insert("relays".to_owned(), json!(relays));
                }
                if let Some(record) = record_inputs {
                    change.insert("record_inputs".to_owned(), json!(record));
                }
                if let Some(quota) = bulk_quota {
                    change.insert("bulk_quota".to_owned(), quota.json());
                }
                if change.is_empty() {
                    return Err(Failure::usage(
                        "nothing to change",
                        "give --domain, --relay, --bulk-quota or --record-inputs",
                    ));
                }
                client.patch(&format!("/tenants/{}", segment(&id)), &change)?
            }
            TenantCommand::Remove { id } => {
                let answer: Value = client.delete(&format!("/tenants/{}", segment(&id)))?;
                client.show(&answer, |_| out(&format!("tenant {id} removed\n")));
                return Ok(());
            }
            TenantCommand::Wording(command) => return command.run(client),
            TenantCommand::Suspend { id, bulk } => return suspend(client, &id, bulk, true),
            TenantCommand::Resume { id, bulk } => return suspend(client, &id, bulk, false),
        };
        client.show(&answer, show_tenant);
        Ok(())
    }
}

/// A secret from a file, or from standard input for `-`; a final line end is not part of it.
fn secret(path: &Path) -> Result<String, Failure> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|e| {
        Failure::usage(
            format!("the password can't be read: {}: {e}", path.display()),
            "name a readable file, or - for standard input",
        )
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[derive(Subcommand)]
pub enum CredentialCommand {
    /// Add an account; its password is made and shown once, unless a file is given.
    #[command(
        after_help = "Examples:\n  tidegate credential add crm@acme --tenant acme\n  tidegate credential add news@acme --tenant acme --bulk --password-file ./news.password"
    )]
    Add {
        /// The user name for AUTH, unique over all tenants.
        user: String,
        #[arg(long)]
        tenant: String,
        /// Everything submitted with it is bulk mail.
        #[arg(long)]
        bulk: bool,
        /// Read the password from here instead of making one (- for standard input).
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Replace the password of an account that is there.
        #[arg(long)]
        replace: bool,
    },
    /// List the accounts.
    #[command(after_help = "Example:\n  tidegate credential list --tenant acme")]
    List {
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Remove an account.
    #[command(after_help = "Example:\n  tidegate credential remove crm@acme")]
    Remove { user: String },
}

impl CredentialCommand {
    pub fn run(self, client: &Client) -> Outcome {
        match self {
            CredentialCommand::Add {
                user,
                tenant,
                bulk,
                password_file,
                replace,
            } => {
                let mut body =
                    json!({"user": user, "tenant": tenant, "bulk": bulk, "replace": replace});
                if let Some(path) = password_file {
                    body["password"] = secret(&path)?.into();
                }
                let answer: Value = client.post("/credentials", &body)?;
                client.show(&answer, |a| {
                    out(&format!("user      {}\n", table::cell(&a["user"])));
                    if let Some(password) = a["password"].as_str() {
                        out(&format!("password  {password}\n"));
                        out("          shown this once: put it into the application now\n");
                    }
                });
            }
            CredentialCommand::List { tenant } => {
                let list: Value = client.get("/credentials", &of_tenant(tenant))?;
                client.show(&list, |list| {
                    table::of(
                        list,
                        &[("USER", "user"), ("TENANT", "tenant"), ("BULK", "bulk")],
                    )
                    .print("no credentials; add one with: tidegate credential add");
                });
            }
            CredentialCommand::Remove { user } => {
                let answer: Value = client.delete(&format!("/credentials/{}", segment(&user)))?;
                client.show(&answer, |_| out(&format!("user {user} removed\n")));
            }
        }
        Ok(())
    }
}

fn of_tenant(tenant: Option<String>) -> Vec<(&'static str, String)> {
    tenant.map(|t| ("tenant", t)).into_iter().collect()
}

/// How a connection to a named server is protected.
#[derive(Clone, Copy, ValueEnum)]
pub enum Protection {
    /// In clear.
    None,
    /// STARTTLS where offered, without verification.
    Opportunistic,
    /// STARTTLS with a verified certificate.
    StartTls,
    /// TLS from the first byte, verified.
    Implicit,
}

impl Protection {
    fn as_str(self) -> &'static str {
        match self {
            Protection::None => "none",
            Protection::Opportunistic => "opportunistic",
            Protection::StartTls => "start-tls",
            Protection::Implicit => "implicit",
        }
    }
}

#[derive(Args)]
pub struct Login {
    /// User name for AUTH.
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// Read the password for AUTH from here (- for standard input).
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
}

impl Login {
    fn add_to(self, body: &mut Value) -> Outcome {
        if let Some(user) = self.user {
            body["user"] = user.into();
        }
        if let Some(path) = self.password_file {
            body["password"] = secret(&path)?.into();
        }
        Ok(())
    }
}

#[derive(Subcommand)]
pub enum ServerCommand {
    /// Register a tenant's own server, to which its policy may pass mail through.
    #[command(
        after_help = "Examples:\n  tidegate server add own --tenant acme --host smtp.acme.example --port 587 --user relay --password-file ./smtp.password\n  tidegate server add lab --tenant acme --host 192.0.2.7 --port 25 --tls none"
    )]
    Add {
        /// The name that the routing policy uses.
        name: String,
        #[arg(long)]
        tenant: String,
        #[arg(long)]
        host: String,
        #[arg(long, default_value_t = 587)]
        port: u16,
        #[arg(long, value_enum, default_value = "start-tls")]
        tls: Protection,
        #[command(flatten)]
        login: Login,
        /// Replace a server of the same name.
        #[arg(long)]
        replace: bool,
    },
    /// List the servers.
    #[command(after_help = "Example:\n  tidegate server list --tenant acme")]
    List {
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Remove a server.
    #[command(after_help = "Example:\n  tidegate server remove own --tenant acme")]
    Remove {
        name: String,
        #[arg(long)]
        tenant: String,
    },
}

fn servers(list: &Value) -> table::Table {
    table::of(
        list,
        &[
            ("TENANT", "tenant"),
            ("NAME", "name"),
            ("HOST", "host"),
            ("PORT", "port"),
            ("TLS", "tls"),
            ("USER", "user"),
        ],
    )
}

impl ServerCommand {
    pub fn run(self, client: &Client) -> Outcome {
        match self {
            ServerCommand::Add {
                name,
                tenant,
                host,
                port,
                tls,
                login,
                replace,
            } => {
                let mut body = json!({
                    "tenant": tenant, "name": name, "host": host, "port": port,
                    "tls": tls.as_str(), "replace": replace,
                });
                login.add_to(&mut body)?;
                let answer: Value = client.post("/servers", &body)?;
                client.show(&answer, |a| servers(&json!([a])).print(""));
            }
            ServerCommand::List { tenant } => {
                let list: Value = client.get("/servers", &of_tenant(tenant))?;
                client.show(&list, |list| {
                    servers(list).print("no servers; add one with: tidegate server add");
                });
            }
            ServerCommand::Remove { name, tenant } => {
                let path = format!("/servers/{}/{}", segment(&tenant), segment(&name));
                let answer: Value = client.delete(&path)?;
                client.show(&answer, |_| out(&format!("server {name} removed\n")));
            }
        }
        Ok(())
    }
}

#[derive(Subcommand)]
pub enum RelayCommand {
    /// Add a way out: direct to MX from given addresses, or everything to a smarthost.
    #[command(
        after_help = "Examples:\n  tidegate relay add eu-pool --source 192.0.2.10 --source 192.0.2.11\n  tidegate relay add partner --host smtp.partner.example --port 587 --user us --password-file ./partner.password"
    )]
    Add {
        /// The name that tenants and policies use.
        name: String,
        /// A source address for delivery by MX; may be repeated.
        #[arg(long = "source", conflicts_with_all = ["host", "port", "tls", "user"])]
        sources: Vec<std::net::IpAddr>,
        /// The smarthost.
        #[arg(long)]
        host: Option<String>,
        #[arg(long, requires = "host")]
        port: Option<u16>,
        #[arg(long, value_enum, requires = "host")]
        tls: Option<Protection>,
        #[command(flatten)]
        login: Login,
        /// Replace a relay of the same name.
        #[arg(long)]
        replace: bool,
    },
    /// List the relays.
    #[command(after_help = "Example:\n  tidegate relay list")]
    List,
    /// Remove a relay.
    #[command(after_help = "Example:\n  tidegate relay remove eu-pool")]
    Remove { name: String },
}

fn relays(list: &Value) -> table::Table {
    table::of(
        list,
        &[
            ("RELAY", "name"),
            ("KIND", "kind"),
            ("SOURCES", "sources"),
            ("HOST", "host"),
            ("PORT", "port"),
            ("TLS", "tls"),
            ("USER", "user"),
        ],
    )
}

impl RelayCommand {
    pub fn run(self, client: &Client) -> Outcome {
        match self {
            RelayCommand::Add {
                name,
                sources,
                host,
                port,
                tls,
                login,
                replace,
            } => {
                let mut body = json!({"name": name, "sources": sources, "replace": replace});
                if let Some(host) = host {
                    body["host"] = host.into();
                }
                if let Some(port) = port {
                    body["port"] = port.into();
                }
                if let Some(tls) = tls {
                    body["tls"] = tls.as_str().into();
                }
                login.add_to(&mut body)?;
                let answer: Value = client.post("/relays", &body)?;
                client.show(&answer, |a| relays(&json!([a])).print(""));
            }
            RelayCommand::List => {
                let list: Value = client.get("/relays", &[])?;
                client.show(&list, |list| relays(list).print("no relays"));
            }
            RelayCommand::Remove { name } => {
                let answer: Value = client.delete(&format!("/relays/{}", segment(&name)))?;
                client.show(&answer, |_| out(&format!("relay {name} removed\n")));
            }
        }
        Ok(())
    }
}
