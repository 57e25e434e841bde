//! Files of other steps in the keys of cached steps.
//!
//! Their digests are queried when those steps have ended, before the step is looked up. A step whose files
//! cannot be read is not cached: its attempt reports the reason.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};

use super::{Caching, JobDone, PANICKED, caught};
use crate::{
    cache::{StepInputPart, StepInputs},
    model::StepIndex,
    runner::{InputFiles, RunnerIndex, RunnerSet},
    schedule::progress::BuildProgress,
    source::RunSource,
};

/// The number of inputs of a step that are read at once.
const AT_ONCE: usize = 4;

/// The inputs of a step, or the reason why they are not known.
pub(super) type FanInAnswer = Result<Arc<StepInputs>, Arc<str>>;

/// The inputs of the cached steps that have some. `None`: they are being read.
pub(super) type FanIn = BTreeMap<StepIndex, Option<FanInAnswer>>;

impl<R: RunnerSet> Caching<'_, R> {
    /// Returns the inputs of a step; the inner option is `None` if it has none. Returns `None` until they are
    /// known; the step is looked up again then.
    pub(super) fn step_inputs(
        &mut self,
        step: StepIndex,
        progress: &BuildProgress<'_>,
    ) -> Option<Result<Option<Arc<StepInputs>>, Arc<str>>> {
        if !self.plan.inputs.contains_key(&step) {
            return Some(Ok(None));
        }
        if let Some(known) = self.fan_in.get(&step) {
            return known.clone().map(|answer| answer.map(Some));
        }
        self.fan_in.insert(step, None);
        let (runners, source, runner) = (self.runners, self.archives, self.plan.step(step).runner);
        let files = progress.input_files(step);
        self.jobs
            .push(Box::pin(async move { JobDone::StepInputsRead(step, read(runners, (runner, source), files).await) }));
        None
    }
}

/// Queries the runner for the digests of all inputs of a step.
pub(super) async fn read(
    runners: &impl RunnerSet,
    of: (RunnerIndex, &RunSource),
    files: Vec<InputFiles>,
) -> FanInAnswer {
    caught(digests(runners, of, files)).await.unwrap_or_else(|()| Err(PANICKED.into()))
}

async fn digests(
    runners: &impl RunnerSet,
    (runner, source): (RunnerIndex, &RunSource),
    files: Vec<InputFiles>,
) -> FanInAnswer {
    let one = |files: InputFiles| -> BoxFuture<'_, Result<StepInputPart, Arc<str>>> {
        Box::pin(async move {
            let digest = runners.input_digest(runner, source, &files).await.map_err(|error| error.to_line())?;
            let InputFiles { step, path, target, .. } = files;
            Ok(StepInputPart { target: target.to_string(), digest, step: step.to_string(), path: path.to_string() })
        })
    };
    // Collected: the compiler cannot prove that a stream which creates the futures lazily is `Send`.
    let reads: Vec<_> = files.into_iter().map(one).collect();
    let parts: Vec<StepInputPart> = stream::iter(reads).buffered(AT_ONCE).try_collect().await?;
    Ok(Arc::new(StepInputs::new(parts)))
}
