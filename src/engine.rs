//! The engine: runs builds in this process, on the runners it was given.
//!
//! Input: a [`RunRequest`]. Output: a [`BackendHandle`]. The engine binds the plan, checks whether the
//! runners that the plan uses can work here, opens the journal, and spawns the build's one task. Nothing else
//! in this crate spawns tasks for a build. The engine does not know which runners exist or how a step runs.

use std::{collections::BTreeSet, num::NonZeroUsize, path::PathBuf, sync::Arc, thread, time::Duration};

use chrono::Utc;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    backend::{BackendError, BackendHandle, Capabilities, ExecutionBackend, RunOptions, RunRequest},
    cache::{BuildFacts, Cache},
    event::{self, PlanSummary, RunDir, RunMeta, StepMeta},
    model::{ArchiveId, BuildRef, StepIndex},
    plan::{BindOptions, BoundPlan, bind},
    remote_cache::RemoteCache,
    runner::{Probe, RunnerDescriptor, RunnerIndex, RunnerSet, StepContext, validate},
    schedule::{self, Build},
    store::{Archives, StoreHandle},
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
///         Ok(StepResult { exit_code: 0, committed_snapshot: None, artifacts: vec![] })
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
    runs_dir: Option<PathBuf>,
    cache: Option<Cache>,
    remote: Option<Arc<RemoteCache>>,
}

/// Sets up an [`Engine`].
#[derive(Debug)]
#[must_use = "call `build`"]
pub struct EngineBuilder<R> {
    runners: R,
    parallelism: Option<NonZeroUsize>,
    grace: Duration,
    runs_dir: Option<PathBuf>,
    cache: Option<Cache>,
    remote: Option<Arc<RemoteCache>>,
}

impl<R: RunnerSet> EngineBuilder<R> {
    /// Sets how many steps of local runners may run at once. By default, as many as the machine has threads.
    pub fn parallelism(mut self, steps: NonZeroUsize) -> Self {
        self.parallelism = Some(steps);
        self
    }

    /// Sets how long a command may take between SIGTERM and SIGKILL. By default, 5 seconds.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Keeps each run's journal and logs in `<dir>/<run id>`. By default they are in a temporary directory
    /// that is removed with the last reader.
    pub fn runs_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.runs_dir = Some(dir.into());
        self
    }

    /// Looks cached steps up in `store`, keeps their results there, and records runs. Steps of runners with
    /// the `layers` capability are cached; the runners must use the same store. By default nothing is cached.
    pub fn cache(mut self, store: impl Into<StoreHandle>) -> Self {
        self.cache = Some(Cache::new(store.into()));
        self
    }

    /// Also looks cached steps up in a remote cache, and shares their results there. Requires a
    /// [`cache`](Self::cache), which stores what is found.
    #[cfg(all(feature = "cloud", target_os = "linux"))]
    pub fn remote_cache(mut self, remote: RemoteCache) -> Self {
        self.remote = Some(Arc::new(remote));
        self
    }

    /// Builds the engine.
    ///
    /// # Errors
    /// Returns [`BackendError::Composition`] if the runners cannot be combined: there is none, or two have
    /// the same name.
    pub fn build(self) -> Result<Engine<R>, BackendError> {
        let descriptors = self.runners.descriptors();
        validate(&descriptors)?;
        let parallelism = self.parallelism.or_else(|| thread::available_parallelism().ok());
        Ok(Engine {
            runners: Arc::new(self.runners),
            descriptors,
            parallelism: parallelism.unwrap_or(NonZeroUsize::MIN),
            grace: self.grace,
            runs_dir: self.runs_dir,
            cache: self.cache,
            remote: self.remote,
        })
    }
}

