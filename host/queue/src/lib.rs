//! The engine of the queue and the ports it works through.
//!
//! It accepts, schedules, delivers, notifies, exports and sweeps. It knows nothing of
//! SQL, wasmtime or sockets, and reads no clock but the one it is given.

pub mod directory;
pub mod ports;
pub mod route;
pub mod shape;

pub use directory::Directory;
pub use ports::*;
