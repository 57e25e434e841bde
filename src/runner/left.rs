//! What steps leave for people: a failed step's files, or, where the run asks for it, those of one that passed.
//!
//! In: a snapshot of the store. Out: its entry there, by run and step, which `hm shell` and `hm cp` find. Does not know how
//! the snapshot was made.

use std::{fmt, sync::Arc};

use super::{ExecutorInput, RunnerError, RunnerErrorKind, SnapshotRef};
use crate::store::{KeepAs, Store, Surroundings};

/// Whether an attempt that ended like this left anything worth a look: the command ran, and was not tried again.
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

/// Keeps the snapshot of a step that did not pass. That there is none, or that it can't be kept, is a warning: the step's end
/// is the same.
pub(super) async fn keep_failed(
    committed: Result<SnapshotRef, RunnerError>,
    store: &Arc<Store>,
    input: &ExecutorInput,
    around: Surroundings,
) {
    match committed {
        Ok(snapshot) => {
            store.describe(&snapshot, Arc::new(around));
            keep(snapshot, store, input, false).await;
        }
        Err(error) => warn(input, error.to_line()),
    }
}

/// Keeps the snapshot of a step that passed.
pub(super) async fn keep_passed(snapshot: SnapshotRef, store: &Arc<Store>, input: &ExecutorInput) {
    keep(snapshot, store, input, true).await;
}

/// On a thread: a walk over the layer may take long.
async fn keep(snapshot: SnapshotRef, store: &Arc<Store>, input: &ExecutorInput, passed: bool) {
    let (store, run, step) = (Arc::clone(store), input.run_id, Arc::clone(&input.step));
    let kept =
        tokio::task::spawn_blocking(move || store.keep(&snapshot, KeepAs::Left { run, step: &step.key, passed }));
    match kept.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn(input, RunnerError::infrastructure("write the store's index", error).to_line()),
        Err(error) => warn(input, error),
    }
}

fn warn(input: &ExecutorInput, error: impl fmt::Display) {
    let step = &*input.step.key;
    tracing::warn!(step, %error, "failed to keep what the step left; `hm shell` and `hm cp` won't find it");
}
