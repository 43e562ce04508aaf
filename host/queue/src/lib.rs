//! The engine of the queue and the ports it works through.
//!
//! It accepts, schedules, delivers, notifies, exports and sweeps. It knows nothing of
//! SQL, wasmtime or sockets, and reads no clock but the one it is given.

pub mod control;
pub mod directory;
pub mod engine;
pub mod intake;
pub mod measure;
pub mod ports;
pub mod rollout;
pub mod route;
mod schedule;
pub mod settings;
pub mod shape;

pub use directory::Directory;
pub use engine::{Engine, Parts};
pub use intake::{Intake, Submission};
pub use ports::*;
pub use rollout::{Activation, Purpose, Step};
pub use schedule::{Piece, QuotaUse};
pub use settings::Settings;
