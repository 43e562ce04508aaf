//! Many small stories, each picked by a seed: behaviours, mixes, crashes.

use std::time::Duration;

use tidegate_mail::Notify;

use crate::check::{Promised, Rules, check};
use crate::random::Random;
use crate::scenario::{Mail, Scenario};
use crate::world::{Manner, NEVER};

const DOMAINS: [&str; 9] = [
    "a.test",
    "b.test",
    "c.test",
    "d.test",
    "e.test",
    "f.test",
    "g.test",
    "own-x.test",
    "no-x.test",
];

fn manner(random: &mut Random) -> Manner {
    let n = random.below(4) as u32 + 1;
    match random.below(10) {
        0..=2 => Manner::Accept,
        3 => Manner::Greylist(n),
        4 => Manner::Later(n),
        5 => Manner::Refuse,
        6 => Manner::Unreachable(if random.chance(50) { NEVER } else { n }),
        7 => Manner::LosesReplies(n),
        8 => Manner::NoSuchDomain,
        _ => Manner::BrokenDns(n),
    }
}

fn notify(random: &mut Random) -> Notify {
    match random.below(4) {
        0 => Notify::Never,
        1 => Notify::On {
            success: random.chance(50),
            failure: random.chance(50),
            delay: random.chance(50),
        },
        _ => Notify::Absent,
    }
}

/// What the stories had in them, so that a run shows that it tried something.
#[derive(Default)]
struct Tally {
    promised: usize,
    crashes: usize,
    delivered: usize,
}

async fn story(seed: u64, tally: &mut Tally) {
    let mut random = Random::new(seed);
    let mut scenario = Scenario::new().await;
    for domain in DOMAINS {
        scenario.world.set(domain, manner(&mut random));
    }
    scenario.world.set("own-server.test", manner(&mut random));
    let mut promised = Vec::new();
    let mut crashed = false;
    for round in 0..6 {
        if random.chance(50) {
            let n = random.below(25) as u32;
            scenario.crash.arm(n, random.chance(50));
        }
        for mail in 0..random.below(4) + 1 {
            let null_sender = random.chance(10);
            let to: Vec<(String, Notify)> = (0..random.below(4) + 1)
                .map(|n| {
                    let domain = random.pick(&DOMAINS);
                    (format!("r{round}-{mail}-{n}@{domain}"), notify(&mut random))
                })
                .collect();
            let refs: Vec<(&str, Notify)> = to.iter().map(|(a, n)| (a.as_str(), *n)).collect();
            let (id, reply) = scenario
                .submit(Mail {
                    from: if null_sender { "" } else { "crm@acme.test" },
                    to: &refs,
                    headers: if random.chance(20) {
                        "List-Id: <x.test>\r\n"
                    } else {
                        ""
                    },
                    subject: None,
                    bulk: random.chance(30),
                })
                .await;
            if reply.code != 250 || !reply.text.starts_with("queued") {
                continue;
            }
            for (index, (address, notify)) in to.iter().enumerate() {
                if !address.contains("@own-") {
                    promised.push(Promised {
                        message: id,
                        index: index as u32,
                        address: address.clone(),
                        notify: *notify,
                        null_sender,
                    });
                }
            }
        }
        let pause = Duration::from_secs(random.below(7200));
        scenario.pass(pause).await;
        if scenario.crash.happened() {
            crashed = true;
            tally.crashes += 1;
            scenario.restart().await;
        }
    }
    tally.promised += promised.len();
    scenario.crash.disarm();
    let steps = scenario.pass(Duration::from_secs(60 * 3600)).await;
    assert!(steps < 5000, "{steps} steps for 60 hours");
    check(
        &scenario,
        Rules {
            promised: &promised,
            crashed,
        },
    )
    .await;
    tally.delivered += scenario.world.delivered().len();
    for n in 0..6 {
        for mail in 0..4 {
            for r in 0..4 {
                let address = format!("r{n}-{mail}-{r}@own-x.test");
                let tries = scenario.world.attempts_for(&address).len();
                assert!(tries <= 1, "passthrough to {address} tried {tries} times");
            }
        }
    }
}

#[tokio::test]
async fn every_story_ends_well() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds: Vec<u64> = match number("TIDEGATE_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("TIDEGATE_SIM_COUNT").unwrap_or(60)).collect(),
    };
    let stories = seeds.len();
    let mut tally = Tally::default();
    for seed in seeds {
        eprintln!("seed {seed}");
        story(seed, &mut tally).await;
    }
    println!(
        "{stories} stories: {} recipients promised, {} deliveries, {} crashes",
        tally.promised, tally.delivered, tally.crashes
    );
}
