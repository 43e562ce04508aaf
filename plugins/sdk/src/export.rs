//! The log export world: what do these events look like to the system that wants them?

#[doc(hidden)]
pub mod wit {
    wit_bindgen::generate!({
        world: "log-exporter",
        path: "../../wit/tidegate-policy-1.0.0",
        pub_export_macro: true,
        default_bindings_module: "tidegate_guest::export::wit",
        export_macro_name: "export_exporter",
    });
}

pub use wit::exports::tidegate::policy::log_export::{Event, Payload};
pub use wit::exports::tidegate::policy::setup::Descriptor;
pub use wit::tidegate::policy::log;
pub use wit::tidegate::policy::types::{Facts, Millis, PolicyError};

/// What an exporter is.
pub trait Exporter: Sized + Send + Sync + 'static {
    /// Reads the configuration. An error refuses the upload: name the key and the remedy.
    fn init(config: &str) -> Result<(Self, Descriptor), String>;

    /// Renders up to 512 events, in order, within 200 ms.
    fn render(&self, batch: Vec<Event>) -> Result<Vec<Payload>, PolicyError>;
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

impl Event {
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

impl Payload {
    /// One request, or one append to a file.
    pub fn new(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Payload {
            body: body.into(),
            content_type: content_type.to_owned(),
        }
    }
}

/// Makes an [`Exporter`] the log exporter of this crate.
#[macro_export]
macro_rules! log_exporter {
    ($exporter:ty) => {
        const _: () = {
            static EXPORTER: ::std::sync::OnceLock<$exporter> = ::std::sync::OnceLock::new();

            struct Exported;

            impl $crate::export::wit::exports::tidegate::policy::setup::Guest for Exported {
                fn init(config: String) -> Result<$crate::export::Descriptor, String> {
                    let (exporter, descriptor) =
                        <$exporter as $crate::export::Exporter>::init(&config)?;
                    if EXPORTER.set(exporter).is_err() {
                        return Err("init was called twice".to_owned());
                    }
                    drop(config);
                    $crate::reserve();
                    Ok(descriptor)
                }
            }

            impl $crate::export::wit::exports::tidegate::policy::log_export::Guest for Exported {
                fn render(
                    batch: Vec<$crate::export::Event>,
                ) -> Result<Vec<$crate::export::Payload>, $crate::export::PolicyError> {
                    match EXPORTER.get() {
                        Some(exporter) => $crate::export::Exporter::render(exporter, batch),
                        None => Err($crate::export::PolicyError::Broken(
                            "init was not called".to_owned(),
                        )),
                    }
                }
            }

    $crate::export::wit::export_exporter!(Exported with_types_in $crate::export::wit);
        };
    };
}
