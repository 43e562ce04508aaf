//! How many connections are open, in all and per address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The unit that limits per address count: an IPv4 address or an IPv6 /64, which is what
/// one customer gets.
pub fn site_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("too many connections")]
    Total,
    #[error("too many connections from your address")]
    Address,
}

#[derive(Debug)]
pub struct Slots {
    max: usize,
    max_per_address: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place; dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    site: IpAddr,
}

impl Slots {
    pub fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Slots {
            max,
            max_per_address,
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // The counts are changed in one step each, so a panic elsewhere leaves them right.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(self: &Arc<Self>, ip: IpAddr) -> Result<Slot, Full> {
        let site = site_of(ip);
        let mut taken = self.taken();
        if taken.total >= self.max {
            return Err(Full::Total);
        }
        let here = taken.by_address.entry(site).or_default();
        if *here >= self.max_per_address {
            return Err(Full::Address);
        }
        *here += 1;
        taken.total += 1;
        Ok(Slot {
            slots: self.clone(),
            site,
        })
    }

    pub fn open(&self) -> usize {
        self.taken().total
    }

    /// Returns when no connection is open.
    pub async fn all_free(&self) {
        loop {
            let freed = self.freed.notified();
            if self.open() == 0 {
                return;
            }
            freed.await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        taken.total -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.site) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.site);
            }
        }
        let last = taken.total == 0;
        drop(taken);
        if last {
            self.slots.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_gives_back() {
        let slots = Slots::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = slots.take(a).unwrap();
        let _second = slots.take("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert_eq!(slots.take(a).unwrap_err(), Full::Address);
        let _third = slots.take(b).unwrap();
        assert_eq!(slots.take(b).unwrap_err(), Full::Total);
        drop(first);
        assert_eq!(slots.open(), 2);
        slots.take(a).unwrap();
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let site = |ip: &str| site_of(ip.parse().unwrap());
        assert_eq!(site("2001:db8::1"), site("2001:db8::ffff:1"));
        assert_ne!(site("2001:db8::1"), site("2001:db8:0:1::1"));
    }
}
