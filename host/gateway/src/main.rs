//! The `tidegate` binary: configuration, command line, and the only place where the
//! concrete store, network and policy host meet.

mod check;
mod cli;
mod config;
mod data_dir;
mod host;
mod init;
mod logging;
mod parts;
mod policies;
mod secrets;
mod serve;
mod submission;
mod tls;

/// The allocator of the benchmarks: mail is many short-lived allocations on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
