//! The executor: one attempt of one step, from its input to its end.
//!
//! Input: the runners, the attempt's context and input, and its time limit. Output: an [`AttemptReport`]. The
//! executor enforces the time limit, and handles a runner that panics or does not stop on request. It knows
//! neither the plan nor the policy.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{
    policy::{AttemptEnd, Start},
    timeout::{interrupted, patience, supervise},
};
use crate::{
    model::{ArtifactRef, SnapshotRef, StepUsage, TestResults},
    outputs::Collected,
    runner::{
        ExecutorInput, RunnerError, RunnerErrorKind, RunnerIndex, RunnerSet, StepContext, StepResult, TracedResult,
    },
};

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
    /// What it read, if that is to be kept.
    pub(super) traced: Option<Box<TracedResult>>,
    /// The processor time that tracing took, if it was traced.
    pub(super) tracing: Option<Duration>,
    pub(super) message: Option<Arc<str>>,
}

type Caught = Result<Result<StepResult, RunnerError>, Box<dyn Any + Send>>;

/// Runs one attempt to its end. The future is in a box, because it is large, and a collection of futures
/// moves each of them several times. `run` is the token of the whole run.
///
/// # Cancel safety
/// Dropping the future drops the runner's future, which kills the command at once.
pub(super) fn execute<R: RunnerSet>(
    runners: &R,
    run: &CancellationToken,
    attempt: Attempt,
    input: ExecutorInput,
) -> Pin<Box<impl Future<Output = AttemptReport> + Send>> {
    Box::pin(async move {
        let dispatch = runners.dispatch(attempt.runner, &attempt.context, input);
        let mut running = pin!(AssertUnwindSafe(dispatch).catch_unwind());
        let first = poll_fn(|cx| Poll::Ready(running.as_mut().poll(cx)));
        // Not `match`, in which the result would have a place in the future while it waits.
        if let Poll::Ready(caught) = first.await {
            return report(&attempt, run, Some(caught));
        }
        // The state that only waiting needs is large, so it is boxed separately.
        let ended = Box::pin(supervise(running, run, &attempt.context, attempt.timeout)).await;
        report(&attempt, run, ended)
    })
}

/// Makes the report of an attempt, with the outputs that were copied. `ended` is `None` if the runner was
/// abandoned.
fn report(attempt: &Attempt, run: &CancellationToken, ended: Option<Caught>) -> AttemptReport {
    let mut report = report_without_outputs(attempt, run, ended);
    if let Some(outputs) = &attempt.context.outputs {
        let Collected { artifacts, tests } = outputs.take();
        report.artifacts.extend(artifacts);
        report.tests = tests.map(Box::new);
    }
    report
}

fn report_without_outputs(attempt: &Attempt, run: &CancellationToken, ended: Option<Caught>) -> AttemptReport {
    match ended {
        Some(Ok(Ok(StepResult {
            exit_code,
            committed_snapshot: snapshot,
            artifacts,
            usage,
            hint,
            traced,
            tracing,
        }))) => {
            let (start, end) = (attempt.start, AttemptEnd::Exited(exit_code));
            let message = hint.filter(|_| exit_code != 0).map(Arc::from);
            AttemptReport { start, end, snapshot, artifacts, usage, tests: None, traced, tracing, message }
        }
        Some(Ok(Err(error))) => report_of_error(attempt, run, &error),
        Some(Err(panic)) => {
            let why = format!("the runner panicked, which is a bug in the runner: {}", panic_message(&*panic));
            report_without_result(attempt, AttemptEnd::Infrastructure { retryable: false }, Some(why))
        }
        None => {
            let (end, why) = interrupted(attempt.timeout, &attempt.context);
            let why = why.unwrap_or_else(|| "the build was cancelled".to_owned());
            let patience = patience(&attempt.context);
            let why = format!("{why}; the runner did not return within {patience:?} and was abandoned");
            report_without_result(attempt, end, Some(why))
        }
    }
}

