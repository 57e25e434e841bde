//! The cost of a step in a virtual machine: with the boot of a machine, and in one that has already booted,
//! compared with the sandbox.
//!
//! `cargo bench --bench vm` (with HM_STEP, a static `hm-step`)

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

#[path = "../tests/it/support/backends.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod backends;
mod common;
#[path = "../tests/it/support/programs.rs"]
mod programs;
#[path = "../tests/it/support/run_meta.rs"]
mod run_meta;
#[path = "../tests/it/support/sandbox.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod sandbox;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median, spread};
use hm_exec::runner::{Probe, StepRunner, qemu::Qemu, sandbox::SandboxRunner};
use programs::hm;
use sandbox::{Ask, Bench};
use tokio::runtime::Runtime;

fn main() {
    let (boots, rounds) = Effort::asked().pick((3, 15), (1, 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let table = Table::new("vm");
    let bench = Bench::new();
    let top = tempfile::tempdir().unwrap();
    let machines = |templates: usize| {
        let builder = Qemu::builder().local(SandboxRunner::builder().helper(hm()));
        let builder = builder.templates(top.path().join(templates.to_string())).memory(512 << 20);
        builder.cpus(2.try_into().unwrap()).build(Arc::clone(&bench.store))
    };
    let vm = machines(0);
    if let Probe::Unusable { reason, .. } = runtime.block_on(vm.probe()) {
        backends::usable("vm", false, &reason);
        return;
    }
    let mut boot: Vec<_> = (0..boots).map(|number| step(&runtime, &bench, &machines(number))).collect();
    let accelerator = runtime.block_on(vm.backend().trial()).unwrap();
    let (mut resumed, mut sandbox) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        resumed.push(step(&runtime, &bench, &vm));
        sandbox.push(step(&runtime, &bench, &bench.runner));
    }
    let besides = format!("{}; by {accelerator:?}", spread(&mut resumed));
    let (boot, resumed) = (Figure::ms(median(&mut boot)), Figure::ms(median(&mut resumed)));
    let sandbox = Figure::ms(median(&mut sandbox)).of("sandbox");
    table.against(
        "step that does nothing, machine booted for the step",
        &boot,
        &sandbox,
        format!("by {accelerator:?}"),
    );
    table.against("step that does nothing, machine copied", &resumed, &sandbox, besides);
    table.against("a copied machine against a booted one", &resumed, &boot.of("booted"), "");
}

fn step<R: StepRunner>(runtime: &Runtime, bench: &Bench, runner: &R) -> Duration {
    runtime.block_on(async {
        let mut run = bench.run();
        let input = run.input(Ask::new("true"));
        let started = Instant::now();
        let result = runner.execute(&run.ctx, input).await.unwrap();
        let took = started.elapsed();
        assert_eq!(result.exit_code, 0);
        took
    })
}
