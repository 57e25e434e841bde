//! `hm completions`, and the answers to the scripts that it prints.

mod candidates;

use std::process::ExitCode;

use clap_complete::{CompleteEnv, Shell, env::Shells};

use super::print;
use crate::{
    cli,
    failure::{Failure, Outcome},
};

const LONG_HELP: &str = "\
Examples, for the files that these shells read at their start:
  source <(hm completions bash)     ~/.bashrc
  source <(hm completions zsh)      ~/.zshrc, after compinit
  hm completions fish | source      ~/.config/fish/config.fish

The script asks hm for what can follow: options, pipelines and steps. It belongs to the version of hm that printed it.
Nothing of a project is run for that: pipelines in Python or TypeScript, and their steps, are completed after their
first run.";

/// The variable with which a script asks hm what can follow.
const VARIABLE: &str = "HM_COMPLETE";

/// Print a script that completes options, pipelines and steps in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = LONG_HELP)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let failed = || Failure::infrastructure("failed to generate the script");
    let name = args.shell.to_string();
    let shell = Shells::builtins();
    let shell = shell.completer(&name).ok_or_else(failed)?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "hm", "hm", "hm", &mut script).map_err(|error| failed().because(error))?;
    print(&String::from_utf8(script).map_err(|error| failed().because(error))?)
}

/// Answers a script's question and ends the process, if there is one in the environment. Must be called
/// before there are other threads, because it changes the environment.
pub(crate) fn answer() {
    CompleteEnv::with_factory(|| candidates::add_to(cli())).var(VARIABLE).bin("hm").completer("hm").complete();
}
