//! The runner itself: one attempt from its input to its snapshot.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt, future};

use super::{
    action::{Parts, Prepared},
    boot::{Boot, Part},
    collect, error,
    output::Output,
    source::Sources,
    step_program::StepProgram,
};
use crate::{
    awake, blocking,
    image::{ImageOptions, Images, image_identity},
    model::{SnapshotRef, StdStream},
    remote::{
        Cas, Digest, Endpoint, EndpointOptions, Execution, OptionsError, RemoteError, RemoteErrorKind, Update,
        Uploaded, reapi,
    },
    runner::{
        ArgsSchema, CacheIdentity, ExecutorInput, ImageSupport, Limits, Pool, Probe, RunnerCapabilities, RunnerError,
        StepContext, StepResult, StepRunner, cleanup::CleanupThread, image_notes::no_image, kept_steps,
    },
    source::FrozenSource,
    store::{Base, Store, StoreHandle},
    transfer::{self, Packable, TransferContext, Uploads},
    userns::{UsernsHelper, UsernsOptions},
};

/// The default number of steps in flight.
const JOBS: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");
/// The most times to upload again, in one attempt, blobs that the engine lost.
const MAX_ROUNDS: u32 = 4;
/// How long a request to the engine to end a step may take.
const CANCELLING: Duration = Duration::from_secs(5);
/// How long an engine may take to report the end of a step, beyond the step's grace.
const LINGER: Duration = Duration::from_secs(2);

/// Runs each step on an engine that speaks the Remote Execution API.
///
/// Needs an endpoint, and the static `hm-step`. Nothing is connected or opened before the first step.
#[derive(Debug)]
pub struct CloudRunner {
    /// Ends the executions of dropped attempts at the engine.
    cleanup: CleanupThread,
    engine: Result<RemoteEngine, Unready>,
    platform: Vec<(String, String)>,
    jobs: NonZeroUsize,
    store: StoreHandle,
    images: Images,
    program: StepProgram,
    uploads: Uploads,
    sources: Sources,
    /// Determines how ids are mapped in this machine's steps, which share layers with this runner's.
    userns: Arc<UsernsHelper>,
    uploaded_blobs: AtomicU64,
    uploaded_bytes: AtomicU64,
}

/// The endpoints of an engine and of its log streams.
#[derive(Debug)]
struct RemoteEngine {
    endpoint: Endpoint,
    logs: Endpoint,
}

/// Why there is no engine to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Unready {
    #[error("no engine is configured")]
    Nowhere,
    #[error(transparent)]
    Options(OptionsError),
    #[error("the engine's log service: {0}")]
    Logs(OptionsError),
}

const SET_ENDPOINT: &str = "set --remote grpc://HOST:PORT, HM_REMOTE, or `endpoint` of [remote] in .hm/hm.toml";

/// A builder for a [`CloudRunner`].
#[derive(Debug, Clone, Default)]
pub struct CloudBuilder {
    endpoint: Option<EndpointOptions>,
    logs: Option<EndpointOptions>,
    platform: Vec<(String, String)>,
    jobs: Option<NonZeroUsize>,
    store: StoreHandle,
    images: ImageOptions,
    program: Option<PathBuf>,
    userns: Option<Arc<UsernsHelper>>,
}

impl CloudBuilder {
    /// Runs steps on the engine at this endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: EndpointOptions) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Reads the output of running steps from this endpoint, instead of the engine's own. The output of a
    /// step that has ended is complete and correct, even if the log service returns wrong data.
    #[must_use]
    pub fn log_service(mut self, logs: EndpointOptions) -> Self {
        self.logs = Some(logs);
        self
    }

