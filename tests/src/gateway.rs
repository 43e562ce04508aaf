//! The gateway's own binary as a child process, in a directory of its own.
//!
//! A child gets SIGKILL when its handle is dropped; what it wrote to standard error is kept beside
//! its data, and ends up in the message of every failure here.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use serde_json::Value;

use crate::client::{Crm, Protection};
use crate::eventually;
use crate::internet::Internet;
use crate::raw::Raw;

const READY_WITHIN: Duration = Duration::from_secs(30);

/// Configuration of a gateway under test: short times, loopback destinations.
#[derive(Clone, Debug)]
pub struct Options {
    table: toml::Table,
    policies: bool,
}

impl Options {
    /// For this internet: its name server, its MX port, listeners on its gateway address.
    pub fn new(internet: &Internet) -> anyhow::Result<Options> {
        Options::on(
            internet.gateway(),
            internet.dns.address(),
            internet.mx_port(),
        )
    }

    /// Listeners on this address: in clear with AUTH, with STARTTLS, with implicit TLS.
    pub fn on(ip: Ipv4Addr, resolver: SocketAddr, mx_port: u16) -> anyhow::Result<Options> {
        let [clear, starttls, implicit, admin] = free_ports(ip)?;
        let text = format!(
            r#"
hostname = "gateway.test"
data_dir = "data"
shutdown_grace = "10s"

[[submission.listener]]
address = "{ip}:{clear}"
tls = "none"
allow_plain_auth = true

[[submission.listener]]
address = "{ip}:{starttls}"
tls = "starttls"

[[submission.listener]]
address = "{ip}:{implicit}"
tls = "implicit"

[delivery]
lifetime = "1h"
delay_notice_after = "30m"
retry = ["1s"]
jitter = 0
site_backoff = "1s"
site_backoff_max = "1s"
mx_port = {mx_port}
resolvers = ["{resolver}"]
allow_private_destinations = true

[delivery.timeouts]
connect = "3s"
banner = "5s"
command = "5s"
data = "5s"
block = "10s"
dot = "5s"

[log]
record_header = "X-CRM-Record"

[export.log]
kind = "file"

[admin]
address = "{ip}:{admin}"
"#
        );
        Ok(Options {
            table: text.parse()?,
            policies: true,
        })
    }

    /// The built-in routes decide; what it takes to prepare policies is saved.
    pub fn without_policies(mut self) -> Options {
        self.policies = false;
        self
    }

    /// Sets a key by its dotted path.
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Options {
        let mut words: Vec<&str> = key.split('.').collect();
        let last = words.pop().unwrap_or(key);
        let mut table = &mut self.table;
        for word in words {
            table = table
                .entry(word)
                .or_insert_with(|| toml::Table::new().into())
                .as_table_mut()
                .expect("a table in the configuration");
        }
        table.insert(last.to_owned(), value.into());
        self
    }

    /// Lets the listener in clear repair line ends.
    pub fn repairing(mut self) -> Options {
        self.table["submission"]["listener"][0]
            .as_table_mut()
            .expect("a table in the configuration")
            .insert("repair_line_ends".to_owned(), true.into());
        self
    }

    fn listener(&self, at: usize) -> SocketAddr {
        self.table["submission"]["listener"][at]["address"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("an address in the configuration")
    }
}

fn free_ports<const N: usize>(ip: Ipv4Addr) -> anyhow::Result<[u16; N]> {
    // All open at once, so that they differ.
    let open: Vec<TcpListener> = (0..N)
        .map(|_| TcpListener::bind((ip, 0)))
        .collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&open) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Decides for the whole process which binary is started; the first call counts.
pub fn use_binary(path: &Path) {
    let _ = BINARY.set(path.to_owned());
}

/// The binary: as chosen, or `TIDEGATE_BIN`, or beside this program's own.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = BINARY.get() {
        return Ok(path.clone());
    }
    if let Some(path) = std::env::var_os("TIDEGATE_BIN") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("tidegate"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no tidegate binary near {}: run `cargo build -p tidegate-gateway`, \
                 or set TIDEGATE_BIN",
                program.display()
            )
        })
}

