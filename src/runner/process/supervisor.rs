//! Starts the shell of a step, so that it dies with the process that started it, even if that is killed.
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
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::{Child, Command};

use crate::open_files;

/// The variable by which a step's processes are found.
pub(super) const MARK: &str = "HM_STEP_MARK";

/// The name of the watchdog, as its `$0`.
pub(super) const WATCHDOG_NAME: &str = "hm-watchdog";

/// The arguments: `$0` is the shell, `$1` the option, `$2` its argument: `-c COMMAND`, or a file. Standard
/// input is the pipe.
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
exec /bin/sh "$@"
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

/// The longest command to pass as an argument. The kernel accepts no single argument longer than 128 KiB;
/// longer commands are passed in a file.
const MAX_ARGUMENT_BYTES: usize = 100 << 10;

/// The command to start, and its environment.
pub(super) struct Launch<'a> {
    pub(super) command: &'a str,
    pub(super) workspace: &'a Path,
    /// A directory for a command that is too long for an argument.
    pub(super) private: &'a Path,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) mark: &'a str,
}

/// Starts the shell: in a session of its own if there is `setsid`, otherwise in a process group of its own.
pub(super) fn start(launch: Launch<'_>) -> io::Result<Child> {
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
    if launch.command.len() <= MAX_ARGUMENT_BYTES {
        command.args(["-c", launch.command]);
    } else {
        let file = launch.private.join("command");
        std::fs::write(&file, launch.command)?;
        command.arg(file);
    }
    command
        .env_clear()
        .envs(launch.env)
        .env("WATCHDOG", WATCHDOG)
        .env(MARK, launch.mark)
        .current_dir(launch.workspace)
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
