//! What became of every mail: who got it, how often, who was told, and whether the kills explain
//! what came twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;
use tidegate_tests::gateway::Gateway;
use tidegate_tests::sink::{Delivered, Destination};

use super::Kill;
use super::load::{Fate, Sent};

/// The figures of the summary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Mails whose 250 was read.
    pub accepted: u64,
    /// Of them.
    pub recipients: u64,
    /// Recipients of accepted mail that have it.
    pub delivered: u64,
    /// Notices made.
    pub notices: u64,
    /// Deliveries of mail or notices beyond the first.
    pub duplicates: u64,
    /// Of the duplicates, those that the log marks as possible.
    pub marked: u64,
    /// Recipients of accepted mail without the mail or the notice that is due to them.
    pub lost: u64,
    /// Notices beyond the first on one mail and occasion.
    pub doubled_notices: u64,
    /// Mails that arrived though their 250 was not read: the reply was cut off.
    pub unanswered: u64,
    /// The longest time before a kill of a delivery that the kill kept from being recorded.
    pub longest_unrecorded: Duration,
}

/// A destination takes note of a message this much later than it has read it, at the most: what
/// was on its way when the sender died is noted after the kill.
const NOTED_WITHIN: Duration = Duration::from_millis(250);

/// The mail and the recipient of a delivery.
type Arrival = (String, String);

/// A notice: the mail it is about, and what it reports.
type Occasion = (String, &'static str);

/// What the destinations have.
#[derive(Default)]
pub struct Account {
    /// By subject.
    sent: BTreeMap<String, Fact>,
    arrivals: HashMap<Arrival, Vec<Instant>>,
    /// By the notices' own Message-IDs.
    notices: HashMap<Occasion, BTreeMap<String, Vec<Instant>>>,
    strays: Vec<String>,
}

struct Fact {
    id: String,
    recipients: Vec<(String, Fate)>,
}

impl Account {
    pub fn take(sent: &[Sent], destinations: &[Destination], inbox: &Destination) -> Account {
        let mut account = Account::default();
        for sent in sent {
            let fact = Fact {
                id: sent.id.clone(),
                recipients: sent.recipients.clone(),
            };
            account.sent.insert(sent.subject.clone(), fact);
        }
        for mail in destinations.iter().flat_map(Destination::mail) {
            let subject = mail.field("Subject").unwrap_or_default();
            for to in &mail.to {
                account
                    .arrivals
                    .entry((subject.clone(), to.clone()))
                    .or_default()
                    .push(mail.at);
            }
        }
        for mail in inbox.mail() {
            account.notice(&mail);
        }
        for times in account.arrivals.values_mut() {
            times.sort_unstable();
        }
        account
    }

    fn notice(&mut self, mail: &Delivered) {
        let text = mail.text();
        let action = ["failed", "relayed"]
            .into_iter()
            .find(|action| text.contains(&format!("\r\nAction: {action}\r\n")));
        let original = mail.field("In-Reply-To").and_then(|id| {
            let id = id.strip_prefix('<')?.strip_suffix("@acme.test>")?;
            Some(id.to_owned())
        });
        match (original, action, mail.from.is_empty()) {
            (Some(original), Some(action), true) => {
                let id = mail.field("Message-ID").unwrap_or_default();
                let by_id = self.notices.entry((original, action)).or_default();
                by_id.entry(id).or_default().push(mail.at);
            }
            _ => self
                .strays
                .push(format!("not a notice, in the inbox: {text}")),
        }
    }

    /// What is due to accepted mail and is not there.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (subject, fact) in &self.sent {
            for (address, fate) in &fact.recipients {
                let arrived = self
                    .arrivals
                    .contains_key(&(subject.clone(), address.clone()));
                let notified = occasion(*fate)
                    .is_none_or(|action| self.notices.contains_key(&(subject.clone(), action)));
                if (*fate != Fate::Refused && !arrived) || !notified {
                    missing.push(format!(
                        "LOST: {} ({subject}) to {address}, {fate:?}",
                        fact.id
                    ));
                }
            }
        }
        missing
    }

    /// The figures, and everything that must not be.
    pub fn judge(
        &self,
        kills: &[Kill],
        gateway: &Gateway,
    ) -> anyhow::Result<(Counts, Vec<String>)> {
        let mut faults = self.missing();
        faults.extend(self.strays.iter().cloned());
        let mut counts = Counts {
            accepted: self.sent.len() as u64,
            lost: faults.len() as u64 - self.strays.len() as u64,
            ..Counts::default()
        };
        let mut unanswered = BTreeSet::new();
        let mut logs = HashMap::new();
        for ((subject, address), times) in &self.arrivals {
            let fact = self.sent.get(subject);
            match fact {
                Some(_) => counts.delivered += 1,
                None => _ = unanswered.insert(subject),
            }
            if times.len() == 1 {
                continue;
            }
            counts.duplicates += times.len() as u64 - 1;
            let what = format!("{subject} to {address}, {} times", times.len());
            let Some((last_kill, unrecorded)) = explained(times, kills) else {
                faults.push(format!("{what}: twice without a kill between"));
                continue;
            };
            counts.longest_unrecorded = counts.longest_unrecorded.max(unrecorded);
            if !logs.contains_key(subject) {
                let log = match fact {
                    Some(fact) => gateway.log(&fact.id),
                    // The client knows no queue id of mail whose 250 was cut off.
                    None => by_message_id(gateway, subject),
                };
                logs.insert(subject.clone(), log.with_context(|| what.clone())?);
            }
            match recorded(&logs[subject], address, last_kill) {
                Ok(()) => counts.marked += times.len() as u64 - 1,
                Err(wrong) => faults.push(format!("{what}: {wrong}: {}", logs[subject])),
            }
        }
        counts.unanswered = unanswered.len() as u64;
        for fact in self.sent.values() {
            counts.recipients += fact.recipients.len() as u64;
        }
        for ((subject, action), by_id) in &self.notices {
            counts.notices += by_id.len() as u64;
            counts.doubled_notices += by_id.len() as u64 - 1;
            if by_id.len() > 1 {
                faults.push(format!("{} {action} notices on {subject}", by_id.len()));
            }
            let due = self.sent.get(subject).is_none_or(|fact| {
                fact.recipients
                    .iter()
                    .any(|(_, fate)| occasion(*fate) == Some(*action))
            });
            if !due {
                faults.push(format!(
                    "a {action} notice on {subject}, which has none due"
                ));
            }
            for (id, times) in by_id {
                if times.len() == 1 {
                    continue;
                }
                counts.duplicates += times.len() as u64 - 1;
                let what = format!("notice {id}, {} times", times.len());
                let Some((last_kill, _)) = explained(times, kills) else {
                    faults.push(format!("{what}: twice without a kill between"));
                    continue;
                };
                let queue_id = id.trim_matches(['<', '>']).split('@').next();
                let log = gateway
                    .log(queue_id.unwrap_or_default())
                    .with_context(|| what.clone())?;
                match recorded(&log, super::load::SENDER, last_kill) {
                    Ok(()) => counts.marked += times.len() as u64 - 1,
                    Err(wrong) => faults.push(format!("{what}: {wrong}: {log}")),
                }
            }
        }
        faults.extend(self.sent.iter().filter_map(|(subject, fact)| {
            let refused = fact.recipients.iter().find(|(_, f)| *f == Fate::Refused)?;
            self.arrivals
                .contains_key(&(subject.clone(), refused.0.clone()))
                .then(|| format!("{subject} arrived where it was refused"))
        }));
        Ok((counts, faults))
    }
}