/// What the gateway's binary takes from its environment.
const OWN_VARIABLES: [&str; 6] = [
    "TIDEGATE_CONFIG",
    "TIDEGATE_DATABASE",
    "TIDEGATE_ADMIN",
    "TIDEGATE_ADMIN_CA",
    "TIDEGATE_TOKEN_FILE",
    "NOTIFY_SOCKET",
];

/// A program that meets none of this process' own settings of a gateway, whoever runs it: they may
/// name the database that serves.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in OWN_VARIABLES {
        command.env_remove(name);
    }
    command
}

/// The kinds of event in a log entry, in order.
pub fn kinds(entry: &Value) -> Vec<String> {
    entry["events"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["kind"].as_str().map(str::to_owned))
        .collect()
}

/// The directory of built policies: `TIDEGATE_POLICIES`, or in the target directory.
pub fn policies() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("TIDEGATE_POLICIES") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    program
        .ancestors()
        .map(|directory| directory.join("policies"))
        .find(|path| path.is_dir())
        .context("no built policies in the target directory: run `cargo xtask plugins`")
}

/// A built policy by its name.
pub fn policy(name: &str) -> anyhow::Result<PathBuf> {
    let path = policies()?.join(format!("{name}.wasm"));
    anyhow::ensure!(
        path.is_file(),
        "{} is not there: run `cargo xtask plugins`",
        path.display()
    );
    Ok(path)
}

enum Place {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

/// A gateway: its directory, and while it runs its process.
pub struct Gateway {
    place: Place,
    binary: PathBuf,
    options: Options,
    process: Option<Child>,
    /// Runs before the child's own program: `prlimit`, `strace`.
    wrapper: Vec<String>,
}

impl Gateway {
    /// Initialised in a temporary directory, not started.
    pub fn new(options: Options) -> anyhow::Result<Gateway> {
        let directory = tempfile::Builder::new().prefix("tidegate-").tempdir()?;
        Gateway::at(Place::Temporary(directory), options)
    }

    /// Initialised in this directory, which stays.
    pub fn kept(directory: &Path, options: Options) -> anyhow::Result<Gateway> {
        std::fs::create_dir_all(directory)?;
        Gateway::at(Place::Kept(directory.to_owned()), options)
    }

    fn at(place: Place, options: Options) -> anyhow::Result<Gateway> {
        let gateway = Gateway {
            place,
            binary: binary()?,
            options,
            process: None,
            wrapper: Vec::new(),
        };
        // First the configuration: where the policies are put depends on the database.
        gateway.write_config()?;
        let with: Vec<std::ffi::OsString> = if gateway.options.policies {
            vec!["--policies".into(), policies()?.into()]
        } else {
            vec!["--no-policies".into()]
        };
        let made = command(&gateway.binary)
            .args(["init", "--force", "--dir"])
            .arg(gateway.directory())
            .args(with)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {}", gateway.binary.display()))?;
        if !made.status.success() {
            bail!("tidegate init: {}", String::from_utf8_lossy(&made.stderr));
        }
        Ok(gateway)
    }

    /// Initialised and started.
    pub fn running(options: Options) -> anyhow::Result<Gateway> {
        let mut gateway = Gateway::new(options)?;
        gateway.start()?;
        Ok(gateway)
    }

    pub fn directory(&self) -> &Path {
        match &self.place {
            Place::Temporary(directory) => directory.path(),
            Place::Kept(directory) => directory,
        }
    }

    pub fn config(&self) -> PathBuf {
        self.directory().join("tidegate.toml")
    }

    /// Replaces the configuration; the next start reads it.
    pub fn configure(&mut self, change: impl FnOnce(Options) -> Options) -> anyhow::Result<()> {
        self.options = change(self.options.clone());
        self.write_config()
    }

    fn write_config(&self) -> anyhow::Result<()> {
        let text = toml::to_string(&self.options.table)?;
        Ok(std::fs::write(self.config(), text)?)
    }

