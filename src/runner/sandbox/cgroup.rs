//! Limits on memory, processors and processes: by control groups if this process may create them, otherwise
//! by polling.
//!
//! A step without limits has no cost here.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CString, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::jail::{GroupView, Watch};
use crate::{model::StepUsage, runner::Limits};

/// The period of processor quotas, in microseconds.
const CPU_PERIOD_MICROS: f64 = 100_000.0;

/// Further controllers of version 1 that a step with limits gets groups for.
const COMPANIONS: [&str; 4] = ["memory", "cpu", "cpuacct", "cpuset"];

/// The directory where control groups are mounted.
const MOUNTED_AT: &str = "/sys/fs/cgroup";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The limits of a step. They are in force from when its command enters [`Limited::procs`] until this is
/// dropped.
#[derive(Debug, Default)]
pub(super) struct Limited {
    groups: Vec<Group>,
    watch: Option<Watch>,
    memory_bytes: Option<u64>,
    pids: Option<u64>,
}

/// A control group of one step.
#[derive(Debug)]
struct Group {
    dir: PathBuf,
    version: Version,
    /// The name below `/sys/fs/cgroup` under which its hierarchy is mounted.
    name: OsString,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Limited {
    /// Sets up the limits in `limits`. The second value names the limits that no control group enforces, as
    /// in "cpus".
    pub(super) fn new(limits: &Limits) -> (Self, Vec<&'static str>) {
        let memory_bytes = limits.memory.map(|memory| memory.bytes);
        let pids = limits.pids.map(std::num::NonZeroU64::get);
        let mut limited = Self { memory_bytes, pids, ..Self::default() };
        let mut loose = Vec::new();
        if memory_bytes.is_none() && pids.is_none() && limits.cpus.is_none() {
            return (limited, loose);
        }
        let hierarchies = Hierarchies::of_this_process();
        let mut watch = Watch::default();
        if let Some(bytes) = memory_bytes
            && let Err(error) = limited.hold(&hierarchies, "memory", |group| group.limit_memory(bytes))
        {
            tracing::debug!(%error, "no memory control group");
            watch.memory_bytes = Some(bytes);
            loose.push("memory");
        }
        if let Some(pids) = pids
            && let Err(error) = limited.hold(&hierarchies, "pids", |group| group.set("pids.max", pids))
        {
            tracing::debug!(%error, "no process control group");
            watch.pids = Some(pids);
            loose.push("pids");
        }
        if let Some(cpus) = limits.cpus
            && let Err(error) = limited.hold(&hierarchies, "cpu", |group| group.limit_cpus(cpus.0))
        {
            tracing::debug!(%error, "no CPU control group");
            loose.push("cpus");
        }
        limited.watch = (watch != Watch::default()).then_some(watch);
        limited.accompany(&hierarchies);
        (limited, loose)
    }

    /// Returns the `cgroup.procs` files through which a process enters the groups.
    pub(super) fn procs(&self) -> Vec<CString> {
        let path = |group: &Group| CString::new(group.dir.join("cgroup.procs").as_os_str().as_bytes()).ok();
        self.groups.iter().filter_map(path).collect()
    }

    /// Returns the groups as the step sees them. A language runtime that sizes itself by its limits finds
    /// them here.
    pub(super) fn views(&self) -> Vec<GroupView> {
        let view = |group: &Group| {
            let name = match group.version {
                Version::V1 => CString::new(group.name.as_bytes()).ok()?,
                Version::V2 => CString::default(),
            };
            Some(GroupView { dir: CString::new(group.dir.as_os_str().as_bytes()).ok()?, name })
        };
        // A version 2 hierarchy next to version 1 has no mount point of its own to show, and enforces none of
        // these limits.
        let mixed = self.groups.iter().any(|group| group.version == Version::V1);
        self.groups.iter().filter(|group| !mixed || group.version == Version::V1).filter_map(view).collect()
    }

    /// Creates groups in the version 1 hierarchies that enforce none of the limits. The Java runtime sizes
    /// itself by the whole machine unless it finds all four. If they cannot be created, the step still has
    /// its limits.
    fn accompany(&mut self, hierarchies: &Hierarchies) {
        if !self.groups.iter().any(|group| group.version == Version::V1) {
            return;
        }
        for controller in COMPANIONS {
            let Some(parent) = hierarchies.0.get(controller) else { continue };
            if self.groups.iter().any(|group| group.dir.parent() == Some(parent)) {
                continue;
            }
            let made = Group::make(parent, Version::V1).and_then(|group| group.inherit(parent).map(|()| group));
            match made {
                Ok(group) => self.groups.push(group),
                Err(error) => tracing::debug!(%error, controller, "no control group to show to the step"),
            }
        }
    }

    /// Returns what the step used: `counted` without a control group that knows better.
    pub(super) fn usage(&self, counted: StepUsage) -> StepUsage {
        let peak = self.groups.iter().find_map(Group::peak_memory);
        let cpu_ms = self.groups.iter().find_map(Group::cpu_ms);
        StepUsage::new(peak.unwrap_or(0).max(counted.peak_memory_bytes), cpu_ms.unwrap_or(0).max(counted.cpu_ms))
    }

    /// Returns the limits to enforce by polling.
    pub(super) fn watch(&self) -> Option<Watch> {
        self.watch
    }

    /// Returns the memory limit in bytes, if the kernel killed a process of the step because of it.
    pub(super) fn oom_killed(&self) -> Option<u64> {
        self.memory_bytes.filter(|_| self.groups.iter().any(Group::oom_killed))
    }

    /// Returns whether the kernel killed a process because of the memory limit, or refused one because of
    /// that on processes.
    pub(super) fn is_exceeded(&self) -> bool {
        self.oom_killed().is_some() || self.too_many_processes().is_some()
    }

    /// Returns the limit on processes, if the kernel refused the step a process because of it.
    pub(super) fn too_many_processes(&self) -> Option<u64> {
        self.pids.filter(|_| self.groups.iter().any(Group::refused_processes))
    }

    /// Applies `set` to the group that has `controller`. Creates the group if the step has none yet.
    fn hold(
        &mut self,
        hierarchies: &Hierarchies,
        controller: &str,
        set: impl FnOnce(&Group) -> io::Result<()>,
    ) -> io::Result<()> {
        let shared = self.groups.iter().position(|group| group.version == Version::V2 && group.controls(controller));
        let index = match shared {
            Some(index) => index,
            None => {
                self.groups.push(hierarchies.make_group(controller)?);
                self.groups.len() - 1
            }
        };
        set(&self.groups[index])
    }
}

impl Group {
    fn make(parent: &Path, version: Version) -> io::Result<Self> {
        sweep(parent);
        let dir = parent.join(format!("hm-{}-{}", Owner::this_process(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir)?;
        Ok(Self { dir, version, name: hierarchy_name(parent) })
    }

    /// Copies the processors and memory nodes from the parent, which a cpuset group needs before a process
    /// may enter it.
    fn inherit(&self, parent: &Path) -> io::Result<()> {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if self.dir.join(file).exists() {
                self.set(file, fs::read_to_string(parent.join(file))?.trim())?;
            }
        }
        Ok(())
    }

    fn controls(&self, controller: &str) -> bool {
        has_word(&self.dir.join("cgroup.controllers"), controller)
    }

    fn set(&self, file: &str, value: impl std::fmt::Display) -> io::Result<()> {
        fs::write(self.dir.join(file), value.to_string())
    }

    /// Limits memory including swap: a step that swaps would not be within its limit, only slow.
    fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        match self.version {
            Version::V1 => {
                self.set("memory.limit_in_bytes", bytes)?;
                ignore_missing(self.set("memory.memsw.limit_in_bytes", bytes))
            }
            Version::V2 => {
                self.set("memory.max", bytes)?;
                ignore_missing(self.set("memory.swap.max", 0))
            }
        }
    }

