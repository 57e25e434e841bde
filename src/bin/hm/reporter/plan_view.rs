//! What the last screen shows of a plan that events do not have: commands, labels, and the graph.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hm_exec::{
    RunRequest, event,
    ir::CommandStep,
    plan::{BoundPlan, Dag, Plan, StepIndex},
    runner::Secrets,
};

/// The facts about a plan. They share its memory.
#[derive(Debug, Default)]
pub(super) struct PlanView {
    /// By index, which is also the order of `step_queued`.
    steps: Vec<Arc<CommandStep>>,
    /// `None` if another machine runs the build.
    pub(super) dag: Option<Arc<Dag>>,
    /// How long steps took when they last ran, by key.
    pub(super) durations: BTreeMap<Arc<str>, Duration>,
    secrets: Secrets,
    /// Whether commands know the run.
    pub(super) is_known: bool,
}

impl PlanView {
    pub(super) fn of(plan: &BoundPlan, request: &RunRequest) -> Self {
        Self {
            steps: plan.steps.iter().map(|bound| Arc::clone(&bound.step)).collect(),
            dag: Some(Arc::clone(&plan.dag)),
            durations: request.durations.clone(),
            secrets: request.secrets.clone(),
            is_known: true,
        }
    }

    /// Returns what is known of a plan that another machine runs.
    pub(super) fn observed(plan: &Plan) -> Self {
        let steps = plan.pipeline().nodes.iter().map(|node| Arc::clone(&node.step));
        Self { steps: steps.collect(), ..Self::default() }
    }

    /// Returns the step with this key, which is probably at `index`.
    pub(super) fn step(&self, index: StepIndex, key: &str) -> Option<&CommandStep> {
        let step = self.steps.get(index.get()).filter(|step| *step.key == *key);
        step.or_else(|| self.steps.iter().find(|step| *step.key == *key)).map(|step| &**step)
    }

    /// Returns a step's command as events would show it, with secrets masked.
    pub(super) fn command(&self, index: StepIndex, key: &str) -> Option<String> {
        self.step(index, key).map(|step| event::mask(&self.secrets, &step.cmd).into_owned())
    }
}