    /// Puts a program before the gateway's at the next start.
    pub fn wrap(&mut self, words: &[&str]) {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// The listener in clear, where AUTH is allowed.
    pub fn smtp(&self) -> SocketAddr {
        self.options.listener(0)
    }

    /// The listener with STARTTLS.
    pub fn submission(&self) -> SocketAddr {
        self.options.listener(1)
    }

    /// The listener with implicit TLS.
    pub fn submissions(&self) -> SocketAddr {
        self.options.listener(2)
    }

    /// What `/health` answers: status code and body.
    pub fn health(&self) -> anyhow::Result<(u16, String)> {
        self.get("/health")
    }

    /// What `/metrics` answers.
    pub fn metrics(&self) -> anyhow::Result<String> {
        Ok(self.get("/metrics")?.1)
    }

    /// What the admin API answers to the operator: a path below `/api/v1`, its query encoded.
    pub fn api(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let token = std::fs::read_to_string(self.directory().join("admin.token"))?;
        let token = format!("Authorization: Bearer {}\r\n", token.trim());
        self.get_with(&format!("/api/v1{path}"), &token)
    }

    fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.get_with(path, "")
    }

    fn get_with(&self, path: &str, header: &str) -> anyhow::Result<(u16, String)> {
        let address = self.options.table["admin"]["address"]
            .as_str()
            .context("an address of the admin API")?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(READY_WITHIN))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n{header}\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        Ok((
            code.context("a status line")?,
            body.unwrap_or_default().to_owned(),
        ))
    }

