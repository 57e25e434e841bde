//! `hm shell`.

mod relay;
mod terminal;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    pin::pin,
    process::ExitCode,
};

use hm_exec::runner::sandbox::{VisitError, VisitOperation};
use relay::Relay;
use tokio::signal::unix::SignalKind;

use super::StepFiles;
use crate::{
    exit_code,
    failure::{Failure, Outcome},
    reporter::to_stderr,
    runtime::runtime,
    signals::{Interrupts, listen},
};

const LONG_HELP: &str = "\
Examples:
  hm shell test                     open a shell in the files of step `test` of the last run
  hm shell 3fa2/test                the same for an earlier run
  hm shell test -- ls -l target     run one command
  echo 'cat report.xml' | hm shell test

The shell has the step's variables, work directory and network. Its changes are discarded when it exits. The run's
secrets are not available, because they are never stored. The files of failed and interrupted steps are kept for a
while, those of passed steps only with `hm run --keep` or a cache policy.

Exits with the exit code of the shell or command, or with 3 if it could not be started.";

/// Open a shell in a step's filesystem
///
/// The shell is interactive on a terminal. Otherwise it reads commands from stdin.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    /// The step; RUN is a prefix of a run's id [default: the last run of this directory]
    #[arg(value_name = "[RUN/]STEP")]
    step: String,

    /// Run a command instead of a shell
    #[arg(value_name = "CMD", last = true)]
    command: Vec<String>,

    /// The pipeline's source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Changes to the working directory, or reports that the step removed it, and executes the requested command.
/// Every root that runs steps has a `/bin/sh`.
const START: &str = r#"cd -- "$1" 2>/dev/null || echo "hm: directory $1 does not exist, starting in /" >&2
flag=$2
shift 2
if [ $# -gt 0 ]; then exec "$@"; fi
if [ -x /bin/bash ]; then exec /bin/bash $flag; fi
exec /bin/sh $flag"#;

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let files = StepFiles::find(&args.step, args.dir.as_deref())?;
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    to_stderr(&hint(&files));
    let flag = if interactive { "-i" } else { "" };
    let argv: Vec<String> = ["/bin/sh", "-c", START, "hm", &*files.surroundings.workdir, flag]
        .into_iter()
        .map(String::from)
        .chain(args.command.iter().cloned())
        .collect();
    let mut env = Vec::new();
    if interactive && let Ok(term) = std::env::var("TERM") {
        env.push(("TERM".to_owned(), term));
    }
    let failed = |error| Failure::infrastructure("failed to open the shell's streams").because(error);
    let (relay, streams) = if interactive { Relay::terminal() } else { Relay::pipes() }.map_err(failed)?;
    let runtime = runtime()?;
    let errand = VisitOperation::Run { argv: &argv, surroundings: &files.surroundings, env: &env };
    let ended = runtime.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let mut resized = listen(SignalKind::window_change())?;
        let mut visit = pin!(files.visit(errand, streams));
        let ended = loop {
            tokio::select! {
                ended = &mut visit => break Some(ended),
                _ = resized.recv() => relay.resize(),
                () = interrupts.next() => break None,
            }
        };
        Outcome::Ok(ended)
    });
    // Before anything else is printed, all of the shell's output is shown and the terminal is restored.
    relay.finish(matches!(ended, Ok(Some(Ok(_)))));
    match ended? {
        None => Ok(ExitCode::from(exit_code::INTERRUPTED)),
        Some(Ok(code)) => Ok(exit_code::of_program(code)),
        Some(Err(error @ VisitError::Operation { .. })) => Err(Failure::infrastructure("failed to start the shell")
            .because(error)
            .hint("the image must have a /bin/sh")),
        Some(Err(error)) => Err(files.failed(error)),
    }
}

fn hint(files: &StepFiles) -> String {
    let secrets = if files.surroundings.had_secrets { "; its secrets are not available" } else { "" };
    format!("{}: changes are discarded at exit{secrets}", files.describe())
}
