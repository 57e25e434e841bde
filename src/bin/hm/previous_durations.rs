//! How long the steps of a pipeline took the last time, so that the longest path starts first.
//!
//! The store has the last runs, and their journals have the durations. If either cannot be read, only the
//! better order is lost.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use hm_exec::{event, store::StoreHandle};

/// How many runs are read: a run that found steps in the cache does not show how long they take.
const RUNS: u32 = 3;

/// Returns how long each step took when it last ran, by key. Empty if nothing is known.
pub(crate) fn read(store: &StoreHandle, source_dir: &Path, pipeline: &str) -> BTreeMap<Arc<str>, Duration> {
    let mut durations = BTreeMap::new();
    let Ok(store) = store.get() else { return durations };
    let runs = store.runs().of(source_dir, Some(pipeline), RUNS).unwrap_or_default();
    for run in runs.iter().rev() {
        durations.extend(event::durations(store.runs().dir(run.id)).unwrap_or_default());
    }
    durations
}
