//! `tidegate init`: everything a gateway needs before its first start.
//!
//! Nothing that is there is ever overwritten. With `--force` what is missing is added to
//! what is there, so a run that broke off can be repeated.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::{Failure, Outcome, out, out_json};
use crate::config;
use crate::data_dir::DataDir;
use crate::policies;
use crate::secrets;
use crate::tls;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tidegate init\n  tidegate init --dir ./gateway --hostname mail.crm.example\n  tidegate init --dir ./gateway --policies ./target/policies"
)]
pub struct InitArgs {
    /// Where to make it; the directory of --config otherwise.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The fully qualified name of the gateway; the machine's otherwise.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Directory of the default policies (*.wasm); those installed with the binary otherwise.
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// Install no policies: all mail goes by managed relay until one is activated.
    #[arg(long, conflicts_with = "policies")]
    no_policies: bool,
    /// Add what is missing to a directory that is in use already; overwrites nothing.
    #[arg(long)]
    force: bool,
}

/// What was made and what was there.
#[derive(Default)]
struct Report {
    made: Vec<String>,
    kept: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    fn made(&mut self, what: &str, path: &Path) {
        self.made.push(format!("{what}  {}", path.display()));
    }

    fn kept(&mut self, what: &str, path: &Path) {
        self.kept.push(format!("{what}  {}", path.display()));
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(
        format!("{} can't be written: {error}", path.display()),
        "run as a user who may, or name another directory with --dir",
    )
}

fn make_dir(path: &Path, mode: u32) -> Outcome {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| unwritable(path, &e))
}

/// Writes a new file that all may read.
fn write_public(path: &Path, text: &str) -> Outcome {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| unwritable(path, &e))
}

fn random() -> Result<String, Failure> {
    secrets::random_hex().map_err(|e| Failure::failed(e.to_string(), ""))
}

pub fn run(config_path: &Path, args: &InitArgs, json: bool) -> Outcome {
    let config_path = match &args.dir {
        Some(dir) => dir.join("tidegate.toml"),
        None => config_path.to_owned(),
    };
    let config_path = std::path::absolute(&config_path).unwrap_or(config_path);
    if config_path.exists() && !args.force {
        return Err(Failure::failed(
            format!(
                "{} is there already; nothing was changed",
                config_path.display()
            ),
            "check it with: tidegate check; --force adds what is missing, --dir names another place",
        ));
    }
    let dir = config_path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut report = Report::default();
    if config_path.exists() {
        report.kept("configuration", &config_path);
    } else {
        let text = template(&dir, args.hostname.as_deref());
        // A file that the next command refuses would stand in the way of a second try.
        config::parse(&text).map_err(|problems| unusable(&problems))?;
        make_dir(&dir, 0o755)?;
        write_public(&config_path, &text)?;
        report.made("configuration", &config_path);
    }
    let loaded = config::load(&config_path)?;
    let config = &loaded.config;
    certificate(config, &mut report)?;
    for (what, path) in [
        ("admin token  ", &config.admin.token_file),
        ("master key   ", &config.master_key_file),
    ] {
        if path.exists() {
            report.kept(what, path);
        } else {
            if let Some(parent) = path.parent() {
                make_dir(parent, 0o755)?;
            }
            secrets::write_private(path, &format!("{}\n", random()?))
                .map_err(|e| unwritable(path, &e))?;
            report.made(what, path);
        }
    }
    let data = config.data_dir.exists();
    let lock = DataDir::take_or_tell(&config.data_dir)?;
    if data {
        report.kept("data         ", &config.data_dir);
    } else {
        report.made("data         ", &config.data_dir);
    }
    if !args.no_policies {
        install(config, args.policies.as_deref(), &mut report)?;
    }
    drop(lock);
    tell(&report, &config_path, json);
    Ok(())
}

/// Of the template only the host name is not fixed.
fn unusable(problems: &[config::Problem]) -> Failure {
    match problems.first() {
        Some(problem) => Failure::usage(
            format!("--hostname: {}", problem.message),
            "give the fully qualified name of the gateway with --hostname, such as mail.crm.example",
        ),
        None => Failure::failed("the configuration can't be made", ""),
    }
}

