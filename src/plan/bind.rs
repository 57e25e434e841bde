//! Binding a plan to an engine's runners: names to indices, arguments checked, images and environment resolved.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Dag, Plan, StepIndex};
use crate::{
    ir::{CommandStep, Env, InvalidPipeline},
    runner::{RunnerDescriptor, RunnerIndex},
};

/// What a run changes about a plan.
#[derive(Debug, Clone, Default)]
pub struct BindOptions {
    /// The runner of steps that name none, instead of the set's default.
    pub runner: Option<String>,
    /// Images to replace.
    pub images: BTreeMap<String, String>,
    /// Variables over the steps' own.
    pub env: Env,
    /// Whether the run has secrets: runners without the capability are refused then.
    pub has_secrets: bool,
}

/// A plan whose every step knows its runner. Immutable.
#[derive(Debug)]
#[non_exhaustive]
pub struct BoundPlan {
    /// The graph.
    pub dag: Dag,
    /// The steps by index.
    pub steps: Vec<BoundStep>,
    /// The runners by index.
    pub runners: Vec<RunnerDescriptor>,
    /// Wall-clock budget of the whole build.
    pub timeout: Option<Duration>,
}

/// A step that knows its runner.
#[derive(Debug)]
#[non_exhaustive]
pub struct BoundStep {
    /// The command, its image resolved.
    pub step: Arc<CommandStep>,
    /// The whole environment.
    pub env: Arc<Env>,
    /// What people read: the label, or the first 40 characters of the command's first line.
    pub display_name: Arc<str>,
    /// The runner.
    pub runner: RunnerIndex,
    /// Wall-clock budget of one attempt.
    pub timeout: Option<Duration>,
    /// Whether a `builds_in` child boots from this step.
    pub has_lineage_children: bool,
}

/// Binds `plan` to runners.
///
/// # Errors
/// Every step whose runner is unknown (with the nearest known name), not compiled in, or unfit (arguments, image,
/// secrets, a parent's snapshot that it can't boot from).
pub fn bind(
    _plan: &Plan,
    _runners: Vec<RunnerDescriptor>,
    _options: &BindOptions,
) -> Result<BoundPlan, InvalidPipeline> {
    let _ = StepIndex(0);
    todo!()
}
