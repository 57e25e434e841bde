//! The executor: one attempt of one step, from its input to its end.
//!
//! Input: the runners, the attempt's context and input, and its time limit. Output: an [`AttemptReport`]. The
//! executor enforces the time limit, and handles a runner that panics or does not stop on request. It knows
//! neither the plan nor the policy.

use std::{
    any::Any,
    future::{Future, pending, poll_fn},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;

use super::policy::{AttemptEnd, Start};
use crate::{
    awake,
    model::{ArtifactRef, SnapshotRef, StepUsage, TestResults},
    runner::{
        CancelReason, ExecutorInput, RunnerError, RunnerErrorKind, RunnerIndex, RunnerSet, StepContext, StepResult,
    },
};

/// The time, after the grace between TERM and KILL, that a runner may take to return before its future is
/// dropped.
const LINGER: Duration = Duration::from_secs(10);

/// One attempt to run.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) start: Start,
    pub(super) runner: RunnerIndex,
    pub(super) timeout: Option<Duration>,
    pub(super) context: StepContext,
}

/// The result of an attempt.
#[derive(Debug)]
pub(super) struct AttemptReport {
    pub(super) start: Start,
    pub(super) end: AttemptEnd,
    pub(super) snapshot: Option<SnapshotRef>,
    pub(super) artifacts: Vec<ArtifactRef>,
    pub(super) usage: Option<StepUsage>,
    pub(super) tests: Option<Box<TestResults>>,
    pub(super) message: Option<Arc<str>>,
}

type Caught = Result<Result<StepResult, RunnerError>, Box<dyn Any + Send>>;

/// Runs one attempt to its end.
///
/// # Cancel safety
/// Dropping the future drops the runner's future, which kills the command at once.
#[expect(clippy::manual_async_fn, reason = "an `async fn` would keep its arguments twice")]
pub(super) fn execute<R: RunnerSet>(
    runners: &R,
    attempt: Attempt,
    input: ExecutorInput,
) -> impl Future<Output = AttemptReport> + Send {
    async move {
        let dispatch = runners.dispatch(attempt.runner, &attempt.context, input);
        let mut running = pin!(AssertUnwindSafe(dispatch).catch_unwind());
        let first = poll_fn(|cx| Poll::Ready(running.as_mut().poll(cx)));
        // Not `match`, in which the result would have a place in the future while it waits.
        if let Poll::Ready(caught) = first.await {
            return report(&attempt, Some(caught));
        }
        // The state that only waiting needs is large, so it is boxed separately.
        let ended = Box::pin(supervise(running, &attempt.context, attempt.timeout)).await;
        report(&attempt, ended)
    }
}

