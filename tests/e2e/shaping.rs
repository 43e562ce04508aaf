//! A revision of the shaping policy goes live in steps, while bulk mail flows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tidegate_tests::eventually;
use tidegate_tests::gateway::policy;
use tidegate_tests::postgres::Postgres;
use tidegate_tests::sink::{Behaviour, Destination, Stage};

use super::{PASSWORD, SENDER, SOON, World};

const NEWS: &str = "news@acme";

/// Another pace than that of the policy that a gateway starts with.
const FASTER: &str = r#"{ "sites": [ { "site": "*", "rate": "50/s" } ] }"#;

impl World {
    /// Submits bulk mail to one domain after the other until it is told to stop. Returns how many
    /// there were.
    fn news_until(&self, stop: &AtomicBool, domains: &[String]) -> usize {
        let mut raw = self.gateway.raw(NEWS, PASSWORD).unwrap();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let to = format!("b{sent}@{}", domains[sent % domains.len()]);
            let reply = raw
                .submit(SENDER, &[&to], "Subject: news\r\n\r\nx\r\n")
                .unwrap();
            assert_eq!(reply.code, 250, "{}", reply.text());
            sent += 1;
        }
        sent
    }

    /// Has eight lanes with bulk mail that waits. Returns the digest of the revision that plans them,
    /// and the destinations.
    fn with_slow_lanes(&mut self) -> (String, Vec<Destination>) {
        self.gateway
            .bulk_credential("acme", NEWS, PASSWORD)
            .unwrap();
        let busy = Behaviour::accept().reply(Stage::Rcpt, "450 4.2.1 busy");
        let destinations = (0..8)
            .map(|n| self.destination(&format!("slow{n}.test"), busy.clone()))
            .collect();
        let mut raw = self.gateway.raw(NEWS, PASSWORD).unwrap();
        for n in 0..8 {
            let to = format!("b@slow{n}.test");
            let reply = raw
                .submit(SENDER, &[&to], "Subject: news\r\n\r\nx\r\n")
                .unwrap();
            assert_eq!(reply.code, 250, "{}", reply.text());
        }
        let digest = self.shaping()["in_force"]["digest"].clone();
        let digest = digest.as_str().unwrap().to_owned();
        self.wait_planners("the lanes are planned", |by| by.get(&digest) == Some(&8));
        (digest, destinations)
    }

    fn upload_faster(&self) -> String {
        let file = self.gateway.directory().join("shaping.json");
        std::fs::write(&file, FASTER).unwrap();
        let component = policy("shaping-default").unwrap();
        let (component, file) = (component.display().to_string(), file.display().to_string());
        let words = ["policy", "upload", &component, "--config", &file];
        let inactive = ["--slot", "shaping", "--inactive"];
        let upload = self.gateway.json(&[&words[..], &inactive].concat());
        upload.unwrap()["digest"].as_str().unwrap().to_owned()
    }

    fn shaping(&self) -> Value {
        let words = ["policy", "status", "--slot", "shaping"];
        self.gateway.json(&words).unwrap()[0].take()
    }

    /// Which revision plans how many of the lanes with mail in them.
    fn planners(&self) -> BTreeMap<String, usize> {
        let lanes = self.gateway.json(&["queue", "lanes"]).unwrap();
        let mut planners = BTreeMap::new();
        for lane in lanes.as_array().unwrap() {
            if lane["key"]["site"].as_str().unwrap().contains("slow") {
                let digest = lane["policy"].as_str().unwrap_or_default();
                *planners.entry(digest.to_owned()).or_default() += 1;
            }
        }
        planners
    }

    fn wait_planners(&self, what: &str, are: impl Fn(&BTreeMap<String, usize>) -> bool) {
        eventually(what, SOON, || are(&self.planners()).then_some(()))
            .unwrap_or_else(|e| panic!("{e:#}: {:?}\n{}", self.planners(), self.gateway.said()));
    }

    /// Runs while bulk mail flows. Returns how many mails there were.
    fn with_news(&self, domains: &[String], steps: impl FnOnce()) -> usize {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let submitting = scope.spawn(|| self.news_until(&stop, domains));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(steps));
            stop.store(true, Ordering::Relaxed);
            let sent = submitting.join().unwrap();
            if let Err(panic) = done {
                std::panic::resume_unwind(panic);
            }
            sent
        })
    }
}

