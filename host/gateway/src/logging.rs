//! The process's own messages, on standard error.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// From here on `tracing` writes to standard error. Once per process.
pub fn start(level: &str, format: LogFormat) {
    // The configuration was checked; a filter that does not parse can't come here.
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            builder.with_ansi(std::io::stderr().is_terminal()).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
