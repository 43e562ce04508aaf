//! MTA-STS policies of recipients' domains: announced in the DNS, fetched by HTTPS, kept for
//! as long as the domain says (RFC 8461).
//!
//! Invariants: a policy that was fetched stays in force until its `max_age` is over, whatever
//! becomes of the record or of later fetches, unless a newer one takes its place; of a
//! domain whose policy can't be fetched it is tried at most every five minutes; what is
//! kept is bounded, and the heavy ones give way first, then those fetched longest ago. Knows
//! nothing of SMTP.

mod fetch;
mod saved;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::rr::{RData, RecordType};
use tidegate_mail::Timestamp;
use tidegate_mail::sts::{Mode, Policy, announced};
use tidegate_queue::ports::Clock;

use crate::http::connector;
use crate::resolver::DnsConfig;
use crate::resolver::ask::Dns;
use crate::resolver::records::{Found, fqdn, records};
use crate::smtp::{TlsSetupError, TrustAnchors};

/// How policies are fetched and kept.
#[derive(Clone, Debug)]
pub struct StsConfig {
    /// The port of policy hosts. 443 but for tests.
    pub port: u16,
    /// What their certificates are verified against.
    pub trust_anchors: TrustAnchors,
    /// For a fetch as a whole. The first mail to a domain waits for it.
    pub timeout: Duration,
    /// Octets of policies kept, in all.
    pub memory: usize,
    /// Where policies are kept over a restart: without it, whoever can keep them from being
    /// fetched then has the mail go without them.
    pub file: Option<PathBuf>,
}

impl Default for StsConfig {
    fn default() -> Self {
        StsConfig {
            port: 443,
            trust_anchors: TrustAnchors::default(),
            timeout: Duration::from_secs(20),
            memory: 16 * 1024 * 1024,
            file: None,
        }
    }
}

/// Between two tries to fetch a policy that can't be had (RFC 8461 s. 3.3).
const TRY_AGAIN: Duration = Duration::from_secs(300);

/// A policy is fetched anew at the half of its time, and every day.
const REFRESH: Duration = Duration::from_secs(24 * 3600);

/// Octets beyond which a policy is a heavy one, far more than any that is meant well. Whoever has
/// the gateway fetch many of those pushes out his own and not everybody's.
const HEAVY: usize = 8 * 1024;

struct Kept {
    /// Of the record that announced the policy.
    id: String,
    policy: Option<Arc<Policy>>,
    fetched: Timestamp,
    until: Timestamp,
    /// The last try that failed, if it came after the last success.
    failed: Option<Timestamp>,
    refreshing: bool,
}

impl Kept {
    fn in_force(&self, now: Timestamp) -> Option<&Arc<Policy>> {
        self.policy.as_ref().filter(|_| self.until > now)
    }

    fn weight(&self) -> usize {
        let mx = self.policy.iter().flat_map(|p| &p.mx);
        300 + mx.map(|m| m.len() + 40).sum::<usize>()
    }
}

/// Policies and where they come from.
pub(crate) struct Sts {
    config: StsConfig,
    tls: tokio_rustls::TlsConnector,
    clock: Arc<dyn Clock>,
    kept: Mutex<HashMap<Box<str>, Kept>>,
    /// A task writes the file; there is something new for it.
    saving: AtomicBool,
    changed: AtomicBool,
}

impl Sts {
    pub fn new(config: StsConfig, clock: Arc<dyn Clock>) -> Result<Self, TlsSetupError> {
        let kept = match &config.file {
            Some(file) => saved::read(file, clock.now()),
            None => HashMap::new(),
        };
        Ok(Sts {
            tls: connector(&config.trust_anchors)?,
            config,
            clock,
            kept: Mutex::new(kept),
            saving: AtomicBool::new(false),
            changed: AtomicBool::new(false),
        })
    }

