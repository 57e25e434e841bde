//! What a dispatch allocates: nothing on a derived set, one box on a registry. A binary of its own, because
//! it counts with a global allocator.

#[path = "it/support/attempt.rs"]
mod attempt;
#[path = "it/support/run_meta.rs"]
mod run_meta;

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use allocation_counter::measure;
use hm_exec::{
    ExecutorInput, RunnerSet, StepResult,
    runner::{RunnerError, RunnerIndex, RunnerRegistry, StepContext, StepRunner},
};

use attempt::attempt;

/// Holds `STATE_BYTES` over an await, and is woken once.
#[derive(Debug, Clone, Copy)]
struct Holds<const STATE_BYTES: usize>;

impl<const STATE_BYTES: usize> StepRunner for Holds<STATE_BYTES> {
    const NAME: &'static str = if STATE_BYTES == 0 { "light" } else { "heavy" };

    async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
        let state = [1_u8; STATE_BYTES];
        let mut is_woken = false;
        poll_fn(|_| if std::mem::replace(&mut is_woken, true) { Poll::Ready(()) } else { Poll::Pending }).await;
        let exit_code = state.iter().map(|byte| i32::from(*byte)).sum();
        Ok(StepResult::exited(exit_code))
    }
}

const HEAVY_BYTES: usize = 4096;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(default)]
    light: Holds<0>,
    heavy: Holds<HEAVY_BYTES>,
    #[runner(name = "heavy-too")]
    heavy_too: Holds<HEAVY_BYTES>,
}

const MINE: Mine = Mine { light: Holds, heavy: Holds, heavy_too: Holds };
const DISPATCHES: u64 = 100;

#[derive(Debug, RunnerSet)]
struct Outer {
    #[runner(flatten)]
    mine: Mine,
    #[runner(name = "own")]
    own: Holds<0>,
    #[runner(flatten)]
    plugins: RunnerRegistry,
}

fn outer() -> Outer {
    let mut plugins = RunnerRegistry::new();
    plugins.register(Arc::new(Plugin), false);
    Outer { mine: MINE, own: Holds, plugins }
}

/// A runner of another type, so that its name differs.
#[derive(Debug)]
struct Plugin;

impl StepRunner for Plugin {
    const NAME: &'static str = "plugin";

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        StepRunner::execute(&Holds::<0>, ctx, input).await
    }
}

/// Dispatches to every runner many times, each polled to its end. How many allocations that made.
fn allocations(set: &impl RunnerSet, runners: u16) -> u64 {
    let (ctx, input) = attempt();
    let mut task = Context::from_waker(Waker::noop());
    let counted = measure(|| {
        for index in (0..runners).map(RunnerIndex) {
            for _ in 0..DISPATCHES {
                let mut step = pin!(set.dispatch(index, &ctx, input.clone()));
                assert!(step.as_mut().poll(&mut task).is_pending());
                assert!(matches!(step.as_mut().poll(&mut task), Poll::Ready(Ok(_))));
            }
        }
    });
    counted.count_total
}

#[test]
fn a_dispatch_on_a_derived_set_allocates_nothing() {
    assert_eq!(allocations(&MINE, 3), 0);
}

#[test]
fn only_the_registry_in_a_set_of_sets_allocates() {
    let outer = outer();
    assert_eq!(outer.runner_count(), 5);
    assert_eq!(allocations(&outer, 4), 0);
    assert_eq!(allocations(&outer, 5), DISPATCHES);
}

#[test]
fn a_dispatch_on_a_registry_allocates_its_box() {
    assert_eq!(allocations(&MINE.into_registry(), 3), 3 * DISPATCHES);
}

#[test]
fn the_future_of_a_derived_set_holds_the_runners_state_and_that_of_a_registry_does_not() {
    let (ctx, input) = attempt();
    let typed = MINE;
    let registry = MINE.into_registry();
    let index = RunnerIndex(0);
    let size_bytes = size_of_val(&typed.dispatch(index, &ctx, input.clone()));
    assert!((HEAVY_BYTES..2 * HEAVY_BYTES).contains(&size_bytes), "{size_bytes}: one state, room for the largest");
    assert!(size_of_val(&registry.dispatch(index, &ctx, input)) < HEAVY_BYTES);
}
