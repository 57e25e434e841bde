//! Limits held by looking, where there is no cgroup to hold them.
//!
//! Runs in the step's pid 1, whose `/proc` shows the step's processes, and mostly no others.

use std::{
    collections::HashMap,
    fs::{self, DirEntry},
};

use super::spec::{Report, Watch};

/// What a step over its limits is told, or `None` while it is within them.
pub(crate) fn exceeded(watch: Watch) -> Option<Report> {
    let pids = processes()?;
    if let Some(limit) = watch.memory_bytes
        && pids.iter().copied().map(resident_bytes).sum::<u64>() > limit
    {
        return Some(Report::OutOfMemory);
    }
    watch.pids.is_some_and(|limit| pids.len() as u64 > limit).then_some(Report::TooManyProcesses)
}

/// The step's processes, apart from this one.
fn processes() -> Option<Vec<u32>> {
    let this: u32 = fs::read_link("/proc/self").ok()?.to_str()?.parse().ok()?;
    let number = |entry: DirEntry| entry.file_name().to_str()?.parse().ok();
    let mut pids: Vec<u32> = fs::read_dir("/proc").ok()?.flatten().filter_map(number).collect();
    if this != 1 {
        // Somebody else's `/proc`: the step's are this one's children, and theirs, because orphans become this one's.
        let parents: HashMap<u32, u32> = pids.iter().filter_map(|&pid| Some((pid, parent(pid)?))).collect();
        let above = |pid: &u32| parents.get(pid).copied();
        pids.retain(|&pid| std::iter::successors(above(&pid), above).take(parents.len()).any(|above| above == this));
    }
    pids.retain(|&pid| pid != this);
    Some(pids)
}

/// The parent of a process; none where it has just ended.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have anything in it, but nothing after it has a parenthesis.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The second field of `statm`, in pages. A process that is just ending has none.
fn resident_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
