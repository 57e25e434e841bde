//! Runners behind a pointer, for callers that choose them at run time. Erasure is opt-in: the engine does not
//! need it.

use std::{fmt, future::Future, pin::Pin};

use super::{
    ArgsSchema, CacheIdentity, ExecutorInput, InputFiles, Pool, Probe, RunnerCapabilities, RunnerError, SnapshotRef,
    StepContext, StepResult, StepRunner, TraceLookup,
};
use crate::source::RunSource;

/// A future behind a pointer.
pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The dyn-compatible side of [`StepRunner`], which every `StepRunner` has.
///
/// Implement it by hand only if a runner has no constant name; [`name`](Self::name) and
/// [`execute`](Self::execute) are enough. Each method has the contract of the same method of [`StepRunner`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a runner",
    label = "this type implements neither `StepRunner` nor `DynStepRunner`",
    note = "implement `hm_exec::runner::StepRunner`: a `NAME` and `execute` are enough"
)]
pub trait DynStepRunner: Send + Sync + fmt::Debug {
    /// Returns the name that pipelines use: lowercase letters, digits, `-` and `_`. It must always be the
    /// same.
    fn name(&self) -> &str;

    /// Runs one attempt of one step; see [`StepRunner::execute`].
    ///
    /// # Errors
    /// Returns an error as the contract of [`StepRunner`] describes.
    fn execute<'a>(
        &'a self,
        ctx: &'a StepContext,
        input: ExecutorInput,
    ) -> Pin<Box<dyn Future<Output = Result<StepResult, RunnerError>> + Send + 'a>>;

    /// Removes snapshots that are no longer needed; see [`StepRunner::reap_snapshots`].
    fn reap_snapshots<'a>(&'a self, snapshots: Vec<SnapshotRef>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        drop(snapshots);
        Box::pin(async {})
    }

    /// Reports whether the runner can work on this machine; see [`StepRunner::probe`].
    fn probe<'a>(&'a self) -> Pin<Box<dyn Future<Output = Probe> + Send + 'a>> {
        Box::pin(async { Probe::Usable { note: None } })
    }

    /// Reports whether steps can have a network of their own; see [`StepRunner::probe_network`].
    fn probe_network<'a>(&'a self) -> Pin<Box<dyn Future<Output = Probe> + Send + 'a>> {
        Box::pin(async { Probe::Usable { note: None } })
    }

    /// Returns what goes into cache keys; see [`StepRunner::cache_identity`].
    fn cache_identity<'a>(
        &'a self,
        image: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Option<CacheIdentity>, RunnerError>> + Send + 'a>> {
        let _ = image;
        Box::pin(async { Ok(None) })
    }

    /// Copies the outputs of a cached result; see [`StepRunner::copy_outputs`].
    fn copy_outputs<'a>(
        &'a self,
        ctx: &'a StepContext,
        snapshot: SnapshotRef,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        let _ = (ctx, snapshot);
        Box::pin(async {})
    }

    /// Returns the digest of files of another step; see [`StepRunner::input_digest`].
    fn input_digest<'a>(
        &'a self,
        source: &'a RunSource,
        input: &'a InputFiles,
    ) -> Pin<Box<dyn Future<Output = Result<[u8; 32], RunnerError>> + Send + 'a>> {
        let _ = (source, input);
        Box::pin(async { Err(RunnerError::unsupported("this runner cannot read files of other steps")) })
    }

    /// Looks a step up by what it read in earlier runs; see [`StepRunner::look_up_trace`].
    fn look_up_trace<'a>(
        &'a self,
        ctx: &'a StepContext,
        input: ExecutorInput,
    ) -> Pin<Box<dyn Future<Output = Result<TraceLookup, RunnerError>> + Send + 'a>> {
        let _ = (ctx, input);
        Box::pin(async { Ok(TraceLookup::Missed(None)) })
    }

    /// Returns what the runner promises; see [`StepRunner::capabilities`].
    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities::default()
    }

    /// Returns the arguments that the runner takes in `runner_args`; see [`StepRunner::args_schema`].
    fn args_schema(&self) -> ArgsSchema {
        ArgsSchema::none()
    }

    /// Returns the limit that counts this runner's steps; see [`StepRunner::pool`].
    fn pool(&self) -> Pool {
        Pool::Local
    }

    /// Returns the version that goes into cache keys besides the name; see [`StepRunner::CACHE_VERSION`].
    fn cache_version(&self) -> u32 {
        1
    }
}

#[diagnostic::do_not_recommend]
impl<R: StepRunner> DynStepRunner for R {
    fn name(&self) -> &str {
        R::NAME
    }