    fn limit_cpus(&self, cpus: f64) -> io::Result<()> {
        let quota = (cpus * CPU_PERIOD_MICROS).round();
        match self.version {
            Version::V1 => {
                self.set("cpu.cfs_period_us", CPU_PERIOD_MICROS)?;
                self.set("cpu.cfs_quota_us", quota)
            }
            Version::V2 => self.set("cpu.max", format_args!("{quota} {CPU_PERIOD_MICROS}")),
        }
    }

    fn oom_killed(&self) -> bool {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        self.has_counted(file, "oom_kill ")
    }

    /// Returns the most memory that the group had at a time, without the page cache that it still has. Much
    /// of the peak may be such cache, which the kernel takes back when there is a need.
    fn peak_memory(&self) -> Option<u64> {
        let (peak, cache) = match self.version {
            Version::V1 => ("memory.max_usage_in_bytes", ["total_cache ", "total_shmem "]),
            Version::V2 => ("memory.peak", ["file ", "shmem "]),
        };
        let peak: u64 = fs::read_to_string(self.dir.join(peak)).ok()?.trim().parse().ok()?;
        let [cache, shared] = cache.map(|name| self.number("memory.stat", name).unwrap_or(0));
        Some(peak.saturating_sub(cache.saturating_sub(shared)))
    }

