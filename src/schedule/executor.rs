//! The executor: one attempt of one step, from its input to how it ended.
//!
//! In: the runners, the attempt's context and input, its time limit. Out: a [`Report`]. Owns the time limit and what
//! becomes of a runner that panics or does not stop when told to. Knows neither the plan nor the policy.

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
use crate::runner::{
    CancelReason, ExecutorInput, RunnerError, RunnerErrorKind, RunnerIndex, RunnerSet, SnapshotRef, StepContext,
    StepResult,
};

/// How long, after the grace between TERM and KILL, a runner may take to return before its future is dropped.
const LINGER: Duration = Duration::from_secs(10);

/// One attempt to run.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) start: Start,
    pub(super) runner: RunnerIndex,
    pub(super) timeout: Option<Duration>,
    pub(super) context: StepContext,
    pub(super) input: ExecutorInput,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) start: Start,
    pub(super) end: AttemptEnd,
    pub(super) snapshot: Option<SnapshotRef>,
    pub(super) message: Option<Arc<str>>,
}

type Caught = Result<Result<StepResult, RunnerError>, Box<dyn Any + Send>>;

/// Runs one attempt to its end.
///
/// # Cancel safety
/// Dropping the future drops the runner's, which ends the command at once.
pub(super) async fn execute<R: RunnerSet>(runners: &R, attempt: Attempt) -> Report {
    let Attempt { start, runner, timeout, context, input } = attempt;
    let dispatch = AssertUnwindSafe(async { runners.dispatch(runner, &context, input).await });
    let mut running = pin!(dispatch.catch_unwind());
    // Most of what waiting needs is big and is needed by those alone that wait: they get a box for it.
    let ended = match poll_fn(|cx| Poll::Ready(running.as_mut().poll(cx))).await {
        Poll::Ready(caught) => Some(caught),
        Poll::Pending => Box::pin(supervise(running, &context, timeout)).await,
    };
    let (end, snapshot, message) = classify(ended, &context, timeout);
    Report { start, end, snapshot, message }
}

/// Waits for the runner; tells it to stop where its time is up; gives up on it where it doesn't.
async fn supervise(
    mut running: Pin<&mut impl Future<Output = Caught>>,
    context: &StepContext,
    timeout: Option<Duration>,
) -> Option<Caught> {
    let time_is_up = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        caught = &mut running => return Some(caught),
        () = context.cancel.cancelled() => {}
        () = time_is_up => context.interrupt(CancelReason::TimedOut),
    }
    tokio::time::timeout(context.grace.saturating_add(LINGER), running).await.ok()
}

fn classify(
    ended: Option<Caught>,
    context: &StepContext,
    timeout: Option<Duration>,
) -> (AttemptEnd, Option<SnapshotRef>, Option<Arc<str>>) {
    let interrupted = || match (context.cancel_reason(), timeout) {
        (CancelReason::Cancelled, _) => (AttemptEnd::Canceled, None),
        (CancelReason::TimedOut, Some(timeout)) if context.interrupted_alone() => {
            (AttemptEnd::TimedOut, Some(format!("the step's time limit of {timeout:?} was reached")))
        }
        (CancelReason::TimedOut, _) => (AttemptEnd::TimedOut, Some("the build's time limit was reached".to_owned())),
    };
    let (end, message) = match ended {
        Some(Ok(Ok(result))) => return (AttemptEnd::Exited(result.exit_code), result.committed_snapshot, None),
        Some(Ok(Err(error))) => match error.kind() {
            RunnerErrorKind::TimedOut | RunnerErrorKind::Cancelled if context.cancel.is_cancelled() => interrupted(),
            RunnerErrorKind::TimedOut => (AttemptEnd::TimedOut, Some(error.to_line())),
            RunnerErrorKind::OutOfMemory => (AttemptEnd::OutOfMemory, Some(error.to_line())),
            RunnerErrorKind::Cancelled => (
                AttemptEnd::Infrastructure { retryable: true },
                Some("the runner cancelled the step without being told to".to_owned()),
            ),
            RunnerErrorKind::Infrastructure => {
                (AttemptEnd::Infrastructure { retryable: error.is_retryable() }, Some(error.to_line()))
            }
        },
        Some(Err(panic)) => (
            AttemptEnd::Infrastructure { retryable: false },
            Some(format!("the runner panicked, which is a bug in it: {}", panic_message(&*panic))),
        ),
        None => {
            let (end, why) = interrupted();
            let why = why.unwrap_or_else(|| "the build was cancelled".to_owned());
            let patience = context.grace.saturating_add(LINGER);
            (end, Some(format!("{why}, and the runner, which did not return within {patience:?}, was dropped")))
        }
    };
    (end, None, message.map(Arc::from))
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
