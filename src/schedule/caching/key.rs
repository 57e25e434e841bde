//! Cache keys of a plan's steps.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    cache::{BasePart, CacheKey, CacheMode, Cacheable, KeyParts, ProjectId},
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
    pub(super) source_ignore: Option<&'a [u8; 32]>,
    pub(super) inputs: Option<&'a [u8; 32]>,
    pub(super) services: &'a ServiceIds,
    /// The digest of the files of other steps.
    pub(super) step_inputs: Option<&'a [u8; 32]>,
}

/// What the services of a step boot from: the identities of images, and the names of snapshots. Empty for
/// most steps.
pub(super) type ServiceIds = Vec<(Arc<str>, Arc<str>)>;

/// Returns the arguments of a step as keys have them: with what its services boot from.
pub(super) fn args_in_keys(plan: &BoundPlan, step: StepIndex, services: &ServiceIds) -> String {
    let (args, schema) = (plan.step(step).step.runner_args.as_ref(), &plan.runner(step).args);
    if services.is_empty() {
        return schema.in_keys(args);
    }
    let mut args = match args {
        Some(Value::Object(args)) => args.clone(),
        _ => Map::new(),
    };
    let ids: Map<_, _> = services.iter().map(|(name, id)| (name.to_string(), Value::from(&**id))).collect();
    args.insert("services boot from".to_owned(), Value::Object(ids));
    schema.in_keys(Some(&Value::Object(args)))
}

/// Returns whether `step` is looked up in a cache, if there is one, by its key.
pub(crate) fn is_cached(plan: &BoundPlan, step: StepIndex) -> bool {
    plan.cache_mode_of(step) != CacheMode::Off
        && plan.runner(step).capabilities.layers
        && Cacheable::of(&plan.step(step).step).is_some()
}

/// Returns whether `step` is looked up in a cache, if there is one, by what it read: it has no policy, and
/// gets nothing that a trace does not have.
pub(super) fn is_traced(plan: &BoundPlan, step: StepIndex) -> bool {
    let capabilities = &plan.runner(step).capabilities;
    plan.cache_mode_of(step) == CacheMode::Auto
        && capabilities.traces
        && capabilities.layers
        && Cacheable::of(&plan.step(step).step).is_none()
        && !plan.waits_for_others(step)
}

/// Returns whether `step` is looked up in a cache, if there is one, in either way.
pub(crate) fn is_looked_up(plan: &BoundPlan, step: StepIndex) -> bool {
    is_cached(plan, step) || is_traced(plan, step)
}

/// Returns the key of `step`, whose policy has `dsl_key`.
pub(super) fn key_of(plan: &BoundPlan, step: StepIndex, dsl_key: &str, context: &KeyContext<'_>) -> CacheKey {
    let KeyContext { base, mode, project, source_times, source_ignore, inputs, step_inputs, services } = *context;
    let (bound, runner) = (plan.step(step), plan.runner(step));
    let runner_args = args_in_keys(plan, step, services);
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
        source_ignore,
    };
    parts.key()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::fixture::plan;

    #[test]
    fn what_services_boot_from_is_part_of_the_arguments() {
        let plan = plan(1, "");
        let of = |services: &[(&str, &str)]| {
            let ids = services.iter().map(|(name, id)| ((*name).into(), (*id).into())).collect();
            args_in_keys(&plan, StepIndex(0), &ids)
        };
        assert_eq!(of(&[]), "", "a step without services has the key that it always had");
        let one = of(&[("db", "sha256:1")]);
        assert_eq!(one, r#"{"services boot from":{"db":"sha256:1"}}"#);
        assert_ne!(of(&[("db", "sha256:2")]), one);
        assert_ne!(of(&[("dc", "sha256:1")]), one);
    }
}
