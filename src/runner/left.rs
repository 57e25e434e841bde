//! What steps leave for people: a failed step's files, or, where the run asks for it, those of one that passed.

use std::sync::Arc;

use super::boot::Boot;
use crate::{
    runner::{ExecutorInput, RunnerError, RunnerErrorKind, SnapshotRef, StepContext},
    store::{KeepAs, Store, StoreError, Surroundings},
};

/// Whether an attempt that ended like this left anything worth a look: the command ran, and was not tried again.
pub(super) fn is_worth_keeping(ended: &Result<i32, RunnerError>) -> bool {
    match ended {
        Ok(_) => true,
        Err(error) => matches!(
            error.kind(),
            RunnerErrorKind::TimedOut | RunnerErrorKind::Cancelled | RunnerErrorKind::OutOfMemory
        ),
    }
}

/// What a step has around it besides its files.
pub(super) fn surroundings(ctx: &StepContext, input: &ExecutorInput, host_dirs: &[std::path::PathBuf]) -> Surroundings {
    let (host_dirs, had_secrets) = (host_dirs.to_vec(), !ctx.secrets.is_empty());
    Surroundings { host_dirs, had_secrets, ..input.surroundings() }
}

/// Keeps the files of a step that did not pass, when all its processes are dead. That it can't be done is a warning: the
/// step's end is the same.
pub(super) async fn keep_failed(boot: Boot, store: &Arc<Store>, input: &ExecutorInput, around: Surroundings) {
    let commit = move |store: &Arc<Store>| {
        let snapshot = boot.commit(store)?;
        store.describe(&snapshot, Arc::new(around));
        Ok(snapshot)
    };
    keep(commit, store, input, false).await;
}

/// Keeps the snapshot of a step that passed.
pub(super) async fn keep_passed(snapshot: SnapshotRef, store: &Arc<Store>, input: &ExecutorInput) {
    keep(|_| Ok(snapshot), store, input, true).await;
}

/// On a thread: a walk over the layer may take long.
async fn keep(
    commit: impl FnOnce(&Arc<Store>) -> Result<SnapshotRef, StoreError> + Send + 'static,
    store: &Arc<Store>,
    input: &ExecutorInput,
    passed: bool,
) {
    let (store, run, step) = (Arc::clone(store), input.run_id, Arc::clone(&input.step));
    let kept = tokio::task::spawn_blocking(move || {
        let snapshot = commit(&store)?;
        store.keep(&snapshot, KeepAs::Left { run, step: &step.key, passed })
    });
    let (step, warning) = (&*input.step.key, "failed to keep what the step left; `hm shell` and `hm cp` won't find it");
    match kept.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(step, error = &error as &dyn std::error::Error, "{warning}"),
        Err(error) => tracing::warn!(step, %error, "{warning}"),
    }
}
