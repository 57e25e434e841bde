//! Cache keys of a plan's steps.

use crate::{
    cache::{BasePart, CacheKey, Cacheable, KeyParts, ProjectId},
    model::StepIndex,
    plan::BoundPlan,
    source::SourceTimes,
};

/// The parts of a step's key that are not in the plan.
pub(super) struct KeyContext<'a> {
    pub(super) base: BasePart<'a>,
    pub(super) mode: &'a str,
    pub(super) project: &'a ProjectId,
    pub(super) source_times: SourceTimes,
    pub(super) inputs: Option<&'a [u8; 32]>,
    /// The digest of the files of other steps.
    pub(super) step_inputs: Option<&'a [u8; 32]>,
}

/// Returns whether `step` is looked up in a cache, if there is one.
pub(crate) fn is_cached(plan: &BoundPlan, step: StepIndex) -> bool {
    plan.runner(step).capabilities.layers && Cacheable::of(&plan.step(step).step).is_some()
}

/// Returns the key of `step`, whose policy has `dsl_key`.
pub(super) fn key_of(plan: &BoundPlan, step: StepIndex, dsl_key: &str, context: &KeyContext<'_>) -> CacheKey {
    let KeyContext { base, mode, project, source_times, inputs, step_inputs } = *context;
    let (bound, runner) = (plan.step(step), plan.runner(step));
    let runner_args = runner.args.in_keys(bound.step.runner_args.as_ref());
    let parts = KeyParts {
        dsl_key,
        base,
        command: &bound.step.cmd,
        env: &bound.env,
        runner: &runner.name,
        runner_version: runner.cache_version,
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        mode,
        runner_args: &runner_args,
        project: project.as_str(),
        source_times,
        inputs,
        step_inputs,
    };
    parts.key()
}
