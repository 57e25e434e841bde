//! What the steps of a pipeline took the last time, so that the longest path starts first, and that steps
//! which run at once fit into the memory.
//!
//! The store has the last runs, and their journals have the durations and peaks. If either cannot be read,
//! only the better order is lost.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use hm_exec::{Plan, event, ir::Node, store::StoreHandle};

/// The maximum number of runs that are read: a run that found steps in the cache does not show what they
/// take.
const RUNS: u32 = 20;

/// The number of runs whose peaks count. Older ones say little about what a step needs now.
const RUNS_OF_PEAKS: usize = 3;

/// The number of bytes of journals after which no further one is read.
const MAX_BYTES: u64 = 4 << 20;

/// What is known of the steps of a pipeline, by key.
#[derive(Debug, Default)]
pub(crate) struct PreviousRuns {
    /// How long each step took when it last ran.
    pub(crate) durations: BTreeMap<Arc<str>, Duration>,
    /// The most memory that each step had, in bytes.
    pub(crate) peaks: BTreeMap<Arc<str>, u64>,
}

/// Reads what the last runs of a pipeline show. Empty if nothing is known.
pub(crate) fn read(store: &StoreHandle, source_dir: &Path, pipeline: &str, plan: &Plan) -> PreviousRuns {
    let mut previous = PreviousRuns::default();
    let Ok(store) = store.get() else { return previous };
    let mut bytes = 0;
    // Newest first.
    for (age, run) in store.runs().of(source_dir, Some(pipeline), RUNS).unwrap_or_default().iter().enumerate() {
        let dir = store.runs().dir(run.id);
        for (key, cost) in event::step_costs(&dir).unwrap_or_default() {
            if let Some(peak) = cost.peak_memory_bytes.filter(|_| age < RUNS_OF_PEAKS) {
                let known = previous.peaks.entry(Arc::clone(&key)).or_default();
                *known = peak.max(*known);
            }
            if let Some(duration) = cost.duration {
                previous.durations.entry(key).or_insert(duration);
            }
        }
        bytes += dir.join("journal").metadata().map_or(0, |journal| journal.len());
        let is_known = |node: &Node| previous.durations.contains_key(&node.step.key);
        if age + 1 >= RUNS_OF_PEAKS && (bytes > MAX_BYTES || plan.pipeline().nodes.iter().all(is_known)) {
            break;
        }
    }
    previous
}
