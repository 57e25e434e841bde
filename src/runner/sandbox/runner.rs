//! The runner itself: one attempt from its input to its snapshot.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::Semaphore;

use super::{
    attempt::Supervised,
    boot::{BootContext, LayerDirs, commit},
    cache_dirs,
    cgroup::Limited,
    checks,
    exit_code::exit_code,
    inputs::INPUT_READS,
    jail::{End, JailPlace, JailSpec, MountApi, Root, UserNamespace},
    overlay_pool::Overlays,
    own_network,
    shadow::judge,
    step_spec::c_string,
    traced::{Once, Ran},
};
use crate::{
    image::{ImageOptions, Images, image_identity},
    model::SnapshotRef,
    network::Networks,
    runner::{
        ArgsSchema, CacheIdentity, ExecutorInput, ImageSupport, InputFiles, Limits, Probe, RunnerCapabilities,
        RunnerError, StepContext, StepResult, StepRunner, TraceLookup, check_network, image_notes::no_image,
        kept_steps, services::beside::FAILED,
    },
    source::RunSource,
    store::{IdMap, SnapshotConfig, Store, StoreError, StoreHandle},
    userns::{StartError, UsernsHelper, UsernsOptions, Zygote},
};

/// Runs each step in namespaces of its own, over an overlay of its image, the source and its parents' layers.
///
/// Needs Linux, but neither a daemon nor root. Nothing is opened or started before the first step.
#[derive(Debug)]
pub struct SandboxRunner {
    pub(super) config: Config,
    userns: Arc<UsernsHelper>,
    pub(super) layer_dirs: LayerDirs,
    pub(super) overlays: Arc<Overlays>,
    pub(super) images: Images,
    pub(super) networks: Networks,
    /// Limits how many files of other steps are read at a time.
    pub(super) input_reads: Arc<Semaphore>,
    warned: AtomicBool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Config {
    store: StoreHandle,
    pub(super) host_dirs: Vec<PathBuf>,
    images: ImageOptions,
    mount_api: Option<MountApi>,
    keep_failed: bool,
}

impl Config {
    fn mount_api(&self) -> MountApi {
        self.mount_api.unwrap_or_else(MountApi::of_this_kernel)
    }
}

/// A builder for a [`SandboxRunner`].
#[derive(Debug, Clone, Default)]
pub struct SandboxBuilder {
    config: Config,
    userns: Userns,
}

/// Where the builder's helper comes from.
#[derive(Debug, Clone)]
enum Userns {
    Own(UsernsOptions),
    Shared(Arc<UsernsHelper>),
}

impl Default for Userns {
    fn default() -> Self {
        Self::Own(UsernsOptions::default())
    }
}

impl Userns {
    /// Returns the options of a helper that is not shared.
    fn into_options(self) -> UsernsOptions {
        match self {
            Self::Own(options) => options,
            Self::Shared(_) => UsernsOptions::default(),
        }
    }
}

impl From<SandboxBuilder> for Arc<UsernsHelper> {
    /// Returns the helper that the sandbox would use.
    fn from(builder: SandboxBuilder) -> Self {
        match builder.userns {
            Userns::Own(options) => UsernsHelper::new(options),
            Userns::Shared(helper) => helper,
        }
    }
}

impl SandboxBuilder {
    /// Keeps layers and snapshots in this store instead of the default one.
    #[must_use]
    pub fn store(mut self, store: impl Into<StoreHandle>) -> Self {
        self.config.store = store.into();
        self
    }

    /// Uses a helper that other parts of this process use, too, instead of one of its own.
    #[must_use]
    pub fn userns(mut self, helper: Arc<UsernsHelper>) -> Self {
        self.userns = Userns::Shared(helper);
        self
    }

    /// Starts this `hm` as a helper of its own, instead of the one found by default.
    #[must_use]
    pub fn helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.userns = Userns::Own(self.userns.into_options().program(program));
        self
    }

