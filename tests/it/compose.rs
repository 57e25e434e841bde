//! Sets of runners, typed and dyn: what the derive makes of a struct, and that a registry of it is the same.

use std::sync::Arc;

use hm_exec::{
    ExecutorInput, RunnerSet, SnapshotRef, StepResult,
    runner::{
        ArgsSchema, CompositionError, DynStepRunner, Pool, Probe, RunnerCapabilities, RunnerError, RunnerIndex,
        RunnerRegistry, StepContext, StepRunner, validate,
    },
};

/// Exits with its own number.
#[derive(Debug, Default)]
struct Exits<const CODE: i32>;

impl<const CODE: i32> StepRunner for Exits<CODE> {
    const NAME: &'static str = match CODE {
        0 => "noop",
        1 => "fail",
        _ => "other",
    };
    const CACHE_VERSION: u32 = 7;

    async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
        Ok(StepResult { exit_code: CODE, committed_snapshot: None, artifacts: vec![] })
    }
}

#[derive(Debug, RunnerSet)]
struct Three {
    noop: Exits<0>,
    #[runner(default)]
    fail: Exits<1>,
    #[runner(name = "second")]
    again: Exits<1>,
}

const THREE: Three = Three { noop: Exits, fail: Exits, again: Exits };

#[test]
fn indices_are_the_order_of_the_fields() {
    let names: Vec<_> = THREE.descriptors().into_iter().map(|runner| runner.name).collect();
    assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), ["noop", "fail", "second"]);
    assert_eq!(THREE.index_of("second"), Some(RunnerIndex(2)));
    assert_eq!(THREE.index_of("third"), None);
    assert_eq!(THREE.default_index(), Some(RunnerIndex(1)));
}
