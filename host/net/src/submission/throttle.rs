//! Failed logins, counted per address and per user name, so that passwords can't be guessed.
//!
//! An attempt is charged before it is checked and given back if it was right, so that many at
//! the same time do not get past the limit together. Names that do not exist are counted
//! like those that do, or the difference would tell which is which.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use tidegate_mail::Timestamp;

use super::slots::site_of;

/// Entries kept of each kind. At the limit, those whose time is over go first.
const MAX_ENTRIES: usize = 65_536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    Address { left: Duration },
    User { left: Duration },
}

#[derive(Debug)]
pub struct Throttle {
    window: Duration,
    per_address: u32,
    per_user: u32,
    addresses: HashMap<IpAddr, Failures>,
    users: HashMap<String, Failures>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    since: Timestamp,
    count: u32,
}

impl Throttle {
    /// That many failures within `window`, then none until it is over.
    pub fn new(per_address: u32, per_user: u32, window: Duration) -> Self {
        Throttle {
            window,
            per_address,
            per_user,
            addresses: HashMap::new(),
            users: HashMap::new(),
        }
    }

    /// Counts an attempt, unless there have been too many.
    pub fn charge(&mut self, ip: IpAddr, user: &str, now: Timestamp) -> Result<(), Blocked> {
        let site = site_of(ip);
        if let Some(left) = blocked(&self.addresses, &site, self.per_address, self.window, now) {
            return Err(Blocked::Address { left });
        }
        if let Some(left) = blocked(&self.users, user, self.per_user, self.window, now) {
            return Err(Blocked::User { left });
        }
        count(&mut self.addresses, site, self.window, now);
        count(&mut self.users, user.to_owned(), self.window, now);
        Ok(())
    }

    /// The attempt was right.
    pub fn refund(&mut self, ip: IpAddr, user: &str) {
        if let Some(failures) = self.addresses.get_mut(&site_of(ip)) {
            failures.count = failures.count.saturating_sub(1);
        }
        self.users.remove(user);
    }
}

fn blocked<K, Q>(
    map: &HashMap<K, Failures>,
    key: &Q,
    max: u32,
    window: Duration,
    now: Timestamp,
) -> Option<Duration>
where
    K: Hash + Eq + std::borrow::Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    let failures = map.get(key)?;
    let end = failures.since.plus(window);
    (failures.count >= max && now < end).then(|| end.since(now))
}

fn count<K: Hash + Eq + Clone>(
    map: &mut HashMap<K, Failures>,
    key: K,
    window: Duration,
    now: Timestamp,
) {
    if map.len() >= MAX_ENTRIES && !map.contains_key(&key) {
        map.retain(|_, f| now < f.since.plus(window));
        if map.len() >= MAX_ENTRIES {
            // All are fresh: an attack from everywhere. Forget the lesser half.
            let mut counts: Vec<u32> = map.values().map(|f| f.count).collect();
            let (_, median, _) = counts.select_nth_unstable(MAX_ENTRIES / 2);
            let median = *median;
            map.retain(|_, f| f.count > median);
        }
    }
    let failures = map.entry(key).or_insert(Failures {
        since: now,
        count: 0,
    });
    if now >= failures.since.plus(window) {
        *failures = Failures {
            since: now,
            count: 0,
        };
    }
    failures.count = failures.count.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn blocks_an_address_and_lets_it_go() {
        let mut throttle = Throttle::new(3, 100, MINUTE);
        let start = Timestamp::from_secs(1_000_000);
        for n in 0..3 {
            throttle.charge(ip(1), &format!("user{n}"), start).unwrap();
        }
        let later = start.plus(MINUTE / 2);
        assert_eq!(
            throttle.charge(ip(1), "user9", later),
            Err(Blocked::Address { left: MINUTE / 2 })
        );
        throttle.charge(ip(2), "user9", later).unwrap();
        throttle.charge(ip(1), "user9", start.plus(MINUTE)).unwrap();
    }

    #[test]
    fn blocks_a_user_from_everywhere_and_forgives_the_right_password() {
        let mut throttle = Throttle::new(100, 2, MINUTE);
        let now = Timestamp::from_secs(1_000_000);
        throttle.charge(ip(1), "user", now).unwrap();
        throttle.charge(ip(2), "user", now).unwrap();
        assert!(matches!(
            throttle.charge(ip(3), "user", now),
            Err(Blocked::User { .. })
        ));
        throttle.refund(ip(1), "user");
        throttle.charge(ip(3), "user", now).unwrap();
    }

    #[test]
    fn memory_is_bounded() {
        let mut throttle = Throttle::new(u32::MAX, u32::MAX, MINUTE);
        let now = Timestamp::from_secs(1_000_000);
        for n in 0..MAX_ENTRIES + 100 {
            throttle.charge(ip(1), &n.to_string(), now).unwrap();
        }
        assert!(throttle.users.len() <= MAX_ENTRIES);
        assert_eq!(throttle.addresses.len(), 1);
    }
}
