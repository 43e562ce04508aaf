//! Tasks of the project, so that nobody needs to remember a command line: `cargo xtask --help`.

mod bench;
mod demo;
mod host;
mod kill;
mod plugins;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, shows, tests and measures Tidegate.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows the gateway at work on this machine, from submission to log, and stops by itself.
    Demo(demo::Arguments),
    /// Installs what is missing, builds everything and runs every check and test.
    Test(test::Arguments),
    /// Kills the gateway again and again under load, and counts what became of the mail.
    Kill(kill::Arguments),
    /// Builds the policies under plugins/ as WebAssembly.
    Plugins,
    /// Measures.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// Relaying on loopback: rate, CPU, memory and latency, beside other mail servers
    /// where installed.
    Relay(bench::relay::Arguments),
    /// A queue of a million recipients for sites that do not answer: memory, what it costs other
    /// mail, and how long a restart takes.
    Backlog(bench::backlog::Arguments),
    /// A delivery log of ten million events: how long the first page of a search takes.
    Log(bench::log::Arguments),
    /// Instructions for each message on parts of the hot path, beside the committed baseline.
    Instructions(bench::instructions::Arguments),
    /// Runs the benchmarks and writes docs/benchmarks.md.
    Report(bench::report::Arguments),
    /// Policies: CPU per decision beside Lua and a policy service, memory, and time to live.
    Policy(bench::policy::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Kill(arguments) => kill::run(&arguments),
        Task::Plugins => plugins::build(&host::root()).map(drop),
        Task::Bench(Bench::Relay(arguments)) => bench::relay::run(&arguments),
        Task::Bench(Bench::Backlog(arguments)) => bench::backlog::run(&arguments),
        Task::Bench(Bench::Log(arguments)) => bench::log::run(&arguments),
        Task::Bench(Bench::Instructions(arguments)) => bench::instructions::run(&arguments),
        Task::Bench(Bench::Report(arguments)) => bench::report::run(&arguments),
        Task::Bench(Bench::Policy(arguments)) => bench::policy::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes; a backtrace helps nobody here.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