    /// Exposes a directory of this machine, read-only, to steps on the `host` image.
    #[must_use]
    pub fn host_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config.host_dirs.push(dir.into());
        self
    }

    /// Sets how images are found and fetched.
    #[must_use]
    pub fn images(mut self, options: ImageOptions) -> Self {
        self.config.images = options;
        self
    }

    /// Starts a helper of its own that maps ids in this way, instead of the best one that this machine
    /// allows.
    #[must_use]
    pub fn user_namespace(mut self, user_namespace: UserNamespace) -> Self {
        self.userns = Userns::Own(self.userns.into_options().user_namespace(user_namespace));
        self
    }

    /// Sets how overlays are mounted, instead of the best way that this kernel supports.
    #[must_use]
    pub fn mount_api(mut self, mount_api: MountApi) -> Self {
        self.config.mount_api = Some(mount_api);
        self
    }

    /// Sets whether the filesystems of steps that fail, or are interrupted, are kept in the store for a
    /// while, as [`KeepAs::ForInspection`](crate::store::KeepAs::ForInspection). By default they are kept
    /// if [the build requests it](StepContext::keep).
    #[must_use]
    pub fn keep_failed(mut self, keep_failed: bool) -> Self {
        self.config.keep_failed = keep_failed;
        self
    }

    /// Builds the runner. Nothing is opened or started yet.
    #[must_use]
    pub fn build(self) -> SandboxRunner {
        SandboxRunner {
            images: Images::new(self.config.images.clone()),
            config: self.config.clone(),
            userns: self.into(),
            layer_dirs: LayerDirs::default(),
            overlays: Arc::default(),
            networks: Networks::default(),
            input_reads: Arc::new(Semaphore::new(INPUT_READS)),
            warned: AtomicBool::new(false),
        }
    }
}

impl Default for SandboxRunner {
    fn default() -> Self {
        Self::builder().build()
    }
}

impl SandboxRunner {
    /// Returns a builder for a runner with custom settings.
    #[must_use]
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder::default()
    }

    pub(super) fn store(&self) -> Result<Arc<Store>, StoreError> {
        self.config.store.get()
    }

    /// Returns the helper in the steps' user namespace, for other parts of this process that need one.
    #[must_use]
    pub fn userns(&self) -> &Arc<UsernsHelper> {
        &self.userns
    }

    pub(super) async fn zygote(&self, store: &Arc<Store>) -> Result<Arc<Zygote>, StartError> {
        self.userns.zygote(store).await
    }

    /// Returns the directories of this machine that steps on the `host` image see.
    pub(crate) fn host_dirs(&self) -> &[PathBuf] {
        &self.config.host_dirs
    }

    /// Returns what steps' filesystems depend on.
    pub(super) fn boot_context<'a>(&'a self, store: &'a Arc<Store>, zygote: &'a Arc<Zygote>) -> BootContext<'a> {
        BootContext {
            store,
            layer_dirs: &self.layer_dirs,
            images: &self.images,
            host_dirs: &self.config.host_dirs,
            overlays: &self.overlays,
            zygote,
            mount_api: self.config.mount_api(),
            caches: Vec::new(),
            hidden: None,
        }
    }

    /// Describes a jail over a root, with nothing else in it: no command, and no network but its own.
    pub(super) fn jail(&self, zygote: &Zygote, mountpoint: &Path, root: Root) -> Result<JailSpec, RunnerError> {
        Ok(JailSpec {
            user_namespace: zygote.user_namespace(),
            mount_api: self.config.mount_api(),
            mountpoint: c_string("the store's path", mountpoint.as_os_str().as_bytes())?,
            root,
            place: JailPlace::Root,
            binds: Vec::new(),
            overlays: Vec::new(),
            resolver: None,
            own_names: Vec::new(),
            secrets: Vec::new(),
            shares_network: false,
            cgroups: Vec::new(),
            group_views: Vec::new(),
            watch: None,
            memory_bytes: None,
            workdir: c"/".into(),
            argv: Vec::new(),
            pack: None,
            trace: None,
            terminal: false,
            env: Vec::new(),
        })
    }

    pub(super) fn hold(&self, limits: &Limits) -> Limited {
        let (limited, loose) = Limited::new(limits);
        if !loose.is_empty() && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "failed to make control groups: limits on memory and processes are enforced by polling every 50 ms, \
                 limits on CPUs not at all ({})",
                loose.join(", ")
            );
        }
        limited
    }
}

