//! The life of a policy revision, while mail flows: a tenant takes its own live in steps, and the
//! gateway takes back what fails or does harm.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tidegate_tests::eventually;
use tidegate_tests::gateway::policy;
use tidegate_tests::postgres::Postgres;
use tidegate_tests::sink::Behaviour;

use super::{SENDER, SOON, World};

const SLOT: &str = "routing/acme";

/// A configuration that differs from any other by its lane.
fn by_lane(lane: &str) -> String {
    format!(r#"{{ "default": {{ "managed": {{ "lane": "{lane}" }} }} }}"#)
}

/// A policy that answers what its tenant may not: each call is a failure.
const BEYOND_ITS_RIGHTS: &str = r#"{ "default": { "managed": { "relay": "nowhere" } } }"#;

impl World {
    /// Submits one mail after the other until it is told to stop; every one must be taken.
    /// Returns how many there were.
    fn submit_until(&self, stop: &AtomicBool) -> usize {
        let mut raw = self.raw();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let to = format!("b{sent}@customer.test");
            let reply = raw
                .submit(SENDER, &[&to], "Subject: x\r\n\r\nx\r\n")
                .unwrap();
            assert_eq!(reply.code, 250, "{}", reply.text());
            sent += 1;
        }
        sent
    }

    fn policy_file(&self, config: &str) -> (String, String) {
        let file = self.gateway.directory().join("policy-config");
        std::fs::write(&file, config).unwrap();
        let component = policy("routing-default").unwrap();
        (component.display().to_string(), file.display().to_string())
    }

    /// Uploads the default policy with this configuration as the operator.
    fn upload(&self, config: &str, how: &[&str]) -> String {
        let (component, file) = self.policy_file(config);
        let words = ["policy", "upload", &component, "--config", &file];
        let slot = ["--slot", SLOT];
        let answer = self
            .gateway
            .json(&[&words[..], &slot, how].concat())
            .unwrap();
        answer["digest"].as_str().unwrap().to_owned()
    }

    fn slot(&self) -> Value {
        let list = self
            .gateway
            .json(&["policy", "status", "--slot", SLOT])
            .unwrap();
        list[0].clone()
    }

    /// Waits for a step that the gateway took by itself.
    fn wait_taken_back(&self, step: &str) -> Value {
        eventually(&format!("{step} by the gateway"), SOON, || {
            let history = self
                .gateway
                .json(&["policy", "history", "--slot", SLOT])
                .ok()?;
            (history[0]["by"] == "gateway" && history[0]["step"] == step)
                .then(|| history[0].clone())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.gateway.said()))
    }
}

/// A tenant at its own machine: it has a token and nothing else.
struct Tenant<'a> {
    world: &'a World,
    token: PathBuf,
}

impl Tenant<'_> {
    fn run(&self, words: &[&str]) -> Value {
        self.world.gateway.with_token(&self.token, words).unwrap()
    }

    fn status(&self) -> Value {
        self.run(&["policy", "status"])[0].clone()
    }
}

#[test]
fn a_tenant_takes_its_revision_live_in_steps_while_mail_flows() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let token = world.gateway.token("acme").unwrap();
    let tenant = Tenant {
        world: &world,
        token,
    };
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let submitting = scope.spawn(|| world.submit_until(&stop));
        let steps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| go_live(&tenant)));
        stop.store(true, Ordering::Relaxed);
        let sent = submitting.join().unwrap();
        if let Err(panic) = steps {
            std::panic::resume_unwind(panic);
        }
        sent
    });
    customer.wait_for(sent, SOON).unwrap();
    world.wait_empty();
    assert_eq!(
        customer.counts().messages as usize,
        sent,
        "nothing lost, nothing twice"
    );

    // It does not get further than its own slot.
    for (words, expected) in [
        (&["tenant", "list"][..], "may not do that"),
        (
            &["policy", "rollback", "--slot", "routing"],
            "may not do that",
        ),
        (&["queue", "list", "--tenant", "beta"], "may not do that"),
    ] {
        let error = world.gateway.with_token(&tenant.token, words).unwrap_err();
        assert!(
            format!("{error:#}").contains(expected),
            "{words:?}: {error:#}"
        );
    }
    let listed = world.gateway.json(&["token", "list"]).unwrap();
    let id = listed[0]["id"].as_str().unwrap().to_owned();
    world.gateway.run(&["token", "revoke", &id]).unwrap();
    let error = world
        .gateway
        .with_token(&tenant.token, &["policy", "status"])
        .unwrap_err();
    assert!(format!("{error:#}").contains("revoked"), "{error:#}");
}

