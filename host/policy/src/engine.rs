//! The wasmtime engine, its limits, and one call in a fresh instance.
//!
//! An instance lives for one call: no call sees what another left behind, a trap or overrun
//! needs no clean-up, and a revision is swapped between two calls, never within one. The
//! call runs on a fiber and gives its thread back each millisecond.

use std::future::Future;
use std::hash::{Hash, Hasher};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use wasmtime::component::{Component, HasSelf, InstancePre, Linker};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    RegallocAlgorithm, Store, StoreLimits, StoreLimitsBuilder, Trap, UpdateDeadline,
};

use crate::answer::tidy;
use crate::journal::{CallBudget, LineRate};
use crate::limits;
use crate::prepare::{Code, Prepared};
use crate::ticker::{Running, Ticker};
use crate::worlds::{Descriptor, World, v1};

/// The engine could not be made, or a revision not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "the WebAssembly engine can't start: {0}; it needs 20 GiB of address space (ulimit -v)"
    )]
    Engine(String),
    /// Also when the compiled code is of another build of the gateway: prepare it again.
    #[error("revision {digest} can't be loaded: {reason}")]
    Revision { digest: String, reason: String },
}

/// Why a call gave no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// By the policy's own word: not now.
    #[error("{0}")]
    Temporary(String),
    /// By the policy's own word: never.
    #[error("the policy says it is broken: {0}")]
    Broken(String),
    #[error("invalid answer: {0}")]
    Invalid(String),
    #[error("trap: {0}")]
    Trap(String),
    #[error("stopped after {0} ms")]
    Overrun(u32),
    #[error("too many calls at the same time, or too much processor time used")]
    Busy,
}

/// One per process. Cloning shares it.
#[derive(Clone)]
pub struct PolicyEngine {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    linker: Linker<CallState>,
    ticker: Ticker,
    started: Instant,
    /// Counts the instructions of each call.
    metered: bool,
    /// Compiles what runs once.
    draft: OnceLock<PolicyEngine>,
}

/// A revision loaded into an engine, ready for calls.
pub struct Active {
    pub digest: Arc<str>,
    pub world: World,
    pub descriptor: Descriptor,
    pub(crate) pre: InstancePre<CallState>,
    pub(crate) guest: v1::Guest,
    lines: LineRate,
    calls: AtomicU64,
    failures: AtomicU64,
    micros: AtomicU64,
    /// Instructions, where the engine counts them.
    fuel: AtomicU64,
}

impl Active {
    /// Instructions that all calls took, for an engine that counts them.
    pub(crate) fn fuel(&self) -> u64 {
        self.fuel.load(Ordering::Relaxed)
    }

    /// Calls made, those among them that failed, and the time all took, in microseconds.
    pub fn counts(&self) -> (u64, u64, u64) {
        (
            self.calls.load(Ordering::Relaxed),
            self.failures.load(Ordering::Relaxed),
            self.micros.load(Ordering::Relaxed),
        )
    }
}

/// What a store carries.
pub(crate) struct CallState {
    limits: StoreLimits,
    ticks: u32,
    budget_ms: u32,
    second: u32,
    journal: CallBudget,
    /// None during `init`.
    active: Option<Arc<Active>>,
    _running: Running,
}

impl CallState {
    pub fn overran(&self) -> bool {
        self.ticks > self.budget_ms
    }

    /// `log.write`.
    pub fn write_line(&mut self, level: v1::Level, text: &str) {
        let Some(active) = &self.active else { return };
        let Some(text) = self.journal.take(text) else {
            return;
        };
        if !active.lines.take(self.second) {
            return;
        }
        let (policy, digest) = (&active.descriptor.name, &active.digest[..12]);
        match level {
            v1::Level::Debug => tracing::debug!(target: "policy", policy, digest, "{text}"),
            v1::Level::Info => tracing::info!(target: "policy", policy, digest, "{text}"),
            v1::Level::Warn => tracing::warn!(target: "policy", policy, digest, "{text}"),
        }
    }
}