/// The futures of a step, boxed: see `docs/design/runners.md`, section Compile time.
impl SandboxRunner {
    fn boxed_execute<'a>(
        &'a self,
        ctx: &'a StepContext,
        input: ExecutorInput,
    ) -> BoxFuture<'a, Result<StepResult, RunnerError>> {
        async move {
            let limits = Limits::of_args(input.step.runner_args.as_ref())?;
            let store = self.store().map_err(|error| RunnerError::infrastructure("open the store", error))?;
            let zygote = self.zygote(&store).await?;
            let once = Once { store: &store, zygote: &zygote, ctx, input: &input, limits: &limits };
            let dir = ctx.traces.as_ref().or(ctx.reuse.as_ref().map(|reuse| &reuse.dir));
            let Ran {
                mut boot, limited, started, ended, all_dead, service_failed, hint, shadowed, read, tracing, ..
            } = match dir {
                None => self.once(once, None).await?,
                // Boxed, because most steps are not traced.
                Some(dir) => Box::pin(self.traced(once, dir)).await?,
            };
            let (ended, usage) = match ended {
                Ok(Supervised { end: End::Interrupted, usage, .. }) => (Err(ctx.interrupted()), usage),
                Ok(Supervised { end, usage, .. }) => {
                    let code = match service_failed && limited.is_exceeded() {
                        // A service exceeded a limit: the step ends as for any failure of a service.
                        true => Ok(FAILED),
                        false => exit_code(&end, &limits, &limited).and_then(|code| started.ended(code)),
                    };
                    (code, usage)
                }
                Err(error) => (Err(error), None),
            };
            let usage = usage.map(|usage| limited.usage(usage));
            if let Some(outputs) = ctx.outputs.as_ref().filter(|_| all_dead && kept_steps::has_files(&ended)) {
                let copying = self.copy_boot_outputs(&zygote, (&store, &boot), outputs, &input.workdir);
                Box::pin(kept_steps::copied(&ctx.cancel, outputs, copying)).await;
            }
            let config = || SnapshotConfig {
                host_dirs: self.config.host_dirs.clone(),
                had_secrets: !ctx.secrets.is_empty(),
                ..input.snapshot_config(&ctx.event_bus)
            };
            if let Ok(0) = ended {
                cache_dirs::keep(&mut boot, &store, ctx, input.step_id).await?;
            }
            let is_wanted = input.cache_lookup.commits();
            let mut committed_snapshot = match &ended {
                // It is only compared.
                Ok(0) if !is_wanted && (shadowed.is_some() || ctx.expected.is_some()) => commit(boot, &store)
                    .await
                    .inspect_err(|error| {
                        tracing::warn!("step {} was not compared: {}", input.step.key, error.to_line());
                    })
                    .ok(),
                Ok(0) if is_wanted => {
                    let snapshot = commit(boot, &store).await?;
                    store.snapshots().describe(&snapshot, Arc::new(config()));
                    if ctx.keep {
                        kept_steps::keep_passed(snapshot.clone(), &store, &input).await;
                    }
                    Some(snapshot)
                }
                ended => {
                    let is_alone = ctx.expected.as_ref().is_some_and(|it| it.verification.is_alone());
                    if (self.config.keep_failed || ctx.keep) && !is_alone && kept_steps::is_worth_keeping(ended) {
                        kept_steps::keep_failed(commit(boot, &store).await, &store, &input, config()).await;
                    } else if all_dead {
                        boot.discard();
                    }
                    None
                }
            };
            if let Some(expected) = &ctx.expected {
                let code = ended.as_ref().ok().copied();
                committed_snapshot = Box::pin(self.verified(once, expected, (code, committed_snapshot))).await;
            }
            if let Some(shadowed) = shadowed {
                let end = (ended.as_ref().ok().copied(), committed_snapshot.as_ref());
                Box::pin(judge(once, shadowed, end)).await;
                if let Some(unwanted) = committed_snapshot.take_if(|_| !is_wanted) {
                    self.reap_snapshots(vec![unwanted]).await;
                }
            }
            let traced = match (&ctx.reuse, read, &committed_snapshot) {
                (Some(reuse), Some(read), Some(snapshot)) => {
                    Box::pin(self.traced_result(once, (reuse, *read), snapshot)).await
                }
                _ => None,
            };
            let exit_code = ended.map_err(|error| error.with_usage(usage))?;
            let result = StepResult::exited(exit_code).with_snapshot(committed_snapshot).with_usage(usage);
            Ok(StepResult { traced, tracing, ..result.with_hint(hint) })
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
                    let failed = |error: StoreError| RunnerError::infrastructure("resolve the image", error);
                    let store = self.store().map_err(failed)?;
                    let base = Box::pin(self.images.pin(&store, image, &())).await.map_err(no_image)?;
                    let host_dirs = self.config.host_dirs.clone();
                    let doing = "tell what the image stands for";
                    Some(RunnerError::blocking(doing, move || Ok(image_identity(&base, &host_dirs)?)).await?.into())
                }
            };
            Ok(Some(CacheIdentity { image, mode: self.userns.id_map().await.as_str().into() }))
        }
        .boxed()
    }
}