    /// Requires workers with this property.
    #[must_use]
    pub fn platform_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.platform.push((name.into(), value.into()));
        self
    }

    /// Sets how many steps may be in flight at once, besides those on this machine. The default is 16.
    #[must_use]
    pub fn jobs(mut self, jobs: NonZeroUsize) -> Self {
        self.jobs = Some(jobs);
        self
    }

    /// Keeps layers and snapshots in this store instead of the default one.
    #[must_use]
    pub fn store(mut self, store: impl Into<StoreHandle>) -> Self {
        self.store = store.into();
        self
    }

    /// Sets how images are found and fetched.
    #[must_use]
    pub fn images(mut self, options: ImageOptions) -> Self {
        self.images = options;
        self
    }

    /// Sends this `hm-step`, instead of the one that `HM_STEP` names or that is in the directory of this
    /// program.
    #[must_use]
    pub fn step_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Reads layers that belong to subordinate ids through a helper that other parts of this process use,
    /// too, instead of one of its own.
    #[must_use]
    pub fn userns(mut self, helper: Arc<UsernsHelper>) -> Self {
        self.userns = Some(helper);
        self
    }

    /// Starts this `hm` as a helper of its own, to read layers that belong to subordinate ids.
    #[must_use]
    pub fn helper(self, program: impl Into<PathBuf>) -> Self {
        self.userns(UsernsHelper::new(UsernsOptions::default().program(program)))
    }

    /// Builds the runner. Nothing is connected or opened yet. The probe reports errors in the endpoint.
    #[must_use]
    pub fn build(self) -> CloudRunner {
        let engine = match self.endpoint {
            Some(options) => Endpoint::new(options).map_err(Unready::Options),
            None => Err(Unready::Nowhere),
        };
        let engine = engine.and_then(|endpoint| {
            let logs = self.logs.map(Endpoint::new).transpose().map_err(Unready::Logs)?;
            Ok(RemoteEngine { logs: logs.unwrap_or_else(|| endpoint.clone()), endpoint })
        });
        CloudRunner {
            cleanup: CleanupThread::default(),
            engine,
            platform: self.platform,
            jobs: self.jobs.unwrap_or(JOBS),
            images: Images::new(self.images),
            program: StepProgram::new(self.program),
            store: self.store,
            uploads: Uploads::default(),
            sources: Sources::default(),
            userns: self.userns.unwrap_or_else(|| UsernsHelper::new(UsernsOptions::default())),
            uploaded_blobs: AtomicU64::new(0),
            uploaded_bytes: AtomicU64::new(0),
        }
    }
}

