//! The command line.
//!
//! `init`, `check` and `serve` work on the files; everything else asks a running gateway
//! through its admin API. Results go to standard output, as tables or with `--json`, everything
//! else to standard error. Secrets are read from files, never from arguments.

mod client;
mod directory;
mod export;
mod log;
mod policy;
mod policy_build;
mod policy_examples;
mod policy_history;
mod policy_new;
mod policy_report;
mod policy_test;
mod queue;
mod stats;
mod table;
mod timeline;
mod token;
mod wording;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, ConfigError, LogFormat};

/// The exit status of a command that failed, as `--help` documents it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Failure = 1,
    Usage = 2,
    NotRunning = 69,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration or the arguments are wrong.
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{message}{}", remedy_line(.remedy))]
    Usage { message: String, remedy: String },
    /// Nothing answers at the admin address.
    #[error(
        "the gateway is not running: nothing answers at {address} ({reason})\n  remedy: start it with: tidegate serve; if it runs elsewhere, name its configuration with --config"
    )]
    NotRunning { address: String, reason: String },
    /// It ran and refused, or the environment is at fault.
    #[error("{message}{}", remedy_line(.remedy))]
    Failed { message: String, remedy: String },
    /// Already told in full on standard output.
    #[error("")]
    Told(Exit),
}

fn remedy_line(remedy: &str) -> String {
    if remedy.is_empty() {
        String::new()
    } else {
        format!("\n  remedy: {remedy}")
    }
}

impl Failure {
    pub fn failed(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Failure::Failed {
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    pub fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Failure::Usage {
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Failure::Config(_) | Failure::Usage { .. } => Exit::Usage,
            Failure::NotRunning { .. } => Exit::NotRunning,
            Failure::Failed { .. } => Exit::Failure,
            Failure::Told(exit) => *exit,
        }
    }
}

pub type Outcome = Result<(), Failure>;

const EXIT_CODES: &str = "\
Exit status:
  0   done
  1   failed: the gateway or the environment refused; the message says why
  2   wrong arguments or configuration
  69  the gateway is not running (for commands that ask it)";

/// A mail gateway whose policy is WebAssembly.
#[derive(Parser)]
#[command(
    name = "tidegate",
    version,
    after_help = EXIT_CODES,
    after_long_help = concat!(
        "Examples:\n",
        "  tidegate init --dir ./gateway\n",
        "  tidegate --config ./gateway/tidegate.toml serve\n",
        "  tidegate tenant add acme --domain acme.example\n",
        "  tidegate credential add crm@acme --tenant acme\n",
        "  tidegate log --recipient jane@customer.example\n\n",
        "Exit status:\n",
        "  0   done\n",
        "  1   failed: the gateway or the environment refused; the message says why\n",
        "  2   wrong arguments or configuration\n",
        "  69  the gateway is not running (for commands that ask it)"
    )
)]
pub struct Cli {
    /// The configuration file.
    #[arg(
        long,
        short,
        global = true,
        env = "TIDEGATE_CONFIG",
        default_value = "/etc/tidegate/tidegate.toml",
        value_name = "FILE"
    )]
    pub config: PathBuf,

    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    pub json: bool,

    #[command(flatten)]
    pub told: client::Told,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum Command {
    /// Make a configuration, certificate, token, key and default policies.
    Init(crate::init::InitArgs),
    /// Run the gateway in the foreground.
    Serve(ServeArgs),
    /// Check the configuration and everything it needs, changing nothing.
    Check(crate::check::CheckArgs),
    /// Tenants: whose mail is taken, and from which domains.
    #[command(subcommand)]
    Tenant(directory::TenantCommand),
    /// Credentials: the accounts that applications log in with.
    #[command(subcommand)]
    Credential(directory::CredentialCommand),
    /// Tenants' own servers, for passthrough.
    #[command(subcommand)]
    Server(directory::ServerCommand),
    /// Relays: the ways out for managed mail.
    #[command(subcommand)]
    Relay(directory::RelayCommand),
    /// Tokens of tenants, for their own policies.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Policies: begin one, test it, upload, rehearse, try out, put in force, roll back.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// The queue: what waits, why, and until when.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// The delivery log: what happened to a mail.
    Log(log::LogArgs),
    /// Exporters of the delivery log: how far they are.
    #[command(subcommand)]
    Export(export::ExportCommand),
    /// The gateway in numbers.
    Stats,
    /// Print the completions of a shell.
    #[command(
        after_help = "Example:\n  tidegate completions bash > /etc/bash_completion.d/tidegate"
    )]
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages (man 1) of all commands into a directory.
    #[command(after_help = "Example:\n  tidegate man /usr/local/share/man/man1")]
    Man { dir: PathBuf },
    /// Print the operator's manual with every configuration key, as Markdown.
    Docs,
    /// The confined worker that compiles policies; started by the gateway itself.
    #[command(hide = true)]
    PolicyWorker,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tidegate serve\n  tidegate --config ./gateway/tidegate.toml serve --ready-file /run/tidegate/ready.json\n\nSIGTERM and SIGINT stop it in good order, SIGHUP reads the certificates again."
)]
pub struct ServeArgs {
    /// Write the addresses in use to this file once mail is taken (JSON).
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// The form of the messages on standard error; the configuration's `log.format` otherwise.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches_from(own_config(std::env::args_os()));
    // Whether a person named the file here: a policy's test has no other use for it.
    let by_hand = matches.value_source("config") == Some(ValueSource::CommandLine);
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let outcome = run(cli, by_hand);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                eprintln!("tidegate: {text}");
            }
            ExitCode::from(failure.exit() as u8)
        }
    }
}

