//! The outputs of a build's steps: what each step has asked for, and what was copied.

use std::sync::Arc;

use crate::{
    blocking,
    event::mask,
    model::{BuildRef, Secrets, StepIndex},
    outputs::{OutputPlace, StepOutputs, clear},
    plan::BoundPlan,
    source::RunSource,
};

/// Returns the outputs of a step, if it has any.
pub(super) fn outputs_of(
    plan: &BoundPlan,
    build: &BuildRef,
    archives: &RunSource,
    step: StepIndex,
    secrets: &Arc<Secrets>,
) -> Option<Arc<StepOutputs>> {
    let patterns = Arc::clone(plan.outputs.get(&step)?);
    let place = OutputPlace {
        source_dir: archives.source_dir().to_owned(),
        pipeline: build.pipeline.as_str().into(),
        step: Arc::clone(&plan.step(step).step.key),
    };
    let inputs = plan.inputs.get(&step).into_iter().flatten().map(|input| Arc::clone(&input.target));
    let outputs = StepOutputs::new(patterns, place).without(inputs);
    if secrets.is_empty() {
        return Some(Arc::new(outputs));
    }
    let secrets = Arc::clone(secrets);
    Some(Arc::new(outputs.mask(move |text| mask(&secrets, text).into_owned())))
}

/// Removes the outputs of the pipeline's last run, if steps of this one have outputs. So all that is there
/// afterwards is of this run, also if steps are skipped or no longer exist.
pub(super) async fn clear_outputs(plan: &BoundPlan, build: &BuildRef, archives: &RunSource) {
    if plan.outputs.is_empty() {
        return;
    }
    let (source_dir, pipeline) = (archives.source_dir().to_owned(), build.pipeline.clone());
    if let Err(error) = blocking::run("remove old outputs", move || clear(&source_dir, &pipeline, None)).await {
        tracing::warn!("failed to remove the outputs of the last run from `.hm/out`: {error}");
    }
}
