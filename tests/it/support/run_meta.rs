//! The metadata of a run, for tests and benches of events and of single steps.

use chrono::DateTime;
use hm_exec::{
    BuildRef,
    event::{PlanSummary, RunMeta, StepMeta},
    plan::StepIndex,
};
use uuid::Uuid;

/// Returns the metadata of a run of the steps `step-0`, `step-1` and so on, each built in the one before, on
/// a runner `noop`. It is the same every time.
pub(crate) fn run_meta(run_id: Uuid, steps: u32) -> RunMeta {
    let step = |step: u32| StepMeta {
        key: format!("step-{step}").into(),
        display_name: format!("Step {step}").into(),
        chain_idx: 0,
        parent: step.checked_sub(1).map(StepIndex),
        image: (step == 0).then(|| "host".into()),
        runner: 0,
    };
    RunMeta {
        build: BuildRef { run_id, number: None, org: None, pipeline: "ci".into() },
        plan: PlanSummary { step_count: steps as usize, chain_count: 1, default_runner: "noop".into() },
        started_at: DateTime::from_timestamp(1_800_000_000, 0).expect("a valid time"),
        steps: (0..steps).map(step).collect(),
        runners: vec!["noop".into()],
        server: None,
        details: Default::default(),
    }
}