/// After `policy upload`, `--config` is the policy's configuration, wherever other options stand:
/// people who upload one have the gateway's configuration somewhere else, or none.
fn own_config(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let definition = Cli::command();
    let takes_value = |option: &str| {
        definition.get_arguments().any(|argument| {
            argument.get_action().takes_values()
                && (argument
                    .get_long()
                    .is_some_and(|long| option.strip_prefix("--") == Some(long))
                    || argument
                        .get_short()
                        .is_some_and(|short| option.strip_prefix('-') == Some(&*short.to_string())))
        })
    };
    // The commands still to come; `None` once they are others.
    let mut wanted = Some(&["policy", "upload"][..]);
    let mut is_value = true;
    let mut ended = false;
    words
        .map(|word| {
            let Some(text) = word.to_str() else {
                return word;
            };
            ended |= text == "--";
            match wanted {
                Some([]) if !ended => match text
                    .strip_prefix("--config")
                    .or_else(|| text.strip_prefix("-c"))
                {
                    // `-c` may have its value at once; `--config-file` is another option.
                    Some(value) if value.is_empty() || value.starts_with('=') => {
                        format!("--policy-config{value}").into()
                    }
                    Some(value) if !text.starts_with("--") => {
                        format!("--policy-config={value}").into()
                    }
                    _ => word,
                },
                Some([next, rest @ ..]) => {
                    // The program's own name counts as a value.
                    let skipped = std::mem::take(&mut is_value);
                    if !skipped && text.starts_with('-') {
                        is_value = takes_value(text);
                    } else if !skipped {
                        wanted = (text == *next).then_some(rest);
                    }
                    word
                }
                _ => word,
            }
        })
        .collect()
}

fn run(cli: Cli, by_hand: bool) -> Outcome {
    let json = cli.json;
    // A client of the running gateway, for the commands that ask it.
    let client = || -> Result<client::Client, Failure> {
        let config = || Ok(config::load(&cli.config)?.config);
        client::Client::new(config, &cli.told, json)
    };
    match cli.command {
        Command::Init(args) => crate::init::run(&cli.config, &args, json),
        Command::Serve(args) => crate::serve::run(config::load(&cli.config)?, &args),
        Command::Check(args) => crate::check::run(&cli.config, &args, json),
        Command::Tenant(command) => command.run(&client()?),
        Command::Credential(command) => command.run(&client()?),
        Command::Server(command) => command.run(&client()?),
        Command::Relay(command) => command.run(&client()?),
        Command::Token(command) => command.run(&client()?),
        Command::Export(command) => command.run(&client()?),
        Command::Policy(policy::PolicyCommand::Test(args)) => {
            policy_test::run(&args, by_hand.then_some(cli.config.as_path()), json)
        }
        Command::Policy(policy::PolicyCommand::New(args)) => policy_new::run(&args),
        Command::Policy(policy::PolicyCommand::Build(args)) => policy_build::run(&args),
        Command::Policy(command) => command.run(&client()?),
        Command::Queue(command) => command.run(&client()?),
        Command::Log(args) => args.run(&client()?),
        Command::Stats => stats::run(&client()?),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut text);
            out(&String::from_utf8_lossy(&text));
            Ok(())
        }
        Command::Man { dir } => man(&dir),
        Command::Docs => {
            out(&config::markdown());
            Ok(())
        }
        Command::PolicyWorker => crate::policies::worker(),
    }
}

/// One page for each command that people type.
fn man(dir: &Path) -> Outcome {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|e| {
            Failure::failed(
                format!("{}: {e}", dir.display()),
                "name a directory that you may write to",
            )
        })
}

