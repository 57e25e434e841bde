//! The processes of this machine.

use std::{
    fs,
    time::{Duration, Instant},
};

use uuid::Uuid;

/// Returns whether any process of this machine has `marker` in its command line.
pub(crate) fn is_running(marker: &str) -> bool {
    command_lines().any(|cmdline| cmdline.windows(marker.len()).any(|window| window == marker.as_bytes()))
}

/// Returns whether a `sleep` for `marker` runs: the shell that started it has executed all commands before
/// it.
pub(crate) fn is_asleep(marker: &str) -> bool {
    let sleep = format!("sleep\0{marker}\0");
    command_lines().any(|cmdline| cmdline == sleep.as_bytes())
}

fn command_lines() -> impl Iterator<Item = Vec<u8>> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let is_pid = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    entries
        .filter(move |entry| entry.file_name().to_str().is_some_and(is_pid))
        .map(|entry| fs::read(entry.path().join("cmdline")).unwrap_or_default())
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
