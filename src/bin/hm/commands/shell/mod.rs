//! `hm shell`.

mod relay;
mod terminal;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    pin::pin,
    process::ExitCode,
};

use hm_exec::runner::sandbox::{Errand, VisitError};
use relay::Relay;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    failure::{Failure, Outcome},
    left::Left,
    render::to_stderr,
    signals::Interrupts,
};

const LONG_HELP: &str = "\
Examples:
  hm shell test                     a shell in what the step `test` of the last run left
  hm shell 3fa2/test                the same for an earlier run
  hm shell test -- ls -l target     one command
  echo 'cat report.xml' | hm shell test

The shell has the step's variables, work directory and network. What it changes is thrown away when it ends, and
the run's secrets are not there: they are never stored. Failed and interrupted steps keep their files for a while,
passed ones under `hm run --keep` or a cache policy.

The exit code is that of the shell or command; 3 and a message where there could be none.";

/// Opens a shell in what a step left
///
/// On a terminal an interactive one; elsewhere commands come from stdin, or follow `--`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    /// The step; RUN is the beginning of a run's id, by default the last run of this directory
    #[arg(value_name = "[RUN/]STEP")]
    step: String,

    /// A command to run instead of a shell
    #[arg(value_name = "CMD", last = true)]
    command: Vec<String>,

    /// The source directory of the pipeline; without it, the nearest directory upwards that has `.hm/`
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Changes to the working directory, or reports that the step removed it, and executes the requested command.
/// Every root that runs steps has a `/bin/sh`.
const START: &str = r#"cd -- "$1" 2>/dev/null || echo "hm: there is no directory $1 any more: this is /" >&2
flag=$2
shift 2
if [ $# -gt 0 ]; then exec "$@"; fi
if [ -x /bin/bash ]; then exec /bin/bash $flag; fi
exec /bin/sh $flag"#;

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let left = Left::find(&args.step, args.dir.as_deref())?;
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    to_stderr(&hint(&left));
    let flag = if interactive { "-i" } else { "" };
    let argv: Vec<String> = ["/bin/sh", "-c", START, "hm", &*left.surroundings.workdir, flag]
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::infrastructure("failed to start the runtime").because(error))?;
    let errand = Errand::Run { argv: &argv, surroundings: &left.surroundings, env: &env };
    let ended = runtime.block_on(async {
        let listening = |error| Failure::infrastructure("failed to listen for signals").because(error);
        let mut interrupts = Interrupts::listen().map_err(listening)?;
        let mut resized = signal(SignalKind::window_change()).map_err(listening)?;
        let mut visit = pin!(left.visit(errand, streams));
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
        None => Ok(ExitCode::from(130)),
        Some(Ok(code)) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
        Some(Err(error @ VisitError::Errand { .. })) => {
            Err(Failure::infrastructure("failed to start the shell").because(error).hint("an image needs a /bin/sh"))
        }
        Some(Err(error)) => Err(left.failed(error)),
    }
}

fn hint(left: &Left) -> String {
    let secrets = if left.surroundings.had_secrets { "; its secrets are not here" } else { "" };
    format!("{}: changes are thrown away at exit{secrets}", left.describe())
}
