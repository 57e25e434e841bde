//! The contract between the executor and a runner.

use std::{fmt, future::Future, sync::Arc};

use super::{
    ArgsSchema, CacheIdentity, ExecutorInput, InputFiles, Pool, Probe, RunnerCapabilities, RunnerError, SnapshotRef,
    StepContext, StepResult, TraceLookup,
};
use crate::source::RunSource;

/// Runs steps. This is the one trait that a backend implements.
///
/// # Contract
/// - `Ok(StepResult)`: the user's command ended by itself. A non-zero exit is a result; death by signal n is
///   `128 + n`.
/// - `Err(RunnerError)`: the command did not end by itself. Only errors of the
///   [kind](super::RunnerErrorKind) `Infrastructure` are retried, a bounded number of times, with backoff,
///   from the parent's snapshot. The failed attempt's writes are dropped, and its log is kept. An attempt
///   that was interrupted because of its deadline is not retried: the step has timed out, whatever else went
///   wrong.
/// - The executor owns time. When a deadline passes or the build is cancelled, it fires `ctx.cancel`. The
///   runner then sends TERM, waits `ctx.grace`, sends KILL, and returns
///   [`ctx.interrupted()`](StepContext::interrupted). If the runner returns `Ok` because its command happened
///   to end at that moment, the executor accepts the result.
/// - Output goes through `ctx.event_bus.output(..)` before `execute` returns. Only the dispatcher sends state
///   events.
/// - No process of a step outlives its `execute`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a runner",
    label = "this type does not implement `StepRunner`",
    note = "implement `hm_exec::runner::StepRunner`: a `NAME` and `execute` are enough",
    note = "in a set of runners, a field that is itself a set has `#[runner(flatten)]`"
)]
pub trait StepRunner: Send + Sync + fmt::Debug + 'static {
    /// The name that pipelines use: lowercase letters, digits, `-` and `_`.
    const NAME: &'static str;

    /// The version to raise whenever the same command would produce a different filesystem than before. It is
    /// part of every cache key.
    const CACHE_VERSION: u32 = 1;

    /// Runs one attempt of one step. The executor calls it once per attempt, for many steps at once. All
    /// attempts of a build are polled on one task, so CPU-bound or blocking work of more than some 100 µs
    /// belongs on another thread.
    ///
    /// # Errors
    /// Returns an error as the contract above describes.
    ///
    /// # Cancel safety
    /// Dropping the future ends the command at once (without grace) and drops its writes. The executor does
    /// so only if a runner has not returned long after `ctx.cancel` fired, and when the runtime shuts down.
    fn execute(
        &self,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<StepResult, RunnerError>> + Send;

    /// Removes snapshots that this runner made and that are no longer needed. The dispatcher calls it at the
    /// end of a build, at most once per snapshot. The runner logs failures itself.
    ///
    /// # Cancel safety
    /// Dropping the future may leave some of the snapshots behind.
    fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) -> impl Future<Output = ()> + Send {
        let _ = snapshots;
        async {}
    }

    /// Reports whether the runner can work on this machine. Called by `hm runners`, by `hm doctor`, and by
    /// the engine for the runners that a plan uses, before anything runs. If the cache may have every step,
    /// the engine calls it before the first step that the cache does not have. A runner that does not answer
    /// within the engine's [limit](crate::EngineBuilder::probe_limit) counts as unusable.
    fn probe(&self) -> impl Future<Output = Probe> + Send {
        async { Probe::Usable { note: None } }
    }

    /// Reports whether steps can have a network of their own on this machine. Called after
    /// [`probe`](Self::probe), if a plan has such a step.
    fn probe_network(&self) -> impl Future<Output = Probe> + Send {
        async { Probe::Usable { note: None } }
    }

    /// Returns the current state of everything that goes into the cache keys of this runner's steps besides
    /// the steps themselves: what `image` resolves to (`None`: the step boots from a snapshot), and how the
    /// runner works here. Returns `None` if steps cannot be cached.
    ///
    /// The engine asks once per build and image, before it looks a step up. It asks again before it publishes
    /// a result, and does not publish if the answer has changed. Implementations must answer without starting
    /// anything.
    ///
    /// # Errors
    /// Returns an error if the image cannot be resolved. Its steps then run.
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

    /// Returns the digest of what a step would get as `input`: of names, types, modes, targets of links and
    /// contents. Equal digests mean equal files. Called for runners with the capability
    /// [`inputs`](RunnerCapabilities::inputs), before a cached step is looked up.
    ///
    /// # Errors
    /// Returns an error if there is no such file or directory, or if it cannot be read. The step is not
    /// cached then.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    fn input_digest(
        &self,
        source: &RunSource,
        input: &InputFiles,
    ) -> impl Future<Output = Result<[u8; 32], RunnerError>> + Send {
        let _ = (source, input);
        async { Err(RunnerError::unsupported("this runner cannot read files of other steps")) }
    }

    /// Copies the outputs of a step whose result, `snapshot`, the cache has. The context is that of the run,
    /// and has the outputs. Called for runners with the capability [`outputs`](RunnerCapabilities::outputs).
    /// Problems are warnings.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no half file.
    fn copy_outputs(&self, ctx: &StepContext, snapshot: SnapshotRef) -> impl Future<Output = ()> + Send {
        let _ = (ctx, snapshot);
        async {}
    }

    /// Looks a step up by what it read in earlier runs of the project. Called for runners with the
    /// capabilities [`traces`](RunnerCapabilities::traces) and [`layers`](RunnerCapabilities::layers), when
    /// the parents of the step have ended, and with the context of the run.
    ///
    /// # Errors
    /// Returns an error if that cannot be told. The step runs then.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    fn look_up_trace(
        &self,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<TraceLookup, RunnerError>> + Send {
        let _ = (ctx, input);
        async { Ok(TraceLookup::Missed(None)) }
    }

    /// Returns what the runner promises. Called when a plan is bound.
    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities::default()
    }

    /// Returns the arguments that the runner takes in `runner_args`. Called when a plan is bound. The names
    /// `soft_fail`, `retries`, `outputs` and `inputs` belong to the engine: a runner never gets them.
    fn args_schema(&self) -> ArgsSchema {
        ArgsSchema::none()
    }

    /// Returns the limit on concurrent steps that counts this runner's steps. Called once per build.
    fn pool(&self) -> Pool {
        Pool::Local
    }
}

