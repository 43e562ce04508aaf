//! `tidegate policy test`: a policy on its author's machine, without a gateway.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;
use tidegate_policy::offline::{Budget, Case, Grants, Report, TestError, Tester};
use tidegate_policy::{Upload, World};

use super::table::{Table, cell};
use super::{Exit, Failure, Outcome, out, out_json};

/// Larger components compile for many seconds, so their instructions are only counted when
/// that is asked for.
const COUNTED: usize = 2 * 1024 * 1024;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  tidegate policy test routing.wasm --config routing.json --messages messages\n  tidegate policy test routing.wasm --messages yesterday.jsonl --relay eu --server office\n  tidegate policy test routing.wasm --messages letter.eml --max-micros 200 --json",
    after_long_help = "Examples:\n  tidegate policy test routing.wasm --config routing.json --messages messages\n  tidegate policy test routing.wasm --messages yesterday.jsonl --relay eu --server office\n  tidegate policy test routing.wasm --messages letter.eml --max-micros 200 --json\n\nA case is a JSON object; all but the recipients has a default:\n  {\"sender\": \"crm@acme.example\", \"recipients\": [\"jane@customer.example\"],\n   \"headers\": {\"X-Campaign\": \"spring\"}, \"expect\": {\"managed\": {\"class\": \"bulk\"}}}\nThe whole form, also for shaping and export, is in docs/policies.md."
)]
pub struct TestArgs {
    /// The component, or a plain core module.
    file: PathBuf,
    /// The policy's own configuration, given to its `init` as it is; --config does the same here.
    #[arg(
        long = "policy-config",
        visible_alias = "config-file",
        value_name = "FILE"
    )]
    policy_config: Option<PathBuf>,
    /// Cases: a file (.json, .jsonl, .eml), or a directory of such files. May be repeated.
    #[arg(long, value_name = "PATH", required = true)]
    messages: Vec<PathBuf>,
    /// A relay that is granted to the tenant. May be repeated.
    #[arg(long, value_name = "NAME")]
    relay: Vec<String>,
    /// A server that is registered for the tenant. May be repeated.
    #[arg(long, value_name = "NAME")]
    server: Vec<String>,
    /// Fail where the 99th percentile of a case is above so many microseconds.
    #[arg(long, value_name = "N")]
    max_micros: Option<u32>,
    /// Fail where a case takes more instructions: the same on every machine.
    #[arg(long, value_name = "N")]
    max_fuel: Option<u64>,
    /// Write what the policy logs to standard error.
    #[arg(long)]
    log: bool,
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| {
        Failure::usage(
            format!("{} can't be read: {e}", path.display()),
            "check the path",
        )
    })
}

fn text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(path)?)
        .map_err(|_| Failure::usage(format!("{} is not UTF-8", path.display()), ""))
}

/// `config` is the global --config, where it was given by hand: a test needs no gateway, so it
/// can only mean the policy's.
pub fn run(args: &TestArgs, config: Option<&Path>, json: bool) -> Outcome {
    let component = read(&args.file)?;
    let config = match args.policy_config.as_deref().or(config) {
        Some(path) => text(path)?,
        None => String::new(),
    };
    if args.log {
        crate::logging::start("policy=debug", crate::config::LogFormat::Text);
    }
    let upload = Upload {
        component: &component,
        config: &config,
    };
    let count = component.len() <= COUNTED || args.max_fuel.is_some();
    let tester = Tester::new(&upload, count).map_err(|e| match e {
        TestError::Refused(refused) => Failure::failed(
            format!("{}: {refused}", args.file.display()),
            "a gateway would refuse the upload with the same words",
        ),
        other => Failure::failed(other.to_string(), ""),
    })?;
    let mut grants = Grants {
        relays: args.relay.clone(),
        servers: args.server.clone(),
    };
    let mut cases = Vec::new();
    for path in &args.messages {
        collect(path, tester.world(), &mut cases, &mut grants)?;
    }
    if cases.is_empty() {
        return Err(Failure::usage(
            "no cases",
            "--messages names a .json, .jsonl or .eml file, or a directory with such files",
        ));
    }
    let budget = Budget {
        micros: args.max_micros,
        fuel: args.max_fuel,
    };
    let report = tester.run(&cases, &grants, budget);
    if json {
        out_json(&report);
    } else {
        show(&report);
    }
    if report.failed == 0 {
        Ok(())
    } else {
        Err(Failure::Told(Exit::Failure))
    }
}

