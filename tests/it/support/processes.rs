//! The processes of this machine.

use std::{
    fs,
    time::{Duration, Instant},
};

use uuid::Uuid;

/// Returns whether any process of this machine has `marker` in its command line.
pub(crate) fn is_running(marker: &str) -> bool {
    pid_of(marker).is_some()
}

/// Returns the id of a process that has `marker` in its command line.
pub(crate) fn pid_of(marker: &str) -> Option<u32> {
    let has_marker = |line: &[u8]| line.windows(marker.len()).any(|window| window == marker.as_bytes());
    processes().find(|(_, line)| has_marker(line)).map(|(pid, _)| pid)
}

/// Returns whether a `sleep` for `marker` runs: the shell that started it has executed all commands before
/// it.
pub(crate) fn is_asleep(marker: &str) -> bool {
    let sleep = format!("sleep\0{marker}\0");
    command_lines().any(|cmdline| cmdline == sleep.as_bytes())
}

fn command_lines() -> impl Iterator<Item = Vec<u8>> {
    processes().map(|(_, line)| line)
}

/// Returns the ids and the command lines of all processes.
fn processes() -> impl Iterator<Item = (u32, Vec<u8>)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, fs::read(entry.path().join("cmdline")).unwrap_or_default()))
    })
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns an argument of `sleep` that no other process of this machine has.
pub(crate) fn marker() -> String {
    format!("{}.{:09}", 70_000 + std::process::id() % 9999, Uuid::new_v4().as_u128() % 1_000_000_000)
}
