//! The exit code of a command, or why it has none.

use super::{cgroup::Limited, jail::End};
use crate::runner::{Limits, RunnerError};

/// The exit code of a command that was killed.
const KILLED: i32 = 128 + 9;

/// Returns the command's exit code, if it ended by itself.
pub(super) fn exit_code(end: &End, limits: &Limits, limited: &Limited) -> Result<i32, RunnerError> {
    let code = match end {
        End::Exited { code } => *code,
        End::OutOfMemory => return Err(RunnerError::out_of_memory(limits.memory.map_or(0, |memory| memory.bytes))),
        End::TooManyProcesses => {
            let limit = limits.pids.map_or(0, std::num::NonZeroU64::get);
            return Err(RunnerError::too_many_processes(limit, KILLED));
        }
        End::Killed => KILLED,
        End::Untraceable => {
            let error = std::io::Error::other("it was traced twice");
            return Err(RunnerError::infrastructure("run the step untraced", error));
        }
        End::TimedOut => return Err(RunnerError::timed_out()),
        End::Interrupted => return Err(RunnerError::cancelled()),
    };
    if code != 0
        && let Some(limit_bytes) = limited.oom_killed()
    {
        return Err(RunnerError::out_of_memory(limit_bytes));
    }
    if code != 0
        && let Some(limit) = limited.too_many_processes()
    {
        return Err(RunnerError::too_many_processes(limit, code));
    }
    if matches!(end, End::Killed) {
        return Err(RunnerError::infrastructure(
            "keep the step running",
            std::io::Error::other("its first process or the sandbox's helper was killed by another process"),
        ));
    }
    Ok(code)
}
