//! What a slot runs, told by its history: steps are appended and never changed.
//!
//! A slot has at most one revision in force and one on trial beside it: a canary, which
//! decides a share of the messages, or a shadow, which decides none.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tidegate_mail::{MessageId, Timestamp};

use crate::ports::Uploaded;

/// What a change does to its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "step")]
pub enum Step {
    /// In force for every message; ends a trial.
    Activate,
    /// On trial: decides this share of the messages, in thousandths.
    Canary { permille: u16 },
    /// On trial: decides nothing, is compared.
    Shadow,
    /// The trial ends; what is in force stays.
    Withdraw,
    /// Nothing is in force: a tenant's slot gives way to the operator's.
    Vacate,
}

impl Step {
    /// The past participle, for histories.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Activate => "activated",
            Step::Canary { .. } => "canary",
            Step::Shadow => "shadow",
            Step::Withdraw => "withdrawn",
            Step::Vacate => "vacated",
        }
    }
}

/// A change of what a slot runs. `slot` is `routing/TENANT`, `routing`, `shaping` or `export/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// Grows with each change of any slot, and is never given twice; 0 until it is written down.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seq: u64,
    pub slot: String,
    /// The revision that the step is about.
    pub digest: String,
    #[serde(flatten)]
    pub step: Step,
    /// What the step was taken for, where it does not say so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<Purpose>,
    pub at: Timestamp,
    /// `operator`, `tenant:ID`, or `gateway` where it acted by itself.
    pub by: String,
    #[serde(default)]
    pub note: String,
    /// What was measured, where the gateway acted by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde asks for"
)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What a step was taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// What was on trial is in force for all.
    Promotion,
    /// One step back.
    RollBack,
}

impl Activation {
    /// The change in one word, for logs and histories.
    pub fn word(&self) -> &'static str {
        match self.purpose {
            Some(Purpose::Promotion) => "promoted",
            Some(Purpose::RollBack) => "rolled back",
            None => self.step.as_str(),
        }
    }

    /// What kind of caller made it: `operator`, `tenant` or `gateway`.
    pub fn by_whom(&self) -> &'static str {
        match self.by.as_str() {
            GATEWAY => GATEWAY,
            by if by.starts_with("tenant:") => "tenant",
            _ => "operator",
        }
    }
}

/// Who is recorded for what the gateway does by itself.
pub const GATEWAY: &str = "gateway";

/// A slot as its history leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlotState {
    pub in_force: Option<Activation>,
    /// What was in force before and was not taken out for a cause.
    pub previous: Option<Activation>,
    pub trial: Option<Activation>,
}

impl SlotState {
    /// Makes a change.
    pub fn apply(&mut self, change: &Activation) {
        match change.step {
            Step::Activate => {
                let before = self.in_force.take();
                if change.cause.is_some() {
                    // What the gateway took out is nothing to fall back to.
                    self.previous = None;
                } else if before.as_ref().is_some_and(|b| b.digest != change.digest) {
                    self.previous = before;
                }
                if self
                    .previous
                    .as_ref()
                    .is_some_and(|p| p.digest == change.digest)
                {
                    self.previous = None;
                }
                self.in_force = Some(change.clone());
                self.trial = None;
            }
            Step::Canary { .. } | Step::Shadow => self.trial = Some(change.clone()),
            Step::Withdraw => self.trial = None,
            Step::Vacate => *self = SlotState::default(),
        }
    }

    /// The digests it needs.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        [&self.in_force, &self.previous, &self.trial]
            .into_iter()
            .flatten()
            .map(|a| a.digest.as_str())
    }
}

/// Every slot that ever ran something, by its name. The history is oldest first.
pub fn slots(history: &[Activation]) -> BTreeMap<String, SlotState> {
    let mut slots: BTreeMap<String, SlotState> = BTreeMap::new();
    for change in history {
        slots.entry(change.slot.clone()).or_default().apply(change);
    }
    slots
}

