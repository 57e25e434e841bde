//! How the shell of a step is started: so that it dies with whoever started it, killed or not.
//!
//! ```text
//! hm ---- pipe (held open, never written to) ----> watchdog: `read` ends when hm does, then it kills the group
//!  \----> [setsid] sh SUPERVISOR --exec--> sh -c COMMAND
//!                       \--fork, orphaned--> watchdog
//! ```
//!
//! The watchdog is in the step's group, so that it is killed together with it, and no child of the command, which may wait
//! for all of its children.

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

/// What the watchdog calls itself.
pub(super) const WATCHDOG_NAME: &str = "hm-watchdog";

/// `$0` is the shell, `$1` the option, `$2` its argument: `-c COMMAND`, or a file. Standard input is the pipe.
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

/// `$1` is the group, `$2` the mark. Processes that left the group are looked for first: they can't start more once they
/// have the signal.
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

/// The kernel takes no single argument longer than 128 KiB; longer commands go through a file.
const MAX_ARGUMENT_BYTES: usize = 100 << 10;

/// What to start, and where.
pub(super) struct Launch<'a> {
    pub(super) command: &'a str,
    pub(super) workspace: &'a Path,
    /// A directory for a command that is too long for an argument.
    pub(super) private: &'a Path,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) mark: &'a str,
}

/// Starts the shell: in a session of its own where there is `setsid`, else in a process group of its own.
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

/// Linux distributions have it; without a session of its own a step could ask for passwords on the user's terminal.
fn setsid() -> Option<PathBuf> {
    ["/usr/bin/setsid", "/bin/setsid"].map(PathBuf::from).into_iter().find(|path| path.exists())
}
