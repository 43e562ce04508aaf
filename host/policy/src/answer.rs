//! The host's own checks on what a policy answered: the guest's words are never trusted.

use tidegate_mail::{Enhanced, Reply, TrafficClass};
use tidegate_queue::Directory;
use tidegate_queue::route::{Action, AfterFailure, Managed};

use crate::limits;

/// A guest's text for people: control characters become spaces, cut to `max` bytes.
pub(crate) fn tidy(text: &str, max: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if clean.len() + c.len_utf8() > max {
            break;
        }
        clean.push(c);
    }
    clean
}

/// Refuses what could inject a line or flood a log.
pub(crate) fn check_text(what: &str, text: &str, max: usize) -> Result<(), String> {
    if text.len() > max {
        return Err(format!("{what}: {} bytes; at most {max}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{what}: contains a control character"));
    }
    Ok(())
}

/// The reply of a `defer` (class 4) or `refuse` (class 5).
pub(crate) fn check_reply(
    what: &str,
    class: u16,
    code: u16,
    enhanced: &str,
    text: String,
) -> Result<Reply, String> {
    if code / 100 != class || code == 421 {
        return Err(format!(
            "{what}: reply code {code}; {class}00 to {class}99 is allowed, 421 is not"
        ));
    }
    let enhanced = if enhanced.is_empty() {
        Enhanced::new(class as u8, 0, 0)
    } else {
        match enhanced.parse::<Enhanced>() {
            Ok(e) if u16::from(e.class) == class => e,
            _ => {
                return Err(format!(
                    "{what}: {:?} is not an enhanced status code of class {class}",
                    tidy(enhanced, 32)
                ));
            }
        }
    };
    check_text(what, &text, limits::TEXT)?;
    let text = if text.trim().is_empty() {
        "the sender's routing policy decided so".to_owned()
    } else {
        text
    };
    Ok(Reply::new(code, enhanced, text))
}

/// Who is asking, for the checks that depend on it.
pub(crate) struct Grants<'a> {
    pub tenant: &'a str,
    pub directory: &'a Directory,
    pub class: TrafficClass,
    /// The tenant's server has already been tried.
    pub no_passthrough: bool,
}

impl Grants<'_> {
    /// A managed answer within the tenant's rights; the class is never below the host's.
    pub fn managed(&self, mut managed: Managed) -> Result<Action, String> {
        managed.class = managed.class.max(self.class);
        if let Some(relay) = &managed.relay {
            if !self.directory.grants_relay(self.tenant, relay) {
                return Err(format!("relay {:?} is not granted", tidy(relay, 64)));
            }
            if self.directory.relay(relay).is_none() {
                return Err(format!("relay {:?} does not exist", tidy(relay, 64)));
            }
        }
        if let Some(lane) = &managed.lane {
            if lane.is_empty() {
                return Err("lane: empty".to_owned());
            }
            check_text("lane", lane, limits::LANE_NAME)?;
        }
        if !(-limits::PRIORITY..=limits::PRIORITY).contains(&managed.priority) {
            return Err(format!(
                "priority {}; -{p} to {p} is allowed",
                managed.priority,
                p = limits::PRIORITY
            ));
        }
        Ok(Action::Managed(managed))
    }

    pub fn passthrough(&self, server: String, after: AfterFailure) -> Result<Action, String> {
        if self.no_passthrough {
            return Err("passthrough once more after it failed".to_owned());
        }
        if self.directory.server(self.tenant, &server).is_none() {
            return Err(format!(
                "server {:?} is not registered for the tenant",
                tidy(&server, 64)
            ));
        }
        Ok(Action::Passthrough {
            server,
            after_failure: after,
        })
    }
}

/// Gives each recipient its action: 0 is `otherwise`, then the splits in order.
pub(crate) fn assign(recipients: usize, splits: &[Vec<u32>]) -> Result<Vec<u32>, String> {
    if splits.len() > recipients {
        return Err(format!(
            "{} splits for {recipients} recipients",
            splits.len()
        ));
    }
    let mut of_recipient = vec![0; recipients];
    for (n, split) in splits.iter().enumerate() {
        for &index in split {
            match of_recipient.get_mut(index as usize) {
                None => {
                    return Err(format!("recipient {index} of a message with {recipients}"));
                }
                Some(slot) if *slot != 0 => {
                    return Err(format!("recipient {index} appears twice"));
                }
                Some(slot) => *slot = n as u32 + 1,
            }
        }
    }
    Ok(of_recipient)
}

pub(crate) fn check_tags(tags: &[(String, String)]) -> Result<(), String> {
    if tags.len() > limits::TAGS {
        return Err(format!("{} tags; at most {}", tags.len(), limits::TAGS));
    }
    for (name, value) in tags {
        if name.is_empty() {
            return Err("a tag without a name".to_owned());
        }
        if name.len() + value.len() > limits::TAG {
            return Err(format!(
                "tag {:?}: {} bytes; at most {}",
                tidy(name, 32),
                name.len() + value.len(),
                limits::TAG
            ));
        }
        check_text("tag", name, limits::TAG)?;
        check_text("tag", value, limits::TAG)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_keep_their_class() {
        let ok = check_reply("defer", 4, 451, "4.7.1", "later".into()).unwrap();
        assert_eq!(ok.to_string(), "451 4.7.1 later");
        let none = check_reply("refuse", 5, 550, "", String::new()).unwrap();
        assert_eq!(none.enhanced, Some(Enhanced::new(5, 0, 0)));
        for (class, code, enhanced, text) in [
            (4, 550, "", "x"),
            (4, 421, "", "x"),
            (5, 450, "", "x"),
            (5, 200, "", "x"),
            (5, 65_535, "", "x"),
            (5, 550, "4.7.1", "x"),
            (5, 550, "5.7", "x"),
            (5, 550, "5.7.1\r\n250 ok", "x"),
            (5, 550, "", "x\r\n250 ok"),
            (5, 550, "", "x\u{85}y"),
        ] {
            assert!(
                check_reply("r", class, code, enhanced, text.into()).is_err(),
                "{class} {code} {enhanced:?} {text:?}"
            );
        }
        assert!(check_reply("r", 5, 550, "", "x".repeat(401)).is_err());
    }

    #[test]
    fn every_recipient_once() {
        assert_eq!(assign(3, &[vec![2], vec![0]]).unwrap(), [2, 0, 1]);
        assert!(assign(3, &[vec![3]]).is_err());
        assert!(assign(3, &[vec![u32::MAX]]).is_err());
        assert!(assign(3, &[vec![1, 1]]).is_err());
        assert!(assign(3, &[vec![1], vec![1]]).is_err());
        assert!(assign(1, &[vec![], vec![]]).is_err());
    }

    #[test]
    fn tags_are_bounded() {
        let tag = |n: &str, v: &str| vec![(n.to_owned(), v.to_owned())];
        assert!(check_tags(&tag("campaign", "spring")).is_ok());
        assert!(check_tags(&tag("", "x")).is_err());
        assert!(check_tags(&tag("a", "b\nc")).is_err());
        assert!(check_tags(&tag("a", &"b".repeat(256))).is_err());
        assert!(check_tags(&vec![("a".into(), "b".into()); 17]).is_err());
    }

    #[test]
    fn tidy_cuts_between_characters() {
        assert_eq!(tidy("aé\r\nb", 100), "aé  b");
        assert_eq!(tidy("aé", 2), "a");
    }
}
