//! A build between binding and its start: its plan fits the engine's runners, and nothing runs yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    path::Path,
    sync::Arc,
};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use super::Engine;
use crate::{
    backend::{BackendError, BackendHandle, RunRequest},
    cache::{self, BuildCache, BuildFacts, Cache, CacheMode, Prediction, ProjectId},
    event::{
        self, EventBus, EventStream, EventWriter, PlanDetails, PlanSummary, RunDir, RunMeta, StepCommand, StepMeta,
    },
    ir::EdgeKind,
    model::{ArchiveId, BuildRef, StepIndex},
    plan::{BindOptions, BoundPlan, BoundService, BoundStep, bind},
    runner::{
        CacheOwner, Probe, RunnerIndex, RunnerSet, ShadowMode, StepContext, TraceReuse, Verification, probe_within,
        wants_private,
    },
    schedule::{self, Build, CachingScope, MemoryRules},
    source::{HiddenFiles, RunSource},
    store::StoreError,
};

/// A request whose plan is bound to the runners of an engine: [`Engine::bind`]. It dereferences to the plan.
#[derive(Debug)]
#[must_use = "call `start`, or only look at the plan"]
pub struct BoundRun<'a, R> {
    engine: &'a Engine<R>,
    request: &'a RunRequest,
    plan: BoundPlan,
}

/// When and under which name a build runs.
#[derive(Debug)]
struct RunIdentity {
    build: BuildRef,
    started_at: DateTime<Utc>,
}

impl<R> Deref for BoundRun<'_, R> {
    type Target = BoundPlan;

    fn deref(&self) -> &BoundPlan {
        &self.plan
    }
}

impl<'a, R: RunnerSet> BoundRun<'a, R> {
    pub(super) fn new(engine: &'a Engine<R>, request: &'a RunRequest, plan: BoundPlan) -> Self {
        Self { engine, request, plan }
    }

    /// Binds the plan of a request to the runners of an engine.
    pub(super) fn bind(engine: &Engine<R>, request: &RunRequest) -> Result<BoundPlan, BackendError> {
        let options = BindOptions {
            runner: request.options.runner.clone(),
            network: request.options.network,
            step_tables: request.options.step_tables.clone(),
            services: request.options.services.clone(),
            images: request.options.images.clone(),
            env: request.env.clone(),
            has_secrets: !request.secrets.is_empty(),
            timeout: request.options.timeout,
            keep: request.options.keep,
            // In shadow mode, everything runs.
            cache_mode: match request.options.cache_mode {
                CacheMode::Auto if request.options.shadow => CacheMode::Declared,
                mode => mode,
            },
            no_cache: request.options.no_cache,
            refresh: request.options.refresh.clone(),
        };
        Ok(bind(&request.plan, engine.descriptors.clone(), &options)?)
    }

