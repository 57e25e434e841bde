//! Step filesystems kept for inspection: those of failed steps and, if the run requests it, those of passed
//! steps.
//!
//! The input is a snapshot of the store. The output is its entry there, by run and step, which `hm shell` and
//! `hm cp` look up. This module does not know how the snapshot was made.

use std::{error::Error, iter, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{ExecutorInput, RunnerError, RunnerErrorKind, SnapshotRef};
use crate::{
    awake,
    outputs::StepOutputs,
    store::{KeepAs, SnapshotConfig, Store, StoreError},
};

/// Returns whether the filesystem of an attempt with this result is worth inspecting: the command ran, and is
/// not retried.
pub(super) fn is_worth_keeping(ended: &Result<i32, RunnerError>) -> bool {
    match ended {
        Ok(code) => *code != 0,
        Err(error) => matches!(
            error.kind(),
            RunnerErrorKind::TimedOut
                | RunnerErrorKind::Cancelled
                | RunnerErrorKind::OutOfMemory
                | RunnerErrorKind::TooManyProcesses
        ),
    }
}

/// Returns whether the command of an attempt with this result has run, so that its files are what it left.
pub(super) fn has_files(ended: &Result<i32, RunnerError>) -> bool {
    ended.is_ok() || is_worth_keeping(ended)
}

/// How long outputs may still be copied after the step is to end, at its time limit or by the user.
const COPY_LINGER: Duration = Duration::from_secs(3);

/// Waits for the copies of a step's outputs. They are given up soon after the step is to end, so that the
/// result of a command that ended in time stays what it is.
pub(super) async fn copied(cancel: &CancellationToken, outputs: &StepOutputs, copying: impl Future<Output = ()>) {
    let is_over = async {
        cancel.cancelled().await;
        awake::sleep(COPY_LINGER).await;
    };
    tokio::select! {
        biased;
        () = copying => {}
        () = is_over => outputs.failed("the step was to end while they were copied"),
    }
}

/// Keeps the snapshot of a step that did not pass. A missing snapshot, or a failure to keep it, is only a
/// warning: the step's result does not change.
pub(super) async fn keep_failed(
    committed: Result<SnapshotRef, RunnerError>,
    store: &Arc<Store>,
    input: &ExecutorInput,
    around: SnapshotConfig,
) {
    match committed {
        Ok(snapshot) => {
            store.snapshots().describe(&snapshot, Arc::new(around));
            keep(snapshot, store, input, false).await;
        }
        Err(error) => warn(input, &error),
    }
}

/// Keeps the snapshot of a step that passed.
pub(super) async fn keep_passed(snapshot: SnapshotRef, store: &Arc<Store>, input: &ExecutorInput) {
    keep(snapshot, store, input, true).await;
}

/// Keeps the snapshot on a blocking thread, because the walk over the layer may take long.
async fn keep(snapshot: SnapshotRef, store: &Arc<Store>, input: &ExecutorInput, passed: bool) {
    let (store, run, step) = (Arc::clone(store), input.run_id, Arc::clone(&input.step));
    let keeping = RunnerError::blocking("write the store's index", move || {
        Ok(store.keep(&snapshot, KeepAs::ForInspection { run, step: &step.key, passed })?)
    });
    if let Err(error) = keeping.await {
        warn(input, &error);
    }
}

fn warn(input: &ExecutorInput, error: &RunnerError) {
    let (step, line) = (&*input.step.key, error.to_line());
    if is_full_disk(error) {
        // The build stops for the same reason, and says so.
        tracing::debug!(step, error = %line, "the disk is too full for the step's files");
    } else {
        tracing::warn!(step, error = %line, "failed to keep the step's files; `hm shell` and `hm cp` will not find them");
    }
}

/// Returns whether the cause is a full disk below the store.
fn is_full_disk(error: &RunnerError) -> bool {
    let mut causes = iter::successors(error.source(), |cause: &&(dyn Error + 'static)| (*cause).source());
    causes.any(|cause| matches!(cause.downcast_ref(), Some(StoreError::Full { .. })))
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::outputs::OutputPlace;

    #[test]
    fn a_full_disk_is_told_from_other_causes() {
        let of = |kind: ErrorKind| {
            let cause = anyhow::Error::from(StoreError::io("write", "/store/layers", kind));
            [
                RunnerError::infrastructure("seal", StoreError::io("write", "/store/layers", kind)),
                cause.context("x").into(),
            ]
        };
        assert!(of(ErrorKind::StorageFull).iter().all(is_full_disk));
        assert!(!of(ErrorKind::PermissionDenied).iter().any(is_full_disk));
    }

    #[tokio::test]
    async fn copies_are_given_up_soon_after_the_step_is_to_end() {
        let place = OutputPlace { source_dir: "/none".into(), pipeline: "ci".into(), step: "a".into() };
        let outputs = StepOutputs::new(Arc::from([]), place);
        let cancel = CancellationToken::new();
        let has_ended = AtomicBool::new(false);
        copied(&cancel, &outputs, async { has_ended.store(true, Ordering::Relaxed) }).await;
        assert!(has_ended.load(Ordering::Relaxed));
        cancel.cancel();
        copied(&cancel, &outputs, std::future::pending()).await;
    }
}
