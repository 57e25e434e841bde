//! Builds in your own program, in the sandbox if the machine has one.
//!
//! `cargo run --example embed --features process,sandbox`, and as a test: `cargo test --example embed`.
//!
//! The sandbox starts this program again as its helper, so `init` comes first in `main`. In `cargo test`,
//! `main` belongs to the test harness. There are two ways: a test target with `harness = false`, as this
//! one, whose `main` calls `init`; or a program of your package whose `main` calls it, as the helper:
//! `SandboxRunner::builder().helper(env!("CARGO_BIN_EXE_mine"))`.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::{error::Error, process::ExitCode};

use hm_exec::{
    BuildEvent, BuildStatus, Engine, Plan, RunRequest, RunnerSet,
    plan::Step,
    runner::{Probe, process::ProcessRunner, sandbox::SandboxRunner},
    store::StoreHandle,
};

#[derive(Debug, RunnerSet)]
struct Runners {
    #[runner(default)]
    sandbox: SandboxRunner,
    process: ProcessRunner,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    hm_exec::runner::sandbox::init();
    let dir = tempfile::tempdir()?;
    let store = StoreHandle::new(dir.path().join("store"));
    let sandbox = SandboxRunner::builder().store(store.clone()).build();
    let runners = Runners { sandbox, process: ProcessRunner::new(store.clone()) };
    let engine = Engine::builder(runners).cache(store).build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(build(&engine))?;
    println!("{status:?}");
    Ok(if status == BuildStatus::Passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn build(engine: &Engine<Runners>) -> Result<BuildStatus, Box<dyn Error>> {
    let plan = Plan::builder()
        .step(Step::new("make", "echo made > file").image("host"))
        .step(Step::new("test", "cat file").builds_in("make"))
        .build()?;
    let mut request = RunRequest::new(plan, "examples");
    if let Probe::Unusable { reason, .. } = &engine.runners().probe_all().await[0] {
        println!("without the sandbox: {reason}");
        request.options.runner = Some("process".into());
    }
    let (mut events, control) = engine.start(request).await?.into_parts();
    while let Some(event) = events.next().await {
        if let BuildEvent::StepLog { line, .. } = event {
            println!("{line}");
        }
    }
    Ok(control.wait().await?.status)
}
