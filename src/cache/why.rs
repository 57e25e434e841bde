//! Why a step ran, or where its result came from: what went into its key, against the last run that had it.

use std::{io, path::PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::{
    CacheKey,
    parts::{Difference, RunParts, Verdict, differences},
};
use crate::{
    StepStatus, event,
    store::{Evicted, Run, Store, StoreError},
};

/// In how many of the pipeline's runs a step is looked for.
const RUNS: u32 = 100;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WhyError {
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was kept of a run can't be read.
    #[error("failed to read what is kept of a run in {}", dir.display())]
    Run {
        /// The run's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is to be said of a step of a run, and of those steps above it that are the cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The step.
    pub step: String,
    /// The run.
    pub run: Uuid,
    /// Its cache key; `None` where it has none: no cache policy, or a runner whose steps can't be cached.
    pub key: Option<String>,
    /// What came of looking it up.
    pub verdict: Option<Verdict>,
    /// The last run before this one that looked the step up.
    pub compared_with: Option<Uuid>,
    /// What differs from that run.
    pub differences: Vec<Difference>,
    /// When garbage collection took the result, if it did.
    pub evicted: Option<Evicted>,
    /// How the step ended in the run before, where nothing differs and that is the reason.
    pub ended_before: Option<StepStatus>,
    /// The steps that this one starts from, up to the one whose differences are the cause.
    pub because: Vec<Explanation>,
}

/// Explains `step` of `run`.
///
/// # Errors
/// Where the store, or what it keeps of runs, can't be read.
pub fn explain(store: &Store, run: &Run, step: &str) -> Result<Explanation, WhyError> {
    let parts = read(store, run)?.unwrap_or_default();
    let runs = store.runs_of(&run.source_dir, Some(&run.pipeline), RUNS)?;
    let earlier: Vec<Run> = runs.into_iter().skip_while(|earlier| earlier.id != run.id).skip(1).collect();
    let mut asked = explain_one(store, run, &parts, &earlier, step)?;
    let mut next = cause_above(&asked);
    // A chain is no longer than the steps that have parts.
    while let Some(parent) = next.filter(|parent| asked.because.iter().all(|known| known.step != **parent)) {
        let explained = explain_one(store, run, &parts, &earlier, &parent)?;
        next = cause_above(&explained);
        asked.because.push(explained);
    }
    Ok(asked)
}

/// The key under which `step` of `run` was looked up.
///
/// # Errors
/// Where what was kept of the run can't be read.
pub fn key_of(store: &Store, run: &Run, step: &str) -> Result<Option<CacheKey>, WhyError> {
    Ok(read(store, run)?.and_then(|parts| parts.step(step).map(|step| CacheKey(step.key))))
}

/// The step above, where what it left is all that differs.
fn cause_above(explained: &Explanation) -> Option<String> {
    match &explained.differences[..] {
        [Difference::ParentSnapshot { parent }] => Some(parent.clone()),
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
    if let Verdict::Hit { .. } = own.verdict {
        return Ok(explanation);
    }
    for before in earlier {
        // What is gone, or of another version, tells nothing.
        let Ok(Some(old_parts)) = RunParts::read(&store.run_dir(before.id)) else { continue };
        let Some(old) = old_parts.step(step) else { continue };
        explanation.compared_with = Some(before.id);
        explanation.differences = differences((&old_parts, old), (parts, own));
        if explanation.differences.is_empty() {
            explanation.evicted = store.evicted(&own.key)?;
            explanation.ended_before = ended(store, before, step);
        }
        break;
    }
    Ok(explanation)
}

fn ended(store: &Store, run: &Run, step: &str) -> Option<StepStatus> {
    let records = event::step_records(store.run_dir(run.id)).ok()?;
    records.into_iter().find(|record| *record.key == *step).and_then(|record| record.status)
}

fn read(store: &Store, run: &Run) -> Result<Option<RunParts>, WhyError> {
    let dir = store.run_dir(run.id);
    RunParts::read(&dir).map_err(|source| WhyError::Run { dir, source })
}
