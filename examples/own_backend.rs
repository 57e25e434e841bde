//! A backend of your own. It sends builds to another system, and reports what happens there. This one only
//! pretends to.
//!
//! `cargo run --example own_backend`

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "an example prints, and has tasks of its own")]

use std::{error::Error, sync::Arc};

use chrono::Utc;
use hm_exec::{
    BackendHandle, BuildEvent, BuildOutcome, BuildRef, BuildStatus, Capabilities, DynExecutionBackend,
    ExecutionBackend, Plan, RunRequest, StepResultSummary, StepStatus, plan::Step,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

struct Pretends;

impl ExecutionBackend for Pretends {
    fn name(&self) -> &'static str {
        "pretends"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::none()
    }

    async fn start(&self, request: RunRequest) -> hm_exec::Result<BackendHandle> {
        let (events, receiver) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        let outcome = tokio::spawn(run(request, events, cancel.clone()));
        Ok(BackendHandle::spawn(receiver, cancel, outcome))
    }
}

async fn run(
    request: RunRequest,
    events: mpsc::Sender<BuildEvent>,
    cancel: CancellationToken,
) -> hm_exec::Result<BuildOutcome> {
    let run_id = request.run_id.unwrap_or_else(Uuid::new_v4);
    let build = BuildRef { run_id, number: Some(1), org: None, pipeline: request.pipeline_slug };
    let (started_at, mut steps) = (Utc::now(), Vec::new());
    // An error means that the caller has dropped the stream: the build goes on.
    let _ = events.send(BuildEvent::BuildAccepted { seq: 0, build: build.clone(), watch_url: None }).await;
    for node in &request.plan.pipeline().nodes {
        let status = if cancel.is_cancelled() { StepStatus::Canceled } else { StepStatus::Passed };
        steps.push(StepResultSummary::new(Uuid::new_v4(), Arc::clone(&node.step.key), status));
    }
    let status = if cancel.is_cancelled() { BuildStatus::Canceled } else { BuildStatus::Passed };
    let _ = events.send(BuildEvent::BuildEnd { seq: 1, exit_code: status.exit_code(), duration_ms: 0, status }).await;
    let mut outcome = BuildOutcome::new(build, status, started_at, Utc::now());
    outcome.steps = steps;
    Ok(outcome)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Chosen at run time, as a command does.
    let backend: Box<dyn DynExecutionBackend> = Box::new(Pretends);
    let plan = Plan::builder().step(Step::new("hello", "echo hello")).build()?;
    let (mut events, control) = backend.start(RunRequest::new(plan, ".")).await?.into_parts();
    while let Some(event) = events.next().await {
        println!("{}", serde_json::to_string(&event)?);
    }
    let outcome = control.wait().await?;
    println!("{}: {:?}, {} step", DynExecutionBackend::name(&*backend), outcome.status, outcome.steps.len());
    Ok(())
}