    /// Starts the build as a task of the current tokio runtime, whose time driver must be enabled.
    ///
    /// # Errors
    /// Returns [`BackendError::Unusable`] if a runner that the plan uses cannot work here, and
    /// [`BackendError::Local`] if the journal cannot be created, or if the store has results of another scope
    /// of the remote cache.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing was started.
    pub async fn start(self) -> Result<BackendHandle, BackendError> {
        let unprobed = self.probe().await?;
        let run_id = self.request.run_id.unwrap_or_else(Uuid::new_v4);
        let identity = RunIdentity {
            build: BuildRef { run_id, number: None, org: None, pipeline: self.request.pipeline_slug.clone() },
            started_at: self.request.started_at.unwrap_or_else(Utc::now),
        };
        let is_usable = self.claim_store().await?;
        let verification =
            Verification::of(&self.request.options.verify).filter(|_| self.plan.cache_mode == CacheMode::Auto);
        let is_alone = verification.as_ref().is_some_and(|it| it.is_alone());
        let cache = match (is_usable, is_alone) {
            (true, false) => self.with_cache(&identity, Cache::open).await?,
            (true, true) => self.with_cache(&identity, |cache, facts| cache.open_to_predict(facts)).await?,
            (false, _) => None,
        };
        let created = self.create_journal(&identity, !is_alone);
        if created.is_err()
            && let Some(cache) = &cache
        {
            cache.forget_run();
        }
        let (events, bus, stream) = created?;
        bus.want_progress(self.request.options.progress);

        let archives = Arc::new(self.source(run_id));
        let traces = self.traces_dir(run_id);
        let reuse = cache.is_some().then(|| self.reuse(run_id, verification.clone())).flatten();
        let Self { engine, request, mut plan } = self;
        if is_alone {
            plan.outputs.clear();
        }
        let cancel = CancellationToken::new();
        let mut context = StepContext::new(bus, archives, Arc::new(request.secrets.clone()), cancel.child_token());
        context.grace = engine.grace;
        context.keep = plan.keep;
        context.traces = traces;
        let project = || request.project.clone().unwrap_or_else(|| ProjectId::of_directory(&request.repo_root));
        let shadow = request.options.shadow.then(|| Arc::new(ShadowMode::new(project().as_str())));
        if let Some(shadow) = shadow.as_ref().filter(|_| context.traces.is_none()) {
            // Traces are kept in the run's directory.
            shadow.add_failure();
            tracing::warn!("steps are not looked up by what they read: the run's records are not kept");
        }
        context.shadow.clone_from(&shadow);
        context.reuse = reuse;
        if is_usable && !request.options.no_caches && !is_alone {
            context.cache_owner = Some(Arc::new(CacheOwner::new(project().as_str(), &*request.pipeline_slug)));
        }
        let durations = match request.durations.is_empty() {
            true => Vec::new(),
            false => plan.steps.iter().map(|bound| request.durations.get(&bound.step.key).copied()).collect(),
        };
        let memory = request.options.memory.map(|budget| {
            let peak = |(bound, step): (&BoundStep, u32)| Some((StepIndex(step), *request.peaks.get(&bound.step.key)?));
            let peaks = match request.peaks.is_empty() {
                true => BTreeMap::new(),
                false => plan.steps.iter().zip(0..).filter_map(peak).collect(),
            };
            MemoryRules { budget, peaks }
        });
        let task = schedule::run(Build {
            runners: Arc::clone(&engine.runners),
            plan,
            cache,
            remote: engine.remote.clone().filter(|_| is_usable && !is_alone),
            unprobed,
            probe_limit: engine.probe_limit,
            durations,
            memory,
            parallelism: engine.parallelism,
            keep_going: request.options.keep_going,
            events,
            context,
            cancel: cancel.clone(),
            build: identity.build,
            started_at: identity.started_at,
        });
        let span = tracing::info_span!("run", id = %run_id);
        #[expect(clippy::disallowed_methods, reason = "the one place where a task is spawned")]
        let outcome = tokio::spawn(
            async move {
                let mut outcome = task.await;
                if let Some(verification) = verification {
                    let verified = verification.verdicts();
                    let differences = verified.iter().filter(|it| it.difference.is_some()).count();
                    (outcome.shadow_differences, outcome.shadow_failures) = (differences, verification.failures());
                    outcome.verified = verified;
                }
                if let Some(shadow) = shadow {
                    (outcome.shadow_differences, outcome.shadow_failures) = (shadow.differences(), shadow.failures());
                }
                Ok(outcome)
            }
            .instrument(span),
        );
        Ok(BackendHandle::of_journal(stream, cancel, outcome))
    }

    /// Predicts for each step, by index, whether it would run or be found in the engine's cache. Runs and
    /// records nothing. A remote cache is not asked, and layers are not checked.
    ///
    /// # Errors
    /// Returns an error if the thread that opens the store panics. What cannot be read is a reason for steps
    /// to run.
    pub async fn predict(&self) -> Result<Vec<Prediction>, BackendError> {
        let Self { engine, request, plan } = self;
        let identity = RunIdentity {
            build: BuildRef {
                run_id: Uuid::new_v4(),
                number: None,
                org: None,
                pipeline: request.pipeline_slug.clone(),
            },
            started_at: Utc::now(),
        };
        let cache = self.with_cache(&identity, |cache, facts| cache.open_to_predict(facts)).await?;
        let source = self.source(identity.build.run_id);
        let scope = CachingScope {
            plan,
            cache: cache.as_ref(),
            remote: None,
            archives: &source,
            outputs: None,
            probe_limit: engine.probe_limit,
        };
        Ok(schedule::predict(&*engine.runners, scope).await)
    }

    /// Returns the source of a run, which is not frozen yet unless that began before.
    fn source(&self, run: Uuid) -> RunSource {
        let Self { engine, request, .. } = self;
        let source = RunSource::new(ArchiveId(run), request.repo_root.clone());
        let source = source.times(request.options.source_times).leaving_out(request.options.source_ignore.clone());
        let source = source.frozen_early(request.early_freeze.clone());
        match &engine.cache {
            Some(cache) => source.store(cache.store().clone()),
            None => source,
        }
    }

