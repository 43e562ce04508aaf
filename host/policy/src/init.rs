//! `setup.init`, once, and the memory it leaves as the starting point of every call.
//!
//! wasmtime-wizer adds functions to the component that read its memory and globals out; after
//! `init` a new component is written whose data segments hold what was read.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use wasmtime::Store;
use wasmtime::component::{Component, Instance, Lift, WasmList};
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use crate::answer::tidy;
use crate::engine::{CallState, PolicyEngine, failure, interrupt};
use crate::limits;
use crate::prepare::Refused;
use crate::worlds::{Descriptor, v1};

/// Bytes of text that a guest's refusal may have.
const REFUSAL: usize = 2000;

/// Runs `init(config)` and returns the component as it is afterwards, and what it says of
/// itself.
pub(crate) fn initialise(
    engine: &PolicyEngine,
    component: &[u8],
    config: &str,
) -> Result<(Vec<u8>, Descriptor), Refused> {
    let wizer = Wizer::new();
    let (context, instrumented) = wizer
        .instrument_component(component)
        .map_err(|e| Refused::Compile(format!("{e:#}")))?;
    let compile = |e: wasmtime::Error| Refused::Compile(format!("{e:#}"));
    let component = Component::new(engine.wasmtime(), &instrumented).map_err(compile)?;
    let pre = engine
        .linker()
        .instantiate_pre(&component)
        .map_err(compile)?;
    let setup = v1::SetupIndices::new(&pre).map_err(compile)?;

    let mut store = engine.store(limits::INIT_MS, limits::ANSWER, None);
    // Not on a fiber: this thread has nothing else to do.
    store.epoch_deadline_callback(|mut cx| Ok(interrupt(cx.data_mut())));
    let trapped = |store: &Store<CallState>, e: wasmtime::Error| {
        Refused::Init(failure(store.data(), &e).to_string())
    };
    let instance = match pre.instantiate(&mut store) {
        Ok(instance) => instance,
        Err(e) => return Err(trapped(&store, e)),
    };
    let guest = setup
        .load(&mut store, &instance)
        .map_err(|e| Refused::MissingExport(format!("{e:#}")))?;
    let descriptor = match guest.func_init().call(&mut store, (config,)) {
        Ok((Ok(descriptor),)) => Descriptor::from(descriptor),
        Ok((Err(text),)) => return Err(Refused::Config(tidy(&text, REFUSAL))),
        Err(e) => return Err(trapped(&store, e)),
    };

    store.set_hostcall_fuel(4 * limits::MEMORY);
    let mut reader = Reader {
        store,
        instance,
        error: None,
    };
    let snapshot = ready(wizer.snapshot_component(&context, &mut reader));
    if let Some(error) = reader.error {
        return Err(Refused::Init(format!("its memory can't be read: {error}")));
    }
    match snapshot {
        Some(Ok(snapshot)) => Ok((snapshot, descriptor)),
        Some(Err(e)) => Err(Refused::Compile(format!("{e:#}"))),
        None => Err(Refused::Compile("the snapshot did not end".to_owned())),
    }
}

/// The result of a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future)
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Calls the functions that wizer added. They belong to the guest, so they may fail; the
/// first error is kept and the snapshot then thrown away.
struct Reader {
    store: Store<CallState>,
    instance: Instance,
    error: Option<String>,
}

impl Reader {
    fn call<R, T: Default>(
        &mut self,
        instance: &str,
        name: &str,
        use_it: impl FnOnce(&Store<CallState>, R) -> T,
    ) -> T
    where
        R: Lift + 'static,
    {
        let result = (|| {
            let none = || wasmtime::Error::msg("an accessor is missing");
            let (_, instance) = self
                .instance
                .get_export(&mut self.store, None, instance)
                .ok_or_else(none)?;
            let (_, function) = self
                .instance
                .get_export(&mut self.store, Some(&instance), name)
                .ok_or_else(none)?;
            let function = self
                .instance
                .get_typed_func::<(), (R,)>(&mut self.store, function)?;
            function.call(&mut self.store, ())
        })();
        match result {
            Ok((value,)) => use_it(&self.store, value),
            Err(e) => {
                let text = failure(self.store.data(), &e).to_string();
                self.error.get_or_insert(text);
                T::default()
            }
        }
    }
}

impl ComponentInstanceState for Reader {
    async fn call_func_ret_list_u8(
        &mut self,
        instance: &str,
        func: &str,
        contents: impl FnOnce(&[u8]) + Send,
    ) {
        let mut contents = Some(contents);
        self.call(instance, func, |store, list: WasmList<u8>| {
            if let Some(contents) = contents.take() {
                contents(list.as_le_slice(store));
            }
        });
        if let Some(contents) = contents {
            contents(&[]);
        }
    }

    async fn call_func_ret_s32(&mut self, instance: &str, func: &str) -> i32 {
        self.call(instance, func, |_, value| value)
    }

    async fn call_func_ret_s64(&mut self, instance: &str, func: &str) -> i64 {
        self.call(instance, func, |_, value| value)
    }

    async fn call_func_ret_f32(&mut self, instance: &str, func: &str) -> u32 {
        self.call(instance, func, |_, value: f32| value.to_bits())
    }

    async fn call_func_ret_f64(&mut self, instance: &str, func: &str) -> u64 {
        self.call(instance, func, |_, value: f64| value.to_bits())
    }
}