impl StepRunner for SandboxRunner {
    const NAME: &'static str = "sandbox";
    /// Since 2, steps have a network of their own by default.
    const CACHE_VERSION: u32 = 2;

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        self.boxed_execute(ctx, input).await
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        let Some(store) = self.config.store.get_opened() else { return };
        let removing = RunnerError::blocking("remove snapshots", move || Ok(store.snapshots().remove(&snapshots)?));
        if let Err(error) = removing.await {
            tracing::warn!(error = error.to_line(), "snapshots stay in the store");
        }
    }

    async fn copy_outputs(&self, ctx: &StepContext, snapshot: SnapshotRef) {
        self.copy_snapshot_outputs(ctx, snapshot).await;
    }

    async fn probe(&self) -> Probe {
        checks::probe(self).await
    }

    async fn probe_network(&self) -> Probe {
        own_network::probe(self).await
    }

    async fn cache_identity(&self, image: Option<&str>) -> Result<Option<CacheIdentity>, RunnerError> {
        self.boxed_cache_identity(image).await
    }

    async fn input_digest(&self, source: &RunSource, input: &InputFiles) -> Result<[u8; 32], RunnerError> {
        self.boxed_input_digest(source, input).await
    }

    async fn look_up_trace(&self, ctx: &StepContext, input: ExecutorInput) -> Result<TraceLookup, RunnerError> {
        self.boxed_look_up_trace(ctx, input).await
    }

    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities {
            grace: true,
            workspace: true,
            snapshots: true,
            layers: true,
            ownership: self.userns.id_map_now() != IdMap::Single,
            xattrs: true,
            secrets: true,
            isolation: true,
            limits: true,
            network: true,
            private_network: true,
            cache_dirs: true,
            outputs: true,
            services: true,
            inputs: true,
            traces: true,
            images: ImageSupport::All,
        }
    }

    fn args_schema(&self) -> ArgsSchema {
        ArgsSchema::of::<Limits>().with_check(check_network).not_in_keys(cache_dirs::NOT_IN_KEYS)
    }
}