/// Writes to standard output; a reader that has gone away (`| head`) is no failure.
pub fn out(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Prints a value as JSON, with a final line end.
pub fn out_json(value: &impl serde::Serialize) {
    // Values of this program serialise: they have no maps with keys other than strings.
    if let Ok(mut text) = serde_json::to_string_pretty(value) {
        text.push('\n');
        out(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_people_type_has_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let mut subcommands = command
                .get_subcommands()
                .filter(|c| !c.is_hide_set())
                .peekable();
            if subcommands.peek().is_none() {
                let simple = ["stats", "docs", "help"].contains(&command.get_name());
                let help = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    simple || help.contains("tidegate "),
                    "{path} has no example"
                );
                for line in help.lines().filter(|l| l.starts_with("  tidegate ")) {
                    let words = shell_words(line.split('|').next().unwrap());
                    let words = own_config(words.into_iter().map(Into::into));
                    if let Err(error) = Cli::try_parse_from(&words) {
                        panic!("the example {line:?} does not parse: {error}");
                    }
                }
            }
            for subcommand in subcommands {
                visit(subcommand, &path);
            }
        }
        visit(&Cli::command(), "");
    }

    #[test]
    fn every_command_that_people_type_has_a_page() {
        fn visit(command: &clap::Command, name: &str, dir: &Path) {
            let page = dir.join(format!("{name}.1"));
            let text = std::fs::read_to_string(&page).unwrap_or_default();
            assert!(text.contains(".SH SYNOPSIS"), "{}", page.display());
            let typed = |c: &&clap::Command| !c.is_hide_set() && c.get_name() != "help";
            for subcommand in command.get_subcommands().filter(typed) {
                visit(
                    subcommand,
                    &format!("{name}-{}", subcommand.get_name()),
                    dir,
                );
            }
        }
        let dir = tempfile::tempdir().unwrap();
        man(&dir.path().join("man1")).unwrap();
        visit(&Cli::command(), "tidegate", &dir.path().join("man1"));
        assert!(!dir.path().join("man1/tidegate-policy-worker.1").exists());
    }

    /// Splits at blanks outside of double quotes, up to a redirection.
    fn shell_words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for c in line.trim().chars() {
            match c {
                '"' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                _ => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|w| !w.is_empty());
        if let Some(end) = words.iter().position(|w| w == ">" || w == "<") {
            words.truncate(end);
        }
        words
    }

    #[test]
    fn log_takes_an_id_a_filter_or_a_subcommand() {
        for line in [
            "tidegate log 01jd3k5x0e0g0",
            "tidegate log show 01jd3k5x0e0g0",
            "tidegate log --recipient a@b.example --since 2d",
            "tidegate log search --record 4711",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn after_policy_upload_the_configuration_is_the_policys() {
        let parsed = |line: &str| {
            let words = own_config(line.split(' ').map(Into::into));
            let cli = Cli::try_parse_from(words).unwrap();
            let Command::Policy(policy::PolicyCommand::Upload { policy_config, .. }) = cli.command
            else {
                panic!("{line}");
            };
            (cli.config, policy_config)
        };
        let (gateway, own) =
            parsed("tidegate --config g.toml policy upload a.wasm --config p.json");
        assert_eq!(gateway, PathBuf::from("g.toml"));
        assert_eq!(own, Some(PathBuf::from("p.json")));
        for line in [
            "tidegate policy upload a.wasm --config=p.json --canary 5% --slot routing/acme",
            "tidegate policy upload a.wasm -c p.json",
            "tidegate policy upload a.wasm -cp.json",
            "tidegate policy upload a.wasm -c=p.json",
            "tidegate policy upload a.wasm --config-file p.json",
            "tidegate policy --json upload a.wasm --config p.json",
            "tidegate --json policy --admin 127.0.0.1:1 --token-file=t upload --config p.json a.wasm",
            "tidegate -cg.toml policy upload a.wasm --config p.json",
        ] {
            assert_eq!(parsed(line).1, Some(PathBuf::from("p.json")), "{line}");
        }
        let (gateway, own) = parsed("tidegate policy --config g.toml upload a.wasm");
        assert_eq!((gateway, own), (PathBuf::from("g.toml"), None));
        let words = own_config(
            "tidegate policy list --config g.toml"
                .split(' ')
                .map(Into::into),
        );
        assert_eq!(
            Cli::try_parse_from(words).unwrap().config,
            PathBuf::from("g.toml")
        );
    }

    #[test]
    fn failures_have_the_documented_exit_codes() {
        let not_running = Failure::NotRunning {
            address: "127.0.0.1:1".into(),
            reason: "refused".into(),
        };
        assert_eq!(not_running.exit() as u8, 69);
        assert_eq!(Failure::usage("a", "b").exit() as u8, 2);
        assert_eq!(Failure::failed("a", "").exit() as u8, 1);
        assert_eq!(Failure::failed("a", "b").to_string(), "a\n  remedy: b");
    }
}
