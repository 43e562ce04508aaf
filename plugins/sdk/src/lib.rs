//! Write a Tidegate policy in a few lines of Rust.
//!
//! ```ignore
//! use tidegate_guest::routing::*;
//!
//! struct OwnServer;
//!
//! impl Policy for OwnServer {
//!     fn init(_config: &str) -> Result<(Self, Descriptor), String> {
//!         Ok((OwnServer, Descriptor::new("own-server", "1.0.0")))
//!     }
//!
//!     fn decide(&self, _why: Occasion, message: Message) -> Result<Decision, PolicyError> {
//!         Ok(Decision::all(if message.sender.ends_with("@staff.example") {
//!             Action::passthrough("staff", AfterFailure::GiveUp)
//!         } else {
//!             Action::managed()
//!         }))
//!     }
//! }
//!
//! tidegate_guest::routing_policy!(OwnServer);
//! ```
//!
//! with `crate-type = ["cdylib"]` and `tidegate-guest = { ..., features = ["routing"] }`, built for
//! `wasm32-unknown-unknown`. The core module that comes out is what is uploaded.
//!
//! `init` runs once, at the upload; what it returns is kept in the instance's memory, which
//! becomes the starting point of every call. `decide`, `plan` and `render` get `&self`: nothing
//! that they change outlives the call.

mod alloc;
#[cfg(feature = "export")]
pub mod export;
#[cfg(feature = "routing")]
pub mod routing;
#[cfg(feature = "shaping")]
pub mod shaping;
mod time;

#[doc(hidden)]
pub use alloc::reserve;
pub use time::iso;
pub use wit_bindgen;