#[test]
fn a_shaping_revision_goes_live_by_shadow_and_canary_while_bulk_mail_flows() {
    let mut world = World::start();
    let (before, _busy) = world.with_slow_lanes();
    let quick: Vec<String> = (0..8).map(|n| format!("quick{n}.test")).collect();
    let customers: Vec<_> = quick
        .iter()
        .map(|domain| world.destination(domain, Behaviour::accept()))
        .collect();
    let digest = world.upload_faster();
    let digest = digest.as_str();

    let mut sent = world.with_news(&quick, || {
        let words = ["policy", "shadow", digest, "--slot", "shaping"];
        world.gateway.run(&words).unwrap();
        let compared = eventually("the shadow is asked", SOON, || {
            let compared = world.shaping()["running"]["trial"]["compared"].take();
            (compared["changed_lanes"].as_u64()? >= 2).then_some(compared)
        })
        .unwrap();
        assert_eq!(compared["of"], "lanes");
        let change = &compared["changes"][0];
        assert!(
            change["from"].as_str().unwrap().contains("rate 10/1s"),
            "{change}"
        );
        assert!(
            change["to"].as_str().unwrap().contains("rate 50/1s"),
            "{change}"
        );
        assert_eq!(change["examples"][0]["tenant"], "acme");
        let text = world.gateway.run(&["policy", "status"]).unwrap();
        for part in [
            "The shadow of shaping",
            "rate 50/1s",
            "site",
            "calls failed",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(world.planners(), [(before.clone(), 8)].into());

        let words = [
            "policy", "canary", digest, "--slot", "shaping", "--share", "50%",
        ];
        world.gateway.run(&words).unwrap();
        world.wait_planners("the canary has its lanes", |by| {
            by.get(digest).is_some_and(|n| *n > 0) && by.get(&before).is_some_and(|n| *n > 0)
        });
        eventually("both sides plan", SOON, || {
            let trial = world.shaping()["running"]["trial"].take();
            let calls = |side: &str| trial[side]["calls"].as_u64();
            (calls("own")? >= 2 && calls("base")? >= 2).then_some(())
        })
        .unwrap();
    });

    // It is on trial also after a restart, for the same lanes.
    let share = world.planners();
    world.gateway.stop().unwrap();
    world.gateway.start().unwrap();
    let trial = world.shaping()["running"]["trial"].take();
    assert_eq!(
        (&trial["digest"], &trial["permille"]),
        (&digest.into(), &500.into())
    );
    world.wait_planners("the same lanes again", |by| *by == share);

    sent += world.with_news(&quick, || {
        world
            .gateway
            .run(&["policy", "promote", "--slot", "shaping"])
            .unwrap();
        world.wait_planners("it plans all", |by| by.get(digest) == Some(&8));
    });
    let slot = world.shaping();
    assert_eq!(slot["in_force"]["digest"], digest);
    assert_eq!(slot["previous"]["digest"], before.as_str());
    assert!(slot["trial"].is_null(), "{slot}");
    world
        .gateway
        .run(&["policy", "rollback", "--slot", "shaping"])
        .unwrap();
    world.wait_planners("what was before plans all", |by| {
        by.get(&before) == Some(&8)
    });

    let delivered = || customers.iter().map(|c| c.counts().messages).sum::<u64>() as usize;
    eventually("all bulk mail is delivered", SOON, || {
        (delivered() >= sent).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e:#}: {} of {sent}", delivered()));
    assert_eq!(delivered(), sent, "nothing lost, nothing twice");

    let history = world
        .gateway
        .json(&["policy", "history", "--slot", "shaping"])
        .unwrap();
    let changes: Vec<&str> = history
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .skip_while(|a| a["change"] != "shadow")
        .map(|a| a["change"].as_str().unwrap())
        .collect();
    assert_eq!(changes, ["shadow", "canary", "promoted", "rolled back"]);
}

#[test]
fn a_shaping_canary_that_fails_is_taken_back_and_its_lanes_are_served() {
    let mut world = World::start();
    world
        .gateway
        .bulk_credential("acme", NEWS, PASSWORD)
        .unwrap();
    let domains: Vec<String> = (0..8).map(|n| format!("quick{n}.test")).collect();
    let customers: Vec<_> = domains
        .iter()
        .map(|domain| world.destination(domain, Behaviour::accept()))
        .collect();
    let place = |name: &str| world.gateway.directory().join(name).display().to_string();
    let (script, wasm) = (place("shaper.js"), place("shaper.wasm"));
    let text = "export function init() { return { name: \"bad\", version: \"1.0\" }; }\n\
                export function plan() { throw new Error(\"out of order\"); }\n";
    std::fs::write(&script, text).unwrap();
    let engine = policy("engines/js-shaping").unwrap().display().to_string();
    let words = ["policy", "build", &script, "-o", &wasm, "--engine", &engine];
    world.gateway.run(&words).unwrap();
    let words = ["policy", "upload", &wasm, "--slot", "shaping"];
    let canary = ["--canary", "50%"];
    let upload = world.gateway.json(&[&words[..], &canary].concat()).unwrap();
    let sent = world.with_news(&domains, || {
        let step = eventually("the canary is withdrawn", SOON, || {
            let words = ["policy", "history", "--slot", "shaping"];
            let step = world.gateway.json(&words).ok()?[0].take();
            (step["by"] == "gateway").then_some(step)
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", world.gateway.said()));
        assert_eq!(
            (&step["step"], &step["digest"]),
            (&"withdraw".into(), &upload["digest"])
        );
        assert!(
            step["cause"].as_str().unwrap().contains("out of order"),
            "{step}"
        );
    });
    assert!(world.shaping()["trial"].is_null());
    let delivered = || customers.iter().map(|c| c.counts().messages).sum::<u64>() as usize;
    eventually("all bulk mail is delivered", SOON, || {
        (delivered() >= sent).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e:#}: {} of {sent}", delivered()));
}

#[test]
fn a_shaping_canary_of_another_gateway_on_the_same_database_is_followed() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    let mut world = World::with(|options| options.set("database", url.as_str()));
    let (before, _busy) = world.with_slow_lanes();
    let digest = world.upload_faster();
    let change = |step: &str| {
        let sql = format!(
            r#"update registry_version set version = version + 1;
               insert into activation (id, slot, body) select version, 'shaping',
                '{{"slot":"shaping","digest":"{digest}",{step},"at":1,"by":"operator"}}' from registry_version"#
        );
        postgres.query(&sql).unwrap();
    };
    change(r#""step":"canary","permille":1000"#);
    world.wait_planners("the canary is followed", |by| by.get(&digest) == Some(&8));
    change(r#""step":"withdraw""#);
    world.wait_planners("its end is followed", |by| by.get(&before) == Some(&8));
    assert!(world.shaping()["running"]["trial"].is_null());
}
