//! Limits held by looking, where there is no cgroup to hold them.
//!
//! Runs in the step's pid 1, whose `/proc` shows the step's processes and no others.

use std::fs;

use super::spec::{Report, Watch};

/// What a step over its limits is told, or `None` while it is within them.
pub(crate) fn exceeded(watch: Watch) -> Option<Report> {
    let mut memory_bytes = 0;
    let mut pids = 0;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        // Pid 1 is this process, and no part of the step.
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()).filter(|&pid| pid != 1) else {
            continue;
        };
        pids += 1;
        if watch.memory_bytes.is_some() {
            memory_bytes += resident_bytes(pid);
        }
    }
    if watch.memory_bytes.is_some_and(|limit| memory_bytes > limit) {
        return Some(Report::OutOfMemory);
    }
    watch.pids.is_some_and(|limit| pids > limit).then_some(Report::TooManyProcesses)
}

/// The second field of `statm`, in pages. A process that is just ending has none.
fn resident_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