fn go_live(tenant: &Tenant<'_>) {
    let (component, file) = tenant.world.policy_file(&by_lane("own"));
    let words = ["policy", "upload", &component, "--config", &file];
    let upload = tenant.run(&[&words[..], &["--slot", SLOT, "--inactive"]].concat());
    let digest = upload["digest"].as_str().unwrap();
    assert_eq!(upload["active_in"], serde_json::json!([]));

    let rehearsal = eventually("a rehearsal over recorded mail", SOON, || {
        let words = [
            "policy", "rehearse", digest, "--slot", SLOT, "--since", "1h",
        ];
        let answer = tenant.run(&words);
        (answer["report"]["messages"].as_u64()? >= 10).then_some(answer)
    })
    .unwrap();
    let report = &rehearsal["report"];
    assert_eq!(report["changed_messages"], report["messages"], "{report}");
    assert!(
        report["changes"][0]["to"]
            .as_str()
            .unwrap()
            .contains("lane own")
    );
    assert!(report["cost"]["p99"].as_u64().unwrap() > 0);

    tenant.run(&["policy", "shadow", digest, "--slot", SLOT]);
    eventually("the shadow is asked", SOON, || {
        let compared = tenant.status()["running"]["trial"]["compared"].take();
        (compared["changed_messages"].as_u64()? >= 10).then_some(())
    })
    .unwrap();

    tenant.run(&["policy", "canary", digest, "--slot", SLOT, "--share", "30%"]);
    eventually("both sides decide", SOON, || {
        let trial = tenant.status()["running"]["trial"].take();
        let calls = |side: &str| trial[side]["calls"].as_u64();
        (calls("own")? >= 5 && calls("base")? >= 5).then_some(())
    })
    .unwrap();
    tenant.run(&["policy", "canary", "--slot", SLOT, "--share", "80%"]);
    tenant.run(&["policy", "promote", "--slot", SLOT]);
    let status = tenant.status();
    assert_eq!(status["in_force"]["digest"], *digest);
    assert!(status["trial"].is_null());
    eventually("it decides all", SOON, || {
        (tenant.status()["running"]["rates"]["calls"].as_u64()? >= 5).then_some(())
    })
    .unwrap();
    tenant.run(&["policy", "rollback", "--slot", SLOT]);
    assert!(
        tenant.status()["in_force"].is_null(),
        "the operator's decides"
    );

    let history = tenant.run(&["policy", "history", "--slot", SLOT]);
    let history = history.as_array().unwrap();
    assert!(history.iter().all(|step| step["by"] == "tenant:acme"));
    let steps: Vec<&str> = history
        .iter()
        .rev()
        .map(|step| step["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps, ["shadow", "canary", "canary", "activate", "vacate"]);
    // What decided a mail is in its log, which the tenant reads for itself.
    let log = tenant.run(&["log", "--since", "1h", "--limit", "1000"]);
    let decided = log.to_string();
    assert!(decided.contains(digest));
}

/// The commands of a part of the guide, in order.
fn commands(guide: &str) -> String {
    let from = guide.find("## From nothing to live mail").unwrap();
    let part = &guide[from..];
    let part = &part[..part.find("\n## What happens when").unwrap()];
    let blocks = part.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap())
        .collect()
}

#[test]
fn the_guide_takes_a_newcomer_to_a_live_canary_with_its_commands_as_they_stand() {
    let mut world = World::start();
    let _customer = world.destination("customer.test", Behaviour::accept());
    let guide = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policies.md");
    let script = commands(&std::fs::read_to_string(guide).unwrap());
    assert!(
        script.contains("promote") && script.contains("token add"),
        "{script}"
    );
    let binary = tidegate_tests::gateway::binary().unwrap();
    let admin = std::fs::read_to_string(world.gateway.directory().join("data/admin.address"));
    // What is the reader's own: the address and the digest. The steps find recorded mail.
    let script = script
        .replace("127.0.0.1:8025", admin.unwrap().trim())
        .replace("5872a5f08149", "$digest")
        .replace(
            "tidegate policy rehearse",
            "digest=$(tidegate policy list | awk '/campaigns/ { print $1 }')\ntidegate policy rehearse",
        );
    let place = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| world.submit_until(&stop));
        let path = std::env::var("PATH").unwrap_or_default();
        let done = tidegate_tests::gateway::command("sh")
            .args(["-euxc", &script])
            .env(
                "PATH",
                format!("{}:{path}", binary.parent().unwrap().display()),
            )
            .env("TIDEGATE_CONFIG", world.gateway.config())
            .current_dir(place.path())
            .output();
        stop.store(true, Ordering::Relaxed);
        done.unwrap()
    });
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(done.status.success(), "{said}");
    let history = world
        .gateway
        .json(&["policy", "history", "--slot", SLOT])
        .unwrap();
    let history = history.as_array().unwrap();
    let steps: Vec<&str> = history
        .iter()
        .rev()
        .map(|a| a["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps, ["shadow", "canary", "canary", "activate", "vacate"]);
    assert!(
        history.iter().all(|a| a["by"] == "tenant:acme"),
        "{history:?}"
    );
    assert!(said.contains("2 passed, 0 failed"), "{said}");
    assert!(said.contains("The shadow of routing/acme"), "{said}");

    // Each change is told and counted.
    let log = world.gateway.said();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("tidegate::policy_change"))
        .collect();
    let digest = history[0]["digest"].as_str().unwrap();
    let changes = [
        "change=\"shadow\"",
        "change=\"canary\"",
        "share=50.0",
        "change=\"promoted\"",
        "change=\"rolled back\"",
    ];
    assert_eq!(told.len(), changes.len(), "{log}");
    for (line, change) in told.iter().zip(changes) {
        assert!(line.contains(change), "{change}: {line}");
        assert!(
            line.contains(digest) && line.contains("by=\"tenant:acme\""),
            "{line}"
        );
    }
    let metrics = world.gateway.metrics().unwrap();
    for line in [
        "tidegate_policy_changes_total{change=\"canary\",by=\"tenant\"} 2",
        "tidegate_policy_changes_total{change=\"rolled back\",by=\"tenant\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn a_canary_and_an_activation_that_fail_are_taken_back_and_the_crm_sees_only_250s() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let good = world.upload(&by_lane("good"), &[]);
    let bad = world.upload(BEYOND_ITS_RIGHTS, &["--canary", "50%"]);
    let mut raw = world.raw();
    let mut ids = Vec::new();
    let mut submit = |number: usize| {
        for _ in 0..number {
            let reply = raw
                .submit(SENDER, &["b@customer.test"], "Subject: x\r\n\r\nx\r\n")
                .unwrap();
            assert_eq!(reply.code, 250, "{}", reply.text());
            ids.push(reply.queue_id().unwrap());
        }
    };
    submit(60);
    let step = world.wait_taken_back("withdraw");
    assert_eq!(step["digest"], *bad);
    assert!(
        step["cause"].as_str().unwrap().contains("not granted"),
        "{step}"
    );
    assert!(world.slot()["trial"].is_null());

    world
        .gateway
        .run(&["policy", "activate", &bad, "--slot", SLOT])
        .unwrap();
    submit(20);
    let step = world.wait_taken_back("activate");
    assert_eq!(step["digest"], *good);
    let log = world.gateway.said();
    let mut by_itself = log
        .lines()
        .filter(|line| line.contains("change=\"rolled back\"") && line.contains("by=\"gateway\""));
    for before in [&good, &bad] {
        // A canary is withdrawn from beside the good one; the bad one gives way.
        let line = by_itself.next().unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains(&format!("before=\"{before}\"")), "{line}");
        assert!(line.contains("cause=\"it failed again and again"), "{line}");
    }
    assert!(
        step["note"].as_str().unwrap().contains(&bad[..12]),
        "{step}"
    );
    let slot = world.slot();
    assert_eq!(slot["in_force"]["digest"], *good);
    assert!(slot["previous"].is_null(), "{slot}");
    // It stays so over a restart.
    world.gateway.stop().unwrap();
    world.gateway.start().unwrap();
    assert_eq!(world.slot()["in_force"]["digest"], *good);
    submit_one_more(&world);
    customer.wait_for(ids.len() + 1, SOON).unwrap();
    let mut fallbacks = 0;
    for id in &ids {
        let entry = world.gateway.log(id).unwrap();
        let routed = &entry["events"][1];
        assert_eq!(routed["policy"], *good, "{entry}");
        // A decision that took too long on a busy machine falls back too, for another reason.
        fallbacks += usize::from(entry.to_string().contains("not granted"));
    }
    assert_eq!(fallbacks, 10, "5 of the canary, 5 of the activation");
}

