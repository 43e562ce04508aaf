//! The routing policy that a gateway starts with: an ordered list of rules.
//!
//! ```json
//! {
//!   "default": { "managed": {} },
//!   "rules": [
//!     { "sender_domain": ["staff.example"], "action": { "passthrough": { "server": "office", "after_failure": "managed" } } },
//!     { "header": { "name": "X-Campaign" }, "action": { "managed": { "class": "bulk", "lane": "$header" } } },
//!     { "recipient_domain": [".example.org"], "action": { "managed": { "relay": "eu" } } },
//!     { "class": "bulk", "action": { "managed": { "relay": "bulk", "expire_after": 86400, "notify": 0 } } },
//!     { "recipient_domain": ["blocked.example"], "action": { "refuse": { "text": "not here" } } }
//!   ]
//! }
//! ```
//!
//! The first rule decides whose conditions all hold; a rule without conditions always does.
//! Conditions on the message (`sender_domain`, `header`, `class`, `tenant`) hold for all recipients,
//! `recipient_domain` for those it names. A domain that begins with a dot means all below it. An empty
//! configuration sends everything by the tenant's default relay.
//!
//! All rules that name recipient domains are looked up in one sorted table, so 10,000 of
//! them cost a decision no more than a few comparisons.

use serde::Deserialize;
use tidegate_guest::routing::*;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Config {
    default: Option<ActionConfig>,
    rules: Vec<RuleConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleConfig {
    #[serde(default)]
    sender_domain: Vec<String>,
    #[serde(default)]
    recipient_domain: Vec<String>,
    #[serde(default)]
    header: Option<HeaderConfig>,
    #[serde(default)]
    class: Option<ClassConfig>,
    #[serde(default)]
    tenant: Vec<String>,
    action: ActionConfig,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderConfig {
    name: String,
    /// The whole value, without case; left out: the field only has to be there.
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    prefix: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum ClassConfig {
    Transactional,
    Bulk,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ActionConfig {
    Managed(ManagedConfig),
    Passthrough(PassthroughConfig),
    Refuse(ReplyConfig),
    Defer(ReplyConfig),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ManagedConfig {
    relay: Option<String>,
    /// `$header` is the value of the field that the rule's condition matched.
    lane: Option<String>,
    class: Option<ClassConfig>,
    priority: i8,
    /// Seconds.
    expire_after: Option<u32>,
    /// Seconds until a delay notice; 0: never.
    notify: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PassthroughConfig {
    server: String,
    #[serde(default)]
    after_failure: AfterConfig,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum AfterConfig {
    #[default]
    GiveUp,
    GiveUpAndNotify,
    Managed,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ReplyConfig {
    code: Option<u16>,
    enhanced: Option<String>,
    text: Option<String>,
}

struct Rule {
    /// All are lower case; empty: any.
    senders: Vec<String>,
    tenants: Vec<String>,
    header: Option<HeaderRule>,
    class: Option<TrafficClass>,
    action: ActionConfig,
}

struct HeaderRule {
    field: u32,
    value: Option<String>,
    prefix: Option<String>,
}

struct Router {
    default: ActionConfig,
    rules: Vec<Rule>,
    /// Rules that are not bound to recipient domains, in order.
    general: Vec<u32>,
    /// Domain (or `.suffix`) and rule, sorted; one domain may have several rules.
    domains: Vec<(Box<str>, u32)>,
    /// Some entry of `domains` is a suffix, so parents have to be looked up.
    has_suffixes: bool,
}

fn class(config: ClassConfig) -> TrafficClass {
    match config {
        ClassConfig::Transactional => TrafficClass::Transactional,
        ClassConfig::Bulk => TrafficClass::Bulk,
    }
}

fn check_domain(at: &str, domain: &str) -> Result<String, String> {
    let name = domain.strip_prefix('.').unwrap_or(domain);
    if name.is_empty() || name.contains(['@', ' ', '*']) {
        return Err(format!(
            "{at}: {domain:?} is not a domain; write \"example.org\", or \".example.org\" for all below it"
        ));
    }
    Ok(domain.to_ascii_lowercase())
}

fn check_reply(at: &str, reply: &ReplyConfig, class: u16) -> Result<(), String> {
    if let Some(code) = reply.code
        && code / 100 != class
    {
        return Err(format!("{at}.code: {code} is not a {class}xx reply code"));
    }
    if let Some(enhanced) = &reply.enhanced
        && !enhanced.starts_with(&format!("{class}."))
    {
        return Err(format!(
            "{at}.enhanced: {enhanced:?} does not begin with \"{class}.\""
        ));
    }
    if let Some(text) = &reply.text
        && (text.len() > 400 || text.chars().any(char::is_control))
    {
        return Err(format!(
            "{at}.text: at most 400 bytes without control characters"
        ));
    }
    Ok(())
}

fn check_action(at: &str, action: &ActionConfig, has_header: bool) -> Result<(), String> {
    match action {
        ActionConfig::Managed(m) => {
            if !(-10..=10).contains(&m.priority) {
                return Err(format!(
                    "{at}.managed.priority: {} is not within -10 to 10",
                    m.priority
                ));
            }
            if m.lane.as_deref() == Some("$header") && !has_header {
                return Err(format!(
                    "{at}.managed.lane: \"$header\" needs a \"header\" condition"
                ));
            }
            if m.lane
                .as_ref()
                .is_some_and(|l| l.is_empty() || l.len() > 64)
            {
                return Err(format!("{at}.managed.lane: 1 to 64 bytes"));
            }
            Ok(())
        }
        ActionConfig::Passthrough(p) if p.server.is_empty() => Err(format!(
            "{at}.passthrough.server: name a server registered for the tenant"
        )),
        ActionConfig::Passthrough(_) => Ok(()),
        ActionConfig::Refuse(r) => check_reply(&format!("{at}.refuse"), r, 5),
        ActionConfig::Defer(r) => check_reply(&format!("{at}.defer"), r, 4),
    }
}

impl Policy for Router {
    fn init(config: &str) -> Result<(Self, Descriptor), String> {
        let config: Config = if config.trim().is_empty() {
            Config::default()
        } else {
            serde_json::from_str(config).map_err(|e| format!("configuration: {e}"))?
        };
        let default = config
            .default
            .unwrap_or(ActionConfig::Managed(ManagedConfig::default()));
        check_action("default", &default, false)?;
        let mut headers: Vec<String> = Vec::new();
        let mut rules = Vec::with_capacity(config.rules.len());
        let mut general = Vec::new();
        let mut domains = Vec::new();
        for (n, rule) in config.rules.into_iter().enumerate() {
            let at = format!("rules[{n}]");
            let header = match rule.header {
                None => None,
                Some(h) => {
                    let name = h.name.to_ascii_lowercase();
                    if name.is_empty() || name.contains([':', ' ']) {
                        return Err(format!("{at}.header.name: {name:?} is not a field name"));
                    }
                    let field = headers.iter().position(|n| *n == name).unwrap_or_else(|| {
                        headers.push(name);
                        headers.len() - 1
                    });
                    Some(HeaderRule {
                        field: field as u32,
                        value: h.value,
                        prefix: h.prefix,
                    })
                }
            };
            check_action(&format!("{at}.action"), &rule.action, header.is_some())?;
            if rule.recipient_domain.is_empty() {
                general.push(n as u32);
            }
            for domain in &rule.recipient_domain {
                let domain = check_domain(&format!("{at}.recipient_domain"), domain)?;
                domains.push((domain.into_boxed_str(), n as u32));
            }
            let mut senders = Vec::with_capacity(rule.sender_domain.len());
            for domain in &rule.sender_domain {
                senders.push(check_domain(&format!("{at}.sender_domain"), domain)?);
            }
            senders.sort_unstable();
            rules.push(Rule {
                senders,
                tenants: rule.tenant,
                header,
                class: rule.class.map(class),
                action: rule.action,
            });
        }
        if headers.len() > 32 {
            return Err(format!(
                "rules: {} different header fields; at most 32",
                headers.len()
            ));
        }
        domains.sort_unstable();
        let reads_tenant = rules.iter().any(|r| !r.tenants.is_empty());
        let descriptor = Descriptor::new("routing-default", env!("CARGO_PKG_VERSION"))
            .headers(headers)
            .facts(reads_tenant.then_some("tenant"));
        let has_suffixes = domains.iter().any(|(d, _)| d.starts_with('.'));
        Ok((
            Router {
                default,
                rules,
                general,
                domains,
                has_suffixes,
            },
            descriptor,
        ))
    }

    fn decide(&self, why: Occasion, message: Message) -> Result<Decision, PolicyError> {
        let retried = matches!(why, Occasion::PassthroughFailed(_));
        let facts = Known {
            sender: message.sender_domain().to_ascii_lowercase(),
            tenant: message.fact("tenant"),
            message: &message,
        };
        // What decides where no recipient rule comes before it.
        let general = self
            .general
            .iter()
            .copied()
            .find(|&n| facts.holds(&self.rules[n as usize]));
        // Rule and recipient, then brought together by rule.
        let mut bound: Vec<(u32, u32)> = Vec::new();
        if !self.domains.is_empty() {
            let mut last: Option<(&str, Option<u32>)> = None;
            for (index, recipient) in message.recipients.iter().enumerate() {
                let domain = recipient.domain();
                let rule = match last {
                    Some((seen, rule)) if seen == domain => rule,
                    _ => self.rule_of(domain, &facts, general),
                };
                last = Some((domain, rule));
                if let Some(rule) = rule {
                    bound.push((rule, index as u32));
                }
            }
            bound.sort_unstable();
        }
        let otherwise = match general {
            Some(n) => facts.action(
                &self.rules[n as usize].action,
                Some(&self.rules[n as usize]),
                retried,
            ),
            None => facts.action(&self.default, None, retried),
        };
        Ok(Decision {
            otherwise,
            splits: bound
                .chunk_by(|a, b| a.0 == b.0)
                .map(|group| {
                    let rule = &self.rules[group[0].0 as usize];
                    Split {
                        recipients: group.iter().map(|(_, index)| *index).collect(),
                        action: facts.action(&rule.action, Some(rule), retried),
                    }
                })
                .collect(),
            tags: Vec::new(),
        })
    }
}

impl Router {
    /// The first rule bound to that domain whose other conditions hold and that comes
    /// before the general one.
    fn rule_of(&self, domain: &str, facts: &Known, general: Option<u32>) -> Option<u32> {
        let mut best = self.first(domain, facts, general);
        if self.has_suffixes {
            let mut rest = domain;
            while let Some(dot) = rest.find('.') {
                let suffix = &rest[dot..];
                best = self.first(suffix, facts, best.or(general)).or(best);
                rest = &rest[dot + 1..];
            }
        }
        best
    }

    fn first(&self, domain: &str, facts: &Known, before: Option<u32>) -> Option<u32> {
        let start = self.domains.partition_point(|(d, _)| **d < *domain);
        self.domains[start..]
            .iter()
            .take_while(|(d, _)| **d == *domain)
            .map(|(_, n)| *n)
            .take_while(|n| before.is_none_or(|b| *n < b))
            .find(|n| facts.holds(&self.rules[*n as usize]))
    }
}

/// What the rules' conditions are held against.
struct Known<'a> {
    sender: String,
    tenant: Option<&'a str>,
    message: &'a Message,
}

impl Known<'_> {
    /// The conditions on the message.
    fn holds(&self, rule: &Rule) -> bool {
        rule.class.is_none_or(|c| c == self.message.class)
            && (rule.tenants.is_empty()
                || self
                    .tenant
                    .is_some_and(|t| rule.tenants.iter().any(|r| r == t)))
            && (rule.senders.is_empty() || self.has_sender_in(&rule.senders))
            && rule.header.as_ref().is_none_or(|h| self.field(h).is_some())
    }

    fn has_sender_in(&self, senders: &[String]) -> bool {
        let has = |name: &str| senders.binary_search_by(|s| s.as_str().cmp(name)).is_ok();
        has(&self.sender)
            || self
                .sender
                .match_indices('.')
                .any(|(at, _)| has(&self.sender[at..]))
    }

    /// The value of the first field that the condition matches.
    fn field(&self, rule: &HeaderRule) -> Option<&str> {
        self.message
            .headers
            .iter()
            .filter(|h| h.field == rule.field)
            .map(|h| h.value.trim())
            .find(|value| {
                rule.value
                    .as_ref()
                    .is_none_or(|v| v.eq_ignore_ascii_case(value))
                    && rule.prefix.as_ref().is_none_or(|p| {
                        value
                            .get(..p.len())
                            .is_some_and(|start| start.eq_ignore_ascii_case(p))
                    })
            })
    }

    fn action(&self, action: &ActionConfig, rule: Option<&Rule>, retried: bool) -> Action {
        match action {
            ActionConfig::Managed(m) => Action::ManagedRelay(Managed {
                class: m.class.map_or(self.message.class, class),
                relay: m.relay.clone(),
                lane: match m.lane.as_deref() {
                    Some("$header") => rule
                        .and_then(|r| r.header.as_ref())
                        .and_then(|h| self.field(h))
                        .and_then(lane_name),
                    lane => lane.map(str::to_owned),
                },
                priority: m.priority,
                not_before: None,
                expire_after: m.expire_after,
                notify_delay_after: m.notify,
            }),
            // The tenant's server was tried; what is left is the managed relay.
            ActionConfig::Passthrough(_) if retried => Action::managed(),
            ActionConfig::Passthrough(p) => Action::passthrough(
                &p.server,
                match p.after_failure {
                    AfterConfig::GiveUp => AfterFailure::GiveUp,
                    AfterConfig::GiveUpAndNotify => AfterFailure::GiveUpAndNotify,
                    AfterConfig::Managed => AfterFailure::ManagedRelay,
                },
            ),
            ActionConfig::Refuse(r) => Action::refuse(
                r.code.unwrap_or(550),
                r.enhanced.as_deref().unwrap_or("5.7.1"),
                r.text
                    .as_deref()
                    .unwrap_or("refused by the sender's routing policy"),
            ),
            ActionConfig::Defer(r) => Action::defer(
                r.code.unwrap_or(451),
                r.enhanced.as_deref().unwrap_or("4.7.1"),
                r.text
                    .as_deref()
                    .unwrap_or("deferred by the sender's routing policy"),
            ),
        }
    }
}

/// A header value as a lane: without control characters, cut to 64 bytes.
fn lane_name(value: &str) -> Option<String> {
    let mut lane = String::new();
    for c in value.chars().filter(|c| !c.is_control()) {
        if lane.len() + c.len_utf8() > 64 {
            break;
        }
        lane.push(c);
    }
    (!lane.is_empty()).then_some(lane)
}

tidegate_guest::routing_policy!(Router);