    /// Returns the processor time of the group, in milliseconds.
    fn cpu_ms(&self) -> Option<u64> {
        match self.version {
            Version::V1 => {
                let nanos: u64 = fs::read_to_string(self.dir.join("cpuacct.usage")).ok()?.trim().parse().ok()?;
                Some(nanos / 1_000_000)
            }
            Version::V2 => Some(self.number("cpu.stat", "usage_usec ")? / 1000),
        }
    }

    fn refused_processes(&self) -> bool {
        self.has_counted("pids.events", "max ")
    }

    fn has_counted(&self, file: &str, event: &str) -> bool {
        self.number(file, event).is_some_and(|count| count > 0)
    }

    /// Returns the number after `name` in a file of lines such as `oom_kill 3`.
    fn number(&self, file: &str, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group stays busy for a moment after the last process died. It is then left to the next sweep.
        if let Err(error) = fs::remove_dir(&self.dir) {
            tracing::debug!(%error, dir = %self.dir.display(), "failed to remove a control group");
        }
    }
}

/// Returns the name of the hierarchy that contains `dir`: its name below [`MOUNTED_AT`], or the name of `dir`
/// itself if the hierarchy is mounted elsewhere.
fn hierarchy_name(dir: &Path) -> OsString {
    let below = dir.strip_prefix(MOUNTED_AT).ok().and_then(|below| below.components().next());
    below.map(|name| name.as_os_str()).or_else(|| dir.file_name()).unwrap_or_default().to_owned()
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The process that created a group. Process ids are reused, but not with the same start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    pid: u32,
    /// The start time in the kernel's ticks since boot; 0 if it is unknown.
    started: u64,
}

impl Owner {
    fn this_process() -> Self {
        let pid = std::process::id();
        Self { pid, started: start_of(pid).unwrap_or_default() }
    }

    /// Parses the owner from the name of a group. Returns `None` if the group is not ours.
    fn of(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("hm-")?.split('-');
        let pid = parts.next()?.parse().ok()?;
        Some(Self { pid, started: parts.next()?.parse().ok()? })
    }

    fn is_alive(self) -> bool {
        match start_of(self.pid) {
            Some(started) => started == self.started || self.started == 0,
            None => Path::new(&format!("/proc/{}", self.pid)).exists(),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.pid, self.started)
    }
}

/// Returns the start time of a process.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain any character, but no field after the name contains a parenthesis.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Removes the groups of processes that were killed, and returns their number. Groups in use cannot be
/// removed.
fn sweep(parent: &Path) -> usize {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let dead =
        entries.filter(|entry| entry.file_name().to_str().and_then(Owner::of).is_some_and(|owner| !owner.is_alive()));
    dead.filter(|entry| fs::remove_dir(entry.path()).is_ok()).count()
}

/// Removes the control groups that killed processes left where this process would create its own, and returns
/// their number.
pub fn reap_control_groups() -> usize {
    let hierarchies = Hierarchies::of_this_process();
    let parents = hierarchies.0.iter().flat_map(|(controller, dir)| {
        // In version 2, groups are usually created next to this process's own group.
        dir.ancestors().take(if controller.is_empty() { 2 } else { 1 })
    });
    parents.collect::<BTreeSet<_>>().into_iter().map(sweep).sum()
}

fn has_word(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.split_ascii_whitespace().any(|found| found == word))
}

