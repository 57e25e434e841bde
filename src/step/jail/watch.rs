//! Limits enforced by polling, if there is no cgroup to enforce them.
//!
//! This runs in the step's pid 1, whose `/proc` shows the step's processes, and mostly no others.

use std::{
    collections::HashMap,
    fs::{self, DirEntry},
};

use super::{
    memory::Memory,
    spec::{Report, Watch},
};

/// Polls a step that has limits.
#[derive(Debug)]
pub(crate) struct Watcher {
    memory: Option<Memory>,
    pids: Option<u64>,
}

impl Watcher {
    pub(crate) fn new(watch: Watch) -> Self {
        Self { memory: watch.memory_bytes.map(Memory::new), pids: watch.pids }
    }

    /// Returns the report for a step over its limits, or `None` while it is within them.
    pub(crate) fn exceeded(&mut self) -> Option<Report> {
        let pids = processes()?;
        // Processes that multiply exceed the memory, too, if this process looks late: they are the cause.
        if let Some(limit) = self.pids
            && pids.iter().copied().map(threads).sum::<u64>() > limit
        {
            return Some(Report::TooManyProcesses);
        }
        let memory = self.memory.as_mut()?;
        memory.is_exceeded(&pids).then_some(Report::OutOfMemory)
    }
}

/// Returns the step's processes, without this one.
fn processes() -> Option<Vec<u32>> {
    let this: u32 = fs::read_link("/proc/self").ok()?.to_str()?.parse().ok()?;
    let number = |entry: DirEntry| entry.file_name().to_str()?.parse().ok();
    let mut pids: Vec<u32> = fs::read_dir("/proc").ok()?.flatten().filter_map(number).collect();
    if this != 1 {
        // A shared `/proc`, where this process is not pid 1. The step's processes are this one's descendants,
        // because orphans become this one's children.
        let parents: HashMap<u32, u32> = pids.iter().filter_map(|&pid| Some((pid, parent(pid)?))).collect();
        let above = |pid: &u32| parents.get(pid).copied();
        pids.retain(|&pid| std::iter::successors(above(&pid), above).take(parents.len()).any(|above| above == this));
    }
    pids.retain(|&pid| pid != this);
    Some(pids)
}

/// Returns the parent of a process, or `None` if the process has just ended.
fn parent(pid: u32) -> Option<u32> {
    stat_field(pid, 1)
}

/// Returns how many threads a process has. A process that is ending still counts as one.
fn threads(pid: u32) -> u64 {
    stat_field(pid, 17).unwrap_or(1)
}

/// Returns a field of `/proc/PID/stat`, counted from the first one after the name.
fn stat_field<T: std::str::FromStr>(pid: u32, index: usize) -> Option<T> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, but nothing after it contains a parenthesis.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(index)?.parse().ok()
}