    fn execute<'a>(&'a self, ctx: &'a StepContext, input: ExecutorInput) -> Boxed<'a, Result<StepResult, RunnerError>> {
        Box::pin(StepRunner::execute(self, ctx, input))
    }

    fn reap_snapshots<'a>(&'a self, snapshots: Vec<SnapshotRef>) -> Boxed<'a, ()> {
        Box::pin(StepRunner::reap_snapshots(self, snapshots))
    }

    fn probe<'a>(&'a self) -> Boxed<'a, Probe> {
        Box::pin(StepRunner::probe(self))
    }

    fn probe_network<'a>(&'a self) -> Boxed<'a, Probe> {
        Box::pin(StepRunner::probe_network(self))
    }

    fn cache_identity<'a>(&'a self, image: Option<&'a str>) -> Boxed<'a, Result<Option<CacheIdentity>, RunnerError>> {
        Box::pin(StepRunner::cache_identity(self, image))
    }

    fn copy_outputs<'a>(&'a self, ctx: &'a StepContext, snapshot: SnapshotRef) -> Boxed<'a, ()> {
        Box::pin(StepRunner::copy_outputs(self, ctx, snapshot))
    }

    fn input_digest<'a>(
        &'a self,
        source: &'a RunSource,
        input: &'a InputFiles,
    ) -> Boxed<'a, Result<[u8; 32], RunnerError>> {
        Box::pin(StepRunner::input_digest(self, source, input))
    }

    fn look_up_trace<'a>(
        &'a self,
        ctx: &'a StepContext,
        input: ExecutorInput,
    ) -> Boxed<'a, Result<TraceLookup, RunnerError>> {
        Box::pin(StepRunner::look_up_trace(self, ctx, input))
    }

    fn capabilities(&self) -> RunnerCapabilities {
        StepRunner::capabilities(self)
    }

    fn args_schema(&self) -> ArgsSchema {
        StepRunner::args_schema(self)
    }

    fn pool(&self) -> Pool {
        StepRunner::pool(self)
    }

    fn cache_version(&self) -> u32 {
        R::CACHE_VERSION
    }
}

/// A runner that has the name of its field instead of its type's.
#[derive(Debug)]
pub(crate) struct Named<R> {
    pub(crate) name: &'static str,
    pub(crate) runner: R,
}

impl<R: StepRunner> DynStepRunner for Named<R> {
    fn name(&self) -> &str {
        self.name
    }

    fn execute<'a>(&'a self, ctx: &'a StepContext, input: ExecutorInput) -> Boxed<'a, Result<StepResult, RunnerError>> {
        DynStepRunner::execute(&self.runner, ctx, input)
    }

    fn reap_snapshots<'a>(&'a self, snapshots: Vec<SnapshotRef>) -> Boxed<'a, ()> {
        DynStepRunner::reap_snapshots(&self.runner, snapshots)
    }

    fn probe<'a>(&'a self) -> Boxed<'a, Probe> {
        DynStepRunner::probe(&self.runner)
    }

    fn probe_network<'a>(&'a self) -> Boxed<'a, Probe> {
        DynStepRunner::probe_network(&self.runner)
    }

    fn cache_identity<'a>(&'a self, image: Option<&'a str>) -> Boxed<'a, Result<Option<CacheIdentity>, RunnerError>> {
        DynStepRunner::cache_identity(&self.runner, image)
    }

    fn copy_outputs<'a>(&'a self, ctx: &'a StepContext, snapshot: SnapshotRef) -> Boxed<'a, ()> {
        DynStepRunner::copy_outputs(&self.runner, ctx, snapshot)
    }

    fn input_digest<'a>(
        &'a self,
        source: &'a RunSource,
        input: &'a InputFiles,
    ) -> Boxed<'a, Result<[u8; 32], RunnerError>> {
        DynStepRunner::input_digest(&self.runner, source, input)
    }

    fn look_up_trace<'a>(
        &'a self,
        ctx: &'a StepContext,
        input: ExecutorInput,
    ) -> Boxed<'a, Result<TraceLookup, RunnerError>> {
        DynStepRunner::look_up_trace(&self.runner, ctx, input)
    }

    fn capabilities(&self) -> RunnerCapabilities {
        StepRunner::capabilities(&self.runner)
    }

    fn args_schema(&self) -> ArgsSchema {
        StepRunner::args_schema(&self.runner)
    }

    fn pool(&self) -> Pool {
        StepRunner::pool(&self.runner)
    }

    fn cache_version(&self) -> u32 {
        R::CACHE_VERSION
    }
}
