//! A set in a crate that knows `hm_exec` only through another crate.

use facade::hm_exec::{
    ExecutorInput, RunnerSet, StepResult,
    runner::{RunnerError, RunnerRegistry, StepContext, StepRunner},
};

#[derive(Debug)]
struct Noop;

impl StepRunner for Noop {
    const NAME: &'static str = "noop";

    async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
        Ok(StepResult::exited(0))
    }
}

#[derive(Debug, RunnerSet)]
#[runner(crate = "facade::hm_exec")]
struct Mine {
    #[runner(default)]
    noop: Noop,
    #[runner(flatten)]
    plugins: RunnerRegistry,
}

fn main() {
    let runners = Mine { noop: Noop, plugins: RunnerRegistry::new() };
    assert_eq!(runners.into_registry().runner_names(), ["noop"]);
}