    /// Checks whether the runners that the plan uses can work here. Skips and returns the runners whose every
    /// step may be in the cache.
    async fn probe(&self) -> Result<Vec<RunnerIndex>, BackendError> {
        let Self { engine, plan, .. } = self;
        self.check_tracing()?;
        let is_sure_to_run = |step: StepIndex| {
            engine.cache.is_none() || plan.step(step).is_refreshed || !schedule::is_looked_up(plan, step)
        };
        let (mut all, mut used) = (BTreeSet::new(), BTreeSet::new());
        let mut with_networks = BTreeSet::new();
        for step in plan.dag.steps() {
            let runner = plan.step(step).runner;
            let has_networks = plan.runners[usize::from(runner.0)].capabilities.private_network;
            let is_private = has_networks && wants_private(plan.step(step).step.runner_args.as_ref());
            if is_private && !with_networks.contains(&runner) && is_sure_to_run(step) {
                with_networks.insert(runner);
            }
            if !used.contains(&runner) {
                all.insert(runner);
                if is_sure_to_run(step) {
                    used.insert(runner);
                }
            }
        }
        let unprobed = all.difference(&used).copied().collect();
        let probes = join_all(used.iter().map(|&runner| {
            probe_within(&*engine.runners, runner, with_networks.contains(&runner), engine.probe_limit)
        }))
        .await;
        for (runner, probe) in used.into_iter().zip(probes) {
            if let Probe::Unusable { reason, hint } = probe {
                let runner = plan.runners[usize::from(runner.0)].name.to_string();
                return Err(BackendError::Unusable { runner, reason, hint });
            }
        }
        Ok(unprobed)
    }

    /// Checks whether steps can be traced here, if the request asks for that.
    fn check_tracing(&self) -> Result<(), BackendError> {
        if !self.traces() && self.plan.cache_mode != CacheMode::Auto {
            return Ok(());
        }
        let mut runners =
            self.plan.dag.steps().map(|step| &self.plan.runners[usize::from(self.plan.step(step).runner.0)]);
        let Some(tracing) = runners.find(|runner| runner.capabilities.traces) else { return Ok(()) };
        cache::check_traces().map_err(|why| BackendError::Unusable {
            runner: tracing.name.to_string(),
            reason: format!("what steps read cannot be recorded here: {why}"),
            hint: match (self.request.options.trace_inputs, self.request.options.shadow) {
                (true, _) => "run without `--check-inputs`".into(),
                (false, true) => "run without `HM_CACHE_SHADOW`".into(),
                (false, false) => "run with `--cache declared`".into(),
            },
        })
    }

    /// Returns whether the request needs traces.
    fn traces(&self) -> bool {
        self.request.options.trace_inputs || self.request.options.shadow
    }

    /// Returns where traces of steps go, if the request asks for them and the run's directory is kept.
    fn traces_dir(&self, run_id: Uuid) -> Option<Arc<Path>> {
        let runs = self.engine.runs_dir.as_ref().filter(|_| self.traces())?;
        Some(runs.join(run_id.to_string()).join(cache::TRACES).into())
    }

    /// Returns whether nothing in the engine's store is of another scope of the remote cache than this run
    /// is. If that cannot be recorded, the run must keep and find nothing there.
    ///
    /// # Errors
    /// Returns an error if the store has results of another scope.
    async fn claim_store(&self) -> Result<bool, BackendError> {
        let (Some(cache), Some(remote)) = (&self.engine.cache, &self.engine.remote) else { return Ok(true) };
        let (handle, scope) = (cache.store().clone(), remote.scope().to_owned());
        let claimed = tokio::task::spawn_blocking(move || {
            let store = handle.get()?;
            let found = store.steps().claim_scope(&scope)?;
            let refusal = |found: String| {
                format!(
                    "the store at `{}` has results of the scope `{found}`, and this run's scope is `{scope}`: set \
                     HM_CACHE_DIR to a directory for this scope",
                    store.dir().display()
                )
            };
            Ok::<_, StoreError>(found.map(refusal))
        });
        match claimed.await.map_err(|error| BackendError::Other(error.into()))? {
            Ok(None) => Ok(true),
            Ok(Some(refusal)) => {
                let doing = "share results through a remote cache".into();
                Err(BackendError::Local { doing, source: std::io::Error::other(refusal) })
            }
            Err(error) => {
                tracing::warn!("caching is disabled: {}", error.to_line());
                Ok(false)
            }
        }
    }

