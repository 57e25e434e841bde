//! The memory use of a step, measured when no control group counts it.
//!
//! The memory that its processes have mapped is in `/proc/PID/statm`. Memory in tmpfs file systems, in memory
//! files and in System V segments belongs to no process, and a step could keep any amount there. To count it,
//! every descriptor of every process must be read, which takes milliseconds. That is done only while the
//! machine as a whole has enough shared memory to matter.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

/// The tmpfs file systems that a step may write to.
const FILE_SYSTEMS: [&str; 2] = ["/dev", "/dev/shm"];

/// Full measurements take at most one part in this many of the elapsed time.
const PATIENCE: u32 = 10;

/// Measures a step's memory at intervals.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: u64,
    next_look: Option<Instant>,
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, next_look: None }
    }

    /// Returns whether the memory of the processes `pids`, including shared memory, exceeds the limit.
    pub(crate) fn is_exceeded(&mut self, pids: &[u32]) -> bool {
        let mapped: u64 = pids.iter().copied().map(mapped_bytes).sum();
        let shared = shared_of_the_machine();
        if shared.is_some_and(|shared| mapped.saturating_add(shared) <= self.limit) {
            return false;
        }
        let start = Instant::now();
        if self.next_look.is_some_and(|next| start < next) {
            return false;
        }
        let used = used_bytes(pids);
        let took: Duration = start.elapsed();
        self.next_look = Some(start + took * PATIENCE);
        used > self.limit
    }
}

/// Returns a process' resident set, in bytes: the second field of `statm`, in pages. A process that is ending
/// has none.
fn mapped_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Returns all memory of this machine that is shared or in a tmpfs: an upper bound of the step's.
fn shared_of_the_machine() -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, "Shmem:")
}

/// Returns the field `name` of a text with a line `name  12 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns the memory that is not shared, summed over the processes, and all shared memory, counted once.
fn used_bytes(pids: &[u32]) -> u64 {
    let mut sum = file_systems() + segments();
    let mut sharing = Vec::new();
    for &pid in pids {
        // A process that is ending has no such file.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let of = |name| field(&status, name).unwrap_or(0);
        sum += of("RssAnon:") + of("RssFile:");
        let shared = of("RssShmem:");
        if shared > 0 {
            sharing.push((pid, shared));
        }
    }
    let mut seen = HashSet::new();
    sum += pids.iter().map(|&pid| open_files(pid, &mut seen)).sum::<u64>();
    sum + sharing.into_iter().map(|(pid, shared)| unnamed(pid, &seen).unwrap_or(shared)).sum::<u64>()
}

/// Returns how much the step's tmpfs file systems hold, in bytes.
fn file_systems() -> u64 {
    let mut devices = HashSet::new();
    let mut used = 0;
    for path in FILE_SYSTEMS {
        let (Ok(stat), Ok(metadata)) = (rustix::fs::statfs(path), fs::metadata(path)) else { continue };
        // Without a jail's mounts, `/dev` may be any file system.
        if stat.f_type as u64 == libc::TMPFS_MAGIC as u64 && devices.insert(metadata.dev()) {
            let pages = stat.f_blocks.saturating_sub(stat.f_bfree);
            used += pages * u64::try_from(stat.f_bsize).unwrap_or(0);
        }
    }
    used
}

/// Returns the size of the System V segments: the columns `rss` and `swap`.
fn segments() -> u64 {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let bytes = |line: &str| line.split_ascii_whitespace().rev().take(2).filter_map(|it| it.parse::<u64>().ok()).sum();
    table.lines().skip(1).map(|line| -> u64 { bytes(line) }).sum()
}

/// Returns the size of the memory files that a process has open, except for files already in `seen`.
fn open_files(pid: u32, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let is_in_memory = fs::read_link(entry.path()).is_ok_and(|target| is_memory_file(&target));
        if is_in_memory
            && let Ok(metadata) = fs::metadata(entry.path())
            && seen.insert((metadata.dev(), metadata.ino()))
        {
            sum += metadata.blocks() * 512;
        }
    }
    sum
}

fn is_memory_file(target: &Path) -> bool {
    target.to_str().is_some_and(|target| target.starts_with("/memfd:"))
}

/// Returns a process' proportional share of each shared mapping that has no name, or whose file is not in
/// `seen`.
fn unnamed(pid: u32, seen: &HashSet<(u64, u64)>) -> Option<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    Some(unnamed_in(&maps, seen))
}

fn unnamed_in(smaps: &str, seen: &HashSet<(u64, u64)>) -> u64 {
    let mut counts = false;
    let mut sum = 0;
    for line in smaps.lines() {
        if let Some(share) = line.strip_prefix("Pss:") {
            if counts {
                let kilobytes = share.split_ascii_whitespace().next().and_then(|it| it.parse::<u64>().ok());
                sum += kilobytes.unwrap_or(0) * 1024;
            }
        } else if let Some((file, path)) = mapping(line) {
            counts = (path.starts_with("/memfd:") && !seen.contains(&file)) || path.starts_with("/dev/zero");
        }
    }
    sum
}

/// Returns the file in a mapping's first line, as device and inode, and its path:
/// `7f00-7f10 rw-s 00000000 00:01 1035 /memfd:x`.
fn mapping(line: &str) -> Option<((u64, u64), &str)> {
    let mut fields = line.splitn(6, ' ');
    let (_range, _mode, _offset) = (fields.next().filter(|it| it.contains('-'))?, fields.next()?, fields.next()?);
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let device = rustix::fs::makedev(number(major)?, number(minor)?);
    let inode = fields.next()?.parse().ok()?;
    Some(((device, inode), fields.next().unwrap_or_default().trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000100000 rw-s 00000000 00:01 1035       /memfd:known (deleted)
Rss:                1024 kB
Pss:                1024 kB
Pss_Dirty:          1024 kB
7f0000200000-7f0000300000 rw-s 00000000 00:01 2049       /memfd:closed (deleted)
Pss:                 512 kB
7f0000400000-7f0000500000 rw-s 00000000 00:01 4          /dev/zero (deleted)
Pss:                   8 kB
7f0000600000-7f0000700000 rw-s 00000000 00:17 9          /dev/shm/file
Pss:                  64 kB
7f0000800000-7f0000900000 rw-p 00000000 00:00 0
Pss:                 100 kB
VmFlags: rd wr mr mw me sd
";

    #[test]
    fn shared_memory_is_counted_where_nothing_else_counts_it() {
        let known = HashSet::from([(rustix::fs::makedev(0, 1), 1035)]);
        assert_eq!(unnamed_in(SMAPS, &known), (512 + 8) * 1024);
        assert_eq!(unnamed_in(SMAPS, &HashSet::new()), (1024 + 512 + 8) * 1024);
    }

    #[test]
    fn a_memory_file_that_nobody_maps_counts_once() {
        let file = rustix::fs::memfd_create(c"counted", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let again = file.try_clone().unwrap();
        let before = open_files(std::process::id(), &mut HashSet::new());
        rustix::io::write(&file, &[1; 1 << 20]).unwrap();
        let after = open_files(std::process::id(), &mut HashSet::new());
        assert!(after >= before + (1 << 20) && after < before + (2 << 20), "{before} {after}");
        drop(again);
    }

    #[test]
    fn fields_have_a_unit() {
        assert_eq!(field("Name:\tx\nRssShmem:\t      12 kB\n", "RssShmem:"), Some(12 * 1024));
        assert_eq!(field("", "RssShmem:"), None);
    }
}
