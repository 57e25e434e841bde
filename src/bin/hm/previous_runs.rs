//! What the steps of a pipeline took the last time, so that the longest path starts first, and that steps
//! which run at once fit into the memory.
//!
//! The store has the last runs, and their journals have the durations and peaks. If either cannot be read,
//! only the better order is lost.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use hm_exec::{event, store::StoreHandle};

/// How many runs are read: a run that found steps in the cache does not show what they take.
const RUNS: u32 = 3;

/// What is known of the steps of a pipeline, by key.
#[derive(Debug, Default)]
pub(crate) struct PreviousRuns {
    /// How long each step took when it last ran.
    pub(crate) durations: BTreeMap<Arc<str>, Duration>,
    /// The most memory that each step had, in bytes.
    pub(crate) peaks: BTreeMap<Arc<str>, u64>,
}

/// Reads what the last runs of a pipeline show. Empty if nothing is known.
pub(crate) fn read(store: &StoreHandle, source_dir: &Path, pipeline: &str) -> PreviousRuns {
    let mut previous = PreviousRuns::default();
    let Ok(store) = store.get() else { return previous };
    let runs = store.runs().of(source_dir, Some(pipeline), RUNS).unwrap_or_default();
    for run in runs.iter().rev() {
        for (key, cost) in event::step_costs(store.runs().dir(run.id)).unwrap_or_default() {
            if let Some(peak) = cost.peak_memory_bytes {
                let known = previous.peaks.entry(Arc::clone(&key)).or_default();
                *known = peak.max(*known);
            }
            if let Some(duration) = cost.duration {
                previous.durations.insert(key, duration);
            }
        }
    }
    previous
}