impl<R: RunnerSet> Engine<R> {
    /// Returns a builder of an engine on `runners`: a struct with `#[derive(RunnerSet)]`, or a
    /// [`RunnerRegistry`](crate::runner::RunnerRegistry).
    pub fn builder(runners: R) -> EngineBuilder<R> {
        EngineBuilder {
            runners,
            parallelism: None,
            grace: Duration::from_secs(5),
            runs_dir: None,
            cache: None,
            remote: None,
        }
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

    /// Binds `request`'s plan to the engine's runners, as [`start`](Self::start) does, without running
    /// anything.
    ///
    /// # Errors
    /// Returns [`BackendError::Invalid`], which lists every mistake.
    pub fn bind(&self, request: &RunRequest) -> Result<BoundPlan, BackendError> {
        let options = BindOptions {
            runner: request.options.runner.clone(),
            images: request.options.images.clone(),
            env: request.env.clone(),
            has_secrets: !request.secrets.is_empty(),
        };
        Ok(bind(&request.plan, self.descriptors.clone(), &options)?)
    }

    /// Starts a build as a task of the current tokio runtime, whose time driver must be enabled.
    ///
    /// # Errors
    /// Returns [`BackendError::Invalid`] if the plan does not fit the runners, [`BackendError::Unusable`] if
    /// a runner that it uses cannot work here, and [`BackendError::Local`] if the journal cannot be created.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing was started.
    pub async fn start(&self, request: RunRequest) -> Result<BackendHandle, BackendError> {
        let mut plan = self.bind(&request)?;
        plan.timeout = plan.timeout.into_iter().chain(request.options.timeout).min();
        plan.keep = request.options.keep;
        let unprobed = self.probe(&plan, &request.options).await?;

        let run_id = request.run_id.unwrap_or_else(Uuid::new_v4);
        let build = BuildRef { run_id, number: None, org: None, pipeline: request.pipeline_slug.clone() };
        let started_at = request.started_at.unwrap_or_else(Utc::now);
        let cache = match &self.cache {
            None => None,
            Some(cache) => {
                let facts = BuildFacts {
                    run: run_id,
                    source_dir: request.repo_root.clone(),
                    project: request.project.clone(),
                    pipeline: request.pipeline_slug.clone(),
                    started_at_ms: started_at.timestamp_millis(),
                    no_cache: request.options.no_cache,
                    refresh: request.options.refresh.clone(),
                };
                let cache = cache.clone();
                let opened = tokio::task::spawn_blocking(move || cache.open(facts)).await;
                Some(opened.map_err(|error| BackendError::Other(error.into()))?)
            }
        };
        let durations =
            plan.steps.iter().map(|bound| request.durations.get(&bound.step.key).copied()).collect::<Vec<_>>();

        let dir = match &self.runs_dir {
            Some(dir) => RunDir::Kept(dir.join(run_id.to_string())),
            None => RunDir::Temporary,
        };
        let meta = RunMeta {
            build: build.clone(),
            plan: PlanSummary {
                step_count: plan.dag.len(),
                chain_count: plan.dag.chain_count(),
                default_runner: self.default_runner(request.options.runner.as_deref()).to_owned(),
            },
            started_at,
            steps: (0..).map(StepIndex).zip(&plan.steps).map(|(step, _)| step_meta(&plan, step)).collect(),
            runners: plan.runners.iter().map(|runner| Arc::clone(&runner.name)).collect(),
        };
        let place = match &dir {
            RunDir::Kept(dir) => format!("in {}", dir.display()),
            RunDir::Temporary => "in the temporary directory".into(),
        };
        let created = event::create(dir, meta, &request.secrets);
        if created.is_err()
            && let Some(cache) = &cache
        {
            cache.forget_run();
        }
        let (events, bus, stream) = created
            .map_err(|source| BackendError::Local { doing: format!("open the run's journal {place}"), source })?;

        let cancel = CancellationToken::new();
        let archives = Arc::new(Archives::new(ArchiveId(run_id), request.repo_root));
        let mut context = StepContext::new(bus, archives, Arc::new(request.secrets), cancel.child_token());
        context.grace = self.grace;
        context.keep = request.options.keep;
        let task = schedule::run(Build {
            runners: Arc::clone(&self.runners),
            plan,
            cache,
            remote: self.remote.clone(),
            unprobed,
            durations,
            parallelism: self.parallelism,
            keep_going: request.options.keep_going,
            events,
            context,
            cancel: cancel.clone(),
            build,
            started_at,
        });
        let span = tracing::info_span!("run", id = %run_id);
        #[expect(clippy::disallowed_methods, reason = "the one place where a task is spawned")]
        let outcome = tokio::spawn(async move { Ok(task.await) }.instrument(span));
        Ok(BackendHandle::new(stream, cancel, outcome))
    }

    /// Checks whether the runners that the plan uses can work here. Skips and returns the runners whose every
    /// step may be in the cache.
    async fn probe(&self, plan: &BoundPlan, options: &RunOptions) -> Result<Vec<RunnerIndex>, BackendError> {
        let is_sure_to_run = |step: StepIndex| {
            let refreshed = options.no_cache || options.refresh.contains(&*plan.step(step).step.key);
            self.cache.is_none() || refreshed || !schedule::is_cached(plan, step)
        };
        let all: BTreeSet<RunnerIndex> = plan.steps.iter().map(|step| step.runner).collect();
        let used: BTreeSet<RunnerIndex> =
            plan.dag.steps().filter(|&step| is_sure_to_run(step)).map(|step| plan.step(step).runner).collect();
        let unprobed = all.difference(&used).copied().collect();
        let probes = join_all(used.iter().map(|&runner| self.runners.probe(runner))).await;
        for (runner, probe) in used.into_iter().zip(probes) {
            if let Probe::Unusable { reason, hint } = probe {
                let runner = self.descriptors[usize::from(runner.0)].name.to_string();
                return Err(BackendError::Unusable { runner, reason, hint });
            }
        }
        Ok(unprobed)
    }

    fn default_runner<'a>(&'a self, asked: Option<&'a str>) -> &'a str {
        asked
            .or_else(|| self.descriptors.iter().find(|runner| runner.is_default).map(|runner| &*runner.name))
            .unwrap_or_default()
    }
}

impl<R> Clone for Engine<R> {
    fn clone(&self) -> Self {
        Self {
            runners: Arc::clone(&self.runners),
            descriptors: self.descriptors.clone(),
            parallelism: self.parallelism,
            grace: self.grace,
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
        Capabilities {
            honors_parallelism: true,
            honors_keep_going: true,
            enforces_timeout: true,
            reports_cache_hits: self.cache.is_some(),
            ..Capabilities::default()
        }
    }

    async fn start(&self, request: RunRequest) -> Result<BackendHandle, BackendError> {
        Self::start(self, request).await
    }
}

fn step_meta(plan: &BoundPlan, step: StepIndex) -> StepMeta {
    let bound = plan.step(step);
    let parent = plan.dag.lineage_parent(step);
    StepMeta {
        key: Arc::clone(&bound.step.key),
        display_name: Arc::clone(&bound.display_name),
        chain_idx: plan.dag.chain(step),
        parent,
        image: if parent.is_none() { bound.step.image.clone() } else { None },
        runner: bound.runner.0,
    }
}