    /// Has the policies written to the file by a task of their own, a second apart.
    fn save(self: &Arc<Self>) {
        let Some(file) = self.config.file.clone() else {
            return;
        };
        self.changed.store(true, Ordering::SeqCst);
        if self.saving.swap(true, Ordering::SeqCst) {
            return;
        }
        let me = self.clone();
        tokio::spawn(async move {
            loop {
                while me.changed.swap(false, Ordering::SeqCst) {
                    let bytes = saved::render(&me.kept());
                    let file = file.clone();
                    let writing = move || saved::write(&file, &bytes);
                    match tokio::task::spawn_blocking(writing).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "MTA-STS policies could not be written");
                        }
                        Err(error) => tracing::error!(%error, "writing ended abnormally"),
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                me.saving.store(false, Ordering::SeqCst);
                // What came between the last look and the end of the task has no other.
                if !me.changed.load(Ordering::SeqCst) || me.saving.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<Box<str>, Kept>> {
        // Nothing panics while it is held, and each change is complete in itself.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The policy in force for a domain, fetched if need be; one of mode `none` is none.
    pub async fn policy(
        self: &Arc<Self>,
        dns: &Dns,
        config: &DnsConfig,
        domain: &str,
    ) -> Option<Arc<Policy>> {
        let id = self.announcement(dns, domain).await;
        let now = self.clock.now();
        let step = self.step(domain, id.as_deref(), now);
        let policy = match step {
            Step::Use(policy) => policy,
            Step::Refresh(policy, id) => {
                let (me, dns, config) = (self.clone(), dns.clone(), config.clone());
                let domain: Box<str> = domain.into();
                tokio::spawn(async move { me.fetch(&dns, &config, &domain, id).await });
                policy
            }
            Step::Fetch(id) => self.fetch(dns, config, domain, id).await,
        };
        policy.filter(|p| p.mode != Mode::None)
    }

    /// The id of the domain's record. A query that fails is no reason to forget a policy, so it
    /// counts as no record.
    async fn announcement(&self, dns: &Dns, domain: &str) -> Option<String> {
        let name = fqdn(&format!("_mta-sts.{domain}"))?;
        let Found::Records(lookup, _) = records(dns, &name, RecordType::TXT).await else {
            return None;
        };
        let texts: Vec<String> = lookup
            .answers()
            .iter()
            .filter_map(|r| match &r.data {
                RData::TXT(txt) => Some(txt.txt_data.concat()),
                _ => None,
            })
            .filter_map(|bytes| String::from_utf8(bytes).ok())
            .collect();
        announced(texts.iter().map(String::as_str)).map(str::to_owned)
    }

    fn step(&self, domain: &str, id: Option<&str>, now: Timestamp) -> Step {
        let mut kept = self.kept();
        let Some(known) = kept.get_mut(domain) else {
            return match id {
                Some(id) => Step::Fetch(id.to_owned()),
                None => Step::Use(None),
            };
        };
        let policy = known.in_force(now).cloned();
        let Some(id) = id else {
            return Step::Use(policy);
        };
        let tired = known.failed.is_some_and(|t| now < t.plus(TRY_AGAIN));
        if tired || known.refreshing {
            return Step::Use(policy);
        }
        match policy {
            Some(policy) if known.id == id => {
                let half = known.until.since(known.fetched) / 2;
                if now < known.fetched.plus(half.min(REFRESH)) {
                    return Step::Use(Some(policy));
                }
                known.refreshing = true;
                Step::Refresh(Some(policy), id.to_owned())
            }
            _ => Step::Fetch(id.to_owned()),
        }
    }

    /// Fetches the policy; what is in force afterwards.
    async fn fetch(
        self: &Arc<Self>,
        dns: &Dns,
        config: &DnsConfig,
        domain: &str,
        id: String,
    ) -> Option<Arc<Policy>> {
        let fetched = fetch::fetch(self, dns, config, domain).await;
        let now = self.clock.now();
        let mut kept = self.kept();
        match fetched {
            Ok(policy) => {
                tracing::info!(domain, mode = ?policy.mode, "MTA-STS policy fetched");
                let policy = Arc::new(policy);
                let new = Kept {
                    id,
                    until: now.plus(policy.max_age),
                    policy: Some(policy.clone()),
                    fetched: now,
                    failed: None,
                    refreshing: false,
                };
                self.make_room(&mut kept, new.weight(), now);
                kept.insert(domain.into(), new);
                drop(kept);
                self.save();
                Some(policy)
            }
            Err(reason) => {
                tracing::warn!(
                    domain,
                    reason,
                    "the domain's MTA-STS policy can't be fetched"
                );
                if !kept.contains_key(domain) {
                    self.make_room(&mut kept, 300, now);
                }
                let known = kept.entry(domain.into()).or_insert_with(|| Kept {
                    id: String::new(),
                    policy: None,
                    fetched: now,
                    until: now,
                    failed: None,
                    refreshing: false,
                });
                known.failed = Some(now);
                known.refreshing = false;
                known.in_force(now).cloned()
            }
        }
    }

    fn make_room(&self, kept: &mut HashMap<Box<str>, Kept>, more: usize, now: Timestamp) {
        let held = |kept: &HashMap<Box<str>, Kept>| kept.values().map(Kept::weight).sum::<usize>();
        if held(kept) + more <= self.config.memory {
            return;
        }
        kept.retain(|_, k| k.in_force(now).is_some());
        while !kept.is_empty() && held(kept) + more > self.config.memory {
            let first = kept
                .iter()
                .min_by_key(|(_, k)| (k.weight() <= HEAVY, k.fetched));
            if let Some(domain) = first.map(|(domain, _)| domain.clone()) {
                kept.remove(&domain);
            }
        }
    }
}

enum Step {
    Use(Option<Arc<Policy>>),
    /// Use it, and fetch it anew meanwhile.
    Refresh(Option<Arc<Policy>>, String),
    Fetch(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::OsClock;

    fn sts(memory: usize) -> Sts {
        let config = StsConfig {
            memory,
            ..StsConfig::default()
        };
        Sts::new(config, Arc::new(OsClock)).unwrap()
    }

    fn keep(sts: &Sts, domain: &str, fetched: Timestamp, max_age: u64) {
        keep_of(sts, domain, fetched, max_age, &["mx.example"]);
    }

    fn keep_of(sts: &Sts, domain: &str, fetched: Timestamp, max_age: u64, mx: &[&str]) {
        let max_age = Duration::from_secs(max_age);
        let new = Kept {
            id: "1".to_owned(),
            policy: Some(Arc::new(Policy {
                mode: Mode::Enforce,
                max_age,
                mx: mx.iter().map(|host| (*host).to_owned()).collect(),
            })),
            fetched,
            until: fetched.plus(max_age),
            failed: None,
            refreshing: false,
        };
        let mut kept = sts.kept();
        sts.make_room(&mut kept, new.weight(), fetched);
        kept.insert(domain.into(), new);
    }

    fn said(step: Step) -> &'static str {
        match step {
            Step::Use(None) => "none",
            Step::Use(Some(_)) => "use",
            Step::Refresh(Some(_), _) => "refresh",
            Step::Refresh(None, _) => "refresh nothing",
            Step::Fetch(_) => "fetch",
        }
    }

    #[test]
    fn when_a_policy_is_fetched() {
        let sts = sts(1 << 20);
        let start = OsClock.now();
        let at = |secs| start.plus(Duration::from_secs(secs));
        let step = |id, secs| said(sts.step("d.example", id, at(secs)));
        assert_eq!(step(None, 0), "none");
        assert_eq!(step(Some("1"), 0), "fetch");
        keep(&sts, "d.example", start, 1000);
        assert_eq!(step(Some("1"), 499), "use");
        // Ahead of its end, once, and not where nothing announces it any more.
        assert_eq!(step(None, 600), "use");
        assert_eq!(step(Some("1"), 600), "refresh");
        assert_eq!(step(Some("1"), 601), "use");
        sts.kept().get_mut("d.example").unwrap().refreshing = false;
        // A new id is fetched at once; a failed try is not repeated for a while, and the old
        // policy stays in force meanwhile.
        assert_eq!(step(Some("2"), 602), "fetch");
        sts.kept().get_mut("d.example").unwrap().failed = Some(at(602));
        assert_eq!(step(Some("2"), 901), "use");
        assert_eq!(step(Some("2"), 902), "fetch");
        assert_eq!(step(None, 1000), "none");
        // Of long-lived ones every day.
        keep(&sts, "d.example", start, 31_557_600);
        assert_eq!(step(Some("1"), 24 * 3600 - 1), "use");
        assert_eq!(step(Some("1"), 24 * 3600), "refresh");
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_give_way() {
        let sts = sts(2000);
        let start = OsClock.now();
        for n in 0..20 {
            let at = start.plus(Duration::from_secs(n));
            keep(&sts, &format!("d{n}.example"), at, 1000);
        }
        let kept = sts.kept();
        assert!(kept.values().map(Kept::weight).sum::<usize>() <= 2000);
        assert!(kept.contains_key("d19.example") && !kept.contains_key("d0.example"));
        assert!(kept.len() > 3, "{}", kept.len());
    }

    #[test]
    fn heavy_policies_push_out_no_others() {
        let sts = sts(100_000);
        let start = OsClock.now();
        for n in 0..200 {
            keep(&sts, &format!("d{n}.example"), start, 1000);
        }
        let many = vec!["a-host-of-somebody-s.example"; 300];
        for n in 0..100 {
            let at = start.plus(Duration::from_secs(n));
            keep_of(&sts, &format!("h{n}.example"), at, 1000, &many);
        }
        let kept = sts.kept();
        let light = kept.values().filter(|k| k.weight() <= HEAVY).count();
        assert_eq!(light, 200);
        assert!(kept.contains_key("h99.example") && !kept.contains_key("h0.example"));
        assert!(kept.values().map(Kept::weight).sum::<usize>() <= 100_000);
    }
}
