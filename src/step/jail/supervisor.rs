//! The supervisor of a step without isolation: a process that starts the command, and that all processes of
//! the step descend from.
//!
//! ```text
//!   zygote ──clone3──▶ supervisor ──vfork, setsid──▶ the command ──▶ its processes
//!                          ▲                                              │
//!                          └── becomes their parent when theirs ends ◀────┘
//! ```
//!
//! It is a *subreaper*: a process whose parent has ended becomes a child of the supervisor. So none escapes,
//! neither to another session nor with another environment, and if the supervisor has no child, no process of
//! the step is left. Nothing is looked up in `/proc` unless there is a process to signal.
//!
//! When the command ends, or the engine closes the status socket, the supervisor kills what is left, and
//! ends. It runs as the step's user, so a step can kill it. Only the engine can then find the step's
//! processes.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    ffi::{CStr, CString},
    fs,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags},
    io::Errno,
    process::{Pid, Signal, getpgid, getpgrp, getpid, kill_process, kill_process_group, set_child_subreaper},
};

use super::{
    SetupError,
    error::ResultExt,
    init::{Forwarded, Left, Reaped, reap, receive},
    spec::{ProcessSpec, Report},
    sys, wire,
};

/// How long killed processes may take to disappear: they can be stuck in a system call.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most searches for processes that get a signal.
const MOST_SEARCHES: u32 = 16;

/// How long to wait for the end of a killed process before looking for others.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The descriptors of a step.
#[derive(Debug)]
pub(super) struct SupervisorFds {
    /// The status socket, to and from the engine.
    pub(super) status: OwnedFd,
    /// The [`ProcessSpec`].
    pub(super) spec: OwnedFd,
    /// The command's standard output.
    pub(super) stdout: OwnedFd,
    /// The command's standard error.
    pub(super) stderr: OwnedFd,
}

/// Runs a step, whose command must not inherit that signals are `ignored`. Ends the process.
pub(super) fn run(fds: SupervisorFds, ignored: &[libc::c_int]) -> ! {
    let Ok(status) = fds.status.try_clone() else { sys::exit(1) };
    if let Err(error) = run_step(fds, ignored) {
        // If the engine has ended, there is no receiver.
        let _ = wire::send_value(&status, &Report::Failed(error), &[]);
        sys::exit(1);
    }
    sys::exit(0)
}

fn run_step(fds: SupervisorFds, ignored: &[libc::c_int]) -> Result<(), SetupError> {
    let SupervisorFds { status, spec, stdout, stderr } = fds;
    let null = rustix::fs::openat(CWD, c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open /dev/null".into())?;
    // Requests are for the zygote. If a step kept the request socket open, the engine would not see the
    // zygote's end. The command has the same standard input.
    sys::move_to(&null, 0).doing(|| "let go of the request socket".into())?;
    set_child_subreaper(Some(getpid())).doing(|| "become the parent of orphans".into())?;
    // A signal that a step sends to all processes of its user must not end this one.
    let children = sys::only_child_signals().doing(|| "watch for children".into())?;
    let spec: ProcessSpec = wire::from_memory_file(spec)?;
    let command = sys::start_sharing_memory(|| {
        let Err(error) = exec(&spec, [&stdout, &stderr], ignored);
        let _ = wire::send_value(&status, &Report::Failed(error), &[]);
    });
    let command = command.doing(|| "start the command".into())?;
    drop((null, stdout, stderr));
    let running = attend(command, &status, &children);
    let report = match end_all(running, &children) {
        Left::Nothing => Report::Done,
        Left::Some => Report::StillRunning,
    };
    // Without this, the engine looks for processes of the step itself.
    let _ = wire::send_value(&status, &report, &[]);
    Ok(())
}

/// Waits for the end of the command, and reports it. After TERM it waits for the last process of the step.
/// Returns the command if it is still running.
fn attend(command: Pid, status: &OwnedFd, children: &OwnedFd) -> Option<Pid> {
    let (mut reaped, mut asked_to_end) = (Reaped::default(), false);
    loop {
        let running = reaped.report.is_none().then_some(command);
        let mut fds = [status, children].map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return running,
        }
        let [from_engine, from_children] = fds.map(|fd| !fd.revents().is_empty());
        // Checked before the engine's messages: a command that has ended by now ended by itself.
        if from_children {
            let left = reap(command, children, &mut reaped);
            if let Some(report) = reaped.report.as_ref().filter(|_| !asked_to_end || left == Left::Nothing) {
                let _ = wire::send_value(status, report, &[]);
                return None;
            }
        }
        if from_engine {
            match receive(status) {
                Forwarded::Signal(signal) if signal == Signal::TERM.as_raw() => {
                    asked_to_end = true;
                    signal_all(reaped.report.is_none().then_some(command), Signal::TERM);
                }
                // KILL.
                Forwarded::Signal(_) | Forwarded::HungUp => return reaped.report.is_none().then_some(command),
                Forwarded::Nothing => {}
            }
        }
    }
}

