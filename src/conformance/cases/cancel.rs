//! Steps that are interrupted before their command ends.

use std::time::Duration;

use super::processes::{expect_gone, marker, stubborn};
use crate::{
    conformance::harness::{Broken, Harness, Step, expect},
    model::StdStream,
    runner::{CancelReason, RunnerErrorKind},
};

pub(in crate::conformance) async fn before(harness: &Harness<'_>) -> Result<(), Broken> {
    let marker = marker();
    for (reason, kind) in
        [(CancelReason::Cancelled, RunnerErrorKind::Cancelled), (CancelReason::TimedOut, RunnerErrorKind::TimedOut)]
    {
        let mut run = harness.run()?;
        run.ctx.interrupt(reason);
        run.step(harness.runner, Step::new(format!("sleep {marker}"))).await?.failed_as(kind)?;
        expect_gone(&marker)?;
    }
    Ok(())
}

/// Checks that TERM comes first, and that the runner waits for a command that cleans up.
pub(in crate::conformance) async fn during(harness: &Harness<'_>) -> Result<(), Broken> {
    let marker = marker();
    let mut run = harness.run()?;
    run.ctx.grace = Duration::from_secs(60);
    // A newly forked child still has the shell's handler, and loses the signal when it executes its program.
    let cmd = format!("trap 'echo cleaned up; exit 0' TERM; sh -c 'echo ready; exec sleep {marker}' & wait");
    let step = Step::new(cmd).commit();
    let done = run.step_until_ready(harness.runner, step, |ctx| ctx.interrupt(CancelReason::Cancelled)).await?;
    done.failed_as(RunnerErrorKind::Cancelled)?;
    expect("what the command printed", done.lines(StdStream::Stdout), ["ready", "cleaned up"])?;
    expect_gone(&marker)
}

/// Checks that TERM reaches every process exactly once, and that the grace ends with the last process, not
/// with the shell. The shell must not start another command.
pub(in crate::conformance) async fn grace_of_children(harness: &Harness<'_>) -> Result<(), Broken> {
    const CLEANS_UP: &str = "sh -c 'trap \"echo TERM; sleep 0.3; echo cleaned up; exit 0\" TERM; echo ready; \
                             while :; do sleep 0.1; done'";
    for cmd in
        [format!("{CLEANS_UP}; echo after"), format!("exec {CLEANS_UP}"), format!("{CLEANS_UP} & wait; echo after")]
    {
        let mut run = harness.run()?;
        run.ctx.grace = Duration::from_secs(60);
        let step = Step::new(&*cmd);
        let done = run.step_until_ready(harness.runner, step, |ctx| ctx.interrupt(CancelReason::Cancelled)).await?;
        done.failed_as(RunnerErrorKind::Cancelled)?;
        expect(&format!("what `{cmd}` printed"), done.lines(StdStream::Stdout), ["ready", "TERM", "cleaned up"])?;
    }
    Ok(())
}

/// Checks that an interruption after the end does not change the result.
pub(in crate::conformance) async fn after(harness: &Harness<'_>) -> Result<(), Broken> {
    let mut run = harness.run()?;
    let done = run.step(harness.runner, Step::new("echo done > made").commit()).await?;
    run.ctx.interrupt(CancelReason::Cancelled);
    done.passed()?;
    if let Some(parent) = done.result.as_ref().ok().and_then(|result| result.committed_snapshot.as_ref()) {
        harness.step(Step::new("test -e made").after(parent)).await?.passed()?;
    }
    // If the command ends at the moment of the interruption, both results are correct.
    let mut run = harness.run()?;
    let done = run
        .step_until_ready(harness.runner, Step::new("echo ready"), |ctx| ctx.interrupt(CancelReason::Cancelled))
        .await?;
    match done.result {
        Ok(_) => done.passed(),
        Err(_) => done.failed_as(RunnerErrorKind::Cancelled).map(drop),
    }
}

pub(in crate::conformance) async fn timeout_with_term_ignored(harness: &Harness<'_>) -> Result<(), Broken> {
    let marker = marker();
    let mut run = harness.run()?;
    let step = Step::new(format!("{} echo ready; while :; do sleep {marker}; done", stubborn(&marker)));
    let done = run.step_until_ready(harness.runner, step, |ctx| ctx.interrupt(CancelReason::TimedOut)).await?;
    done.failed_as(RunnerErrorKind::TimedOut)?;
    expect_gone(&marker)
}
