//! The contract between the executor and a runner.

use std::{fmt, future::Future};

use super::{
    ArgsSchema, CacheIdentity, ExecutorInput, Pool, Probe, RunnerCapabilities, RunnerError, SnapshotRef, StepContext,
    StepResult,
};

/// Runs steps: the one trait that a backend implements.
///
/// # Contract
/// - `Ok(StepResult)`: the user's command ended by itself. A non-zero exit is a result; death by signal n is `128 + n`.
/// - `Err(RunnerError)`: it did not. Of the [kinds](super::RunnerErrorKind) only `Infrastructure` is retried, a bounded
///   number of times, with backoff, from the parent's snapshot; what the failed attempt wrote is dropped, its log kept.
///   Not where the attempt had been told that its time was up: then the step has timed out, whatever went wrong besides.
/// - The executor owns time: where a deadline passes or the build is cancelled it fires `ctx.cancel`, and the runner
///   sends TERM, waits `ctx.grace`, sends KILL, and returns [`ctx.interrupted()`](StepContext::interrupted). A runner
///   that returns `Ok` because its command happened to end just then is believed.
/// - Output goes through `ctx.event_bus.output(..)` before `execute` returns. State events are the dispatcher's alone.
/// - No process of a step outlives its `execute`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a runner",
    label = "this type does not implement `StepRunner`",
    note = "implement `hm_exec::runner::StepRunner`: a `NAME` and `execute` are enough"
)]
pub trait StepRunner: Send + Sync + fmt::Debug + 'static {
    /// The name that pipelines use. Lowercase letters, digits, `-` and `_`.
    const NAME: &'static str;

    /// Raised whenever the same command would leave another filesystem than before; part of every cache key.
    const CACHE_VERSION: u32 = 1;

    /// Runs one attempt of one step. The executor calls it once per attempt, for many steps at once; all attempts of a
    /// build are polled on one task, so CPU-bound or blocking work of more than some 100 µs belongs on another thread.
    ///
    /// # Errors
    /// See the contract above.
    ///
    /// # Cancel safety
    /// Dropping the future ends the command at once (no grace) and drops what it wrote. The executor does so only where a
    /// runner has not returned long after `ctx.cancel` fired, and when the runtime shuts down.
    fn execute(
        &self,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<StepResult, RunnerError>> + Send;

    /// Removes snapshots that this runner made and nobody needs any longer. The dispatcher calls it at the end of a
    /// build, at most once per snapshot. Failures are the runner's to log.
    ///
    /// # Cancel safety
    /// Dropping the future may leave some of them behind.
    fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) -> impl Future<Output = ()> + Send {
        let _ = snapshots;
        async {}
    }

    /// Tells whether the runner can work on this machine. Called by `hm runners`, `hm doctor`, and by the engine for the
    /// runners that a plan uses, before anything runs; where the cache may have every step, before the first that it
    /// hasn't.
    fn probe(&self) -> impl Future<Output = Probe> + Send {
        async { Probe::Usable { note: None } }
    }

    /// What goes into the cache keys of this runner's steps beside the steps themselves, just now: what `image` stands for
    /// (`None`: the step boots from a snapshot), and how the runner works here. `None`, where steps can't be cached.
    ///
    /// The engine asks once a build and image, before it looks a step up, and again before a result is published, which
    /// it is not where the answer became another. To be answered without starting anything.
    ///
    /// # Errors
    /// Where the image can't be found out about: then its steps run.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    fn cache_identity(
        &self,
        image: Option<&str>,
    ) -> impl Future<Output = Result<Option<CacheIdentity>, RunnerError>> + Send {
        let _ = image;
        async { Ok(None) }
    }

    /// What the runner promises. Called when a plan is bound.
    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities::default()
    }

    /// What the runner takes in `runner_args`. Called when a plan is bound.
    fn args_schema(&self) -> ArgsSchema {
        ArgsSchema::none()
    }

    /// Which limit on concurrent steps counts this runner's. Called once per build.
    fn pool(&self) -> Pool {
        Pool::Local
    }
}