#[test]
fn each_change_is_a_line_for_who_follows_the_history_also_over_a_restart() {
    let mut world = World::start();
    let _customer = world.destination("customer.test", Behaviour::accept());
    let token = world.gateway.token("acme").unwrap();
    world.upload(&by_lane("good"), &[]);
    let lines = Follower::start(&world, &token);
    lines.wait_for(1);
    let bad = world.upload(BEYOND_ITS_RIGHTS, &[]);
    for _ in 0..10 {
        submit_one_more(&world);
    }
    world.wait_taken_back("activate");
    // What is another's is not told.
    let words = ["policy", "activate", &bad, "--slot", "routing"];
    world.gateway.run(&words).unwrap();
    lines.wait_for(3);
    world.gateway.stop().unwrap();
    world.gateway.start().unwrap();
    let words = ["policy", "canary", &bad, "--slot", SLOT, "--share", "5%"];
    world.gateway.with_token(&token, &words).unwrap();
    let words = ["policy", "rollback", "--slot", SLOT];
    world.gateway.with_token(&token, &words).unwrap();
    let told = lines.wait_for(5);
    let words: Vec<String> = told
        .iter()
        .map(|line| format!("{} by {}", line["change"], line["by"]).replace('"', ""))
        .collect();
    assert_eq!(
        words,
        [
            "activated by operator",
            "activated by operator",
            "rolled back by gateway",
            "canary by tenant:acme",
            "rolled back by tenant:acme"
        ]
    );
    assert_eq!(told[2]["in_force_before"], *bad);
    assert!(told[2]["cause"].as_str().unwrap().contains("not granted"));
    // The same, looked up afterwards.
    let mut history = world
        .gateway
        .with_token(&token, &["policy", "history"])
        .unwrap();
    history.as_array_mut().unwrap().reverse();
    assert_eq!(history, Value::Array(told));
}

