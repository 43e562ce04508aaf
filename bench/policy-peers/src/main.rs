//! The decision of the default routing policy with 20 rules on header fields, made twice without
//! Wasm: by Lua 5.4 in this process (one state for all decisions, and a fresh one for each), and by
//! a policy service on a Unix socket that speaks Postfix's policy delegation protocol, one question
//! per recipient.
//!
//! Prints CPU time per decision; for the service that of both ends.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mlua::{Function, Lua, Table};

const ROUNDS: usize = 7;
const CALLS: usize = 4_000;
const HEADERS: usize = 20;

const SCRIPT: &str = r#"
local rules = {}
for n = 0, 19 do
    rules[#rules + 1] = { header = "x-field-" .. n, value = "never", class = "bulk" }
end
function decide(message)
    for _, rule in ipairs(rules) do
        for _, header in ipairs(message.headers) do
            if header.name == rule.header and header.value == rule.value then
                return { class = rule.class }
            end
        end
    end
    return { class = "transactional" }
end
"#;

struct Message {
    sender: String,
    recipients: Vec<String>,
    headers: Vec<(String, String)>,
}

fn message(recipients: usize) -> Message {
    Message {
        sender: "crm@acme.example".to_owned(),
        recipients: (0..recipients)
            .map(|n| format!("person{n}@d{n}.test"))
            .collect(),
        headers: (0..HEADERS)
            .map(|n| {
                (
                    format!("x-field-{n}"),
                    "a value of ordinary length".to_owned(),
                )
            })
            .collect(),
    }
}

/// Processor time of all threads of this process.
fn cpu() -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
    {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanos += stat
            .split(' ')
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Duration::from_nanos(nanos)
}

/// Median and least CPU time, and median wall time, of a call in microseconds.
fn measure(calls: usize, mut call: impl FnMut()) -> (f64, f64, f64) {
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let (cpu_begun, begun) = (cpu(), Instant::now());
        for _ in 0..calls {
            call();
        }
        let per = |d: Duration| d.as_secs_f64() * 1e6 / calls as f64;
        samples.push((per(cpu() - cpu_begun), per(begun.elapsed())));
    }
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (median, least) = (samples[ROUNDS / 2].0, samples[0].0);
    samples.sort_by(|a, b| a.1.total_cmp(&b.1));
    (median, least, samples[ROUNDS / 2].1)
}

fn lua() -> mlua::Result<(Lua, Function)> {
    let lua = Lua::new();
    lua.load(SCRIPT).exec()?;
    let decide = lua.globals().get("decide")?;
    Ok((lua, decide))
}

fn ask(lua: &Lua, decide: &Function, message: &Message) -> mlua::Result<()> {
    let table = lua.create_table()?;
    table.set("sender", message.sender.as_str())?;
    table.set(
        "recipients",
        message
            .recipients
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    )?;
    let headers = lua.create_table_with_capacity(message.headers.len(), 0)?;
    for (name, value) in &message.headers {
        let header = lua.create_table_with_capacity(0, 2)?;
        header.set("name", name.as_str())?;
        header.set("value", value.as_str())?;
        headers.push(header)?;
    }
    table.set("headers", headers)?;
    let answer: Table = decide.call(table)?;
    let class: String = answer.get("class")?;
    assert_eq!(class, "transactional");
    Ok(())
}

/// The service: reads questions to the empty line, decides, answers.
fn serve(stream: UnixStream) -> std::io::Result<()> {
    let mut answers = stream.try_clone()?;
    let rules: Vec<(String, &str)> = (0..HEADERS)
        .map(|n| (format!("x-field-{n}"), "never"))
        .collect();
    let mut bulk = false;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if line.is_empty() {
            let class = if bulk { "bulk" } else { "transactional" };
            answers.write_all(format!("action={class}\n\n").as_bytes())?;
            bulk = false;
        } else if let Some((name, value)) = line.split_once('=') {
            bulk |= rules.iter().any(|(n, v)| n == name && *v == value);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let show = |name: &str, recipients: usize, (median, least, wall): (f64, f64, f64)| {
        println!("{name:<34} {recipients:>10} {median:>12.1} ({least:.1}) {wall:>14.1}");
    };
    for recipients in [1, 10, 100] {
        let message = message(recipients);
        let (state, decide) = lua()?;
        show(
            "Lua 5.4, one state for all",
            recipients,
            measure(CALLS, || {
                ask(&state, &decide, &message).expect("it decides")
            }),
        );
        show(
            "Lua 5.4, fresh state each",
            recipients,
            measure(CALLS / 8, || {
                let (state, decide) = lua().expect("it loads");
                ask(&state, &decide, &message).expect("it decides");
            }),
        );
        let (mut ours, theirs) = UnixStream::pair()?;
        let service = std::thread::spawn(move || serve(theirs));
        let mut answers = BufReader::new(ours.try_clone()?);
        let figures = measure(CALLS / (1 + recipients / 4), || {
            for recipient in &message.recipients {
                let mut question = format!(
                    "request=smtpd_access_policy\nsender={}\nrecipient={recipient}\n",
                    message.sender
                );
                for (name, value) in &message.headers {
                    question.push_str(name);
                    question.push('=');
                    question.push_str(value);
                    question.push('\n');
                }
                question.push('\n');
                ours.write_all(question.as_bytes()).expect("it listens");
                let (mut answer, mut end) = (String::new(), String::new());
                answers.read_line(&mut answer).expect("it answers");
                answers.read_line(&mut end).expect("it ends its answer");
                assert_eq!(answer, "action=transactional\n");
            }
        });
        show("policy service on a Unix socket", recipients, figures);
        ours.shutdown(std::net::Shutdown::Both)?;
        service.join().expect("it ends")?;
    }
    Ok(())
}
