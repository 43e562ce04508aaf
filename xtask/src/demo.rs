//! `cargo xtask demo`: the real gateway on loopback, between a CRM that submits by SMTP and a small
//! internet that accepts, greylists, refuses, and does not answer.
//!
//! Nothing is staged: the binary is the one that was just built, submissions go through the
//! mail-send crate, destinations are servers with sockets of their own, and what is claimed at the end was
//! looked for at those servers and in the gateway's log. What did not happen makes it fail.

mod scene;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tidegate_tests::client::Answer;
use tidegate_tests::gateway;

use crate::{host, plugins};
use scene::{Scene, Sent};

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --keep")]
pub struct Arguments {
    /// Leave everything running afterwards, to try by hand, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

/// Longest wait for any one thing; together they are far shorter.
const PATIENCE: Duration = Duration::from_secs(40);

/// A tenant's policy on the first day: one partner is reached through the tenant's own server.
const FIRST_POLICY: &str = r#"{
  "rules": [
    { "recipient_domain": ["partner.example"],
      "action": { "passthrough": { "server": "office" } } }
  ]
}
"#;

/// And on the second: the partner by managed relay like all others, campaigns in a lane of
/// their own, and one domain not at all.
const SECOND_POLICY: &str = r#"{
  "rules": [
    { "recipient_domain": ["blocked.example"],
      "action": { "refuse": { "code": 550, "enhanced": "5.7.1", "text": "acme does not write to this domain" } } },
    { "header": { "name": "X-Campaign" },
      "action": { "managed": { "class": "bulk", "lane": "$header" } } }
  ]
}
"#;

/// Says what happens, and keeps what did not.
pub struct Story {
    started: Instant,
    missing: Vec<String>,
}

impl Story {
    pub fn say(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.started.elapsed().as_secs_f64());
    }

    /// Reports something that has to be true.
    fn expect(&mut self, what: &str, holds: bool) {
        if holds {
            self.say(&format!("ok       {what}"));
        } else {
            self.say(&format!("MISSING  {what}"));
            self.missing.push(what.to_owned());
        }
    }

    fn arrives<T>(&mut self, what: &str, waited: anyhow::Result<T>) -> Option<T> {
        let there = waited.map_err(|error| self.say(&format!("{error:#}"))).ok();
        self.expect(what, there.is_some());
        there
    }
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut story = Story {
        started: Instant::now(),
        missing: Vec::new(),
    };
    story.say("building the policies (WebAssembly)");
    plugins::build(&host::root())?;
    story.say("building the gateway");
    gateway::use_binary(&host::build_gateway(false)?);

    let place = host::target().join("demo");
    make_room(&place)?;
    let mut scene = Scene::start(&place, &story)?;
    let played = play(&mut scene, &mut story);
    if let Err(error) = &played {
        story.say(&format!("{error:#}"));
        eprintln!("{}", scene.gateway.said());
    }
    if arguments.keep && played.is_ok() {
        scene.explain();
        wait_for_interrupt()?;
    }
    story.say("stopping the gateway");
    let status = scene.gateway.stop()?;
    story.expect("the gateway stopped in good order", status.success());
    std::fs::remove_file(place.join("running"))?;
    played?;
    if story.missing.is_empty() {
        story.say("everything happened as it should");
        Ok(())
    } else {
        bail!("this did not happen: {}", story.missing.join("; "))
    }
}

/// Clears what the last demonstration left, unless it still runs.
fn make_room(place: &Path) -> anyhow::Result<()> {
    let mark = place.join("running");
    if let Ok(pid) = std::fs::read_to_string(&mark)
        && Path::new("/proc").join(pid.trim()).exists()
    {
        bail!(
            "a demonstration is running as process {}: stop it with Ctrl-C first",
            pid.trim()
        );
    }
    if place.exists() {
        std::fs::remove_dir_all(place).with_context(|| format!("clear {}", place.display()))?;
    }
    std::fs::create_dir_all(place)?;
    Ok(std::fs::write(mark, std::process::id().to_string())?)
}

fn play(scene: &mut Scene, story: &mut Story) -> anyhow::Result<()> {
    let first = scene.policy(FIRST_POLICY)?;
    story.say(&format!("acme's routing policy is revision {first:.12}"));
    let before = submit_first(scene, story)?;

    story.say("half-way: acme uploads another configuration of its policy while mail waits");
    let second = scene.policy(SECOND_POLICY)?;
    story.say(&format!("acme's routing policy is revision {second:.12}"));
    story.expect("another revision", first != second);
    let after = submit_second(scene, story)?;

    destinations(scene, story);
    notices(scene, story);
    let ids = log(scene, story, &before, &first)?;
    let later = log(scene, story, &after, &second)?;
    export(scene, story, &[ids, later].concat());
    scene.show_places();
    Ok(())
}

