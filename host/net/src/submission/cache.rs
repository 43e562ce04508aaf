//! Logins verified a short while ago, so that a client that connects for each message does
//! not cost a password hash each time.
//!
//! Kept is a keyed hash of user and password under a key that lives as long as the process;
//! an entry counts only with the stored hash it was verified against.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::{constant_time, hmac};
use tidegate_mail::Timestamp;

/// Users remembered.
const MAX_ENTRIES: usize = 16_384;

/// Keyed hash of user and password.
pub type Tag = hmac::Tag;

pub struct Cache {
    ttl: Duration,
    entries: HashMap<String, Entry>,
}

struct Entry {
    tag: Tag,
    /// The credential's hash at that time.
    stored: String,
    until: Timestamp,
}

/// Hashes what a client claims. The length keeps `ab` + `c` from being `a` + `bc`.
pub fn tag(key: &hmac::Key, user: &str, password: &[u8]) -> Tag {
    let mut context = hmac::Context::with_key(key);
    context.update(&(user.len() as u64).to_le_bytes());
    context.update(user.as_bytes());
    context.update(password);
    context.sign()
}

impl Cache {
    pub fn new(ttl: Duration) -> Self {
        Cache {
            ttl,
            entries: HashMap::new(),
        }
    }

    /// Whether this user and password were right a short while ago.
    pub fn knows(&self, user: &str, tag: &Tag, stored: &str, now: Timestamp) -> bool {
        self.entries.get(user).is_some_and(|entry| {
            now < entry.until
                && entry.stored == stored
                && constant_time::verify_slices_are_equal(entry.tag.as_ref(), tag.as_ref()).is_ok()
        })
    }

    pub fn put(&mut self, user: &str, tag: Tag, stored: &str, now: Timestamp) {
        if self.ttl.is_zero() {
            return;
        }
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(user) {
            self.entries.retain(|_, entry| now < entry.until);
            if self.entries.len() >= MAX_ENTRIES {
                self.entries.clear();
            }
        }
        self.entries.insert(
            user.to_owned(),
            Entry {
                tag,
                stored: stored.to_owned(),
                until: now.plus(self.ttl),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_was_verified_until_it_changes_or_expires() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        let now = Timestamp::from_secs(1_000_000);
        let mut cache = Cache::new(Duration::from_secs(300));
        let right = tag(&key, "user", b"secret");
        assert!(!cache.knows("user", &right, "hash", now));
        cache.put("user", right, "hash", now);
        let later = |s| now.plus(Duration::from_secs(s));
        assert!(cache.knows("user", &right, "hash", later(299)));
        assert!(!cache.knows("user", &right, "hash", later(300)));
        assert!(!cache.knows("user", &right, "new hash", now));
        assert!(!cache.knows("user", &tag(&key, "user", b"Secret"), "hash", now));
        assert!(!cache.knows("other", &right, "hash", now));
    }

    #[test]
    fn tags_keep_user_and_password_apart() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        assert_ne!(
            tag(&key, "ab", b"c").as_ref(),
            tag(&key, "a", b"bc").as_ref()
        );
    }
}