// Cold, as what follows, so that the code that runs for each step fits the processor's instruction cache.
#[cold]
fn report_of_error(attempt: &Attempt, run: &CancellationToken, error: &RunnerError) -> AttemptReport {
    let context = &attempt.context;
    let (end, message) = match error.kind() {
        // The run's token may have fired since this attempt was last looked at.
        RunnerErrorKind::TimedOut | RunnerErrorKind::Cancelled
            if context.cancel.is_cancelled() || run.is_cancelled() =>
        {
            interrupted(attempt.timeout, &attempt.context)
        }
        // Another attempt would exceed the limit that this one has reached.
        RunnerErrorKind::Infrastructure if context.interrupted_alone() => {
            let (end, why) = interrupted(attempt.timeout, &attempt.context);
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
    };
    AttemptReport { usage: error.usage(), ..report_without_result(attempt, end, message) }
}

#[cold]
fn report_without_result(attempt: &Attempt, end: AttemptEnd, message: Option<String>) -> AttemptReport {
    let (snapshot, artifacts, usage, tests, traced, tracing) = (None, Vec::new(), None, None, None, None);
    let message = message.map(Arc::from);
    AttemptReport { start: attempt.start, end, snapshot, artifacts, usage, tests, traced, tracing, message }
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
    use uuid::Uuid;

    use super::*;
    use crate::{
        plan::{SnapshotUse, StepIndex},
        runner::{ArchiveId, CancelReason, RunnerIndex, StepRunner},
        schedule::fixture::{Noop, Runners, journal, plan, progress},
        source::RunSource,
    };

    /// Fires its own token, or waits for it.
    #[derive(Debug)]
    struct Waits;

    impl StepRunner for Waits {
        const NAME: &'static str = "waits";

        async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
            match input.step_id {
                FIRES_ITS_OWN => ctx.cancel.cancel(),
                DOES_NOT_WAIT => return Err(RunnerError::cancelled()),
                _ => tokio::task::yield_now().await,
            }
            ctx.cancel.cancelled().await;
            Err(ctx.interrupted())
        }
    }

    #[derive(Debug, RunnerSet)]
    struct Waiting {
        #[runner(default)]
        waits: Waits,
    }

    const FIRES_ITS_OWN: Uuid = Uuid::from_u128(7);
    const DOES_NOT_WAIT: Uuid = Uuid::from_u128(8);

    #[tokio::test]
    async fn the_runs_token_fires_those_of_its_attempts_and_theirs_no_other() {
        let plan = plan(1, "");
        let (_writer, bus) = journal(&plan);
        let archives = Arc::new(RunSource::new(ArchiveId(Uuid::nil()), "/"));
        let run = StepContext::new(bus, archives, Arc::default(), CancellationToken::new());
        let runners = Waiting { waits: Waits };
        let attempt = |step_id| {
            let step = Arc::clone(&plan.step(StepIndex(0)).step);
            let attempt = Attempt {
                start: Start { step: StepIndex(0), attempt: 1 },
                runner: RunnerIndex(0),
                timeout: None,
                context: run.for_attempt(1, false, false),
            };
            let input = ExecutorInput::new(step, ArchiveId(Uuid::nil()), Uuid::nil(), step_id);
            execute(&runners, &run.cancel, attempt, input)
        };
        let mut waiting = attempt(Uuid::nil());
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(attempt(FIRES_ITS_OWN).await.end, AttemptEnd::Canceled);
        assert!((&mut waiting).now_or_never().is_none() && !run.cancel.is_cancelled());
        assert_eq!(attempt(DOES_NOT_WAIT).await.end, AttemptEnd::Infrastructure { retryable: true });
        run.interrupt(CancelReason::TimedOut);
        assert_eq!(attempt(DOES_NOT_WAIT).await.end, AttemptEnd::TimedOut, "it ends before its own token fires");
        assert_eq!(waiting.await.end, AttemptEnd::TimedOut);
    }

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
        let own = size_of_val(&*execute(&runners, &CancellationToken::new(), attempt, input)) - dispatch;
        let kept = size_of::<Attempt>() + size_of::<ExecutorInput>();
        assert!(own <= kept + 96, "{own} bytes beside the runner's {dispatch}, and {kept} would do");
    }
}
