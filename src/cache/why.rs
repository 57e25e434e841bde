//! Explains why a step ran, or where its result came from, by comparing the parts of its key with those of
//! the last run that had the step.

use std::{io, path::PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::{
    CacheKey,
    difference::{Difference, differences, input_differences},
    parts::{CacheVerdict, RunParts},
};
use crate::{
    event,
    model::StepStatus,
    store::{Evicted, Run, Store, StoreError},
};

/// The maximum number of the pipeline's runs that are searched for a step.
const RUNS: u32 = 100;

/// The reason why there is no explanation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WhyError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records of a run cannot be read.
    #[error("failed to read the records of a run in {}", dir.display())]
    Run {
        /// The run's directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The explanation of a run's step, and of those steps above it that are the cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The step.
    pub step: String,
    /// The run.
    pub run: Uuid,
    /// The step's cache key, or `None` if it has none: there is no cache policy, or the runner's steps cannot
    /// be cached.
    pub key: Option<String>,
    /// The outcome of looking it up.
    pub verdict: Option<CacheVerdict>,
    /// The last previous run that looked the step up.
    pub compared_with: Option<Uuid>,
    /// The differences from that run.
    pub differences: Vec<Difference>,
    /// When garbage collection removed the result, if it did.
    pub evicted: Option<Evicted>,
    /// How the step ended in the previous run, if nothing differs and that is the reason.
    pub ended_before: Option<StepStatus>,
    /// The steps that this one depends on, up to the one whose differences are the cause.
    pub because: Vec<Explanation>,
}

/// Explains `step` of `run`.
///
/// # Errors
/// Returns an error if the store, or its records of runs, cannot be read.
pub fn explain(store: &Store, run: &Run, step: &str) -> Result<Explanation, WhyError> {
    let parts = read(store, run)?.unwrap_or_default();
    let runs = store.runs().of(&run.source_dir, Some(&run.pipeline), RUNS)?;
    let earlier: Vec<Run> = runs.into_iter().skip_while(|earlier| earlier.id != run.id).skip(1).collect();
    let mut asked = explain_one(store, run, &parts, &earlier, step)?;
    let mut next = cause_above(&asked);
    // A chain cannot be longer than the number of steps with parts.
    while let Some(parent) = next.filter(|parent| asked.because.iter().all(|known| known.step != **parent)) {
        let explained = explain_one(store, run, &parts, &earlier, &parent)?;
        next = cause_above(&explained);
        asked.because.push(explained);
    }
    Ok(asked)
}

/// Returns the key under which `step` of `run` was looked up.
///
/// # Errors
/// Returns an error if the records of the run cannot be read.
pub fn key_of(store: &Store, run: &Run, step: &str) -> Result<Option<CacheKey>, WhyError> {
    Ok(read(store, run)?.and_then(|parts| parts.step(step).map(|step| CacheKey(step.key))))
}

/// Returns the step whose result is the only difference.
fn cause_above(explained: &Explanation) -> Option<String> {
    match &explained.differences[..] {
        [Difference::ParentSnapshot { parent: step } | Difference::StepInput { step, .. }] => Some(step.clone()),
        _ => None,
    }
}

fn explain_one(
    store: &Store,
    run: &Run,
    parts: &RunParts,
    earlier: &[Run],
    step: &str,
) -> Result<Explanation, WhyError> {
    let mut explanation = Explanation {
        step: step.to_owned(),
        run: run.id,
        key: None,
        verdict: None,
        compared_with: None,
        differences: Vec::new(),
        evicted: None,
        ended_before: None,
        because: Vec::new(),
    };
    let Some(own) = parts.step(step) else { return Ok(explanation) };
    explanation.key = Some(CacheKey(own.key).to_string());
    explanation.verdict = Some(own.verdict.clone());
    if let CacheVerdict::Hit { .. } = own.verdict {
        return Ok(explanation);
    }
    for before in earlier {
        // Records that are gone, or of another version, cannot be compared.
        let Ok(Some(old_parts)) = RunParts::read(&store.runs().dir(before.id)) else { continue };
        let Some(old) = old_parts.step(step) else { continue };
        explanation.compared_with = Some(before.id);
        explanation.differences = differences((&old_parts, old), (parts, own));
        let inputs = input_differences(old_parts.step_inputs(step), parts.step_inputs(step));
        explanation.differences.extend(inputs);
        if explanation.differences.is_empty() {
            explanation.evicted = store.steps().evicted(&own.key)?;
            explanation.ended_before = ended(store, before, step);
        }
        break;
    }
    Ok(explanation)
}

fn ended(store: &Store, run: &Run, step: &str) -> Option<StepStatus> {
    let records = event::step_records(store.runs().dir(run.id)).ok()?;
    records.into_iter().find(|record| *record.key == *step).and_then(|record| record.status)
}

fn read(store: &Store, run: &Run) -> Result<Option<RunParts>, WhyError> {
    let dir = store.runs().dir(run.id);
    RunParts::read(&dir).map_err(|source| WhyError::Run { dir, source })
}
