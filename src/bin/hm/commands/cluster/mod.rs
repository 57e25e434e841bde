//! The commands of a machine in a cluster.

mod logstream;
mod worker;

use std::process::ExitCode;

use crate::failure::Outcome;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Worker(worker::Args),
    Logstream(logstream::Args),
}

pub(crate) fn run(command: &Command) -> Outcome<ExitCode> {
    match command {
        Command::Worker(args) => worker::run(args),
        Command::Logstream(args) => logstream::run(args),
    }
}
