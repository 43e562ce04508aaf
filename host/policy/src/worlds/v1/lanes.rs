//! Plans of lanes: the shaping world.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_mail::Timestamp;
use tidegate_queue::shape::{self, LaneState};

use super::{Guest, cut, millis, replies, shaping, wrong_world};
use crate::answer::tidy;
use crate::engine::{Active, Failure, PolicyEngine};
use crate::limits;

/// What one revision planned.
pub(crate) struct Planned {
    /// One for each lane, in order.
    pub lanes: Vec<shape::LanePlan>,
    pub state: Bytes,
    pub rules: shape::ReplyRules,
    pub cost_micros: u32,
}

/// Asks for the plans of some lanes.
pub(crate) async fn plan(
    engine: &PolicyEngine,
    active: &Arc<Active>,
    now: Timestamp,
    state: &[u8],
    lanes: &[&LaneState],
) -> Result<Planned, Failure> {
    let Guest::Shaping(guest, replies) = &active.guest else {
        return Err(wrong_world(active));
    };
    struct Held<'a> {
        replies: Vec<shaping::ReplyCount<'a>>,
        facts: Vec<(&'a str, &'a str)>,
    }
    let held: Vec<Held<'_>> = lanes
        .iter()
        .map(|lane| Held {
            replies: lane
                .recent
                .replies
                .iter()
                .map(|r| shaping::ReplyCount {
                    code: r.code,
                    enhanced: &r.enhanced,
                    sample: cut(&r.sample, limits::HEADER_VALUE),
                    count: r.count,
                })
                .collect(),
            facts: lane
                .facts
                .iter()
                .filter(|(name, _)| active.descriptor.wants_fact(name))
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
        })
        .collect();
    let states: Vec<shaping::LaneState<'_>> = lanes
        .iter()
        .zip(&held)
        .map(|(lane, held)| shaping::LaneState {
            key: shaping::LaneKey {
                tenant: &lane.key.tenant,
                class: lane.key.class.into(),
                relay: &lane.key.relay,
                site: &lane.key.site,
                lane: lane.key.lane.as_deref(),
            },
            backlog: lane.backlog,
            oldest_seconds: lane.oldest_seconds,
            open_connections: lane.open_connections,
            sending_since: lane.sending_since.map(millis),
            sent_total: lane.sent_total,
            current: lane.current.as_ref().map(|l| shaping::LimitsParam {
                rate: l.rate.map(|r| shaping::Rate {
                    messages: r.messages,
                    per_ms: r.per_ms,
                }),
                burst: l.burst,
                connections: l.connections,
                messages_per_connection: l.messages_per_connection,
                retry_after: &l.retry_after,
                paused_until: l.paused_until.map(millis),
                ttl: l.ttl,
            }),
            recent: shaping::Window {
                seconds: lane.recent.seconds,
                attempts: lane.recent.attempts,
                delivered: lane.recent.delivered,
                deferred: lane.recent.deferred,
                bounced: lane.recent.bounced,
                connect_failures: lane.recent.connect_failures,
                replies: &held.replies,
            },
            facts: &held.facts,
        })
        .collect();
    let (result, cost_micros) = engine
        .call(active, limits::SHAPING_MS, limits::ANSWER, async |store| {
            let instance = active.pre.instantiate_async(&mut *store).await?;
            let guest = guest.load(&mut *store, &instance)?;
            let plan = guest
                .call_plan_lanes(&mut *store, millis(now), state, &states)
                .await?;
            let rules = match replies {
                Some(replies) => {
                    let replies = replies.load(&mut *store, &instance)?;
                    replies.call_temporary(&mut *store).await?
                }
                None => Vec::new(),
            };
            Ok((plan, rules))
        })
        .await;
    let (plan, rules) = result?;
    let plan = plan?;
    if plan.lanes.len() != lanes.len() {
        return Err(Failure::Invalid(format!(
            "{} plans for {} lanes",
            plan.lanes.len(),
            lanes.len()
        )));
    }
    if plan.state.len() > limits::SHAPING_STATE {
        return Err(Failure::Invalid(format!(
            "a state of {} bytes; at most {}",
            plan.state.len(),
            limits::SHAPING_STATE
        )));
    }
    let rules = rules
        .into_iter()
        .map(reply_rule)
        .collect::<Result<_, _>>()
        .and_then(|rules: Vec<_>| match rules.len() {
            0..=limits::REPLY_RULES => Ok(rules),
            n => Err(format!("{n} rules; at most {}", limits::REPLY_RULES)),
        })
        .map_err(|what| Failure::Invalid(format!("replies.temporary: {what}")))?;
    Ok(Planned {
        lanes: plan
            .lanes
            .into_iter()
            .map(|lane| lane_plan(lane, now))
            .collect(),
        state: Bytes::from(plan.state),
        rules: shape::ReplyRules {
            rules,
            policy: Some(active.digest.to_string()),
        },
        cost_micros,
    })
}

/// A rule that can be applied; an error says what is wrong with it.
fn reply_rule(rule: replies::Rule) -> Result<shape::ReplyRule, String> {
    if rule.enhanced.is_none() && rule.text.as_deref().is_none_or(str::is_empty) {
        return Err("a rule needs an enhanced code or a text".to_owned());
    }
    if let Some(code) = rule.code
        && !(500..600).contains(&code)
    {
        return Err(format!("the code {code} is not 500 to 599"));
    }
    for (what, text) in [
        ("enhanced", &rule.enhanced),
        ("text", &rule.text),
        ("site", &rule.site),
    ] {
        if text.as_ref().is_some_and(|t| t.len() > limits::REPLY_TEXT) {
            return Err(format!("{what}: more than {} bytes", limits::REPLY_TEXT));
        }
    }
    Ok(shape::ReplyRule {
        code: rule.code,
        enhanced: rule.enhanced,
        text: rule.text.map(|t| t.to_lowercase()),
        site: rule.site.map(|s| s.to_lowercase()),
    })
}

/// A plan within the host's bounds: a number out of bounds is brought to the nearest.
fn lane_plan(plan: shaping::LanePlan, now: Timestamp) -> shape::LanePlan {
    let l = plan.limits;
    let latest = millis(now).saturating_add(limits::PAUSE_SECS * 1000);
    let mut retry_after = l.retry_after;
    retry_after.truncate(limits::RETRY_STEPS);
    for step in &mut retry_after {
        *step = (*step).clamp(1, 2 * 24 * 3600);
    }
    shape::LanePlan {
        limits: shape::Limits {
            rate: l.rate.map(|r| shape::Rate {
                messages: r.messages.max(1),
                per_ms: r.per_ms.max(1),
            }),
            burst: l.burst.clamp(1, 100_000),
            connections: l.connections.min(1_000),
            messages_per_connection: l.messages_per_connection.clamp(1, 10_000),
            retry_after,
            paused_until: l
                .paused_until
                .map(|at| Timestamp::from_millis(i64::try_from(at.min(latest)).unwrap_or(0))),
            ttl: l.ttl.clamp(1, limits::TTL_SECS),
            cause: plan
                .cause
                .map(|text| tidy(&text, limits::TEXT))
                .filter(|text| !text.trim().is_empty()),
        },
        wake: plan.wake.map(|t| {
            let mut codes = t.codes;
            codes.truncate(limits::TRIGGER_CODES);
            shape::Trigger {
                deferred_per_mille: t.deferred_per_mille.min(1000),
                min_attempts: t.min_attempts.max(1),
                codes,
            }
        }),
    }
}
