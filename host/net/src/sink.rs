//! Sinks of the log export: a rotated file, and an HTTP endpoint.

mod answer;
mod file;
mod http;
mod sign;
mod target;

pub use file::{FileSink, FileSinkConfig};
pub use http::{HttpSink, HttpSinkConfig, Secret};
pub use target::{Credential, Scheme, Target, header};
