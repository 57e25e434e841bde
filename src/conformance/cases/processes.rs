//! No process of a step outlives it.

use std::{fs, time::Duration};

use uuid::Uuid;

use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    model::StdStream,
};

/// Returns a sleep duration that no other process of this machine uses.
pub(super) fn marker() -> String {
    (100_000_000 + Uuid::new_v4().as_u128() % 900_000_000).to_string()
}

/// Returns the command lines of this machine's processes.
fn command_lines() -> impl Iterator<Item = Vec<u8>> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        fs::read(entry.path().join("cmdline")).ok()
    })
}

/// Returns whether a process of this machine has `marker` in its command line.
fn is_running(marker: &str) -> bool {
    command_lines().any(|line| line.windows(marker.len()).any(|window| window == marker.as_bytes()))
}

/// Returns how many processes of this machine are `sleep MARKER`.
fn sleepers(marker: &str) -> usize {
    let sleep = format!("sleep\0{marker}\0");
    command_lines().filter(|line| line == sleep.as_bytes()).count()
}

pub(super) fn expect_gone(marker: &str) -> Result<(), Broken> {
    expect("whether a process of the step is still running", is_running(marker), false)
}

/// The number of processes `sleep MARKER` that [`stubborn`] starts.
const STUBBORN: usize = 3;

/// Returns commands that start processes which resist being ended.
pub(super) fn stubborn(marker: &str) -> String {
    format!(
        "trap '' TERM INT HUP; setsid sh -c \"trap '' TERM; sleep {marker} & sleep {marker}\" & \
         (sleep {marker} >/dev/null 2>&1 &) ;"
    )
}

/// Checks that the step ends when its command does, even if another process holds its output open.
pub(in crate::conformance) async fn background_children(harness: &Harness<'_>) -> Result<(), Broken> {
    let marker = marker();
    let done = harness.step(Step::new(format!("{} printf 'no newline'", stubborn(&marker)))).await?;
    done.passed()?;
    expect("the output", done.lines(StdStream::Stdout), ["no newline"])?;
    expect_gone(&marker)
}

pub(in crate::conformance) async fn dropped_attempt(harness: &Harness<'_>) -> Result<(), Broken> {
    let marker = marker();
    let step = Step::new(format!("{} echo ready; sleep {marker}", stubborn(&marker)));
    let is_seen = async {
        while sleepers(&marker) < STUBBORN + 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    harness.run()?.drop_when_ready(harness.runner, step, is_seen).await?;
    // No caller waits for a dropped attempt's processes; the suite's timeout ends this loop.
    while is_running(&marker) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
