//! A set of runners as one value: what the engine is generic over.

use std::{fmt, future::Future};

use super::{ExecutorInput, Probe, RunnerDescriptor, RunnerError, RunnerIndex, SnapshotRef, StepContext, StepResult};

/// A set of runners, composed at compile time (by `#[derive(RunnerSet)]` on a struct of runners) or at run time (a
/// [`RunnerRegistry`](super::RunnerRegistry)).
///
/// Names resolve once, when a plan is bound; from then on a step carries a [`RunnerIndex`], and a derived set dispatches
/// on it with one flat `match`: one concrete future type, no box, no allocation.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a set of runners",
    note = "put `#[derive(RunnerSet)]` on a struct whose fields are runners, or hand over a `RunnerRegistry`"
)]
pub trait RunnerSet: Send + Sync + fmt::Debug + 'static {
    /// Every runner in the order of the indices.
    fn descriptors(&self) -> Vec<RunnerDescriptor>;

    /// Runs one attempt on the runner at `index`. Contract and cancel safety are those of
    /// [`StepRunner::execute`](super::StepRunner::execute).
    ///
    /// # Errors
    /// Those of the runner; an `index` that is not of this set is an infrastructure error.
    fn dispatch(
        &self,
        index: RunnerIndex,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<StepResult, RunnerError>> + Send;

    /// Asks the runner at `index` whether it can work on this machine.
    fn probe(&self, index: RunnerIndex) -> impl Future<Output = Probe> + Send;

    /// Hands snapshots back to the runner at `index`, which made them.
    fn reap(&self, index: RunnerIndex, snapshots: Vec<SnapshotRef>) -> impl Future<Output = ()> + Send;
}
