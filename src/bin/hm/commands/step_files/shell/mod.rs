//! `hm shell`.

mod relay;
mod terminal;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    pin::pin,
    process::ExitCode,
};

use hm_exec::{
    quote::quote,
    runner::sandbox::{VisitError, VisitOperation},
    store::SnapshotConfig,
};
use relay::Relay;
use tokio::signal::unix::SignalKind;

use super::StepFiles;
use crate::{
    exit_code,
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
    runtime::runtime,
    signals::{Interrupts, listen},
};

const LONG_HELP: &str = "\
Examples:
  hm shell test                     open a shell in the files of step `test` of the last run
  hm shell 3fa2/test                the same for an earlier run
  hm shell test -- ls -l target     run one command
  echo 'cat report.xml' | hm shell test

The shell has the step's variables, work directory and network. `hm rerun` in it runs the step's command again; in bash,
the Up key brings it back to be edited. Changes are discarded when the shell exits. The run's secrets are not available,
because they are never stored; services, cache directories, files of other steps and limits are not there, either. The
files of failed and interrupted steps are kept for a while, those of passed steps only
with `hm run --keep` or a cache policy.

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

/// The most lines and columns of a step's command that are shown.
const COMMAND_LINES: usize = 8;
const COMMAND_CHARS: usize = 400;
/// A longer command cannot be run again.
const MAX_COMMAND_BYTES: usize = 120 << 10;

/// Changes to the working directory, or reports that the step removed it, and executes the requested command.
/// Every root that runs steps has a `/bin/sh`.
///
/// An interactive shell gets a file with its prompt and the function `hm`, which is deleted with all
/// changes. If the step left no place for it, the shell is a plain one.
const START: &str = r#"cd -- "$1" 2>/dev/null || echo "hm: directory $1 does not exist, starting in /" >&2
flag=$2 rc=
if [ -n "$3" ]; then
    for dir in /tmp /run /; do
        rc=$dir/.hm-shell
        (umask 022; rm -f "$rc"; printf '%s\n' "$3" > "$rc") 2>/dev/null && break
        rc=
    done
fi
shift 3
if [ $# -gt 0 ]; then exec "$@"; fi
if [ -x /bin/bash ]; then
    if [ -n "$rc" ]; then exec /bin/bash --rcfile "$rc" $flag; fi
    exec /bin/bash $flag
fi
if [ -n "$rc" ]; then export ENV="$rc"; fi
exec /bin/sh $flag"#;

/// What an interactive shell reads first, after the step's name, its command and its work directory.
const RC: &str = r#"if [ -n "$BASH_VERSION" ]; then
    [ -f ~/.bashrc ] && . ~/.bashrc
    PS1='hm:'$hm_step' \w \$ '
    [ -z "$hm_command" ] || history -s "$hm_command"
else
    unset ENV
    PS1='hm:'$hm_step' $PWD # '
fi
hm() {
    if [ "$*" != rerun ]; then
        echo "hm: only \`hm rerun\` works in here; \`exit\` leaves the step" >&2
        return 2
    elif [ -z "$hm_command" ]; then
        echo "hm: the command of this step is not known" >&2
        return 2
    fi
    (cd -- "$hm_workdir" && /bin/sh -c "$hm_command")
}
"#;

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let files = StepFiles::find(&args.step, args.dir.as_deref())?;
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    to_stderr(&hint(&files));
    let is_shell = interactive && args.command.is_empty();
    let rc = if is_shell { rc(&files) } else { String::new() };
    if is_shell && let Some(command) = &files.surroundings.cmd {
        to_stderr(&text_of(command));
    }
    let flag = if interactive { "-i" } else { "" };
    let argv: Vec<String> = ["/bin/sh", "-c", START, "hm", &*files.surroundings.workdir, flag, &rc]
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

/// Returns the file that an interactive shell reads first.
fn rc(files: &StepFiles) -> String {
    // A shell expands its prompt, and the key may be anything.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let name: String = files.step.key.chars().map(|c| if is_plain(c) { c } else { '?' }).collect();
    // An argument of a program is limited.
    let command = files.surroundings.cmd.as_deref().filter(|command| quote(command).len() <= MAX_COMMAND_BYTES);
    let command = command.unwrap_or_default();
    let variables = [("hm_step", &*name), ("hm_command", command), ("hm_workdir", &*files.surroundings.workdir)];
    let variables: Vec<String> = variables.map(|(variable, value)| format!("{variable}={}\n", quote(value))).into();
    variables.concat() + RC
}

/// Returns what a shell shows of the step's command.
fn text_of(command: &str) -> String {
    let mut shown = String::new();
    let mut lines = command.trim().lines();
    for (at, line) in lines.by_ref().take(COMMAND_LINES).enumerate() {
        shown.push_str(if at == 0 { "  $ " } else { "    " });
        shown.push_str(&text::cut(&text::clean(line), COMMAND_CHARS));
        shown.push('\n');
    }
    if lines.next().is_some() {
        shown.push_str("    …\n");
    }
    shown + "`hm rerun` runs it again, `exit` leaves the step"
}

fn hint(files: &StepFiles) -> String {
    let absent = absent(&files.surroundings);
    let absent = if absent.is_empty() { String::new() } else { format!("; without its {}", absent.join(", ")) };
    format!("{}: changes are discarded at exit{absent}", files.describe())
}

/// Returns what the step had around it and the shell does not have.
fn absent(surroundings: &SnapshotConfig) -> Vec<&'static str> {
    let args = surroundings.runner_args.as_ref();
    let has = |arg: &&str| args.and_then(|args| args.get(*arg)).is_some_and(|value| !value.is_null());
    let named = [
        ("services", "services"),
        ("caches", "cache directories"),
        ("inputs", "files of other steps"),
        ("memory", "memory limit"),
        ("cpus", "limit on processors"),
        ("pids", "limit on processes"),
    ];
    let secrets = surroundings.had_secrets.then_some("secrets");
    secrets.into_iter().chain(named.iter().filter(|(arg, _)| has(arg)).map(|(_, name)| *name)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_shell_does_not_have_is_named() {
        let mut surroundings = SnapshotConfig::in_workdir("/workspace");
        assert!(absent(&surroundings).is_empty());
        surroundings.had_secrets = true;
        surroundings.runner_args = Some(json!({ "services": { "db": {} }, "memory": "64MiB", "caches": null, "x": 1 }));
        assert_eq!(absent(&surroundings), ["secrets", "services", "memory limit"]);
    }
}
