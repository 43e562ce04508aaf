//! Logins: Argon2 in a bounded pool, with a short memory for what was right.
//!
//! A user who does not exist costs the same work as a wrong password.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, PasswordVerifier, Version};
use aws_lc_rs::{hmac, rand};
use tidegate_mail::{Enhanced, Reply};
use tidegate_queue::directory::Credential;
use tidegate_queue::{Clock, Directory};
use tidegate_submit::Credentials;
use tokio::sync::Semaphore;

use super::cache::{self, Cache};
use super::throttle::{Blocked, Throttle};

/// Logins that wait for the pool; more are told to come back.
const MAX_WAITING: usize = 256;

/// Limits of logins.
#[derive(Clone, Copy, Debug)]
pub struct AuthConfig {
    /// Password hashes computed at the same time; each takes some 20 ms of a core and
    /// 7 MiB.
    pub checks: usize,
    /// How long a right password is remembered; zero: not at all.
    pub remember: Duration,
    /// Failures within `window` until an address is turned away.
    pub failures_per_address: u32,
    /// Failures within `window`, from all addresses, until a user is turned away who is not
    /// remembered.
    pub failures_per_user: u32,
    pub window: Duration,
}

impl Default for AuthConfig {
    fn default() -> Self {
        AuthConfig {
            checks: 2,
            remember: Duration::from_secs(300),
            failures_per_address: 30,
            failures_per_user: 60,
            window: Duration::from_secs(600),
        }
    }
}

pub struct Authenticator {
    directory: Arc<ArcSwap<Directory>>,
    clock: Arc<dyn Clock>,
    key: hmac::Key,
    cache: Mutex<Cache>,
    throttle: Mutex<Throttle>,
    pool: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Checked in place of the hash of a user who does not exist.
    nobody: Arc<str>,
}

/// Counts one waiting login for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Argon2id as new passwords are hashed: 7 MiB and 5 passes, which OWASP rates like its first
/// choice of 19 MiB and 2. Checks run side by side, so the memory of one counts.
pub fn password_hasher() -> Argon2<'static> {
    // The fallback is never used: the numbers are within the library's bounds.
    let params = Params::new(7 * 1024, 5, 1, None).unwrap_or(Params::DEFAULT);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

