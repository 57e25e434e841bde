//! The memory of this machine: how much is available, and whether it was so short that the kernel ended
//! processes.

#[cfg(feature = "sandbox")]
use std::time::{Duration, Instant};
use std::{
    fs,
    path::{Path, PathBuf},
};

#[cfg(feature = "sandbox")]
use super::RunnerError;
#[cfg(feature = "sandbox")]
use crate::sync::Mutex;

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

    /// Returns how often the group itself was full. Groups below it do not count.
    #[cfg(feature = "sandbox")]
    fn full(&self, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
        match self.is_v1 {
            true => read(&self.dir.join("memory.failcnt"))?.trim().parse().ok(),
            false => number_after(&read(&self.dir.join("memory.events.local"))?, "oom "),
        }
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
        groups.extend(above.map(|path| MemoryGroup { dir: root.join(path), is_v1 }));
    }
    groups
}

/// Returns the number after `name` and white space in a text of such lines.
fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
}

/// Counts of the kernel that rise when memory is short.
#[cfg(feature = "sandbox")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shortages {
    /// The processes that were ended for lack of memory, also those in a control group that was full.
    ended: u64,
    /// How often a process had to wait until the machine, or a control group that this process is in, had
    /// memory again. A full group of a single step does not count here.
    waits: u64,
}

#[cfg(feature = "sandbox")]
impl Shortages {
    fn read() -> Self {
        let read = |path: &Path| fs::read_to_string(path).ok();
        let counts = read(Path::new("/proc/vmstat")).unwrap_or_default();
        let groups = memory_groups(&read(Path::new("/proc/self/cgroup")).unwrap_or_default());
        let in_groups = groups.into_iter().filter_map(|group| group.full(read));
        Self {
            ended: number_after(&counts, "oom_kill ").unwrap_or(0),
            waits: in_groups.fold(stalls(&counts), u64::saturating_add),
        }
    }

    /// Returns whether the machine was short of memory since `before`, so that a process was ended.
    fn show_one_since(self, before: Self) -> bool {
        self.ended > before.ended && self.waits > before.waits
    }
}

/// Returns the sum of the counts of `/proc/vmstat` of processes that waited for memory, one for each zone.
#[cfg(feature = "sandbox")]
fn stalls(counts: &str) -> u64 {
    let of_zones = counts.lines().filter_map(|line| line.strip_prefix("allocstall_")?.split_once(' '));
    of_zones.filter_map(|(_, count)| count.parse().ok()).fold(0, u64::saturating_add)
}

/// The counts that were read so far, and when. Those that did not change are not repeated.
#[cfg(feature = "sandbox")]
static COUNTS: Mutex<Vec<(Instant, Shortages)>> = Mutex::new(Vec::new());

/// When the counts were last read.
#[cfg(feature = "sandbox")]
static READ_AT: Mutex<Option<Instant>> = Mutex::new(None);

/// How old counts may be when a command starts. What happened in this time counts for the command, too.
#[cfg(feature = "sandbox")]
const MAX_AGE: Duration = Duration::from_secs(1);

/// The number of remembered counts.
#[cfg(feature = "sandbox")]
const MAX_COUNTS: usize = 1000;

/// Finds out whether memory was short while a command ran. The counts are read when commands start, at most
/// once a second, and when one fails.
#[cfg(feature = "sandbox")]
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryWatch {
    started: Instant,
}

#[cfg(feature = "sandbox")]
impl MemoryWatch {
    /// Notes the start of a command.
    pub(super) fn start() -> Self {
        let mut read_at = READ_AT.lock();
        if read_at.is_none_or(|at| at.elapsed() >= MAX_AGE) {
            *read_at = Some(Instant::now());
            note(&mut COUNTS.lock(), Shortages::read());
        }
        Self { started: Instant::now() }
    }

    /// Returns the exit code of a command that has ended.
    ///
    /// # Errors
    /// Returns an error if the command failed while memory was short.
    pub(super) fn ended(self, exit_code: i32) -> Result<i32, RunnerError> {
        if exit_code == 0 || !was_short(&mut COUNTS.lock(), self.started, Shortages::read()) {
            return Ok(exit_code);
        }
        Err(RunnerError::machine_out_of_memory(exit_code))
    }
}

/// Returns whether memory was short since `started`, by the counts that were read before that. Notes those of
/// now.
#[cfg(feature = "sandbox")]
fn was_short(counts: &mut Vec<(Instant, Shortages)>, started: Instant, now: Shortages) -> bool {
    let before = counts.iter().rev().find(|(at, _)| *at <= started).or(counts.first()).map_or(now, |known| known.1);
    note(counts, now);
    now.show_one_since(before)
}

/// Remembers counts, if they have changed.
#[cfg(feature = "sandbox")]
fn note(counts: &mut Vec<(Instant, Shortages)>, now: Shortages) {
    if counts.last().is_some_and(|last| last.1 == now) {
        return;
    }
    if counts.len() >= MAX_COUNTS {
        counts.drain(..MAX_COUNTS / 2);
    }
    counts.push((Instant::now(), now));
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

    #[cfg(feature = "sandbox")]
    #[test]
    fn memory_was_short_for_all_steps_that_ran_when_a_process_was_ended() {
        let at = |seconds| Instant::now() + std::time::Duration::from_secs(seconds);
        let start = Instant::now();
        let of = |ended, waits| Shortages { ended, waits };
        let mut counts = vec![(start, of(5, 1))];
        let [first, second] = [at(0), at(0)];
        assert!(!was_short(&mut counts, first, of(5, 1)));
        assert!(was_short(&mut counts, first, of(6, 2)), "a process was ended");
        assert!(was_short(&mut counts, second, of(6, 2)), "and another step ran then, too");
        assert!(!was_short(&mut counts, at(1), of(6, 2)), "but this one started later");
        assert_eq!(counts.len(), 2);
    }

    #[cfg(feature = "sandbox")]
    #[test]
    fn a_full_group_of_another_step_is_no_shortage_of_the_machine() {
        let start = Instant::now();
        let mut counts = vec![(start, Shortages { ended: 5, waits: 1 })];
        assert!(!was_short(&mut counts, start, Shortages { ended: 6, waits: 1 }), "nothing waited");
        let mut counts = vec![(start, Shortages { ended: 5, waits: 1 })];
        assert!(!was_short(&mut counts, start, Shortages { ended: 5, waits: 9 }), "nothing was ended");
        assert_eq!(stalls("allocstall_dma 1\nallocstall_movable 20\noom_kill 7\n"), 21);
    }
}