/// An attempt's Action, and the data to process its result.
struct Ready {
    boot: Boot,
    prepared: Prepared,
    /// The blobs that the engine had when the Action was ready, except the source's files.
    needs: Vec<Digest>,
}

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
        self.sources.bring(&store, &cas, source, |uploaded| self.count(uploaded)).await
    }

    fn count(&self, uploaded: Uploaded) {
        self.uploaded_blobs.fetch_add(uploaded.blobs, Relaxed);
        self.uploaded_bytes.fetch_add(uploaded.bytes, Relaxed);
    }

    fn engine(&self) -> Result<&RemoteEngine, RunnerError> {
        self.engine.as_ref().map_err(|error| RunnerError::unsupported(format!("{error}: {SET_ENDPOINT}")))
    }

    fn store(&self) -> Result<Arc<Store>, RunnerError> {
        self.store.get().map_err(error::store("open the store"))
    }

    /// Uploads everything that the attempt needs to the engine.
    async fn prepare(
        &self,
        ctx: &StepContext,
        input: &ExecutorInput,
        limits: &Limits,
        cas: &Cas,
        store: &Arc<Store>,
    ) -> Result<Ready, RunnerError> {
        let program = self.program.blob().await?;
        let id_map = self.userns.prepare_trees(store).await?;
        let boot = Boot::of(ctx, input, store, &self.images, id_map).await?;
        let source = self.sources.bring(store, cas, &boot.source, |uploaded| self.count(uploaded)).await?;
        let context = TransferContext { store, cas, id_map };
        let layers = boot.parts.iter().map(async |part| {
            let Some(packable) = packable(part).await? else { return Ok(None) };
            let brought = self.uploads.bring(context, packable, |uploaded| self.count(uploaded)).await;
            brought.map(Some).map_err(error::transfer)
        });
        let layers: Vec<_> = future::try_join_all(layers).await?.into_iter().flatten().collect();
        let parts =
            Parts { boot: &boot, layers: &layers, source, program: program.digest, platform: &self.platform, limits };
        let mut prepared = parts.prepare(ctx, input)?;
        let mut blobs = std::mem::take(&mut prepared.blobs);
        blobs.push(program);
        let needs =
            blobs.iter().map(|blob| blob.digest).chain(layers.iter().map(transfer::digest)).chain([source]).collect();
        self.count(cas.upload(blobs).await.map_err(error::remote("upload the step"))?);
        Ok(Ready { boot, prepared, needs })
    }

    /// Executes an Action to its end, or until the attempt is interrupted.
    async fn run(
        &self,
        engine: &RemoteEngine,
        action: Digest,
        skip_cache_lookup: bool,
        output: &mut Output<'_>,
        ctx: &StepContext,
    ) -> Result<Result<Box<reapi::ExecuteResponse>, RemoteError>, RunnerError> {
        let execution = Execution::new(engine.endpoint.clone());
        let mut updates = pin!(execution.run(action, skip_cache_lookup));
        let mut begun = Begun { runner: self, endpoint: &engine.endpoint, operation: String::new() };
        // Whether the attempt was interrupted, and whether the engine was asked to cancel it.
        let (mut interrupted, mut told) = (false, false);
        // How long to wait for the end of an interrupted execution. The time counts from the first poll.
        let mut patience = pin!(awake::sleep(ctx.grace.saturating_add(LINGER)));
        loop {
            if interrupted && !told && !begun.operation.is_empty() {
                told = true;
                let cancelled = tokio::time::timeout(CANCELLING, execution.cancel(&begun.operation)).await;
                match cancelled {
                    Ok(Ok(())) => {}
                    // The execution continues, and ends by its own time limit.
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "leaving a cancelled step to the engine");
                        begun.end();
                        return Err(ctx.interrupted());
                    }
                    Err(_) => return Err(ctx.interrupted()),
                }
            }
            tokio::select! {
                update = updates.next() => match update {
                    Some(Ok(Update::Progress { operation: name, stdout_stream, stderr_stream, .. })) => {
                        begun.operation = name;
                        output.follow(&engine.logs, StdStream::Stdout, &stdout_stream).await;
                        output.follow(&engine.logs, StdStream::Stderr, &stderr_stream).await;
                    }
                    Some(Ok(Update::Done(response))) => {
                        begun.end();
                        return Ok(Ok(response));
                    }
                    Some(Err(error)) => {
                        begun.end();
                        return Ok(Err(error));
                    }
                    None => return Err(RunnerError::infrastructure(
                        "run the step",
                        anyhow::anyhow!("the engine ended the stream of answers"),
                    )),
                },
                (stream, piece) = output.next() => output.show(stream, &piece).await,
                () = ctx.cancel.cancelled(), if !interrupted => interrupted = true,
                () = &mut patience, if interrupted => return Err(ctx.interrupted()),
            }
        }
    }

    /// Runs one attempt, up to the engine's result.
    async fn attempt(
        &self,
        engine: &RemoteEngine,
        ctx: &StepContext,
        input: &ExecutorInput,
        limits: &Limits,
        store: &Arc<Store>,
    ) -> Result<(Boot, reapi::ActionResult), RunnerError> {
        let cas = Cas::new(engine.endpoint.clone());
        let mut output = Output::new(&ctx.event_bus, input.step_id);
        let (mut round, mut distrust_cache) = (1, false);
        loop {
            let preparing = self.prepare(ctx, input, limits, &cas, store);
            let Ready { boot, prepared, needs } = tokio::select! {
                ready = preparing => ready?,
                () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
            };
            let skip_cache_lookup = distrust_cache || !prepared.cacheable;
            let ended = self.run(engine, prepared.action, skip_cache_lookup, &mut output, ctx).await?;
            let response = match ended {
                Ok(response) => match Execution::new(engine.endpoint.clone()).trouble(&response) {
                    Some(error) => Err((error, Some(response))),
                    None => Ok(response),
                },
                Err(error) => Err((error, None)),
            };
            let response = match response {
                Ok(response) => response,
                Err((error, _)) if round < MAX_ROUNDS && comes_of_loss(&error, &cas, needs).await => {
                    tracing::debug!(%error, round, "uploading again what the engine lost");
                    output.say("hm: the engine lost uploaded files; uploading them again\n").await;
                    self.sources.forget();
                    round += 1;
                    continue;
                }
                Err((error, response)) => {
                    if let Some(result) = response.and_then(|response| response.result) {
                        output.finish(&result, &cas, store).await?;
                    }
                    if ctx.cancel.is_cancelled() {
                        return Err(ctx.interrupted());
                    }
                    return Err(error::remote("run the step")(error));
                }
            };
            let is_cached = response.cached_result;
            let Some(result) = response.result else {
                let error = anyhow::anyhow!("the engine reported the end of the step without a result");
                return Err(RunnerError::infrastructure("run the step", error));
            };
            // A failure may be temporary, so a cached one is not accepted: the user runs the step again to
            // see it pass.
            if is_cached && result.exit_code != 0 && !distrust_cache {
                distrust_cache = true;
                continue;
            }
            output.finish(&result, &cas, store).await?;
            return Ok((boot, result));
        }
    }
}

/// An Action that the engine executes. If this is dropped before the end, the engine is asked to cancel it.
struct Begun<'a> {
    runner: &'a CloudRunner,
    endpoint: &'a Endpoint,
    /// The name of the operation; empty before it is known, and after its end.
    operation: String,
}

