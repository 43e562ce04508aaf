//! Plans of several revisions, and those that come too late.

use super::*;
use crate::shape::{LanePlan, Rate, ReplyRule, ReplyRules};

#[test]
fn a_lane_planned_on_trial_reads_replies_by_the_rules_of_the_trial_until_it_is_planned_otherwise() {
    let rules = |text: &str| {
        Arc::new(ReplyRules {
            rules: vec![ReplyRule {
                text: Some(text.to_owned()),
                ..ReplyRule::default()
            }],
            policy: Some(text.to_owned()),
        })
    };
    let mut s = Scheduler::new(bounds());
    for (message, domain) in [(0, "x.test"), (1, "y.test"), (2, "x.test"), (3, "x.test")] {
        let k = key("a", domain, TrafficClass::Bulk);
        s.add(&k, entry(message, 0, 0), T0);
    }
    assert!(drain(&mut s, T0).is_empty());
    let plan = || {
        Some(LanePlan {
            limits: Limits {
                rate: Some(Rate {
                    messages: 1,
                    per_ms: 1_000,
                }),
                ..Limits::default()
            },
            wake: None,
        })
    };
    s.reads_replies(rules("in force"));
    for (lane, state) in s.lanes_to_plan(T0) {
        match state.key.site.as_str() {
            "x.test" => s.planned_on_trial(lane, plan(), &rules("trial"), T0),
            _ => s.planned(lane, plan(), Some("in force"), T0),
        }
    }
    // Sends what may go; by whose rules replies are read.
    let read_by = |s: &mut Scheduler, now: Timestamp| {
        s.wake(now, 10);
        let mut by = Vec::new();
        for work in drain(s, now) {
            let policy = work.temporary.as_ref().and_then(|r| r.policy.clone());
            by.push(format!("{} {}", work.site, policy.unwrap_or_default()));
            finish(s, work, Contact::Reached, now);
        }
        by.sort();
        by
    };
    assert_eq!(read_by(&mut s, T0), ["x.test trial", "y.test in force"]);
    // One that has no rules has none in its lanes.
    let second = T0.plus(Duration::from_secs(1));
    s.replan(second);
    for (lane, _) in s.lanes_to_plan(second) {
        s.planned_on_trial(lane, plan(), &Arc::default(), second);
    }
    assert_eq!(read_by(&mut s, second), ["x.test "]);
    let third = T0.plus(Duration::from_secs(2));
    s.replan(third);
    for (lane, _) in s.lanes_to_plan(third) {
        s.planned(lane, plan(), Some("in force"), third);
    }
    assert_eq!(read_by(&mut s, third), ["x.test in force"]);
}

#[test]
fn an_answer_that_was_under_way_when_the_policy_changed_is_asked_for_again() {
    let mut s = Scheduler::new(bounds());
    let k = key("a", "x.test", TrafficClass::Bulk);
    s.add(&k, entry(0, 0, 0), T0);
    assert!(drain(&mut s, T0).is_empty());
    let asked = s.lanes_to_plan(T0);
    s.replan(T0);
    assert!(s.lanes_to_plan(T0).is_empty(), "it is asked about already");
    let plan = LanePlan {
        limits: Limits::default(),
        wake: None,
    };
    s.planned(asked[0].0, Some(plan.clone()), Some("old"), T0);
    let again = s.lanes_to_plan(T0);
    assert_eq!(again.len(), 1);
    s.planned(again[0].0, Some(plan), Some("new"), T0);
    assert!(s.lanes_to_plan(T0).is_empty());
}