/// What a recipient of this fate is to be reported as.
fn occasion(fate: Fate) -> Option<&'static str> {
    match fate {
        Fate::Delivered => None,
        Fate::Refused => Some("failed"),
        Fate::Relayed => Some("relayed"),
    }
}

/// Whether a kill came between any two deliveries in a row: the last such kill, and the longest time
/// that a delivery was before its kill.
fn explained<'k>(times: &[Instant], kills: &'k [Kill]) -> Option<(&'k Kill, Duration)> {
    let mut last = None;
    let mut longest = Duration::ZERO;
    for pair in times.windows(2) {
        let kill = kills.iter().find(|kill| {
            pair[0] <= kill.after + NOTED_WITHIN && kill.before <= pair[1] && pair[0] != pair[1]
        })?;
        longest = longest.max(kill.before.saturating_duration_since(pair[0]));
        last = Some(kill);
    }
    Some((last?, longest))
}

fn by_message_id(gateway: &Gateway, subject: &str) -> anyhow::Result<Value> {
    let found = gateway.json(&["log", "--message-id", &format!("<{subject}@acme.test>")])?;
    found
        .get(0)
        .cloned()
        .with_context(|| format!("the log knows no {subject}: {found}"))
}

/// Checks that the log has one delivery to this recipient, recorded after the kill: so the
/// delivery before it was not yet on record when the process died; and that the log itself says
/// that an attempt may have been cut off.
fn recorded(entry: &Value, address: &str, kill: &Kill) -> Result<(), String> {
    let index = entry["recipients"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|pair| pair[1] == address)
        .map(|pair| &pair[0])
        .ok_or("the log does not know the recipient")?;
    let events = || {
        let all = entry["events"].as_array().into_iter().flatten();
        all.filter(|event| event["recipient"].is_null() || event["recipient"] == *index)
    };
    let delivered: Vec<i64> = events()
        .filter(|event| event["kind"] == "delivered")
        .filter_map(|event| event["at"].as_i64())
        .collect();
    let [at] = delivered[..] else {
        return Err(format!("{} deliveries on record", delivered.len()));
    };
    if at < kill.wall_millis {
        return Err(format!(
            "delivered again though recorded {} ms before the kill",
            kill.wall_millis - at
        ));
    }
    let marks = |event: &Value| event["kind"] == "recovered" || event["verdict"] == "uncertain";
    match events().any(marks) {
        true => Ok(()),
        false => Err("the log does not say that it may be".to_owned()),
    }
}
