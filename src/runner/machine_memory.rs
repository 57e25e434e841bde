//! The memory of this machine: how much is available, and whether it was so short that the kernel ended
//! processes.

#[cfg(feature = "sandbox")]
use std::sync::OnceLock;
use std::{
    fs,
    path::{Path, PathBuf},
};

#[cfg(feature = "sandbox")]
use super::RunnerError;

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// Returns how much memory new processes of this machine can get without swapping, in bytes: what the kernel
/// estimates, and no more than the control groups of this process allow. Returns `None` if that is unknown.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let meminfo = read(Path::new("/proc/meminfo"))?;
    let kilobytes = number_after(&meminfo, "MemAvailable:")?;
    let machine = kilobytes.checked_mul(1024)?;
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = memory_groups(&groups).into_iter().filter_map(|group| group.left(read));
    Some(limits.fold(machine, u64::min))
}

/// A control group that may limit memory.
#[derive(Debug, PartialEq, Eq)]
struct MemoryGroup {
    dir: PathBuf,
    is_v1: bool,
    /// Whether it is the process's own group, and not one above that.
    is_own: bool,
}

impl MemoryGroup {
    /// Returns how much memory is left in the group, if it has a limit. File cache that is not in use counts
    /// as left.
    fn left(&self, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
        let (limit, usage, cache) = match self.is_v1 {
            true => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            false => ("memory.max", "memory.current", "inactive_file"),
        };
        // Without a limit, version 2 has the word `max`, and version 1 a number beyond all memory.
        let limit: u64 = read(&self.dir.join(limit))?.trim().parse().ok()?;
        let usage: u64 = read(&self.dir.join(usage))?.trim().parse().ok()?;
        let cache = read(&self.dir.join("memory.stat")).and_then(|stat| number_after(&stat, cache)).unwrap_or(0);
        Some(limit.saturating_sub(usage.saturating_sub(cache)))
    }
}

/// Returns the groups of the process whose `/proc/PID/cgroup` this is, with all groups above them.
fn memory_groups(text: &str) -> Vec<MemoryGroup> {
    let mut groups = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => PathBuf::from(GROUPS),
            list if list.split(',').any(|controller| controller == "memory") => Path::new(GROUPS).join("memory"),
            _ => continue,
        };
        let is_v1 = !controllers.is_empty();
        let above = Path::new(path.trim_start_matches('/')).ancestors();
        groups.extend((0..).zip(above).map(|(at, path)| MemoryGroup { dir: root.join(path), is_v1, is_own: at == 0 }));
    }
    groups
}

/// Returns the number after `name` and white space in a text of such lines.
fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
}

/// The file that counts how many processes of this process's own control group the kernel has ended, because
/// the machine or the group had no memory left. Steps without a limit of their own are in this group. Those
/// with one are not, nor are other programs: what happens to them says nothing about a step.
#[cfg(feature = "sandbox")]
fn counter() -> &'static PathBuf {
    static COUNTER: OnceLock<PathBuf> = OnceLock::new();
    COUNTER.get_or_init(|| {
        let own = memory_groups(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
        let files = own.into_iter().filter(|group| group.is_own).map(|MemoryGroup { dir, is_v1, .. }| {
            dir.join(if is_v1 { "memory.oom_control" } else { "memory.events.local" })
        });
        let counts =
            |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| number_after(&text, "oom_kill ").is_some());
        // Without control groups, the count of the machine.
        files.into_iter().find(counts).unwrap_or_else(|| "/proc/vmstat".into())
    })
}

#[cfg(feature = "sandbox")]
fn ended_processes() -> u64 {
    fs::read_to_string(counter()).ok().and_then(|counts| number_after(&counts, "oom_kill ")).unwrap_or(0)
}

/// Finds out whether memory was short while a command ran that has no limit of its own.
#[cfg(feature = "sandbox")]
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryWatch {
    ended_before: u64,
}

#[cfg(feature = "sandbox")]
impl MemoryWatch {
    /// Notes the start of a command.
    pub(super) fn start() -> Self {
        Self { ended_before: ended_processes() }
    }

    /// Returns the exit code of a command that has ended.
    ///
    /// # Errors
    /// Returns an error if the command failed while memory was short.
    pub(super) fn ended(self, exit_code: i32) -> Result<i32, RunnerError> {
        if exit_code == 0 || ended_processes() <= self.ended_before {
            return Ok(exit_code);
        }
        Err(RunnerError::machine_out_of_memory(exit_code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts_and_its_idle_cache_is_available() {
        let groups = memory_groups("4:memory:/a/b\n3:cpu,cpuacct:/x\n0::/u\n");
        let dirs: Vec<_> = groups.iter().map(|group| group.dir.to_str().unwrap()).collect();
        let v1 = ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory/"];
        assert_eq!(dirs, [&v1[..], &["/sys/fs/cgroup/u", "/sys/fs/cgroup/"]].concat());
        let read = |path: &Path| {
            let text = match path.file_name()?.to_str()? {
                "memory.limit_in_bytes" => "1000\n",
                "memory.usage_in_bytes" => "700",
                "memory.stat" => "cache 300\ntotal_inactive_file 100\n",
                "memory.max" => "max\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(
            groups.iter().map(|group| group.left(read)).collect::<Vec<_>>(),
            [Some(400), Some(400), Some(400), None, None]
        );
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
