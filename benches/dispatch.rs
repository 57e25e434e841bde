//! The cost of dispatching a step to its runner: a derived set against a registry of `Arc<dyn
//! DynStepRunner>`. The time to clone the step's input is subtracted from both.
//!
//! `cargo bench --bench dispatch`

#[path = "../tests/it/support/attempt.rs"]
mod attempt;
mod common;
#[path = "../tests/it/support/run_meta.rs"]
mod run_meta;

use std::{hint::black_box, time::Instant};

use allocation_counter::measure;
use futures_util::FutureExt;
use hm_exec::{
    ExecutorInput, RunnerSet, StepResult,
    runner::{RunnerError, RunnerIndex, StepContext, StepRunner},
};

use attempt::attempt;
use common::{Effort, Figure, Table};

/// A runner that ends at once. `N` makes each one a type, and a field of the set, of its own.
#[derive(Debug, Clone, Copy)]
struct Noop<const N: u8>;

impl<const N: u8> StepRunner for Noop<N> {
    const NAME: &'static str = ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7"][N as usize];

    async fn execute(&self, _: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        black_box(&input);
        Ok(StepResult::exited(i32::from(N)))
    }
}

#[derive(Debug, RunnerSet)]
struct Eight {
    #[runner(default)]
    n0: Noop<0>,
    n1: Noop<1>,
    n2: Noop<2>,
    n3: Noop<3>,
    n4: Noop<4>,
    n5: Noop<5>,
    n6: Noop<6>,
    n7: Noop<7>,
}

const EIGHT: Eight = Eight { n0: Noop, n1: Noop, n2: Noop, n3: Noop, n4: Noop, n5: Noop, n6: Noop, n7: Noop };

const BATCHES: usize = 21;

struct Cost {
    ns: f64,
    allocations: f64,
}

/// Returns the minimum time of a batch, because interruptions only ever add time, and the allocations of one
/// batch, per step.
fn cost(mut step: impl FnMut(u32)) -> Cost {
    let steps: u32 = Effort::asked().pick(100_000, 1_000);
    let mut batch = || {
        let started = Instant::now();
        (0..steps).for_each(&mut step);
        started.elapsed()
    };
    let least = (0..BATCHES).map(|_| batch()).min().unwrap_or_default();
    let allocations = measure(|| {
        batch();
    });
    let steps = f64::from(steps);
    Cost {
        ns: least.as_secs_f64() * 1e9 / steps,
        allocations: f64::from(u32::try_from(allocations.count_total).expect("few allocations")) / steps,
    }
}

fn dispatches(set: &impl RunnerSet, index: impl Fn(u32) -> u16) -> Cost {
    let (ctx, input) = attempt();
    cost(|step| {
        let index = RunnerIndex(black_box(index(step)));
        black_box(set.dispatch(index, &ctx, input.clone()).now_or_never());
    })
}

fn main() {
    let (_, input) = attempt();
    let floor = cost(|_| drop(black_box(input.clone())));
    let registry = EIGHT.into_registry();
    // All eight in an order that a branch predictor cannot learn.
    let mixed = |step: u32| u16::try_from((step.wrapping_mul(0x9e37_79b1) >> 29) & 7).expect("three bits");
    let rows = [
        ("first of 8 runners", dispatches(&EIGHT, |_| 0), dispatches(&registry, |_| 0)),
        ("last of 8 runners", dispatches(&EIGHT, |_| 7), dispatches(&registry, |_| 7)),
        ("8 runners, mixed", dispatches(&EIGHT, mixed), dispatches(&registry, mixed)),
    ];
    let table = Table::new("dispatch");
    for (what, typed, boxed) in rows {
        let ours = Figure::ns(typed.ns - floor.ns);
        let theirs = Figure::ns(boxed.ns - floor.ns).of("`Arc<dyn>`");
        let besides = format!("{:.2} allocations a step, theirs: {:.2}", typed.allocations, boxed.allocations);
        table.against(what, &ours, &theirs, besides);
    }
}
