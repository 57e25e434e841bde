//! The Docker implementation of [`VmBackend`].

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::OnceCell;

use super::{
    connection,
    container::Container,
    error,
    images::{self, is_the_stores},
    labels::Owner,
    local_trees::LocalTrees,
    make::no_host,
    shared::{Connection, Shared},
    sweep::{self, Swept},
};
use crate::{
    blocking,
    image::{ImageOptions, Images, image_identity},
    model::SnapshotRef,
    runner::{
        CacheIdentity, ExecutorInput, ImageSupport, InputFiles, Limits, Probe, RunnerCapabilities, RunnerError,
        StepContext,
        cleanup_thread::CleanupThread,
        vm::{BootContext, EndedStep, Output, VmBackend},
    },
    source::RunSource,
    store::{Store, StoreHandle},
    sync::Mutex,
};

/// A backend that creates containers with a Docker or Podman daemon.
#[derive(Debug)]
pub struct Docker {
    shared: Arc<Shared>,
}

/// A builder for a [`Docker`].
#[derive(Debug, Clone, Default)]
pub struct DockerBuilder {
    host: Option<String>,
    helper: Option<PathBuf>,
    images: ImageOptions,
    pub(super) local_trees: LocalTrees,
}

impl DockerBuilder {
    /// Connects to this daemon (`unix://PATH`, or `tcp://HOST:PORT` without encryption), instead of the one
    /// that `DOCKER_HOST` names or that has a socket at a usual path.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Starts this `hm` to remove the containers of this process if it is killed. The default is this
    /// program, if it called [`init`](super::init).
    #[must_use]
    pub fn helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.helper = Some(program.into());
        self
    }

    /// Sets how images are found. The daemon pulls with its own settings.
    #[must_use]
    pub fn images(mut self, options: ImageOptions) -> Self {
        self.images = options;
        self
    }

    /// Builds a runner on this backend, with layers in `store`. Nothing is connected or opened yet.
    #[must_use]
    pub fn build(self, store: impl Into<StoreHandle>) -> super::DockerRunner {
        let store = store.into();
        let shared = Shared {
            host: self.host,
            helper: self.helper,
            reaper: OnceLock::new(),
            images: Images::new(self.images.clone()),
            options: self.images,
            connection: OnceCell::new(),
            runs: Mutex::default(),
            own: Mutex::default(),
            bases: Mutex::default(),
            cleanup: CleanupThread::default(),
            local_trees: self.local_trees,
            sandbox: OnceLock::new(),
        };
        super::DockerRunner::new(Docker { shared: Arc::new(shared) }, store)
    }
}

impl Docker {
    /// Returns a builder for a backend with custom settings.
    #[must_use]
    pub fn builder() -> DockerBuilder {
        DockerBuilder::default()
    }

    /// Removes the containers and images that dead processes of this store left at the daemon. The first step
    /// of a process does that, too.
    ///
    /// # Errors
    /// Returns an error if there is no daemon, or if the daemon cannot remove something.
    pub async fn sweep(&self, store: &Arc<Store>) -> Result<Swept, RunnerError> {
        self.boxed_sweep(store).await
    }

    fn boxed_sweep<'a>(&'a self, store: &'a Arc<Store>) -> BoxFuture<'a, Result<Swept, RunnerError>> {
        async move {
            let client = connection::connect(&connection::place(self.shared.host.as_deref())).await;
            let client = client.map_err(error::daemon("talk to the daemon"))?;
            let owner = Owner::of(store).map_err(error::store("read the store's name"))?;
            let is_left = |process: &str| !store.instance().is_open_in(process);
            let swept = sweep::remove(&client, &owner.of_store(), is_left).await;
            swept.map_err(error::daemon("remove leftovers of dead processes"))
        }
        .boxed()
    }
}

