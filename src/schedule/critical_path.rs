//! Priorities by critical path: the step with the longest remaining path comes first.

use std::time::Duration;

use crate::plan::Dag;

/// Returns the longest remaining path from each step's start to the end of the build, the step itself
/// included, in microseconds.
///
/// `durations` are those of the last run, by step. A step without one counts as an average step. If no
/// duration is known, every step counts as one, and the length of a path is its number of steps.
#[must_use]
pub fn priorities(dag: &Dag, durations: &[Option<Duration>]) -> Vec<u64> {
    let weights: Vec<Option<u64>> = durations.iter().map(|known| known.map(micros)).collect();
    let (sum, count) =
        weights.iter().flatten().fold((0_u64, 0_u64), |(sum, count), weight| (sum.saturating_add(*weight), count + 1));
    let unknown = sum.checked_div(count).unwrap_or(1).max(1);

    let mut paths = vec![0_u64; dag.len()];
    for &step in dag.order().iter().rev() {
        let own = weights.get(step.get()).copied().flatten().unwrap_or(unknown);
        let below = dag.children(step).iter().map(|link| paths[link.step.get()]).max().unwrap_or(0);
        paths[step.get()] = own.saturating_add(below);
    }
    paths
}

/// Returns at least one, so that of two steps on one path the earlier always has the higher priority.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}
