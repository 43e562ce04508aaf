//! What a session is told by its listener.

use std::sync::Arc;

/// Limits and offers of a session. One value serves all sessions of a listener.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name in greeting and EHLO reply; the domain of a bare `<postmaster>`.
    pub hostname: Arc<str>,
    /// Largest message in bytes, announced as SIZE (RFC 1870).
    pub max_size: u64,
    /// Most recipients of a message, announced as LIMITS RCPTMAX (RFC 9422).
    pub max_recipients: usize,
    /// Largest header block, in bytes.
    pub max_header: usize,
    /// More Received fields than this is a loop (RFC 5321 s. 6.3).
    pub max_hops: usize,
    /// Longest line of a message, in bytes without CRLF. RFC 5322 s. 2.1.1 allows 998.
    pub text_line_limit: usize,
    /// This many commands refused in one connection end it with 421.
    pub max_errors: u32,
    /// This many commands without a message accepted between them end it with 421.
    pub max_idle_commands: u32,
    /// This many failed AUTH commands end the connection with 421.
    pub max_auth_failures: u32,
    /// Whether STARTTLS is offered while the connection is in clear.
    pub starttls: bool,
    /// Whether AUTH is offered without TLS. Only for listeners on loopback.
    pub allow_plain_auth: bool,
    /// Whether a bare CR or LF is made a CRLF instead of being refused.
    pub repair_line_ends: bool,
    /// Whether REQUIRETLS (RFC 8689) is offered over TLS.
    pub requiretls: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            hostname: "localhost".into(),
            max_size: 32 * 1024 * 1024,
            max_recipients: 1_000,
            max_header: 256 * 1024,
            max_hops: 50,
            text_line_limit: 65_536,
            max_errors: 20,
            max_idle_commands: 200,
            max_auth_failures: 3,
            starttls: true,
            allow_plain_auth: false,
            repair_line_ends: false,
            requiretls: false,
        }
    }
}