fn submit_first(scene: &Scene, story: &mut Story) -> anyhow::Result<Vec<Sent>> {
    let mut crm = scene.crm(false)?;
    let mut sent = Vec::new();
    for (to, subject) in [
        (&["jane@customer.example"][..], "Your invoice 4711"),
        (&["bob@slow.example"], "Your appointment"),
        (&["nobody@gone.example"], "Welcome back"),
        (&["eve@dark.example"], "Are you there?"),
        (&["carl@partner.example"], "Through our own server"),
        (
            &["dora@customer.example", "carl@partner.example"],
            "Two routes in one mail",
        ),
    ] {
        sent.push(scene.submit(&mut crm, story, to, subject, &[])?);
    }
    let refused = scene.submit(
        &mut crm,
        story,
        &["retired@partner.example"],
        "Refused by our own server",
        &[],
    )?;
    story.expect(
        "the CRM was told the refusal of acme's own server in its own words",
        matches!(&refused.answer, Answer::Refused { code: 550, text } if text.contains("retired in spring")),
    );
    story.expect(
        "the six others were accepted",
        sent.iter()
            .all(|mail| matches!(mail.answer, Answer::Accepted { .. })),
    );
    story.expect(
        "acme's own server has its two mails already",
        scene.office.counts().messages == 2,
    );
    Ok(sent)
}

fn submit_second(scene: &Scene, story: &mut Story) -> anyhow::Result<Vec<Sent>> {
    let mut crm = scene.crm(false)?;
    let mut sent = vec![scene.submit(
        &mut crm,
        story,
        &["carl@partner.example"],
        "Now by managed relay",
        &[],
    )?];
    let refused = scene.submit(&mut crm, story, &["x@blocked.example"], "Not to them", &[])?;
    story.expect(
        "the new policy refuses blocked.example within the submission",
        matches!(&refused.answer, Answer::Refused { code: 550, text } if text.contains("acme does not write")),
    );
    let mut campaign = scene.crm(true)?;
    for number in 1..=5 {
        let to = format!("reader{number}@news.example");
        sent.push(scene.submit(
            &mut campaign,
            story,
            &[to.as_str()],
            "Spring news",
            &[("X-Campaign", "spring")],
        )?);
    }
    story.expect(
        "partner and campaign were accepted, each with a queue id",
        sent.iter().all(|mail| mail.answer.id().is_ok()),
    );
    Ok(sent)
}

fn destinations(scene: &Scene, story: &mut Story) {
    let customer = story.arrives(
        "customer.example has both its mails",
        scene.customer.wait_for(2, PATIENCE),
    );
    story.expect(
        "they came over TLS",
        customer.is_some_and(|mail| mail.iter().all(|mail| mail.tls)),
    );
    story.arrives(
        "slow.example took the mail at the second attempt",
        scene.slow.wait_for(1, PATIENCE),
    );
    story.arrives(
        "partner.example has the third mail from the gateway itself",
        scene.partner.wait_for(1, PATIENCE),
    );
    story.arrives(
        "news.example has the five mails of the campaign",
        scene.news.wait_for(5, PATIENCE),
    );
    story.expect(
        "gone.example took nothing",
        scene.gone.counts().messages == 0,
    );
    let errors: Vec<String> = scene
        .destinations()
        .iter()
        .flat_map(|(_, server)| server.protocol_errors())
        .collect();
    story.expect("no destination met an error of protocol", errors.is_empty());
}

fn notices(scene: &Scene, story: &mut Story) {
    for (what, action, recipient) in [
        (
            "a failure notice on nobody@gone.example",
            "failed",
            "nobody@gone.example",
        ),
        (
            "a delay notice on eve@dark.example",
            "delayed",
            "eve@dark.example",
        ),
        (
            "a failure notice on eve@dark.example, at the end of its lifetime",
            "failed",
            "eve@dark.example",
        ),
    ] {
        let waited = scene.inbox.wait_until(what, PATIENCE, |mail| {
            let text = mail.text();
            mail.from.is_empty()
                && text.contains(&format!("Action: {action}"))
                && text.contains(recipient)
        });
        story.arrives(&format!("acme's inbox has {what}"), waited);
    }
    let empty = tidegate_tests::eventually("an empty queue", PATIENCE, || {
        let list = scene.gateway.json(&["queue", "list"]).ok()?;
        list.as_array().is_some_and(Vec::is_empty).then_some(())
    });
    story.arrives("nothing is left in the queue", empty);
}

/// Prints the timelines; the queue ids.
fn log(
    scene: &Scene,
    story: &mut Story,
    sent: &[Sent],
    revision: &str,
) -> anyhow::Result<Vec<String>> {
    println!("\ntidegate log, of the mails decided by revision {revision:.12}:\n");
    let mut ids = Vec::new();
    let mut right = true;
    for mail in sent {
        let (id, entry) = scene.enquire(mail)?;
        println!("{}", scene.gateway.run(&["log", &id])?);
        ids.push(id);
        let digests: Vec<&str> = entry["events"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|event| event["policy"].as_str())
            .collect();
        right &= !digests.is_empty() && digests.iter().all(|digest| *digest == revision);
    }
    story.expect(
        &format!("each was decided by {revision:.12} and by no other revision"),
        right,
    );
    Ok(ids)
}

fn export(scene: &Scene, story: &mut Story, ids: &[String]) {
    let exported = tidegate_tests::eventually("the log in the export", PATIENCE, || {
        let text = scene.exported();
        ids.iter()
            .all(|id| text.contains(id.as_str()))
            .then_some(text)
    });
    if let Some(text) = story.arrives("the exported log has every mail", exported) {
        story.expect(
            "each of its lines is JSON",
            text.lines()
                .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
        );
    }
}

/// Until Ctrl-C, or an orderly end from outside.
fn wait_for_interrupt() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut end = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = end.recv() => {}
        }
        Ok(())
    })
}
