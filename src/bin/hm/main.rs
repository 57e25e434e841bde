//! The `hm` command: arguments, rendering, exit codes. The library defines what a build is.

mod args;
mod backend;
mod browser;
mod commands;
mod config;
mod exit_code;
mod failure;
mod find_step;
mod logging;
mod otlp;
mod part;
mod pipelines;
mod previous_runs;
mod project_id;
mod reporter;
mod runners;
mod runtime;
mod service;
mod signals;
mod store;
mod trust;
mod typed_names;
mod warnings;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::reporter::style::ColorChoice;

/// Run CI pipelines: graphs of isolated shell steps, each starting from its parent's files
#[derive(Debug, Parser)]
#[command(name = "hm", version, max_term_width = 100, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,

    #[command(subcommand)]
    command: Command,
}

/// The options of all commands.
#[derive(Debug, clap::Args)]
struct GlobalArgs {
    /// Print hm's own debug log on stderr; HM_LOG chooses what it contains. With `hm plan`, print the
    /// commands of steps instead
    #[arg(short, long, global = true, hide_short_help = true)]
    verbose: bool,

    /// When to use colors; `auto` heeds NO_COLOR, FORCE_COLOR and CLICOLOR_FORCE
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto,
        hide_short_help = true)]
    color: ColorChoice,

    /// Same as `--color never`
    #[arg(long, global = true, hide_short_help = true)]
    no_color: bool,

    /// Write a trace of hm's own work to FILE, for chrome://tracing or Perfetto
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    debug_trace: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(commands::init::Args),
    Run(Box<commands::run::Args>),
    Plan(commands::plan::Args),
    Ls(commands::pipelines::ListArgs),
    Pipelines(commands::pipelines::Args),
    Render(commands::render::Args),
    Runners(commands::runners::Args),
    Plugin(commands::runners::PluginArgs),
    Trust(commands::trust::Args),
    Runs(commands::runs::Args),
    Logs(commands::logs::Args),
    Report(commands::report::Args),
    Inputs(commands::inputs::Args),
    Why(commands::why::Args),
    Verify(Box<commands::run::verify::Args>),
    Flaky(commands::flaky::Args),
    #[command(flatten)]
    StepFiles(commands::step_files::Command),
    Cache(commands::cache::Args),
    #[command(flatten)]
    Cluster(commands::cluster::Command),
    Cloud(Box<commands::cloud::Args>),
    Config(commands::config::Args),
    Schema(commands::schema::Args),
    Doctor(commands::doctor::Args),
    Completions(commands::completions::Args),
    #[command(hide = true)]
    Man(commands::man::Args),
    /// Print the version
    Version,
    Help(commands::help::Args),
}

/// Returns the whole command line interface.
fn cli() -> clap::Command {
    Cli::command().mut_subcommand("run", commands::run::shorten)
}

fn parse_args() -> Cli {
    let parsed = Cli::from_arg_matches_mut(&mut cli().get_matches());
    parsed.unwrap_or_else(|error| error.format(&mut cli()).exit())
}

fn main() -> ExitCode {
    // This comes first because the process may be the helper of a runner, started again.
    runners::init();
    commands::completions::answer();
    hm_exec::open_files::raise_limit();
    let Cli { global, command } = parse_args();
    reporter::style::choose_colors(if global.no_color { ColorChoice::Never } else { global.color });
    // Dropped last, when everything has been traced.
    let is_verbose = global.verbose && !matches!(command, Command::Plan(_));
    let _trace = match logging::init(is_verbose, global.debug_trace.as_deref()) {
        Ok(trace) => trace,
        Err(failure) => return failure.report(),
    };
    tracing::debug!(version = env!("CARGO_PKG_VERSION"), "started");
    let done = match command {
        Command::Init(args) => commands::init::run(&args),
        Command::Run(args) => commands::run::run(&args),
        Command::Plan(args) => commands::plan::run(&args, global.verbose),
        Command::Ls(args) => commands::pipelines::list(&args),
        Command::Pipelines(args) => commands::pipelines::run(&args),
        Command::Render(args) => commands::render::run(&args),
        Command::Runners(args) => commands::runners::run(&args),
        Command::Plugin(args) => commands::runners::plugin(&args),
        Command::Trust(args) => commands::trust::run(&args),
        Command::Runs(args) => commands::runs::run(&args),
        Command::Logs(args) => commands::logs::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Inputs(args) => commands::inputs::run(&args),
        Command::Why(args) => commands::why::run(&args),
        Command::Verify(args) => commands::run::verify::run(*args),
        Command::Flaky(args) => commands::flaky::run(&args),
        Command::StepFiles(command) => commands::step_files::run(&command),
        Command::Cache(args) => commands::cache::run(&args),
        Command::Cloud(args) => commands::cloud::run(&args),
        Command::Cluster(command) => commands::cluster::run(&command),
        Command::Config(args) => commands::config::run(&args),
        Command::Schema(args) => commands::schema::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
        Command::Man(args) => commands::man::run(&args),
        Command::Help(args) => commands::help::run(&args),
        Command::Version => commands::print(concat!("hm ", env!("CARGO_PKG_VERSION"), "\n")),
    };
    done.unwrap_or_else(|failure| failure.report())
}
