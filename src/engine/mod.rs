//! The engine: runs builds in this process, on the runners it was given.
//!
//! Input: a [`RunRequest`]. Output: a [`BackendHandle`]. The engine binds the plan, checks whether the
//! runners that the plan uses can work here, opens the journal, and spawns the build's one task. Nothing else
//! in this crate spawns tasks for a build. The engine does not know which runners exist or how a step runs.

mod bound_run;
mod builder;

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

pub use bound_run::BoundRun;
pub use builder::EngineBuilder;

use crate::{
    backend::{BackendError, BackendHandle, Capabilities, ExecutionBackend, RunRequest},
    cache::{Cache, SharedResults},
    outcome::BuildOutcome,
    plan::Plan,
    runner::{RunnerDescriptor, RunnerSet},
};

/// Runs builds in this process. Cheap to clone; builds that run at once share nothing but the runners.
///
/// # Examples
///
/// ```
/// use futures_util::StreamExt;
/// use hm_exec::{
///     BuildStatus, Engine, ExecutorInput, Plan, RunRequest, RunnerSet, StepResult,
///     runner::{RunnerError, StepContext, StepRunner},
/// };
///
/// #[derive(Debug)]
/// struct Noop;
///
/// impl StepRunner for Noop {
///     const NAME: &'static str = "noop";
///
///     async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
///         Ok(StepResult::exited(0))
///     }
/// }
///
/// #[derive(Debug, RunnerSet)]
/// struct Mine {
///     #[runner(default)]
///     noop: Noop,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let source_dir = ".";
/// # let ir_json = r#"{"version":"0","graph":{"nodes":[{"step":{"key":"hello","cmd":"echo hello"},"env":{}}],
/// #     "node_holes":[],"edge_property":"directed","edges":[]}}"#;
/// let engine = Engine::builder(Mine { noop: Noop }).parallelism(2.try_into()?).build()?;
/// let handle = engine.start(RunRequest::new(Plan::parse(ir_json)?, source_dir)).await?;
/// let (mut events, control) = handle.into_parts();
/// while let Some(event) = events.next().await {
///     println!("{}", serde_json::to_string(&event)?);
/// }
/// let outcome = control.wait().await?;
/// assert_eq!(outcome.status, BuildStatus::Passed);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine<R> {
    runners: Arc<R>,
    descriptors: Vec<RunnerDescriptor>,
    parallelism: NonZeroUsize,
    grace: Duration,
    probe_limit: Duration,
    runs_dir: Option<PathBuf>,
    cache: Option<Cache>,
    remote: Option<Arc<dyn SharedResults>>,
}

impl<R: RunnerSet> Engine<R> {
    /// Returns a builder of an engine on `runners`: a struct with `#[derive(RunnerSet)]`, or a
    /// [`RunnerRegistry`](crate::runner::RunnerRegistry).
    pub fn builder(runners: R) -> EngineBuilder<R> {
        EngineBuilder::new(runners)
    }

    /// Returns the runners.
    #[must_use]
    pub fn runners(&self) -> &R {
        &self.runners
    }

    /// Returns the runners' descriptors, by index.
    #[must_use]
    pub fn descriptors(&self) -> &[RunnerDescriptor] {
        &self.descriptors
    }

    /// Binds `request`'s plan to the engine's runners, without running anything. The result is the plan as
    /// it would run, and can be [started](BoundRun::start).
    ///
    /// # Errors
    /// Returns [`BackendError::Invalid`], which lists every mistake.
    pub fn bind<'a>(&'a self, request: &'a RunRequest) -> Result<BoundRun<'a, R>, BackendError> {
        Ok(BoundRun::new(self, request, BoundRun::bind(self, request)?))
    }

    /// Starts a build as a task of the current tokio runtime, whose time driver must be enabled. This is
    /// [`bind`](Self::bind), then [`BoundRun::start`].
    ///
    /// # Errors
    /// Returns [`BackendError::Invalid`] if the plan does not fit the runners, and otherwise the errors of
    /// [`BoundRun::start`].
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing was started.
    pub async fn start(&self, mut request: RunRequest) -> Result<BackendHandle, BackendError> {
        // If the caller has kept no clone of the plan, its text and its graph end here: a large part of the
        // memory of a large build.
        request.plan.forget_text();
        let plan = BoundRun::bind(self, &request)?;
        request.plan = Plan::empty();
        BoundRun::new(self, &request, plan).start().await
    }

    /// Runs a build to its end, and ignores its events.
    ///
    /// # Errors
    /// Returns the errors of [`start`](Self::start), and one if the build's task ended unexpectedly. A failed
    /// build is an outcome.
    ///
    /// # Cancel safety
    /// If the future is dropped, the build is cancelled: running steps get SIGTERM, then SIGKILL, as long as
    /// the runtime lives.
    pub async fn run(&self, request: RunRequest) -> Result<BuildOutcome, BackendError> {
        ExecutionBackend::run(self, request).await
    }
}

impl<R> Clone for Engine<R> {
    fn clone(&self) -> Self {
        Self {
            runners: Arc::clone(&self.runners),
            descriptors: self.descriptors.clone(),
            parallelism: self.parallelism,
            grace: self.grace,
            probe_limit: self.probe_limit,
            runs_dir: self.runs_dir.clone(),
            cache: self.cache.clone(),
            remote: self.remote.clone(),
        }
    }
}

impl<R: RunnerSet> ExecutionBackend for Engine<R> {
    fn name(&self) -> &'static str {
        "local"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { reports_cache_hits: self.cache.is_some(), ..Capabilities::local() }
    }

    async fn start(&self, request: RunRequest) -> Result<BackendHandle, BackendError> {
        Self::start(self, request).await
    }
}
