//! The `hm` command: arguments, rendering, exit codes. The library defines what a build is.

mod args;
mod commands;
mod config;
mod exit_code;
mod failure;
mod find_step;
mod logging;
mod pipelines;
mod previous_durations;
mod project_id;
mod reporter;
mod runners;
mod runtime;
mod signals;
mod store;
mod trust;
mod warnings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run CI pipelines: graphs of isolated shell steps, each starting from its parent's files
#[derive(Debug, Parser)]
#[command(name = "hm", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<commands::run::Args>),
    Plan(commands::plan::Args),
    Pipelines(commands::pipelines::Args),
    Render(commands::render::Args),
    Runners(commands::runners::Args),
    Trust(commands::trust::Args),
    Logs(commands::logs::Args),
    Why(commands::why::Args),
    #[command(flatten)]
    StepFiles(commands::step_files::Command),
    Cache(commands::cache::Args),
    #[command(flatten)]
    Cluster(commands::cluster::Command),
    Doctor(commands::doctor::Args),
}

fn main() -> ExitCode {
    // This comes first because the process may be the helper of a runner, started again.
    runners::init();
    hm_exec::open_files::raise_limit();
    let command = Cli::parse().command;
    logging::init();
    let done = match command {
        Command::Run(args) => commands::run::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Pipelines(args) => commands::pipelines::run(&args),
        Command::Render(args) => commands::render::run(&args),
        Command::Runners(args) => commands::runners::run(&args),
        Command::Trust(args) => commands::trust::run(&args),
        Command::Logs(args) => commands::logs::run(&args),
        Command::Why(args) => commands::why::run(&args),
        Command::StepFiles(command) => commands::step_files::run(&command),
        Command::Cache(args) => commands::cache::run(&args),
        Command::Cluster(command) => commands::cluster::run(&command),
        Command::Doctor(args) => commands::doctor::run(&args),
    };
    done.unwrap_or_else(|failure| failure.report())
}