    /// Starts without waiting.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        if self.process.is_some() {
            bail!("the gateway runs already");
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory().join("stderr.log"))?;
        let mut words = self.wrapper.iter();
        let mut serve = match words.next() {
            None => command(&self.binary),
            Some(program) => {
                let mut wrapped = command(program);
                wrapped.args(words).arg(&self.binary);
                wrapped
            }
        };
        let ready = self.directory().join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let child = serve
            .arg("serve")
            .arg("--config")
            .arg(self.config())
            .arg("--ready-file")
            .arg(ready)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        self.process = Some(child);
        Ok(())
    }

    /// Starts, and waits until it says that mail is taken.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        let ready = self.directory().join("ready.json");
        eventually("gateway ready", READY_WITHIN, || {
            if let Some(Ok(Some(status))) = self.process.as_mut().map(Child::try_wait) {
                self.process = None;
                return Some(Err(anyhow::anyhow!("the gateway ended with {status}")));
            }
            ready.exists().then_some(Ok(()))
        })
        .and_then(|ready| ready)
        .with_context(|| self.said())
    }

    /// What it wrote to standard error so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.directory().join("stderr.log")).unwrap_or_default()
    }

    /// The gateway's own process, also where a wrapper started it.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let child = self.process.as_ref().context("not running")?.id();
        let told = std::fs::read_to_string(self.directory().join("ready.json"))
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            .and_then(|ready| ready["pid"].as_u64());
        Ok(told.map_or(child, |pid| pid as u32))
    }

    /// SIGKILL: a crash.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        let mut child = self.process.take().context("not running")?;
        // A wrapper ends after what it wraps.
        child.wait()?;
        Ok(())
    }

    /// SIGTERM: an orderly stop, within 30 seconds.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut child = self.process.take().context("not running")?;
        let ended = eventually("orderly stop", Duration::from_secs(30), || {
            child.try_wait().transpose()
        });
        match ended {
            Ok(status) => Ok(status?),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error.context(self.said()))
            }
        }
    }

    /// Waits for a process that ends by itself.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let child = self.process.as_mut().context("not running")?;
        let status = eventually("the gateway ends", within, || child.try_wait().transpose())??;
        self.process = None;
        Ok(status)
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()?)
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Runs a command of the gateway's command line against this gateway.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        // Before the command: after `policy upload` it would be the policy's configuration.
        command(&self.binary)
            .arg("--config")
            .arg(self.config())
            .args(arguments)
            .current_dir(self.directory())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {}", self.binary.display()))
    }

    /// The same, and demands success; gives standard output.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.cli(arguments)?;
        if !output.status.success() {
            bail!(
                "tidegate {}: {}\n{}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same with `--json`, parsed.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut words = arguments.to_vec();
        words.push("--json");
        let text = self.run(&words)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Makes a token for a tenant; the file it is in.
    pub fn token(&self, tenant: &str) -> anyhow::Result<PathBuf> {
        let made = self.json(&["token", "add", "--tenant", tenant])?;
        let token = made["token"].as_str().context("no token")?;
        let path = self.directory().join(format!("token-{tenant}"));
        std::fs::write(&path, token)?;
        Ok(path)
    }

    /// Runs a command as somebody who has a token and no configuration; its output as JSON.
    pub fn with_token(&self, token: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
        let admin = std::fs::read_to_string(self.directory().join("data/admin.address"))?;
        let output = command(&self.binary)
            .args(arguments)
            .arg("--json")
            .env("TIDEGATE_TOKEN_FILE", token)
            .env("TIDEGATE_ADMIN", admin.trim())
            .env("TIDEGATE_CONFIG", "/nonexistent/tidegate.toml")
            .current_dir(self.directory())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {}", self.binary.display()))?;
        if !output.status.success() {
            bail!(
                "tidegate {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Adds a tenant with its sending domains.
    pub fn tenant(&self, id: &str, domains: &[&str]) -> anyhow::Result<()> {
        let mut words = vec!["tenant", "add", id];
        for domain in domains {
            words.extend(["--domain", domain]);
        }
        self.run(&words).map(drop)
    }

    /// Adds an account with this password.
    pub fn credential(&self, tenant: &str, user: &str, password: &str) -> anyhow::Result<()> {
        let file = self.secret(password)?;
        self.run(&[
            "credential",
            "add",
            user,
            "--tenant",
            tenant,
            "--password-file",
            &file,
        ])
        .map(drop)
    }

    /// The same; everything it submits is bulk.
    pub fn bulk_credential(&self, tenant: &str, user: &str, password: &str) -> anyhow::Result<()> {
        let file = self.secret(password)?;
        let words = ["credential", "add", user, "--tenant", tenant, "--bulk"];
        self.run(&[&words[..], &["--password-file", &file]].concat())
            .map(drop)
    }

    /// Registers a tenant's own server, reached in clear.
    pub fn server(&self, tenant: &str, name: &str, at: SocketAddr) -> anyhow::Result<()> {
        let (host, port) = (at.ip().to_string(), at.port().to_string());
        let words = ["server", "add", name, "--tenant", tenant, "--host", &host];
        self.run(&[&words[..], &["--port", &port, "--tls", "none"]].concat())
            .map(drop)
    }

    /// A file with a secret in it that only its owner can read; its path.
    pub fn secret(&self, text: &str) -> anyhow::Result<String> {
        let path = self.directory().join("secret");
        let mut file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path.display().to_string())
    }

    /// Uploads a policy and puts it in force; its digest.
    pub fn policy(&self, slot: &str, component: &Path, config: &str) -> anyhow::Result<String> {
        let file = self.directory().join("policy-config");
        std::fs::write(&file, config)?;
        let (component, file) = (component.display().to_string(), file.display().to_string());
        let words = ["policy", "upload", &component, "--config", &file];
        let answer = self.json(&[&words[..], &["--slot", slot]].concat())?;
        let digest = answer["digest"].as_str().context("no digest")?;
        Ok(digest.to_owned())
    }

    /// The log entry of a message, as JSON.
    pub fn log(&self, id: &str) -> anyhow::Result<Value> {
        self.json(&["log", id])
    }

    /// Waits until the log of a message has an event of this kind.
    pub fn wait_logged(&self, id: &str, kind: &str, within: Duration) -> anyhow::Result<Value> {
        eventually(&format!("{id} {kind} in the log"), within, || {
            let entry = self.log(id).ok()?;
            kinds(&entry).iter().any(|k| k == kind).then_some(entry)
        })
    }

    /// Trusts this gateway's own certificate.
    pub fn trust(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let pem = std::fs::read_to_string(self.directory().join("tls/cert.pem"))?;
        crate::tls::client_trusting(&pem)
    }

    /// A CRM's session in clear.
    pub fn crm(&self, user: &str, password: &str) -> anyhow::Result<Crm> {
        Crm::connect(self.smtp(), &Protection::Clear, user, password)
    }

    /// A text session, greeted and logged in.
    pub fn raw(&self, user: &str, password: &str) -> anyhow::Result<Raw> {
        Raw::login(self.smtp(), user, password)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // First the gateway itself: a tracer that is killed would only let go of it.
        let _ = self.signal(Signal::KILL);
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