/// What a roll-back of the slot does: the step and the digest it is about. `None`: there is
/// nothing to go back to.
///
/// A trial is withdrawn. Without one the slot goes back to what was in force before, by the
/// history, so that two roll-backs in a row come back to where they began; what the gateway
/// itself took out is passed over. A tenant's first revision gives way to the operator's.
pub fn roll_back(slot: &str, history: &[Activation]) -> Option<(Step, String)> {
    let state = slots(history).remove(slot)?;
    if let Some(trial) = state.trial {
        return Some((Step::Withdraw, trial.digest));
    }
    let now = state.in_force?;
    let mut before = None;
    let mut taken_out = BTreeSet::new();
    for change in history.iter().filter(|a| a.slot == slot) {
        let by_gateway = change.cause.is_some();
        match change.step {
            Step::Activate => {
                if by_gateway && let Some(out) = before.take() {
                    taken_out.insert(out);
                }
                if !by_gateway {
                    // Somebody wanted it in spite of that.
                    taken_out.remove(change.digest.as_str());
                }
                before = Some(change.digest.as_str());
            }
            Step::Vacate => {
                if by_gateway && let Some(out) = before {
                    taken_out.insert(out);
                }
                before = None;
            }
            Step::Canary { .. } | Step::Shadow | Step::Withdraw => {}
        }
    }
    let back = history.iter().rev().find(|a| {
        a.slot == slot
            && a.step == Step::Activate
            && a.digest != now.digest
            && !taken_out.contains(a.digest.as_str())
    });
    match back {
        Some(back) => Some((Step::Activate, back.digest.clone())),
        None if slot.starts_with("routing/") => Some((Step::Vacate, now.digest)),
        None => None,
    }
}

/// Whether a canary of this share decides the message: by its queue id, which never changes, so a
/// message is asked about again on the same side, and what a smaller share decided a larger
/// one decides too.
pub fn in_canary(message: MessageId, permille: u16) -> bool {
    // The finaliser of SplitMix64: neighbouring ids fall anywhere.
    let mut x = message.as_i64() as u64;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) % 1000 < u64::from(permille)
}

