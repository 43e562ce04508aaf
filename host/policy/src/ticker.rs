//! The epoch clock: one tick a millisecond while calls run, none while the gateway is idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::Engine;

const TICK: Duration = Duration::from_millis(1);
/// Ticks without a call before the thread goes to sleep.
const IDLE_TICKS: u32 = 50;
/// The longest sleep: after it the thread looks whether the engine is still there.
const NAP: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Shared {
    running: AtomicUsize,
    asleep: AtomicBool,
}

/// Hands out [`Running`] guards; the clock ticks as long as one is held.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

/// A call that has a deadline.
pub(crate) struct Running {
    shared: Arc<Shared>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ticker {
    pub fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (theirs, weak) = (shared.clone(), engine.weak());
        let thread = thread::Builder::new()
            .name("policy-ticker".to_owned())
            .spawn(move || {
                let mut idle = 0;
                // Ends with the engine.
                while let Some(engine) = weak.upgrade() {
                    if theirs.running.load(Ordering::SeqCst) > 0 {
                        idle = 0;
                    } else if idle < IDLE_TICKS {
                        idle += 1;
                    } else {
                        drop(engine);
                        // A call that begins now either sees `asleep` and wakes this
                        // thread, or is seen by the load below.
                        theirs.asleep.store(true, Ordering::SeqCst);
                        if theirs.running.load(Ordering::SeqCst) == 0 {
                            thread::park_timeout(NAP);
                        }
                        theirs.asleep.store(false, Ordering::SeqCst);
                        continue;
                    }
                    thread::sleep(TICK);
                    engine.increment_epoch();
                }
            })?
            .thread()
            .clone();
        Ok(Ticker { shared, thread })
    }

    pub fn begin(&self) -> Running {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running {
            shared: self.shared.clone(),
        }
    }
}
