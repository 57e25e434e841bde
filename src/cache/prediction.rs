//! Predictions of what happens to the steps of a build that is not started.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use uuid::Uuid;

use super::{
    ProjectId,
    difference::{Difference, differences, input_differences},
    parts::{KeyRecord, RunParts, RunSettings},
};
use crate::{
    ir::{CommandStep, on_change_paths},
    model::CacheMissReason,
    source::{self, SourceTimes},
    store::{SourceId, Store, StoreError},
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
    (project, source_times, source_ignore): (&ProjectId, SourceTimes, Option<[u8; 32]>),
    records: &[KeyRecord],
    source: Option<&SourceId>,
) -> Result<BTreeMap<String, Vec<Difference>>, StoreError> {
    let mut found = BTreeMap::new();
    if records.is_empty() {
        return Ok(found);
    }
    let mut changes = source.map(|now| ChangedFiles { store, now, since: BTreeMap::new() });
    let settings = RunSettings { source_ignore, ..RunSettings::default() };
    let mut now = RunParts::of(&store.secret()?, (project.as_str(), source_times), records);
    now.settings = settings;
    for run in store.runs().of(source_dir, Some(pipeline), RUNS)? {
        // Records that are gone, or of another version, cannot be compared.
        let Ok(Some(before)) = RunParts::read(&store.runs().dir(run.id)) else { continue };
        for record in records {
            let key = &*record.step.key;
            if !found.contains_key(key)
                && let (Some(old), Some(new)) = (before.step(key), now.step(key))
            {
                let mut different = differences((&before, old), (&now, new));
                different.extend(input_differences(before.step_inputs(key), now.step_inputs(key)));
                if let Some(inputs) = different.iter_mut().find(|it| **it == Difference::Inputs)
                    && let Some(paths) = changes.as_mut().and_then(|changes| changes.of(&record.step, &old.key))
                {
                    *inputs = Difference::InputFiles { paths };
                }
                found.insert(key.to_owned(), different);
            }
        }
        if found.len() == records.len() {
            break;
        }
    }
    Ok(found)
}

/// The files of a source that changed since the sources of earlier results.
struct ChangedFiles<'a> {
    store: &'a Store,
    now: &'a SourceId,
    /// The paths of these files, by the earlier source: most steps have the same. Empty if it is gone.
    since: BTreeMap<SourceId, Vec<Vec<u8>>>,
}

impl ChangedFiles<'_> {
    /// Returns the files that the `on_change` paths of a step match and that changed since the result with
    /// the key `old` was made. Returns `None` if they are not known: that result is not in the store, or
    /// links lead to them.
    fn of(&mut self, step: &CommandStep, old: &[u8; 32]) -> Option<Vec<String>> {
        let patterns = on_change_paths(step.cache.as_deref()?).ok()?;
        let result = self.store.steps().read(|cache| cache.get(old)).ok().flatten()?;
        let source = self.store.snapshots().get(&result.snapshot).ok()?.source.clone();
        let (store, now) = (self.store, self.now);
        let changed = self
            .since
            .entry(source)
            .or_insert_with_key(|old| source::changed_files(store, (old, now)).unwrap_or_default());
        let matched = changed.iter().filter(|path| patterns.iter().any(|pattern| source::path_matches(pattern, path)));
        let paths: Vec<String> = matched.map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        (!paths.is_empty()).then_some(paths)
    }
}