/// The revisions that have to stay: in force, on trial, or what a slot would fall back to; what
/// decided anything since `keep_from`, since the log names it; and the last `per_slot` uploads of
/// each slot.
pub fn kept(
    history: &[Activation],
    uploads: &[Uploaded],
    keep_from: Timestamp,
    per_slot: usize,
) -> BTreeSet<String> {
    let mut kept: BTreeSet<String> = slots(history)
        .values()
        .flat_map(|state| state.digests().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let mut ended: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for change in history.iter().rev() {
        // It decided until the next change of its slot, or does so still.
        let until = ended.insert(&change.slot, change.at);
        if until.is_none_or(|until| until >= keep_from) {
            kept.insert(change.digest.clone());
        }
    }
    let mut of_slot: BTreeMap<&str, usize> = BTreeMap::new();
    let mut newest: Vec<&Uploaded> = uploads.iter().collect();
    newest.sort_by_key(|u| std::cmp::Reverse(u.at));
    for upload in newest {
        let seen = of_slot.entry(&upload.slot).or_default();
        *seen += 1;
        if *seen <= per_slot {
            kept.insert(upload.digest.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(step: Step, digest: &str, at: i64) -> Activation {
        Activation {
            seq: 0,
            slot: "routing/acme".to_owned(),
            digest: digest.to_owned(),
            step,
            purpose: None,
            at: Timestamp(at),
            by: "operator".to_owned(),
            note: String::new(),
            cause: None,
        }
    }

    fn for_cause(digest: &str, at: i64) -> Activation {
        Activation {
            by: GATEWAY.to_owned(),
            cause: Some("5 failures within 60 s".to_owned()),
            ..change(Step::Activate, digest, at)
        }
    }

    fn state(history: &[Activation]) -> [Option<String>; 3] {
        let s = slots(history).remove("routing/acme").unwrap();
        [s.in_force, s.previous, s.trial].map(|a| a.map(|a| a.digest))
    }

    fn three(a: &str, b: &str, c: &str) -> [Option<String>; 3] {
        [a, b, c].map(|d| Some(d.to_owned()).filter(|d| !d.is_empty()))
    }

    #[test]
    fn a_trial_stands_beside_what_is_in_force_until_it_is_promoted_or_withdrawn() {
        let mut history = vec![change(Step::Shadow, "a", 1)];
        assert_eq!(state(&history), three("", "", "a"));
        history.push(change(Step::Activate, "a", 2));
        assert_eq!(state(&history), three("a", "", ""));
        history.push(change(Step::Canary { permille: 50 }, "b", 3));
        history.push(change(Step::Canary { permille: 500 }, "b", 4));
        assert_eq!(state(&history), three("a", "", "b"));
        let mut withdrawn = history.clone();
        withdrawn.push(change(Step::Withdraw, "b", 5));
        assert_eq!(state(&withdrawn), three("a", "", ""));
        history.push(change(Step::Activate, "b", 5));
        assert_eq!(state(&history), three("b", "a", ""));
        history.push(change(Step::Vacate, "b", 6));
        assert_eq!(state(&history), three("", "", ""));
    }

    #[test]
    fn what_the_gateway_took_out_is_not_fallen_back_to() {
        let history = [
            change(Step::Activate, "a", 1),
            change(Step::Activate, "b", 2),
            for_cause("a", 3),
        ];
        assert_eq!(state(&history), three("a", "", ""));
        assert_eq!(
            roll_back("routing/acme", &history),
            Some((Step::Vacate, "a".to_owned()))
        );
    }

    #[test]
    fn a_roll_back_passes_over_what_the_gateway_took_out_until_somebody_wants_it_again() {
        let slot = "routing/acme";
        let activate = |d: &str| Some((Step::Activate, d.to_owned()));
        // A tenant's first revision, which gave way to the operator's for a cause.
        let vacated = Activation {
            step: Step::Vacate,
            ..for_cause("a", 2)
        };
        let mut history = vec![
            change(Step::Activate, "a", 1),
            vacated,
            change(Step::Activate, "b", 3),
        ];
        let gives_way = Some((Step::Vacate, "b".to_owned()));
        assert_eq!(roll_back(slot, &history), gives_way);
        history.push(change(Step::Activate, "a", 4));
        history.push(change(Step::Activate, "b", 5));
        assert_eq!(roll_back(slot, &history), activate("a"));
    }

    #[test]
    fn a_roll_back_withdraws_then_goes_back_then_gives_way() {
        let activate = |d: &str| Some((Step::Activate, d.to_owned()));
        let mut history = vec![change(Step::Activate, "a", 1)];
        let slot = "routing/acme";
        assert_eq!(
            roll_back(slot, &history),
            Some((Step::Vacate, "a".to_owned()))
        );
        assert_eq!(roll_back("shaping", &history), None);
        history.push(change(Step::Activate, "b", 2));
        assert_eq!(roll_back(slot, &history), activate("a"));
        history.push(change(Step::Shadow, "c", 3));
        assert_eq!(
            roll_back(slot, &history),
            Some((Step::Withdraw, "c".to_owned()))
        );
        history.push(change(Step::Activate, "a", 4));
        assert_eq!(roll_back(slot, &history), activate("b"));
    }

    #[test]
    fn a_message_stays_on_its_side_as_the_share_grows() {
        let ids = (0..20_000i64).map(|n| MessageId::from_i64((n << 12) | 7));
        let mut counts = [0u32; 3];
        for id in ids {
            let sides = [50, 500, 1000].map(|share| in_canary(id, share));
            assert!(!sides[0] || sides[1]);
            assert!(sides[2] && !in_canary(id, 0));
            for (count, side) in counts.iter_mut().zip(sides) {
                *count += u32::from(side);
            }
        }
        assert!((800..1200).contains(&counts[0]), "{counts:?}");
        assert!((9_500..10_500).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn revisions_stay_while_anything_refers_to_them() {
        let upload = |digest: &str, at: i64| Uploaded {
            slot: "routing/acme".to_owned(),
            digest: digest.to_owned(),
            at: Timestamp(at),
            by: "operator".to_owned(),
            note: String::new(),
        };
        let history = [
            change(Step::Activate, "old", 10),
            change(Step::Activate, "logged", 20),
            change(Step::Activate, "before", 100),
            change(Step::Activate, "now", 120),
        ];
        let uploads: Vec<_> = ["old", "logged", "before", "now", "u1", "u2", "u3"]
            .iter()
            .zip(1..)
            .map(|(d, at)| upload(d, at))
            .collect();
        let kept = kept(&history, &uploads, Timestamp(50), 2);
        let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
        assert_eq!(kept, ["before", "logged", "now", "u2", "u3"]);
    }

    #[test]
    fn a_step_is_one_word_in_json() {
        let canary = change(Step::Canary { permille: 50 }, "a", 1);
        let json = serde_json::to_value(&canary).unwrap();
        assert_eq!(
            (&json["step"], &json["permille"]),
            (&"canary".into(), &50.into())
        );
        assert_eq!(serde_json::from_value::<Activation>(json).unwrap(), canary);
    }
}
