//! `hm completions`.

use std::process::ExitCode;

use clap_complete::Shell;

use super::print;
use crate::{
    cli,
    failure::{Failure, Outcome},
};

const LONG_HELP: &str = "\
Examples:
  hm completions bash > ~/.local/share/bash-completion/completions/hm
  hm completions zsh > ~/.zfunc/_hm
  hm completions fish > ~/.config/fish/completions/hm.fish";

/// Print a script that completes the commands and options of hm in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = LONG_HELP)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli(), "hm", &mut script);
    let script = String::from_utf8(script)
        .map_err(|error| Failure::infrastructure("failed to generate the script").because(error))?;
    print(&script)
}
