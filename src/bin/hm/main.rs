//! The `hm` command: arguments, rendering, exit codes. The library defines what a build is.

mod args;
mod commands;
mod consent;
mod failure;
mod history;
#[cfg(target_os = "linux")]
mod left;
mod log;
mod pipelines;
mod project_id;
mod remote;
mod render;
mod runners;
mod signals;
mod warnings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{cache, doctor, list, plan, render as render_ir, run, runners as runner_list, trust};
#[cfg(target_os = "linux")]
use commands::{cp, logs, logstream, shell, why, worker};

/// Run CI pipelines: graphs of isolated shell steps, each starting from its parent's files
#[derive(Debug, Parser)]
#[command(name = "hm", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Plan(plan::Args),
    Pipelines(list::Args),
    Render(render_ir::Args),
    Runners(runner_list::Args),
    Trust(trust::Args),
    #[cfg(target_os = "linux")]
    Shell(shell::Args),
    #[cfg(target_os = "linux")]
    Logs(logs::Args),
    #[cfg(target_os = "linux")]
    Why(why::Args),
    #[cfg(target_os = "linux")]
    Cp(cp::Args),
    Cache(cache::Args),
    #[cfg(target_os = "linux")]
    Worker(worker::Args),
    #[cfg(target_os = "linux")]
    Logstream(logstream::Args),
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    // This comes first because the process may be the sandbox's helper, started again.
    #[cfg(target_os = "linux")]
    hm_exec::runner::sandbox::init();
    hm_exec::runner::docker::init();
    hm_exec::open_files::raise_limit();
    let command = Cli::parse().command;
    log::init();
    let done = match command {
        Command::Run(args) => run::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Pipelines(args) => list::run(&args),
        Command::Render(args) => render_ir::run(&args),
        Command::Runners(args) => runner_list::run(&args),
        Command::Trust(args) => trust::run(&args),
        #[cfg(target_os = "linux")]
        Command::Shell(args) => shell::run(&args),
        #[cfg(target_os = "linux")]
        Command::Logs(args) => logs::run(&args),
        #[cfg(target_os = "linux")]
        Command::Why(args) => why::run(&args),
        #[cfg(target_os = "linux")]
        Command::Cp(args) => cp::run(&args),
        Command::Cache(args) => cache::run(&args),
        #[cfg(target_os = "linux")]
        Command::Worker(args) => worker::run(&args),
        #[cfg(target_os = "linux")]
        Command::Logstream(args) => logstream::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    done.unwrap_or_else(|failure| failure.report())
}