/// Instances whose memory stays mapped; more than run at once, so that a slot often finds
/// the image of the revision it last held.
const SLOTS: u32 = 256;
const PREPARING_SLOTS: u32 = 4;

/// Written memory that a slot keeps mapped and sets back by copying, bytes; what a call wrote
/// beyond is given back to the kernel. Where the kernel tells which pages were written (6.7 and
/// later), nearly every call finds all its memory mapped: no page faults, no change of page tables.
const KEPT: usize = 256 * 1024;
/// Where it does not, this much is cleared after each call, written or not.
const CLEARED: usize = 64 * 1024;

fn pool(slots: u32, core_instances: u32) -> InstanceAllocationStrategy {
    let scans = PoolingAllocationConfig::is_pagemap_scan_available();
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots * core_instances)
        .max_core_instances_per_component(core_instances)
        .total_memories(slots)
        .max_memories_per_component(1)
        .max_memories_per_module(1)
        .max_memory_size(limits::MEMORY)
        .total_tables(slots * limits::TABLES)
        .max_tables_per_component(limits::TABLES)
        .max_tables_per_module(limits::TABLES)
        .table_elements(limits::TABLE_ELEMENTS)
        .total_stacks(slots)
        .max_unused_warm_slots(slots)
        .linear_memory_keep_resident(if scans { KEPT } else { CLEARED })
        .table_keep_resident(4 * 1024)
        .pagemap_scan(if scans { Enabled::Yes } else { Enabled::No });
    InstanceAllocationStrategy::Pooling(pool)
}

fn config(instances: InstanceAllocationStrategy) -> Config {
    let mut config = Config::new();
    config
        .allocation_strategy(instances)
        .wasm_component_model(true)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_relaxed_simd(false)
        .concurrency_support(false)
        .cranelift_opt_level(OptLevel::Speed)
        // One answer on every machine, so that a decision can be replayed.
        .cranelift_nan_canonicalization(true)
        .epoch_interruption(true)
        .memory_init_cow(true)
        .memory_reservation(64 * 1024 * 1024)
        .memory_guard_size(64 * 1024)
        .max_wasm_stack(limits::WASM_STACK)
        .async_stack_size(limits::ASYNC_STACK)
        // Tables that only back-traces and debuggers read; a trap is told by its kind.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .native_unwind_info(false);
    config
}

/// Little time for compiling, more for running.
fn quick(config: &mut Config) {
    config
        .cranelift_opt_level(OptLevel::None)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
}

impl PolicyEngine {
    /// The engine of a gateway: runs revisions.
    pub fn new() -> Result<Self, LoadError> {
        Self::with(config(pool(SLOTS, limits::CORE_INSTANCES)), false)
    }

    /// An engine that only prepares revisions: the same code, little address space.
    pub fn for_preparing() -> Result<Self, LoadError> {
        Self::with(config(pool(PREPARING_SLOTS, limits::CORE_INSTANCES)), false)
    }

    /// For `init`, which runs once: its code is compiled in half the time and thrown away. Without
    /// a pool, since address space for two is more than the worker may have.
    pub(crate) fn draft(&self) -> Result<&PolicyEngine, LoadError> {
        if let Some(draft) = self.inner.draft.get() {
            return Ok(draft);
        }
        let mut config = config(InstanceAllocationStrategy::OnDemand);
        quick(&mut config);
        let draft = Self::with(config, false)?;
        Ok(self.inner.draft.get_or_init(|| draft))
    }

    /// For the tester: counts instructions, which are the same on every machine. Calls take
    /// about a quarter longer, so times are measured with another.
    pub(crate) fn for_counting() -> Result<Self, LoadError> {
        let mut config = config(pool(PREPARING_SLOTS, limits::CORE_INSTANCES));
        // What is counted are the instructions of the module, however they are compiled.
        quick(&mut config);
        config.consume_fuel(true);
        Self::with(config, true)
    }