/// A runner that is shared: with other engines, or with code that reads what it recorded.
impl<R: StepRunner> StepRunner for Arc<R> {
    const NAME: &'static str = R::NAME;
    const CACHE_VERSION: u32 = R::CACHE_VERSION;

    fn execute(
        &self,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<StepResult, RunnerError>> + Send {
        R::execute(self, ctx, input)
    }

    fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) -> impl Future<Output = ()> + Send {
        R::reap_snapshots(self, snapshots)
    }

    fn probe(&self) -> impl Future<Output = Probe> + Send {
        R::probe(self)
    }

    fn probe_network(&self) -> impl Future<Output = Probe> + Send {
        R::probe_network(self)
    }

    fn cache_identity(
        &self,
        image: Option<&str>,
    ) -> impl Future<Output = Result<Option<CacheIdentity>, RunnerError>> + Send {
        R::cache_identity(self, image)
    }

    fn input_digest(
        &self,
        source: &RunSource,
        input: &InputFiles,
    ) -> impl Future<Output = Result<[u8; 32], RunnerError>> + Send {
        R::input_digest(self, source, input)
    }

    fn copy_outputs(&self, ctx: &StepContext, snapshot: SnapshotRef) -> impl Future<Output = ()> + Send {
        R::copy_outputs(self, ctx, snapshot)
    }

    fn look_up_trace(
        &self,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<TraceLookup, RunnerError>> + Send {
        R::look_up_trace(self, ctx, input)
    }

    fn capabilities(&self) -> RunnerCapabilities {
        R::capabilities(self)
    }

    fn args_schema(&self) -> ArgsSchema {
        R::args_schema(self)
    }

    fn pool(&self) -> Pool {
        R::pool(self)
    }
}