/// Returns the limits that no control group can enforce here.
pub(super) fn missing() -> Vec<&'static str> {
    let hierarchies = Hierarchies::of_this_process();
    ["memory", "pids", "cpu"].into_iter().filter(|controller| hierarchies.make_group(controller).is_err()).collect()
}

/// The groups of this process: for version 1 by controller, for version 2 under the empty name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hierarchies(BTreeMap<String, PathBuf>);

impl Hierarchies {
    fn of_this_process() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        Self::parse(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
    }

    fn parse(cgroup: &str, mountinfo: &str) -> Self {
        let mut found = BTreeMap::new();
        for line in cgroup.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            for controller in controllers.split(',') {
                if let Some(dir) = mountinfo.lines().find_map(|mount| mounted_at(mount, controller, path)) {
                    found.insert(controller.to_owned(), dir);
                }
            }
        }
        Self(found)
    }

    fn make_group(&self, controller: &str) -> io::Result<Group> {
        if let Some(dir) = self.0.get(controller) {
            return Group::make(dir, Version::V1);
        }
        let none = || io::Error::new(io::ErrorKind::Unsupported, "no hierarchy has this controller");
        let own = self.0.get("").ok_or_else(none)?;
        // A group with processes of its own cannot delegate controllers, so groups are usually created as its
        // siblings.
        for parent in own.ancestors().take(2).filter(|dir| dir.join("cgroup.procs").exists()) {
            for wanted in ["memory", "pids", "cpu"] {
                let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{wanted}"));
            }
            // Moving a process requires write access to the common ancestor.
            let may_move = rustix::fs::access(parent.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok();
            if may_move
                && let Ok(group) = Group::make(parent, Version::V2)
                && group.controls(controller)
            {
                return Ok(group);
            }
        }
        Err(none())
    }
}

/// Returns the directory of the group `path` in the hierarchy of `controller`, if this line of `mountinfo`
/// mounts that hierarchy.
fn mounted_at(mount: &str, controller: &str, path: &str) -> Option<PathBuf> {
    let (place, kind) = mount.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (kind, options) = (kind.next()?, kind.nth(1)?);
    let fits = match controller {
        "" => kind == "cgroup2",
        _ => kind == "cgroup" && options.split(',').any(|option| option == controller),
    };
    let below = Path::new(path).strip_prefix(root).ok()?;
    fits.then(|| Path::new(point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_below_their_mounts() {
        let mountinfo = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            31 23 0:27 /outer /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = Hierarchies::parse("4:memory:/outer/inner\n2:cpu,cpuacct:/\n1:pids:/\n0::/a/b\n", mountinfo);
        let dir = |controller: &str| found.0.get(controller).map(PathBuf::as_path);
        assert_eq!(dir("memory"), Some(Path::new("/sys/fs/cgroup/memory/inner")));
        assert_eq!(dir("cpu"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(dir(""), Some(Path::new("/sys/fs/cgroup/unified/a/b")));
        assert_eq!(dir("pids"), None);
    }

    #[test]
    fn a_group_belongs_to_a_process_and_not_to_a_later_one_of_its_number() {
        let this = Owner::this_process();
        assert!(this.started > 0 && this.is_alive());
        assert_eq!(Owner::of(&format!("hm-{this}-7")), Some(this));
        assert!(!Owner { started: this.started - 1, ..this }.is_alive());
        assert_eq!(["hm-", "hm-x-1-1", "docker-1-1-1", "hm-1"].map(Owner::of), [None; 4]);
    }

    #[test]
    fn a_hierarchy_has_the_name_that_it_is_mounted_under() {
        assert_eq!(hierarchy_name(Path::new("/sys/fs/cgroup/cpu,cpuacct/docker/1")), "cpu,cpuacct");
        assert_eq!(hierarchy_name(Path::new("/sys/fs/cgroup/memory")), "memory");
        assert_eq!(hierarchy_name(Path::new("/mnt/pids")), "pids");
    }

    #[test]
    fn no_limits_touch_nothing() {
        let (limited, loose) = Limited::new(&Limits::default());
        assert!(limited.groups.is_empty() && limited.watch.is_none() && loose.is_empty());
    }
}
