//! Detects whether a container reached its limit on processes.
//!
//! The input is a running container. The output is whether the kernel refused it a process. The daemon does
//! not report this, and the container's control group is removed with its last process. So the group's
//! counter is watched while the container runs. This requires a daemon on this machine; otherwise only the
//! exit code is available.

use std::{fs, io, os::fd::OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use tokio::io::{Interest, unix::AsyncFd};

/// The directories where the hierarchy that counts processes may be mounted.
const MOUNTS: [&str; 3] = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The counter of one container.
#[derive(Debug)]
pub(super) struct Processes {
    events: AsyncFd<OwnedFd>,
}

impl Processes {
    /// Returns the counter of the container `id`, whose first process is `pid` on the daemon's machine.
    /// Returns `None` if that is another machine, or if this one does not expose the container's control
    /// group.
    #[allow(deprecated, reason = "tokio's successor is unsafe, for descriptors that change; an `OwnedFd` does not")]
    pub(super) fn of(id: &str, pid: i64) -> Option<Self> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = group(&groups, id)?;
        let open = |mount: &str| {
            let file = format!("{mount}{path}/pids.events");
            rustix::fs::openat(CWD, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        let events = MOUNTS.into_iter().find_map(open)?;
        Some(Self { events: AsyncFd::with_interest(events, Interest::PRIORITY).ok()? })
    }

    /// Returns whether the container has been refused a process so far.
    pub(super) fn were_refused(&self) -> bool {
        self.count().is_ok_and(|count| count > 0)
    }

    /// Completes when the container is refused a process, and never otherwise. Cancel-safe.
    pub(super) async fn refused(&self) {
        loop {
            match self.count() {
                Ok(0) => {}
                Ok(_) => return,
                // The group is gone, and the container with it.
                Err(_) => return std::future::pending().await,
            }
            match self.events.ready(Interest::PRIORITY).await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return std::future::pending().await,
            }
        }
    }

    fn count(&self) -> io::Result<u64> {
        let mut text = [0; 128];
        let length = rustix::io::pread(self.events.get_ref(), &mut text[..], 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let count = text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok());
        count.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Returns the path of the group that counts processes, from `/proc/PID/cgroup`, if it belongs to the
/// container `id`.
fn group<'a>(groups: &'a str, id: &str) -> Option<&'a str> {
    let of = |controller: &str| {
        groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            (controllers == controller && path.contains(id)).then_some(path)
        })
    };
    if id.is_empty() { None } else { of("pids").or_else(|| of("")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_the_container_s_own_or_none() {
        let first = "5:devices:/docker/abc\n4:pids:/docker/abc\n0::/\n";
        let second = "0::/system.slice/docker-abc.scope\n";
        assert_eq!(group(first, "abc"), Some("/docker/abc"));
        assert_eq!(group(second, "abc"), Some("/system.slice/docker-abc.scope"));
        assert_eq!(group(first, "abd"), None, "a process of this machine that has the number of one elsewhere");
        assert_eq!(group(first, ""), None);
    }
}
