//! The shaping world: how fast may these lanes go?

#[doc(hidden)]
pub mod wit {
    wit_bindgen::generate!({
        world: "shaping-policy-with-replies",
        path: "../../wit/tidegate-policy-1.0.0",
        pub_export_macro: true,
        default_bindings_module: "tidegate_guest::shaping::wit",
        export_macro_name: "export_shaping",
    });
}

pub use wit::exports::tidegate::policy::replies::Rule as ReplyRule;
pub use wit::exports::tidegate::policy::setup::Descriptor;
pub use wit::exports::tidegate::policy::shaping::{
    LaneKey, LanePlan, LaneState, Limits, Plan, Rate, ReplyCount, Trigger, Window,
};
pub use wit::tidegate::policy::log;
pub use wit::tidegate::policy::types::{Facts, Millis, PolicyError, TrafficClass};

/// What a shaping policy is: a reducer over its own state.
pub trait Policy: Sized + Send + Sync + 'static {
    /// Reads the configuration. An error refuses the upload: name the key and the remedy.
    fn init(config: &str) -> Result<(Self, Descriptor), String>;

    /// Plans up to 256 lanes, within 50 ms.
    fn plan(&self, now: Millis, state: &[u8], lanes: Vec<LaneState>) -> Result<Plan, PolicyError>;

    /// Permanent replies that are limits in truth, asked for after each `plan`; at most 64.
    fn temporary_replies(&self) -> Vec<ReplyRule> {
        Vec::new()
    }
}

impl Descriptor {
    pub fn new(name: &str, version: &str) -> Self {
        Descriptor {
            name: name.to_owned(),
            version: version.to_owned(),
            headers: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// Asks for facts; the single name `*` asks for all there are.
    #[must_use]
    pub fn facts<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.facts.extend(names.into_iter().map(Into::into));
        self
    }
}

impl LaneState {
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Deferrals per thousand attempts of the recent window; 0 where nothing was attempted.
    pub fn deferred_per_mille(&self) -> u32 {
        (u64::from(self.recent.deferred) * 1000)
            .checked_div(self.recent.attempts.into())
            .map_or(0, |n| n as u32)
    }
}

impl Default for Limits {
    /// What the host does without a policy: no rate, 20 connections, 100 messages on each,
    /// asked again after a minute.
    fn default() -> Self {
        Limits {
            rate: None,
            burst: 1,
            connections: 20,
            messages_per_connection: 100,
            retry_after: Vec::new(),
            paused_until: None,
            ttl: 60,
        }
    }
}

impl LanePlan {
    /// Nothing out of the ordinary, and no question before the limits' `ttl` is over.
    pub fn new(limits: Limits) -> Self {
        LanePlan {
            limits,
            wake: None,
            cause: None,
        }
    }

    /// Says why the lane is slowed or paused, for people and the log.
    #[must_use]
    pub fn because(mut self, cause: &str) -> Self {
        self.cause = Some(cause.to_owned());
        self
    }

    /// Has the host ask earlier.
    #[must_use]
    pub fn wake(mut self, trigger: Trigger) -> Self {
        self.wake = Some(trigger);
        self
    }
}

/// Makes a [`Policy`] the shaping policy of this crate.
#[macro_export]
macro_rules! shaping_policy {
    ($policy:ty) => {
        const _: () = {
            static POLICY: ::std::sync::OnceLock<$policy> = ::std::sync::OnceLock::new();

            struct Exported;

            impl $crate::shaping::wit::exports::tidegate::policy::setup::Guest for Exported {
                fn init(config: String) -> Result<$crate::shaping::Descriptor, String> {
                    let (policy, descriptor) = <$policy as $crate::shaping::Policy>::init(&config)?;
                    if POLICY.set(policy).is_err() {
                        return Err("init was called twice".to_owned());
                    }
                    drop(config);
                    $crate::reserve();
                    Ok(descriptor)
                }
            }

            impl $crate::shaping::wit::exports::tidegate::policy::shaping::Guest for Exported {
                fn plan_lanes(
                    now: $crate::shaping::Millis,
                    state: Vec<u8>,
                    lanes: Vec<$crate::shaping::LaneState>,
                ) -> Result<$crate::shaping::Plan, $crate::shaping::PolicyError> {
                    match POLICY.get() {
                        Some(policy) => $crate::shaping::Policy::plan(policy, now, &state, lanes),
                        None => Err($crate::shaping::PolicyError::Broken(
                            "init was not called".to_owned(),
                        )),
                    }
                }
            }

            impl $crate::shaping::wit::exports::tidegate::policy::replies::Guest for Exported {
                fn temporary() -> Vec<$crate::shaping::ReplyRule> {
                    POLICY
                        .get()
                        .map($crate::shaping::Policy::temporary_replies)
                        .unwrap_or_default()
                }
            }

    $crate::shaping::wit::export_shaping!(Exported with_types_in $crate::shaping::wit);
        };
    };
}
