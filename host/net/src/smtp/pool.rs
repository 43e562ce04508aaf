//! Connections at rest between messages.
//!
//! A connection is given out again only for the same address, source, protection and
//! identity, the most recently used first, and only if the peer has been silent
//! meanwhile. Bounded in number and in time; what is over is taken leave of by QUIT.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tidegate_queue::ports::{Endpoint, TlsMode};
use tokio::time::Instant;

use super::session::Session;
use super::tls::Check;

/// What connections must have in common to be exchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub peer: SocketAddr,
    pub source: Option<IpAddr>,
    pub tls: TlsMode,
}

/// In whose name a connection was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// No certificate was verified and nobody authenticated.
    Anyone,
    /// The peer's certificate was looked at in this way, for this name.
    Host(String, Check),
    /// With the credentials of this endpoint.
    Endpoint(Arc<Endpoint>),
}

struct Idle {
    session: Session,
    identity: Identity,
    since: Instant,
}

#[derive(Default)]
struct Shelf {
    idle: HashMap<Key, Vec<Idle>>,
    count: usize,
    sweeping: bool,
}

/// Idle connections.
pub struct Pool {
    shelf: Mutex<Shelf>,
    max: usize,
    rest: Duration,
}

impl Pool {
    /// At most `max` connections, none idle for longer than `rest`.
    pub fn new(max: usize, rest: Duration) -> Arc<Self> {
        Arc::new(Pool {
            shelf: Mutex::default(),
            max,
            rest,
        })
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Nothing panics while it is held, and each change is complete in itself.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection whose peer has not spoken or closed since.
    pub async fn take(&self, key: &Key, identity: &Identity) -> Option<Session> {
        loop {
            let mut session = {
                let mut shelf = self.shelf();
                let idle = shelf.idle.get_mut(key)?;
                let at = idle.iter().rposition(|i| i.identity == *identity)?;
                let found = idle.swap_remove(at);
                if idle.is_empty() {
                    shelf.idle.remove(key);
                }
                shelf.count -= 1;
                if found.since.elapsed() > self.rest {
                    leave(found.session);
                    continue;
                }
                found.session
            };
            if session.wire.is_idle().await {
                return Some(session);
            }
        }
    }

    /// Lays a connection to rest, or takes leave of it if there is no room.
    pub fn put(self: &Arc<Self>, key: Key, identity: Identity, mut session: Session) {
        session.wire.shrink();
        let mut shelf = self.shelf();
        if shelf.count >= self.max {
            drop(shelf);
            leave(session);
            return;
        }
        shelf.count += 1;
        shelf.idle.entry(key).or_default().push(Idle {
            session,
            identity,
            since: Instant::now(),
        });
        if !shelf.sweeping {
            shelf.sweeping = true;
            tokio::spawn(sweep(Arc::downgrade(self), self.rest));
        }
    }

    /// Takes leave of all of them; returns when the peers have heard it.
    pub async fn close(&self) {
        let idle = {
            let mut shelf = self.shelf();
            shelf.count = 0;
            std::mem::take(&mut shelf.idle)
        };
        let mut leaving = tokio::task::JoinSet::new();
        for idle in idle.into_values().flatten() {
            leaving.spawn(idle.session.quit());
        }
        leaving.join_all().await;
    }

    /// Connections at rest.
    pub fn len(&self) -> usize {
        self.shelf().count
    }

    /// Ends what has rested long enough. Whether anything is left.
    fn expire(&self) -> bool {
        let mut over = Vec::new();
        let mut shelf = self.shelf();
        shelf.idle.retain(|_, idle| {
            over.extend(idle.extract_if(.., |i| i.since.elapsed() >= self.rest));
            !idle.is_empty()
        });
        shelf.count -= over.len();
        shelf.sweeping = shelf.count > 0;
        let more = shelf.sweeping;
        drop(shelf);
        for idle in over {
            leave(idle.session);
        }
        more
    }
}

/// QUIT without keeping anybody waiting.
pub fn leave(session: Session) {
    tokio::spawn(session.quit());
}

/// Runs while there is something to sweep.
async fn sweep(pool: Weak<Pool>, rest: Duration) {
    loop {
        tokio::time::sleep(rest / 2 + Duration::from_millis(10)).await;
        match pool.upgrade() {
            Some(pool) if pool.expire() => {}
            _ => return,
        }
    }
}
