//! The routing world: how does this message leave?

#[doc(hidden)]
pub mod wit {
    wit_bindgen::generate!({
        world: "routing-policy",
        path: "../../wit/tidegate-policy-1.0.0",
        pub_export_macro: true,
        default_bindings_module: "tidegate_guest::routing::wit",
        export_macro_name: "export_routing",
    });
}

pub use wit::exports::tidegate::policy::routing::{
    Action, AfterFailure, Decision, Header, Managed, Message, Occasion, Origin, Passthrough,
    Recipient, Split,
};
pub use wit::exports::tidegate::policy::setup::Descriptor;
pub use wit::tidegate::policy::log;
pub use wit::tidegate::policy::types::{Facts, Millis, PolicyError, Reply, TrafficClass};

/// What a routing policy is.
pub trait Policy: Sized + Send + Sync + 'static {
    /// Reads the configuration. An error refuses the upload: name the key and the remedy.
    fn init(config: &str) -> Result<(Self, Descriptor), String>;

    /// Decides every recipient of a message, within 10 ms.
    fn decide(&self, why: Occasion, message: Message) -> Result<Decision, PolicyError>;
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

    /// Asks for header fields; their position here is `Header::field` there.
    #[must_use]
    pub fn headers<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.headers.extend(names.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn facts<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.facts.extend(names.into_iter().map(Into::into));
        self
    }
}

impl Message {
    /// The first field of that position in the descriptor's headers.
    pub fn header(&self, field: u32) -> Option<&str> {
        self.headers
            .iter()
            .find(|h| h.field == field)
            .map(|h| h.value.as_str())
    }

    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Domain of the reverse-path as the client wrote it; empty for the null reverse-path.
    pub fn sender_domain(&self) -> &str {
        self.sender
            .rfind('@')
            .map_or("", |at| &self.sender[at + 1..])
    }
}

impl Recipient {
    /// In lower-case A-label form.
    pub fn domain(&self) -> &str {
        self.address.get(self.domain_at as usize..).unwrap_or("")
    }
}

impl Default for Managed {
    fn default() -> Self {
        Managed {
            class: TrafficClass::Transactional,
            relay: None,
            lane: None,
            priority: 0,
            not_before: None,
            expire_after: None,
            notify_delay_after: None,
        }
    }
}

impl Action {
    /// The managed relay on the host's own terms.
    pub fn managed() -> Self {
        Action::ManagedRelay(Managed::default())
    }

    pub fn passthrough(server: &str, after_failure: AfterFailure) -> Self {
        Action::Passthrough(Passthrough {
            server: server.to_owned(),
            after_failure,
        })
    }

    /// 4xx for the whole message.
    pub fn defer(code: u16, enhanced: &str, text: &str) -> Self {
        Action::Defer(reply(code, enhanced, text))
    }

    /// 5xx.
    pub fn refuse(code: u16, enhanced: &str, text: &str) -> Self {
        Action::Refuse(reply(code, enhanced, text))
    }
}

fn reply(code: u16, enhanced: &str, text: &str) -> Reply {
    Reply {
        code,
        enhanced: enhanced.to_owned(),
        text: text.to_owned(),
    }
}

impl Decision {
    /// The same for every recipient.
    pub fn all(action: Action) -> Self {
        Decision {
            otherwise: action,
            splits: Vec::new(),
            tags: Vec::new(),
        }
    }

    #[must_use]
    pub fn tag(mut self, name: &str, value: &str) -> Self {
        self.tags.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Makes a [`Policy`] the routing policy of this crate.
#[macro_export]
macro_rules! routing_policy {
    ($policy:ty) => {
        const _: () = {
            static POLICY: ::std::sync::OnceLock<$policy> = ::std::sync::OnceLock::new();

            struct Exported;

            impl $crate::routing::wit::exports::tidegate::policy::setup::Guest for Exported {
                fn init(config: String) -> Result<$crate::routing::Descriptor, String> {
                    let (policy, descriptor) = <$policy as $crate::routing::Policy>::init(&config)?;
                    if POLICY.set(policy).is_err() {
                        return Err("init was called twice".to_owned());
                    }
                    drop(config);
                    $crate::reserve();
                    Ok(descriptor)
                }
            }

            impl $crate::routing::wit::exports::tidegate::policy::routing::Guest for Exported {
                fn decide(
                    why: $crate::routing::Occasion,
                    message: $crate::routing::Message,
                ) -> Result<$crate::routing::Decision, $crate::routing::PolicyError> {
                    match POLICY.get() {
                        Some(policy) => $crate::routing::Policy::decide(policy, why, message),
                        None => Err($crate::routing::PolicyError::Broken(
                            "init was not called".to_owned(),
                        )),
                    }
                }
            }

    $crate::routing::wit::export_routing!(Exported with_types_in $crate::routing::wit);
        };
    };
}
