//! Predictions of what happens to the steps of a build that is not started.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use uuid::Uuid;

use super::{
    ProjectId,
    difference::{Difference, differences, input_differences},
    parts::{KeyRecord, RunParts},
};
use crate::{
    model::CacheMissReason,
    source::SourceTimes,
    store::{Store, StoreError},
};

/// The maximum number of the pipeline's runs that are searched for a step.
const RUNS: u32 = 20;

/// Whether a step would run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
#[non_exhaustive]
pub enum Prediction {
    /// Its result is in the cache.
    Cached {
        /// The run that made it.
        run: Uuid,
        /// When it was made, in milliseconds since the Unix epoch.
        created_at: i64,
    },
    /// It runs in every build: it has no cache policy with a key, or its runner's steps cannot be cached.
    NotCached,
    /// The user requested that it runs.
    Refreshed,
    /// The step that it builds in runs, so its key is not known yet. It runs, too, unless that step's files
    /// come out the same.
    ParentRuns {
        /// The key of that step.
        parent: String,
    },
    /// A step whose files it gets, or that one of its services boots from, runs. It runs, too, if those files
    /// are different.
    InputRuns {
        /// The key of that step.
        step: String,
    },
    /// The cache has no result that may be used.
    Missed {
        /// The reason.
        reason: CacheMissReason,
        /// Details.
        message: Option<String>,
        /// What differs from the last run that looked it up.
        differences: Vec<Difference>,
    },
}

impl Prediction {
    /// Returns whether the step would run.
    #[must_use]
    pub fn runs(&self) -> bool {
        !matches!(self, Self::Cached { .. })
    }
}

/// Compares steps with the last runs that looked them up. Returns what differs, by the step's key.
pub(super) fn differences_from_last(
    store: &Store,
    (source_dir, pipeline): (&Path, &str),
    (project, source_times): (&ProjectId, SourceTimes),
    records: &[KeyRecord],
) -> Result<BTreeMap<String, Vec<Difference>>, StoreError> {
    let mut found = BTreeMap::new();
    if records.is_empty() {
        return Ok(found);
    }
    let now = RunParts::of(&store.secret()?, (project.as_str(), source_times), records);
    for run in store.runs().of(source_dir, Some(pipeline), RUNS)? {
        // Records that are gone, or of another version, cannot be compared.
        let Ok(Some(before)) = RunParts::read(&store.runs().dir(run.id)) else { continue };
        for key in records.iter().map(|record| &*record.step.key) {
            if !found.contains_key(key)
                && let (Some(old), Some(new)) = (before.step(key), now.step(key))
            {
                let mut different = differences((&before, old), (&now, new));
                different.extend(input_differences(before.step_inputs(key), now.step_inputs(key)));
                found.insert(key.to_owned(), different);
            }
        }
        if found.len() == records.len() {
            break;
        }
    }
    Ok(found)
}
