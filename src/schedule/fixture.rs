//! A plan of no-op steps, its journal and its progress, for this module's tests.

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use chrono::DateTime;
use uuid::Uuid;

use super::{
    policy::{Placement, Policy, Rules},
    progress::BuildProgress,
};
use crate::{
    Plan, RunnerSet,
    event::{self, EventBus, EventWriter, PlanSummary, RunDir, RunMeta, StepMeta},
    model::{ArchiveId, BuildRef, Secrets},
    plan::{BindOptions, BoundPlan, bind},
    runner::{ExecutorInput, RunnerError, StepContext, StepResult, StepRunner},
};

#[derive(Debug)]
pub(super) struct Noop;

impl StepRunner for Noop {
    const NAME: &'static str = "noop";

    async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
        Ok(StepResult::exited(0))
    }
}

#[derive(Debug, RunnerSet)]
pub(super) struct Runners {
    #[runner(default)]
    pub(super) noop: Noop,
}

/// Makes a plan of the steps `s0`, `s1`, ... with these edges in the IR's JSON.
pub(super) fn plan(steps: usize, edges: &str) -> BoundPlan {
    let nodes: Vec<_> =
        (0..steps).map(|step| format!(r#"{{"step":{{"key":"s{step}","cmd":"true"}},"env":{{}}}}"#)).collect();
    let nodes = nodes.join(",");
    let json = format!(
        r#"{{"version":"0","graph":{{"nodes":[{nodes}],"node_holes":[],"edge_property":"directed","edges":[{edges}]}}}}"#
    );
    bind(&Plan::parse(json).unwrap(), Runners { noop: Noop }.descriptors(), &BindOptions::default()).unwrap()
}

pub(super) fn build() -> BuildRef {
    BuildRef { run_id: Uuid::nil(), number: None, org: None, pipeline: "p".into() }
}

pub(super) fn journal(plan: &BoundPlan) -> (EventWriter, EventBus) {
    let step = |key: &str| StepMeta {
        key: key.into(),
        display_name: key.into(),
        chain_idx: 0,
        parent: None,
        image: None,
        runner: 0,
    };
    let meta = RunMeta {
        build: build(),
        plan: PlanSummary { step_count: plan.dag.len(), chain_count: 1, default_runner: "noop".into() },
        started_at: DateTime::UNIX_EPOCH,
        steps: plan.steps.iter().map(|bound| step(&bound.step.key)).collect(),
        runners: vec!["noop".into()],
        server: None,
        details: Default::default(),
    };
    let (writer, bus, _) = event::create(RunDir::Temporary, meta, &Secrets::new()).unwrap();
    (writer, bus)
}

/// Makes a progress with two steps at once, one retry after a second, and no `keep_going`.
pub(super) fn progress(plan: &BoundPlan, events: EventWriter) -> BuildProgress<'_> {
    let rules = Rules {
        limits: vec![NonZeroUsize::new(2).unwrap()],
        keep_going: false,
        retries: 1,
        backoff: Duration::from_secs(1),
        outcomes: BTreeMap::new(),
        takers: BTreeMap::new(),
        memory: None,
    };
    let placements = vec![Placement { pool: 0, priority: 0, cached: false }; plan.steps.len()];
    let policy = Policy::new(&plan.dag, &placements, &rules);
    BuildProgress::new(plan, policy, events, Uuid::nil(), ArchiveId(Uuid::nil()))
}
