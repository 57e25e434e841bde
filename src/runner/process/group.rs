//! All processes of a step, including those that left its process group.

use std::time::{Duration, Instant};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process, kill_process_group},
};

use crate::backoff::Backoff;

/// How long killed processes may take to disappear: they can be stuck in a system call.
const PATIENCE: Duration = Duration::from_secs(2);

/// The processes of one step: the process group of its shell, and on Linux also all processes in its session
/// or with its mark.
#[derive(Debug)]
pub(super) struct Group {
    leader: Pid,
    mark: String,
    /// Whether the shell was waited for: its process id can then be reused.
    waited: bool,
    gone: bool,
}

impl Group {
    pub(super) fn new(leader: Pid, mark: String) -> Self {
        Self { leader, mark, waited: false, gone: false }
    }

    /// Sends a signal to all processes, exactly once to each: to some programs a second TERM means more than
    /// the first.
    pub(super) fn signal(&self, signal: Signal) {
        // Signals the whole group at once, so that no process is missed that is just being started.
        let has_no_group = kill_process_group(self.leader, signal) == Err(Errno::SRCH);
        if has_no_group && !self.waited {
            // The shell has no session of its own yet.
            let _ = kill_process(self.leader, signal);
        }
        for process in survivors::find(self.leader, &self.mark) {
            let has_it = if has_no_group { process.is_leader() } else { process.is_in_group() };
            if !has_it {
                process.signal(signal);
            }
        }
    }

    /// Waits until no process is left, except the watchdog. Cancel-safe.
    pub(super) async fn ended(&self) {
        let backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(50) };
        let mut looks = 0;
        while survivors::find(self.leader, &self.mark).iter().any(|process| !process.is_watchdog()) {
            looks += 1;
            tokio::time::sleep(backoff.pause(looks)).await;
        }
    }

    /// Kills all processes, and waits until they are gone. The shell must have been waited for.
    pub(super) async fn end(&mut self) {
        self.waited = true;
        let deadline = Instant::now() + PATIENCE;
        let _ = kill_process_group(self.leader, Signal::KILL);
        let backoff = Backoff { first: Duration::from_micros(200), longest: Duration::from_millis(20) };
        for looks in 1.. {
            let left = survivors::find(self.leader, &self.mark);
            for process in &left {
                process.signal(Signal::KILL);
            }
            if left.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                tracing::warn!(count = left.len(), "processes of a step are still running after being killed");
                break;
            }
            tokio::time::sleep(backoff.pause(looks)).await;
        }
        self.gone = true;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was sent KILL starts no more processes, so another scan finds those that it started
        // before.
        let mut rounds = 0;
        while !self.gone && rounds < 3 {
            self.signal(Signal::KILL);
            rounds += 1;
        }
    }
}

#[cfg(target_os = "linux")]
mod survivors {
    use std::fs;

    use rustix::{
        fd::OwnedFd,
        process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    };

    use crate::runner::process::supervisor::{MARK, WATCHDOG_NAME};

    /// A process found in `/proc`, which cannot be confused with a later one that reuses its id.
    #[derive(Debug)]
    pub(super) struct Process {
        fd: OwnedFd,
        is_leader: bool,
        is_in_group: bool,
        is_watchdog: bool,
    }

    impl Process {
        pub(super) fn signal(&self, signal: Signal) {
            // Fails if the process has ended, or now belongs to another user.
            let _ = pidfd_send_signal(&self.fd, signal);
        }

        pub(super) fn is_leader(&self) -> bool {
            self.is_leader
        }

        pub(super) fn is_in_group(&self) -> bool {
            self.is_in_group
        }

        /// Returns whether this is the watchdog, which ends with the engine and not with the step.
        pub(super) fn is_watchdog(&self) -> bool {
            self.is_watchdog
        }
    }

    /// Finds every process in the session or the group of `leader`, or with its mark in its environment.
    /// Zombies are left out.
    pub(super) fn find(leader: Pid, mark: &str) -> Vec<Process> {
        let variable = format!("{MARK}={mark}").into_bytes();
        let watchdog = format!("\0{WATCHDOG_NAME}\0{}\0{mark}\0", leader.as_raw_nonzero()).into_bytes();
        let leader = leader.as_raw_nonzero().to_string();
        let belongs = |pid: &str| match membership(pid, &leader) {
            Membership::Ended => None,
            Membership::None => is_marked(pid, &variable).unwrap_or(false).then_some(false),
            Membership::Session => Some(false),
            Membership::Group => Some(true),
        };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
                continue;
            };
            if belongs(pid).is_some()
                && let Some(id) = pid.parse().ok().and_then(Pid::from_raw)
                && let Ok(fd) = pidfd_open(id, PidfdFlags::empty())
                && let Some(is_in_group) = belongs(pid)
            {
                let is_watchdog =
                    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.ends_with(&watchdog));
                found.push(Process { fd, is_leader: pid == leader, is_in_group, is_watchdog });
            }
        }
        found
    }

    /// How a process is related to a leader, according to its ids.
    enum Membership {
        Ended,
        None,
        Session,
        Group,
    }

    fn membership(pid: &str, leader: &str) -> Membership {
        let read = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name of the program may contain any character, including parentheses.
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            if matches!(fields.next()?, "Z" | "X") {
                return None;
            }
            let (group, session) = (fields.nth(1)?, fields.next()?);
            Some(match (group == leader, session == leader) {
                (true, _) => Membership::Group,
                (false, true) => Membership::Session,
                (false, false) => Membership::None,
            })
        };
        read().unwrap_or(Membership::Ended)
    }

    fn is_marked(pid: &str, mark: &[u8]) -> Option<bool> {
        // The environment of a process that has ended is empty.
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        Some(environment.split(|byte| *byte == 0).any(|variable| variable == mark))
    }
}

#[cfg(not(target_os = "linux"))]
mod survivors {
    use rustix::process::{Pid, Signal};

    #[derive(Debug)]
    pub(super) enum Process {}

    impl Process {
        pub(super) fn signal(&self, _: Signal) {
            match *self {}
        }

        pub(super) fn is_leader(&self) -> bool {
            match *self {}
        }

        pub(super) fn is_in_group(&self) -> bool {
            match *self {}
        }

        pub(super) fn is_watchdog(&self) -> bool {
            match *self {}
        }
    }

    pub(super) fn find(_: Pid, _: &str) -> Vec<Process> {
        Vec::new()
    }
}
