//! The log, exported by HTTP: to a CRM's webhook, Splunk and Elasticsearch as the examples of
//! policies render it, while receivers fail in every way and the gateway is killed.

use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tidegate_tests::eventually;
use tidegate_tests::gateway::{Options, policies};
use tidegate_tests::internet::Internet;
use tidegate_tests::receiver::{Received, Receiver, Reply};
use tidegate_tests::sink::Behaviour;
use tidegate_tests::tls::Identity;

use super::{SOON, World};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/examples")
}

/// A file that only its owner can read.
fn secret(path: &Path, text: &str) {
    use std::io::Write;
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

impl World {
    /// A gateway that exports to this address; the secrets are beside its configuration.
    fn exporting(
        internet: Internet,
        name: &str,
        url: &str,
        more: &[(&str, &str)],
        files: &[(&str, &str)],
    ) -> World {
        let with = |options: Options| {
            // The built-in routes will do.
            let own = [("kind", "http"), ("url", url), ("timeout", "2s")];
            own.iter()
                .chain(more)
                .fold(options, |options, (key, value)| {
                    options.set(&format!("export.{name}.{key}"), *value)
                })
        };
        World::prepared(internet, with, |directory| {
            for (file, text) in files {
                secret(&directory.join(file), text);
            }
        })
    }

    fn exporter(&self, name: &str) -> Value {
        let list = self.gateway.json(&["export", "list"]).unwrap();
        let list = list.as_array().unwrap().clone();
        list.into_iter().find(|e| e["name"] == name).unwrap()
    }

    /// What a tenant's mail did, without notices.
    fn send_some(&self, number: usize, prefix: &str) {
        let mut raw = self.raw();
        for n in 0..number {
            let to = format!("{prefix}{n}@customer.test");
            let reply = raw
                .submit(
                    super::SENDER,
                    &[&to],
                    &format!("Subject: {prefix}{n}\r\n\r\nx\r\n"),
                )
                .unwrap();
            assert_eq!(reply.code, 250);
        }
    }
}

/// Recipients in the outcomes of the webhook's requests.
fn outcomes(requests: &[Received]) -> Vec<Value> {
    requests
        .iter()
        .filter(|r| r.is_taken())
        .flat_map(|r| {
            let body: Value = serde_json::from_slice(&r.body).unwrap();
            body["outcomes"].as_array().unwrap().clone()
        })
        .collect()
}

#[test]
fn a_webhook_gets_every_outcome_signed_whatever_fails_and_knows_what_comes_again() {
    let internet = Internet::start().unwrap();
    let receiver = Receiver::start(internet.gateway(), None).unwrap();
    // Each kind of failure once, between the successes.
    let mut failures = vec![
        Reply::Silence,
        Reply::Cut,
        Reply::Answer(429, "Retry-After: 1\r\n".to_owned(), String::new()),
        Reply::status(503),
        Reply::status(301),
    ];
    let mut number = 0;
    receiver.answers(move |_| {
        number += 1;
        if number % 2 == 1 {
            failures.pop().unwrap_or(Reply::status(204))
        } else {
            Reply::status(204)
        }
    });
    let url = format!("http://{}/hooks/mail?x=1", receiver.address());
    let signed = [("signing_key_file", "hook.key")];
    let files = [("hook.key", "a key of the CRM\n")];
    let mut world = World::exporting(internet, "crm", &url, &signed, &files);
    let customer = world.destination("customer.test", Behaviour::accept());
    let checked = world.gateway.cli(&["check"]).unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    let posts = format!("posts to http://{}\n", receiver.address());
    assert!(said.contains(&posts), "{said}");

    let wasm = world.gateway.directory().join("crm-webhook.wasm");
    let source = examples().join("crm-webhook/policy.js");
    let words = ["policy", "build", &source.display().to_string(), "-o"];
    world
        .gateway
        .run(&[&words[..], &[&wasm.display().to_string()]].concat())
        .unwrap();
    world.gateway.policy("export/crm", &wasm, "{}").unwrap();

    for round in 0..6 {
        world.send_some(3, &format!("r{round}-"));
        customer.wait_for((round + 1) * 3, SOON).unwrap();
        let all = |requests: &[Received]| {
            let ids: BTreeSet<u64> = outcomes(requests)
                .iter()
                .map(|o| o["id"].as_u64().unwrap())
                .collect();
            (ids.len() >= (round + 1) * 3).then_some(())
        };
        receiver
            .wait("the outcomes of the round", SOON, all)
            .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));
    }
    let requests = receiver.received();
    let statuses: BTreeSet<u16> = requests.iter().map(|r| r.status).collect();
    assert_eq!(statuses, BTreeSet::from([0, 204, 301, 429, 503]));
    let outcomes = outcomes(&requests);
    assert_eq!(outcomes.len(), 18, "none twice: {outcomes:?}");
    assert!(outcomes.iter().all(|o| o["outcome"] == "delivered"));
    let ids: Vec<u64> = outcomes.iter().map(|o| o["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted(), "in order");
    for request in &requests {
        assert_eq!(request.path, "/hooks/mail?x=1");
        assert_eq!(request.field("content-type"), "application/json");
        let key = request.field("idempotency-key");
        assert!(key.starts_with("crm-"), "{key}");
        assert_eq!(request.field("webhook-id"), key);
        assert!(request.field("webhook-signature").starts_with("v1,"));
        assert!(request.field("webhook-timestamp").parse::<u64>().unwrap() > 1_700_000_000);
    }
    // What was not taken came again under the same key.
    for failed in requests.iter().filter(|r| !r.is_taken()) {
        let key = failed.field("idempotency-key");
        let again = requests
            .iter()
            .find(|r| r.is_taken() && r.field("idempotency-key") == key);
        assert_eq!(again.unwrap().body, failed.body, "{key}");
    }
    let status = world.exporter("crm");
    assert!(status["failing_since"].is_null(), "{status}");
    assert_eq!(status["left_out"], 0);
    assert!(status["failures"].as_u64().unwrap() >= 4, "{status}");
    assert_eq!(status["to"], format!("http://{}", receiver.address()));

    // Killed while the receiver has the batch and the gateway does not know it yet.
    let held = requests.len();
    receiver.answers(|_| Reply::Silence);
    world.send_some(2, "crash-");
    receiver
        .wait("a request that is held", SOON, |r| {
            (r.len() > held).then_some(())
        })
        .unwrap();
    world.gateway.kill().unwrap();
    let before = receiver.received().last().unwrap().clone();
    receiver.answers(|_| Reply::status(200));
    world.gateway.start().unwrap();
    world.send_some(1, "later-");
    let after = receiver
        .wait("the same again", SOON, |requests| {
            requests
                .iter()
                .find(|r| r.is_taken() && r.body == before.body)
                .cloned()
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));
    assert_eq!(
        after.field("idempotency-key"),
        before.field("idempotency-key")
    );
    receiver
        .wait("all that came after the crash", SOON, |requests| {
            let text: String = requests
                .iter()
                .filter(|r| r.is_taken())
                .map(Received::text)
                .collect();
            ["crash-0@", "crash-1@", "later-0@"]
                .iter()
                .all(|to| text.contains(to))
                .then_some(())
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));
}

/// With the flags of the Makefile that `policy new` writes.
fn compile_c(source: &Path, wasm: &Path) {
    let include = examples().join("../templates/c");
    let makefile = std::fs::read_to_string(include.join("Makefile.in")).unwrap();
    let flags = |name: &str| {
        let line = makefile.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap().trim_start_matches([' ', '=']);
        words.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let made = Command::new("clang")
        .args(flags("CFLAGS"))
        .args(flags("LDFLAGS"))
        .arg("-I")
        .arg(&include)
        .arg("-o")
        .args([wasm, source])
        .output()
        .expect("clang is installed by `cargo xtask plugins`");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

#[test]
fn splunk_takes_the_log_and_the_one_event_that_it_will_not_take_is_left_out() {
    let internet = Internet::start().unwrap();
    let receiver = Receiver::start(internet.gateway(), None).unwrap();
    receiver.answers(|request| {
        if request.field("authorization") != "Splunk 11111111-2222" {
            return Reply::json(403, r#"{"text":"Invalid token","code":4}"#);
        }
        if request.text().contains("poison") {
            return Reply::json(400, r#"{"text":"Invalid data format","code":6}"#);
        }
        Reply::json(200, r#"{"text":"Success","code":0}"#)
    });
    let path = "/services/collector/event";
    let url = format!("http://{}{path}", receiver.address());
    let secret_of = [("secret_file", "hec.token"), ("auth", "splunk")];
    let files = [("hec.token", "another\n")];
    let mut world = World::exporting(internet, "splunk", &url, &secret_of, &files);
    let customer = world.destination("customer.test", Behaviour::accept());
    let wasm = world.gateway.directory().join("splunk-hec.wasm");
    compile_c(&examples().join("splunk-hec/policy.c"), &wasm);
    world.send_some(5, "a");
    customer.wait_for(5, SOON).unwrap();
    world
        .gateway
        .policy("export/splunk", &wasm, r#"{"index":"mail"}"#)
        .unwrap();

    // The wrong secret: nothing is left out, and somebody is told why.
    let status = eventually("the refusal is shown", SOON, || {
        let status = world.exporter("splunk");
        status["reason"].is_string().then_some(status)
    })
    .unwrap();
    let reason = status["reason"].as_str().unwrap();
    assert!(
        reason.contains("403") && reason.contains("Invalid token"),
        "{status}"
    );
    assert_eq!(
        (&status["cursor"], &status["left_out"]),
        (&0.into(), &0.into())
    );
    let told = world.gateway.run(&["export", "list"]).unwrap();
    assert!(
        told.contains("failing") && told.contains("Invalid token"),
        "{told}"
    );

    // The right one, without a restart.
    secret(
        &world.gateway.directory().join("hec.token"),
        "11111111-2222\n",
    );
    let events = |requests: &[Received]| -> Vec<Value> {
        let taken = requests.iter().filter(|r| r.is_taken());
        let text: String = taken.map(Received::text).collect();
        serde_json::Deserializer::from_str(&text)
            .into_iter()
            .map(Result::unwrap)
            .collect()
    };
    let delivered = |requests: &[Received], to: &str| {
        let of = |e: &&Value| e["event"]["kind"] == "delivered";
        events(requests)
            .iter()
            .filter(of)
            .filter(|e| {
                e["event"]["recipient"]
                    .as_str()
                    .is_some_and(|r| r.starts_with(to))
            })
            .count()
    };
    receiver
        .wait("the backlog", SOON, |r| {
            (delivered(r, "a") == 5).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));

    world.send_some(3, "b");
    world.send(&["poison@customer.test"], "p");
    world.send_some(3, "c");
    receiver
        .wait("what came before and after the poison", SOON, |r| {
            (delivered(r, "b") == 3 && delivered(r, "c") == 3).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));
    world.send_some(1, "d");
    receiver
        .wait("what came last", SOON, |r| {
            (delivered(r, "d") == 1).then_some(())
        })
        .unwrap();
    let requests = receiver.received();
    assert!(requests.iter().all(|r| r.path == path));
    let seqs: Vec<u64> = events(&requests)
        .iter()
        .map(|e| e["event"]["seq"].as_u64().unwrap())
        .collect();
    let unique: BTreeSet<u64> = seqs.iter().copied().collect();
    assert_eq!(unique.len(), seqs.len(), "none twice");
    let status = eventually("the exporter is well again", SOON, || {
        let status = world.exporter("splunk");
        status["failing_since"].is_null().then_some(status)
    })
    .unwrap();
    // Only what names the poison is missing: routed and delivered, perhaps accepted.
    let missing: Vec<u64> = (1..=*seqs.last().unwrap())
        .filter(|n| !unique.contains(n))
        .collect();
    assert_eq!(status["left_out"], missing.len(), "{missing:?} {status}");
    assert!((2..=3).contains(&missing.len()), "{missing:?}");
    for seq in &missing {
        let line = format!("seq={seq}");
        assert!(world.gateway.said().contains(&line), "{line}");
    }
    let metrics = world.gateway.metrics().unwrap();
    let line = format!(
        "tidegate_export_left_out_total{{exporter=\"splunk\"}} {}",
        missing.len()
    );
    assert!(metrics.contains(&line), "{metrics}");
}

/// Stores documents by their id, as the bulk API does; a subject with `poison` does not fit its mapping.
fn elastic(stored: &mut Vec<(String, Value)>, busy: &mut u32, request: &Received) -> Reply {
    let lines: Vec<Value> = request
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut items = Vec::new();
    for pair in lines.chunks(2) {
        let id = pair[0]["create"]["_id"].as_str().unwrap().to_owned();
        let status = if *busy > 0 && items.len() == 1 {
            *busy -= 1;
            429
        } else if pair[1]["email.subject"]
            .as_str()
            .is_some_and(|s| s.contains("poison"))
        {
            400
        } else if stored.iter().any(|(known, _)| *known == id) {
            409
        } else {
            stored.push((id.clone(), pair[1].clone()));
            201
        };
        let error = serde_json::json!({"type": "an_exception", "reason": "of the test"});
        items.push(serde_json::json!({"create": {"_id": id, "status": status, "error": error}}));
    }
    let errors = items.iter().any(|i| i["create"]["status"] != 201);
    Reply::json(
        200,
        serde_json::json!({"took": 1, "errors": errors, "items": items}).to_string(),
    )
}

#[test]
fn elasticsearch_has_every_event_once_over_tls_though_it_answers_200_to_what_fails() {
    let internet = Internet::start().unwrap();
    let ip = internet.gateway();
    let identity = Identity::new(&[&ip.to_string()]).unwrap();
    let receiver = Receiver::start(ip, Some(&identity)).unwrap();
    let stored = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (into, mut busy) = (stored.clone(), 2);
    receiver.answers(move |request| elastic(&mut into.lock().unwrap(), &mut busy, request));
    let url = format!("https://{}/_bulk", receiver.address());
    let more = [
        ("secret_file", "elastic.key"),
        ("auth", "api-key"),
        ("trust_anchors", "elastic.pem"),
    ];
    let another = Identity::new(&["elastic.test"]).unwrap().certificate_pem;
    let files = [("elastic.key", "of the test"), ("elastic.pem", &another)];
    let mut world = World::exporting(internet, "elastic", &url, &more, &files);
    let customer = world.destination("customer.test", Behaviour::accept());
    let wasm = policies().unwrap().join("examples/elastic-bulk.wasm");
    let config = r#"{ "index": "mail-events" }"#;
    world
        .gateway
        .policy("export/elastic", &wasm, config)
        .unwrap();

    // A certificate that nothing vouches for.
    world.send_some(2, "a");
    let reason = eventually("the certificate is not trusted", SOON, || {
        Some(world.exporter("elastic")["reason"].as_str()?.to_owned())
    })
    .unwrap();
    assert!(reason.to_lowercase().contains("certificate"), "{reason}");
    assert!(receiver.received().is_empty());
    let anchors = world.gateway.directory().join("elastic.pem");
    std::fs::write(anchors, &identity.certificate_pem).unwrap();
    world.gateway.stop().unwrap();
    world.gateway.start().unwrap();

    world.send_some(4, "b");
    world.send(&["c@customer.test"], "poison");
    world.send_some(4, "d");
    customer.wait_for(11, SOON).unwrap();
    let wanted = |kind: &str, prefix: &str| {
        let stored = stored.lock().unwrap();
        let of = |document: &&Value| {
            document["event.action"] == kind
                && document["email.to.address"]
                    .as_str()
                    .is_some_and(|a| a.starts_with(prefix))
        };
        stored
            .iter()
            .map(|(_, document)| document)
            .filter(of)
            .count()
    };
    eventually("all but the poison", SOON, || {
        (wanted("delivered", "a") == 2
            && wanted("delivered", "b") == 4
            && wanted("delivered", "d") == 4)
            .then_some(())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));
    let stored = stored.lock().unwrap().clone();
    let ids: BTreeSet<&String> = stored.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), stored.len(), "each once");
    assert!(!stored.iter().any(|(_, d)| d["email.subject"] == "poison"));
    for request in receiver.received() {
        assert_eq!(request.path, "/_bulk");
        assert_eq!(request.field("authorization"), "ApiKey of the test");
        assert_eq!(request.field("content-type"), "application/x-ndjson");
    }
    let status = eventually("its three events are left out", SOON, || {
        let status = world.exporter("elastic");
        (status["left_out"] == 3).then_some(status)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));
    assert_eq!(status["to"], format!("https://{}", receiver.address()));
}