    fn with(config: Config, metered: bool) -> Result<Self, LoadError> {
        let fail = |e: wasmtime::Error| LoadError::Engine(format!("{e:#}"));
        let engine = Engine::new(&config).map_err(fail)?;
        let mut linker = Linker::new(&engine);
        v1::add_to_linker::<CallState, HasSelf<CallState>>(&mut linker, |state| state)
            .map_err(fail)?;
        let ticker = Ticker::start(&engine).map_err(|e| LoadError::Engine(e.to_string()))?;
        Ok(PolicyEngine {
            inner: Arc::new(Inner {
                engine,
                linker,
                ticker,
                started: Instant::now(),
                metered,
                draft: OnceLock::new(),
            }),
        })
    }

    pub(crate) fn wasmtime(&self) -> &Engine {
        &self.inner.engine
    }

    pub(crate) fn linker(&self) -> &Linker<CallState> {
        &self.inner.linker
    }

    /// Milliseconds since the engine was made.
    pub(crate) fn uptime_ms(&self) -> u64 {
        u64::try_from(self.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Differs between builds and settings that can't share compiled code.
    pub(crate) fn compatibility(&self) -> [u8; 32] {
        struct Sha(aws_lc_rs::digest::Context);
        impl Hasher for Sha {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
            fn finish(&self) -> u64 {
                0
            }
        }
        let mut sha = Sha(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256));
        self.inner
            .engine
            .precompile_compatibility_hash()
            .hash(&mut sha);
        let mut hash = [0; 32];
        hash.copy_from_slice(sha.0.finish().as_ref());
        hash
    }

    /// Makes a prepared revision ready for calls.
    pub fn load(&self, prepared: &Prepared) -> Result<Active, LoadError> {
        let fail = |e: wasmtime::Error| LoadError::Revision {
            digest: prepared.digest.clone(),
            reason: tidy(&format!("{e:#}"), 1024),
        };
        // SAFETY (both): `Prepared` can't be made outside this crate, and its code is what
        // `Engine::precompile_component` returned: in this process, in the worker process
        // that this gateway started from its own binary, or in a file of the code cache.
        // wasmtime itself refuses code of another version or of other settings.
        //
        // A file is mapped, so its pages are read when they are first used. It is the file
        // whose content was checked against a MAC under the node's key: the path leads to
        // the open file itself and not by way of a directory. Nobody changes that content
        // afterwards: the cache writes every file anew and renames it, never in place, and
        // its directory has the mode 0700, so that whoever could is this gateway's own account
        // and needs no such way into this process.
        let component = unsafe {
            match prepared.code() {
                Code::Held(bytes) => Component::deserialize(self.wasmtime(), bytes),
                Code::Kept(kept) => Component::deserialize_file(self.wasmtime(), kept.path()),
            }
        };
        let pre = self
            .linker()
            .instantiate_pre(&component.map_err(fail)?)
            .map_err(fail)?;
        let guest = v1::Guest::find(prepared.world, &pre).map_err(fail)?;
        let active = Active {
            digest: prepared.digest.as_str().into(),
            world: prepared.world,
            descriptor: prepared.descriptor.clone(),
            pre,
            guest,
            lines: LineRate::default(),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            micros: AtomicU64::new(0),
            fuel: AtomicU64::new(0),
        };
        // Once, that calls need not: the types of the exports are those of the world.
        let mut store = self.store(limits::INIT_MS, limits::ANSWER, None);
        store.epoch_deadline_callback(|mut cx| Ok(interrupt(cx.data_mut())));
        let instance = active.pre.instantiate(&mut store).map_err(fail)?;
        active
            .guest
            .check_types(&mut store, &instance)
            .map_err(fail)?;
        if let Code::Kept(_) = prepared.code() {
            let_go(active.pre.component());
        }
        Ok(active)
    }

    /// A store with every limit set.
    pub(crate) fn store(
        &self,
        budget_ms: u32,
        answer_bytes: usize,
        active: Option<Arc<Active>>,
    ) -> Store<CallState> {
        let instances = limits::CORE_INSTANCES as usize + usize::from(active.is_none());
        let state = CallState {
            limits: StoreLimitsBuilder::new()
                .memory_size(limits::MEMORY)
                .memories(1)
                .tables(limits::TABLES as usize)
                .table_elements(limits::TABLE_ELEMENTS)
                .instances(instances)
                .build(),
            ticks: 0,
            budget_ms,
            second: (self.uptime_ms() / 1000) as u32,
            journal: CallBudget::default(),
            active,
            _running: self.inner.ticker.begin(),
        };
        let mut store = Store::new(self.wasmtime(), state);
        store.limiter(|state| &mut state.limits);
        store.set_hostcall_fuel(answer_bytes);
        store.set_epoch_deadline(1);
        if self.inner.metered {
            // Can't fail: this engine has fuel.
            let _ = store.set_fuel(u64::MAX);
        }
        store
    }

    /// Runs one call of a revision: `call` instantiates and asks. Returns what it returned
    /// and how long it ran, in microseconds; time in which it had given its thread to others
    /// does not count.
    pub(crate) async fn call<R, F>(
        &self,
        active: &Arc<Active>,
        budget_ms: u32,
        answer_bytes: usize,
        call: F,
    ) -> (Result<R, Failure>, u32)
    where
        F: AsyncFnOnce(&mut Store<CallState>) -> wasmtime::Result<R>,
    {
        let mut spent = Duration::ZERO;
        let result = {
            let begun = Instant::now();
            let mut store = self.store(budget_ms, answer_bytes, Some(active.clone()));
            store.epoch_deadline_callback(|mut cx| {
                Ok(match interrupt(cx.data_mut()) {
                    UpdateDeadline::Continue(ticks) => {
                        UpdateDeadline::YieldCustom(ticks, Box::pin(tokio::task::yield_now()))
                    }
                    stop => stop,
                })
            });
            spent += begun.elapsed();
            let result = timed(&mut spent, call(&mut store)).await;
            let result = result.map_err(|error| failure(store.data(), &error));
            if self.inner.metered {
                let used = u64::MAX - store.get_fuel().unwrap_or(u64::MAX);
                active.fuel.fetch_add(used, Ordering::Relaxed);
            }
            let ending = Instant::now();
            drop(store);
            spent += ending.elapsed();
            result
        };
        let micros = u32::try_from(spent.as_micros()).unwrap_or(u32::MAX);
        active.calls.fetch_add(1, Ordering::Relaxed);
        active.micros.fetch_add(micros.into(), Ordering::Relaxed);
        (result, micros)
    }
}

impl Active {
    pub(crate) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// Gives the pages of a mapped file back that loading touched: most of them no call touches ever
/// again, and those that it does are in the page cache still.
fn let_go(component: &Component) {
    let image = component.image_range();
    let len = image.end as usize - image.start as usize;
    // SAFETY: `Component::deserialize_file` maps the file, privately, and the image is that
    // mapping: it begins on a page, and lives as long as the component, which is borrowed.
    // Nothing was ever written to it, since wasmtime accepts no relocations in compiled code, so
    // each page that is touched again is read from the file and is what it was. If somebody
    // changed the file meanwhile, and `load` tells why nobody does, this would be no new way to
    // it: a private mapping shows changes of its file in every page that was not written to.
    let failed = unsafe { libc::madvise(image.start as *mut _, len, libc::MADV_DONTNEED) } != 0;
    if failed {
        // They stay, and cost memory.
        tracing::debug!(error = %std::io::Error::last_os_error(), "mapped code stays in memory");
    }
}

/// Counts a tick: go on for one more, or stop.
pub(crate) fn interrupt(state: &mut CallState) -> UpdateDeadline {
    state.ticks += 1;
    if state.overran() {
        UpdateDeadline::Interrupt
    } else {
        UpdateDeadline::Continue(1)
    }
}

/// What went wrong, in words for people.
pub(crate) fn failure(state: &CallState, error: &wasmtime::Error) -> Failure {
    if state.overran() {
        return Failure::Overrun(state.budget_ms);
    }
    let text = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    Failure::Trap(tidy(&text, limits::TEXT))
}

/// Runs a future and adds up the time its polls take.
async fn timed<F: Future>(spent: &mut Duration, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        let begun = Instant::now();
        let polled = future.as_mut().poll(cx);
        *spent += begun.elapsed();
        polled
    })
    .await
}