/// A self-signed certificate, good enough to begin with.
fn certificate(config: &config::Config, report: &mut Report) -> Outcome {
    let (chain, key) = (&config.tls.certificate, &config.tls.key);
    match (chain.exists(), key.exists()) {
        (false, false) => {}
        (true, true) => {
            report.kept("certificate  ", chain);
            return Ok(());
        }
        (there, _) => {
            let missing = if there { key } else { chain };
            return Err(Failure::failed(
                format!("{} is missing", missing.display()),
                tls::remedy(&config.tls),
            ));
        }
    }
    for path in [chain, key] {
        if let Some(parent) = path.parent() {
            make_dir(parent, 0o755)?;
        }
    }
    let mut names = vec![
        config.hostname(),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
    ];
    names.dedup();
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| {
        Failure::failed(
            format!("no certificate could be made: {e}"),
            "set a valid hostname",
        )
    })?;
    secrets::write_private(key, &made.signing_key.serialize_pem())
        .map_err(|e| unwritable(key, &e))?;
    write_public(chain, &made.cert.pem())?;
    report.made("certificate  ", chain);
    report
        .notes
        .push("the certificate is self-signed: replace it with one that your applications trust, then send SIGHUP".to_owned());
    Ok(())
}

fn install(config: &config::Config, dir: Option<&Path>, report: &mut Report) -> Outcome {
    let Some(dir) = policies::default_dir(dir) else {
        report.notes.push(
            "no default policies were found: until one is activated, all mail goes by managed relay \
             without a shaping policy; add them with: tidegate init --force --policies DIR"
                .to_owned(),
        );
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no threads: {e}"), ""))?;
    let installed = runtime.block_on(policies::install_defaults(config, &dir))?;
    for policy in installed {
        let line = format!(
            "policy         {} {} in {} ({:.12})",
            policy.name, policy.version, policy.slot, policy.digest
        );
        if policy.kept {
            report.kept.push(line);
        } else {
            report.made.push(line);
        }
    }
    Ok(())
}

fn tell(report: &Report, config_path: &Path, json: bool) {
    let option = if config_path == Path::new("/etc/tidegate/tidegate.toml") {
        String::new()
    } else {
        format!(" --config {}", config_path.display())
    };
    let next = format!("tidegate{option} serve");
    if json {
        out_json(&json!({
            "made": report.made,
            "kept": report.kept,
            "notes": report.notes,
            "config": config_path,
            "next": next,
        }));
        return;
    }
    let mut text = String::new();
    for line in &report.made {
        text.push_str(&format!("made  {line}\n"));
    }
    for line in &report.kept {
        text.push_str(&format!("kept  {line}\n"));
    }
    for note in &report.notes {
        text.push_str(&format!("note  {note}\n"));
    }
    text.push_str(&format!(
        "\nnext:\n  {next}\n  tidegate{option} tenant add acme --domain acme.example\n  \
         tidegate{option} credential add crm@acme --tenant acme\n"
    ));
    out(&text);
}

/// The first configuration: what nearly everybody sets, with the rest in the manual.
fn template(dir: &Path, hostname: Option<&str>) -> String {
    let hostname = match hostname {
        Some(name) => name.to_owned(),
        None => config::Config::default().hostname(),
    };
    let data_dir = if dir == Path::new("/etc/tidegate") {
        "/var/lib/tidegate"
    } else {
        "data"
    };
    // Ports below 1024 are root's as a rule.
    let (starttls, implicit) = if rustix::process::geteuid().is_root() {
        ("[::]:587", "[::]:465")
    } else {
        ("127.0.0.1:2587", "127.0.0.1:2465")
    };
    format!(
        r#"# Tidegate. Every key with its default and reason: tidegate docs
# Relative paths count from this file's directory. Check changes with: tidegate check

# Fully qualified; greeted with, and named in Received fields and notices.
hostname = {hostname:?}
data_dir = "{data_dir}"
database = "sqlite"

[[submission.listener]]
address = "{starttls}"
tls = "starttls"

[[submission.listener]]
address = "{implicit}"
tls = "implicit"

[tls]
certificate = "tls/cert.pem"
key = "tls/key.pem"

[log]
# At least 7 days.
retention = "7d"
# The header field with the CRM's record id.
record_header = "X-CRM-Record"

# What the policy in the slot export/log renders goes to {data_dir}/export/log.
[export.log]
kind = "file"

[admin]
address = "127.0.0.1:8025"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_a_valid_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tidegate.toml");
        std::fs::write(&path, template(dir.path(), Some("mail.crm.example"))).unwrap();
        let loaded = config::load(&path).unwrap();
        assert_eq!(loaded.config.hostname(), "mail.crm.example");
        assert_eq!(loaded.config.submission.listener.len(), 2);
        assert!(loaded.config.export.contains_key("log"));
    }
}
