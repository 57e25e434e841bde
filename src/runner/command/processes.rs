//! The processes of a step, found in `/proc`.

use std::fs;

use rustix::{
    fd::OwnedFd,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{launch::MARK, watched::WATCHDOG_NAME};

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
pub(super) fn find_processes(leader: Option<Pid>, mark: &str) -> Vec<Process> {
    let variable = format!("{MARK}={mark}").into_bytes();
    // No process has an empty id.
    let leader = leader.map(|leader| leader.as_raw_nonzero().to_string()).unwrap_or_default();
    let watchdog = format!("\0{WATCHDOG_NAME}\0{leader}\0{mark}\0").into_bytes();
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
