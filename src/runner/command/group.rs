//! All processes of a step, including those that left its process group.

use std::time::{Duration, Instant};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process, kill_process_group},
};

use super::processes;
use crate::backoff::Backoff;

/// How long killed processes may take to disappear: they can be stuck in a system call.
const PATIENCE: Duration = Duration::from_secs(2);

/// The processes of one step: the process group of its shell, and all processes in its session or with its
/// mark.
#[derive(Debug)]
pub(super) struct Group {
    /// The shell, if it is known.
    leader: Option<Pid>,
    mark: String,
    /// Whether the shell was waited for: its process id can then be reused.
    waited: bool,
    gone: bool,
}

impl Group {
    pub(super) fn new(leader: Pid, mark: String) -> Self {
        Self { leader: Some(leader), mark, waited: false, gone: false }
    }

    /// Returns the processes with a mark.
    pub(super) fn without_leader(mark: String) -> Self {
        Self { leader: None, mark, waited: true, gone: false }
    }

    /// Sends a signal to all processes, exactly once to each: to some programs a second TERM means more than
    /// the first.
    pub(super) fn signal(&self, signal: Signal) {
        // Signals the whole group at once, so that no process is missed that is just being started.
        let has_no_group = self.leader.is_none_or(|leader| kill_process_group(leader, signal) == Err(Errno::SRCH));
        if let Some(leader) = self.leader.filter(|_| has_no_group && !self.waited) {
            // The shell has no session of its own yet.
            let _ = kill_process(leader, signal);
        }
        for process in processes::find_processes(self.leader, &self.mark) {
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
        while processes::find_processes(self.leader, &self.mark).iter().any(|process| !process.is_watchdog()) {
            looks += 1;
            tokio::time::sleep(backoff.pause(looks)).await;
        }
    }

    /// Notes that no process is left.
    pub(super) fn is_gone(&mut self) {
        self.gone = true;
    }

    /// Kills all processes, and waits until they are gone. The shell must have been waited for.
    pub(super) async fn end(&mut self) {
        self.waited = true;
        let deadline = Instant::now() + PATIENCE;
        if let Some(leader) = self.leader {
            let _ = kill_process_group(leader, Signal::KILL);
        }
        let backoff = Backoff { first: Duration::from_micros(200), longest: Duration::from_millis(20) };
        for looks in 1.. {
            let left = processes::find_processes(self.leader, &self.mark);
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
