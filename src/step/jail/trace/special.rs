//! Files that the kernel and the jail make: which of them are no inputs.

/// What a process shows of itself below `/proc/PID`.
const OWN: [&str; 24] = [
    "attr",
    "auxv",
    "cgroup",
    "cmdline",
    "comm",
    "coredump_filter",
    "environ",
    "exe",
    "fd",
    "fdinfo",
    "limits",
    "loginuid",
    "maps",
    "mountinfo",
    "mounts",
    "ns",
    "oom_score_adj",
    "sessionid",
    "smaps",
    "smaps_rollup",
    "stat",
    "statm",
    "status",
    "task",
];

/// What is ignored below `/proc`, with everything below it.
const PROC: [&str; 11] = [
    "cpuinfo",
    "filesystems",
    "meminfo",
    "mounts",
    "sys/fs/binfmt_misc",
    "sys/kernel/cap_last_cap",
    "sys/kernel/ngroups_max",
    "sys/kernel/osrelease",
    "sys/vm/mmap_min_addr",
    "sys/vm/overcommit_memory",
    "version_signature",
];

/// What is ignored below `/sys`, with everything below it.
const SYS: [&str; 7] = [
    "devices/system/cpu/online",
    "devices/system/cpu/possible",
    "devices/system/cpu/present",
    "devices/system/node",
    "fs/cgroup",
    "fs/selinux",
    "kernel/mm/transparent_hugepage",
];

/// Which file system a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Proc,
    Sys,
    Dev,
    Secrets,
}

/// Returns the special file system of a path.
pub(super) fn of(path: &[u8]) -> Option<Special> {
    [
        (&b"/proc"[..], Special::Proc),
        (b"/sys", Special::Sys),
        (b"/dev", Special::Dev),
        (b"/run/secrets", Special::Secrets),
    ]
    .into_iter()
    .find(|(prefix, _)| path.strip_prefix(*prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/'))
    .map(|(_, special)| special)
}

/// The part of a path below `/proc` that belongs to a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OfProcess<'a> {
    /// `PID` or `PID/task/TID`.
    pub(super) process: &'a str,
    /// The rest.
    pub(super) rest: &'a str,
}

/// Splits a path below `/proc`, if it belongs to a process.
pub(super) fn of_process(path: &[u8]) -> Option<OfProcess<'_>> {
    let path = std::str::from_utf8(path.strip_prefix(b"/proc/")?).ok()?;
    let names: Vec<&str> = path.split('/').collect();
    let is_number = |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    names.first().filter(|name| is_number(name))?;
    let has_task = names.get(1) == Some(&"task") && names.get(2).is_some_and(is_number);
    let process: usize = names[..if has_task { 3 } else { 1 }].iter().map(|name| name.len() + 1).sum();
    Some(OfProcess { process: &path[..process - 1], rest: path.get(process..).unwrap_or_default() })
}

/// Returns whether a path below a process' directory is a link to any file.
pub(super) fn is_magic(rest: &str) -> bool {
    let is_fd = rest.strip_prefix("fd/").is_some_and(|fd| fd.parse::<u32>().is_ok());
    is_fd || matches!(rest, "cwd" | "root" | "exe")
}

/// Returns whether a file of a special file system is no input.
pub(super) fn is_ignored(special: Special, path: &[u8]) -> bool {
    let below = |prefix: &str, list: &[&str]| {
        let Some(rest) = path.strip_prefix(prefix.as_bytes()) else { return false };
        rest.is_empty()
            || list.iter().any(|ignored| {
                let rest = rest[1..].strip_prefix(ignored.as_bytes());
                rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            })
    };
    match special {
        Special::Dev => true,
        Special::Secrets => path == b"/run/secrets",
        Special::Sys => below("/sys", &SYS),
        Special::Proc => match of_process(path) {
            Some(OfProcess { rest, .. }) => {
                let first = rest.split('/').next().unwrap_or_default();
                first.is_empty() || is_magic(rest) || OWN.contains(&first)
            }
            None => below("/proc", &PROC),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_ignored() {
        let ignored = |path: &str| is_ignored(of(path.as_bytes()).unwrap(), path.as_bytes());
        for path in [
            "/proc",
            "/proc/1/maps",
            "/proc/12/task/13/status",
            "/proc/meminfo",
            "/proc/1/fd/3",
            "/proc/7/cwd",
            "/sys",
            "/sys/fs/cgroup/memory.max",
            "/dev/null",
            "/dev/shm/sem.x",
            "/proc/1",
            "/proc/sys/vm/overcommit_memory",
            "/proc/version_signature",
        ] {
            assert!(ignored(path), "{path}");
        }
        for path in [
            "/proc/uptime",
            "/proc/1/net/dev",
            "/proc/meminfox",
            "/sys/class",
            "/sys/fs/cgroupx",
            "/run/secrets/TOKEN",
            "/proc/sys/kernel/random/uuid",
            "/proc/loadavg",
        ] {
            assert!(!ignored(path), "{path}");
        }
        assert_eq!(of(b"/process"), None);
        assert_eq!(of(b"/run/secretsx"), None);
    }

    #[test]
    fn processes_are_found_in_paths() {
        let split = |path: &'static str| of_process(path.as_bytes()).map(|it| (it.process, it.rest));
        assert_eq!(split("/proc/1"), Some(("1", "")));
        assert_eq!(split("/proc/1/fd/3"), Some(("1", "fd/3")));
        assert_eq!(split("/proc/1/task/2/cwd"), Some(("1/task/2", "cwd")));
        assert_eq!(split("/proc/1/task/x"), Some(("1", "task/x")));
        assert_eq!(split("/proc/self/fd"), None);
    }
}
