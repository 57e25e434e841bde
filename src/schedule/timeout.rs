//! The time limit of a step: when a runner is asked to stop, when it is abandoned, and what the end is
//! called.

use std::{
    future::{Future, pending},
    pin::Pin,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::policy::AttemptEnd;
use crate::{
    awake,
    runner::{CancelReason, StepContext},
};

/// The time, after the grace between TERM and KILL, that a runner may take to return before its future is
/// dropped.
const LINGER: Duration = Duration::from_secs(10);

/// Waits for the runner. At the time limit, requests it to stop, and abandons it if it does not.
pub(super) async fn supervise<T>(
    mut running: Pin<&mut impl Future<Output = T>>,
    run: &CancellationToken,
    context: &StepContext,
    timeout: Option<Duration>,
) -> Option<T> {
    let time_is_up = async {
        match timeout {
            Some(timeout) => context.limit_reached(timeout).await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        // First, so that the runner finds its token fired when it learns of the end in another way.
        () = run.cancelled() => context.cancel.cancel(),
        caught = &mut running => return Some(caught),
        () = context.cancel.cancelled() => {}
        () = time_is_up => context.interrupt(CancelReason::TimedOut),
    }
    awake::timeout(patience(context), running).await
}

/// Returns how an attempt ends that was cancelled or reached a time limit, and why.
#[cold]
pub(super) fn interrupted(timeout: Option<Duration>, context: &StepContext) -> (AttemptEnd, Option<String>) {
    match (context.cancel_reason(), timeout) {
        (CancelReason::Cancelled, _) => (AttemptEnd::Canceled, None),
        (CancelReason::TimedOut, Some(timeout)) if context.interrupted_alone() => {
            (AttemptEnd::TimedOut, Some(format!("the step's time limit of {timeout:?} was reached")))
        }
        (CancelReason::TimedOut, _) => (AttemptEnd::TimedOut, Some("the build's time limit was reached".to_owned())),
    }
}

/// Returns how long a runner may take to return after it was asked to stop.
pub(super) fn patience(context: &StepContext) -> Duration {
    context.grace.saturating_add(LINGER)
}