/// Kills all processes of the step, and returns whether any are left. `command` is the command if it was not
/// reaped.
fn end_all(command: Option<Pid>, children: &OwnedFd) -> Left {
    let deadline = Instant::now() + PATIENCE;
    if let Some(command) = command {
        // Needs no look at `/proc`, which a step may make impossible.
        let _ = kill_process_group(command, Signal::KILL);
    }
    loop {
        if reap_all(children) == Left::Nothing {
            return Left::Nothing;
        }
        // The children of a killed process become children of this one. Groups are killed at once, so that
        // none of their processes can start another meanwhile.
        for child in children_of(getpid()) {
            if let Some(group) = group_of(child) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = kill_process(child, Signal::KILL);
        }
        let mut fds = [PollFd::from_borrowed_fd(children.as_fd(), PollFlags::IN)];
        let _ = poll(&mut fds, Some(&PAUSE));
        if Instant::now() > deadline {
            return reap_all(children);
        }
    }
}

fn reap_all(children: &OwnedFd) -> Left {
    // This process is not its own child.
    reap(getpid(), children, &mut Reaped::default())
}

/// Sends a signal to all processes of the step, exactly once to each: to some programs a second TERM means
/// more than the first. A process is in one group, and a group gets the signal at once, so that no process of
/// it is missed that is just being started. A step that ignores the signal may go on to start groups, so the
/// search ends some time. `command` is the command if it was not reaped.
fn signal_all(command: Option<Pid>, signal: Signal) {
    let mut groups = BTreeSet::new();
    if let Some(command) = command {
        groups.insert(command.as_raw_nonzero().get());
        if kill_process_group(command, signal) == Err(Errno::SRCH) {
            // It has no session of its own yet.
            let _ = kill_process(command, signal);
        }
    }
    for _ in 0..MOST_SEARCHES {
        let found: BTreeSet<i32> =
            descendants().into_iter().filter_map(group_of).map(|group| group.as_raw_nonzero().get()).collect();
        let new: Vec<i32> = found.difference(&groups).copied().collect();
        if new.is_empty() {
            return;
        }
        for group in new {
            groups.insert(group);
            if let Some(group) = Pid::from_raw(group) {
                let _ = kill_process_group(group, signal);
            }
        }
    }
}

/// Returns the group of a process of the step. All of them are in the command's session or in sessions of
/// their own, so that the group contains no other processes.
fn group_of(process: Pid) -> Option<Pid> {
    getpgid(Some(process)).ok().filter(|group| *group != getpgrp())
}

/// Returns all processes that descend from this one.
fn descendants() -> Vec<Pid> {
    let mut all = children_of(getpid());
    let mut next = 0;
    while let Some(process) = all.get(next) {
        all.extend(children_of(*process));
        next += 1;
    }
    all
}

/// Returns the children of a process, as far as they can be seen: one that is being started may be missing.
fn children_of(process: Pid) -> Vec<Pid> {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let Ok(threads) = fs::read_dir(&tasks) else { return Vec::new() };
    let mut children = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => children.extend(list.split_ascii_whitespace().filter_map(to_pid)),
            // The thread has ended, or the kernel has no such files.
            Err(_) if thread.path().exists() => return search_children_of(process),
            Err(_) => {}
        }
    }
    children
}

/// Finds the children of a process among all processes of the machine.
fn search_children_of(process: Pid) -> Vec<Pid> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| to_pid(entry.file_name().to_str()?));
    pids.filter(|pid| parent_of(*pid) == Some(process)).collect()
}

fn parent_of(process: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
    // The name of the program may contain any character, including parentheses.
    to_pid(stat.rsplit_once(") ")?.1.split(' ').nth(1)?)
}

fn to_pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

/// Executes the command in a session of its own. Returns only on failure.
fn exec(
    spec: &ProcessSpec,
    [stdout, stderr]: [&OwnedFd; 2],
    ignored: &[libc::c_int],
) -> Result<Infallible, SetupError> {
    let argv: Vec<&CStr> = spec.argv.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = spec.env.iter().map(CString::as_c_str).collect();
    let Some(program) = argv.first() else { return Err(SetupError::new("run the command", Errno::INVAL)) };
    for (fd, target) in [(stdout, 1), (stderr, 2)] {
        sys::move_to(fd, target).doing(|| "set up the command's streams".into())?;
    }
    // Otherwise the step could ask for passwords on the user's terminal.
    rustix::process::setsid().doing(|| "start a session".into())?;
    rustix::process::chdir(&*spec.workdir).doing(|| format!("enter {}", spec.workdir.to_string_lossy()))?;
    sys::reset_signals(ignored).doing(|| "reset signals".into())?;
    sys::close_on_exec_from(3).doing(|| "close the supervisor's descriptors".into())?;
    let errno = sys::execve(program, &argv, &env);
    Err(SetupError::new(format!("run {}", program.to_string_lossy()), errno))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn children_are_found_with_and_without_the_kernels_lists() {
        let mut child = Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(children_of(getpid()).contains(&pid));
        assert!(search_children_of(getpid()).contains(&pid));
        assert!(descendants().contains(&pid));
        assert_eq!(parent_of(pid), Some(getpid()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children_of(getpid()).contains(&pid) && !search_children_of(getpid()).contains(&pid));
    }
}