impl Begun<'_> {
    fn end(&mut self) {
        self.operation.clear();
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.operation.is_empty() {
            return;
        }
        let (endpoint, operation) = (self.endpoint.apart(), std::mem::take(&mut self.operation));
        let what = format!("cancel the step {operation}, which is still running at {}", endpoint.place());
        let cancelling = async move { Execution::new(endpoint).cancel(&operation).await };
        self.runner.cleanup.run(what, cancelling);
    }
}

/// Returns whether an engine refuses an Action because it has lost blobs. Not every engine reports that as
/// the protocol requires.
async fn comes_of_loss(error: &RemoteError, cas: &Cas, needs: Vec<Digest>) -> bool {
    match error.kind() {
        RemoteErrorKind::MissingBlobs => true,
        RemoteErrorKind::NotFound | RemoteErrorKind::Refused | RemoteErrorKind::Internal => {
            cas.find_missing(needs).await.is_ok_and(|missing| !missing.is_empty())
        }
        _ => false,
    }
}

impl StepRunner for CloudRunner {
    const NAME: &'static str = "cloud";

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        if !ctx.secrets.is_empty() {
            return Err(RunnerError::unsupported(
                "secrets are not sent to other machines: run the step in the sandbox",
            ));
        }
        let limits = Limits::of_args(input.step.runner_args.as_ref())?;
        let engine = self.engine()?;
        let store = self.store()?;
        // Boxed, because it is large, and other runners' futures do not need the space.
        let (boot, result) = Box::pin(self.attempt(engine, ctx, &input, &limits, &store)).await?;
        let cas = Cas::new(engine.endpoint.clone());
        let output = collect::step_output(&result, &cas).await?;
        let exit_code = collect::exit_code(&output, &limits, ctx)?;
        let committed_snapshot = if exit_code == 0 && input.cache_lookup.commits() {
            let taking = collect::snapshot(&result, &output, boot, &cas, &store, &self.uploads);
            let snapshot = Box::pin(taking).await?;
            store.snapshots().describe(&snapshot, Arc::new(input.snapshot_config()));
            if ctx.keep {
                kept_steps::keep_passed(snapshot.clone(), &store, &input).await;
            }
            Some(snapshot)
        } else {
            None
        };
        Ok(StepResult { exit_code, committed_snapshot, artifacts: Vec::new() })
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
        let unusable = |reason: String, hint: &str| Probe::Unusable { reason, hint: hint.into() };
        let engine = match &self.engine {
            Ok(engine) => &engine.endpoint,
            Err(error) => return unusable(error.to_string(), SET_ENDPOINT),
        };
        let program = match self.program.locate() {
            Ok(program) => program.path,
            Err(error) => {
                return unusable(error.to_string(), "build one with `just hm-step`, and set HM_STEP to its path");
            }
        };
        match engine.check().await {
            Err(error) => unusable(
                error.to_string(),
                match error.kind() {
                    RemoteErrorKind::Denied => "set --remote-header, or --remote-cert and --remote-key",
                    _ => SET_ENDPOINT,
                },
            ),
            Ok(limits) if !limits.executes => unusable(
                format!("{} has a cache, but does not run steps", engine.place()),
                "use an engine that runs steps, or another instance (--remote-instance)",
            ),
            Ok(limits) if !limits.sha256 => {
                unusable(format!("{} does not support SHA-256", engine.place()), "enable SHA-256 in the engine")
            }
            Ok(_) => Probe::Usable { note: Some(format!("{}, {}", engine.place(), program.display())) },
        }
    }

    async fn cache_identity(&self, image: Option<&str>) -> Result<Option<CacheIdentity>, RunnerError> {
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
            images: ImageSupport::Portable,
        }
    }

    fn args_schema(&self) -> ArgsSchema {
        ArgsSchema::of::<Limits>()
    }

    fn pool(&self) -> Pool {
        Pool::Own { limit: self.jobs }
    }
}

/// Returns the part of a step's filesystem to transfer as a layer, or `None` for the source.
async fn packable(part: &Part) -> Result<Option<Packable>, RunnerError> {
    Ok(match part {
        Part::Source => None,
        Part::Layer(layer) => Some(Packable::Layer(layer.clone())),
        Part::Rootfs(dir) => {
            let base = Base::Rootfs(dir.clone());
            let identity = blocking::run("look at the image", move || {
                image_identity(&base, &[]).map_err(error::store("look at the image"))
            });
            Some(Packable::Tree { identity: identity.await?, dir: dir.clone() })
        }
    })
}