impl Authenticator {
    pub fn new(
        config: AuthConfig,
        directory: Arc<ArcSwap<Directory>>,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        let failed = |_| io::Error::other("the system's source of random bytes failed");
        let mut random = [0u8; 48];
        rand::fill(&mut random).map_err(failed)?;
        let (key, salt) = random.split_at(32);
        let nobody = password_hasher()
            .hash_password_with_salt(b"nobody", salt)
            .map_err(|e| io::Error::other(format!("hashing a password failed: {e}")))?;
        Ok(Authenticator {
            directory,
            clock,
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            cache: Mutex::new(Cache::new(config.remember)),
            throttle: Mutex::new(Throttle::new(
                config.failures_per_address,
                config.failures_per_user,
                config.window,
            )),
            pool: Arc::new(Semaphore::new(config.checks.max(1))),
            waiting: AtomicUsize::new(0),
            nobody: nobody.to_string().into(),
        })
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The credential, or the reply to AUTH.
    pub async fn check(
        &self,
        peer: IpAddr,
        credentials: Credentials,
    ) -> Result<Arc<Credential>, Reply> {
        let user = credentials.user.as_str();
        let tag = cache::tag(&self.key, user, credentials.password.as_bytes());
        let credential = self.directory.load().credential(user).cloned();
        if let Some(found) = &credential
            && self
                .cache()
                .knows(user, &tag, &found.hash, self.clock.now())
        {
            return Ok(found.clone());
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(temporary("too many logins at once, try again in a minute"));
        }
        let waiting = Waiting(&self.waiting);
        let Ok(permit) = self.pool.clone().acquire_owned().await else {
            return Err(temporary("logins are closed, try again later"));
        };
        drop(waiting);
        // Another connection of the same client may have been ahead in the queue.
        if let Some(found) = &credential
            && self
                .cache()
                .knows(user, &tag, &found.hash, self.clock.now())
        {
            return Ok(found.clone());
        }
        self.throttle()
            .charge(peer, user, self.clock.now())
            .map_err(|blocked| blocked_reply(peer, user, blocked))?;
        let hash: Arc<str> = match &credential {
            Some(found) => found.hash.as_str().into(),
            None => self.nobody.clone(),
        };
        let name = credentials.user.clone();
        let verified = tokio::task::spawn_blocking(move || {
            let verified = verify(&hash, credentials.password.as_bytes(), &credentials.user);
            // The next may begin only now, even if nobody waits for this one any more.
            drop(permit);
            verified
        })
        .await
        .unwrap_or(false);
        match credential {
            Some(found) if verified => {
                self.throttle().refund(peer, &name);
                self.cache().put(&name, tag, &found.hash, self.clock.now());
                Ok(found)
            }
            _ => {
                tracing::info!(%peer, user = ?name, "submission: login failed");
                Err(Reply::new(
                    535,
                    Enhanced::new(5, 7, 8),
                    "user name or password is wrong",
                ))
            }
        }
    }
}

fn verify(hash: &str, password: &[u8], user: &str) -> bool {
    match Argon2::default().verify_password(password, hash) {
        Ok(()) => true,
        Err(argon2::password_hash::Error::PasswordInvalid) => false,
        Err(error) => {
            tracing::error!(?user, %error, "submission: a credential's stored hash is not usable; set the password anew");
            false
        }
    }
}

fn temporary(text: impl Into<String>) -> Reply {
    Reply::new(454, Enhanced::new(4, 7, 0), text)
}

fn blocked_reply(peer: IpAddr, user: &str, blocked: Blocked) -> Reply {
    tracing::warn!(%peer, ?user, ?blocked, "submission: login turned away after too many failures");
    match blocked {
        Blocked::Address { left } => Reply::new(
            421,
            Enhanced::new(4, 7, 0),
            format!(
                "too many failed logins from your address; try again in {} s",
                left.as_secs() + 1
            ),
        ),
        Blocked::User { left } => temporary(format!(
            "too many failed logins of this user; try again in {} s",
            left.as_secs() + 1
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicI64;
    use tidegate_mail::Timestamp;
    use tidegate_queue::Fut;
    use tidegate_queue::directory::Tenant;
    use tidegate_submit::{Mechanism, Secret};

    struct Stepped(AtomicI64);

    impl Clock for Stepped {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn sleep_until(&self, _at: Timestamp) -> Fut<'_, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn directory(password: &str) -> Directory {
        // Cheap parameters: what is tested is not the cost.
        let argon = Argon2::from(argon2::Params::new(8, 1, 1, None).unwrap());
        let hash = argon
            .hash_password_with_salt(password.as_bytes(), b"saltsaltsalt")
            .unwrap();
        Directory::new(
            vec![Tenant {
                id: "acme".into(),
                domains: vec!["acme.example".into()],
                relays: vec![],
                suspended: false,
                bulk_suspended: false,
                wording: None,
                record_inputs: true,
                bulk_quota: None,
            }],
            vec![Credential {
                user: "crm".into(),
                tenant: "acme".into(),
                hash: hash.to_string(),
                bulk: false,
            }],
            vec![],
            vec![],
        )
    }

    fn claim(user: &str, password: &str) -> Credentials {
        Credentials {
            mechanism: Mechanism::Plain,
            user: user.into(),
            password: Secret::new(password.as_bytes().to_vec()),
        }
    }

    fn set_up(config: AuthConfig) -> (Authenticator, Arc<ArcSwap<Directory>>, Arc<Stepped>) {
        let directory = Arc::new(ArcSwap::from_pointee(directory("secret")));
        let clock = Arc::new(Stepped(AtomicI64::new(1_000_000_000)));
        let auth = Authenticator::new(config, directory.clone(), clock.clone()).unwrap();
        (auth, directory, clock)
    }

    fn peer() -> IpAddr {
        IpAddr::from([192, 0, 2, 1])
    }

    #[tokio::test]
    async fn right_wrong_and_unknown() {
        let (auth, directory, _) = set_up(AuthConfig::default());
        let found = auth.check(peer(), claim("crm", "secret")).await.unwrap();
        assert_eq!(found.tenant, "acme");
        for (user, password) in [("crm", "Secret"), ("nobody", "nobody"), ("CRM", "secret")] {
            let reply = auth.check(peer(), claim(user, password)).await.unwrap_err();
            assert_eq!(reply.code, 535, "{user}");
        }
        // A new password counts at once, the old one no longer.
        directory.store(Arc::new(super::tests::directory("changed")));
        assert!(auth.check(peer(), claim("crm", "secret")).await.is_err());
        assert!(auth.check(peer(), claim("crm", "changed")).await.is_ok());
    }

    /// Nobody learns from the time whether a user exists.
    #[tokio::test]
    async fn a_user_who_does_not_exist_costs_as_much_as_a_wrong_password() {
        let hash = password_hasher()
            .hash_password_with_salt(b"secret", b"saltsaltsalt")
            .unwrap();
        let (auth, shared, _) = set_up(AuthConfig::default());
        let crm = Credential {
            user: "crm".into(),
            tenant: "acme".into(),
            hash: hash.to_string(),
            bulk: false,
        };
        let with_real_cost = Directory::new(vec![], vec![crm], vec![], vec![]);
        shared.store(Arc::new(with_real_cost));
        // By turns, and the quickest of each: a busy machine only ever adds.
        let mut quickest = [Duration::MAX; 2];
        for _ in 0..6 {
            for (user, quickest) in ["crm", "nobody"].iter().zip(&mut quickest) {
                let begun = std::time::Instant::now();
                let reply = auth.check(peer(), claim(user, "guess")).await.unwrap_err();
                assert_eq!(reply.code, 535);
                *quickest = begun.elapsed().min(*quickest);
            }
        }
        let [known, unknown] = quickest;
        assert!(
            unknown > known / 3 && known > unknown / 3,
            "{known:?} {unknown:?}"
        );
    }

    #[tokio::test]
    async fn logins_beyond_what_the_pool_can_take_are_told_to_come_back() {
        let config = AuthConfig {
            checks: 2,
            failures_per_address: u32::MAX,
            failures_per_user: u32::MAX,
            ..AuthConfig::default()
        };
        let (auth, _, _) = set_up(config);
        // No check can begin, so that all stand in the queue.
        let both = auth.pool.clone().acquire_many_owned(2).await.unwrap();
        let auth = Arc::new(auth);
        let mut logins = tokio::task::JoinSet::new();
        for n in 0..MAX_WAITING + 50 {
            let auth = auth.clone();
            logins.spawn(async move {
                auth.check(peer(), claim("crm", &format!("guess {n}")))
                    .await
                    .unwrap_err()
                    .code
            });
        }
        for _ in 0..50 {
            assert_eq!(logins.join_next().await.unwrap().unwrap(), 454);
        }
        drop(both);
        while let Some(code) = logins.join_next().await {
            assert_eq!(code.unwrap(), 535);
        }
        // The queue is empty again, and the right password gets in.
        assert_eq!(auth.pool.available_permits(), 2);
        auth.check(peer(), claim("crm", "secret")).await.unwrap();
    }

    #[tokio::test]
    async fn guessing_ends_but_a_client_that_is_known_goes_on() {
        let config = AuthConfig {
            failures_per_address: 3,
            ..AuthConfig::default()
        };
        let (auth, _, clock) = set_up(config);
        auth.check(peer(), claim("crm", "secret")).await.unwrap();
        for _ in 0..3 {
            let reply = auth.check(peer(), claim("crm", "guess")).await.unwrap_err();
            assert_eq!(reply.code, 535);
        }
        let reply = auth.check(peer(), claim("crm", "guess")).await.unwrap_err();
        assert_eq!(reply.code, 421);
        auth.check(peer(), claim("crm", "secret")).await.unwrap();
        // The memory has run out, but the block has not.
        clock.0.fetch_add(301_000, Ordering::Relaxed);
        let reply = auth
            .check(peer(), claim("crm", "secret"))
            .await
            .unwrap_err();
        assert_eq!(reply.code, 421);
        clock.0.fetch_add(300_000, Ordering::Relaxed);
        auth.check(peer(), claim("crm", "secret")).await.unwrap();
    }
}
