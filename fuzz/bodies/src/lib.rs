//! The bodies of the fuzz targets: functions of bytes that panic where an invariant of a parser
//! does not hold.
//!
//! cargo-fuzz runs them under libFuzzer (`../fuzz_targets`), and a plain test runs them on every
//! change over the same seeds (`../tests/stable.rs`). They depend on the parsers and on nothing
//! else of the gateway, and nothing of the gateway depends on them.

mod address;
mod data;
mod driver;
mod dsn;
mod header;
mod input;
mod notice;
mod reply;
mod session;
mod sts;
mod xtext;

pub use address::address;
pub use data::data;
pub use dsn::dsn;
pub use header::header;
pub use notice::notice;
pub use reply::reply;
pub use session::session;
pub use sts::sts;
pub use xtext::xtext;

/// What is tried with an input.
pub type Body = fn(&[u8]);

/// Every target: its name, which is also that of its directory of seeds, and its body.
pub const TARGETS: [(&str, Body); 9] = [
    ("session", session),
    ("data", data),
    ("reply", reply),
    ("dsn", dsn),
    ("notice", notice),
    ("header", header),
    ("address", address),
    ("xtext", xtext),
    ("sts", sts),
];

/// What may not stand in a text that goes into a log, a field or a notice.
fn has_control(text: &str) -> bool {
    text.chars().any(|c| c.is_control() && c != '\t')
}