/// `tidegate policy history --follow --json` of a tenant, in a process of its own.
struct Follower {
    child: std::process::Child,
    lines: std::sync::Arc<std::sync::Mutex<Vec<Value>>>,
}

impl Follower {
    fn start(world: &World, token: &std::path::Path) -> Follower {
        use std::io::BufRead;
        let admin = std::fs::read_to_string(world.gateway.directory().join("data/admin.address"));
        let mut child = std::process::Command::new(tidegate_tests::gateway::binary().unwrap())
            .args(["policy", "history", "--follow", "--json"])
            .env("TIDEGATE_TOKEN_FILE", token)
            .env("TIDEGATE_ADMIN", admin.unwrap().trim())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::sync::Arc::<std::sync::Mutex<Vec<Value>>>::default();
        let (out, kept) = (child.stdout.take().unwrap(), lines.clone());
        std::thread::spawn(move || {
            for line in std::io::BufReader::new(out).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap();
                kept.lock().unwrap().push(line);
            }
        });
        Follower { child, lines }
    }

    fn wait_for(&self, number: usize) -> Vec<Value> {
        eventually(&format!("{number} lines"), SOON, || {
            let lines = self.lines.lock().unwrap();
            (lines.len() >= number).then(|| lines.clone())
        })
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", self.lines))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn submit_one_more(world: &World) {
    world.send(&["b@customer.test"], "after the restart");
}

