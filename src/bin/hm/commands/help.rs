//! `hm help`: the help of commands, and of topics that concern several of them.

use std::{io, process::ExitCode};

use clap::{Command, builder::StyledStr};

use super::print;
use crate::{
    cli,
    failure::{Failure, Outcome},
    pipelines::nearest,
    reporter::{style::Style, text},
};

/// The topic of engines.
const REMOTE: &str = "remote";

/// An option that all commands have that talk to an engine.
const REMOTE_OPTION: &str = "remote";

const ABOUT_REMOTE: &str = "\
Steps can run on an engine that speaks the Remote Execution API, v2, such as a cluster of yours. Runner `cloud` sends
single steps there, and can be mixed with runners of this machine. `--backend cloud` is something else: it sends the
whole build to the hosted service.

Examples:
  hm runners --remote grpc://127.0.0.1:50051           whether the engine answers, and what is missing
  hm run --runner cloud --remote grpc://127.0.0.1:50051 --image host=debian:bookworm
                                                       run all steps there that name no runner
  hm run --remote grpc://127.0.0.1:50051 --remote-cache both
                                                       run on this machine, and share results through the engine";

const MORE_OF_REMOTE: &str = "\
In hm.toml:
  Each option is a key of the table [remote], too: `hm schema config` prints them all.

  [remote]
  endpoint = \"grpcs://engine.example:443\"
  instance = \"main\"
  headers = { authorization = \"Bearer TOKEN\" }

  An option wins over a variable, a variable over the project's file, and that over yours in ~/.config/hm. An engine
  that the project names needs your consent (`hm trust`), and gets no headers and keys of yours.

Workers for an engine: `hm worker --help`, and the page `cluster` of the guide.";

/// Print the help of a command, or of a topic
///
/// Topics: `remote`, for steps on an engine of yours.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The command, such as `run` or `cache gc`, or the topic
    #[arg(value_name = "COMMAND")]
    words: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let mut command = cli();
    command.build();
    if *args.words == [REMOTE] {
        let options = shown(&remote_options(&command).render_long_help());
        let commands = with_remote(&command).join(", ");
        return print(&format!(
            "{ABOUT_REMOTE}\n\nOptions of {commands}:\n{}\n\n{MORE_OF_REMOTE}\n",
            options.trim_end()
        ));
    }
    let mut found = &command;
    for word in &args.words {
        found = found.find_subcommand(word).ok_or_else(|| unknown(found, word))?;
    }
    print(&shown(&found.clone().render_long_help()))
}

/// Returns the names that can follow `hm help`.
pub(super) fn names(command: &Command) -> Vec<String> {
    let commands = command.get_subcommands().filter(|below| !below.is_hide_set());
    commands.map(Command::get_name).chain([REMOTE]).map(str::to_owned).collect()
}

fn unknown(command: &Command, word: &str) -> Failure {
    let failure = Failure::input(format_args!("no command or topic `{}`", text::clean(word)));
    let known = names(command);
    match nearest(word, &known) {
        Some(near) => failure.hint(format_args!("did you mean `{near}`?")),
        None => failure.hint("run `hm help` for all commands; the topic is `remote`"),
    }
}

/// Returns the text with colours if the terminal has them.
fn shown(help: &StyledStr) -> String {
    if Style::of(&io::stdout()).colors { help.ansi().to_string() } else { help.to_string() }
}

/// Returns a command with the options of engines alone.
fn remote_options(command: &Command) -> Command {
    let run = command.find_subcommand("run");
    let all = run.into_iter().flat_map(Command::get_arguments);
    let options = all.filter(|arg| arg.get_long().is_some_and(|long| long.starts_with(REMOTE_OPTION)));
    Command::new(REMOTE)
        .disable_help_flag(true)
        .max_term_width(100)
        .help_template("{options}")
        .args(options.map(|arg| arg.clone().help_heading(None)))
}

/// Returns the commands that have these options.
fn with_remote(command: &Command) -> Vec<&str> {
    let has_option = |below: &&Command| below.get_arguments().any(|arg| arg.get_long() == Some(REMOTE_OPTION));
    let found = command.get_subcommands().filter(|below| !below.is_hide_set());
    let mut names: Vec<&str> = found.filter(has_option).map(Command::get_name).collect();
    names.sort_unstable();
    names
}