/// Adds the cases of a file or directory, and the grants that a directory's `grants.json` names.
fn collect(
    path: &Path,
    world: World,
    cases: &mut Vec<Case>,
    grants: &mut Grants,
) -> Result<(), Failure> {
    let wrong = |path: &Path, reason: String| {
        Failure::usage(
            format!("{}: {reason}", path.display()),
            "the form of the cases is in docs/policies.md",
        )
    };
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|e| wrong(path, e.to_string()))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_file() && kind(path).is_some())
            .collect();
        files.sort();
        for file in files {
            if file.file_name().is_some_and(|name| name == "grants.json") {
                let more = Grants::parse(&text(&file)?).map_err(|e| wrong(&file, e))?;
                grants.relays.extend(more.relays);
                grants.servers.extend(more.servers);
            } else {
                collect(&file, world, cases, grants)?;
            }
        }
        return Ok(());
    }
    let name = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    match kind(path) {
        Some("eml") if world == World::RoutingPolicy => {
            cases.push(Case::of_message(&name, &read(path)?).map_err(|e| wrong(path, e))?);
        }
        Some("jsonl") => {
            for (n, line) in text(path)?.lines().enumerate() {
                if line.trim().is_empty() {
                    continue;
                }
                let found = Case::parse(world, &format!("{name}:{}", n + 1), line)
                    .map_err(|e| wrong(path, format!("line {}: {e}", n + 1)))?;
                cases.extend(found);
            }
        }
        Some("json") => {
            cases.extend(Case::parse(world, &name, &text(path)?).map_err(|e| wrong(path, e))?);
        }
        _ => {
            let kinds = if world == World::RoutingPolicy {
                ".json, .jsonl or .eml"
            } else {
                ".json or .jsonl"
            };
            return Err(wrong(path, format!("not a {kinds} file")));
        }
    }
    Ok(())
}

fn kind(path: &Path) -> Option<&str> {
    path.extension()?
        .to_str()
        .filter(|kind| ["json", "jsonl", "eml"].contains(kind))
}

fn show(report: &Report) {
    out(&format!(
        "{} {} ({}), revision {:.12}, ready in {} ms, {} KiB of code\n\n",
        super::table::clean(&report.policy),
        super::table::clean(&report.version),
        report.world,
        report.digest,
        report.prepared_ms,
        report.code_bytes / 1024
    ));
    let mut table = Table::new(&["", "CASE", "FOR", "ANSWER", "P50 us", "P99 us", "FUEL"]);
    for case in &report.cases {
        let mark = if case.problems.is_empty() {
            "ok"
        } else {
            "FAIL"
        };
        let mut first = vec![
            mark.to_owned(),
            case.name.clone(),
            String::new(),
            String::new(),
            case.p50_micros.to_string(),
            case.p99_micros.to_string(),
            case.fuel.map(|fuel| fuel.to_string()).unwrap_or_default(),
        ];
        for (n, (what, answer)) in lines(&case.answer).into_iter().enumerate() {
            let mut row = if n == 0 {
                std::mem::take(&mut first)
            } else {
                vec![String::new(); 7]
            };
            (row[2], row[3]) = (what, answer);
            table.row(row);
        }
    }
    table.print("no cases");
    out("\n");
    for case in &report.cases {
        for problem in &case.problems {
            out(&format!(
                "{}: {}\n",
                super::table::clean(&case.name),
                super::table::clean(problem)
            ));
        }
    }
    out(&format!(
        "{} passed, {} failed; {} us (p50), {} us (p99){}\n",
        report.passed,
        report.failed,
        report.p50_micros,
        report.p99_micros,
        report
            .max_fuel
            .map(|fuel| format!(", at most {fuel} instructions"))
            .unwrap_or_default()
    ));
}

/// An answer in lines: for whom or what, and what; at least one.
fn lines(answer: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if let Some(why) = answer.get("failure") {
        found.push(("failure".to_owned(), cell(why)));
    }
    for (recipient, action) in answer["recipients"].as_object().into_iter().flatten() {
        found.push((recipient.clone(), brief(action)));
    }
    for (name, value) in answer["tags"].as_object().into_iter().flatten() {
        found.push((format!("tag {name}"), cell(value)));
    }
    for (n, lane) in answer["lanes"].as_array().into_iter().flatten().enumerate() {
        found.push((format!("lane {}", n + 1), brief(&lane["limits"])));
    }
    for (n, payload) in answer["payloads"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let body = cell(&payload["body"]);
        let mut start: String = body.chars().take(120).collect();
        if start.len() < body.len() {
            start.push('…');
        }
        found.push((
            format!("payload {}", n + 1),
            format!(
                "{} ({} bytes) {start}",
                cell(&payload["content_type"]),
                body.len()
            ),
        ));
    }
    if found.is_empty() {
        found.push((String::new(), "nothing".to_owned()));
    }
    found
}

/// `managed class=bulk relay=eu`.
fn brief(value: &Value) -> String {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, v)| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty()))
            .map(|(name, v)| match v {
                Value::Object(_) => format!("{name} {}", brief(v)),
                _ => format!("{name}={}", cell(v)),
            })
            .collect::<Vec<_>>()
            .join(" "),
        other => cell(other),
    }
}