#[test]
fn a_canary_whose_mail_bounces_is_taken_back() {
    let mut world = World::start();
    let _customer = world.destination("customer.test", Behaviour::accept());
    let refuses = Behaviour::accept().reply(
        tidegate_tests::sink::Stage::Rcpt,
        "550 5.7.1 not from this address",
    );
    let refusing = world.destination("relay.test", refuses);
    let relay = refusing.address();
    let (host, port) = (relay.ip().to_string(), relay.port().to_string());
    let words = ["relay", "add", "other", "--host", &host, "--port", &port];
    world
        .gateway
        .run(&[&words[..], &["--tls", "none"]].concat())
        .unwrap();
    let words = ["tenant", "set", "acme", "--relay", "mx", "--relay", "other"];
    world.gateway.run(&words).unwrap();
    world.upload(&by_lane("good"), &[]);
    let by_relay = r#"{ "default": { "managed": { "relay": "other" } } }"#;
    let bad = world.upload(by_relay, &["--canary", "50%"]);
    let to: Vec<String> = (0..10).map(|n| format!("b{n}@customer.test")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let mut raw = world.raw();
    for _ in 0..40 {
        let reply = raw.submit(SENDER, &to, "Subject: x\r\n\r\nx\r\n").unwrap();
        assert_eq!(reply.code, 250, "{}", reply.text());
    }
    let step = world.wait_taken_back("withdraw");
    assert_eq!(step["digest"], *bad);
    assert!(
        step["cause"].as_str().unwrap().contains("bounced"),
        "{step}"
    );
}

#[test]
fn a_change_by_another_gateway_on_the_same_database_is_followed() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    let mut world = World::with(|options| options.set("database", url.as_str()));
    let customer = world.destination("customer.test", Behaviour::accept());
    let first = world.upload(&by_lane("first"), &[]);
    let second = world.upload(&by_lane("second"), &["--inactive"]);
    let change = format!(
        r#"update registry_version set version = version + 1;
           insert into activation (id, slot, body) select version, '{SLOT}',
            '{{"slot":"{SLOT}","digest":"{second}","step":"activate","at":1,"by":"operator"}}' from registry_version;
           insert into tenant (id, body) values ('beta', '{{"id":"beta","domains":["beta.test"]}}')"#
    );
    postgres.query(&change).unwrap();
    let running = || world.slot()["running"]["digest"].clone();
    eventually("the change is followed", SOON, || {
        (running() == *second).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}, still {first}\n{}", world.gateway.said()));
    let id = world.send(&["b@customer.test"], "by the second");
    customer.wait_for(1, SOON).unwrap();
    let entry = world.gateway.log(&id).unwrap();
    assert!(entry.to_string().contains(&second), "{entry}");
}

#[test]
fn a_script_as_it_was_begun_is_uploaded_by_its_tenant_and_decides_mail() {
    let mut world = World::start();
    let customer = world.destination("customer.test", Behaviour::accept());
    let token = world.gateway.token("acme").unwrap();
    let languages = [("js", "policy.js"), ("python", "policy.py")];
    for (language, script) in languages {
        let project = world.gateway.directory().join(language);
        let path = |file: &str| project.join(file).display().to_string();
        let (project_dir, script, wasm) = (path(""), path(script), path("campaigns.wasm"));
        let words = ["policy", "new", "campaigns", "--lang", language];
        world
            .gateway
            .run(&[&words[..], &["--dir", &project_dir]].concat())
            .unwrap();
        let engine = policy(&format!("engines/{language}-routing")).unwrap();
        let engine = engine.display().to_string();
        let words = ["policy", "build", &script, "-o", &wasm, "--engine", &engine];
        world.gateway.run(&words).unwrap();
        let config = path("config.json");
        let words = ["policy", "upload", &wasm, "--config", &config];
        let upload = world
            .gateway
            .with_token(&token, &[&words[..], &["--slot", SLOT]].concat())
            .unwrap();
        let text = "X-Campaign: spring\r\nSubject: x\r\n\r\nx\r\n";
        let reply = world
            .raw()
            .submit(SENDER, &["b@customer.test"], text)
            .unwrap();
        let entry = world.gateway.log(&reply.queue_id().unwrap()).unwrap();
        assert_eq!(entry["events"][1]["policy"], upload["digest"], "{entry}");
        assert!(entry.to_string().contains("spring"), "{entry}");
    }
    customer.wait_for(languages.len(), SOON).unwrap();
}
