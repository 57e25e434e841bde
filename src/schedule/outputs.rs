//! The outputs of a build's steps: what each step has asked for, and what was copied.

use std::sync::Arc;

use crate::{
    blocking,
    event::mask,
    model::{BuildRef, StepIndex},
    outputs::{Collected, OutputPlace, StepOutputs, clear},
    plan::BoundPlan,
    runner::StepContext,
    source::RunSource,
};

/// Returns the outputs of a step, if it has any.
pub(super) fn outputs_of(
    plan: &BoundPlan,
    build: &BuildRef,
    archives: &RunSource,
    step: StepIndex,
) -> Option<Arc<StepOutputs>> {
    if plan.outputs.is_empty() {
        return None;
    }
    let patterns = Arc::clone(plan.outputs.get(&step)?);
    let place = OutputPlace {
        source_dir: archives.source_dir().to_owned(),
        pipeline: build.pipeline.as_str().into(),
        step: Arc::clone(&plan.step(step).step.key),
    };
    Some(Arc::new(StepOutputs::new(patterns, place)))
}

/// Removes the outputs of the pipeline's last run, if steps of this one have outputs. So all that is there
/// afterwards is of this run, also if steps are skipped or no longer exist.
pub(super) async fn clear_outputs(plan: &BoundPlan, build: &BuildRef, archives: &RunSource) {
    if plan.outputs.is_empty() {
        return;
    }
    let (source_dir, pipeline) = (archives.source_dir().to_owned(), build.pipeline.clone());
    if let Err(error) = blocking::run("remove old outputs", move || clear(&source_dir, &pipeline)).await {
        tracing::warn!("failed to remove the outputs of the last run from `.hm/out`: {error}");
    }
}

/// Returns what was copied of a step's outputs, with secrets masked in names and messages.
pub(super) fn collected(outputs: &StepOutputs, context: &StepContext) -> Collected {
    let mut collected = outputs.take();
    if !context.secrets.is_empty() {
        let mask = |text: &mut String| *text = mask(&context.secrets, text).into_owned();
        collected.artifacts.iter_mut().for_each(|artifact| mask(&mut artifact.key));
        for failure in collected.tests.iter_mut().flat_map(|tests| &mut tests.failures) {
            mask(&mut failure.name);
            mask(&mut failure.message);
        }
    }
    collected
}