    /// Returns what attempts need whose results are found by what they read, if the request reuses those.
    fn reuse(&self, run_id: Uuid, verification: Option<Arc<Verification>>) -> Option<Arc<TraceReuse>> {
        let Self { engine, request, plan } = self;
        // Traces are kept in the run's directory.
        let runs = engine.runs_dir.as_ref().filter(|_| plan.cache_mode == CacheMode::Auto)?;
        let project = request.project.clone().unwrap_or_else(|| ProjectId::of_directory(&request.repo_root));
        let dir = runs.join(run_id.to_string()).join(cache::TRACES).into();
        Some(Arc::new(TraceReuse { project: project.as_str().into(), dir, verification }))
    }

    /// Opens the engine's cache for this build, if it has one.
    async fn with_cache(
        &self,
        identity: &RunIdentity,
        open: impl FnOnce(&Cache, BuildFacts) -> BuildCache + Send + 'static,
    ) -> Result<Option<BuildCache>, BackendError> {
        let Some(cache) = self.engine.cache.clone() else { return Ok(None) };
        let facts = BuildFacts {
            run: identity.build.run_id,
            source_dir: self.request.repo_root.clone(),
            project: self.request.project.clone(),
            pipeline: self.request.pipeline_slug.clone(),
            source_times: self.request.options.source_times,
            source_ignore: self
                .request
                .options
                .source_ignore
                .as_ref()
                .filter(|it| !it.is_empty())
                .map(HiddenFiles::digest),
            started_at_ms: identity.started_at.timestamp_millis(),
        };
        let opened = tokio::task::spawn_blocking(move || open(&cache, facts)).await;
        Ok(Some(opened.map_err(|error| BackendError::Other(error.into()))?))
    }

    /// Creates the run's journal, in the directory of runs if it is kept.
    fn create_journal(
        &self,
        identity: &RunIdentity,
        is_kept: bool,
    ) -> Result<(EventWriter, EventBus, EventStream), BackendError> {
        let Self { engine, request, plan } = self;
        let dir = match engine.runs_dir.as_ref().filter(|_| is_kept) {
            Some(dir) => RunDir::Kept(dir.join(identity.build.run_id.to_string())),
            None => RunDir::Temporary,
        };
        let place = match &dir {
            RunDir::Kept(dir) => format!("in {}", dir.display()),
            RunDir::Temporary => "in the temporary directory".into(),
        };
        let meta = RunMeta {
            build: identity.build.clone(),
            plan: PlanSummary {
                step_count: plan.dag.len(),
                chain_count: plan.dag.chain_count(),
                default_runner: self.default_runner().to_owned(),
            },
            started_at: identity.started_at,
            steps: plan.dag.steps().map(|step| step_meta(plan, step)).collect(),
            runners: plan.runners.iter().map(|runner| Arc::clone(&runner.name)).collect(),
            server: None,
            details: plan_details(plan),
        };
        event::create(dir, meta, &request.secrets)
            .map_err(|source| BackendError::Local { doing: format!("open the run's journal {place}"), source })
    }

    /// Returns the name of the runner that runs the steps that name none, if there is one.
    fn default_runner(&self) -> &str {
        let asked = self.request.options.runner.as_deref();
        asked
            .or_else(|| self.plan.runners.iter().find(|runner| runner.is_default).map(|runner| &*runner.name))
            .unwrap_or_default()
    }
}

fn plan_details(plan: &BoundPlan) -> PlanDetails {
    let mut details = PlanDetails::default();
    for step in plan.dag.steps() {
        let parents = plan.dag.parents(step).iter().filter(|link| link.kind == EdgeKind::DependsOn);
        details.depends_on.extend(parents.map(|link| (link.step, step)));
    }
    let names = |services: &[BoundService]| services.iter().map(|service| Arc::clone(&service.name)).collect();
    details.commands = plan.dag.steps().map(|step| StepCommand::new(Arc::clone(&plan.step(step).step.cmd))).collect();
    details.services = plan.services.iter().map(|(step, services)| (*step, names(services))).collect();
    details
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