/// Waits for the runner. At the time limit, requests it to stop, and abandons it if it does not.
async fn supervise(
    mut running: Pin<&mut impl Future<Output = Caught>>,
    context: &StepContext,
    timeout: Option<Duration>,
) -> Option<Caught> {
    let time_is_up = async {
        match timeout {
            Some(timeout) => context.limit_reached(timeout).await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        caught = &mut running => return Some(caught),
        () = context.cancel.cancelled() => {}
        () = time_is_up => context.interrupt(CancelReason::TimedOut),
    }
    awake::timeout(context.grace.saturating_add(LINGER), running).await
}

/// Makes the report of an attempt. `ended` is `None` if the runner was abandoned.
fn report(attempt: &Attempt, ended: Option<Caught>) -> AttemptReport {
    let Attempt { start, timeout, context, .. } = attempt;
    let collected = context.outputs.as_ref().map(|outputs| outputs.take()).unwrap_or_default();
    let tests = collected.tests.map(Box::new);
    let interrupted = || match (context.cancel_reason(), timeout) {
        (CancelReason::Cancelled, _) => (AttemptEnd::Canceled, None),
        (CancelReason::TimedOut, Some(timeout)) if context.interrupted_alone() => {
            (AttemptEnd::TimedOut, Some(format!("the step's time limit of {timeout:?} was reached")))
        }
        (CancelReason::TimedOut, _) => (AttemptEnd::TimedOut, Some("the build's time limit was reached".to_owned())),
    };
    let usage = match &ended {
        Some(Ok(Err(error))) => error.usage(),
        _ => None,
    };
    let (end, message) = match ended {
        Some(Ok(Ok(StepResult { exit_code, committed_snapshot: snapshot, artifacts, usage, hint }))) => {
            let end = AttemptEnd::Exited(exit_code);
            let message = hint.filter(|_| exit_code != 0).map(Arc::from);
            let mut artifacts = artifacts;
            artifacts.extend(collected.artifacts);
            return AttemptReport { start: *start, end, snapshot, artifacts, usage, tests, message };
        }
        Some(Ok(Err(error))) => match error.kind() {
            RunnerErrorKind::TimedOut | RunnerErrorKind::Cancelled if context.cancel.is_cancelled() => interrupted(),
            // Another attempt would exceed the limit that this one has reached.
            RunnerErrorKind::Infrastructure if context.interrupted_alone() => {
                let (end, why) = interrupted();
                (end, why.map(|why| format!("{why}; {}", error.to_line())))
            }
            RunnerErrorKind::TimedOut => (AttemptEnd::TimedOut, Some(error.to_line())),
            // The command failed for this reason.
            RunnerErrorKind::TooManyProcesses => {
                (AttemptEnd::Exited(error.exit_code().unwrap_or(137)), Some(error.to_line()))
            }
            RunnerErrorKind::OutOfMemory => {
                let end = error.exit_code().map_or(AttemptEnd::OutOfMemory, AttemptEnd::MemoryWasShort);
                (end, Some(error.to_line()))
            }
            RunnerErrorKind::Cancelled => (
                AttemptEnd::Infrastructure { retryable: true },
                Some("the runner cancelled the step without a request".to_owned()),
            ),
            RunnerErrorKind::Infrastructure => {
                (AttemptEnd::Infrastructure { retryable: error.is_retryable() }, Some(error.to_line()))
            }
        },
        Some(Err(panic)) => (
            AttemptEnd::Infrastructure { retryable: false },
            Some(format!("the runner panicked, which is a bug in the runner: {}", panic_message(&*panic))),
        ),
        None => {
            let (end, why) = interrupted();
            let why = why.unwrap_or_else(|| "the build was cancelled".to_owned());
            let patience = context.grace.saturating_add(LINGER);
            (end, Some(format!("{why}; the runner did not return within {patience:?} and was abandoned")))
        }
    };
    let message = message.map(Arc::from);
    AttemptReport { start: *start, end, snapshot: None, artifacts: collected.artifacts, usage, tests, message }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    use super::*;
    use crate::{
        plan::{SnapshotUse, StepIndex},
        runner::{ArchiveId, RunnerIndex},
        schedule::fixture::{Noop, Runners, journal, plan, progress},
        source::RunSource,
    };

    #[test]
    fn the_future_of_an_attempt_stays_small() {
        let plan = plan(1, "");
        let (writer, bus) = journal(&plan);
        let input = progress(&plan, writer).input(StepIndex(0), SnapshotUse::None);
        let archives = Arc::new(RunSource::new(ArchiveId(Uuid::nil()), "/"));
        let attempt = Attempt {
            start: Start { step: StepIndex(0), attempt: 1 },
            runner: RunnerIndex(0),
            timeout: None,
            context: StepContext::new(bus, archives, Arc::default(), CancellationToken::new()),
        };
        let runners = Runners { noop: Noop };
        let dispatch = size_of_val(&runners.dispatch(attempt.runner, &attempt.context, input.clone()));
        let own = size_of_val(&execute(&runners, attempt, input)) - dispatch;
        let kept = size_of::<Attempt>() + size_of::<ExecutorInput>();
        assert!(own <= kept + 96, "{own} bytes beside the runner's {dispatch}, and {kept} would do");
    }
}
