//! The runner itself: what it keeps between attempts, and an attempt's result.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

use super::{CloudBuilder, collect, error, source::Sources, step_program::StepProgram};
use crate::{
    blocking,
    image::{Images, image_identity},
    model::{SnapshotRef, StdStream},
    remote::{Cas, Digest, Endpoint, OptionsError, RemoteErrorKind, Uploaded},
    runner::{
        ArgsSchema, CacheIdentity, ExecutorInput, ImageSupport, Limits, Pool, Probe, RunnerCapabilities, RunnerError,
        StepContext, StepResult, StepRunner, check_shared_network, cleanup_thread::CleanupThread,
        image_notes::no_image, kept_steps,
    },
    source::FrozenSource,
    step::{Exit, StepOutput},
    store::{Store, StoreHandle},
    transfer::{TransferContext, Uploads},
    userns::UsernsHelper,
};

/// Runs each step on an engine that speaks the Remote Execution API.
///
/// Needs an endpoint, and the static `hm-step`. Nothing is connected or opened before the first step.
#[derive(Debug)]
pub struct CloudRunner {
    /// Ends the executions of dropped attempts at the engine.
    pub(super) cleanup: CleanupThread,
    pub(super) engine: Result<RemoteEngine, Unready>,
    pub(super) platform: Vec<(String, String)>,
    pub(super) jobs: NonZeroUsize,
    pub(super) store: StoreHandle,
    pub(super) images: Images,
    pub(super) program: StepProgram,
    pub(super) uploads: Uploads,
    pub(super) sources: Sources,
    /// Determines how ids are mapped in this machine's steps, which share layers with this runner's.
    pub(super) userns: Arc<UsernsHelper>,
    pub(super) uploaded_blobs: AtomicU64,
    pub(super) uploaded_bytes: AtomicU64,
    /// How long a step waits for a worker before the user is told.
    pub(super) queue_notice: Duration,
    /// The shortest time limit in seconds that the engine refused.
    pub(super) refused_bound: AtomicU64,
    /// Whether a worker that does not use its layer cache was reported.
    pub(super) cache_reported: AtomicBool,
}

/// The endpoints of an engine and of its log streams.
#[derive(Debug)]
pub(super) struct RemoteEngine {
    pub(super) endpoint: Endpoint,
    pub(super) logs: Endpoint,
}

/// Why there is no engine to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unready {
    #[error("no engine is configured")]
    Nowhere,
    #[error(transparent)]
    Options(OptionsError),
    #[error("the engine's log service: {0}")]
    Logs(OptionsError),
}

const SET_ENDPOINT: &str = "set --remote grpc://HOST:PORT, HM_REMOTE, or `endpoint` of [remote] in .hm/hm.toml";

impl CloudRunner {
    /// Returns a builder for a runner with custom settings.
    #[must_use]
    pub fn builder() -> CloudBuilder {
        CloudBuilder::default()
    }

    /// Returns how much has been uploaded to the engine so far.
    #[must_use]
    pub fn uploaded(&self) -> Uploaded {
        Uploaded { blobs: self.uploaded_blobs.load(Relaxed), bytes: self.uploaded_bytes.load(Relaxed) }
    }

    /// Uploads a source to the engine ahead of the steps that need it. Returns the digest of the directory
    /// that contains it as `workspace`.
    ///
    /// # Errors
    /// Returns an error if the source cannot be read or uploaded.
    pub async fn upload_source(&self, source: &Arc<FrozenSource>) -> Result<Digest, RunnerError> {
        let store = self.store()?;
        let cas = Cas::new(self.engine()?.endpoint.clone());
        Ok(self.sources.bring(&store, &cas, source, |uploaded| self.count(uploaded)).await?.root)
    }

    pub(super) fn count(&self, uploaded: Uploaded) {
        self.uploaded_blobs.fetch_add(uploaded.blobs, Relaxed);
        self.uploaded_bytes.fetch_add(uploaded.bytes, Relaxed);
    }

    /// Returns the longest time limit that the engine may accept, if it refused one.
    pub(super) fn longest_bound(&self) -> Option<Duration> {
        let refused = self.refused_bound.load(Relaxed);
        (refused < u64::MAX).then(|| Duration::from_secs(refused.saturating_sub(1)))
    }

    /// Remembers a time limit that the engine refused.
    pub(super) fn note_refused_bound(&self, bound: Duration) {
        self.refused_bound.fetch_min(bound.as_secs(), Relaxed);
    }

    /// Prints, once, why a worker did not use its layer cache.
    async fn report_unused_cache(&self, ctx: &StepContext, input: &ExecutorInput, output: &StepOutput) {
        if let Some(why) = &output.cache_unused
            && !self.cache_reported.swap(true, Relaxed)
        {
            let line = format!("hm: {why}\n");
            ctx.event_bus.output(input.step_id, StdStream::Stderr, line.as_bytes()).await;
        }
    }

    fn engine(&self) -> Result<&RemoteEngine, RunnerError> {
        self.engine.as_ref().map_err(|error| RunnerError::unsupported(format!("{error}: {SET_ENDPOINT}")))
    }

    fn store(&self) -> Result<Arc<Store>, RunnerError> {
        self.store.get().map_err(error::store("open the store"))
    }
}

