//! Steps of a program that has no helper: a watchdog is in the group of their shell.
//!
//! The shell dies with the process that started it, even if that is killed:
//!
//! ```text
//! hm ---- pipe (held open, never written to) ----> watchdog: `read` ends with hm, then it kills the group
//!  \----> [setsid] sh SUPERVISOR --exec--> sh -c COMMAND
//!                       \--fork, orphaned--> watchdog
//! ```
//!
//! The watchdog is in the step's group, so that it is killed together with it. It is not a child of the
//! command, because the command may wait for all of its children.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use uuid::Uuid;

use super::{group::Group, launch::Launch, output::pump};
use crate::{
    awake, open_files,
    runner::{RunnerError, StepContext},
};

/// How long to wait for the end of the output when all processes are dead: only a process that escaped can
/// still hold the pipes.
const DRAIN: Duration = Duration::from_millis(500);

/// The name of the watchdog, as its `$0`.
pub(super) const WATCHDOG_NAME: &str = "hm-watchdog";

/// The arguments: `$0` is the shell, `$1` the path of the program, and the others are those of the program.
/// Standard input is the pipe.
const SUPERVISOR: &str = r#"
exec 3<&0 </dev/null
(
    (
        trap '' HUP INT QUIT TERM
        exec env -i PATH="$PATH" /bin/sh -c "$WATCHDOG" hm-watchdog "$$" "$HM_STEP_MARK" <&3 3<&- >/dev/null 2>&1
    ) &
)
exec 3<&-
unset WATCHDOG
exec "$@"
"#;

/// The arguments: `$1` is the group, `$2` the mark. Processes that left the group are killed first: they
/// cannot start others once they have received the signal.
const WATCHDOG: &str = r#"
read -r _
for round in 1 2 3 4 5; do
    found=
    for environment in $(grep -lsF -- "HM_STEP_MARK=$2" /proc/[0-9]*/environ); do
        process=${environment#/proc/}
        kill -KILL "${process%/environ}" && found=1
    done
    [ "$found" ] || break
done
kill -KILL -- "-$1"
"#;

/// Runs the command to its end, and returns its exit code. All output has been forwarded, and no process is
/// left, when this returns.
pub(super) async fn run(ctx: &StepContext, step_id: Uuid, launch: &Launch) -> Result<i32, RunnerError> {
    let mut child = start(launch).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => {
            RunnerError::unsupported("the command or its environment contains a NUL byte or a variable without a name")
        }
        _ => RunnerError::infrastructure("start a shell", error),
    })?;
    let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let leader = leader
        .ok_or_else(|| RunnerError::infrastructure("start a shell", io::Error::other("the process has no id")))?;
    // Held until the end: the watchdog waits for this end of the pipe to close.
    let _lifeline = child.stdin.take();
    let mut group = Group::new(leader, launch.mark.clone());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut output = pin!(pump(stdout.zip(stderr), &ctx.event_bus, step_id));
    let mut drained = false;
    let ended = {
        let mut ended = pin!(end(ctx, &mut child, &group));
        loop {
            tokio::select! {
                ended = &mut ended => break ended,
                () = &mut output, if !drained => drained = true,
            }
        }
    };
    group.end().await;
    if !drained && awake::timeout(DRAIN, output).await.is_none() {
        tracing::warn!("a process outside of the step's process group still holds its output open");
    }
    let status = ended?;
    Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1))
}

/// Waits for the shell to end by itself, or ends it when `ctx.cancel` fires.
async fn end(ctx: &StepContext, child: &mut Child, group: &Group) -> Result<ExitStatus, RunnerError> {
    let waited = |status: io::Result<ExitStatus>| {
        status.map_err(|error| RunnerError::infrastructure("wait for the step's shell", error))
    };
    tokio::select! {
        biased;
        status = child.wait() => return waited(status),
        () = ctx.cancel.cancelled() => group.signal(Signal::TERM),
    }
    // The shell may be the first to end. The other processes have the same grace.
    let ended = {
        let last = pin!(async {
            let shell = child.wait().await;
            group.ended().await;
            shell
        });
        awake::timeout(ctx.grace, last).await
    };
    match ended {
        Some(shell) => drop(waited(shell)?),
        None => {
            group.signal(Signal::KILL);
            waited(child.wait().await)?;
        }
    }
    Err(ctx.interrupted())
}

/// Starts the shell: in a session of its own if there is `setsid`, otherwise in a process group of its own.
fn start(launch: &Launch) -> io::Result<Child> {
    let mut command = match setsid() {
        Some(setsid) => {
            let mut command = Command::new(setsid);
            command.arg("/bin/sh");
            command
        }
        None => {
            let mut command = Command::new("/bin/sh");
            command.process_group(0);
            command
        }
    };
    let limit = open_files::for_steps().map(|limit| format!("ulimit -Sn {limit}")).unwrap_or_default();
    command.args(["-c", &format!("{limit}{SUPERVISOR}"), "/bin/sh"]);
    command
        .args(&launch.argv)
        .env_clear()
        .envs(&launch.env)
        .env("WATCHDOG", WATCHDOG)
        .current_dir(&launch.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Finds `setsid`, which Linux distributions have. Without a session of its own a step could ask for
/// passwords on the user's terminal.
fn setsid() -> Option<PathBuf> {
    ["/usr/bin/setsid", "/bin/setsid"].map(PathBuf::from).into_iter().find(|path| path.exists())
}