/// The futures of a step, boxed: see `docs/design/runners.md`, section Compile time.
impl Docker {
    fn boxed_boot<'a>(
        &'a self,
        ctx: &'a StepContext,
        context: &'a BootContext,
        limits: &'a Limits,
        output: &'a Output<'a>,
    ) -> BoxFuture<'a, Result<Container, RunnerError>> {
        async move {
            let connection = self.shared.connection(&context.store).await?;
            let cell = self.shared.run(ctx, context.run).cell(context);
            let container_image = cell
                .get_or_try_init(|| Box::pin(self.shared.make_container_image(connection, context, output)))
                .await?;
            Ok(Container::new(&self.shared, connection, container_image, limits))
        }
        .boxed()
    }

    fn boxed_cache_identity<'a>(
        &'a self,
        store: Arc<Store>,
        image: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<CacheIdentity>, RunnerError>> {
        async move {
            let image = match image {
                None => None,
                Some("host") => return Err(no_host()),
                Some(image) if is_the_stores(image) => {
                    let base = Box::pin(self.shared.images.pin(&store, image, &())).await;
                    let base = base.map_err(error::image("get the image"))?;
                    let identity = blocking::run("look at the image", move || {
                        image_identity(&base, &[]).map_err(error::store("resolve the image"))
                    });
                    Some(identity.await?.into())
                }
                Some(image) => {
                    let connection = self.shared.connection(&store).await?;
                    let found = images::find(&connection.client, image).await?;
                    let found =
                        found.ok_or_else(|| RunnerError::unsupported("the daemon does not have the image yet"))?;
                    Some(found.id.into())
                }
            };
            Ok(Some(CacheIdentity { image, mode: self.shared.mode().await.into() }))
        }
        .boxed()
    }

    fn boxed_remove<'a>(&'a self, snapshot: &'a str) -> BoxFuture<'a, Result<(), RunnerError>> {
        async move {
            if self.shared.own.lock().remove(snapshot).is_none() {
                return Ok(());
            }
            let Some(Connection { client, .. }) = self.shared.connection.get() else { return Ok(()) };
            match sweep::remove_image(client, snapshot).await {
                // Other images are based on it. It is removed with them at the build's end.
                Err(bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
                removed => removed.map_err(error::daemon("remove the image")),
            }
        }
        .boxed()
    }

    fn boxed_probe_network(&self) -> BoxFuture<'_, Probe> {
        async move { connection::probe_network(&connection::place(self.shared.host.as_deref())).await }.boxed()
    }

    fn boxed_probe(&self) -> BoxFuture<'_, Probe> {
        async move { connection::probe(&connection::place(self.shared.host.as_deref())).await }.boxed()
    }
}

impl VmBackend for Docker {
    const NAME: &'static str = "docker";
    /// Since 2, steps have a network of their own by default.
    const CACHE_VERSION: u32 = 2;
    const LAYERS: bool = true;
    type Vm = Container;

    async fn create(&self, image: &str, _: &Limits) -> Result<Container, RunnerError> {
        Err(RunnerError::unsupported(format!("a container of `{image}` needs the source as a layer")))
    }

    async fn restore(&self, snapshot: &str, limits: &Limits) -> Result<Option<Container>, RunnerError> {
        let Some(container_image) = self.shared.own.lock().get(snapshot).map(Arc::clone) else { return Ok(None) };
        let connection = self.shared.connection.get();
        Ok(connection.map(|connection| Container::new(&self.shared, connection, &container_image, limits)))
    }

    async fn boot(
        &self,
        ctx: &StepContext,
        context: &BootContext,
        limits: &Limits,
        output: &Output<'_>,
    ) -> Result<Container, RunnerError> {
        self.boxed_boot(ctx, context, limits, output).await
    }

    async fn hold_network(&self, container: &Container, names: &[&str]) -> Result<Container, RunnerError> {
        container.hold_network(names).boxed().await
    }

    async fn cache_identity(
        &self,
        store: Arc<Store>,
        image: Option<&str>,
    ) -> Result<Option<CacheIdentity>, RunnerError> {
        self.boxed_cache_identity(store, image).await
    }

    async fn remove(&self, snapshot: &str) -> Result<(), RunnerError> {
        self.boxed_remove(snapshot).await
    }

    async fn copy_outputs(&self, container: &mut Container, step: EndedStep<'_>) {
        if let Err(error) = container.copy_outputs(step.outputs, step.workdir).await {
            step.outputs.failed(error.to_line());
        }
    }

    async fn copy_snapshot_outputs(&self, ctx: &StepContext, store: &Arc<Store>, snapshot: SnapshotRef) {
        self.shared.sandbox(store).copy_snapshot_outputs(ctx, snapshot).await;
    }

    async fn input_digest(
        &self,
        store: &Arc<Store>,
        source: &RunSource,
        input: &InputFiles,
    ) -> Result<[u8; 32], RunnerError> {
        self.shared.sandbox(store).boxed_input_digest(source, input).await
    }

    async fn bring_inputs(
        &self,
        ctx: &StepContext,
        store: &Arc<Store>,
        container: &mut Container,
        input: &ExecutorInput,
    ) -> Result<(), RunnerError> {
        container.bring_inputs(ctx, store, input).await
    }

    async fn probe(&self) -> Probe {
        self.boxed_probe().await
    }

    async fn probe_network(&self) -> Probe {
        self.boxed_probe_network().await
    }

    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities {
            // Daemons drop all attributes except `security.capability` when they commit.
            xattrs: false,
            // A store with a single id does not record owners.
            ownership: rustix::process::geteuid().is_root(),
            isolation: true,
            limits: true,
            network: true,
            private_network: true,
            outputs: true,
            services: true,
            inputs: true,
            images: ImageSupport::Portable,
            ..RunnerCapabilities::default()
        }
    }
}