/// The futures of a step, boxed: see `docs/design/runners.md`, section Compile time.
impl CloudRunner {
    fn boxed_execute<'a>(
        &'a self,
        ctx: &'a StepContext,
        input: ExecutorInput,
    ) -> BoxFuture<'a, Result<StepResult, RunnerError>> {
        async move {
            if !ctx.secrets.is_empty() {
                return Err(RunnerError::unsupported(
                    "secrets are not sent to other machines: run the step in the sandbox",
                ));
            }
            let limits = Limits::of_args(input.step.runner_args.as_ref())?;
            let engine = self.engine()?;
            let store = self.store()?;
            let (boot, result) = self.attempt(engine, ctx, &input, &limits, &store).await?;
            let cas = Cas::new(engine.endpoint.clone());
            let output = collect::step_output(&result, &cas).await?;
            self.report_unused_cache(ctx, &input, &output).await;
            let ended = collect::exit_code(&output, &input.step, &limits, ctx);
            let context = TransferContext { store: &store, cas: &cas, id_map: boot.id_map };
            // A worker that had to end at once packed nothing.
            if ctx.keep && kept_steps::is_worth_keeping(&ended) && output.exit != Exit::Terminated {
                let taking = collect::snapshot(&result, &output, boot, context, &self.uploads);
                kept_steps::keep_failed(taking.await, &store, &input, input.snapshot_config(&ctx.event_bus)).await;
                return Ok(StepResult::exited(ended?));
            }
            let exit_code = ended?;
            let committed_snapshot = if exit_code == 0 && input.cache_lookup.commits() {
                let taking = collect::snapshot(&result, &output, boot, context, &self.uploads);
                let snapshot = taking.await?;
                store.snapshots().describe(&snapshot, Arc::new(input.snapshot_config(&ctx.event_bus)));
                if ctx.keep {
                    kept_steps::keep_passed(snapshot.clone(), &store, &input).await;
                }
                Some(snapshot)
            } else {
                None
            };
            Ok(StepResult::exited(exit_code).with_snapshot(committed_snapshot))
        }
        .boxed()
    }

    fn boxed_probe(&self) -> BoxFuture<'_, Probe> {
        async move {
            let unusable = |reason: String, hint: &str| Probe::Unusable { reason, hint: hint.into() };
            let engine = match &self.engine {
                Ok(engine) => &engine.endpoint,
                Err(error) => return unusable(error.to_string(), SET_ENDPOINT),
            };
            let program = match self.program.locate() {
                Ok(program) => program,
                Err(error) => return unusable(error.to_string(), "`hm doctor` tells which hm-step there is"),
            };
            match engine.check().await {
                Err(error) => unusable(
                    error.to_string(),
                    match error.kind() {
                        RemoteErrorKind::Denied => "set --remote-header, or --remote-cert and --remote-key",
                        RemoteErrorKind::Refused | RemoteErrorKind::NotFound => {
                            "set the instance's name: --remote-instance, HM_REMOTE_INSTANCE, or `instance` of [remote]"
                        }
                        RemoteErrorKind::Unavailable => "start the engine, or correct its address",
                        _ => "use an engine that speaks the Remote Execution API",
                    },
                ),
                Ok(limits) if !limits.executes => unusable(
                    format!("{} has a cache, but does not run steps", engine.place()),
                    "use an engine that runs steps, or another instance (--remote-instance)",
                ),
                Ok(limits) if limits.digest_function.is_none() => unusable(
                    format!("{} supports neither SHA-256 nor BLAKE3", engine.place()),
                    "enable one of them in the engine",
                ),
                Ok(_) => Probe::Usable { note: Some(format!("{}, {program}", engine.place())) },
            }
        }
        .boxed()
    }

    fn boxed_cache_identity<'a>(
        &'a self,
        image: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<CacheIdentity>, RunnerError>> {
        async move {
            let image = match image {
                None => None,
                Some(image) => {
                    let store = self.store()?;
                    let base = Box::pin(self.images.pin(&store, image, &())).await.map_err(no_image)?;
                    let identity = blocking::run("look at the image", move || {
                        image_identity(&base, &[]).map_err(error::store("resolve the image"))
                    });
                    Some(identity.await?.into())
                }
            };
            Ok(Some(CacheIdentity { image, mode: self.userns.id_map().await.as_str().into() }))
        }
        .boxed()
    }
}

impl StepRunner for CloudRunner {
    const NAME: &'static str = "cloud";

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        self.boxed_execute(ctx, input).await
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        let Some(store) = self.store.get_opened() else { return };
        let removed = blocking::run("remove snapshots", move || {
            store.snapshots().remove(&snapshots).map_err(error::store("remove snapshots"))
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "failed to remove snapshots");
        }
    }

    async fn probe(&self) -> Probe {
        self.boxed_probe().await
    }

    async fn cache_identity(&self, image: Option<&str>) -> Result<Option<CacheIdentity>, RunnerError> {
        self.boxed_cache_identity(image).await
    }

    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities {
            // The engine is asked to cancel a step, but how the engine and its worker end it cannot be
            // guaranteed.
            grace: false,
            workspace: true,
            snapshots: true,
            layers: true,
            // A worker that runs steps with a single id loses owners.
            ownership: false,
            xattrs: true,
            secrets: false,
            isolation: true,
            limits: true,
            network: true,
            // The engine decides.
            private_network: false,
            cache_dirs: false,
            outputs: false,
            services: false,
            inputs: false,
            traces: false,
            images: ImageSupport::Portable,
        }
    }

    fn args_schema(&self) -> ArgsSchema {
        ArgsSchema::of::<Limits>().with_check(check_shared_network)
    }

    fn pool(&self) -> Pool {
        Pool::Own { limit: self.jobs }
    }
}
