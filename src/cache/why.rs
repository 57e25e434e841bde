//! Explains why a step ran, or where its result came from, by comparing the parts of its key with those of
//! the last run that had the step.

use std::{cell::OnceCell, collections::BTreeMap, io, path::PathBuf, sync::Arc};

use serde::Serialize;
use uuid::Uuid;

use super::{
    CacheKey, CacheMode,
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
    /// Whether it was looked up by what it read.
    pub by_trace: bool,
    /// The run's mode, if it is not the default.
    pub run_mode: CacheMode,
    /// The step's own mode, if that is set and is less than `auto`.
    pub own_mode: Option<CacheMode>,
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
    Explainer::new(store, run, RUNS)?.explain(step)
}

/// Returns the key under which `step` of `run` was looked up.
///
/// # Errors
/// Returns an error if the records of the run cannot be read.
pub fn key_of(store: &Store, run: &Run, step: &str) -> Result<Option<CacheKey>, WhyError> {
    Ok(read(store, run)?.and_then(|parts| parts.step(step).map(|step| CacheKey(step.key))))
}

/// Explains the steps of one run. It reads the records of each run once.
#[derive(Debug)]
pub struct Explainer<'a> {
    store: &'a Store,
    run: Uuid,
    parts: RunParts,
    /// The runs before it, newest first.
    earlier: Vec<EarlierRun>,
}

/// A run with which another one is compared.
#[derive(Debug)]
struct EarlierRun {
    run: Run,
    /// Records that are gone, or of another version, cannot be compared.
    parts: OnceCell<Option<RunParts>>,
    /// How the steps ended, by key.
    ended: OnceCell<BTreeMap<Arc<str>, StepStatus>>,
}

impl<'a> Explainer<'a> {
    /// Returns what explains the steps of `run`. They are compared with at most `runs` runs before it.
    ///
    /// # Errors
    /// Returns an error if the store, or its records of the run, cannot be read.
    pub fn new(store: &'a Store, run: &Run, runs: u32) -> Result<Self, WhyError> {
        let parts = read(store, run)?.unwrap_or_default();
        let known = store.runs().of(&run.source_dir, Some(&run.pipeline), RUNS)?;
        let earlier = known.into_iter().skip_while(|earlier| earlier.id != run.id).skip(1);
        let earlier = earlier.take(usize::try_from(runs).unwrap_or(usize::MAX)).map(|run| EarlierRun {
            run,
            parts: OnceCell::new(),
            ended: OnceCell::new(),
        });
        Ok(Self { store, run: run.id, parts, earlier: earlier.collect() })
    }

    /// Explains a step.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub fn explain(&self, step: &str) -> Result<Explanation, WhyError> {
        let mut asked = self.explain_one(step)?;
        let mut next = cause_above(&asked);
        // A chain cannot be longer than the number of steps with parts.
        while let Some(parent) = next.filter(|parent| asked.because.iter().all(|known| known.step != **parent)) {
            let explained = self.explain_one(&parent)?;
            next = cause_above(&explained);
            asked.because.push(explained);
        }
        Ok(asked)
    }

    /// Returns the key under which a step was looked up.
    #[must_use]
    pub fn key(&self, step: &str) -> Option<CacheKey> {
        self.parts.step(step).map(|step| CacheKey(step.key))
    }

    /// Explains a step without the steps above it.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub fn explain_one(&self, step: &str) -> Result<Explanation, WhyError> {
        let mut explanation = Explanation {
            step: step.to_owned(),
            run: self.run,
            key: None,
            verdict: None,
            by_trace: self.parts.by_trace(step),
            run_mode: self.parts.settings.mode,
            own_mode: self.parts.settings.limits.get(step).copied(),
            compared_with: None,
            differences: Vec::new(),
            evicted: None,
            ended_before: None,
            because: Vec::new(),
        };
        let Some(own) = self.parts.step(step) else { return Ok(explanation) };
        explanation.key = Some(CacheKey(own.key).to_string());
        explanation.verdict = Some(own.verdict.clone());
        // A step that was looked up by what it read has the reason there, unless its static parts differ.
        if matches!(own.verdict, CacheVerdict::Hit { .. })
            || explanation.by_trace && matches!(own.verdict, CacheVerdict::Miss { message: Some(_), .. })
        {
            return Ok(explanation);
        }
        for before in &self.earlier {
            let Some(old_parts) = before.parts(self.store) else { continue };
            let Some(old) = old_parts.step(step) else { continue };
            explanation.compared_with = Some(before.run.id);
            explanation.differences = differences((old_parts, old), (&self.parts, own));
            let inputs = input_differences(old_parts.step_inputs(step), self.parts.step_inputs(step));
            explanation.differences.extend(inputs);
            if explanation.differences.is_empty() {
                explanation.evicted = self.store.steps().evicted(&own.key)?;
                explanation.ended_before = before.ended(self.store).get(step).copied();
            }
            break;
        }
        Ok(explanation)
    }
}

impl EarlierRun {
    fn parts(&self, store: &Store) -> Option<&RunParts> {
        self.parts.get_or_init(|| RunParts::read(&store.runs().dir(self.run.id)).ok().flatten()).as_ref()
    }

    fn ended(&self, store: &Store) -> &BTreeMap<Arc<str>, StepStatus> {
        self.ended.get_or_init(|| {
            let records = event::step_records(store.runs().dir(self.run.id)).unwrap_or_default();
            records.into_iter().filter_map(|record| Some((record.key, record.status?))).collect()
        })
    }
}

/// Returns the step whose result is the only difference.
fn cause_above(explained: &Explanation) -> Option<String> {
    match &explained.differences[..] {
        [Difference::ParentSnapshot { parent: step } | Difference::StepInput { step, .. }] => Some(step.clone()),
        _ => None,
    }
}

fn read(store: &Store, run: &Run) -> Result<Option<RunParts>, WhyError> {
    let dir = store.runs().dir(run.id);
    RunParts::read(&dir).map_err(|source| WhyError::Run { dir, source })
}
