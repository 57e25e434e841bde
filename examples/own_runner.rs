//! A runner of your own, which passes the conformance suite: each step runs in a copy of the source.
//!
//! `cargo run --example own_runner --features process,conformance`, and its test:
//! `cargo test --example own_runner --features conformance`.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;

use hm_exec::{
    Engine, ExecutorInput, Plan, RunRequest, RunnerSet, StepResult,
    plan::Step,
    runner::{ImageSupport, RunnerCapabilities, RunnerError, StepContext, StepRunner, command::StepCommand},
};

#[derive(Debug)]
struct Copies;

impl StepRunner for Copies {
    const NAME: &'static str = "copies";

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        let dir = tempfile::tempdir()?;
        let workspace = dir.path().join("workspace");
        tokio::select! {
            copied = ctx.archives.copy_to(&workspace) => copied.map_err(anyhow::Error::from)?,
            () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
        }
        let command =
            StepCommand::shell(&*input.step.cmd).envs(&*input.env).current_dir(workspace).scratch_dir(dir.path());
        Ok(StepResult::exited(command.run(ctx, input.step_id).await?))
    }

    fn capabilities(&self) -> RunnerCapabilities {
        let mut capabilities = RunnerCapabilities::default();
        capabilities.grace = true;
        capabilities.workspace = true;
        capabilities.images = ImageSupport::HostOnly;
        capabilities
    }
}

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(default)]
    copies: Copies,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(Mine { copies: Copies }).build()?;
    let plan = Plan::builder().step(Step::new("size", "du -sh .").image("host")).build()?;
    let outcome = engine.run(RunRequest::new(plan, "examples")).await?;
    println!("{:?}", outcome.status);
    std::process::exit(outcome.status.exit_code());
}

// Tests of this repository always have the suite.
#[cfg(feature = "conformance")]
#[tokio::test]
async fn conforms() {
    hm_exec::conformance::Suite::new(&Copies, "host").run().await.assert_passed();
}
